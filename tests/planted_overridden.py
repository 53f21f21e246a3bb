"""Planted faults of forward passes whose own derivative is overridden, and backward passes that agree with it.

Autodiff of the forward pass agrees with them too; only finite differences show them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import draws, fault
from planted_small import standardised

import jaxcnn

normal, _ = draws(0)

ROWS, IMAGES = (normal(4, 5),), (normal(2, 4, 6, 3),)


def overridden(plain, forward, backward):
    """(a rule whose forward has `plain`'s value and `backward`'s derivative under autodiff, the right rule)."""
    rule = jaxcnn.Rule(lambda x: (forward(x), x), lambda x, dy: (backward(x, dy),), "overridden", batch_axes=(0,))
    right = jaxcnn.Rule(lambda x: (plain(x), x), lambda x, dy: jax.vjp(plain, x)[1](dy), "plain", batch_axes=(0,))
    return rule, right


def detached(mask):
    """x, those of its places constant where the mask is 0."""
    return lambda x: jnp.where(mask(x), x, lax.stop_gradient(x))


def not_in_frame(x):
    inside = np.zeros(x.shape, bool)
    inside[:, 1:-1, 1:-1] = True
    return inside


def in_first_half(x):
    return (np.arange(x.shape[0]) < x.shape[0] // 2).reshape(-1, *[1] * (x.ndim - 1))


@jax.custom_jvp
def _careless_tanh(x):
    return jnp.tanh(x)


_careless_tanh.defjvp(lambda primals, tangents: (jnp.tanh(*primals), tangents[0] * (1 - jnp.tanh(*primals))))


def _by_finite_differences(name, causes, arrays, plain, forward, backward, note=""):
    rule, right = overridden(plain, forward, backward)
    return fault(name, rule, arrays, causes, why="finite differences", right=right, note=note)


def _constant_statistics(x):
    mean, deviation = x.mean(-1, keepdims=True), jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return (x - lax.stop_gradient(mean)) / lax.stop_gradient(deviation)


FAULTS = [
    _by_finite_differences(
        "statistics constant in both passes",
        "unknown",
        ROWS,
        lambda x: standardised(x)[0],
        _constant_statistics,
        lambda x, dy: dy / standardised(x)[1],
    ),
    _by_finite_differences(
        "gradient scaled in both passes",
        "scaled",
        ROWS,
        jnp.sin,
        lambda x: lax.stop_gradient(0.9 * jnp.sin(x)) + 0.1 * jnp.sin(x),
        lambda x, dy: 0.1 * dy * jnp.cos(x),
    ),
    _by_finite_differences(
        "constant in both passes", "zero", ROWS, jnp.sin, lambda x: jnp.sin(lax.stop_gradient(x)), lambda x, dy: 0 * dy
    ),
    _by_finite_differences(
        "inner rule wrong in both passes",
        "unknown",
        ROWS,
        jnp.tanh,
        _careless_tanh,
        lambda x, dy: dy * (1 - jnp.tanh(x)),
    ),
    _by_finite_differences(
        "frame constant in both passes",
        "border",
        IMAGES,
        jnp.sin,
        lambda x: jnp.sin(detached(not_in_frame)(x)),
        lambda x, dy: jnp.where(not_in_frame(x), dy * jnp.cos(x), 0),
    ),
    _by_finite_differences(
        "half the batch constant in both passes",
        "partial",
        ROWS,
        jnp.sin,
        lambda x: jnp.sin(detached(in_first_half)(x)),
        lambda x, dy: jnp.where(in_first_half(x), dy * jnp.cos(x), 0),
    ),
    _by_finite_differences(
        "product rule's second half constant in both passes",
        "unknown",
        ROWS,
        lambda x: x * jax.nn.sigmoid(x),
        lambda x: x * lax.stop_gradient(jax.nn.sigmoid(x)),
        lambda x, dy: dy * jax.nn.sigmoid(x),
    ),
]
