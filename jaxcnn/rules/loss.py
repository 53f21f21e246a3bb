"""The loss of a choice among classes: the mean over the batch of what each sample costs."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats, require_number, wide


class SoftmaxCrossEntropyResiduals(NamedTuple):
    logits: Array  # as given; the softmax of them is computed again
    labels: Array  # as given


def softmax_cross_entropy_forward(
    logits: Array, labels: Array, *, label_smoothing: float = 0.0
) -> tuple[Array, SoftmaxCrossEntropyResiduals]:
    """Cross-entropy of the softmax of the logits, the mean over the batch.

    Args:
      logits: (N, classes), or with any leading axes (..., classes), floating. ±1e4 is no difficulty; -inf is a class
        with probability 0.
      labels: class indices, whole numbers (...,); or rows (..., classes), one-hot or soft, floating, then of the
        logits' dtype and differentiable like them, or whole numbers or truth values. A soft label of 0 on a class of
        probability 0 costs nothing, and its gradient is taken to be 0.
      label_smoothing: the share s of each label that is spread over all K classes, y' = (1 - s) y + s/K; at least 0 and
        less than 1. With s > 0 a class of probability 0 costs infinitely much.

    Returns:
      A scalar of the logits' dtype. An index outside the classes raises ValueError where its value is known; under
      `jax.jit`, where it is not, loss and gradient of its row are NaN, never a number that looks right.

    Raises:
      ValueError: shapes that do not fit, an empty batch, an index outside the classes, a smoothing outside [0, 1).
      TypeError: dtypes that do not fit, a smoothing that is no number.

    Source: the course text, part 2 "Backward Softmax", delta = a - y. Smoothing: Szegedy et al., "Rethinking the
    inception architecture for computer vision", CVPR 2016, section 7.

    >>> round(float(softmax_cross_entropy(jnp.array([[2.0, 0.0, 0.0]]), jnp.array([0]))), 4)
    0.2395
    >>> round(float(softmax_cross_entropy(jnp.array([[2.0, 0.0, 0.0]]), jnp.array([0]), label_smoothing=0.3)), 4)
    0.6395
    >>> jax.grad(softmax_cross_entropy)(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    Array([[ 1., -1.]], dtype=float32)
    """
    _check(logits, labels, label_smoothing)
    logs = jax.nn.log_softmax(wide(logits))
    if _are_rows(logits, labels):
        y = _smoothed(labels.astype(logs.dtype), label_smoothing)
        losses = -(y * _costs(logs, y)).sum(-1)
    else:
        chosen = jnp.take_along_axis(logs, _wide(labels)[..., None], -1)[..., 0]
        if label_smoothing:
            chosen = (1 - label_smoothing) * chosen + label_smoothing * logs.mean(-1)
        losses = jnp.where(valid_labels(labels, logits.shape[-1]), -chosen, jnp.nan)
    return losses.mean().astype(logits.dtype), SoftmaxCrossEntropyResiduals(logits, labels)


# For one sample L = -Σ_k y'_k log a_k with a = softmax(z), log a_k = z_k - log Σ_j e^(z_j), so
#
#     d log a_k / dz_i = [i = k] - a_i        and        dL/dz_i = a_i Σ_k y'_k - y'_i  =  a_i - y'_i  where Σ y' = 1,
#
# the source's delta. dL/dy'_k = -log a_k, and y' = (1 - s) y + s/K, so dL/dy_k = -(1 - s) log a_k. An index is one-hot.
# The mean over N samples divides all by N.
def softmax_cross_entropy_backward(residuals: SoftmaxCrossEntropyResiduals, dy: Array, *, label_smoothing):
    logits, labels = residuals
    z = wide(logits)
    a = jax.nn.softmax(z)
    share = wide(dy) / (logits.size // logits.shape[-1])
    if not _are_rows(logits, labels):
        y = _smoothed(jax.nn.one_hot(_wide(labels), logits.shape[-1], dtype=z.dtype), label_smoothing)
        delta = jnp.where(valid_labels(labels, logits.shape[-1])[..., None], a - y, jnp.nan)
        return (delta * share).astype(logits.dtype), None
    y = _smoothed(labels.astype(z.dtype), label_smoothing)
    delta = a * y.sum(-1, keepdims=True) - y
    dlabels = -(1 - label_smoothing) * _costs(jax.nn.log_softmax(z), y)
    return (delta * share).astype(logits.dtype), (dlabels * share).astype(logits.dtype)


softmax_cross_entropy = Rule(
    softmax_cross_entropy_forward, softmax_cross_entropy_backward, "softmax_cross_entropy", batch_axes=(0, 0)
)


def valid_labels(labels: Array, classes: int) -> Array:
    """Whether each index is one of the classes, as an array of the labels' shape."""
    return (_wide(labels) >= 0) & (_wide(labels) < classes)


def _wide(labels):
    """An int8 cannot be compared with 200 classes: the 200 would wrap."""
    return labels.astype(jnp.int64 if labels.dtype.itemsize == 8 else jnp.promote_types(labels.dtype, jnp.int32))


def _smoothed(y, label_smoothing):
    return (1 - label_smoothing) * y + label_smoothing / y.shape[-1]


def _costs(logs, labels):
    """log a, but 0 for a class that is ruled out and does not occur: 0 · -inf would be NaN."""
    return jnp.where((labels == 0) & (logs == -jnp.inf), 0, logs)


def _are_rows(logits, labels) -> bool:
    return labels.ndim == logits.ndim


def _check(logits, labels, label_smoothing) -> None:
    name = "softmax_cross_entropy"
    require_number(name, label_smoothing=label_smoothing)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{name}: label_smoothing must be at least 0 and less than 1, got {label_smoothing!r}")
    require_equal_floats(name, logits=logits)
    if logits.ndim < 1 or logits.size == 0:
        raise ValueError(f"{name}: logits must be (N, classes) and not empty, got shape {logits.shape}")
    if labels.shape not in (logits.shape, logits.shape[:-1]):
        raise ValueError(
            f"{name}: labels must be indices {logits.shape[:-1]} or rows {logits.shape}, got shape {labels.shape}"
        )
    whole = jnp.issubdtype(labels.dtype, jnp.integer)
    if _are_rows(logits, labels):
        if not whole and labels.dtype != bool:
            require_equal_floats(name, logits=logits, labels=labels)
        return
    if not whole:
        raise TypeError(f"{name}: labels that are class indices must be whole numbers, got {labels.dtype}")
    if not isinstance(labels, Tracer):
        values = np.asarray(labels)
        if values.min() < 0 or values.max() >= logits.shape[-1]:
            bad = values[(values < 0) | (values >= logits.shape[-1])].flat[0]
            raise ValueError(f"{name}: labels must be in 0 … {logits.shape[-1] - 1}, got {bad}")
