"""The three sums of convolution, over any number of spatial axes: forward, by the image, by the filters.

Each in the form of its definition, which XLA's compilers for GPU and TPU turn into their own best, and in forms that
are fast on a CPU. There two things cost: a convolution that is not written as N×H×W×C with h×w×C×n falls back to plain
loops inside `lax.scan`, and one of few channels and few filters leaves the processor's vectors half empty. H×W and h×w
stand for all axes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.rule import Array
from jaxcnn.rules import winograd
from jaxcnn.rules.platform import by_platform
from jaxcnn.rules.window import Geometry, stretched, tap, turned_around, untap


def correlate(images: Array, filters: Array, g: Geometry, groups: int) -> jax.Array:
    """N×H×W×C with n×h×w×(C/groups) to N×Ho×Wo×n."""
    by_definition = functools.partial(_by_definition, g=g, groups=groups)
    on_cpu = functools.partial(_correlate_on_cpu, g=g, groups=groups)
    return by_platform(on_cpu, by_definition, images, jnp.moveaxis(filters, 0, -1))


def image_gradient(dy: Array, filters: Array, g: Geometry, groups: int) -> jax.Array:
    """dy, N×Ho×Wo×n, stretched by the stride and convolved with the turned filters: N×H×W×C."""
    n, *window, c = filters.shape
    # h×w×n×C, within each group the in channels exchanged with the out channels.
    exchanged = jnp.moveaxis(turned(filters).reshape(groups, n // groups, *window, c), (0, 1), (-2, -3))
    exchanged = exchanged.reshape(*window, n // groups, groups * c)
    by_definition = functools.partial(_by_definition, g=turned_around(g), groups=groups, stretch=g.stride)
    on_cpu = functools.partial(_image_gradient_on_cpu, g=g, groups=groups)
    return by_platform(on_cpu, by_definition, dy, exchanged)


def filter_gradient(images: Array, dy: Array, g: Geometry, groups: int) -> jax.Array:
    """The images' taps, each correlated with dy: n×h×w×(C/groups)."""
    by_definition = functools.partial(_filter_gradient_by_definition, g=g, groups=groups)
    on_cpu = functools.partial(_filter_gradient_on_cpu, g=g, groups=groups)
    return by_platform(on_cpu, by_definition, images, dy)


def turned(filters: Array) -> jax.Array:
    """n×h×w×C turned by 180 degrees: reversed along every spatial axis."""
    return jnp.flip(filters, tuple(range(1, filters.ndim - 1)))


# By definition. Inside, filters are h×w×(C/groups)×n, the only layout that is fast everywhere.


def _by_definition(images, filters, g: Geometry, groups: int = 1, stretch: tuple[int, ...] | None = None):
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


def _filter_gradient_by_definition(images, dy, g: Geometry, groups: int):
    """The convolution of the images with filters as large as dy, in which images and channels change places."""
    spatial = "DHW"[-len(g.size) :]
    around = _of_filters(g)
    return lax.conv_general_dilated(
        images,
        dy,
        window_strides=around.stride,
        padding=around.padding,
        rhs_dilation=around.dilation,
        dimension_numbers=(f"C{spatial}N", f"I{spatial}O", f"C{spatial}N"),
        batch_group_count=groups,
    )


def _of_filters(g: Geometry) -> Geometry:
    """The geometry of the convolution with filters as large as dy, whose output is as large as the filters."""
    # Rows at the end that no window looks at would make it larger: they are cut off.
    looked_at = ((out - 1) * s + r for out, s, r in zip(g.output, g.stride, g.reach, strict=True))
    padding = ((low, n - size - low) for (low, _), n, size in zip(g.padding, looked_at, g.size, strict=True))
    return Geometry(g.size, g.output, g.dilation, g.stride, tuple(padding), g.window)


# On a CPU.


def _correlate_on_cpu(images, filters, g: Geometry, groups: int):
    channels, features = filters.shape[-2:]
    if groups == 1 and min(channels, features) > 8 and (channels % 4 or features % 4):
        # With zeros up to whole vectors: for 15 channels and 30 filters of 16×16 images 0.7 in place of 1.0 ms.
        images, filters = _filled(images, -1), _filled(_filled(filters, -1), -2)
        return _correlate_on_cpu(images, filters, g, groups)[..., :features]
    if winograd.pays(g, groups, channels, features, images.dtype):
        return winograd.convolve(images, filters, g, _by_definition)
    if (columns := _columns_at_once(g, groups, channels, features)) > 1:
        return _correlate_by_columns(images, filters, g, columns)
    return _by_definition(images, filters, g, groups)


def _filled(x: Array, axis: int) -> Array:
    """With zeros at the end of the axis, to a multiple of 4."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (0, -x.shape[axis] % 4, 0)
    return lax.pad(x, np.zeros((), x.dtype), config)


def _columns_at_once(g: Geometry, groups: int, channels: int, features: int) -> int:
    """How many neighbouring columns to compute as one, so that there are filters enough to fill the vectors."""
    if (g.stride[-1], g.dilation[-1], groups) != (1, 1, 1) or channels > 16:
        return 1
    # Measured, 16 images of 32×32: 999 against 1,527 µs for 16 channels and 16 filters, 420 against 1,323 for 3 and 32.
    enough = 64 if 1 < channels < 8 else 32
    return max(r for r in (1, 2, 4) if g.output[-1] % r == 0 and (r == 1 or r * features <= enough))


def _correlate_by_columns(images, filters, g: Geometry, columns: int):
    """Some neighbouring columns of the output as the channels of one: each filter as many times, moved along."""
    along = [(0, 0)] * filters.ndim
    moved = []
    for k in range(columns):
        along[-3] = (k, columns - 1 - k)
        moved.append(jnp.pad(filters, along))
    wide = g._replace(stride=(*g.stride[:-1], columns))  # the padding holds: one window spans that much more
    y = _by_definition(images, jnp.concatenate(moved, axis=-1), wide)
    return y.reshape(images.shape[0], *g.output, filters.shape[-1])


def _image_gradient_on_cpu(dy, exchanged, g: Geometry, groups: int):
    # XLA would fold the turning back into the convolution, which is then of the slow kind.
    exchanged = lax.optimization_barrier(exchanged)
    around = turned_around(g)
    if max(g.window) == 1 and not any(map(any, g.padding)):  # a product for each pixel of dy, stretched afterwards
        small = around._replace(size=g.output, padding=g.padding, output=g.output)
        return untap(_correlate_on_cpu(dy, exchanged, small, groups), (0,) * len(g.size), g)
    if max(g.stride) > 1 or min(map(min, around.padding)) < 0:
        # Stretched and padded by hand: much faster than `lhs_dilation`.
        dy, around = stretched(dy, g), around._replace(padding=((0, 0),) * len(g.size))
    return _correlate_on_cpu(dy, exchanged, around._replace(size=dy.shape[1:-1]), groups)


def _filter_gradient_on_cpu(images, dy, g: Geometry, groups: int):
    samples, *_, channels = images.shape
    features = dy.shape[-1]
    if min(channels, features) > 24 and winograd.pays(g, groups, channels, features, images.dtype):
        return winograd.filter_gradient(images, dy, g, patches)
    # The images are its channels: of a few it would have a few.
    if samples >= 8 and max(g.stride) == 1 < max(g.window) and groups == 1:
        around = _of_filters(g)
        of_images, of_dy = lax.optimization_barrier((jnp.swapaxes(images, 0, -1), jnp.moveaxis(dy, 0, -2)))
        return jnp.swapaxes(_by_definition(of_images, of_dy, around), 0, -1)
    # r places of all images, t taps, g groups, c and o channels in and out: one matrix product for each group.
    taps = patches(images, g).reshape(-1, len(g.taps), groups, channels // groups)
    dw = jnp.einsum("rgo,rtgc->gotc", dy.reshape(-1, groups, features // groups), taps)
    return dw.reshape(features, *g.window, channels // groups)


def patches(images: Array, g: Geometry) -> Array:
    """All taps side by side as channels: N×Ho×Wo×(h·w·C)."""
    padded = lax.pad(images, np.zeros((), images.dtype), [(0, 0, 0), *((*p, 0) for p in g.padding), (0, 0, 0)])
    return jnp.concatenate([tap(padded, place, g) for place in g.taps], axis=-1)
