"""Planted faults of conv1d and conv3d: what goes wrong when a pass over two axes is rewritten for one, or for three."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import conv1d, conv3d

normal, _ = draws(0)

SIGNAL = (normal(2, 7, 3), normal(4, 3, 3), normal(4))
LONG = (normal(2, 8, 3), normal(4, 3, 3), normal(4))  # "SAME" with stride 2 pads by (0, 1)
VOLUME = (normal(2, 3, 5, 4, 2), normal(3, 3, 3, 2, 2), normal(3))
DEEP = (normal(2, 5, 4, 3, 2), normal(3, 3, 2, 3, 2), normal(3))
EVEN = (normal(2, 4, 3, 3, 2), normal(3, 2, 3, 3, 2), normal(3))  # "SAME" pads the depth by (0, 1)
SQUARE = (normal(2, 3, 4, 4, 2), normal(3, 3, 3, 3, 2), normal(3))
GROUPS = (normal(2, 3, 4, 3, 4), normal(4, 3, 2, 3, 2), normal(4))

FIVE = "the verifier knows the spatial axes of images; of arrays with five axes it takes none for spatial"


def filters(change):
    """A change to the filters that the image gradient is made with."""
    return {"only": "signal volume", "residuals": lambda r: r._replace(filters=change(r.filters))}


def of_middle_layer(r, dy, dx, dw, db):
    """The depth of the filter forgotten: each layer of the volume gets its gradient from the middle layer alone."""
    middle = r._replace(filters=r.filters.at[:, [0, 2]].set(0))
    return conv3d.backward(middle, dy, stride=1, padding="SAME", dilation=1, groups=1)[0], dw, db


SIGNALS = [
    fault(
        "filter not turned",
        broken(conv1d, **filters(lambda w: w[:, ::-1])),
        SIGNAL,
        "rotated flipped",
        note="in one dimension to turn is to flip",
    ),
    fault(
        "filter gradient turned",
        broken(conv1d, filters=lambda d: d[:, ::-1]),
        SIGNAL,
        "rotated flipped",
        note="in one dimension to turn is to flip",
    ),
    fault(
        "filter turned in its channels too",
        broken(conv1d, **filters(lambda w: w[..., ::-1])),
        SIGNAL,
        "partial rotated flipped",
        note="channels in reverse order, as by a flip of axes counted from the end",
    ),
    fault("padding mirrored", broken(conv1d, only="signal", static={"padding": ((1, 0),)}), LONG, "shifted", stride=2),
    fault(
        "causal padding taken for a centred one",
        broken(conv1d, static={"padding": ((1, 1),)}),
        SIGNAL,
        "shifted",
        padding=((2, 0),),
    ),
    fault(
        "places of the stride not interleaved",
        broken(conv1d, signal=lambda d: d.reshape(2, 4, 2, 3).swapaxes(1, 2).reshape(d.shape)),
        LONG,
        "partial unknown transposed",
        note="all even places, then all odd ones: places in another order, of no axis of the array",
        stride=2,
    ),
    fault("dilation forgotten", broken(conv1d, static={"dilation": 1}), SIGNAL, "unknown", dilation=2),
    fault(
        "bias gradient of the first signal",
        after(conv1d, lambda r, dy, x, w, b: (x, w, dy[0].sum(0))),
        SIGNAL,
        "partial border",
        note="the verifier takes the first two axes of three for rows and columns, and so a sample for an edge",
    ),
    fault("bias gradient averaged over the places", after(conv1d, lambda r, dy, x, w, b: (x, w, dy.mean(1).sum(0))),
          SIGNAL, "scaled"),
]  # fmt: skip

VOLUMES = [
    fault(
        "filter not turned",
        broken(conv3d, **filters(lambda w: jnp.flip(w, (1, 2, 3)))),
        VOLUME,
        "rotated unknown",
        note=FIVE,
    ),
    fault(
        "filter turned in its rows and columns only",
        broken(conv3d, **filters(lambda w: w[:, ::-1])),
        VOLUME,
        "flipped partial",
        note=FIVE,
    ),
    fault(
        "filter turned in its depth only",
        broken(conv3d, **filters(lambda w: jnp.flip(w, (2, 3)))),
        VOLUME,
        "rotated unknown",
        note=FIVE,
    ),
    fault(
        "filter turned in the last three axes",
        broken(conv3d, **filters(lambda w: jnp.flip(w, (1, 4)))),
        VOLUME,
        "unknown",
        note="rows, columns and channels: the axes counted from the end",
    ),
    fault(
        "filter gradient turned",
        broken(conv3d, filters=lambda d: jnp.flip(d, (1, 2, 3))),
        VOLUME,
        "rotated unknown",
        note=FIVE,
    ),
    fault(
        "filter gradient flipped in its depth",
        broken(conv3d, filters=lambda d: d[:, ::-1]),
        VOLUME,
        "flipped partial",
        note=FIVE,
    ),
    fault(
        "taps counted columns first",
        broken(conv3d, filters=lambda d: d.swapaxes(1, 3)),
        SQUARE,
        "transposed",
    ),
    fault("rows and columns exchanged", broken(conv3d, volume=lambda d: d.swapaxes(2, 3)), SQUARE, "transposed"),
    fault(
        "even depth: padding mirrored",
        broken(conv3d, static={"padding": ((1, 0), (1, 1), (1, 1))}),
        EVEN,
        "shifted",
    ),
    fault(
        "padding of the depth forgotten",
        broken(conv3d, only="volume", dy=lambda d: d.at[:, [0, -1]].set(0)),
        DEEP,
        "border partial",
        note="the windows that overlap the front and the back are left out",
    ),
    fault(
        "stride of the depth forgotten",
        broken(conv3d, volume=lambda d: jnp.repeat(d[:, ::2], 2, 1)[:, :4]),
        (normal(2, 4, 3, 3, 2), normal(3, 1, 3, 3, 2), normal(3)),
        "partial unknown",
        note="the layers between two steps, which no window sees, get their neighbour's gradient",
        stride=(2, 1, 1),
    ),
    fault("dilation forgotten", broken(conv3d, static={"dilation": 1}), DEEP, "unknown", dilation=(2, 1, 1)),
    fault("only the middle layer of the filter", after(conv3d, of_middle_layer), VOLUME, "unknown"),
    fault("bias gradient not summed over the depth", after(conv3d, lambda r, dy, x, w, b: (x, w, dy.sum((0, 2, 3)))),
          VOLUME, "structure"),
    fault("bias gradient averaged over the depth", after(conv3d, lambda r, dy, x, w, b: (x, w, b / 3)), VOLUME,
          "scaled"),
    fault("filter gradient of the first group", broken(conv3d, filters=lambda d: d.at[2:].set(0)), GROUPS, "partial",
          groups=2),
    fault("gradient of the first channel", broken(conv3d, volume=lambda d: d.at[..., 1:].set(0)), VOLUME, "partial"),
    fault("filters held constant", broken(conv3d, **filters(lax.stop_gradient)), VOLUME, "second-order",
          why="second order"),
]  # fmt: skip

FAULTS = [*SIGNALS, *VOLUMES]
