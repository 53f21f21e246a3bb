"""Other sizes: padding, blocks of pixels to channels and back, and upsampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats
from jaxcnn.rules.window import is_whole, pair

Pads = tuple[tuple[int, int], tuple[int, int]]


# Every rule here is linear, and with the static argument the shape of dy says all that its backward pass needs to know:
# nothing is saved.


def zero_pad_forward(x: Array, *, padding: int | tuple) -> tuple[Array, tuple[()]]:
    """The image with zeros around it.

    Args:
      x: H×W, H×W×C or N×H×W×C, any dtype.
      padding: ((top, bottom), (left, right)) rows and columns, or one number for all four sides.

    Returns:
      An array of x's rank and dtype, H + top + bottom by W + left + right.

    Raises:
      ValueError: another number of axes; negative padding.
      TypeError: padding that is not of these forms.

    Source: y[q] = x[q - before], and 0 outside x.

    >>> zero_pad(jnp.array([[1.0, 2.0]]), padding=((0, 1), (2, 0)))
    Array([[0., 0., 1., 2.],
           [0., 0., 0., 0.]], dtype=float32)
    """
    axes, pads = _spatial_axes("zero_pad", x), _pads("zero_pad", padding)
    return jnp.pad(x, _of_all_axes(x, axes, pads)), ()


# y[q + before] = x[q] for every place q of the image, so dx[q] = dy[q + before]; the zeros depend on nothing.
def zero_pad_backward(residuals: tuple[()], dy: Array, *, padding):
    axes = _spatial_axes("zero_pad", dy)
    pads = _of_all_axes(dy, axes, _pads("zero_pad", padding))
    return (dy[tuple(slice(before, n - after) for n, (before, after) in zip(dy.shape, pads, strict=True))],)


zero_pad = Rule(zero_pad_forward, zero_pad_backward, "zero_pad", batch_axes=(0,))


def reflect_pad_forward(x: Array, *, padding: int | tuple) -> tuple[Array, tuple[()]]:
    """The image with its own mirror image around it; the border itself is not repeated.

    Args:
      x: H×W, H×W×C or N×H×W×C, any dtype.
      padding: ((top, bottom), (left, right)) rows and columns, or one number for all four sides; less than the image's
        own rows and columns.

    Returns:
      An array of x's rank and dtype, H + top + bottom by W + left + right.

    Raises:
      ValueError: another number of axes; padding that is negative or as large as the image.
      TypeError: padding that is not of these forms.

    Source: `numpy.pad` with mode "reflect": y[before - k] = x[k].

    >>> reflect_pad(jnp.array([[1.0, 2.0, 3.0]]), padding=((0, 0), (2, 1)))
    Array([[3., 2., 1., 2., 3., 2.]], dtype=float32)
    >>> jax.grad(lambda x: reflect_pad(x, padding=((0, 0), (2, 1))).sum())(jnp.ones((1, 3)))
    Array([[1., 3., 2.]], dtype=float32)
    """
    axes, pads = _spatial_axes("reflect_pad", x), _pads("reflect_pad", padding)
    sizes = tuple(x.shape[axis] for axis in axes)
    if any(sum(sides) and max(sides) >= size for size, sides in zip(sizes, pads, strict=True)):
        raise ValueError(
            f"reflect_pad: padding must be less than the image, got {padding!r} for an image of {sizes[0]}×{sizes[1]}"
        )
    return jnp.pad(x, _of_all_axes(x, axes, pads), mode="reflect"), ()


# In one dimension, with p values before, q after and the last index e = H - 1,
#
#     y[p + k] = x[k],    y[p - k] = x[k] for k = 1 … p,    y[p + e + k] = x[e - k] for k = 1 … q,
#
# so dx[k] is the sum of the dy at the place itself and at its mirror images. The rows are folded back first, then the
# columns: a corner goes through both.
def reflect_pad_backward(residuals: tuple[()], dy: Array, *, padding):
    for axis, (before, after) in zip(_spatial_axes("reflect_pad", dy), _pads("reflect_pad", padding), strict=True):
        dy = _folded(dy, axis, before, after)
    return (dy,)


reflect_pad = Rule(reflect_pad_forward, reflect_pad_backward, "reflect_pad", batch_axes=(0,))


def space_to_depth_forward(x: Array, *, block: int | tuple[int, int] = 2) -> tuple[Array, tuple[()]]:
    """Each block of pixels becomes one pixel with all their channels.

    The channels of the block's first pixel come first, then those of the pixel to its right, row by row.

    Args:
      x: H×W×C or N×H×W×C, any dtype.
      block: rows and columns of a block, a number or a pair; they divide H and W.

    Returns:
      H/b×W/b×(b·b·C) or N×H/b×W/b×(b·b·C), of x's dtype.

    Raises:
      ValueError: another number of axes; a height or width that the block does not divide.
      TypeError: a block that is no whole numbers.

    Source: TensorFlow's `space_to_depth` in the layout NHWC.

    >>> space_to_depth(jnp.arange(4.0).reshape(2, 2, 1))
    Array([[[0., 1., 2., 3.]]], dtype=float32)
    """
    b = pair("space_to_depth", "block", block)
    _require_channels("space_to_depth", x)
    if x.shape[-3] % b[0] or x.shape[-2] % b[1]:
        raise ValueError(
            f"space_to_depth: block must divide the image's height and width, got {block!r} for {_size(x)}"
        )
    return _to_depth(x, b), ()


# Every value is moved to one place, so dy moves back: the backward pass is `depth_to_space`.
def space_to_depth_backward(residuals: tuple[()], dy: Array, *, block):
    return (_to_space(dy, pair("space_to_depth", "block", block)),)


space_to_depth = Rule(space_to_depth_forward, space_to_depth_backward, "space_to_depth", batch_axes=(0,))


def depth_to_space_forward(x: Array, *, block: int | tuple[int, int] = 2) -> tuple[Array, tuple[()]]:
    """Each pixel becomes a block of pixels, among which its channels are dealt out: undoes `space_to_depth`.

    The first channels go to the block's first pixel, the next to the pixel to its right, row by row.

    Args:
      x: H×W×C or N×H×W×C, any dtype.
      block: rows and columns of a block, a number or a pair; their product divides C.

    Returns:
      (H·b)×(W·b)×C/b² or N×(H·b)×(W·b)×C/b², of x's dtype.

    Raises:
      ValueError: another number of axes; channels that do not divide into the block.
      TypeError: a block that is no whole numbers.

    Source: TensorFlow's `depth_to_space` in the layout NHWC. As the last step of upsampling: Shi et al., "Real-time
    single image and video super-resolution using an efficient sub-pixel convolutional neural network", CVPR 2016.

    >>> depth_to_space(jnp.arange(4.0).reshape(1, 1, 4))[..., 0]
    Array([[0., 1.],
           [2., 3.]], dtype=float32)
    """
    b = pair("depth_to_space", "block", block)
    _require_channels("depth_to_space", x)
    if x.shape[-1] % (b[0] * b[1]):
        raise ValueError(
            f"depth_to_space: block must divide the channels, got {block!r}, "
            f"{b[0] * b[1]} pixels, for {x.shape[-1]} channels"
        )
    return _to_space(x, b), ()


# Every value is moved to one place, so dy moves back: the backward pass is `space_to_depth`.
def depth_to_space_backward(residuals: tuple[()], dy: Array, *, block):
    return (_to_depth(dy, pair("depth_to_space", "block", block)),)


depth_to_space = Rule(depth_to_space_forward, depth_to_space_backward, "depth_to_space", batch_axes=(0,))


def upsample_nearest_forward(x: Array, *, factor: int | tuple[int, int] = 2) -> tuple[Array, tuple[()]]:
    """Each pixel repeated, factor times in height and in width.

    Args:
      x: H×W, H×W×C or N×H×W×C, any dtype.
      factor: for rows and columns, a number or a pair.

    Returns:
      An array of x's rank and dtype, H·factor by W·factor.

    Raises:
      ValueError: another number of axes; a factor below 1.
      TypeError: a factor that is no whole numbers.

    Source: y[q] = x[floor(q / factor)].

    >>> upsample_nearest(jnp.array([[1.0, 2.0]]), factor=(1, 2))
    Array([[1., 1., 2., 2.]], dtype=float32)
    """
    rows, columns = _spatial_axes("upsample_nearest", x)
    down, across = pair("upsample_nearest", "factor", factor)
    return jnp.repeat(jnp.repeat(x, down, rows), across, columns), ()


# x[q] is read by the factor² places y[q·f + r], 0 <= r < f, so dx[q] is the sum of their dy.
def upsample_nearest_backward(residuals: tuple[()], dy: Array, *, factor):
    axis, _ = _spatial_axes("upsample_nearest", dy)
    down, across = pair("upsample_nearest", "factor", factor)
    height, width = dy.shape[axis : axis + 2]
    blocks = dy.reshape(*dy.shape[:axis], height // down, down, width // across, across, *dy.shape[axis + 2 :])
    return (blocks.sum((axis + 1, axis + 3)),)


upsample_nearest = Rule(upsample_nearest_forward, upsample_nearest_backward, "upsample_nearest", batch_axes=(0,))


def upsample_bilinear_forward(x: Array, *, factor: int | tuple[int, int] = 2) -> tuple[Array, tuple[()]]:
    """The image enlarged, each new pixel a mean of the four that surround its centre, weighted by nearness.

    Pixels are squares: the centre of the new pixel q lies at (q + 1/2) / factor - 1/2, and beyond the outermost centres
    the image goes on as it ends. The same as `jax.image.resize` with "bilinear" and PyTorch's `interpolate` with
    align_corners=False; a NaN here stays among its neighbours.

    Args:
      x: H×W, H×W×C or N×H×W×C, any floating dtype from 16 bits.
      factor: for rows and columns, a number or a pair.

    Returns:
      An array of x's rank and dtype, H·factor by W·factor.

    Raises:
      ValueError: another number of axes; an image without pixels; a factor below 1.
      TypeError: x not floating; a factor that is no whole numbers.

    Source: y = A x Bᵀ, with the interpolation weights of the rows in A and of the columns in B.

    >>> upsample_bilinear(jnp.array([[0.0, 4.0]]), factor=(1, 2))
    Array([[0., 1., 3., 4.]], dtype=float32)
    """
    axes = _spatial_axes("upsample_bilinear", x)
    require_equal_floats("upsample_bilinear", x=x)
    sizes = tuple(x.shape[axis] for axis in axes)
    if 0 in sizes:
        raise ValueError(f"upsample_bilinear: x must have pixels, got shape {x.shape}")
    factors = pair("upsample_bilinear", "factor", factor)
    return combine(x, axes[0], *map(_bilinear, sizes, factors)), ()


# y = A x Bᵀ, that is y[i, j] = Σ A[i, q] x[q, r] B[j, r], so dx[q, r] = Σ A[i, q] dy[i, j] B[j, r]: dx = Aᵀ dy B, the
# transposed matrices, one axis after the other.
def upsample_bilinear_backward(residuals: tuple[()], dy: Array, *, factor):
    axis, _ = _spatial_axes("upsample_bilinear", dy)
    factors = pair("upsample_bilinear", "factor", factor)
    matrices = [_bilinear(n // f, f).T for n, f in zip(dy.shape[axis : axis + 2], factors, strict=True)]
    return (combine(dy, axis, *matrices),)


upsample_bilinear = Rule(upsample_bilinear_forward, upsample_bilinear_backward, "upsample_bilinear", batch_axes=(0,))


def combine(x: Array, axis: int, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    """rows @ x @ columnsᵀ for the images that lie in x's axes `axis` and `axis + 1`.

    The matrices have few values in each row: only these are multiplied, so that the NaN of a pixel goes nowhere else.
    """
    y = jnp.asarray(
        x, jnp.promote_types(x.dtype, jnp.float32)
    )  # one rounding at the end, and float16 does not overflow
    for i, matrix in enumerate((rows, columns)):
        count = (matrix != 0).sum(1).max()
        places = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count]  # of the values that are not 0, then others
        weights = np.take_along_axis(matrix, places, 1).astype(y.dtype)
        weights = weights.reshape(*weights.shape, *[1] * (y.ndim - axis - i - 1))
        taps = jnp.take(y, places, axis + i, mode="clip")
        y = jnp.where(weights != 0, taps * weights, 0).sum(axis + i + 1)
    return y.astype(x.dtype)


def _bilinear(size: int, factor: int) -> np.ndarray:
    """size·factor × size: the weights of the old pixels in each new one."""
    centres = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))


def _folded(dy: Array, axis: int, before: int, after: int) -> Array:
    """The mirrored parts along one axis, turned round and added to what they mirror."""
    size = dy.shape[axis] - before - after

    def part(start: int, end: int) -> jax.Array:
        return jax.lax.slice_in_dim(dy, start, end, axis=axis)

    def placed(mirrored: jax.Array, first: int) -> jax.Array:
        pads = [(0, 0)] * dy.ndim
        pads[axis] = (first, size - first - mirrored.shape[axis])
        return jnp.pad(jnp.flip(mirrored, axis), pads)

    dx = part(before, before + size)
    if before:
        dx = dx + placed(part(0, before), 1)
    if after:
        dx = dx + placed(part(before + size, before + size + after), size - 1 - after)
    return dx


def _to_depth(x: Array, block: tuple[int, int]) -> jax.Array:
    (down, across), (*lead, height, width, channels) = block, x.shape
    blocks = x.reshape(*lead, height // down, down, width // across, across, channels)
    return jnp.swapaxes(blocks, -4, -3).reshape(*lead, height // down, width // across, down * across * channels)


def _to_space(x: Array, block: tuple[int, int]) -> jax.Array:
    (down, across), (*lead, height, width, channels) = block, x.shape
    each = channels // (down * across)
    blocks = jnp.swapaxes(x.reshape(*lead, height, width, down, across, each), -4, -3)
    return blocks.reshape(*lead, height * down, width * across, each)


def _spatial_axes(function: str, x: Array) -> tuple[int, int]:
    if x.ndim not in (2, 3, 4):
        raise ValueError(f"{function}: x must be H×W, H×W×C or N×H×W×C, got shape {x.shape}")
    return (1, 2) if x.ndim == 4 else (0, 1)


def _require_channels(function: str, x: Array) -> None:
    if x.ndim not in (3, 4):
        raise ValueError(f"{function}: x must be H×W×C or N×H×W×C, got shape {x.shape}")


def _size(x: Array) -> str:
    return f"{x.shape[-3]}×{x.shape[-2]}"


def _of_all_axes(x: Array, axes: tuple[int, int], pads: Pads) -> list[tuple[int, int]]:
    given = dict(zip(axes, pads, strict=True))
    return [given.get(axis, (0, 0)) for axis in range(x.ndim)]


def _pads(function: str, padding: Any) -> Pads:
    sides = ((padding, padding), (padding, padding)) if is_whole(padding) else padding
    ok = isinstance(sides, Sequence) and len(sides) == 2
    ok = ok and all(isinstance(s, Sequence) and len(s) == 2 and all(map(is_whole, s)) for s in sides)
    if not ok:
        raise TypeError(
            f"{function}: padding must be a whole number or ((top, bottom), (left, right)) in whole numbers, "
            f"got {padding!r}"
        )
    if min(map(min, sides)) < 0:
        raise ValueError(f"{function}: padding must not be negative, got {padding!r}")
    (top, bottom), (left, right) = sides
    return (int(top), int(bottom)), (int(left), int(right))
