"""Cases of normalisation and dropout."""

from __future__ import annotations

import numpy as np

from jaxcnn.rules.dropout import dropout
from jaxcnn.rules.normalization import (
    batch_norm,
    frozen_batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from jaxcnn.verification.cases.case import Case, Maker, case, normal, tied


def positive(*shape: int) -> Maker:
    return lambda generator: generator.random(shape) + 0.1


def seeds(*shape: int) -> Maker:
    """The data of a key."""
    return lambda generator: generator.integers(0, 2**32, shape, dtype=np.uint32)


def short() -> list[Case]:
    """Every rule."""
    scale, shift, images = normal(4), normal(4), normal(2, 5, 3, 4)
    return [
        case(batch_norm, "N×C", normal(5, 4), scale, shift),
        case(batch_norm, "N×H×W×C", images, scale, shift),
        case(frozen_batch_norm, "N×H×W×C", images, scale, shift, normal(4), positive(4)),
        case(layer_norm, "N×C", normal(5, 4), scale, shift),
        case(group_norm, "N×H×W×C", images, scale, shift, groups=2),
        case(instance_norm, "N×H×W×C", images, scale, shift),
        case(rms_norm, "N×C", normal(5, 4), scale),
        case(dropout, "N×C", normal(5, 4), seeds(2), rate=0.4),
    ]


def more() -> list[Case]:
    """Ties, one group, few values, a mean far from 0, whole channels and samples left out."""
    scale, shift, images = normal(4), normal(4), normal(2, 5, 3, 4)
    return [
        case(batch_norm, "two samples", normal(2, 4), scale, shift),
        case(batch_norm, "zeros and ties", tied(4, 3, 2, 4), tied(4), tied(4)),
        case(batch_norm, "mean 100", lambda g: 100 + images(g), scale, shift),
        case(frozen_batch_norm, "N×C", normal(5, 4), scale, shift, normal(4), positive(4)),
        case(layer_norm, "N×H×W×C", images, scale, shift),
        case(layer_norm, "values 1e4", lambda g: 1e4 * g.standard_normal((5, 4)), scale, shift),
        case(group_norm, "one group", images, scale, shift, groups=1),
        case(group_norm, "a large epsilon", images, scale, shift, groups=2, epsilon=0.5),
        case(rms_norm, "N×H×W×C", images, scale),
        case(dropout, "whole channels", images, seeds(2), rate=0.5, broadcast=(1, 2)),
        case(dropout, "whole samples", images, seeds(2), rate=0.5, broadcast=(1, 2, 3)),
        case(dropout, "rate 0", images, seeds(2), rate=0.0),
    ]
