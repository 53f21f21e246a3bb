"""Cases of layers of normalisation and dropout, in training and outside of it."""

from __future__ import annotations

from jaxcnn import layers
from jaxcnn.rules.cast import cast
from jaxcnn.verification.cases.case import Case, case, normal


def short() -> list[Case]:
    """Every layer."""
    images = normal(2, 3, 2, 4)
    return [
        case(cast, "to float64", normal(4, 3), dtype="float64"),
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
    ]


def more() -> list[Case]:
    return [
        case(layers.BatchNorm(), "layer, N×C", normal(5, 4)),
        case(layers.LayerNorm(), "layer, N×C", normal(5, 4)),
        case(layers.RMSNorm(), "layer, N×C", normal(5, 4)),
        case(layers.Dropout(0.4), "layer, trained", normal(5, 4), train=False),
        case(layers.StochasticDepth(0.0), "layer, rate 0", normal(2, 3, 2, 4)),
    ]
