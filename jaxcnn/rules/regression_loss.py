"""Losses of numbers that are to be predicted: the mean over all elements."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats, require_number, wide


class MeanSquaredErrorResiduals(NamedTuple):
    errors: Array  # predictions - targets, of their shape and dtype: the gradient is a multiple of it


def mean_squared_error_forward(predictions: Array, targets: Array) -> tuple[Array, MeanSquaredErrorResiduals]:
    """The squared errors' mean over all elements; there is no factor of 1/2.

    Args:
      predictions: any shape, floating.
      targets: of the predictions' shape and dtype; differentiable like them.

    Returns:
      A scalar of the predictions' dtype.

    Raises:
      ValueError: shapes that are not equal, no elements.
      TypeError: dtypes that are not floating or not equal.

    Source: Goodfellow, Bengio and Courville, "Deep learning", equation 5.4.

    >>> mean_squared_error(jnp.array([1.0, 5.0]), jnp.array([1.0, 2.0]))
    Array(4.5, dtype=float32)
    """
    errors = _errors("mean_squared_error", predictions, targets)
    mean = jnp.square(errors).mean()
    return mean.astype(predictions.dtype), MeanSquaredErrorResiduals(errors.astype(predictions.dtype))


# L = Σ r_i² / n with r = x - t:   dL/dx_i = 2 r_i / n. t enters with the other sign: dL/dt_i = -dL/dx_i.
def mean_squared_error_backward(residuals: MeanSquaredErrorResiduals, dy: Array):
    errors = residuals.errors
    dpredictions = 2 * wide(errors) * (wide(dy) / errors.size)
    return dpredictions.astype(errors.dtype), -dpredictions.astype(errors.dtype)


mean_squared_error = Rule(
    mean_squared_error_forward, mean_squared_error_backward, "mean_squared_error", batch_axes=(0, 0)
)


class HuberLossResiduals(NamedTuple):
    clipped: (
        Array  # the errors, cut off at ±delta, of the predictions' shape and dtype: the gradient is a multiple of it
    )


def huber_loss_forward(predictions: Array, targets: Array, *, delta: float = 1.0) -> tuple[Array, HuberLossResiduals]:
    """Half the squared error up to delta, beyond it the tangent there: outliers pull no harder. The mean over all.

    Its derivative is continuous. The second derivative at an error of ±delta is taken to be that of the square, 1.

    Args:
      predictions: any shape, floating.
      targets: of the predictions' shape and dtype; differentiable like them.
      delta: positive.

    Returns:
      A scalar of the predictions' dtype.

    Raises:
      ValueError: shapes that are not equal, no elements, delta not positive.
      TypeError: dtypes that are not floating or not equal, delta no number.

    Source: Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics, 1964.

    >>> huber_loss(jnp.array([0.5, 10.0]), jnp.zeros(2), delta=2.0).round(3)
    Array(9.062, dtype=float32)
    """
    require_number("huber_loss", delta=delta)
    if not delta > 0:
        raise ValueError(f"huber_loss: delta must be positive, got {delta!r}")
    errors = _errors("huber_loss", predictions, targets)
    clipped = jnp.where(jnp.abs(errors) <= delta, errors, delta * jnp.sign(errors))
    mean = (clipped * (errors - clipped / 2)).mean()
    return mean.astype(predictions.dtype), HuberLossResiduals(clipped.astype(predictions.dtype))


# L = Σ c_i (r_i - c_i / 2) / n with r = x - t and c = r cut off at ±δ: r²/2 inside, δ (|r| - δ/2) outside. Per element
#
#     dL/dr = c + (r - c) dc/dr = c,      since inside r = c and outside dc/dr = 0.      dL/dx = c / n,  dL/dt = -c / n.
def huber_loss_backward(residuals: HuberLossResiduals, dy: Array, *, delta):
    clipped = residuals.clipped
    dpredictions = wide(clipped) * (wide(dy) / clipped.size)
    return dpredictions.astype(clipped.dtype), -dpredictions.astype(clipped.dtype)


huber_loss = Rule(huber_loss_forward, huber_loss_backward, "huber_loss", batch_axes=(0, 0))


def _errors(function: str, predictions: Array, targets: Array) -> Array:
    require_equal_floats(function, predictions=predictions, targets=targets)
    if predictions.shape != targets.shape or predictions.size == 0:
        raise ValueError(
            f"{function}: predictions and targets must have one shape and not be empty, got {predictions.shape} and "
            f"{targets.shape}"
        )
    return wide(predictions) - wide(targets)
