"""Convolution, as neural networks use the word: the filter is not turned (a mathematician's cross-correlation)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats
from jaxcnn.rules.window import Geometry, geometry, is_whole, tap

# The four combinations of the source: number of axes of (image, filters).
_RANKS = {(2, 2): "H×W and h×w", (3, 3): "H×W×C and h×w×C", (3, 4): "H×W×C and n×h×w×C", (4, 4): "N×H×W×C and n×h×w×C"}


class Conv2DResiduals(NamedTuple):
    image: Array  # as given; the filter gradient correlates it with dy
    filters: Array  # as given; the image gradient turns them by 180 degrees


def conv2d_forward(
    image: Array,
    filters: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | tuple = "SAME",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> tuple[Array, Conv2DResiduals]:
    """Convolution of an image, or of N images, with one filter or n of them.

    With stride 1 and "SAME" the output has the image's height and width for every filter, odd or even.

    ==========  ============  ==========
    image       filters       output
    ==========  ============  ==========
    H×W         h×w           Ho×Wo
    H×W×C       h×w×C         Ho×Wo
    H×W×C       n×h×w×C       Ho×Wo×n
    N×H×W×C     n×h×w×C       N×Ho×Wo×n
    ==========  ============  ==========

    Args:
      image: any floating dtype.
      filters: of the image's dtype; with `groups`, C here is the image's C / groups.
      bias: one value for each output channel, (n,); a scalar () where the output has no channel axis. Or None.
      stride: steps of the filter, a number or (rows, columns).
      padding: "SAME" or "VALID" as in `jax.lax`, or zeros to add: ((top, bottom), (left, right)).
      dilation: distance between neighbouring filter values, a number or a pair.
      groups: the channels are cut into this many groups, and the filters likewise; each group sees only its own
        channels. groups = C is a depthwise convolution.

    Returns:
      The output, of the image's dtype. Ho = (H + padding - (h - 1)·dilation - 1) // stride + 1, Wo likewise.

    Raises:
      ValueError: other ranks or shapes; channels that do not divide into the groups; a filter that spans more than
        the padded image; unknown padding.
      TypeError: dtypes that are not floating or not equal; stride, dilation or groups that are no whole numbers.

    Source: the course text, part 1 "Convolution" (`convNHWNpad`) and part 2 "Backward Convolution".

    >>> image = jnp.arange(12.0).reshape(3, 4)
    >>> conv2d(image, jnp.array([[0.0, 1.0], [0.0, 0.0]]))  # each value moves one column to the left
    Array([[ 1.,  2.,  3.,  0.],
           [ 5.,  6.,  7.,  0.],
           [ 9., 10., 11.,  0.]], dtype=float32)
    >>> conv2d(jnp.ones((2, 8, 8, 3)), jnp.ones((5, 3, 3, 3)), jnp.zeros(5), stride=2).shape
    (2, 4, 4, 5)
    """
    g = _geometry(image, filters, bias, stride, padding, dilation, groups)
    images, weights = _with_all_axes(image, filters)
    y = _convolve(images, weights.transpose(1, 2, 3, 0), g.stride, g.padding, g.dilation, groups)
    y = y.reshape(_output_shape(image, filters, g))
    return (y if bias is None else y + bias), Conv2DResiduals(image, filters)


# In one dimension, with stride s, dilation d and p zeros added before,
#
#     y[r] = Σ_i x[r·s + i·d - p] w[i],        so      L depends on x[q] through every y[r] with  r·s + i·d - p = q :
#
#     dL/dx[q] = Σ_i w[i] dy[(q + p - i·d) / s]   where s divides,        dL/dw[i] = Σ_r x[r·s + i·d - p] dy[r].
#
# On the left i runs against q: a convolution of dy, stretched by s with zeros, with the filter turned by 180 degrees,
# in and out channels exchanged. On the right a correlation of x with dy (of the padded x with dy stretched by s).
# Each y gets its bias once: db is the sum of dy over all images and places.
def conv2d_backward(residuals: Conv2DResiduals, dy: Array, *, stride, padding, dilation, groups):
    image, filters = residuals
    g = _geometry(image, filters, None, stride, padding, dilation, groups)
    images, weights = _with_all_axes(image, filters)
    dys = dy.reshape(images.shape[0], *g.output, weights.shape[0])
    dx = _image_gradient(dys, weights, g, groups)
    dw = _filter_gradient(images, dys, g, groups)
    db = dy.sum(tuple(range(dy.ndim - 1))) if filters.ndim == 4 else dy.sum()
    return dx.reshape(image.shape), dw.reshape(filters.shape), db


conv2d = Rule(conv2d_forward, conv2d_backward, "conv2d", batch_axes=(0, None, None))


def rotate180(filters: Array) -> jax.Array:
    """The filters turned by 180 degrees in their two spatial axes.

    A mathematical convolution with a filter is `conv2d` with the turned filter (the source's closing note), and the
    image gradient of `conv2d` is one.

    Args:
      filters: h×w, h×w×C or n×h×w×C, any dtype.

    Returns:
      An array of the same shape and dtype.

    Raises:
      ValueError: another number of axes.

    >>> rotate180(jnp.arange(6).reshape(2, 3))
    Array([[5, 4, 3],
           [2, 1, 0]], dtype=int32)
    """
    filters = jnp.asarray(filters)
    if filters.ndim not in (2, 3, 4):
        raise ValueError(f"rotate180: filters must be h×w, h×w×C or n×h×w×C, got shape {filters.shape}")
    return jnp.flip(filters, (1, 2) if filters.ndim == 4 else (0, 1))


def _image_gradient(dy: Array, filters: Array, g: Geometry, groups: int) -> Array:
    n, h, w, c = filters.shape
    # HWIO, within each group the in channels exchanged with the out channels.
    turned = rotate180(filters).reshape(groups, n // groups, h, w, c).transpose(2, 3, 1, 0, 4)
    # XLA would fold the turning back into the convolution, and runs such a convolution slowly inside loops.
    turned = lax.optimization_barrier(turned.reshape(h, w, n // groups, groups * c))
    # Stretched by the stride and padded, by hand: much faster on a CPU than `lhs_dilation`.
    config = [(0, 0, 0)]
    for size, reach, (before, _), s, out in zip(g.size, g.reach, g.padding, g.stride, g.output, strict=True):
        low = reach - 1 - before
        config.append((low, size + reach - 1 - low - ((out - 1) * s + 1), s - 1))
    stretched = lax.pad(dy, np.zeros((), dy.dtype), [*config, (0, 0, 0)])
    return _convolve(stretched, turned, (1, 1), ((0, 0), (0, 0)), g.dilation, groups)


def _filter_gradient(image: Array, dy: Array, g: Geometry, groups: int) -> Array:
    n = dy.shape[-1]
    padded = jnp.pad(image, ((0, 0), *g.padding, (0, 0)))
    patches = jnp.stack([tap(padded, place, g) for place in g.taps], axis=3)
    # All images and places are one long sum; cut into blocks, which are added at the end, it loses fewer digits.
    places = math.prod(dy.shape[:3])
    blocks = max((b for b in range(1, 17) if places % b == 0), default=1)
    rows = (blocks, places // blocks)
    # b blocks, r rows, t taps, g groups, c and o channels in and out: a matrix product for each block and group.
    patches = patches.reshape(*rows, len(g.taps), groups, image.shape[-1] // groups)
    dw = jnp.einsum("brtgc,brgo->bgotc", patches, dy.reshape(*rows, groups, n // groups)).sum(0)
    return dw.reshape(n, *g.window, -1)


def _convolve(image, filters_hwio, stride, padding, dilation, groups) -> Array:
    return lax.conv_general_dilated(
        image,
        filters_hwio,
        window_strides=stride,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _with_all_axes(image: Array, filters: Array) -> tuple[Array, Array]:
    """Any of the four combinations as N×H×W×C and n×h×w×C."""
    image = image.reshape(*image.shape, 1) if image.ndim == 2 else image
    filters = filters.reshape(*filters.shape, 1) if filters.ndim == 2 else filters
    return image if image.ndim == 4 else image[None], filters if filters.ndim == 4 else filters[None]


def _output_shape(image: Array, filters: Array, g: Geometry) -> tuple[int, ...]:
    return (*image.shape[: image.ndim // 4], *g.output, *filters.shape[: filters.ndim // 4])


def _geometry(image, filters, bias, stride, padding, dilation, groups) -> Geometry:
    """What the shapes and the static arguments mean; refuses what does not fit together."""
    if (image.ndim, filters.ndim) not in _RANKS:
        raise ValueError(
            f"conv2d: image and filters must be {', '.join(_RANKS.values())}; "
            f"got shapes {image.shape} and {filters.shape}"
        )
    require_equal_floats("conv2d", image=image, filters=filters, bias=bias)
    channels, filter_channels = (a.shape[-1] if a.ndim > 2 else 1 for a in (image, filters))
    n = filters.shape[0] if filters.ndim == 4 else 1
    if not is_whole(groups):
        raise TypeError(f"conv2d: groups must be a whole number, got {groups!r}")
    if groups < 1 or channels % groups or n % groups:
        raise ValueError(f"conv2d: groups must divide the {channels} channels and the {n} filters, got {groups}")
    if filter_channels * groups != channels:
        raise ValueError(
            f"conv2d: filters have {filter_channels} input channels, the image has {channels} in {groups} group(s); "
            f"filters need {channels // groups}"
        )
    per_channel = (n,) if filters.ndim == 4 else ()
    if bias is not None and bias.shape != per_channel:
        raise ValueError(f"conv2d: bias must have shape {per_channel}, one value an output channel, got {bias.shape}")
    if 0 in filters.shape:
        raise ValueError(f"conv2d: filters must not be empty, got shape {filters.shape}")
    height, width = image.shape[-3:-1] if image.ndim > 2 else image.shape
    window = filters.shape[-3:-1] if filters.ndim > 2 else filters.shape
    return geometry("conv2d", (height, width), window, stride, dilation, padding)
