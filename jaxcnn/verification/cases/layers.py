"""Cases of layers of normalisation, dropout and scaling, of branches and what joins them."""

from __future__ import annotations

from jaxcnn import layers
from jaxcnn.layers import Layer
from jaxcnn.rules.join import add, concatenate, scale_channels
from jaxcnn.verification.cases.case import Case, case, normal


def short() -> list[Case]:
    """Every layer."""
    images = normal(2, 3, 2, 4)
    return [
        case(add, "three", normal(4, 3), normal(4, 3), normal(4, 3)),
        case(concatenate, "N×C", normal(4, 3), normal(4, 1), normal(4, 2)),
        case(scale_channels, "N×H×W×C, C", images, normal(4)),
        case(scale_channels, "N×H×W×C, N×C", images, normal(2, 4)),
        case(layers.BatchNorm(), "layer, training", images),
        case(layers.BatchNorm(), "layer, trained", images, train=False),
        case(layers.LayerNorm(), "layer", images),
        case(layers.GroupNorm(2), "layer", images),
        case(layers.InstanceNorm(), "layer", images),
        case(layers.RMSNorm(), "layer", images),
        case(layers.Dropout(0.4), "layer, training", images),
        case(layers.SpatialDropout(0.4), "layer, training", images),
        case(layers.StochasticDepth(0.4), "layer, training", images),
        case(layers.Identity(), "layer", images),
        case(layers.with_dtypes(layers.Dense(3, name="mixed"), parameters="float32"), "layer", normal(4, 3)),
        case(layers.LayerScale(), "layer", images),
        case(layers.SqueezeExcitation(4, 2), "layer", images),
        case(layers.parallel(layers.Dense(3), layers.Dense(2), join="concatenate"), "layer, concatenate", normal(4, 3)),
    ]


def more() -> list[Case]:
    return [
        case(scale_channels, "N×C, N×C", normal(5, 4), normal(5, 4)),
        case(layers.parallel(layers.Dense(3), layers.Dense(3)), "layer, sum", normal(4, 3)),
        case(layers.parallel(layers.Dense(3), layers.Dense(3), join=scale_channels), "layer, scaled", normal(4, 3)),
        case(_block(), "layer, a residual block with batch normalisation", normal(3, 4, 2, 2)),
        case(layers.BatchNorm(), "layer, N×C", normal(5, 4)),
        case(layers.LayerNorm(), "layer, N×C", normal(5, 4)),
        case(layers.RMSNorm(), "layer, N×C", normal(5, 4)),
        case(layers.Dropout(0.4), "layer, trained", normal(5, 4), train=False),
        case(layers.StochasticDepth(0.0), "layer, rate 0", normal(2, 3, 2, 4)),
    ]


def _block() -> Layer:
    """The block that ResNets repeat, with a projection on the way around."""
    layer = layers.sequential(
        layers.Conv2D(4, 3, stride=2, bias=False), layers.BatchNorm(), layers.ReLU(),
        layers.Conv2D(4, 3, bias=False), layers.BatchNorm(),
    )  # fmt: skip
    shortcut = layers.sequential(layers.Conv2D(4, 1, stride=2, bias=False), layers.BatchNorm())
    return layers.residual(layer, shortcut, name="block")
