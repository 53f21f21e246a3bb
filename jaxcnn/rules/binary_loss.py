"""Losses of decisions between no and yes, each by a sigmoid of its own: the mean over all decisions."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats, require_number, wide


class BinaryResiduals(NamedTuple):
    logits: Array  # as given; the probabilities are computed again
    labels: Array  # as given


def sigmoid_binary_cross_entropy_forward(logits: Array, labels: Array) -> tuple[Array, BinaryResiduals]:
    """Cross-entropy of the sigmoid of each logit, the mean over all elements.

    Args:
      logits: any shape, (N,) or (N, classes) for classes that do not exclude each other, floating, finite. ±1e4 is no
        difficulty.
      labels: of the logits' shape: 0 and 1, whole numbers or truth values; or the probability of a 1, floating, then of
        the logits' dtype and differentiable like them.

    Returns:
      A scalar of the logits' dtype. A whole number other than 0 and 1 raises ValueError where its value is known; under
      `jax.jit`, where it is not, the loss and the gradient of its logit are NaN.

    Raises:
      ValueError: shapes that are not equal, no elements, whole numbers other than 0 and 1.
      TypeError: dtypes that do not fit.

    Source: Goodfellow, Bengio and Courville, "Deep learning", section 6.2.2.2.

    >>> round(float(sigmoid_binary_cross_entropy(jnp.array([2.0, -1.0]), jnp.array([1, 0]))), 4)
    0.2201
    >>> jax.grad(sigmoid_binary_cross_entropy)(jnp.array([1e4, 1e4]), jnp.array([0, 1]))
    Array([0.5, 0. ], dtype=float32)
    """
    _check("sigmoid_binary_cross_entropy", logits, labels)
    z, y = _wide(logits, labels)
    return _cross_entropy(z, y).mean().astype(logits.dtype), BinaryResiduals(logits, labels)


# L = -y log p - (1 - y) log q with p = σ(z), q = 1 - p = σ(-z). Since dp/dz = p q, d log p/dz = q and d log q/dz = -p:
#
#     dL/dz = (1 - y) p - y q  =  p - y,        dL/dy = log q - log p = -z.
#
# p - y would cancel where p is close to y; the form before it does not. The mean over n elements divides both by n.
def sigmoid_binary_cross_entropy_backward(residuals: BinaryResiduals, dy: Array):
    logits, labels = residuals
    z, y = _wide(logits, labels)
    share = wide(dy) / logits.size
    dlogits = (1 - y) * jax.nn.sigmoid(z) - y * jax.nn.sigmoid(-z)
    return (dlogits * share).astype(logits.dtype), _of_labels(labels, -z * share)


sigmoid_binary_cross_entropy = Rule(
    sigmoid_binary_cross_entropy_forward,
    sigmoid_binary_cross_entropy_backward,
    "sigmoid_binary_cross_entropy",
    batch_axes=(0, 0),
)


def sigmoid_focal_loss_forward(
    logits: Array, labels: Array, *, alpha: float | None = None, gamma: float = 2.0
) -> tuple[Array, BinaryResiduals]:
    """Cross-entropy of the sigmoid of each logit, times m^gamma, m the probability given to the wrong answer.

    What is decided right already hardly counts. The mean is over all elements, easy ones included.

    Args:
      logits: any shape, floating, finite. ±1e4 is no difficulty.
      labels: of the logits' shape: 0 and 1, whole numbers or truth values; or the probability of a 1, from 0 to 1,
        floating, then of the logits' dtype and differentiable like them: m = (1 - y) σ(z) + y σ(-z).
      alpha: the weight of the label 1, that of 0 being 1 - alpha; from 0 to 1. None: no weights.
      gamma: at least 0. With 0 it is `sigmoid_binary_cross_entropy`.

    Returns:
      A scalar of the logits' dtype. A whole number other than 0 and 1 raises ValueError where its value is known; under
      `jax.jit`, where it is not, it makes NaN, as does a floating label for which m is negative.

    Raises:
      ValueError: shapes that are not equal, no elements, whole numbers other than 0 and 1, alpha or gamma out of range.
      TypeError: dtypes that do not fit, alpha or gamma no number.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, equations 4 and 5; there m is 1 - p_t.

    >>> logits, labels = jnp.array([2.0, -1.0]), jnp.array([1, 0])
    >>> round(float(sigmoid_focal_loss(logits, labels)), 4)
    0.0122
    >>> round(float(sigmoid_focal_loss(logits, labels, alpha=0.25)), 4)
    0.0087
    """
    _check_focal(logits, labels, alpha, gamma)
    z, y = _wide(logits, labels)
    costs = _cross_entropy(z, y)
    power, _ = _powers(z, _wrong(z, y), costs, gamma)
    return (_weights(y, alpha) * power * costs).mean().astype(logits.dtype), BinaryResiduals(logits, labels)


# L = w m^γ C with C the cross-entropy above, m = (1 - y) p + y q and w = α y + (1 - α)(1 - y), or 1 without α. With
# dm/dz = (1 - 2y) p q, dm/dy = q - p, dw/dy = 2α - 1, or 0, and Q = m^(γ - 1) C,
#
#     dL/dz = w (m^γ ((1 - y) p - y q) + γ Q (1 - 2y) p q),      dL/dy = dw/dy m^γ C + w (γ Q (q - p) - m^γ z).
#
# As p tends to y = 0 or 1, C and m tend to 0 together, C/m to 1 and Q to m^γ: nothing is 0 · ∞ in this form, also where
# γ < 1. The mean over n elements divides both by n.
def sigmoid_focal_loss_backward(residuals: BinaryResiduals, dy: Array, *, alpha, gamma):
    logits, labels = residuals
    z, y = _wide(logits, labels)
    p, q, costs, weights = jax.nn.sigmoid(z), jax.nn.sigmoid(-z), _cross_entropy(z, y), _weights(y, alpha)
    power, product = _powers(z, _wrong(z, y), costs, gamma)
    share = wide(dy) / logits.size
    dlogits = weights * (power * ((1 - y) * p - y * q) + gamma * product * (1 - 2 * y) * p * q)
    dweights = 0 if alpha is None else 2 * alpha - 1
    dlabels = dweights * power * costs + weights * (gamma * product * (q - p) - power * z)
    return (dlogits * share).astype(logits.dtype), _of_labels(labels, dlabels * share)


sigmoid_focal_loss = Rule(
    sigmoid_focal_loss_forward, sigmoid_focal_loss_backward, "sigmoid_focal_loss", batch_axes=(0, 0)
)


def valid_binary_labels(labels: Array) -> Array:
    """Whether each label is 0 or 1; a floating one may be any number."""
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return ~jnp.isnan(labels)
    return (labels == 0) | (labels == 1)


def _wide(logits, labels) -> tuple[Array, Array]:
    """Both in float32 at least; NaN for a whole number that is no label."""
    z = wide(logits)
    return z, jnp.where(valid_binary_labels(labels), labels.astype(z.dtype), jnp.nan)


def _of_labels(labels, gradient) -> Array | None:
    return gradient.astype(labels.dtype) if jnp.issubdtype(labels.dtype, jnp.floating) else None


def _cross_entropy(z, y):
    return y * jax.nn.softplus(-z) + (1 - y) * jax.nn.softplus(z)


def _wrong(z, y):
    return (1 - y) * jax.nn.sigmoid(z) + y * jax.nn.sigmoid(-z)


def _weights(y, alpha):
    return 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)


def _powers(z, m, costs, gamma) -> tuple[Array, Array]:
    """m^γ and m^(γ - 1) C; no power of a negative number.

    Where m^(γ - 2), which is in their derivatives, would overflow, the label is 0 or 1: there m = C = e^-|z|.
    """
    floor = float(jnp.finfo(m.dtype).tiny) ** (1 if gamma >= 1 else 0.5)
    small, floored = jnp.exp(-gamma * jnp.abs(z)), jnp.maximum(m, floor)
    power, product = (jnp.where(m < floor, small, usual) for usual in (floored**gamma, floored ** (gamma - 1) * costs))
    return jnp.where(m < 0, jnp.nan, power), product


def _check(function: str, logits: Array, labels: Array) -> None:
    require_equal_floats(function, logits=logits)
    if labels.shape != logits.shape or logits.size == 0:
        raise ValueError(
            f"{function}: logits and labels must have one shape and not be empty, got {logits.shape} and {labels.shape}"
        )
    if not (jnp.issubdtype(labels.dtype, jnp.integer) or labels.dtype == bool):
        require_equal_floats(function, logits=logits, labels=labels)
    elif not isinstance(labels, Tracer):
        values = np.asarray(labels)
        if (wrong := values[(values != 0) & (values != 1)]).size:
            raise ValueError(f"{function}: labels that are whole numbers must be 0 or 1, got {wrong.flat[0]}")


def _check_focal(logits, labels, alpha, gamma) -> None:
    name = "sigmoid_focal_loss"
    require_number(name, gamma=gamma, **({} if alpha is None else {"alpha": alpha}))
    if not 0 <= gamma < math.inf:
        raise ValueError(f"{name}: gamma must be finite and at least 0, got {gamma!r}")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"{name}: alpha must be from 0 to 1, got {alpha!r}")
    _check(name, logits, labels)
