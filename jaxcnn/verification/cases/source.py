"""Cases of the source's layers and networks."""

from __future__ import annotations

from jaxcnn import layers, models
from jaxcnn.rules.activation import relu, sigmoid
from jaxcnn.rules.convolution import conv2d
from jaxcnn.rules.dense import dense
from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.rules.pooling import max_pool
from jaxcnn.rules.shape import flatten
from jaxcnn.verification.cases.case import Case, case, indices, normal, soft, tied


def short() -> list[Case]:
    """Every rule at every rank it takes, and every layer."""
    return [
        case(conv2d, "H×W", normal(7, 6), normal(3, 3), normal()),
        case(conv2d, "H×W×C, one filter", normal(7, 6, 3), normal(3, 3, 3), normal()),
        case(conv2d, "H×W×C", normal(7, 6, 3), normal(4, 3, 3, 3), normal(4)),
        case(conv2d, "N×H×W×C", normal(2, 7, 6, 3), normal(4, 3, 3, 3), normal(4)),
        case(max_pool, "H×W", normal(6, 4)),
        case(max_pool, "H×W×C", normal(6, 4, 3)),
        case(max_pool, "N×H×W×C", normal(2, 6, 4, 3)),
        case(relu, "scalar", normal()),
        case(relu, "N×H×W×C, zeros", tied(2, 5, 4, 3)),
        case(sigmoid, "scalar", normal()),
        case(sigmoid, "N×H×W×C", normal(2, 5, 4, 3)),
        case(flatten, "H×W", normal(5, 4)),
        case(flatten, "H×W×C", normal(5, 4, 3)),
        case(flatten, "N×H×W×C", normal(2, 5, 4, 3)),
        case(dense, "in", normal(6), normal(6, 4), normal(4)),
        case(dense, "N×in", normal(5, 6), normal(6, 4), normal(4)),
        case(softmax_cross_entropy, "N×classes, indices", normal(6, 5), indices(6, 5)),
        case(softmax_cross_entropy, "N×classes, soft rows", normal(6, 5), soft(6, 5)),
        case(layers.Conv2D(4, 3), "layer", normal(2, 6, 5, 3)),
        case(layers.Dense(4), "layer", normal(5, 6)),
        case(layers.MaxPool(2), "layer", normal(2, 6, 5, 3)),
        case(layers.ReLU(), "layer", normal(2, 6, 5, 3)),
        case(layers.Sigmoid(), "layer", normal(2, 6, 5, 3)),
        case(layers.Flatten(), "layer", normal(2, 6, 5, 3)),
        case(layers.residual(layers.Conv2D(3, 3)), "layer", normal(2, 6, 5, 3)),
        case(models.source(), "network, 8×8×1", normal(2, 8, 8, 1)),
    ]


def more() -> list[Case]:
    """Odd and even sizes, strides, groups, padding, ties, single pixels, large values."""
    return [*_convolutions(), *_poolings(), *_others()]


def _convolutions() -> list[Case]:
    image, filters, bias = normal(2, 9, 8, 4), normal(6, 3, 3, 4), normal(6)
    return [
        case(conv2d, "no bias", image, filters),
        case(conv2d, "even filter 2×2", image, normal(6, 2, 2, 4), bias),
        case(conv2d, "even filter 4×4", image, normal(6, 4, 4, 4), bias),
        case(conv2d, "oblong filter 1×3", image, normal(6, 1, 3, 4), bias),
        case(conv2d, "oblong filter 4×2", image, normal(6, 4, 2, 4), bias),
        case(conv2d, "filter 1×1", image, normal(6, 1, 1, 4), bias),
        case(conv2d, "filter larger than image", normal(2, 3, 2, 4), normal(6, 5, 5, 4), bias),
        case(conv2d, "VALID", image, filters, bias, padding="VALID"),
        case(conv2d, "VALID, one place", normal(2, 3, 3, 4), filters, bias, padding="VALID"),
        case(conv2d, "padding pairs", image, filters, bias, padding=((0, 2), (3, 1))),
        case(conv2d, "padding beyond filter", image, filters, bias, padding=((4, 0), (0, 5))),
        case(conv2d, "stride 2", image, filters, bias, stride=2),
        case(conv2d, "stride 2, VALID", image, filters, bias, stride=2, padding="VALID"),
        case(conv2d, "stride (3, 1)", image, filters, bias, stride=(3, 1)),
        case(conv2d, "stride beyond filter", image, normal(6, 2, 2, 4), bias, stride=3),
        case(conv2d, "dilation 2", image, filters, bias, dilation=2),
        case(conv2d, "stride 2, dilation (1, 3)", image, filters, bias, stride=2, dilation=(1, 3)),
        case(conv2d, "groups 2", image, normal(6, 3, 3, 2), bias, groups=2),
        case(conv2d, "depthwise", image, normal(4, 3, 3, 1), normal(4), groups=4),
        case(conv2d, "depthwise, two filters a channel", image, normal(8, 3, 3, 1), normal(8), groups=4, stride=2),
        case(conv2d, "one pixel", normal(2, 1, 1, 4), filters, bias),
        case(conv2d, "one channel, one image", normal(1, 6, 5, 1), normal(1, 3, 3, 1), normal(1)),
        case(conv2d, "many channels and filters", normal(2, 3, 8, 32), normal(32, 2, 3, 32), normal(32)),
        case(conv2d, "many images, few filters", normal(8, 4, 6, 3), normal(4, 3, 3, 3), normal(4)),
        case(conv2d, "zeros and ties", tied(2, 6, 5, 4), tied(6, 3, 3, 4), tied(6)),
        case(conv2d, "values 1e15", lambda g: 1e15 * image(g), filters, bias),
        case(conv2d, "values 1e-15", lambda g: 1e-15 * image(g), filters, bias),
    ]


def _poolings() -> list[Case]:
    shapes = {
        "2×2": ((2, 6, 4, 3), {}),
        "odd size": ((2, 7, 5, 3), {}),
        "SAME": ((2, 7, 5, 3), {"padding": "SAME"}),
        "overlap": ((2, 7, 8, 3), {"window": 3, "stride": 2}),
        "overlap, padded": ((2, 6, 7, 3), {"window": 3, "stride": 1, "padding": ((1, 2), (0, 1))}),
        "gaps": ((2, 8, 7, 3), {"window": 2, "stride": 3}),
        "oblong": ((2, 6, 6, 3), {"window": (2, 3), "stride": (1, 2)}),
        "one window": ((1, 4, 4, 1), {"window": 4}),
        "one pixel": ((2, 1, 1, 3), {"window": 1}),
    }
    return [
        case(max_pool, f"{what}, {'ties ' if make is tied else ''}{ties}", make(*shape), ties=ties, **static)
        for what, (shape, static) in shapes.items()
        for make, ties in ((normal, "first"), (tied, "first"), (tied, "split"), (tied, "all"))
    ]


def _others() -> list[Case]:
    return [
        case(relu, "H×W", normal(5, 4)),
        case(relu, "values 1e15", lambda g: 1e15 * g.standard_normal((5, 4))),
        case(sigmoid, "H×W", normal(5, 4)),
        case(sigmoid, "values 30", lambda g: 30 * g.standard_normal((5, 4))),
        case(dense, "no bias", normal(5, 6), normal(6, 4)),
        case(dense, "leading axes", normal(2, 3, 6), normal(6, 4), normal(4)),
        case(dense, "one sample, one input", normal(1, 1), normal(1, 4), normal(4)),
        case(softmax_cross_entropy, "classes", normal(5), indices((), 5)),
        case(softmax_cross_entropy, "leading axes", normal(2, 3, 5), soft(2, 3, 5)),
        case(softmax_cross_entropy, "rows of any sum", normal(6, 5), normal(6, 5)),
        case(softmax_cross_entropy, "zero labels", normal(6, 5), tied(6, 5)),
        case(softmax_cross_entropy, "logits 100", lambda g: 100 * g.standard_normal((6, 5)), indices(6, 5)),
        case(layers.Conv2D(4, 3, bias=False, stride=2), "layer, no bias", normal(2, 6, 5, 3)),
        case(layers.Dense(4, bias=False), "layer, no bias", normal(5, 6)),
        case(layers.MaxPool(3, stride=2, ties="split"), "layer, ties split", tied(2, 6, 5, 3)),
        case(layers.residual(layers.Conv2D(4, 3), layers.Conv2D(4, 1)), "layer, shortcut", normal(2, 6, 5, 3)),
        case(models.lenet5(), "network, 28×28×1", normal(2, 28, 28, 1)),
        case(models.two_conv(), "network, 12×12×1", normal(2, 12, 12, 1)),
    ]
