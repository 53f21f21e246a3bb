"""Planted faults of conv2d."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import conv2d, rotate180

normal, _ = draws(0)

SAME = (normal(2, 5, 4, 3), normal(4, 3, 3, 3), normal(4))
CUBE = (normal(2, 5, 4, 3), normal(3, 3, 3, 3), normal(3))  # as many filters as channels, and as rows
SQUARE = (normal(2, 4, 4, 3), normal(4, 3, 3, 3), normal(4))
EVEN = (normal(2, 5, 4, 3), normal(4, 2, 2, 3), normal(4))
ODD = (normal(2, 6, 5, 3), normal(4, 3, 3, 3), normal(4))  # "SAME" with stride 2 pads the rows by (0, 1)
GROUPS = (normal(2, 5, 4, 4), normal(4, 3, 3, 2), normal(4))
ALIKE = (normal(3, 3, 3, 2), normal(3, 3, 3, 2))  # image and filters of one shape
PLANE = (normal(5, 4), normal(3, 3), normal())


def filters(change):
    """A change to the filters that the image gradient is made with."""
    return {"only": "image", "residuals": lambda r: r._replace(filters=change(r.filters))}


def stretched(mode):
    """An image gradient that pads dy with something else than zeros (stride 1, "SAME", 3×3)."""

    def change(r, dy, dx, dw, db):
        padded = jnp.pad(dy, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
        turned = rotate180(r.filters).transpose(1, 2, 0, 3)
        wrong = lax.conv_general_dilated(padded, turned, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return wrong, dw, db

    return after(conv2d, change)


def inner(dy):
    return jnp.zeros_like(dy).at[:, 1:-1, 1:-1].set(dy[:, 1:-1, 1:-1])


def through(dtype):
    return lambda a: a.astype(dtype).astype(a.dtype)


def batch_of_two(r, dy, dx, dw, db):
    return dx, dw, dy.reshape(2, 5, 4, 4).sum((0, 1, 2))


def shuffled(dx):
    return dx.reshape(*dx.shape[:-1], 2, 2).swapaxes(-1, -2).reshape(dx.shape)


def groups_exchanged(dw):
    return jnp.concatenate([dw[2:], dw[:2]])


FAULTS = [
    # The filter the wrong way round.
    fault("filter not turned", broken(conv2d, **filters(rotate180)), SAME, "rotated"),
    fault("filter not turned, H×W", broken(conv2d, **filters(rotate180)), PLANE, "rotated"),
    fault("filter not turned, stride 2", broken(conv2d, **filters(rotate180)), ODD, "rotated", stride=2),
    fault("filter gradient turned", broken(conv2d, filters=rotate180), SAME, "rotated"),
    fault("filter gradient turned, groups", broken(conv2d, filters=rotate180), GROUPS, "rotated", groups=2),
    fault("filter turned in its columns only", broken(conv2d, **filters(lambda w: w[:, ::-1])), SAME, "flipped"),
    fault("filter turned in its rows only", broken(conv2d, **filters(lambda w: w[:, :, ::-1])), SAME, "flipped"),
    fault("filter gradient flipped in its rows", broken(conv2d, filters=lambda d: d[:, ::-1]), SAME, "flipped"),
    fault("filter gradient flipped in its columns", broken(conv2d, filters=lambda d: d[:, :, ::-1]), SAME, "flipped"),
    fault("taps in column-major order", broken(conv2d, filters=lambda d: d.transpose(0, 2, 1, 3)), SAME, "transposed"),
    fault(
        "filter gradient: channels in and out exchanged",
        broken(conv2d, filters=lambda d: d.transpose(3, 1, 2, 0)),
        CUBE,
        "transposed",
    ),
    fault(
        "filter gradient left in HWIO order",
        broken(conv2d, filters=lambda d: d.transpose(1, 2, 3, 0)),
        CUBE,
        "transposed",
    ),
    fault(
        "filter gradient left in HWIO order, other shape",
        broken(conv2d, filters=lambda d: d.transpose(1, 2, 3, 0)),
        SAME,
        "structure",
    ),
    fault(
        "image gradient: channels in and out not exchanged",
        broken(conv2d, **filters(lambda w: w.transpose(3, 1, 2, 0))),
        CUBE,
        "transposed",
    ),
    fault("image gradient: H and W exchanged", broken(conv2d, image=lambda d: d.swapaxes(1, 2)), SQUARE, "transposed"),
    # One pixel off.
    fault(
        "image gradient: padding off by one",
        broken(conv2d, only="image", static={"padding": ((2, 0), (1, 1))}),
        SAME,
        "shifted",
    ),
    fault(
        "filter gradient: padding off by one",
        broken(conv2d, only="filters", static={"padding": ((1, 1), (0, 2))}),
        SAME,
        "shifted",
    ),
    fault(
        "even filter: padding mirrored",
        broken(conv2d, static={"padding": ((1, 0), (1, 0))}),
        EVEN,
        "shifted",
        note="SAME of a 2×2 filter pads after, not before",
    ),
    fault(
        "stride 2: padding mirrored",
        broken(conv2d, only="image", static={"padding": ((1, 0), (1, 1))}),
        ODD,
        "shifted",
        stride=2,
        note="SAME is asymmetric where the stride does not divide",
    ),
    fault(
        "stretched dy starts one column late",
        broken(conv2d, only="image", static={"padding": ((1, 1), (2, 0))}),
        SAME,
        "shifted",
    ),
    # The edge.
    fault(
        "last row and column missing",
        broken(conv2d, image=lambda d: d.at[:, -1].set(0).at[:, :, -1].set(0)),
        (normal(2, 5, 5, 3), *SAME[1:]),
        "border",
        stride=2,
        padding="VALID",
        note="the image gradient made Ho·s rows long",
    ),
    fault("image gradient has an empty frame", broken(conv2d, image=inner), SAME, "border"),
    fault("dy padded with its edge", stretched("edge"), SAME, "border"),
    fault("dy continued periodically", stretched("wrap"), SAME, "border", note="an FFT without padding"),
    fault("dy mirrored at the edge", stretched("symmetric"), SAME, "border"),
    fault(
        "filter gradient: padding forgotten",
        broken(conv2d, only="filters", dy=inner),
        SAME,
        "border partial",
        note="the windows that overlap the edge are left out: every element of dw is wrong",
    ),
    # Samples, channels, groups.
    fault(
        "filter gradient of the first sample",
        broken(conv2d, only="filters", dy=lambda d: d.at[1:].set(0)),
        SAME,
        "partial",
    ),
    fault(
        "filter gradient: image and dy of different samples",
        broken(conv2d, only="filters", residuals=lambda r: r._replace(image=r.image[::-1])),
        SAME,
        "partial",
    ),
    fault("image gradient of the first sample", broken(conv2d, image=lambda d: d.at[1:].set(0)), SAME, "partial"),
    fault("image gradient of the first channel", broken(conv2d, image=lambda d: d.at[..., 1:].set(0)), SAME, "partial"),
    fault(
        "image gradient: samples reversed",
        broken(conv2d, image=lambda d: d[::-1]),
        SAME,
        "partial flipped",
        note="the samples in the wrong order, which is also a flip of their axis",
    ),
    fault("last filter left out", broken(conv2d, filters=lambda d: d.at[-1].set(0)), SAME, "partial"),
    fault(
        "filter gradient of the first group",
        broken(conv2d, filters=lambda d: d.at[2:].set(0)),
        GROUPS,
        "partial",
        groups=2,
    ),
    fault("groups exchanged", broken(conv2d, filters=groups_exchanged), GROUPS, "partial", groups=2),
    fault("image gradient: channels of the groups mixed", broken(conv2d, image=shuffled), GROUPS, "partial", groups=2),
    fault(
        "bias gradient of the first sample",
        after(conv2d, lambda r, dy, x, w, b: (x, w, dy[0].sum((0, 1)))),
        SAME,
        "partial",
    ),
    fault(
        "bias gradient summed over the wrong axes",
        after(conv2d, lambda r, dy, x, w, b: (x, w, dy.sum((0, 1, 3)))),
        SAME,
        "transposed",
        note="as many columns as channels: the shape is right, the sums are others",
    ),
    # Factors.
    fault("bias gradient averaged over the samples", broken(conv2d, bias=lambda d: d / 2), SAME, "scaled"),
    fault(
        "bias gradient averaged over all places",
        after(conv2d, lambda r, dy, x, w, b: (x, w, dy.mean((0, 1, 2)))),
        SAME,
        "scaled",
    ),
    fault("filter gradient averaged over the samples", broken(conv2d, filters=lambda d: d / 2), SAME, "scaled"),
    fault("filter gradient times H·W", broken(conv2d, filters=lambda d: d * 20), SAME, "scaled"),
    fault("image gradient a millionth too large", broken(conv2d, image=lambda d: d * (1 + 1e-6)), SAME, "scaled"),
    fault("filter gradient negated", broken(conv2d, filters=jnp.negative), SAME, "negated"),
    fault("image gradient negated", broken(conv2d, image=jnp.negative), SAME, "negated", stride=2),
    fault("image gradient left out", broken(conv2d, image=jnp.zeros_like), SAME, "zero"),
    fault("bias gradient left out", broken(conv2d, bias=jnp.zeros_like), SAME, "zero"),
    fault("image and filter gradient exchanged", after(conv2d, lambda r, dy, x, w, b: (w, x, b)), ALIKE, "swapped"),
    fault("dilation forgotten", broken(conv2d, static={"dilation": 1}), SAME, "unknown", dilation=2),
    fault(
        "one value wrong",
        broken(conv2d, filters=lambda d: d.at[2, 1, 1, 1].add(1e-3)),
        SAME,
        "unknown partial not-linear",
        note="no pattern; the only wrong channel of the only wrong filter, and the same for every dy",
    ),
    # Form.
    fault(
        "bias gradient not summed over the columns",
        after(conv2d, lambda r, dy, x, w, b: (x, w, dy.sum((0, 1)))),
        SAME,
        "structure",
    ),
    fault(
        "bias gradient keeps its axes",
        after(conv2d, lambda r, dy, x, w, b: (x, w, dy.sum((0, 1, 2), keepdims=True))),
        SAME,
        "structure",
    ),
    fault("filter gradient in float16", broken(conv2d, filters=lambda d: d.astype(jnp.float16)), SAME, "structure"),
    fault("batch size written into the code", after(conv2d, batch_of_two), SAME, "structure", why="smaller batch"),
    # Precision.
    fault("image gradient through bfloat16", broken(conv2d, image=through(jnp.bfloat16)), SAME, "precision"),
    fault(
        "filters saved as float16",
        broken(conv2d, residuals=lambda r: r._replace(filters=through(jnp.float16)(r.filters))),
        SAME,
        "precision",
    ),
    fault("filter gradient through float32", broken(conv2d, filters=through(jnp.float32)), SAME, "precision"),
    # Second derivatives.
    fault(
        "filters held constant", broken(conv2d, **filters(lax.stop_gradient)), SAME, "second-order", why="second order"
    ),
    fault(
        "image held constant",
        broken(conv2d, residuals=lambda r: r._replace(image=lax.stop_gradient(r.image))),
        SAME,
        "second-order",
        why="second order",
    ),
]
