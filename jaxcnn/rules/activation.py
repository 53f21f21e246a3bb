"""Activations: functions of each element alone, of arrays of any shape."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats


class ReluResiduals(NamedTuple):
    y: Array  # the output: y <= 0 just where x <= 0, and the next layer keeps this array as well


def relu_forward(x: Array) -> tuple[Array, ReluResiduals]:
    """The rectifier: x where x > 0, else 0.

    The derivative at 0 is 0. NaN stays NaN and -inf becomes 0 (the source's `(img>0)*img` makes NaN of -inf).

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: the course text, part 1 "ReLU Activation". The derivative at 0: Bertoin et al., "Numerical influence of
    ReLU'(0) on backpropagation", NeurIPS 2021.

    >>> relu(jnp.array([-2.0, 0.0, 3.0]))
    Array([0., 0., 3.], dtype=float32)
    >>> jax.vmap(jax.grad(relu))(jnp.array([-2.0, 0.0, 3.0]))
    Array([0., 0., 1.], dtype=float32)
    """
    require_equal_floats("relu", x=x)
    y = jnp.where(x <= 0, 0, x)  # `maximum(x, 0)` has derivative 1/2 at 0 under autodiff
    return y, ReluResiduals(y)


# y = x where x > 0, so g = dy/dx = 1 there; y = 0 elsewhere, so g = 0.
def relu_backward(residuals: ReluResiduals, dy: Array):
    return (jnp.where(residuals.y <= 0, 0, dy),)


relu = Rule(relu_forward, relu_backward, "relu", batch_axes=(0,))


class SigmoidResiduals(NamedTuple):
    y: Array  # the output: the derivative is a function of it alone


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidResiduals]:
    """The logistic function 1 / (1 + exp(-x)).

    Large inputs of either sign give 1 and 0, never NaN.

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: the course text, part 2 "Backward Sigmoid": g = a (1 - a).

    >>> sigmoid(jnp.array([-1e4, 0.0, 1e4]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    require_equal_floats("sigmoid", x=x)
    y = jax.nn.sigmoid(x)
    return y, SigmoidResiduals(y)


# a = 1 / (1 + e^-z), so da/dz = e^-z / (1 + e^-z)² = a · e^-z / (1 + e^-z) = a (1 - a).
def sigmoid_backward(residuals: SigmoidResiduals, dy: Array):
    a = residuals.y
    return (dy * (a * (1 - a)),)


sigmoid = Rule(sigmoid_forward, sigmoid_backward, "sigmoid", batch_axes=(0,))
