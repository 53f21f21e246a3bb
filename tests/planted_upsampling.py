"""Planted faults of upsample_nearest and upsample_bilinear."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from planted_base import after, broken, draws, fault

from jaxcnn import upsample_bilinear, upsample_nearest
from jaxcnn.rules.resize import combine

normal, _ = draws(4)

IMAGES, SQUARE = (normal(2, 4, 5, 3),), (normal(2, 3, 3, 3),)


def through(dtype):
    return lambda a: a.astype(dtype).astype(a.dtype)


def inner(d):
    return jnp.zeros_like(d).at[:, 1:-1, 1:-1].set(d[:, 1:-1, 1:-1])


# --- upsample_nearest -----------------------------------------------------------------------------------------------


def blocks(dy):
    n, height, width, c = dy.shape
    return dy.reshape(n, height // 2, 2, width // 2, 2, c)


def of_blocks(change):
    return after(upsample_nearest, lambda r, dy, dx: (change(blocks(dy)),))


def as_tiled(r, dy, dx):
    """As if the whole image had been repeated, not each of its pixels."""
    n, height, width, c = dx.shape
    return (dy.reshape(n, 2, height, 2, width, c).sum((1, 3)),)


def as_bilinear(r, dy, dx):
    return upsample_bilinear.backward(r, dy, factor=2)


def as_nearest(r, dy, dx):
    return upsample_nearest.backward(r, dy, factor=2)


UPSAMPLE_NEAREST = [
    fault("dy of the block's first place", of_blocks(lambda b: b[:, :, 0, :, 0]), IMAGES, "unknown"),
    fault("dy of the block's last place", of_blocks(lambda b: b[:, :, 1, :, 1]), IMAGES, "unknown"),
    fault("dy of one place times the block's size", of_blocks(lambda b: 4 * b[:, :, 0, :, 0]), IMAGES, "unknown"),
    fault("mean for sum", of_blocks(lambda b: b.mean((2, 4))), IMAGES, "scaled"),
    fault("divided by the factor", broken(upsample_nearest, x=lambda d: d / 2), IMAGES, "scaled"),
    fault("maximum for sum", of_blocks(lambda b: b.max((2, 4))), IMAGES, "not-linear"),
    fault("summed over the rows only", of_blocks(lambda b: b.sum(2)[:, :, :, 0]), IMAGES, "unknown"),
    fault("the block's diagonal", of_blocks(lambda b: b[:, :, 0, :, 0] + b[:, :, 1, :, 1]), IMAGES, "unknown"),
    fault("as of a tiled image", after(upsample_nearest, as_tiled), IMAGES, "unknown"),
    fault("as of bilinear upsampling", after(upsample_nearest, as_bilinear), IMAGES, "unknown"),
    fault(
        "blocks begin one column late",
        broken(upsample_nearest, dy=lambda d: jnp.roll(d, -1, 2)),
        IMAGES,
        "shifted",
        note="dy is shifted, by less than a pixel of the image",
    ),
    fault(
        "one pixel too far left",
        broken(upsample_nearest, x=lambda d: jnp.roll(d, -1, 2).at[:, :, -1].set(0)),
        IMAGES,
        "shifted",
    ),
    fault("last column of dy left out", broken(upsample_nearest, dy=lambda d: d.at[:, :, -1].set(0)), IMAGES, "border"),
    fault("not summed", after(upsample_nearest, lambda r, dy, dx: (dy,)), IMAGES, "structure"),
    fault("H and W exchanged", broken(upsample_nearest, x=lambda d: d.swapaxes(1, 2)), SQUARE, "transposed"),
    fault("first sample only", broken(upsample_nearest, dy=lambda d: d.at[1:].set(0)), IMAGES, "partial"),
    fault("through bfloat16", broken(upsample_nearest, x=through(jnp.bfloat16)), IMAGES, "precision"),
]


# --- upsample_bilinear ----------------------------------------------------------------------------------------------


def by_weights(rows, columns=None):
    """dx = Aᵀ dy B with other weights, `rows(size, factor)`: size·factor × size."""

    def backward(r, dy, *, factor):
        a, b = rows(dy.shape[1] // factor, factor), (columns or rows)(dy.shape[2] // factor, factor)
        return (combine(dy, 1, a.T, b.T),)

    return upsample_bilinear.replace(backward=backward)


def tents(centres, size):
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(size)))


def half_pixel(size, factor):
    return (np.arange(size * factor) + 0.5) / factor - 0.5


def right(size, factor):
    return tents(np.clip(half_pixel(size, factor), 0, size - 1), size)


def not_clamped(size, factor):
    """Beyond the outermost centres the image is taken for 0."""
    return tents(half_pixel(size, factor), size)


def clamped_below(size, factor):
    return tents(np.maximum(half_pixel(size, factor), 0), size)


def no_half_pixel(size, factor):
    return tents(np.minimum(np.arange(size * factor) / factor, size - 1), size)


def half_pixel_added(size, factor):
    return tents(np.clip((np.arange(size * factor) + 0.5) / factor + 0.5, 0, size - 1), size)


def corners_aligned(size, factor):
    return tents(np.linspace(0, size - 1, size * factor), size)


def nearest(size, factor):
    return np.repeat(np.eye(size), factor, 0)


def every_other(size, factor):
    """The old pixels read at the new places that lie nearest: dy, made smaller by linear interpolation."""
    return np.repeat(np.eye(size), factor, 0) * (np.arange(size * factor) % factor < 2)[:, None] / 2


def far_for_near(size, factor):
    """The weights of the two neighbours exchanged."""
    weights = right(size, factor)
    return np.where((weights > 0) & (weights < 1), 1 - weights, weights)


def in_float16(size, factor):
    return right(size, factor).astype(np.float16).astype(np.float64)


def one_tap(size, factor):
    """The pixel before each centre alone, with its weight."""
    weights = right(size, factor)
    return weights * (np.cumsum(weights > 0, 1) == 1)


UPSAMPLE_BILINEAR = [
    fault("as of the nearest pixel", after(upsample_bilinear, as_nearest), IMAGES, "unknown"),
    fault("dy made smaller bilinearly", by_weights(every_other), IMAGES, "unknown", factor=4),
    fault("columns as of the nearest pixel", by_weights(right, nearest), IMAGES, "unknown"),
    fault("not clamped at the edge", by_weights(not_clamped), IMAGES, "border"),
    fault("clamped at one edge only", by_weights(clamped_below), IMAGES, "border"),
    fault(
        "centres without the half pixel",
        by_weights(no_half_pixel),
        IMAGES,
        "unknown shifted",
        note="an offset of half a pixel of dy less, which is no whole place of dx",
    ),
    fault(
        "half pixel added",
        by_weights(half_pixel_added),
        IMAGES,
        "shifted border",
        note="an offset of a whole pixel of x, but for the edge",
    ),
    fault("corners aligned", by_weights(corners_aligned), IMAGES, "unknown"),
    fault("near and far exchanged", by_weights(far_for_near), IMAGES, "unknown"),
    fault("first of two neighbours only", by_weights(one_tap), IMAGES, "unknown"),
    fault("weights divided by their sum", broken(upsample_bilinear, x=lambda d: d / 4), IMAGES, "scaled"),
    fault("times the factor", broken(upsample_bilinear, x=lambda d: d * 2), IMAGES, "scaled"),
    fault(
        "blocks begin one column late",
        broken(upsample_bilinear, dy=lambda d: jnp.roll(d, -1, 2)),
        IMAGES,
        "shifted",
        note="dy is shifted, by less than a pixel of the image",
    ),
    fault("no gradient", broken(upsample_bilinear, x=jnp.zeros_like), IMAGES, "zero"),
    fault("not made smaller", after(upsample_bilinear, lambda r, dy, dx: (dy,)), IMAGES, "structure"),
    fault("H and W exchanged", broken(upsample_bilinear, x=lambda d: d.swapaxes(1, 2)), SQUARE, "transposed"),
    fault("first channel only", broken(upsample_bilinear, dy=lambda d: d.at[..., 1:].set(0)), IMAGES, "partial"),
    fault("frame of dy left out", broken(upsample_bilinear, dy=inner), IMAGES, "border"),
    fault("weights in float16", by_weights(in_float16), IMAGES, "precision", factor=3),
]

FAULTS = UPSAMPLE_NEAREST + UPSAMPLE_BILINEAR
