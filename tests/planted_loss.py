"""Planted faults of softmax_cross_entropy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import softmax_cross_entropy
from jaxcnn.rules.loss import SoftmaxCrossEntropyResiduals

normal, _ = draws(0)


def rows_of(*shape):
    weights = np.exp(normal(*shape))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32).astype(np.float64)


LOGITS, INDICES = normal(4, 3), np.array([2, 0, 1, 1], np.int32)
LARGE = np.array([[1000.0, 0.0, -2.0], [3.0, 1.0, 2.0], [0.5, -1000.0, 1.0], [2.0, -1.0, 0.0]])
BY_INDEX, LARGE_BY_INDEX = (LOGITS, INDICES), (LARGE, INDICES)
BY_ROW, LARGE_BY_ROW, ANY_ROW = (LOGITS, rows_of(4, 3)), (LARGE, rows_of(4, 3)), (LOGITS, normal(4, 3))


def delta(softmax=jax.nn.softmax, target=None, count=4.0, sign=1.0):
    """softmax_cross_entropy of indices with (a - y) / count, parts of it exchanged."""

    def backward(r, dy, **static):
        y = jax.nn.one_hot(r.labels, r.logits.shape[-1], dtype=r.logits.dtype)
        return sign * (softmax(r.logits) - (y if target is None else target(y))) / count * dy, None

    return softmax_cross_entropy.replace(backward=backward)


def naive(z):
    """Without subtracting the largest: e^1000 is infinite."""
    return jnp.exp(z) / jnp.exp(z).sum(-1, keepdims=True)


def without_sum(r, dy, **static):
    """The source's delta, which holds where the labels of a sample sum to one."""
    _, labels = softmax_cross_entropy.backward(r, dy, **static)
    return (jax.nn.softmax(r.logits) - r.labels) * dy / 4, labels


def label_gradient(formula):
    return after(softmax_cross_entropy, lambda r, dy, logits, labels: (logits, formula(r.logits) * dy / 4))


def constant_logits(r):
    return SoftmaxCrossEntropyResiduals(lax.stop_gradient(r.logits), r.labels)


FAULTS = [
    fault("1/N missing", delta(count=1), BY_INDEX, "scaled"),
    fault("1/N twice", delta(count=16), BY_INDEX, "scaled"),
    fault("1/N of the classes", delta(count=3), BY_INDEX, "scaled"),
    fault("y - a", delta(sign=-1), BY_INDEX, "negated"),
    fault("a for a - y", delta(target=jnp.zeros_like), BY_INDEX, "unknown"),
    fault("softmax over the batch", delta(lambda z: jax.nn.softmax(z, 0)), BY_INDEX, "unknown"),
    fault("sigmoid for softmax", delta(jax.nn.sigmoid), BY_INDEX, "unknown"),
    fault(
        "labels counted from one",
        delta(target=lambda y: jnp.roll(y, 1, -1)),
        BY_INDEX,
        "unknown",
        note="y is shifted, a is not",
    ),
    fault(
        "labels of the next sample",
        delta(target=lambda y: jnp.roll(y, 1, 0)),
        BY_INDEX,
        "unknown partial",
        note="y comes from another sample, a does not",
    ),
    fault("labels smoothed", delta(target=lambda y: 0.9 * y + 0.1 / 3), BY_INDEX, "unknown"),
    fault(
        "dy left out",
        broken(softmax_cross_entropy, dy=jnp.ones_like),
        BY_INDEX,
        "not-linear",
        note="right where the loss is the last function",
    ),
    fault("first sample only", broken(softmax_cross_entropy, logits=lambda d: d.at[1:].set(0)), BY_INDEX, "partial"),
    fault("softmax overflows", delta(naive), LARGE_BY_INDEX, "nan"),
    fault(
        "softmax in float16",
        delta(lambda z: jax.nn.softmax(z.astype(jnp.float16)).astype(z.dtype)),
        BY_INDEX,
        "precision",
    ),
    fault(
        "logits held constant",
        broken(softmax_cross_entropy, residuals=constant_logits),
        BY_INDEX,
        "second-order",
        why="second order",
    ),
    fault(
        "batch size written into the code",
        delta(),
        BY_INDEX,
        "scaled structure unknown",
        why="smaller batch",
        note="divides by 4, whatever N is: a wrong factor, but only for another batch",
    ),
    fault(
        "a cotangent for the indices only",
        after(softmax_cross_entropy, lambda r, dy, z, y: (None, z)),
        BY_INDEX,
        "structure",
    ),
    fault("label gradient missing", broken(softmax_cross_entropy, labels=jnp.zeros_like), BY_ROW, "zero"),
    fault("label gradient None", after(softmax_cross_entropy, lambda r, dy, z, y: (z, None)), BY_ROW, "structure"),
    fault("label gradient negated", broken(softmax_cross_entropy, labels=jnp.negative), BY_ROW, "negated"),
    fault("label gradient: 1/N missing", broken(softmax_cross_entropy, labels=lambda d: 4 * d), BY_ROW, "scaled"),
    fault("label gradient without the logarithm", label_gradient(lambda z: -jax.nn.softmax(z)), BY_ROW, "unknown"),
    fault(
        "label gradient: 1e-7 in the logarithm",
        label_gradient(lambda z: -jnp.log(jax.nn.softmax(z) + 1e-7)),
        BY_ROW,
        "precision unknown",
        note="an error of formula, but of a rounding error's size",
    ),
    fault(
        "label gradient: logarithm of zero", label_gradient(lambda z: -jnp.log(jax.nn.softmax(z))), LARGE_BY_ROW, "nan"
    ),
    fault("logits and labels exchanged", after(softmax_cross_entropy, lambda r, dy, z, y: (y, z)), BY_ROW, "swapped"),
    fault("labels taken to sum to one", softmax_cross_entropy.replace(backward=without_sum), ANY_ROW, "unknown"),
    fault(
        "one-hot of the largest label",
        broken(
            softmax_cross_entropy,
            only="logits",
            residuals=lambda r: r._replace(labels=jax.nn.one_hot(r.labels.argmax(-1), 3, dtype=r.labels.dtype)),
        ),
        BY_ROW,
        "unknown",
    ),
]
