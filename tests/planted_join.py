"""Planted faults of what joins branches: add, concatenate, scale_channels."""

from __future__ import annotations

import jax.numpy as jnp
from planted_base import after, draws, fault

from jaxcnn import add, concatenate, scale_channels

normal, _ = draws(0)

PAIR = normal(4, 6), normal(4, 6)
UNEQUAL = normal(4, 4), normal(4, 2)
ONE_FOR_ALL = normal(3, 4, 2, 5), normal(5)
OF_EACH = normal(3, 4, 2, 5), normal(3, 5)


def joined(rule, change):
    """The rule with `change(dy, *right cotangents)` for its backward pass."""
    return after(rule, lambda residuals, dy, *right: change(dy, *right))


FAULTS = [
    fault("shares of a mean", joined(add, lambda dy, a, b: (a / 2, b / 2)), PAIR, "scaled"),
    fault("a difference's sign", joined(add, lambda dy, a, b: (a, -b)), PAIR, "negated"),
    fault("the first alone gets dy", joined(add, lambda dy, a, b: (a, jnp.zeros_like(b))), PAIR, "zero"),
    fault("one cotangent for both", joined(add, lambda dy, a, b: (a,)), PAIR, "structure"),
    fault("branches exchanged", joined(concatenate, lambda dy, a, b: (b, a)), PAIR, "swapped"),
    fault(
        "the second begins a channel early",
        joined(concatenate, lambda dy, a, b: (a, dy[:, 5:11])),
        PAIR,
        "shifted",
    ),
    fault("equal shares", joined(concatenate, lambda dy, a, b: (dy[:, :3], dy[:, 3:])), UNEQUAL, "structure"),
    fault("cut along the samples", joined(concatenate, lambda dy, a, b: (dy[:2], dy[2:])), PAIR, "structure"),
    fault("the second gets nothing", joined(concatenate, lambda dy, a, b: (a, jnp.zeros_like(b))), PAIR, "zero"),
    fault("dscale: a mean over the places", joined(scale_channels, lambda dy, dx, ds: (dx, ds / 8)), OF_EACH, "scaled"),
    fault(
        "dscale: the mean over the samples too",
        joined(scale_channels, lambda dy, dx, ds: (dx, ds / 24)),
        ONE_FOR_ALL,
        "scaled",
    ),
    fault(
        "dscale: of all samples, for each",
        joined(scale_channels, lambda dy, dx, ds: (dx, jnp.broadcast_to(ds.sum(0), ds.shape))),
        OF_EACH,
        "unknown",
    ),
    fault(
        "dscale: of the first sample",
        after(scale_channels, lambda r, dy, dx, _: (dx, (r.x[0] * dy[0]).sum((0, 1)))),
        ONE_FOR_ALL,
        "partial",
    ),
    fault("dscale: x forgotten", after(scale_channels, lambda r, dy, dx, _: (dx, dy.sum((1, 2)))), OF_EACH, "unknown"),
    fault("dx: the factor forgotten", joined(scale_channels, lambda dy, dx, ds: (dy, ds)), OF_EACH, "unknown"),
    fault(
        "dx: the first sample's factors for all",
        after(scale_channels, lambda r, dy, _, ds: (dy * r.scale[0], ds)),
        OF_EACH,
        "partial",
    ),
]
