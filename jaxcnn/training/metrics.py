"""What can be counted of a network's outputs, besides their loss: how many are right, how many labels are none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.binary_loss import sigmoid_binary_cross_entropy, sigmoid_focal_loss, valid_binary_labels
from jaxcnn.rules.loss import softmax_cross_entropy, valid_labels
from jaxcnn.rules.regression_loss import huber_loss, mean_squared_error


class Counts(NamedTuple):
    right: Callable[[Any, Any], Array]  # (logits, labels) -> for each prediction whether it is right
    valid: Callable[[Any, Any], Array]  # (logits, labels) -> for each label whether it is one


def _indices(logits, labels):
    return labels if labels.ndim < logits.ndim else labels.argmax(-1)


CLASSES = Counts(
    lambda logits, labels: logits.argmax(-1) == _indices(logits, labels),
    lambda logits, labels: valid_labels(_indices(logits, labels), logits.shape[-1]),
)
DECISIONS = Counts(
    lambda logits, labels: (logits > 0) == (labels > 0.5),
    lambda logits, labels: valid_binary_labels(labels),
)
OF_LOSS = {
    softmax_cross_entropy.forward: CLASSES,
    sigmoid_binary_cross_entropy.forward: DECISIONS,
    sigmoid_focal_loss.forward: DECISIONS,
    mean_squared_error.forward: None,
    huber_loss.forward: None,
}


def counts_of(loss: Rule, logits: Any, labels: Any) -> Counts | None:
    """None where nothing is right or wrong: numbers are predicted.

    The outputs for a loss of the user's own are taken for the logits of classes, unless there is one number a sample.
    """
    one_number = labels.ndim == logits.ndim and (logits.ndim < 2 or logits.shape[-1] == 1)
    return OF_LOSS.get(inspect.unwrap(loss.forward), None if one_number else CLASSES)
