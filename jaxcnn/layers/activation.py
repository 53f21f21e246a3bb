"""Layers of one activation each; `ReLU` and `Sigmoid` are in basic.py."""

from __future__ import annotations

from jax.nn import initializers

from jaxcnn.layers.layer import Layer, from_rule
from jaxcnn.rule import Rule
from jaxcnn.rules.piecewise_activation import elu, hard_sigmoid, hard_swish, leaky_relu, prelu, relu6, selu
from jaxcnn.rules.smooth_activation import gelu, silu, softplus, tanh
from jaxcnn.rules.softmax import log_softmax, softmax

QUARTER = initializers.constant(0.25)


def ReLU6(*, rule: Rule = relu6, name: str = "relu6") -> Layer:
    """The rectifier with the ceiling 6. No parameters."""
    return from_rule(rule, name)


def LeakyReLU(negative_slope: float = 0.01, *, rule: Rule = leaky_relu, name: str = "leaky_relu") -> Layer:
    """The leaky rectifier; `negative_slope` is that of `leaky_relu`. No parameters."""
    return from_rule(rule, name, negative_slope=negative_slope)


def PReLU(
    *,
    shared: bool = False,
    slope_init: initializers.Initializer = QUARTER,
    rule: Rule = prelu,
    name: str = "prelu",
) -> Layer:
    """The parametric rectifier, (N, ..., C) -> (N, ..., C).

    Parameters: "slope" (C,), or a scalar where all channels share one. The initial slopes are He et al.'s (2015), 0.25;
    like them, do not let weight decay act on the slopes, which it would draw to 0, the plain rectifier.

    >>> import jax
    >>> PReLU().init(jax.random.key(0), (2, 2, 3))[0]
    {'slope': Array([0.25, 0.25, 0.25], dtype=float32)}
    """

    def slope(key, shape):
        if not shape:
            raise ValueError("PReLU: input_shape must be (..., C), without N, got ()")
        return slope_init(key, () if shared else shape[-1:])

    return from_rule(rule, name, {"slope": slope})


def ELU(alpha: float = 1.0, *, rule: Rule = elu, name: str = "elu") -> Layer:
    """The exponential linear unit; `alpha` is that of `elu`. No parameters."""
    return from_rule(rule, name, alpha=alpha)


def SELU(*, rule: Rule = selu, name: str = "selu") -> Layer:
    """The scaled exponential linear unit. No parameters."""
    return from_rule(rule, name)


def HardSigmoid(*, rule: Rule = hard_sigmoid, name: str = "hard_sigmoid") -> Layer:
    """The sigmoid in three straight pieces. No parameters."""
    return from_rule(rule, name)


def HardSwish(*, rule: Rule = hard_swish, name: str = "hard_swish") -> Layer:
    """Swish with the hard sigmoid. No parameters."""
    return from_rule(rule, name)


def Tanh(*, rule: Rule = tanh, name: str = "tanh") -> Layer:
    """The hyperbolic tangent. No parameters."""
    return from_rule(rule, name)


def Softplus(*, rule: Rule = softplus, name: str = "softplus") -> Layer:
    """The smooth rectifier. No parameters."""
    return from_rule(rule, name)


def SiLU(*, rule: Rule = silu, name: str = "silu") -> Layer:
    """The sigmoid linear unit, or swish. No parameters."""
    return from_rule(rule, name)


def GELU(approximate: bool = True, *, rule: Rule = gelu, name: str = "gelu") -> Layer:
    """The Gaussian error linear unit; `approximate` is that of `gelu`. No parameters."""
    return from_rule(rule, name, approximate=approximate)


def Softmax(axis: int | tuple[int, ...] = -1, *, rule: Rule = softmax, name: str = "softmax") -> Layer:
    """Softmax; `axis` is that of `softmax`, the samples being axis 0. No parameters."""
    return from_rule(rule, name, axis=axis)


def LogSoftmax(axis: int | tuple[int, ...] = -1, *, rule: Rule = log_softmax, name: str = "log_softmax") -> Layer:
    """The logarithm of the softmax; `axis` is that of `log_softmax`, the samples being axis 0. No parameters."""
    return from_rule(rule, name, axis=axis)
