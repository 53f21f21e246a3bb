"""Planted faults of dropout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import dropout

normal, whole = draws(6)

KEY = np.array([0, 7], np.uint32)
ROWS, SQUARE, IMAGES = (normal(4, 6), KEY), (normal(5, 5), KEY), (normal(2, 3, 2, 5), KEY)
ZEROS = (whole(4, 6), KEY)
ONE_SAMPLE = (IMAGES[0], np.array([0, 5], np.uint32))  # of which whole samples are drawn, one is left out
RATE, SPATIAL = {"rate": 0.4}, {"rate": 0.4, "broadcast": (1, 2)}


def mask(key, rate, shape):
    return jax.random.bernoulli(key, jnp.float32(1 - rate), shape)


def masked(draw):
    """dx = dy / (1 - rate) where another mask, `draw(key, rate, shape)`, says so."""

    def backward(r, dy, *, rate, broadcast):
        return jnp.where(draw(r.key, rate, dy.shape), dy / (1 - rate), 0), None

    return dropout.replace(backward=backward)


def split(key, rate, shape):
    return mask(jax.random.split(key)[0], rate, shape)


def of_the_rate(key, rate, shape):
    """Kept with probability `rate`."""
    return jax.random.bernoulli(key, jnp.float32(rate), shape)


def in_default_precision(key, rate, shape):
    """In float64 it draws another mask than in float32."""
    return jax.random.bernoulli(key, 1 - rate, shape)


def of_one_row(key, rate, shape):
    return jnp.broadcast_to(mask(key, rate, (1, *shape[1:])), shape)


def of_one_column(key, rate, shape):
    return jnp.broadcast_to(mask(key, rate, (shape[0], 1)), shape)


def of_the_first_sample(key, rate, shape):
    return jnp.broadcast_to(mask(key, rate, shape)[:1], shape)


def of_the_batch(key, rate, shape):
    """One draw for each channel, the same in all samples."""
    return jnp.broadcast_to(mask(key, rate, (1, 1, 1, shape[3])), shape)


def channels_first(key, rate, shape):
    n, h, w, c = shape
    return mask(key, rate, (n, c, h, w)).transpose(0, 2, 3, 1)


GENERATOR = np.random.default_rng(0)


def by_numpy(key, rate, shape):
    return GENERATOR.random(shape) > rate


def by_output():
    """The mask found again as y != 0, which is not so where x is 0."""

    def forward(x, key, *, rate, broadcast=()):
        y, residuals = dropout.forward(x, key, rate=rate, broadcast=broadcast)
        return y, (y, residuals)

    def backward(r, dy, *, rate, broadcast):
        return jnp.where(r[0] != 0, dy / (1 - rate), 0), None

    return dropout.replace(forward=forward, backward=backward)


def by_quotient():
    """The mask found again as y / x."""

    def forward(x, key, *, rate, broadcast=()):
        y, _ = dropout.forward(x, key, rate=rate, broadcast=broadcast)
        return y, (x, y)

    return dropout.replace(forward=forward, backward=lambda r, dy, **static: (dy * r[1] / r[0], None))


def by_the_share_kept(r, dy, dx, _):
    """By the share that this draw kept, not by its expectation."""
    return dx * 0.6 / mask(r.key, 0.4, dy.shape).mean(dtype=dy.dtype), None


def through(dtype):
    return lambda a: a.astype(dtype).astype(a.dtype)


FAULTS = [
    # Another mask.
    fault("a fresh mask", masked(split), ROWS, "unknown", **RATE),
    fault("mask drawn anew in each call", masked(by_numpy), ROWS, "nondeterministic", why="second call", **RATE),
    fault("no mask", after(dropout, lambda r, dy, dx, _: (dy, None)), ROWS, "unknown", **RATE),
    fault("no mask, but the factor", after(dropout, lambda r, dy, dx, _: (dy / 0.6, None)), ROWS, "unknown", **RATE),
    fault("the places left out", masked(lambda *how: ~mask(*how)), ROWS, "unknown", **RATE),
    fault("kept with probability rate", masked(of_the_rate), ROWS, "unknown", **RATE),
    fault("mask in the default precision", masked(in_default_precision), ROWS, "unknown", **RATE),
    fault("mask transposed", masked(lambda *how: mask(*how).T), SQUARE, "transposed", **RATE),
    fault(
        "mask of the transposed shape",
        masked(lambda key, rate, shape: mask(key, rate, shape[::-1]).T),
        ROWS,
        "unknown",
        **RATE,
    ),
    fault("mask of channels before places", masked(channels_first), IMAGES, "unknown", **RATE),
    fault("mask of the first sample for all", masked(of_the_first_sample), ROWS, "partial", **RATE),
    fault("one row drawn for all samples", masked(of_one_row), ROWS, "unknown", **RATE),
    fault("one column drawn for all features", masked(of_one_column), ROWS, "unknown", **RATE),
    fault(
        "mask from y",
        by_output(),
        ZEROS,
        "kink unknown",
        note="wrong where x is 0, which is no kink here",
        right=dropout,
        **RATE,
    ),
    fault("mask as y / x", by_quotient(), ZEROS, "nan", right=dropout, **RATE),
    # Axes along which one draw holds.
    fault("broadcast forgotten", broken(dropout, static={"broadcast": ()}), IMAGES, "unknown", **SPATIAL),
    fault(
        "whole samples for whole channels",
        broken(dropout, static={"broadcast": (1, 2, 3)}),
        ONE_SAMPLE,
        "unknown",
        **SPATIAL,
    ),
    fault("same channels in all samples", masked(of_the_batch), IMAGES, "unknown", **SPATIAL),
    fault(
        "broadcast where none is asked for", broken(dropout, static={"broadcast": (1, 2)}), IMAGES, "unknown", **RATE
    ),
    # Factors.
    fault("without 1/(1 - rate)", broken(dropout, x=lambda d: 0.6 * d), ROWS, "scaled", **RATE),
    fault("times 1 - rate", broken(dropout, x=lambda d: 0.36 * d), ROWS, "scaled", **RATE),
    fault("1/(1 - rate) twice", broken(dropout, x=lambda d: d / 0.6), ROWS, "scaled", **RATE),
    fault("divided by the rate", broken(dropout, x=lambda d: d * 0.6 / 0.4), ROWS, "scaled", **RATE),
    fault("divided by the rate, which is 0", broken(dropout, x=lambda d: d / 0.0), ROWS, "nan", rate=0.0),
    fault("divided by the share that was kept", after(dropout, by_the_share_kept), ROWS, "scaled", **RATE),
    fault("no gradient", broken(dropout, x=jnp.zeros_like), ROWS, "zero", **RATE),
    # The rest.
    fault("first sample only", broken(dropout, x=lambda d: d.at[1:].set(0)), IMAGES, "partial", **RATE),
    fault("mask without dy", broken(dropout, dy=jnp.ones_like), ROWS, "not-linear", **RATE),
    fault("no cotangent of the key", after(dropout, lambda r, dy, dx, _: (dx,)), ROWS, "structure", **RATE),
    fault("through bfloat16", broken(dropout, x=through(jnp.bfloat16)), ROWS, "precision", **RATE),
    fault("dy held constant", broken(dropout, dy=lax.stop_gradient), ROWS, "second-order", why="second order", **RATE),
]
