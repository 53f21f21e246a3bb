"""Convolution, as neural networks use the word: the filter is not turned (a mathematician's cross-correlation).

`conv2d`, and below it the convolution over any number of spatial axes that it is, and `conv1d` and `conv3d` are.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.correlation import correlate, filter_gradient, image_gradient, turned
from jaxcnn.rules.dtypes import require_equal_floats
from jaxcnn.rules.window import WORDS, Geometry, geometry, is_whole, with_all_axes


class ConvolutionResiduals(NamedTuple):
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
) -> tuple[Array, ConvolutionResiduals]:
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
      image: any floating dtype from 16 bits.
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
    return convolve(2, image, filters, bias, stride, padding, dilation, groups)


# In one dimension, with stride s, dilation d and p zeros added before,
#
#     y[r] = Σ_i x[r·s + i·d - p] w[i],        so      L depends on x[q] through every y[r] with  r·s + i·d - p = q :
#
#     dL/dx[q] = Σ_i w[i] dy[(q + p - i·d) / s]   where s divides,        dL/dw[i] = Σ_r x[r·s + i·d - p] dy[r].
#
# On the left i runs against q: a convolution of dy, stretched by s with zeros, with the filter turned by 180 degrees,
# in and out channels exchanged. On the right a correlation of x with dy (of the padded x with dy stretched by s).
# Each y gets its bias once: db is the sum of dy over all images and places.
def conv2d_backward(residuals: ConvolutionResiduals, dy: Array, *, stride, padding, dilation, groups):
    return convolution_gradients(2, residuals, dy, stride, padding, dilation, groups)


conv2d = Rule(conv2d_forward, conv2d_backward, "conv2d", batch_axes=(0, None, None))


# --- over any number of spatial axes; H×W and h×w stand for all of them ----------------------------------------------


def convolve(
    axes: int, image: Array, filters: Array, bias: Array | None, stride, padding, dilation, groups
) -> tuple[Array, ConvolutionResiduals]:
    """Convolution over the spatial axes, so many of them: the forward pass of conv1d, conv2d and conv3d."""
    g = _geometry(axes, image, filters, bias, stride, padding, dilation, groups)
    y = correlate(with_all_axes(image, axes), with_all_axes(filters, axes), g, groups)
    with_n = axes + 2  # so many axes have images with N, and filters with n
    y = y.reshape(*image.shape[: image.ndim // with_n], *g.output, *filters.shape[: filters.ndim // with_n])
    return (y if bias is None else y + bias), ConvolutionResiduals(image, filters)


# Derived above `conv2d_backward`; of several spatial axes each goes as one does.
def convolution_gradients(axes: int, residuals: ConvolutionResiduals, dy: Array, stride, padding, dilation, groups):
    """The backward pass of conv1d, conv2d and conv3d: (dx, dw, db)."""
    image, filters = residuals
    g = _geometry(axes, image, filters, None, stride, padding, dilation, groups)
    images, weights = with_all_axes(image, axes), with_all_axes(filters, axes)
    dys = dy.reshape(images.shape[0], *g.output, weights.shape[0])
    dx = image_gradient(dys, weights, g, groups)
    dw = filter_gradient(images, dys, g, groups)
    db = dy.sum(tuple(range(dy.ndim - 1))) if filters.ndim == axes + 2 else dy.sum()
    return dx.reshape(image.shape), dw.reshape(filters.shape), db


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
    return turned(with_all_axes(filters)).reshape(filters.shape)


def _geometry(axes: int, image, filters, bias, stride, padding, dilation, groups) -> Geometry:
    """What the shapes and the static arguments mean; refuses what does not fit together."""
    function, words, with_n = f"conv{axes}d", WORDS[axes], axes + 2
    if (image.ndim, filters.ndim) not in ((axes, axes), (axes + 1, axes + 1), (axes + 1, with_n), (with_n, with_n)):
        size, window = words.axes, words.axes.lower()
        raise ValueError(
            f"{function}: {words.array} and filters must be {size} and {window}, {size}×C and {window}×C, "
            f"{size}×C and n×{window}×C, N×{size}×C and n×{window}×C; got shapes {image.shape} and {filters.shape}"
        )
    require_equal_floats(function, **{words.array: image}, filters=filters, bias=bias)
    channels, filter_channels = (a.shape[-1] if a.ndim > axes else 1 for a in (image, filters))
    n = filters.shape[0] if filters.ndim == with_n else 1
    if not is_whole(groups):
        raise TypeError(f"{function}: groups must be a whole number, got {groups!r}")
    if groups < 1 or channels % groups or n % groups:
        raise ValueError(f"{function}: groups must divide the {channels} channels and the {n} filters, got {groups}")
    if filter_channels * groups != channels:
        raise ValueError(
            f"{function}: filters have {filter_channels} input channels, the {words.array} has {channels} in {groups} "
            f"group(s); filters need {channels // groups}"
        )
    per_channel = (n,) if filters.ndim == with_n else ()
    if bias is not None and bias.shape != per_channel:
        raise ValueError(
            f"{function}: bias must have shape {per_channel}, one value an output channel, got {bias.shape}"
        )
    if 0 in filters.shape:
        raise ValueError(f"{function}: filters must not be empty, got shape {filters.shape}")
    size, window = (with_all_axes(a, axes).shape[1:-1] for a in (image, filters))
    return geometry(function, size, window, stride, dilation, padding)
