"""Pooling: each window of an image becomes one value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats
from jaxcnn.rules.platform import by_platform, materialised
from jaxcnn.rules.window import Geometry, geometry, pair, tap, untap, untap_one, with_all_axes

TIES = ("first", "split", "all")


class MaxPoolResiduals(NamedTuple):
    x: Array  # as given; where it equals its window's maximum, the gradient goes
    y: Array  # the maxima; the next layer keeps this array as well


def max_pool_forward(
    x: Array,
    *,
    window: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: str | tuple = "VALID",
    ties: str = "first",
) -> tuple[Array, MaxPoolResiduals]:
    """The maximum of each window, for each channel apart.

    A size that the windows do not fill is cut at the end under "VALID": of an odd height with window 2 and stride 2
    the last row is not looked at, and its gradient is 0. (The source's loop fails there: H = 5 writes to
    row 2 of an output of 2 rows.) "SAME" looks at it in a smaller window. NaN counts as the largest value.

    Args:
      x: H×W, H×W×C or N×H×W×C, any floating dtype from 16 bits.
      window: rows and columns, a number or a pair. The backward pass is a program of rows·columns parts: a window of
        some hundred values takes seconds to compile.
      stride: steps of the window; the window itself when None.
      padding: "VALID", "SAME", or ((top, bottom), (left, right)). Added places never win.
      ties: what the backward pass does where several values share the maximum, a point at which the derivative is not
        defined: "first" gives the whole gradient to the first in row-major order (as XLA's and PyTorch's pooling do),
        "split" equal shares to all of them (as `jnp.max` does), "all" the whole gradient to each (the source's
        `g_maxpool`: where ties occur, not the gradient of any function).

    Returns:
      The maxima, Ho×Wo, Ho×Wo×C or N×Ho×Wo×C, of x's dtype; Ho = (H + padding - window) // stride + 1.

    Raises:
      ValueError: another number of axes, a window larger than the padded image, padding as large as the window (some
        window would see no value at all), an unknown convention for ties.
      TypeError: x not floating; window or stride that are no whole numbers.

    Source: the course text, part 1 "Max-Pooling", part 2 "Backward Max-pool". The derivative at ties: Boustany,
    "On the numerical reliability of nonsmooth autodiff: a MaxPool case study", TMLR 2024.

    >>> x = jnp.array([[1.0, 2, 3, 4], [8, 7, 5, 6], [9, 11, 12, 10], [10, 7, 13, 9]])
    >>> max_pool(x)
    Array([[ 8.,  6.],
           [11., 13.]], dtype=float32)
    >>> jax.grad(lambda x: max_pool(x, ties="split").sum())(jnp.ones((2, 2)))
    Array([[0.25, 0.25],
           [0.25, 0.25]], dtype=float32)
    """
    g = pooling_geometry(x, window, stride, padding, ties)
    y = _maxima(with_all_axes(x), g).reshape(pooled_shape(x, g))
    return y, MaxPoolResiduals(x, y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _maxima(x: Array, g: Geometry) -> jax.Array:
    return by_platform(functools.partial(_maxima_of_taps, g=g), functools.partial(_maxima_by_definition, g=g), x)


@_maxima.defjvp
def _(g: Geometry, primals, tangents):
    """Of plain jax, for comparisons: at ties the first, as a maximum over a window has it and one of two has not."""
    _, tangent = jax.jvp(functools.partial(_maxima_by_definition, g=g), primals, tangents)
    return _maxima(*primals, g), tangent


def _maxima_by_definition(x: Array, g: Geometry) -> jax.Array:
    return lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        lax.max,
        window_dimensions=(1, *g.window, 1),
        window_strides=(1, *g.stride, 1),
        padding=((0, 0), *g.padding, (0, 0)),
    )


def _maxima_of_taps(x: Array, g: Geometry) -> Array:
    """On a CPU XLA's maximum over a window passes over NaN, where it runs in vectors; over two values it does not.

    It is no slower: 16 images of 28×28×32 take 132 µs in place of 235.
    """
    padded = jnp.pad(x, ((0, 0), *g.padding, (0, 0)), constant_values=-np.inf)
    return functools.reduce(jnp.maximum, (tap(padded, place, g) for place in g.taps))


# y = x[q] for the place q that holds the window's maximum, so dy/dx[q] = 1 there and 0 elsewhere: the window's dy goes
# to the place that won, and a place that won in several overlapping windows gets the sum. Tap by tap: the values that
# one place of the window sees, N×Ho×Wo×C, against the maxima. In the source's symbols g^l = [Z^l = a^l].
def max_pool_backward(residuals: MaxPoolResiduals, dy: Array, *, window, stride, padding, ties):
    x, y = residuals
    g = pooling_geometry(x, window, stride, padding, ties)
    if ties == "all" and (g.window, g.stride, g.padding) == ((2, 2), (2, 2), ((0, 0), (0, 0))):
        return (g_maxpool(x, y) * _spread(dy, x.shape),)
    x4, y4, dy4 = map(with_all_axes, (x, y, dy))
    if ties == "first":
        few = len(g.taps) <= 256
        # On a CPU choices are fast among numbers of one width (bfloat16 counts to 256); elsewhere fewer bytes are.
        on_cpu = functools.partial(_to_first, g=g, dtype=x.dtype if few else jnp.int32, keep=materialised)
        elsewhere = functools.partial(_to_first, g=g, dtype=jnp.uint8 if few else jnp.int32, keep=_as_it_is)
        dx = by_platform(on_cpu, elsewhere, x4, y4, dy4)
    else:
        won = _won(x4, y4, g)
        if ties == "split":  # bfloat16 cannot count beyond 256
            dy4 = dy4 / functools.reduce(jnp.add, (w.astype(jnp.int32) for w in won))
        dx = functools.reduce(jnp.add, (untap(jnp.where(w, dy4, 0), p, g) for w, p in zip(won, g.taps, strict=True)))
    return (dx.reshape(x.shape),)


def _won(x: Array, y: Array, g: Geometry) -> list[Array]:
    """For each tap where it sees its window's maximum."""
    padded = jnp.pad(x, ((0, 0), *g.padding, (0, 0)), constant_values=-np.inf)

    # Not `&`: jax refuses that of a mask and a constant under `shard_map`, `vmap` and a choice at once.
    def won(place):
        inside, w = _inside(place, g), wins(tap(padded, place, g), y)
        return w if inside.all() else jnp.where(inside, w, False)

    return [won(place) for place in g.taps]


def _to_first(x: Array, y: Array, dy: Array, g: Geometry, dtype, keep: Callable[..., Array]) -> Array:
    """Each dy to the first tap that sees its window's maximum; the taps are numbered in this dtype."""

    def first(x, y):
        *won, _ = _won(x, y, g)
        place = jnp.full(y.shape, len(won), dtype)
        for number, w in reversed(list(enumerate(won))):
            place = jnp.where(w, jnp.asarray(number, dtype), place)
        return place

    return untap_one(keep(first, x, y), dy, g)


def _as_it_is(function: Callable[..., Array], *arrays: Array) -> Array:
    return function(*arrays)


def max_pool_reference(x, *, window=2, stride=None, padding="VALID", ties="first"):
    """Max-pooling in plain jax, whose `jax.vjp` follows the convention: all taps side by side, each with its share."""
    g = pooling_geometry(x, window, stride, padding, ties)
    padded = jnp.pad(with_all_axes(x), ((0, 0), *g.padding, (0, 0)), constant_values=-np.inf)
    taps = jnp.stack([tap(padded, place, g) for place in g.taps], axis=-1)
    y = largest(taps, -1)[..., None]
    shares = (wins(taps, y) & np.stack([_inside(place, g) for place in g.taps], axis=-1)).astype(x.dtype)
    if ties == "first":  # argmax is the first
        shares = jax.nn.one_hot(shares.argmax(-1), len(g.taps), dtype=x.dtype)
    if ties == "split":
        shares = shares / shares.sum(-1, keepdims=True)
    y = lax.stop_gradient(y[..., 0]) + (lax.stop_gradient(shares) * zero_with_gradient(taps)).sum(-1)
    return y.reshape(pooled_shape(x, g))


@jax.custom_jvp
def zero_with_gradient(x):
    """0 with derivative 1: it gives a value a gradient, at infinity and NaN too."""
    return jnp.zeros_like(x)


zero_with_gradient.defjvp(lambda primals, tangents: (zero_with_gradient(*primals), *tangents))

max_pool = Rule(max_pool_forward, max_pool_backward, "max_pool", reference=max_pool_reference, batch_axes=(0,))


def g_maxpool(z_l: Array, a_mp: Array) -> jax.Array:
    """The source's gradient of 2×2 max-pooling with stride 2: 1 where the input equals its window's maximum, else 0.

    Every tied maximum gets a 1. A last odd row or column belongs to no window and gets 0; the source's comparison
    fails there, its two arrays differing in shape.

    Args:
      z_l: the input of the pooling, H×W, H×W×C or N×H×W×C, floating.
      a_mp: its output, H//2×W//2, H//2×W//2×C or N×H//2×W//2×C, of the same dtype.

    Returns:
      The mask, of z_l's shape and dtype.

    Raises:
      ValueError: shapes that do not belong together. TypeError: dtypes that are not floating or not equal.

    Source: the course text, part 2 "Simple Gradient of Max-pooling".

    >>> z_l = jnp.array([[1.0, 2, 3, 4], [8, 7, 5, 6], [9, 11, 12, 10], [10, 7, 13, 9]])
    >>> g_maxpool(z_l, max_pool(z_l))
    Array([[0., 0., 0., 0.],
           [1., 0., 0., 1.],
           [0., 1., 0., 0.],
           [0., 0., 1., 0.]], dtype=float32)
    """
    z_l, a_mp = jnp.asarray(z_l), jnp.asarray(a_mp)
    require_equal_floats("g_maxpool", z_l=z_l, a_mp=a_mp)
    needed = pooled_shape(z_l, pooling_geometry(z_l, 2, None, "VALID", "all", "g_maxpool", "z_l"))
    if a_mp.shape != needed:
        raise ValueError(f"g_maxpool: a_mp must have shape {needed} for z_l {z_l.shape}, got {a_mp.shape}")
    return jnp.where(wins(z_l, _spread(a_mp, z_l.shape)), _spread(jnp.ones_like(a_mp), z_l.shape), 0)


def _spread(a: Array, shape: tuple[int, ...]) -> Array:
    """Each value to the four places of its 2×2 window, zeros in an odd last row and column."""
    rows = 1 if len(shape) == 4 else 0
    a = jnp.repeat(jnp.repeat(a, 2, axis=rows + 1), 2, axis=rows)
    return jnp.pad(a, [(0, s - t) for s, t in zip(shape, a.shape, strict=True)])


def largest(x: Array, axes: int | tuple[int, ...]) -> Array:
    """The maximum, NaN where there is one: on a CPU XLA's own passes over them (openxla/xla issue 21461)."""
    return jnp.where(jnp.isnan(x).any(axes), jnp.nan, x.max(axes))


def wins(values: Array, maximum: Array) -> Array:
    return (values == maximum) | (values != values)  # NaN is not equal to itself, and wins


def _inside(place: tuple[int, ...], g: Geometry) -> np.ndarray:
    """Ho×Wo×1: whether the tap looks at the image there, or at the padding, which never wins."""
    rows, columns = (
        np.isin(start + s * np.arange(out) - before, np.arange(size))
        for start, s, out, (before, _), size in zip(place, g.stride, g.output, g.padding, g.size, strict=True)
    )
    return (rows[:, None] & columns)[..., None]


def pooled_shape(x: Array, g: Geometry) -> tuple[int, ...]:
    return (*x.shape[: x.ndim // 4], *g.output, *x.shape[2 + x.ndim // 4 :])


def pooling_geometry(x, window, stride, padding, ties, function="max_pool", argument="x") -> Geometry:
    if x.ndim not in (2, 3, 4):
        raise ValueError(f"{function}: {argument} must be H×W, H×W×C or N×H×W×C, got shape {x.shape}")
    require_equal_floats(function, **{argument: x})
    if ties not in TIES:
        raise ValueError(f"{function}: ties must be one of {', '.join(TIES)}, got {ties!r}")
    rows = 1 if x.ndim == 4 else 0
    window = pair(function, "window", window)
    g = geometry(function, x.shape[rows : rows + 2], window, window if stride is None else stride, 1, padding)
    for wide, pads in zip(g.window, g.padding, strict=True):
        if max(pads) >= wide:
            raise ValueError(f"{function}: padding must be less than the window, got {pads} for a window of {wide}")
    return g
