"""Cases of padding, resizing and transposed convolution."""

from __future__ import annotations

from jaxcnn.layers import resize as layers
from jaxcnn.rules.resize import (
    depth_to_space,
    reflect_pad,
    space_to_depth,
    upsample_bilinear,
    upsample_nearest,
    zero_pad,
)
from jaxcnn.rules.transposed import conv_transpose2d
from jaxcnn.verification.cases.case import Case, case, normal, tied

RANKS = {"H×W": (5, 4), "H×W×C": (5, 4, 3), "N×H×W×C": (2, 5, 4, 3)}


def short() -> list[Case]:
    """Every rule at every rank it takes, and every layer."""
    of_every_rank = (
        (zero_pad, {"padding": ((1, 2), (3, 0))}),
        (reflect_pad, {"padding": ((1, 2), (3, 0))}),
        (upsample_nearest, {}),
        (upsample_bilinear, {}),
    )
    filters = normal(3, 3, 3, 4)
    return [
        *(
            case(rule, what, normal(*shape), **static)
            for rule, static in of_every_rank
            for what, shape in RANKS.items()
        ),
        case(space_to_depth, "H×W×C", normal(6, 4, 3)),
        case(space_to_depth, "N×H×W×C", normal(2, 6, 4, 3)),
        case(depth_to_space, "H×W×C", normal(3, 2, 8)),
        case(depth_to_space, "N×H×W×C", normal(2, 3, 2, 8)),
        case(conv_transpose2d, "H×W×n", normal(5, 4, 3), filters, normal(4)),
        case(conv_transpose2d, "N×H×W×n", normal(2, 5, 4, 3), filters, normal(4)),
        case(layers.ZeroPad(1), "layer", normal(2, 6, 5, 3)),
        case(layers.ReflectPad(1), "layer", normal(2, 6, 5, 3)),
        case(layers.SpaceToDepth(2), "layer", normal(2, 6, 4, 3)),
        case(layers.DepthToSpace(2), "layer", normal(2, 3, 2, 8)),
        case(layers.Upsample(2), "layer", normal(2, 6, 5, 3)),
        case(layers.Upsample(2, "bilinear", name="upsample_bilinear"), "layer", normal(2, 6, 5, 3)),
        case(layers.ConvTranspose2D(4, 3), "layer", normal(2, 6, 5, 3)),
    ]


def more() -> list[Case]:
    """Single pixels, oblong blocks and factors, strides, dilation, padding."""
    return [*_sizes(), *_transposed()]


def _sizes() -> list[Case]:
    return [
        case(zero_pad, "none", normal(2, 5, 4, 3), padding=0),
        case(zero_pad, "one side", normal(2, 5, 4, 3), padding=((0, 3), (0, 0))),
        case(zero_pad, "one pixel", normal(2, 1, 1, 3), padding=2),
        case(reflect_pad, "none, one pixel", normal(2, 1, 1, 3), padding=0),
        case(reflect_pad, "one side", normal(2, 5, 4, 3), padding=((0, 3), (0, 0))),
        case(reflect_pad, "all that there is", normal(2, 3, 4, 3), padding=((2, 2), (3, 3))),
        case(space_to_depth, "oblong", normal(2, 6, 6, 3), block=(2, 3)),
        case(space_to_depth, "one block", normal(2, 3, 3, 1), block=3),
        case(depth_to_space, "oblong", normal(2, 2, 3, 12), block=(2, 3)),
        case(depth_to_space, "one pixel", normal(2, 1, 1, 9), block=3),
        *(
            case(rule, f"{what}", normal(*shape), factor=factor)
            for rule in (upsample_nearest, upsample_bilinear)
            for what, shape, factor in (
                ("odd factor", (2, 4, 5, 3), 3),
                ("oblong", (2, 4, 5, 3), (1, 4)),
                ("one pixel", (2, 1, 1, 3), 2),
                ("factor 1", (2, 4, 5, 3), 1),
            )
        ),
    ]


def _transposed() -> list[Case]:
    image, filters, bias = normal(2, 5, 4, 3), normal(3, 3, 3, 4), normal(4)
    return [
        case(conv_transpose2d, "no bias", image, filters),
        case(conv_transpose2d, "even filter 2×2", image, normal(3, 2, 2, 4), bias),
        case(conv_transpose2d, "oblong filter 4×2", image, normal(3, 4, 2, 4), bias),
        case(conv_transpose2d, "filter 1×1", image, normal(3, 1, 1, 4), bias),
        case(conv_transpose2d, "filter larger than image", image, normal(3, 7, 7, 4), bias),
        case(conv_transpose2d, "VALID", image, filters, bias, padding="VALID"),
        case(conv_transpose2d, "padding pairs", image, filters, bias, padding=((0, 2), (1, 1))),
        case(conv_transpose2d, "padding beyond filter", image, normal(3, 2, 2, 4), bias, padding=((3, 0), (0, 2))),
        case(conv_transpose2d, "stride 2", image, filters, bias, stride=2),
        case(conv_transpose2d, "stride 2, VALID", image, filters, bias, stride=2, padding="VALID"),
        case(conv_transpose2d, "stride (3, 1)", image, filters, bias, stride=(3, 1)),
        case(conv_transpose2d, "stride beyond filter", image, normal(3, 2, 2, 4), bias, stride=3),
        case(conv_transpose2d, "dilation 2", image, filters, bias, dilation=2),
        case(conv_transpose2d, "stride 2, dilation (1, 3)", image, filters, bias, stride=2, dilation=(1, 3)),
        case(conv_transpose2d, "one pixel", normal(2, 1, 1, 3), filters, bias),
        case(conv_transpose2d, "one channel, one image", normal(1, 4, 3, 1), normal(1, 3, 3, 1), normal(1)),
        case(conv_transpose2d, "zeros and ties", tied(2, 5, 4, 3), tied(3, 3, 3, 4), tied(4)),
        case(conv_transpose2d, "values 1e15", lambda g: 1e15 * image(g), filters, bias),
        case(layers.ConvTranspose2D(4, 4, bias=False, stride=2), "layer, no bias", normal(2, 6, 5, 3)),
    ]
