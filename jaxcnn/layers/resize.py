"""Layers that change the size of images: padding, blocks of pixels to channels and back, upsampling."""

from __future__ import annotations

from jax.nn import initializers

from jaxcnn.layers.basic import Initializer
from jaxcnn.layers.layer import Layer, from_rule, positive
from jaxcnn.rule import Rule
from jaxcnn.rules.resize import (
    depth_to_space,
    reflect_pad,
    space_to_depth,
    upsample_bilinear,
    upsample_nearest,
    zero_pad,
)
from jaxcnn.rules.transposed import conv_transpose2d
from jaxcnn.rules.window import pair

HE_NORMAL = initializers.he_normal(in_axis=0, out_axis=-1)  # for filters n×h×w×C that make C channels of n
METHODS = {"nearest": upsample_nearest, "bilinear": upsample_bilinear}


def ZeroPad(padding: int | tuple, *, rule: Rule = zero_pad, name: str = "zero_pad") -> Layer:
    """Zeros around the image; `padding` is that of `zero_pad`. No parameters."""
    return from_rule(rule, name, images=True, padding=padding)


def ReflectPad(padding: int | tuple, *, rule: Rule = reflect_pad, name: str = "reflect_pad") -> Layer:
    """Its mirror image around the image; `padding` is that of `reflect_pad`. No parameters."""
    return from_rule(rule, name, images=True, padding=padding)


def SpaceToDepth(
    block: int | tuple[int, int] = 2, *, rule: Rule = space_to_depth, name: str = "space_to_depth"
) -> Layer:
    """N×H×W×C -> N×H/b×W/b×(b·b·C). No parameters."""
    return from_rule(rule, name, images=True, block=block)


def DepthToSpace(
    block: int | tuple[int, int] = 2, *, rule: Rule = depth_to_space, name: str = "depth_to_space"
) -> Layer:
    """N×H×W×C -> N×(H·b)×(W·b)×C/b². No parameters."""
    return from_rule(rule, name, images=True, block=block)


def Upsample(
    factor: int | tuple[int, int] = 2,
    method: str = "nearest",
    *,
    rule: Rule | None = None,
    name: str = "upsample",
) -> Layer:
    """N×H×W×C -> N×(H·factor)×(W·factor)×C, by `upsample_nearest` or `upsample_bilinear`. No parameters.

    `method` is "nearest" or "bilinear"; a `rule` that is given takes the place of the method's own.

    Raises:
      ValueError: an unknown method.

    >>> import jax
    >>> Upsample(2, "bilinear").init(jax.random.key(0), (7, 5, 3))[2]
    (14, 10, 3)
    """
    if method not in METHODS:
        raise ValueError(f"Upsample: method must be one of {', '.join(METHODS)}, got {method!r}")
    return from_rule(METHODS[method] if rule is None else rule, name, images=True, factor=factor)


def ConvTranspose2D(
    features: int,
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | tuple = "SAME",
    dilation: int | tuple[int, int] = 1,
    bias: bool = True,
    filters_init: Initializer = HE_NORMAL,
    bias_init: Initializer = initializers.zeros,
    rule: Rule = conv_transpose2d,
    name: str = "conv_transpose2d",
) -> Layer:
    """Transposed convolution, N×H×W×C -> N×Ho×Wo×features; the arguments are those of `conv_transpose2d`.

    Parameters: "filters" C×h×w×features, and "bias" (features,) unless bias=False. `size` is h = w or (h, w).

    >>> import jax
    >>> ConvTranspose2D(16, 4, stride=2).init(jax.random.key(0), (7, 7, 32))[2]
    (14, 14, 16)
    """
    window, features = pair("ConvTranspose2D", "size", size), positive("ConvTranspose2D", "features", features)
    parameters = {"filters": lambda key, shape: filters_init(key, (shape[-1], *window, features))}
    if bias:
        parameters["bias"] = lambda key, shape: bias_init(key, (features,))
    return from_rule(rule, name, parameters, images=True, stride=stride, padding=padding, dilation=dilation)
