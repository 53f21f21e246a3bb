"""The gradient of each sample's own loss, by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.layers import Layer
from jaxcnn.layers.layer import require_layers
from jaxcnn.rule import Rule
from jaxcnn.training.step import TrainState, gradient_by_hand


def per_sample_gradients(network: Layer, loss: Rule, state: TrainState, images: Any, labels: Any) -> dict[str, Any]:
    """For each sample the gradient of its own loss by the parameters, without autodiff.

    What `jax.vmap` of `jax.grad` over the samples gives: the hand-written passes, run for batches of one sample. Only
    what differs between samples is repeated; a convolution's filters are shared, so its passes stay one convolution of
    the whole batch. The mean over the samples is the gradient of a training step, unless a layer makes the samples
    depend on each other (batch normalisation) or draws random numbers.

    Args:
      network: N×H×W×C -> logits. loss: a rule of (logits, labels), the mean over the batch.
      state: its params and state are used; randomness is a function of (state.key, state.step, the sample).
      images: N×H×W×C. labels: N class indices, or N rows.

    Returns:
      A tree like `state.params`, every leaf with the samples' axis N in front: N times the memory of the parameters.

    Raises:
      ValueError: images and labels of different numbers. TypeError: a network that is no Layer, a state
      that is no TrainState, a loss that is no Rule; and whatever the network and the loss refuse.

    Source: Rochette, Manoel and Tramel, "Efficient per-example gradient computations in convolutional neural networks",
    2019.

    >>> import jaxcnn, optax
    >>> network = jaxcnn.models.source()
    >>> state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, (8, 8, 1))
    >>> images, labels = jnp.ones((4, 8, 8, 1)), jnp.arange(4)
    >>> gradients = per_sample_gradients(network, jaxcnn.softmax_cross_entropy, state, images, labels)
    >>> gradients["dense_2"]["bias"].shape
    (4, 10)
    """
    require_layers("per_sample_gradients", [network])
    if not isinstance(state, TrainState):
        raise TypeError(f"per_sample_gradients: state must be a TrainState, got {type(state).__name__}")
    if not isinstance(loss, Rule):
        raise TypeError(
            f"per_sample_gradients: loss must be a jaxcnn.Rule of (logits, labels), got {type(loss).__name__}"
        )
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    if images.ndim < 1 or labels.ndim < 1 or len(images) != len(labels):
        raise ValueError(
            f"per_sample_gradients: images and labels must have one axis of samples, got shapes {images.shape} and "
            f"{labels.shape}"
        )
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), len(images))

    def of_one(image, label, key):
        return gradient_by_hand(network, loss, 1.0, state.params, state.state, image[None], label[None], key)[1][0]

    return jax.vmap(of_one)(images, labels, keys)
