"""Convolution with half the multiplications: Winograd's F(4, 3) along the last spatial axis, of filters 3 wide.

A row is cut into tiles. One tile gives m = 4 outputs of r = 3 filter values and m + r - 1 = 6 inputs:

    y = Aᵀ [(G w) ⊙ (B x)]          6 multiplications where the definition has 12.

Why: seen as polynomials, the outputs of a tile come from the transpose of a product, and a product of degree 5 is known
from its values at 6 points; G evaluates the filter there, B and Aᵀ are the transposes of interpolation and evaluation.
Channels and the other axes are summed between the two, in the place of ⊙: one ordinary convolution, of a filter 1 wide,
for each point.

The points are 0, ±3/4, ±3/2 and infinity: their powers are exact in binary and near 1. In float32 the largest error is
2.3 times that of the definition, with the usual points 0, ±1, ±2, ∞ it is 4.5 times (sums of 864 terms). NaN and
infinity reach all outputs of a tile.

Source: Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray, "Fast algorithms for convolutional
neural networks", CVPR 2016, who take tiles in both axes: in one alone the transforms cost a few passes over the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.rule import Array
from jaxcnn.rules.window import Geometry

M, R = 4, 3  # outputs of a tile; values of the filter
POINTS = (0.0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)  # and infinity


def pays(g: Geometry, groups: int, channels: int, features: int, dtype) -> bool:
    """Whether this is the faster form on a CPU, measured; half precision would lose digits in the transforms."""
    applies = (g.window[-1], g.stride[-1], g.dilation[-1], groups) == (R, 1, 1, 1)
    # A last tile that sticks out is computed whole: for a width of 5 nothing is gained.
    tiles = -(-g.output[-1] // M)
    saved = (M + R - 1) * tiles <= 0.75 * R * g.output[-1]
    many = min(channels, features) >= 16 and max(channels, features) >= 32
    return applies and saved and many and dtype in (np.float32, np.float64)


def convolve(images: Array, filters: Array, g: Geometry, correlate: Callable[[Array, Array, Geometry], Array]) -> Array:
    """N×H×W×C with h×3×C×n to N×Ho×Wo×n.

    `correlate` is the same by its definition; it is given filters h×1×C×n.
    """
    transformed = _at_points(_G, list(jnp.moveaxis(filters, -3, 0)))
    inner = _without_tiles(g)
    products = [
        correlate(x, jnp.expand_dims(w, -3), inner) for x, w in zip(_of_tiles(images, g), transformed, strict=True)
    ]
    return _joined(_at_points(_A.T, products), g.output[-1])


# With the two transforms, y = Aᵀ [(G w) ⊙ (B x)] is linear in w; its transpose, summed over all tiles, is
#
#     dL/dw = Gᵀ Σ [(A dy) ⊙ (B x)] :
#
# 6 multiplications, again, for a tile's 12. Of the rows i that the filter spans each has its own sum.
def filter_gradient(images: Array, dy: Array, g: Geometry, patches: Callable[[Array, Geometry], Array]) -> Array:
    """The images and dy, N×Ho×Wo×n, to n×h×3×C. `patches` puts the taps of a window side by side, as channels."""
    inner, points, n = _without_tiles(g), M + R - 1, dy.shape[-1]
    tiles = jnp.concatenate(_of_tiles(images, g))  # the points one after the other along N
    rows = patches(tiles, inner)
    of_dy = jnp.stack(_at_points(_A, _cut(dy, 0, M, inner.output[-1])))
    # p points, t tiles, k values of the filter at a point: one matrix product a point.
    sums = jnp.einsum("pto,ptk->pok", of_dy.reshape(points, -1, n), rows.reshape(points, -1, rows.shape[-1]))
    dw = jnp.stack(_at_points(_G.T, list(sums)), axis=1)  # n×3×(h·C)
    return jnp.moveaxis(dw.reshape(n, R, *g.window[:-1], images.shape[-1]), 1, -2)


def _of_tiles(images: Array, g: Geometry) -> list[Array]:
    """B x of each tile: N×H×tiles×C for each point."""
    return _at_points(_B, _cut(images, g.padding[-1][0], M + R - 1, -(-g.output[-1] // M)))


def _cut(x: Array, before: int, count: int, tiles: int) -> list[Array]:
    """The first, second, ... value of each tile, `count` of them; the tiles begin every M places, the first `before`
    places before the row.
    """
    *others, width, channels = x.shape
    whole = tiles + (count > M)  # tiles of more than M values reach into the next one
    config = [(0, 0, 0)] * x.ndim
    config[-2] = (before, M * whole - before - width, 0)
    cut = lax.pad(x, np.zeros((), x.dtype), config).reshape(*others, whole, M, channels)
    return [cut[..., k // M : k // M + tiles, k % M, :] for k in range(count)]


def _joined(parts: Sequence[Array], width: int) -> Array:
    """The first, second, ... value of each tile side by side again."""
    joined = jnp.stack(parts, axis=-2)
    *others, tiles, count, channels = joined.shape
    return joined.reshape(*others, tiles * count, channels)[..., :width, :]


def _without_tiles(g: Geometry) -> Geometry:
    """The convolution at one point: over the other axes as it was, of a filter 1 wide, the tiles being the columns."""
    tiles = -(-g.output[-1] // M)
    changes = {"size": tiles, "window": 1, "stride": 1, "dilation": 1, "padding": (0, 0), "output": tiles}
    return g._replace(**{name: (*getattr(g, name)[:-1], value) for name, value in changes.items()})


def _at_points(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
    """The matrix times the vector of arrays: sums of a few arrays each, zeros left out."""
    sums = []
    for row in matrix:
        terms = [a if factor == 1 else float(factor) * a for factor, a in zip(row, arrays, strict=True) if factor]
        sums.append(sum(terms[1:], start=terms[0]))
    return sums


def _matrices(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, G and B of the transforms, a row for each point, infinity last.

    A and G evaluate polynomials, G divided by the point's distances from the others; a row of B has the coefficients
    of the polynomial that is 0 at all other points.
    """
    others = [[q for q in points if q != p] for p in points]
    distances = [np.prod([p - q for q in rest]) for p, rest in zip(points, others, strict=True)]
    last = np.eye(M + R - 1)[-1:]
    a = np.vander([*points, 0.0], M, increasing=True)
    g = np.vander([*points, 0.0], R, increasing=True) / [[d] for d in [*distances, 1.0]]
    b = np.array([[*np.polynomial.polynomial.polyfromroots(rest), 0.0] for rest in others])
    a[-1], g[-1] = last[0, -M:], last[0, -R:]
    return a, g, np.vstack([b, np.polynomial.polynomial.polyfromroots(points)])


_A, _G, _B = _matrices(POINTS)
