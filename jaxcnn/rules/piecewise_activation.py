"""Activations made of pieces, and the derivative that each has at its kinks; `relu` is in activation.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats, require_number, wide


class OutputResiduals(NamedTuple):
    y: Array  # the output, which the next layer keeps as well: it tells the piece, and the derivative there


def relu6_forward(x: Array) -> tuple[Array, OutputResiduals]:
    """The rectifier with a ceiling: x between 0 and 6, 0 below, 6 above.

    The derivative at 0 and at 6 is 0, as jax.nn and PyTorch have it.

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: Krizhevsky, "Convolutional deep belief networks on CIFAR-10", 2010; Sandler et al., "MobileNetV2", CVPR
    2018.

    >>> import jax
    >>> relu6(jnp.array([-2.0, 3.0, 9.0]))
    Array([0., 3., 6.], dtype=float32)
    >>> jax.vmap(jax.grad(relu6))(jnp.array([0.0, 3.0, 6.0]))
    Array([0., 1., 0.], dtype=float32)
    """
    require_equal_floats("relu6", x=x)
    y = jnp.where(x <= 0, 0, jnp.where(x >= 6, 6, x))  # `clip` has derivative 1/2 at 0 and 6 under autodiff
    return y, OutputResiduals(y)


# y = x where 0 < x < 6, so dy/dx = 1 there; y is constant elsewhere, so dy/dx = 0. 0 < y < 6 just where 0 < x < 6.
def relu6_backward(residuals: OutputResiduals, dy: Array):
    y = residuals.y
    return (jnp.where((y <= 0) | (y >= 6), 0, dy),)


relu6 = Rule(relu6_forward, relu6_backward, "relu6", batch_axes=(0,))


def leaky_relu_forward(x: Array, *, negative_slope: float = 0.01) -> tuple[Array, OutputResiduals]:
    """The leaky rectifier: x where x > 0, else negative_slope · x.

    The derivative at 0 is negative_slope: 0 belongs to the negative side, as in `relu`, which is the leaky rectifier of
    slope 0, and in PyTorch. jax.nn has 1 there.

    Args:
      x: any shape, any floating dtype from 16 bits.
      negative_slope: at least 0.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: a slope that is negative or not finite. TypeError: x not floating, a slope that is no number.

    Source: Maas, Hannun and Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013, section 2.

    >>> import jax
    >>> leaky_relu(jnp.array([-2.0, 0.0, 3.0]), negative_slope=0.5)
    Array([-1.,  0.,  3.], dtype=float32)
    >>> jax.vmap(jax.grad(leaky_relu))(jnp.array([-2.0, 0.0, 3.0]))
    Array([0.01, 0.01, 1.  ], dtype=float32)
    """
    require_equal_floats("leaky_relu", x=x)
    y = jnp.where(x <= 0, _number("leaky_relu", "negative_slope", negative_slope) * x, x)
    return y, OutputResiduals(y)


# y = x where x > 0, so dy/dx = 1 there; y = s x elsewhere, so dy/dx = s. Since s ≥ 0, y > 0 just where x > 0.
def leaky_relu_backward(residuals: OutputResiduals, dy: Array, *, negative_slope):
    return (jnp.where(residuals.y <= 0, float(negative_slope) * dy, dy),)


leaky_relu = Rule(leaky_relu_forward, leaky_relu_backward, "leaky_relu", batch_axes=(0,))


class PreluResiduals(NamedTuple):
    x: Array  # as given: the slope may be negative or 0, so that y does not tell x's sign, nor x itself
    slope: Array  # as given, for dx


def prelu_forward(x: Array, slope: Array) -> tuple[Array, PreluResiduals]:
    """The parametric rectifier: x where x > 0, else slope · x, with slopes that are learned.

    The derivative by x at 0 is the slope, as in `leaky_relu` and PyTorch; the slope's is 0 there on any convention.

    Args:
      x: (..., C), or any shape where there is one slope; any floating dtype from 16 bits.
      slope: (C,), one value a channel, or a scalar; of x's dtype and any sign.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: shapes that do not fit. TypeError: dtypes that are not floating or not equal.

    Source: He et al., "Delving deep into rectifiers", ICCV 2015, equations 1 to 3.

    >>> import jax
    >>> prelu(jnp.array([[-2.0, -2.0], [3.0, 3.0]]), jnp.array([0.25, 0.5]))
    Array([[-0.5, -1. ],
           [ 3. ,  3. ]], dtype=float32)
    >>> jax.grad(lambda slope: prelu(jnp.array([-2.0, -3.0, 5.0]), slope).sum())(0.25)
    Array(-5., dtype=float32)
    """
    require_equal_floats("prelu", x=x, slope=slope)
    if slope.shape not in ((), x.shape[-1:]):
        raise ValueError(f"prelu: slope must be a scalar or of shape {x.shape[-1:]}, one a channel, got {slope.shape}")
    negative = jnp.where(x <= 0, x, 0)  # an infinite x times the 0 that autodiff gives the other branch would be NaN
    return jnp.where(x <= 0, slope * negative, x), PreluResiduals(x, slope)


# y = x where x > 0, so dy/dx = 1 and dy/ds = 0 there; y = s x elsewhere, so dy/dx = s and dy/ds = x. Every element of a
# channel, in all samples and at all places, has the channel's s: ds is the sum over them, over all where s is a scalar.
def prelu_backward(residuals: PreluResiduals, dy: Array):
    x, slope = residuals
    dx = jnp.where(x <= 0, slope * dy, dy)
    through_slope = wide(jnp.where(x <= 0, x, 0)) * dy
    dslope = through_slope.sum(tuple(range(x.ndim - slope.ndim)))
    return dx, dslope.astype(slope.dtype)


prelu = Rule(prelu_forward, prelu_backward, "prelu", batch_axes=(0, None))


def elu_forward(x: Array, *, alpha: float = 1.0) -> tuple[Array, OutputResiduals]:
    """The exponential linear unit: x where x > 0, else alpha · (exp(x) - 1).

    The derivative at 0 is alpha, that of the negative side, as jax.nn and PyTorch have it; only with alpha = 1 is there
    no kink.

    Args:
      x: any shape, any floating dtype from 16 bits.
      alpha: at least 0; -alpha is what the output falls to.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: an alpha that is negative or not finite. TypeError: x not floating, an alpha that is no number.

    Source: Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential linear units",
    ICLR 2016, section 3.

    >>> import jax
    >>> elu(jnp.array([-1e4, 0.0, 3.0]), alpha=2.0)
    Array([-2.,  0.,  3.], dtype=float32)
    >>> jax.vmap(jax.grad(lambda x: elu(x, alpha=2.0)))(jnp.array([-1e4, 0.0, 3.0]))
    Array([0., 2., 1.], dtype=float32)
    """
    require_equal_floats("elu", x=x)
    y = _exponential_unit(x, 1, _number("elu", "alpha", alpha))
    return y, OutputResiduals(y)


# y = x where x > 0, so dy/dx = 1 there; y = α (e^x - 1) elsewhere, so dy/dx = α e^x = y + α. Since α ≥ 0, y > 0 just
# where x > 0. (y + α rounds to units in the last place of α, which beside the derivative's 1 elsewhere is exact.)
def elu_backward(residuals: OutputResiduals, dy: Array, *, alpha):
    y = residuals.y
    return (jnp.where(y <= 0, dy * (y + float(alpha)), dy),)


elu = Rule(elu_forward, elu_backward, "elu", batch_axes=(0,))


SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946


def selu_forward(x: Array) -> tuple[Array, OutputResiduals]:
    """The scaled exponential linear unit: λ · `elu` of x with that α and that λ which keep mean 0 and variance 1.

    The derivative at 0 is λα = 1.758, that of the negative side, as jax.nn and PyTorch have it; on the other it is
    λ = 1.051.

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017, equation 2.

    >>> [round(float(selu(x)), 4) for x in (-1e4, 0.0, 1.0)]
    [-1.7581, 0.0, 1.0507]
    """
    require_equal_floats("selu", x=x)
    y = _exponential_unit(x, SELU_SCALE, SELU_SCALE * SELU_ALPHA)
    return y, OutputResiduals(y)


# y = λ x where x > 0, so dy/dx = λ there; y = λ α (e^x - 1) elsewhere, so dy/dx = λ α e^x = y + λ α.
def selu_backward(residuals: OutputResiduals, dy: Array):
    y = residuals.y
    return (dy * jnp.where(y <= 0, y + SELU_SCALE * SELU_ALPHA, SELU_SCALE),)


selu = Rule(selu_forward, selu_backward, "selu", batch_axes=(0,))


class HardSigmoidResiduals(NamedTuple):
    flat: Array  # whether x <= -3 or x >= 3, a byte an element; y does not tell, as x + 3 may round to 6 where x < 3


def hard_sigmoid_forward(x: Array) -> tuple[Array, HardSigmoidResiduals]:
    """The sigmoid in three straight pieces: (x + 3) / 6 between -3 and 3, 0 below, 1 above.

    The derivative at -3 and at 3 is 0, as jax.nn and PyTorch have it.

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, section 5.2.

    >>> import jax
    >>> hard_sigmoid(jnp.array([-4.0, 0.0, 4.0]))
    Array([0. , 0.5, 1. ], dtype=float32)
    >>> jax.vmap(jax.grad(lambda x: 6 * hard_sigmoid(x)))(jnp.array([-3.0, 0.0, 3.0]))
    Array([0., 1., 0.], dtype=float32)
    """
    require_equal_floats("hard_sigmoid", x=x)
    y = jnp.where(x <= -3, 0, jnp.where(x >= 3, 1, (x + 3) / 6))
    return y, HardSigmoidResiduals((x <= -3) | (x >= 3))


# y = (x + 3) / 6 where -3 < x < 3, so dy/dx = 1/6 there; y is constant elsewhere, so dy/dx = 0.
def hard_sigmoid_backward(residuals: HardSigmoidResiduals, dy: Array):
    return (jnp.where(residuals.flat, 0, dy / 6),)


hard_sigmoid = Rule(hard_sigmoid_forward, hard_sigmoid_backward, "hard_sigmoid", batch_axes=(0,))


class HardSwishResiduals(NamedTuple):
    x: Array  # as given: y falls and rises again between -3 and 0, so it does not tell x


def hard_swish_forward(x: Array) -> tuple[Array, HardSwishResiduals]:
    """Swish with the hard sigmoid: x · (x + 3) / 6 between -3 and 3, 0 below, x above.

    The derivative at -3 is 0, at 3 it is 1: those of the outer sides, as jax.nn and PyTorch have it. -inf gives 0, the
    limit, where they give NaN.

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: Howard et al., "Searching for MobileNetV3", ICCV 2019, section 5.2.

    >>> import jax
    >>> hard_swish(jnp.array([-4.0, 1.5, 4.0]))
    Array([0.   , 1.125, 4.   ], dtype=float32)
    >>> jax.vmap(jax.grad(hard_swish))(jnp.array([-3.0, 0.0, 3.0]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    require_equal_floats("hard_swish", x=x)
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, x, x * ((x + 3) / 6))), HardSwishResiduals(x)


# y = (x² + 3x) / 6 where -3 < x < 3, so dy/dx = (2x + 3) / 6 = x/3 + 1/2 there; below y = 0, so dy/dx = 0, and above
# y = x, so dy/dx = 1.
def hard_swish_backward(residuals: HardSwishResiduals, dy: Array):
    x = residuals.x
    return (jnp.where(x <= -3, 0, jnp.where(x >= 3, dy, dy * (x / 3 + 0.5))),)


hard_swish = Rule(hard_swish_forward, hard_swish_backward, "hard_swish", batch_axes=(0,))


def _exponential_unit(x: Array, slope: float, alpha: float) -> Array:
    """slope · x where x > 0, else alpha · (e^x - 1): one factor alone, so that alpha added at last gives exactly 0."""
    # Where x > 0, e^x may overflow, and autodiff multiplies it by 0.
    return jnp.where(x <= 0, alpha * jnp.expm1(jnp.where(x <= 0, x, 0)), slope * x)


def _number(function: str, argument: str, value: float) -> float:
    """As a float of Python: a number of NumPy would widen the arrays that it meets."""
    require_number(function, **{argument: value})
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{function}: {argument} must be at least 0 and finite, got {value!r}")
    return float(value)
