"""Cases of convolution over one and over three spatial axes."""

from __future__ import annotations

from jaxcnn.layers import convolution as layers
from jaxcnn.rules.convolution_1d_3d import conv1d, conv3d
from jaxcnn.verification.cases.case import Case, case, normal, tied


def short() -> list[Case]:
    """Both rules and layers; the ranks are conv2d's, by the same code."""
    return [
        case(conv1d, "W", normal(7), normal(3), normal()),
        case(conv1d, "N×W×C", normal(2, 7, 3), normal(4, 3, 3), normal(4)),
        case(conv3d, "D×H×W", normal(3, 4, 5), normal(3, 2, 3), normal()),
        case(conv3d, "N×D×H×W×C", normal(2, 3, 4, 5, 3), normal(4, 3, 2, 3, 3), normal(4)),
        case(layers.Conv1D(4, 3), "layer", normal(2, 6, 3)),
        case(layers.Conv3D(2, 2), "layer", normal(2, 3, 2, 4, 3)),
    ]


def more() -> list[Case]:
    """The other ranks, even and oblong filters, strides, dilation, groups, padding, single values, large ones."""
    return [*_signals(), *_volumes()]


def _signals() -> list[Case]:
    signal, filters, bias = normal(2, 9, 4), normal(6, 3, 4), normal(6)
    return [
        case(conv1d, "W×C, one filter", normal(7, 3), normal(3, 3), normal()),
        case(conv1d, "W×C", normal(7, 3), normal(4, 3, 3), normal(4)),
        case(conv1d, "no bias", signal, filters),
        case(conv1d, "even filter 4", signal, normal(6, 4, 4), bias),
        case(conv1d, "filter larger than signal", normal(2, 3, 4), normal(6, 7, 4), bias),
        case(conv1d, "causal", signal, filters, bias, padding=((2, 0),)),
        case(conv1d, "padding beyond filter", signal, filters, bias, padding=((0, 5),)),
        case(conv1d, "stride 2, VALID", signal, filters, bias, stride=2, padding="VALID"),
        case(conv1d, "stride beyond filter", signal, normal(6, 2, 4), bias, stride=3),
        case(conv1d, "stride 2, dilation 3", signal, filters, bias, stride=2, dilation=3),
        case(conv1d, "groups 2", signal, normal(6, 3, 2), bias, groups=2),
        case(conv1d, "depthwise", signal, normal(4, 3, 1), normal(4), groups=4),
        case(conv1d, "one value", normal(2, 1, 4), filters, bias),
        case(conv1d, "zeros and ties", tied(2, 9, 4), tied(6, 3, 4), tied(6)),
        case(conv1d, "values 1e15", lambda g: 1e15 * signal(g), filters, bias),
        case(layers.Conv1D(4, 3, bias=False, stride=2), "layer, no bias", normal(2, 6, 3)),
    ]


def _volumes() -> list[Case]:
    volume, filters, bias = normal(2, 4, 5, 3, 2), normal(4, 3, 2, 3, 2), normal(4)
    return [
        case(conv3d, "D×H×W×C, one filter", normal(4, 5, 3, 2), normal(3, 2, 3, 2), normal()),
        case(conv3d, "D×H×W×C", normal(4, 5, 3, 2), filters, bias),
        case(conv3d, "no bias", volume, filters),
        case(conv3d, "filter 1×1×1", volume, normal(4, 1, 1, 1, 2), bias),
        case(conv3d, "filter larger than volume", normal(2, 2, 1, 2, 2), normal(4, 3, 3, 3, 2), bias),
        case(conv3d, "VALID", volume, filters, bias, padding="VALID"),
        case(conv3d, "padding pairs", volume, filters, bias, padding=((0, 2), (3, 1), (1, 0))),
        case(conv3d, "stride 2", volume, filters, bias, stride=2),
        case(conv3d, "stride (3, 1, 2), VALID", volume, filters, bias, stride=(3, 1, 2), padding="VALID"),
        case(conv3d, "dilation (1, 3, 2)", volume, normal(4, 2, 2, 2, 2), bias, dilation=(1, 3, 2)),
        case(conv3d, "stride 2, dilation 2", volume, normal(4, 2, 2, 2, 2), bias, stride=2, dilation=2),
        case(conv3d, "groups 2", volume, normal(4, 3, 2, 3, 1), bias, groups=2),
        case(conv3d, "depthwise, two filters a channel", volume, normal(4, 2, 2, 2, 1), bias, groups=2, stride=2),
        case(conv3d, "one voxel", normal(2, 1, 1, 1, 2), filters, bias),
        case(conv3d, "zeros and ties", tied(2, 4, 5, 3, 2), tied(4, 3, 2, 3, 2), tied(4)),
        case(layers.Conv3D(2, 2, bias=False, stride=2), "layer, no bias", normal(2, 3, 2, 4, 3)),
    ]
