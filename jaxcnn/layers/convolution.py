"""Layers that convolve signals and volumes; `Conv2D` is in basic.py."""

from __future__ import annotations

from jax.nn import initializers

from jaxcnn.layers.basic import HE_NORMAL, Initializer, convolution
from jaxcnn.layers.layer import Layer
from jaxcnn.rule import Rule
from jaxcnn.rules.convolution_1d_3d import conv1d, conv3d


def Conv1D(
    features: int,
    size: int,
    *,
    stride: int = 1,
    padding: str | tuple = "SAME",
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    filters_init: Initializer = HE_NORMAL,
    bias_init: Initializer = initializers.zeros,
    rule: Rule = conv1d,
    name: str = "conv1d",
) -> Layer:
    """Convolution, N×W×C -> N×Wo×features; the arguments are those of `conv1d`.

    Parameters: "filters" features×w×(C/groups), and "bias" (features,) unless bias=False. `size` is w.

    >>> import jax
    >>> Conv1D(32, 3, stride=2).init(jax.random.key(0), (28, 1))[2]
    (14, 32)
    """
    static = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return convolution(1, features, size, bias, filters_init, bias_init, rule, name, **static)


def Conv3D(
    features: int,
    size: int | tuple[int, int, int],
    *,
    stride: int | tuple[int, int, int] = 1,
    padding: str | tuple = "SAME",
    dilation: int | tuple[int, int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    filters_init: Initializer = HE_NORMAL,
    bias_init: Initializer = initializers.zeros,
    rule: Rule = conv3d,
    name: str = "conv3d",
) -> Layer:
    """Convolution, N×D×H×W×C -> N×Do×Ho×Wo×features; the arguments are those of `conv3d`.

    Parameters: "filters" features×d×h×w×(C/groups), and "bias" (features,) unless bias=False. `size` is d = h = w or
    (d, h, w).

    >>> import jax
    >>> Conv3D(32, 3, stride=(1, 2, 2)).init(jax.random.key(0), (8, 28, 28, 1))[2]
    (8, 14, 14, 32)
    """
    static = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return convolution(3, features, size, bias, filters_init, bias_init, rule, name, **static)
