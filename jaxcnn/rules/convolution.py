"""Convolution, as neural networks use the word: the filter is not turned (a mathematician's cross-correlation).

`conv2d`, and below it the convolution over any number of spatial axes that it is, and `conv1d` and `conv3d` are.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.rule import Array, Rule
from jaxcnn.rules import winograd
from jaxcnn.rules.dtypes import require_equal_floats
from jaxcnn.rules.platform import by_platform
from jaxcnn.rules.window import (
    WORDS,
    Geometry,
    geometry,
    is_whole,
    stretched,
    tap,
    turned_around,
    untap,
    with_all_axes,
)


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


def correlate(images: Array, filters: Array, g: Geometry, groups: int) -> Array:
    """N×H×W×C with n×h×w×(C/groups) to N×Ho×Wo×n."""
    return _correlate(images, jnp.moveaxis(filters, 0, -1), g, groups)


def image_gradient(dy: Array, filters: Array, g: Geometry, groups: int) -> Array:
    """dy, N×Ho×Wo×n, stretched and convolved with the turned filters: N×H×W×C."""
    n, *window, c = filters.shape
    # h×w×n×C, within each group the in channels exchanged with the out channels.
    exchanged = jnp.moveaxis(turned(filters).reshape(groups, n // groups, *window, c), (0, 1), (-2, -3))
    exchanged = exchanged.reshape(*window, n // groups, groups * c)
    return by_platform(
        functools.partial(_image_gradient_on_cpu, g=g, groups=groups),
        functools.partial(_by_definition, g=turned_around(g), groups=groups, stretch=g.stride),
        dy, exchanged,
    )  # fmt: skip


def filter_gradient(images: Array, dy: Array, g: Geometry, groups: int) -> Array:
    """The images' taps, each correlated with dy: n×h×w×(C/groups)."""
    return by_platform(
        functools.partial(_filter_gradient_by_products, g=g, groups=groups),
        functools.partial(_filter_gradient_by_convolution, g=g, groups=groups),
        images, dy,
    )  # fmt: skip


# The forms. The filters are h×w×C×n here, with groups h×w×(C/groups)×n.


def _correlate(images: Array, filters: Array, g: Geometry, groups: int) -> Array:
    by_definition = functools.partial(_by_definition, g=g, groups=groups)
    if not winograd.pays(g, groups, *filters.shape[-2:], images.dtype):
        return by_definition(images, filters)
    by_tiles = functools.partial(
        winograd.convolve, g=g, correlate=functools.partial(_by_definition, groups=groups)
    )
    return by_platform(by_tiles, by_definition, images, filters)


def _by_definition(
    images: Array, filters: Array, g: Geometry, groups: int, stretch: tuple[int, ...] | None = None
) -> Array:
    """XLA's own convolution, of images that are stretched first where `stretch` says so."""
    spatial = "DHW"[-len(g.size) :]
    return lax.conv_general_dilated(
        images,
        filters,
        window_strides=g.stride,
        padding=g.padding,
        lhs_dilation=stretch,
        rhs_dilation=g.dilation,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
    )


def _image_gradient_on_cpu(dy: Array, exchanged: Array, g: Geometry, groups: int) -> Array:
    # XLA would fold the turning back into the convolution, and runs such a convolution slowly inside loops.
    exchanged = lax.optimization_barrier(exchanged)
    around = turned_around(g)
    if max(g.window) == 1 and not any(map(any, g.padding)):  # a product for each pixel of dy, stretched afterwards
        small = around._replace(size=g.output, padding=g.padding, output=g.output)
        return untap(_correlate(dy, exchanged, small, groups), (0,) * len(g.size), g)
    if max(g.stride) > 1 or min(map(min, around.padding)) < 0:
        # Stretched and padded by hand: much faster than `lhs_dilation`.
        dy, around = stretched(dy, g), around._replace(padding=((0, 0),) * len(g.size))
    return _correlate(dy, exchanged, around._replace(size=dy.shape[1:-1]), groups)


def _filter_gradient_by_products(images: Array, dy: Array, g: Geometry, groups: int) -> Array:
    c, n = images.shape[-1], dy.shape[-1]
    if winograd.pays(g, groups, c, n, images.dtype):
        return winograd.filter_gradient(images, dy, g, patches)
    # r places of all images, t taps, g groups, c and o channels in and out: one matrix product for each group.
    taps = patches(images, g).reshape(-1, len(g.taps), groups, c // groups)
    dw = jnp.einsum("rgo,rtgc->gotc", dy.reshape(-1, groups, n // groups), taps)
    return dw.reshape(n, *g.window, c // groups)


def _filter_gradient_by_convolution(images: Array, dy: Array, g: Geometry, groups: int) -> Array:
    """Images and channels exchanged: the images' channels are convolved with dy as with filters as large as dy."""
    spatial = "DHW"[-len(g.size) :]
    # Rows at the end that no window looks at would make more than h×w of it.
    looked_at = ((out - 1) * s + r for out, s, r in zip(g.output, g.stride, g.reach, strict=True))
    padding = [(low, n - size - low) for (low, _), n, size in zip(g.padding, looked_at, g.size, strict=True)]
    return lax.conv_general_dilated(
        images,
        dy,
        window_strides=g.dilation,
        padding=padding,
        rhs_dilation=g.stride,
        dimension_numbers=(f"C{spatial}N", f"I{spatial}O", f"C{spatial}N"),
        batch_group_count=groups,
    )


def patches(images: Array, g: Geometry) -> Array:
    """All taps side by side as channels: N×Ho×Wo×(h·w·C)."""
    padded = jnp.pad(images, ((0, 0), *g.padding, (0, 0)))
    return jnp.concatenate([tap(padded, place, g) for place in g.taps], axis=-1)


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


def turned(filters: Array) -> jax.Array:
    """n×h×w×C turned by 180 degrees: reversed along every spatial axis."""
    return jnp.flip(filters, tuple(range(1, filters.ndim - 1)))


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
