"""Evaluation: every image once."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule, equally_varying
from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.training.devices import is_global, place
from jaxcnn.training.metrics import counts_of
from jaxcnn.training.samples import in_parts
from jaxcnn.training.step import TrainState


def evaluate(
    network: Layer,
    state: TrainState,
    images: Any,
    labels: Any,
    *,
    loss: Rule = softmax_cross_entropy,
    batch: int = 250,
) -> dict[str, float]:
    """Mean loss and accuracy over all images, each counted once, the last, smaller batch included.

    Args:
      state: its params and state are used. images: M×H×W×C. labels: (M, ...), what the loss takes;
        for the usual one class indices or rows.
      batch: how many images at a time.

    Returns:
      {"loss": mean, "accuracy": fraction, "samples": M}; the accuracy as in `train_step`, none for a loss of numbers.

    Raises:
      ValueError: no images, other than one label an image, a label outside the classes.

    >>> import jaxcnn, optax
    >>> import jax.numpy as jnp
    >>> network = jaxcnn.models.source()
    >>> state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, (8, 8, 1))
    >>> evaluate(network, state, jnp.zeros((5, 8, 8, 1)), jnp.zeros(5, int))["samples"]
    5
    """
    samples = len(images)
    labels = np.asarray(labels)
    if samples == 0 or labels.shape[:1] != (samples,):
        raise ValueError(f"evaluate: needs one label for each image, got {samples} images and labels {labels.shape}")
    if batch < 1:
        raise ValueError(f"evaluate: batch must be at least 1, got {batch}")
    if labels.dtype.kind in "iu" and (labels != labels.astype(np.int32)).any():
        raise ValueError(f"evaluate: labels hold values that int32 cannot, got {labels.min()} … {labels.max()}")
    where: Any = next((leaf.sharding for leaf in jax.tree.leaves(state.params) if isinstance(leaf, jax.Array)), None)
    total, right, decided = 0.0, 0, 0
    for start, pixels in zip(range(0, samples, batch), in_parts(images, batch), strict=True):
        part = slice(start, start + batch)
        # On the devices of the parameters: each has its share of the images where they divide, else all of them.
        mesh = where.mesh if isinstance(where, NamedSharding) and len(labels[part]) % where.mesh.size == 0 else None
        data = (pixels, labels[part])
        if isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh):
            data = place(data, where.mesh, P() if mesh is None else P(mesh.axis_names))
        else:
            data = jax.device_put(data, where)
        logits, costs = map(_on_host, _forward(network, loss, mesh, state.params, state.state, *data))
        cost = np.mean(costs)
        if np.isnan(cost):  # the loss is NaN for a label outside the classes, which has a clearer word
            loss.forward(logits, labels[part], **loss.static())
        total += float(cost) * len(labels[part])
        if counts := counts_of(loss, logits, labels):
            each = counts.right(logits, jnp.asarray(labels[part]))
            right, decided = right + int(each.sum()), decided + each.size
    return {"loss": total / samples, **({"accuracy": right / decided} if decided else {}), "samples": samples}


def _on_host(array: jax.Array) -> np.ndarray:
    """All of it, the parts on other processes' devices too."""
    if is_global(array) and not array.is_fully_replicated:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _forward(network, loss, mesh, params, state, images, labels):
    """(logits, the mean loss of each device's share)"""

    def share(params, state, images, labels):
        params, state, images, labels = equally_varying((params, state, images, labels))
        logits = network.forward(params, state, images)[0]
        return logits, loss.forward(logits, labels, **loss.static())[0][None]

    if mesh is not None:
        each = P(mesh.axis_names)
        share = jax.shard_map(share, mesh=mesh, in_specs=(P(), P(), each, each), out_specs=each)
    return share(params, state, images, labels)
