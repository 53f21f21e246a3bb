"""Softmax and its logarithm, along an axis."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats
from jaxcnn.rules.window import is_whole


class SoftmaxResiduals(NamedTuple):
    y: Array  # the output: the derivative is a function of it alone


def softmax_forward(x: Array, *, axis: int | tuple[int, ...] = -1) -> tuple[Array, SoftmaxResiduals]:
    """Softmax: exp(x_i) / Σ_j exp(x_j), the sum along an axis.

    ±1e4 is no difficulty. -inf gives 0 beside a finite value; +inf, and -inf alone, give NaN, as in jax.nn.

    Args:
      x: any shape of at least one axis, any floating dtype from 16 bits.
      axis: the axis along which the output sums to 1, or several of them together.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: an axis that x does not have, or twice the same. TypeError: x not floating, an axis that is no whole
        number.

    Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990. For the loss of
    a classifier `softmax_cross_entropy` of the logits is the more exact.

    >>> softmax(jnp.array([0.0, 0.0, -1e4]))
    Array([0.5, 0.5, 0. ], dtype=float32)
    """
    _check("softmax", x, axis)
    y = jax.nn.softmax(x, axis)
    return y, SoftmaxResiduals(y)


# y_i = e^(x_i) / S with S = Σ_j e^(x_j), so dS/dx_k = e^(x_k) and
#
#     dy_i/dx_k = [i = k] y_i - y_i y_k,      so      dx_k = Σ_i dy_i dy_i/dx_k = y_k (dy_k - Σ_i y_i dy_i):
#
# what the cotangent exceeds its mean by, the mean being weighted by y.
def softmax_backward(residuals: SoftmaxResiduals, dy: Array, *, axis):
    y = residuals.y
    return (y * (dy - (y * dy).sum(axis, keepdims=True)),)


softmax = Rule(softmax_forward, softmax_backward, "softmax", batch_axes=(0,))


def log_softmax_forward(x: Array, *, axis: int | tuple[int, ...] = -1) -> tuple[Array, SoftmaxResiduals]:
    """The logarithm of the softmax: x_i - log Σ_j exp(x_j), the sum along an axis.

    ±1e4 is no difficulty, though the softmax itself rounds to 0. -inf gives -inf beside a finite value; +inf, and -inf
    alone, give NaN, as in jax.nn.

    Args:
      x: any shape of at least one axis, any floating dtype from 16 bits.
      axis: the axis along which the output's exponential sums to 1, or several of them together.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: an axis that x does not have, or twice the same. TypeError: x not floating, an axis that is no whole
        number.

    Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990; without
    overflow: Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax functions", 2021.

    >>> [round(float(y), 4) for y in log_softmax(jnp.array([0.0, 0.0, -1e4]))]
    [-0.6931, -0.6931, -10000.6934]
    """
    _check("log_softmax", x, axis)
    y = jax.nn.log_softmax(x, axis)
    return y, SoftmaxResiduals(y)


# y_i = x_i - log S with S = Σ_j e^(x_j), and d log S/dx_k = e^(x_k) / S = e^(y_k), the softmax. So
#
#     dy_i/dx_k = [i = k] - e^(y_k)      and      dx_k = dy_k - e^(y_k) Σ_i dy_i.
def log_softmax_backward(residuals: SoftmaxResiduals, dy: Array, *, axis):
    return (dy - jnp.exp(residuals.y) * dy.sum(axis, keepdims=True),)


log_softmax = Rule(log_softmax_forward, log_softmax_backward, "log_softmax", batch_axes=(0,))


def _check(function: str, x: Array, axis: int | tuple[int, ...]) -> None:
    require_equal_floats(function, x=x)
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not axes or not all(map(is_whole, axes)):
        raise TypeError(f"{function}: axis must be a whole number or a tuple of them, got {axis!r}")
    if any(not -x.ndim <= a < x.ndim for a in axes) or len({a % x.ndim for a in axes}) < len(axes):
        raise ValueError(f"{function}: axis must name different axes of x, whose shape is {x.shape}, got {axis!r}")
