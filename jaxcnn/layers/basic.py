"""The layers of the source: rules with their parameters."""

from __future__ import annotations

from jax.nn import initializers

from jaxcnn.layers.layer import Layer, from_rule, positive
from jaxcnn.rule import Rule
from jaxcnn.rules.activation import relu, sigmoid
from jaxcnn.rules.convolution import conv2d
from jaxcnn.rules.dense import dense
from jaxcnn.rules.pooling import max_pool
from jaxcnn.rules.shape import flatten
from jaxcnn.rules.window import numbers

Initializer = initializers.Initializer
HE_NORMAL = initializers.he_normal(in_axis=-1, out_axis=0)  # for filters n×h×w×C
GLOROT_UNIFORM = initializers.glorot_uniform()


def Conv2D(
    features: int,
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | tuple = "SAME",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    filters_init: Initializer = HE_NORMAL,
    bias_init: Initializer = initializers.zeros,
    rule: Rule = conv2d,
    name: str = "conv2d",
) -> Layer:
    """Convolution, N×H×W×C -> N×Ho×Wo×features; the arguments are those of `conv2d`.

    Parameters: "filters" features×h×w×(C/groups), and "bias" (features,) unless bias=False. `size` is h = w or (h, w).
    The initial filters are He et al.'s (2015), made for the ReLU that follows.

    >>> import jax
    >>> Conv2D(32, 3, stride=2).init(jax.random.key(0), (28, 28, 1))[2]
    (14, 14, 32)
    """
    static = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return convolution(2, features, size, bias, filters_init, bias_init, rule, name, **static)


def convolution(
    axes: int, features, size, bias: bool, filters_init, bias_init, rule: Rule, name: str, *, groups, **static
) -> Layer:
    """Conv1D, Conv2D and Conv3D: the layer that convolves over so many spatial axes."""
    constructor = f"Conv{axes}D"
    window = numbers(constructor, "size", size, axes)
    features, groups = positive(constructor, "features", features), positive(constructor, "groups", groups)

    def filters(key, shape):
        return filters_init(key, (features, *window, max(shape[-1] // groups, 1)))  # the rule says what does not divide

    parameters = {"filters": filters}
    if bias:
        parameters["bias"] = lambda key, shape: bias_init(key, (features,))
    return from_rule(rule, name, parameters, images=True, spatial_axes=axes, groups=groups, **static)


def Dense(
    features: int,
    *,
    bias: bool = True,
    weights_init: Initializer = GLOROT_UNIFORM,
    bias_init: Initializer = initializers.zeros,
    rule: Rule = dense,
    name: str = "dense",
) -> Layer:
    """Dense layer, (N, in) -> (N, features).

    Parameters: "weights" (in, features), and "bias" (features,) unless bias=False. The initial weights are Glorot and
    Bengio's (2010).

    >>> import jax
    >>> Dense(10).init(jax.random.key(0), (64,))[2]
    (10,)
    """
    features = positive("Dense", "features", features)

    def weights(key, shape):
        if not shape:
            raise ValueError("Dense: input_shape must be (in,), without N, got ()")
        return weights_init(key, (shape[-1], features))

    parameters = {"weights": weights}
    if bias:
        parameters["bias"] = lambda key, shape: bias_init(key, (features,))
    return from_rule(rule, name, parameters)


def MaxPool(
    window: int | tuple[int, int] = 2,
    *,
    stride: int | tuple[int, int] | None = None,
    padding: str | tuple = "VALID",
    ties: str = "first",
    rule: Rule = max_pool,
    name: str = "max_pool",
) -> Layer:
    """Max-pooling; the arguments are those of `max_pool`. No parameters."""
    return from_rule(rule, name, images=True, window=window, stride=stride, padding=padding, ties=ties)


def ReLU(*, rule: Rule = relu, name: str = "relu") -> Layer:
    """The rectifier. No parameters."""
    return from_rule(rule, name)


def Sigmoid(*, rule: Rule = sigmoid, name: str = "sigmoid") -> Layer:
    """The logistic function. No parameters."""
    return from_rule(rule, name)


def Flatten(*, rule: Rule = flatten, name: str = "flatten") -> Layer:
    """N×H×W×C -> N×HWC. No parameters."""
    return from_rule(rule, name, images=True)
