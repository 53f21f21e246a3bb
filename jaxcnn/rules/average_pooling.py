"""Pooling by the mean, over windows, over the whole image or to a given size; and the maximum of the whole image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.rule import Array, Rule, Static
from jaxcnn.rules.dtypes import require_equal_floats, wide
from jaxcnn.rules.pooling import TIES, largest, pooled_shape, pooling_geometry, wins, zero_with_gradient
from jaxcnn.rules.resize import combine
from jaxcnn.rules.window import Geometry, pair, stretched, with_all_axes


class AvgPoolResiduals(NamedTuple):
    shape: Static  # of the input: it cannot be told from dy's where windows leave a rest; the values are not needed


def avg_pool_forward(
    x: Array,
    *,
    window: int | tuple[int, int] = 2,
    stride: int | tuple[int, int] | None = None,
    padding: str | tuple = "VALID",
    count_padding: bool = False,
) -> tuple[Array, AvgPoolResiduals]:
    """The mean of each window, for each channel apart.

    A size that the windows do not fill is cut at the end under "VALID", as in `max_pool`.

    Args:
      x: H×W, H×W×C or N×H×W×C, any floating dtype from 16 bits.
      window: rows and columns, a number or a pair.
      stride: steps of the window; the window itself when None.
      padding: "VALID", "SAME", or ((top, bottom), (left, right)).
      count_padding: whether the mean of a window at the edge counts the added zeros as values. False divides by the
        number of values of the image that it sees (Keras and TensorFlow), True always by the window's size (the
        defaults of PyTorch and Flax).

    Returns:
      The means, Ho×Wo, Ho×Wo×C or N×Ho×Wo×C, of x's dtype; Ho = (H + padding - window) // stride + 1.

    Raises:
      ValueError: another number of axes, a window larger than the padded image, padding as large as the window.
      TypeError: x not floating; window or stride that are no whole numbers; count_padding that is no truth value.

    Source: y[r] = 1/|window| Σ x[q] over the window r; LeCun et al., "Gradient-based learning applied to document
    recognition", 1998.

    >>> avg_pool(jnp.array([[1.0, 2.0, 5.0, 6.0], [3.0, 2.0, 5.0, 8.0]]))
    Array([[2., 6.]], dtype=float32)
    >>> avg_pool(jnp.array([[1.0, 2.0, 5.0]]), window=(1, 2), padding="SAME")
    Array([[1.5, 5. ]], dtype=float32)
    """
    g = _checked(x, window, stride, padding, count_padding)
    total = lax.reduce_window(
        with_all_axes(wide(x)),
        np.zeros((), wide(x).dtype),
        lax.add,
        window_dimensions=(1, *g.window, 1),
        window_strides=(1, *g.stride, 1),
        padding=((0, 0), *g.padding, (0, 0)),
    )
    y = (total / _counts(g, count_padding)).astype(x.dtype)
    return y.reshape(pooled_shape(x, g)), AvgPoolResiduals(Static(x.shape))


# y[r] = 1/n[r] Σ_i x[r·s + i - p] in one dimension, with n[r] the number of values counted, so
#
#     dx[q] = Σ_i d[(q + p - i) / s]   where s divides,        d[r] = dy[r] / n[r]:
#
# a value gets a share of every window that sees it. d, stretched by s with zeros, is summed over windows of the same
# size that move in steps of 1.
def avg_pool_backward(residuals: AvgPoolResiduals, dy: Array, *, window, stride, padding, count_padding):
    x = jax.ShapeDtypeStruct(residuals.shape.value, dy.dtype)
    g = _checked(x, window, stride, padding, count_padding)
    shares = with_all_axes(wide(dy)) / _counts(g, count_padding)
    zero = np.zeros((), shares.dtype)
    dx = lax.reduce_window(stretched(shares, g), zero, lax.add, (1, *g.window, 1), (1, 1, 1, 1), "VALID")
    return (dx.astype(dy.dtype).reshape(x.shape),)


avg_pool = Rule(avg_pool_forward, avg_pool_backward, "avg_pool", batch_axes=(0,))


class GlobalAvgPoolResiduals(NamedTuple):
    size: Static  # H and W of the input; the values are not needed


def global_avg_pool_forward(x: Array) -> tuple[Array, GlobalAvgPoolResiduals]:
    """The mean of each channel over the whole image.

    Args:
      x: H×W×C or N×H×W×C, any floating dtype from 16 bits.

    Returns:
      The means, (C,) or N×C, of x's dtype.

    Raises:
      ValueError: another number of axes; an image without pixels.
      TypeError: x not floating.

    Source: Lin, Chen and Yan, "Network in network", ICLR 2014, section 3.2.

    >>> global_avg_pool(jnp.arange(8.0).reshape(2, 2, 2))
    Array([3., 4.], dtype=float32)
    """
    _require_pixels("global_avg_pool", x)
    return x.mean((-3, -2)), GlobalAvgPoolResiduals(Static(x.shape[-3:-1]))


# y = 1/(H·W) Σ x[q], so every place has the derivative 1/(H·W).
def global_avg_pool_backward(residuals: GlobalAvgPoolResiduals, dy: Array):
    height, width = residuals.size.value
    share = (wide(dy) / (height * width)).astype(dy.dtype)  # float16 ends at 65504 pixels
    return (jnp.broadcast_to(share[..., None, None, :], (*dy.shape[:-1], height, width, dy.shape[-1])),)


global_avg_pool = Rule(global_avg_pool_forward, global_avg_pool_backward, "global_avg_pool", batch_axes=(0,))


class GlobalMaxPoolResiduals(NamedTuple):
    x: Array  # as given; where it equals its channel's maximum, the gradient goes
    y: Array  # the maxima; the next layer keeps this array as well


def global_max_pool_forward(x: Array, *, ties: str = "first") -> tuple[Array, GlobalMaxPoolResiduals]:
    """The maximum of each channel over the whole image. NaN counts as the largest value.

    Args:
      x: H×W×C or N×H×W×C, any floating dtype from 16 bits.
      ties: as in `max_pool`. "first" gives the whole gradient to the first of equal maxima in row-major order, "split"
        equal shares to all of them (as `jnp.max` does), "all" the whole gradient to each.

    Returns:
      The maxima, (C,) or N×C, of x's dtype.

    Raises:
      ValueError: another number of axes; an image without pixels; an unknown convention for ties.
      TypeError: x not floating.

    Source: Oquab et al., "Is object localization for free?", CVPR 2015, section 3.

    >>> x = jnp.array([[3.0, 1.0], [3.0, 2.0]])[..., None]
    >>> global_max_pool(x)
    Array([3.], dtype=float32)
    >>> jax.grad(lambda x: global_max_pool(x, ties="split")[0])(x)[..., 0]
    Array([[0.5, 0. ],
           [0.5, 0. ]], dtype=float32)
    """
    _require_pixels("global_max_pool", x)
    if ties not in TIES:
        raise ValueError(f"global_max_pool: ties must be one of {', '.join(TIES)}, got {ties!r}")
    y = largest(x, (-3, -2))
    return y, GlobalMaxPoolResiduals(x, y)


# y = x[q] for the place q that holds the maximum, so dy/dx[q] = 1 there and 0 elsewhere; max_pool with one window.
def global_max_pool_backward(residuals: GlobalMaxPoolResiduals, dy: Array, *, ties):
    x, y = residuals
    won = _winners(_pixels(x), y, ties)
    dy = dy[..., None, :]
    if ties == "split":
        dy = (wide(dy) / won.sum(-2, keepdims=True)).astype(dy.dtype)
    return (jnp.where(won, dy, 0).reshape(x.shape),)


def global_max_pool_reference(x, *, ties="first"):
    """In plain jax, its `jax.vjp` following the convention: the maximum, and the winners' shares of the gradient."""
    pixels, y = _pixels(x), largest(x, (-3, -2))
    shares = _winners(pixels, y, ties).astype(wide(x).dtype)
    if ties == "split":
        shares = shares / shares.sum(-2, keepdims=True)
    return lax.stop_gradient(y) + (lax.stop_gradient(shares.astype(x.dtype)) * zero_with_gradient(pixels)).sum(-2)


global_max_pool = Rule(
    global_max_pool_forward,
    global_max_pool_backward,
    "global_max_pool",
    reference=global_max_pool_reference,
    batch_axes=(0,),
)


class AdaptiveAvgPoolResiduals(NamedTuple):
    shape: Static  # of the input; the values are not needed


def adaptive_avg_pool_forward(x: Array, *, size: int | tuple[int, int]) -> tuple[Array, AdaptiveAvgPoolResiduals]:
    """The means of size×size windows that together cover the image, whatever its own size.

    Windows of a size that does not divide overlap. They are PyTorch's: window i of n begins at floor(i·H / n) and ends
    before ceil((i + 1)·H / n), so that n may be larger than H.

    Args:
      x: H×W, H×W×C or N×H×W×C, any floating dtype from 16 bits.
      size: rows and columns of the output, a number or a pair.

    Returns:
      The means, size×size, size×size×C or N×size×size×C, of x's dtype.

    Raises:
      ValueError: another number of axes; an image without pixels; a size below 1.
      TypeError: x not floating; a size that is no whole numbers.

    Source: y = A x Bᵀ, with 1/length in row i of A for the rows that window i covers, B likewise for the columns.

    >>> adaptive_avg_pool(jnp.array([[0.0, 2.0, 4.0, 6.0, 8.0]]), size=(1, 2))
    Array([[2., 6.]], dtype=float32)
    """
    matrices = _means(x, size)
    return combine(x, x.ndim // 4, *matrices), AdaptiveAvgPoolResiduals(Static(x.shape))


# y = A x Bᵀ, that is y[i, j] = Σ A[i, q] x[q, r] B[j, r], so dx[q, r] = Σ A[i, q] dy[i, j] B[j, r]: dx = Aᵀ dy B.
# A value gets its share, 1/length, of the dy of each window that covers it.
def adaptive_avg_pool_backward(residuals: AdaptiveAvgPoolResiduals, dy: Array, *, size):
    rows, columns = _means(jax.ShapeDtypeStruct(residuals.shape.value, dy.dtype), size)
    return (combine(dy, dy.ndim // 4, rows.T, columns.T),)


adaptive_avg_pool = Rule(adaptive_avg_pool_forward, adaptive_avg_pool_backward, "adaptive_avg_pool", batch_axes=(0,))


def _counts(g: Geometry, count_padding: bool) -> np.ndarray | int:
    """Ho×Wo×1: by how much each window divides its sum."""
    if count_padding:
        return g.window[0] * g.window[1]
    inside = []
    for size, w, (before, _), s, out in zip(g.size, g.window, g.padding, g.stride, g.output, strict=True):
        start = s * np.arange(out) - before
        inside.append(np.minimum(start + w, size) - np.maximum(start, 0))
    return np.multiply.outer(*inside)[..., None]


def _means(x, size) -> list[np.ndarray]:
    """The matrices of the means for rows and columns."""
    if x.ndim not in (2, 3, 4):
        raise ValueError(f"adaptive_avg_pool: x must be H×W, H×W×C or N×H×W×C, got shape {x.shape}")
    require_equal_floats("adaptive_avg_pool", x=x)
    sizes = x.shape[x.ndim // 4 :][:2]
    if 0 in sizes:
        raise ValueError(f"adaptive_avg_pool: x must have pixels, got shape {x.shape}")
    matrices = []
    for old, new in zip(sizes, pair("adaptive_avg_pool", "size", size), strict=True):
        start, end = np.arange(new) * old // new, -(-np.arange(1, new + 1) * old // new)
        covered = (np.arange(old) >= start[:, None]) & (np.arange(old) < end[:, None])
        matrices.append(covered / (end - start)[:, None])
    return matrices


def _pixels(x: Array) -> Array:
    """The two spatial axes as one, row-major."""
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def _winners(pixels: Array, y: Array, ties: str) -> Array:
    if ties == "first":  # argmax is the first, and NaN is its largest
        return jnp.arange(pixels.shape[-2])[:, None] == pixels.argmax(-2, keepdims=True)
    return wins(pixels, y[..., None, :])


def _require_pixels(function: str, x: Array) -> None:
    if x.ndim not in (3, 4):
        raise ValueError(f"{function}: x must be H×W×C or N×H×W×C, got shape {x.shape}")
    require_equal_floats(function, x=x)
    if 0 in x.shape[-3:-1]:
        raise ValueError(f"{function}: x must have pixels, got shape {x.shape}")


def _checked(x, window, stride, padding, count_padding) -> Geometry:
    if not isinstance(count_padding, bool):
        raise TypeError(f"avg_pool: count_padding must be True or False, got {count_padding!r}")
    return pooling_geometry(x, window, stride, padding, "first", "avg_pool")
