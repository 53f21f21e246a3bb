"""Planted faults of conv_transpose2d."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import conv2d, conv_transpose2d, rotate180

normal, _ = draws(5)

ARRAYS = (normal(2, 4, 3, 2), normal(2, 3, 3, 4), normal(4))
CUBE = (normal(2, 4, 3, 3), normal(3, 3, 3, 3), normal(3))  # as many filters as channels, and as rows
TWO = {"stride": 2}


def filters(change):
    """A change to the filters that the image gradient is made with."""
    return broken(conv_transpose2d, only="image", residuals=lambda r: r._replace(filters=change(r.filters)))


def through(dtype):
    return lambda a: a.astype(dtype).astype(a.dtype)


def inner(d):
    return jnp.zeros_like(d).at[:, 1:-1, 1:-1].set(d[:, 1:-1, 1:-1])


def stride_forgotten(r, dy, dx, dw, db):
    """dy convolved in steps of 1, the first rows and columns of it kept."""
    dense = conv2d(dy, r.filters, stride=1)
    return dense[:, : dx.shape[1], : dx.shape[2]], dw, db


def every_other_row(r, dy, dx, dw, db):
    """dy reduced first, convolved afterwards."""
    return conv2d(dy[:, ::2, ::2], r.filters), dw, db


def of_two(r, dy, dx, dw, db):
    return dx, dw, dy.reshape(2, 8, 6, 4).sum((0, 1, 2))


FAULTS = [
    # The filter the wrong way round.
    fault("filter turned", filters(rotate180), ARRAYS, "rotated"),
    fault("filter turned, stride 2", filters(rotate180), ARRAYS, "rotated", **TWO),
    fault("filter gradient turned", broken(conv_transpose2d, filters=rotate180), ARRAYS, "rotated", **TWO),
    fault("filter turned in its columns only", filters(lambda w: w[:, :, ::-1]), ARRAYS, "flipped"),
    fault(
        "filter gradient: rows and columns exchanged",
        broken(conv_transpose2d, filters=lambda d: d.swapaxes(1, 2)),
        ARRAYS,
        "transposed",
        **TWO,
    ),
    fault(
        "filter gradient: channels in and out exchanged",
        broken(conv_transpose2d, filters=lambda d: d.transpose(3, 1, 2, 0)),
        CUBE,
        "transposed",
        **TWO,
    ),
    fault(
        "filter gradient left in HWIO order",
        broken(conv_transpose2d, filters=lambda d: d.transpose(1, 2, 0, 3)),
        CUBE,
        "transposed",
        **TWO,
    ),
    fault(
        "filter gradient in conv2d's order of channels",
        broken(conv_transpose2d, filters=lambda d: d.transpose(3, 1, 2, 0)),
        ARRAYS,
        "structure",
        **TWO,
    ),
    fault(
        "image gradient: channels in and out exchanged",
        filters(lambda w: w.transpose(3, 1, 2, 0)),
        CUBE,
        "transposed",
        **TWO,
    ),
    # Places.
    fault(
        "image gradient: padding off by one",
        broken(conv_transpose2d, only="image", static={"padding": ((2, 0), (1, 1))}),
        ARRAYS,
        "shifted",
    ),
    fault(
        "image gradient: padding off by one, stride 2",
        broken(conv_transpose2d, only="image", static={"padding": ((1, 0), (0, 1))}),
        ARRAYS,
        "shifted",
        note="SAME is ((0, 1), (0, 1)): dy is shifted, by less than a pixel of the image",
        **TWO,
    ),
    fault(
        "filter gradient: padding off by one",
        broken(conv_transpose2d, only="filters", static={"padding": ((1, 0), (0, 1))}),
        ARRAYS,
        "shifted",
        **TWO,
    ),
    fault("stride forgotten", after(conv_transpose2d, stride_forgotten), ARRAYS, "unknown", **TWO),
    fault("dy reduced before it is convolved", after(conv_transpose2d, every_other_row), ARRAYS, "unknown", **TWO),
    fault("dilation forgotten", broken(conv_transpose2d, static={"dilation": 1}), ARRAYS, "unknown", dilation=2),
    fault(
        "image gradient of dy's shape",
        after(conv_transpose2d, lambda r, dy, x, w, b: (dy[..., :2], w, b)),
        ARRAYS,
        "structure",
        **TWO,
    ),
    fault("frame of dy left out", broken(conv_transpose2d, only="image", dy=inner), ARRAYS, "border"),
    fault(
        "filter gradient: frame of dy left out",
        broken(conv_transpose2d, only="filters", dy=inner),
        ARRAYS,
        "border partial",
        note="every element of dw is wrong",
    ),
    fault(
        "last row of the image left out",
        broken(conv_transpose2d, image=lambda d: d.at[:, -1].set(0)),
        ARRAYS,
        "border",
        **TWO,
    ),
    # Samples and channels.
    fault(
        "filter gradient of the first sample",
        broken(conv_transpose2d, only="filters", dy=lambda d: d.at[1:].set(0)),
        ARRAYS,
        "partial",
        **TWO,
    ),
    fault(
        "filter gradient: image and dy of different samples",
        broken(conv_transpose2d, only="filters", residuals=lambda r: r._replace(image=r.image[::-1])),
        ARRAYS,
        "partial",
        **TWO,
    ),
    fault("last filter left out", broken(conv_transpose2d, filters=lambda d: d.at[-1].set(0)), ARRAYS, "partial"),
    fault(
        "first channel of dy only",
        broken(conv_transpose2d, only="image", dy=lambda d: d.at[..., 1:].set(0)),
        ARRAYS,
        "partial",
        **TWO,
    ),
    fault(
        "bias gradient of the first sample",
        after(conv_transpose2d, lambda r, dy, x, w, b: (x, w, dy[0].sum((0, 1)))),
        ARRAYS,
        "partial",
        **TWO,
    ),
    # The bias, factors.
    fault("bias gradient averaged over the samples", broken(conv_transpose2d, bias=lambda d: d / 2), ARRAYS, "scaled"),
    fault(
        "bias gradient averaged over all places",
        broken(conv_transpose2d, bias=lambda d: d / 96),
        ARRAYS,
        "scaled",
        **TWO,
    ),
    fault(
        "bias gradient summed over the image's places only",
        after(conv_transpose2d, lambda r, dy, x, w, b: (x, w, dy[:, ::2, ::2].sum((0, 1, 2)))),
        ARRAYS,
        "unknown partial",
        note="places are left out, which are neither samples nor channels",
        **TWO,
    ),
    fault("bias gradient left out", broken(conv_transpose2d, bias=jnp.zeros_like), ARRAYS, "zero"),
    fault(
        "bias gradient not summed over the columns",
        after(conv_transpose2d, lambda r, dy, x, w, b: (x, w, dy.sum((0, 1)))),
        ARRAYS,
        "structure",
    ),
    fault(
        "image gradient divided by the stride", broken(conv_transpose2d, image=lambda d: d / 4), ARRAYS, "scaled", **TWO
    ),
    fault(
        "filter gradient averaged over the samples", broken(conv_transpose2d, filters=lambda d: d / 2), ARRAYS, "scaled"
    ),
    fault("filter gradient negated", broken(conv_transpose2d, filters=jnp.negative), ARRAYS, "negated", **TWO),
    fault(
        "batch size written into the code",
        after(conv_transpose2d, of_two),
        ARRAYS,
        "structure",
        why="smaller batch",
        **TWO,
    ),
    # Precision and second derivatives.
    fault(
        "filters saved as bfloat16",
        broken(conv_transpose2d, residuals=lambda r: r._replace(filters=through(jnp.bfloat16)(r.filters))),
        ARRAYS,
        "precision",
        **TWO,
    ),
    fault("filters held constant", filters(lax.stop_gradient), ARRAYS, "second-order", why="second order", **TWO),
    fault(
        "image held constant",
        broken(conv_transpose2d, residuals=lambda r: r._replace(image=lax.stop_gradient(r.image))),
        ARRAYS,
        "second-order",
        why="second order",
        **TWO,
    ),
]
