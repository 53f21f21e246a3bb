"""Planted faults of label smoothing, the binary losses and the losses of numbers."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import (
    huber_loss,
    mean_squared_error,
    sigmoid_binary_cross_entropy,
    sigmoid_focal_loss,
    softmax_cross_entropy,
)

normal, whole = draws(0)

N, K = 4, 3
LOGITS, INDICES = normal(N, K), np.array([2, 0, 1, 1], np.int32)
DECISIONS = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 0]], np.int32)
PROBABILITIES = (1 / (1 + np.exp(-normal(N, K)))).astype(np.float32).astype(np.float64)
ROWS = (PROBABILITIES / PROBABILITIES.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
BY_INDEX, BY_ROW = (LOGITS, INDICES), (LOGITS, ROWS)
DECIDED, SOFT = (LOGITS, DECISIONS), (LOGITS, PROBABILITIES)
LARGE = (np.array([[200.0, 0.5, -2.0], [3.0, -300.0, 2.0], [0.5, 90.0, 100.0], [-800.0, -1.0, 0.25]]), DECISIONS)
NUMBERS = (normal(N, K), normal(N, K))
APART = (4 * normal(N, K), normal(N, K))  # on both sides of delta
AT_DELTA = (whole(N, K), whole(N, K))


def per_element(rule, dlogits, dlabels=None):
    """The binary rule with these derivatives for one element, functions of (z, y, **static); the mean is right."""

    def backward(r, dy, **static):
        z, y = r.logits, r.labels.astype(r.logits.dtype)
        share = dy / z.size
        right = rule.backward(r, dy, **static)
        of_labels = right[1] if dlabels is None else dlabels(z, y, **static) * share
        return right[0] if dlogits is None else dlogits(z, y, **static) * share, of_labels

    return rule.replace(backward=backward)


def of_errors(rule, change):
    """The rule of numbers with this function of (errors, their share of dy, **static) for the predictions' gradient.

    Its residuals are the predictions and the targets, as many write it.
    """

    def forward(predictions, targets, **static):
        return rule.forward(predictions, targets, **static)[0], (predictions, targets)

    def backward(r, dy, **static):
        dx = change(r[0] - r[1], dy / r[0].size, **static)
        return dx, -dx

    forward.__signature__ = inspect.signature(rule.forward)
    return rule.replace(forward=forward, backward=backward)


# --- label smoothing ------------------------------------------------------------------------------------------------


def smoothed(target, rule=softmax_cross_entropy):
    """a - target(one-hot or soft y, s) for the logits' gradient, over N."""

    def backward(r, dy, *, label_smoothing):
        right = rule.backward(r, dy, label_smoothing=label_smoothing)
        y = r.labels if r.labels.ndim == 2 else jax.nn.one_hot(r.labels, K, dtype=r.logits.dtype)
        return (jax.nn.softmax(r.logits) - target(y, label_smoothing)) * dy / N, right[1]

    return rule.replace(backward=backward)


def next_sample(y):
    return jnp.roll(y, 1, 0)


SMOOTHING = {"label_smoothing": 0.2}
SMOOTHED = [
    fault("smoothing forgotten", broken(softmax_cross_entropy, static={"label_smoothing": 0.0}), BY_INDEX, "unknown",
          **SMOOTHING),
    fault("smoothing forgotten", broken(softmax_cross_entropy, static={"label_smoothing": 0.0}), BY_ROW, "unknown",
          **SMOOTHING),
    fault("spread over K - 1 classes", smoothed(lambda y, s: (1 - s) * y + s / (K - 1) * (1 - y)), BY_INDEX, "unknown",
          **SMOOTHING),
    fault("spread over N classes", smoothed(lambda y, s: (1 - s) * y + s / N), BY_INDEX, "unknown", **SMOOTHING),
    fault("s for s/K", smoothed(lambda y, s: (1 - s) * y + s), BY_ROW, "unknown", **SMOOTHING),
    fault("1 - s forgotten", smoothed(lambda y, s: y + s / K), BY_INDEX, "unknown", **SMOOTHING),
    fault("1 - s and s exchanged", smoothed(lambda y, s: s * y + (1 - s) / K), BY_INDEX, "unknown", **SMOOTHING),
    fault("smoothed twice", smoothed(lambda y, s: (1 - s) ** 2 * y + (1 - (1 - s) ** 2) / K), BY_INDEX, "unknown",
          **SMOOTHING),
    fault("smoothed: 1/(N·K) for 1/N", broken(softmax_cross_entropy, logits=lambda d: d / K), BY_INDEX, "scaled",
          **SMOOTHING),
    fault("smoothed: y' - a", broken(softmax_cross_entropy, logits=jnp.negative), BY_ROW, "negated", **SMOOTHING),
    fault("smoothed: label gradient without 1 - s", broken(softmax_cross_entropy, labels=lambda d: d / 0.8), BY_ROW,
          "scaled", **SMOOTHING),
    fault("smoothed: label gradient times s", broken(softmax_cross_entropy, labels=lambda d: d / 4), BY_ROW, "scaled",
          **SMOOTHING),
    fault("smoothed: label gradient missing", broken(softmax_cross_entropy, labels=jnp.zeros_like), BY_ROW, "zero",
          **SMOOTHING),
]  # fmt: skip

# --- binary cross-entropy -------------------------------------------------------------------------------------------

BCE, sigmoid = sigmoid_binary_cross_entropy, jax.nn.sigmoid


def of_probabilities(z, y):
    """By the chain rule, with -y/p + (1 - y)/(1 - p), which is 0/0 where p is 1 or 0."""
    p = sigmoid(z)
    return (-y / p + (1 - y) / (1 - p)) * p * (1 - p)


BINARY = [
    fault("1/N missing", broken(BCE, logits=lambda d: d * N * K), DECIDED, "scaled"),
    fault("1/N for 1/(N·K)", broken(BCE, logits=lambda d: d * K), DECIDED, "scaled"),
    fault("1/N twice", broken(BCE, logits=lambda d: d / (N * K)), DECIDED, "scaled"),
    fault("y - p", broken(BCE, logits=jnp.negative), DECIDED, "negated"),
    fault("σ' multiplied once more", per_element(BCE, lambda z, y: (sigmoid(z) - y) * sigmoid(z) * sigmoid(-z)),
          DECIDED, "unknown"),
    fault("p for p - y", per_element(BCE, lambda z, y: sigmoid(z)), DECIDED, "unknown"),
    fault("softmax for sigmoid", per_element(BCE, lambda z, y: jax.nn.softmax(z) - y), DECIDED, "unknown"),
    fault("z for σ(z)", per_element(BCE, lambda z, y: z - y), DECIDED, "unknown"),
    fault("σ(-z) for σ(z)", per_element(BCE, lambda z, y: sigmoid(-z) - y), DECIDED, "unknown"),
    fault("0 and 1 exchanged", per_element(BCE, lambda z, y: sigmoid(z) - (1 - y)), DECIDED, "unknown"),
    fault("soft labels made hard", per_element(BCE, lambda z, y: sigmoid(z) - (y > 0.5)), SOFT, "unknown"),
    fault("labels of the next sample", per_element(BCE, lambda z, y: sigmoid(z) - next_sample(y)), DECIDED,
          "unknown partial", note="y comes from another sample, p does not"),
    fault("0 · ∞ by the chain rule", per_element(BCE, of_probabilities), LARGE, "nan"),
    fault("e^z / (1 + e^z)", per_element(BCE, lambda z, y: jnp.exp(z) / (1 + jnp.exp(z)) - y), LARGE, "nan",
          why="float32"),
    fault("p kept away from 0 and 1 by 1e-7",
          per_element(BCE, lambda z, y: jnp.clip(sigmoid(z), 1e-7, 1 - 1e-7) - y), LARGE,
          "precision unknown", note="an error of formula, but of a rounding error's size"),
    fault("σ in float16", per_element(BCE, lambda z, y: sigmoid(z.astype(jnp.float16)).astype(z.dtype) - y), DECIDED,
          "precision"),
    fault("dy left out", broken(BCE, dy=jnp.ones_like), DECIDED, "not-linear"),
    fault("logits held constant", broken(BCE, residuals=lambda r: r._replace(logits=lax.stop_gradient(r.logits))),
          DECIDED, "second-order", why="second order"),
    fault("batch size written into the code", per_element(BCE, lambda z, y: (sigmoid(z) - y) * z.size / (N * K)),
          DECIDED, "scaled structure unknown", why="smaller batch",
          note="divides by 12, whatever N is: a wrong factor, but only for another batch"),
    fault("label gradient missing", broken(BCE, labels=jnp.zeros_like), SOFT, "zero"),
    fault("label gradient None", after(BCE, lambda r, dy, z, y: (z, None)), SOFT, "structure"),
    fault("label gradient z for -z", broken(BCE, labels=jnp.negative), SOFT, "negated"),
    fault("label gradient of the first term alone", per_element(BCE, None, lambda z, y: jax.nn.softplus(-z)), SOFT,
          "unknown"),
    fault("label gradient for the logits", after(BCE, lambda r, dy, z, y: (y, y)), SOFT, "swapped"),
    fault("exchanged", after(BCE, lambda r, dy, z, y: (y, z)), SOFT, "swapped"),
]  # fmt: skip

# --- focal loss -----------------------------------------------------------------------------------------------------

FOCAL = sigmoid_focal_loss


def focal(
    z,
    y,
    *,
    alpha,
    gamma,
    power=lambda m, gamma: m**gamma,
    own=1.0,
    sign=1.0,
    weights=lambda y, a: a * y + (1 - a) * (1 - y),
):
    """dL/dz of one element, as it is written without care for large logits; parts of it exchanged.

    power: for m^γ. own: the factor of its own derivative. sign: of that. weights: by label and α.
    """
    p, q = sigmoid(z), sigmoid(-z)
    m, costs = (1 - y) * p + y * q, -y * jnp.log(p) - (1 - y) * jnp.log(q)
    dm = sign * own * gamma * power(m, gamma - 1) * (1 - 2 * y) * p * q
    return (1 if alpha is None else weights(y, alpha)) * (power(m, gamma) * (p - y) + dm * costs)


def exchanged(**parts):
    return per_element(FOCAL, lambda z, y, **static: focal(z, y, **static, **parts))


def of_right_answer(z, y, *, alpha, gamma):
    """p_t^γ: what is decided right counts more."""
    return focal(z, y, alpha=alpha, gamma=gamma, power=lambda m, g: (1 - m) ** g, sign=-1.0)


WEIGHTED = {"alpha": 0.25, "gamma": 1.5}
FOCUSED = [
    fault("the derivative of m^γ missing", exchanged(own=0.0), DECIDED, "unknown", **WEIGHTED),
    fault("the derivative of m^γ without γ", per_element(FOCAL, lambda z, y, *, alpha, gamma: focal(
        z, y, alpha=alpha, gamma=gamma, own=1 / gamma)), DECIDED, "unknown", **WEIGHTED),
    fault("the derivative of m^γ negated", exchanged(sign=-1.0), DECIDED, "unknown", **WEIGHTED),
    fault("the derivative of m^γ with m^γ for m^(γ-1)", per_element(FOCAL, lambda z, y, *, alpha, gamma: focal(
        z, y, alpha=alpha, gamma=gamma, power=lambda m, g: m**gamma)), DECIDED, "unknown", **WEIGHTED),
    fault("m^γ held constant", per_element(FOCAL, lambda z, y, *, alpha, gamma: focal(
        z, y, alpha=alpha, gamma=gamma, power=lambda m, g: lax.stop_gradient(m) ** g)), DECIDED, "second-order",
        why="second order", **WEIGHTED),
    fault("p_t for 1 - p_t", per_element(FOCAL, of_right_answer), DECIDED, "unknown", **WEIGHTED),
    fault("m^γ forgotten", broken(FOCAL, static={"gamma": 0.0}), DECIDED, "unknown", **WEIGHTED),
    fault("γ + 1 for γ", broken(FOCAL, static={"gamma": 2.5}), DECIDED, "unknown", **WEIGHTED),
    fault("γ - 1 for γ", broken(FOCAL, static={"gamma": 0.5}), DECIDED, "unknown", **WEIGHTED),
    fault("the default γ", broken(FOCAL, static={"gamma": 2.0}), DECIDED, "unknown", **WEIGHTED),
    fault("α for 0, 1 - α for 1", broken(FOCAL, static={"alpha": 0.75}), DECIDED, "unknown", **WEIGHTED),
    fault("α forgotten", broken(FOCAL, static={"alpha": None}), DECIDED, "unknown", **WEIGHTED),
    fault("α for both", exchanged(weights=lambda y, a: a), DECIDED, "unknown", **WEIGHTED),
    fault("α twice", exchanged(weights=lambda y, a: (a * y + (1 - a) * (1 - y)) ** 2), DECIDED, "unknown", **WEIGHTED),
    fault("focal: sum for mean", broken(FOCAL, logits=lambda d: d * N * K), DECIDED, "scaled", **WEIGHTED),
    fault("focal: mean over the labels 1", after(FOCAL, lambda r, dy, z, y: (z * r.labels.size / r.labels.sum(), y)),
          DECIDED, "scaled", **WEIGHTED),
    fault("m^(γ-1) at m = 0", exchanged(), LARGE, "nan", alpha=None, gamma=0.5),
    fault("log p of p = 0", exchanged(), LARGE, "nan", alpha=None, gamma=2.0),
    fault("focal: negated", broken(FOCAL, logits=jnp.negative), SOFT, "negated", **WEIGHTED),
    fault("focal: label gradient missing", broken(FOCAL, labels=jnp.zeros_like), SOFT, "zero", **WEIGHTED),
    fault("focal: label gradient of the cross-entropy alone",
          per_element(FOCAL, None, lambda z, y, **static: -z * ((1 - y) * sigmoid(z) + y * sigmoid(-z)) ** 1.5), SOFT,
          "unknown", **WEIGHTED),
    fault("focal: label gradient without dα/dy", after(FOCAL, lambda r, dy, z, y: (
        z, FOCAL.backward(r, dy, alpha=0.5, gamma=1.5)[1] * 2 * (0.25 * r.labels + 0.75 * (1 - r.labels)))), SOFT,
        "unknown", **WEIGHTED),
    fault("focal: exchanged", after(FOCAL, lambda r, dy, z, y: (y, z)), SOFT, "swapped", **WEIGHTED),
    fault("focal: soft labels made hard", broken(FOCAL, only="logits", residuals=lambda r: r._replace(
        labels=(r.labels > 0.5).astype(r.labels.dtype))), SOFT, "unknown", **WEIGHTED),
    fault("focal: first sample only", broken(FOCAL, logits=lambda d: d.at[1:].set(0)), DECIDED, "partial", **WEIGHTED),
]  # fmt: skip

# --- losses of numbers ----------------------------------------------------------------------------------------------

MSE = mean_squared_error


def through_sigmoid(errors, share):
    """As though the predictions were a sigmoid's, whose derivative its own backward pass multiplies."""
    a = sigmoid(errors)
    return 2 * errors * a * (1 - a) * share


SQUARED = [
    fault("factor 2 forgotten", broken(MSE, predictions=lambda d: d / 2, targets=lambda d: d / 2), NUMBERS, "scaled"),
    fault("1/N missing", broken(MSE, predictions=lambda d: d * N * K), NUMBERS, "scaled"),
    fault("1/N for 1/(N·K)", broken(MSE, predictions=lambda d: d * K), NUMBERS, "scaled"),
    fault("target - prediction", broken(MSE, predictions=jnp.negative), NUMBERS, "negated"),
    fault("σ' of the layer before multiplied in", of_errors(MSE, through_sigmoid), NUMBERS, "unknown", right=MSE),
    fault("the sign of the error alone", of_errors(MSE, lambda r, s: 2 * jnp.sign(r) * s), NUMBERS, "unknown",
          right=MSE),
    fault("the size of the error alone", of_errors(MSE, lambda r, s: 2 * jnp.abs(r) * s), NUMBERS, "unknown",
          right=MSE),
    fault("the loss for the error", of_errors(MSE, lambda r, s: r**2 * s), NUMBERS, "unknown", right=MSE),
    fault("targets permuted", after(MSE, lambda r, dy, x, t: (x[::-1], t)), NUMBERS, "partial flipped",
          note="of two axes the verifier takes rows for samples or for rows of an image"),
    fault("target gradient missing", broken(MSE, targets=jnp.zeros_like), NUMBERS, "zero"),
    fault("target gradient not negated", broken(MSE, targets=jnp.negative), NUMBERS, "negated swapped",
          note="the one is the other with its sign changed"),
    fault("predictions and targets exchanged", after(MSE, lambda r, dy, x, t: (t, x)), NUMBERS, "swapped negated",
          note="the one is the other with its sign changed"),
    fault("errors held constant", broken(MSE, residuals=lax.stop_gradient), NUMBERS, "second-order",
          why="second order"),
    fault("dy left out", broken(MSE, dy=jnp.ones_like), NUMBERS, "not-linear"),
    fault("summed over the outputs",
          broken(MSE, predictions=lambda d: jnp.broadcast_to(d.sum(1, keepdims=True), d.shape)), NUMBERS, "unknown"),
]  # fmt: skip


def huber(change):
    return of_errors(huber_loss, change)


DELTA = {"delta": 1.5}
HUBER = [
    fault("cut off at 1, not at delta", broken(
        huber_loss, residuals=lambda r: r._replace(clipped=jnp.clip(r.clipped, -1, 1))), APART, "unknown", **DELTA),
    fault("slope 1 for delta", huber(lambda r, s, *, delta: jnp.where(jnp.abs(r) <= delta, r, jnp.sign(r)) * s), APART,
          "unknown partial", right=huber_loss, note="wrong by the factor delta, outside alone", **DELTA),
    fault("not cut off", huber(lambda r, s, *, delta: r * s), APART, "unknown partial", right=huber_loss,
          note="right inside", **DELTA),
    fault("inside and outside exchanged",
          huber(lambda r, s, *, delta: jnp.where(jnp.abs(r) > delta, r, delta * jnp.sign(r)) * s), APART, "unknown",
          right=huber_loss, **DELTA),
    fault("0 outside", huber(lambda r, s, *, delta: jnp.where(jnp.abs(r) <= delta, r, 0) * s), APART,
          "partial unknown", right=huber_loss, note="zero at scattered elements, no slice", **DELTA),
    fault("sign lost outside", huber(lambda r, s, *, delta: jnp.where(jnp.abs(r) <= delta, r, delta) * s), APART,
          "unknown partial", right=huber_loss, note="right where the error is positive", **DELTA),
    fault("cut off at delta²", huber(lambda r, s, *, delta: jnp.clip(r, -(delta**2), delta**2) * s), APART,
          "unknown partial", right=huber_loss, note="right inside", **DELTA),
    fault("0 at just delta", huber(lambda r, s, *, delta: jnp.where(jnp.abs(r) < delta, r, jnp.where(
        jnp.abs(r) > delta, delta * jnp.sign(r), 0)) * s), AT_DELTA, "kink", right=huber_loss, delta=2.0),
    fault("twice the slope, as of a square without 1/2", broken(
        huber_loss, predictions=lambda d: 2 * d, targets=lambda d: 2 * d), APART, "scaled", **DELTA),
    fault("slope of pseudo-Huber", huber(lambda r, s, *, delta: r / jnp.sqrt(1 + (r / delta) ** 2) * s), APART,
          "unknown", right=huber_loss, **DELTA),
    fault("huber: sum for mean", broken(huber_loss, predictions=lambda d: d * N * K), APART, "scaled", **DELTA),
    fault("huber: negated", broken(huber_loss, predictions=jnp.negative), APART, "negated swapped",
          note="the targets' gradient is the predictions' with its sign changed", **DELTA),
    fault("huber: target gradient missing", broken(huber_loss, targets=jnp.zeros_like), APART, "zero", **DELTA),
    fault("huber: clipped held constant", broken(huber_loss, residuals=lax.stop_gradient), APART, "second-order",
          why="second order", **DELTA),
    fault("huber: the next sample's", broken(huber_loss, predictions=lambda d: jnp.roll(d, 1, 0)), APART,
          "partial shifted", note="moved round by one sample: an offset as well as an order", **DELTA),
]  # fmt: skip

FAULTS = [*SMOOTHED, *BINARY, *FOCUSED, *SQUARED, *HUBER]
