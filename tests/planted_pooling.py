"""Planted faults of max_pool, each convention for ties."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import max_pool
from jaxcnn.rules.window import geometry, tap, untap

normal, whole = draws(0)

DISTINCT, TIED = (normal(2, 6, 4, 3),), (whole(2, 6, 4, 3),)
AFTER_RELU = (np.maximum(whole(2, 6, 4, 3), 0),)
ODD = (normal(2, 5, 4, 3),)
CHANNELS = (normal(2, 6, 4, 2),)
OVERLAP = {"window": 3, "stride": 1}


def tap_by_tap(change, fill=-np.inf):
    """A backward pass that goes through the taps of a window: `change(won, dy)` are the masks with their shares."""

    def backward(r, dy, *, window, stride, padding, ties):
        stride = window if stride is None else stride
        g = geometry("max_pool", r.x.shape[1:3], (window, window), stride, 1, padding)
        padded = jnp.pad(r.x, ((0, 0), *g.padding, (0, 0)), constant_values=fill)
        taps = [tap(padded, place, g) for place in g.taps]
        largest = functools.reduce(jnp.maximum, taps)
        won = jnp.stack([(t == largest).astype(dy.dtype) for t in taps])
        return [untap(share * dy, place, g) for share, place in zip(change(won), g.taps, strict=True)]

    return backward


def summed(change, **kwargs):
    backward = tap_by_tap(change, **kwargs)
    return max_pool.replace(backward=lambda r, dy, **static: (sum(backward(r, dy, **static)),))


def overwritten(r, dy, **static):
    """`dx[winner] = dy`, where `+=` is meant: of several windows the last one stays."""
    dx = jnp.zeros_like(r.x)
    for part in tap_by_tap(first)(r, dy, **static)[::-1]:
        dx = jnp.where(part != 0, part, dx)
    return (dx,)


def first(won):
    return won * (jnp.cumsum(won, 0) == 1)


def last(won):
    return won * (jnp.cumsum(won[::-1], 0)[::-1] == 1)


def column_first(won):
    order = jnp.array([0, 2, 1, 3])  # of a 2×2 window; its own inverse
    return first(won[order])[order]


def untied(won):
    return won * (won.sum(0) == 1)


def shared(power):
    return lambda won: won / won.sum(0) ** power


def of_channel_0(won):
    return jnp.broadcast_to(first(won)[..., :1], won.shape)


def of_sample_0(won):
    return jnp.broadcast_to(first(won)[:, :1], won.shape)


def exchanged(won):
    """The winner's row and column within its window exchanged."""
    return first(won)[jnp.array([0, 2, 1, 3])]


def spread(dy):
    return jnp.repeat(jnp.repeat(dy, 2, 1), 2, 2)


def by_quotient(r, dy, dx):
    """The mask as x / y, which is 1 at the maximum."""
    return (jnp.where(dx != 0, spread(dy) * (r.x / spread(r.y)), 0 * spread(r.y) / spread(r.y)),)


FAULTS = [
    fault("all ties get the gradient", broken(max_pool, static={"ties": "all"}), TIED, "ties"),
    fault("ties share the gradient", broken(max_pool, static={"ties": "split"}), TIED, "ties"),
    fault("the last tie gets the gradient", summed(last), TIED, "ties"),
    fault("the first tie in column-major order gets the gradient", summed(column_first), TIED, "ties"),
    fault("no tie gets the gradient", summed(untied), TIED, "ties"),
    fault("no tie gets the gradient, after a ReLU", summed(untied), AFTER_RELU, "ties"),
    fault("split: all get it", broken(max_pool, static={"ties": "all"}), TIED, "ties", ties="split"),
    fault("split: the first gets it", broken(max_pool, static={"ties": "first"}), TIED, "ties", ties="split"),
    fault("split: divided by the square", summed(shared(2)), TIED, "ties", ties="split"),
    fault("split: divided by the window's size", summed(lambda won: won / 4), DISTINCT, "scaled", ties="split"),
    fault(
        "split: divided by the window's size, with ties",
        summed(lambda won: won / 4),
        TIED,
        "ties unknown scaled",
        note="scaled by 1/4 where no ties are, another factor at ties",
        ties="split",
    ),
    fault("all: the first gets it", broken(max_pool, static={"ties": "first"}), TIED, "ties", ties="all"),
    fault("all: equal shares", broken(max_pool, static={"ties": "split"}), TIED, "ties", ties="all"),
    fault("all: none gets it", summed(untied), TIED, "ties", ties="all"),
    fault("all: negated", broken(max_pool, x=jnp.negative), TIED, "negated", ties="all"),
    fault("split: negated", broken(max_pool, x=jnp.negative), TIED, "negated", ties="split"),
    fault(
        "overlapping windows overwrite one another",
        max_pool.replace(backward=overwritten),
        DISTINCT,
        "unknown partial",
        note="some windows are left out, which are neither samples nor channels",
        **OVERLAP,
    ),
    fault(
        "padding wins",
        summed(first, fill=0.0),
        (-np.abs(normal(2, 6, 4, 3)),),
        "border",
        note="the backward pass finds the maxima anew, padded with 0 instead of -∞",
        window=3,
        stride=2,
        padding="SAME",
    ),
    fault(
        "last row missing",
        broken(max_pool, x=lambda d: d.at[:, -1].set(0)),
        ODD,
        "border",
        note="the windows that are not full are left out",
        padding="SAME",
    ),
    fault("last row cut off", broken(max_pool, x=lambda d: d[:, :4]), ODD, "structure"),
    fault(
        "winners one row too low",
        broken(max_pool, x=lambda d: jnp.pad(d, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]),
        DISTINCT,
        "shifted",
    ),
    fault(
        "winners one column too far left",
        broken(max_pool, x=lambda d: jnp.pad(d, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :, 1:]),
        DISTINCT,
        "shifted",
        window=3,
        stride=1,
        padding="SAME",
    ),
    fault("the whole window gets the gradient", after(max_pool, lambda r, dy, dx: (spread(dy),)), DISTINCT, "unknown"),
    fault("average pooling's gradient", after(max_pool, lambda r, dy, dx: (spread(dy) / 4,)), DISTINCT, "unknown"),
    fault(
        "row and column of the winner exchanged",
        summed(exchanged),
        DISTINCT,
        "unknown",
        note="within each window, so that no axis of the array is exchanged",
    ),
    fault("winners of channel 0 for all channels", summed(of_channel_0), CHANNELS, "partial"),
    fault("winners of sample 0 for all samples", summed(of_sample_0), DISTINCT, "partial"),
    fault("first sample only", broken(max_pool, x=lambda d: d.at[1:].set(0)), DISTINCT, "partial", **OVERLAP),
    fault("times the window's size", broken(max_pool, x=lambda d: d * 9), DISTINCT, "scaled", **OVERLAP),
    fault("the mask alone", broken(max_pool, dy=jnp.ones_like), DISTINCT, "not-linear", note="g without dy"),
    fault("mask as quotient", after(max_pool, by_quotient), AFTER_RELU, "nan", note="0/0 in windows of zeros"),
    fault("dy held constant", broken(max_pool, dy=lax.stop_gradient), DISTINCT, "second-order", why="second order"),
]
