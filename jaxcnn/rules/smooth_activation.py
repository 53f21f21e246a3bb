"""Smooth activations; `sigmoid` is in activation.py."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats, wide


class TanhResiduals(NamedTuple):
    y: Array  # the output: the derivative is a function of it alone


def tanh_forward(x: Array) -> tuple[Array, TanhResiduals]:
    """The hyperbolic tangent.

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: LeCun et al., "Efficient backprop", 1998, section 4.4.

    >>> tanh(jnp.array([-1e4, 0.0, 1e4]))
    Array([-1.,  0.,  1.], dtype=float32)
    """
    require_equal_floats("tanh", x=x)
    y = jnp.tanh(x)
    return y, TanhResiduals(y)


# y = sinh x / cosh x, so dy/dx = (cosh² x - sinh² x) / cosh² x = 1 - y² = (1 + y) (1 - y). The product keeps the digits
# that 1 - y² loses where y² is rounded to nearly 1.
def tanh_backward(residuals: TanhResiduals, dy: Array):
    y = residuals.y
    return (dy * ((1 + y) * (1 - y)),)


tanh = Rule(tanh_forward, tanh_backward, "tanh", batch_axes=(0,))


class InputResiduals(NamedTuple):
    x: Array  # as given


def softplus_forward(x: Array) -> tuple[Array, InputResiduals]:
    """The smooth rectifier log(1 + exp(x)).

    Large inputs of either sign give x and 0, never infinity.

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: Dugas et al., "Incorporating second-order functional knowledge for better option pricing", NeurIPS 2000.

    >>> [round(float(softplus(x)), 4) for x in (-1e4, 0.0, 1e4)]
    [0.0, 0.6931, 10000.0]
    """
    require_equal_floats("softplus", x=x)
    return jax.nn.softplus(x), InputResiduals(x)


# y = log(1 + e^x), so dy/dx = e^x / (1 + e^x) = 1 / (1 + e^-x) = σ(x), the logistic function.
def softplus_backward(residuals: InputResiduals, dy: Array):
    return (dy * jax.nn.sigmoid(residuals.x),)


softplus = Rule(softplus_forward, softplus_backward, "softplus", batch_axes=(0,))


def silu_forward(x: Array) -> tuple[Array, InputResiduals]:
    """The sigmoid linear unit, or swish: x · σ(x), σ being the logistic function.

    -inf gives NaN, which is -inf · 0, as in jax.nn.

    Args:
      x: any shape, any floating dtype from 16 bits.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating.

    Source: Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units", Neural Networks 2018;
    Ramachandran, Zoph and Le, "Searching for activation functions", 2017.

    >>> silu(jnp.array([-1e4, 0.0, 1e4]))
    Array([   -0.,     0., 10000.], dtype=float32)
    """
    require_equal_floats("silu", x=x)
    return jax.nn.silu(x), InputResiduals(x)


# y = x σ with σ = σ(x), and dσ/dx = σ (1 - σ). By the product rule dy/dx = σ + x σ (1 - σ) = σ (1 + x (1 - σ)).
# y is no use here: it falls and rises again below 0, so it does not tell x.
def silu_backward(residuals: InputResiduals, dy: Array):
    x = wide(residuals.x)
    s = jax.nn.sigmoid(x)
    return ((dy * (s * (1 + x * (1 - s)))).astype(dy.dtype),)


silu = Rule(silu_forward, silu_backward, "silu", batch_axes=(0,))


SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715  # of the approximation by tanh
LARGE = 40  # beyond ±this either Φ is 0 or 1 in every precision


def gelu_forward(x: Array, *, approximate: bool = True) -> tuple[Array, InputResiduals]:
    """The Gaussian error linear unit: x · Φ(x), Φ being the standard normal distribution function.

    -inf gives NaN, which is -inf · 0, as in jax.nn.

    Args:
      x: any shape, any floating dtype from 16 bits.
      approximate: whether Φ(x) is approximated by (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³). The default is
        jax.nn's; PyTorch's is the other. The derivative is that of the function chosen.

    Returns:
      An array of x's shape and dtype.

    Raises:
      TypeError: x not floating, approximate no truth value.

    Source: Hendrycks and Gimpel, "Gaussian error linear units (GELUs)", 2016, section 2.

    >>> [round(float(gelu(2.0, approximate=a)), 6) for a in (True, False)]
    [1.954598, 1.9545]
    """
    require_equal_floats("gelu", x=x)
    if not isinstance(approximate, bool):
        raise TypeError(f"gelu: approximate must be True or False, got {approximate!r}")
    z = wide(x)
    return (z * _normal_distribution(z, approximate)).astype(x.dtype), InputResiduals(x)


# y = x Φ(x), so dy/dx = Φ + x dΦ/dx. The exact Φ has for its derivative the normal density, φ(x) = exp(-x²/2) / √(2π).
#
# The approximate one is Φ = (1 + tanh u) / 2 = σ(2u), the logistic function, with u = √(2/π) (x + c x³); so
# dΦ/du = 2 Φ (1 - Φ), and du/dx = √(2/π) (1 + 3 c x²).
def gelu_backward(residuals: InputResiduals, dy: Array, *, approximate):
    x = jnp.clip(wide(residuals.x), -LARGE, LARGE)  # beyond, dΦ/dx is 0 in every precision, and x² may be infinite
    distribution = _normal_distribution(x, approximate)
    if approximate:
        density = 2 * distribution * (1 - distribution) * SQRT_2_OVER_PI * (1 + 3 * CUBIC * x**2)
    else:
        density = jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return ((dy * (distribution + x * density)).astype(dy.dtype),)


def gelu_reference(x: Array, *, approximate: bool = True) -> Array:
    """The same values; of the plain product autodiff would multiply Φ's derivative, where it is 0, by infinity."""
    z = wide(x)
    beyond = jnp.abs(z) > LARGE
    inside = jnp.where(beyond, 0, z)
    outside = z * lax.stop_gradient(_normal_distribution(z, approximate))
    y = jnp.where(beyond, outside, inside * _normal_distribution(inside, approximate))
    return y.astype(x.dtype)


gelu = Rule(gelu_forward, gelu_backward, "gelu", reference=gelu_reference, batch_axes=(0,))


def _normal_distribution(x: Array, approximate: bool) -> Array:
    if approximate:  # by σ, as 1 + tanh u has no digits left where u is far below 0
        return jax.nn.sigmoid(2 * SQRT_2_OVER_PI * (x + CUBIC * x**3))
    return lax.erfc(-x * math.sqrt(0.5)) / 2
