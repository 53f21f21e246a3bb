"""Cases of the losses; those of softmax_cross_entropy without smoothing are the source's."""

from __future__ import annotations

from jaxcnn.rules.binary_loss import sigmoid_binary_cross_entropy, sigmoid_focal_loss
from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.rules.regression_loss import huber_loss, mean_squared_error
from jaxcnn.verification.cases.case import Case, Maker, case, indices, normal, soft, tied


def decisions(*shape: int) -> Maker:
    """Zeros and ones."""
    return indices(shape, 2)


def probabilities(*shape: int) -> Maker:
    return lambda generator: generator.random(shape)


def short() -> list[Case]:
    """Every rule, with labels of each kind."""
    return [
        case(softmax_cross_entropy, "N×classes, indices, smoothed", normal(6, 5), indices(6, 5), label_smoothing=0.1),
        case(softmax_cross_entropy, "N×classes, soft rows, smoothed", normal(6, 5), soft(6, 5), label_smoothing=0.3),
        case(sigmoid_binary_cross_entropy, "N, 0 and 1", normal(6), decisions(6)),
        case(sigmoid_binary_cross_entropy, "N×classes, soft", normal(6, 5), probabilities(6, 5)),
        case(sigmoid_focal_loss, "N, 0 and 1", normal(6), decisions(6), alpha=0.25),
        case(sigmoid_focal_loss, "N×classes, soft", normal(6, 5), probabilities(6, 5), alpha=0.25),
        case(mean_squared_error, "N×outputs", normal(6, 5), normal(6, 5)),
        case(huber_loss, "N×outputs", normal(6, 5), normal(6, 5)),
    ]


def more() -> list[Case]:
    """Scalars, images, large logits, labels at the ends of their range, gamma of each kind, errors of just delta."""
    return [
        case(softmax_cross_entropy, "zero labels, smoothed", normal(6, 5), tied(6, 5), label_smoothing=0.1),
        case(softmax_cross_entropy, "logits 100, smoothed", _times(100, 6, 5), indices(6, 5), label_smoothing=0.1),
        case(sigmoid_binary_cross_entropy, "scalar", normal(), probabilities()),
        case(sigmoid_binary_cross_entropy, "N×H×W×C", normal(2, 4, 3, 2), decisions(2, 4, 3, 2)),
        case(sigmoid_binary_cross_entropy, "logits 100", _times(100, 6, 5), probabilities(6, 5)),
        case(sigmoid_binary_cross_entropy, "labels of any size", normal(6, 5), tied(6, 5)),
        *(
            case(sigmoid_focal_loss, f"{what}, gamma {gamma}", _times(size, 6, 5), labels(6, 5), gamma=gamma)
            for what, size, labels in (
                ("0 and 1", 1, decisions),
                ("soft", 1, probabilities),
                ("logits 30", 30, decisions),
            )
            for gamma in (0.0, 0.5, 1.0, 2.5)
        ),
        case(
            sigmoid_focal_loss, "floating 0 and 1", normal(6, 5), lambda g: decisions(6, 5)(g).astype(float), alpha=0.9
        ),
        case(mean_squared_error, "scalar", normal(), normal()),
        case(mean_squared_error, "values 1e15", _times(1e15, 6, 5), normal(6, 5)),
        case(huber_loss, "scalar", normal(), normal()),
        case(huber_loss, "errors of just delta", tied(6, 5), tied(6, 5), delta=2.0),
        case(huber_loss, "a small delta", normal(2, 4, 3, 2), normal(2, 4, 3, 2), delta=0.1),
    ]


def _times(size: float, *shape: int) -> Maker:
    return lambda generator: size * generator.standard_normal(shape)
