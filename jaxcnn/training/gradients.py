"""The gradient that a training step follows, layer by layer, and how near two gradients are."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.layers import Layer
from jaxcnn.layers.layer import require_layers
from jaxcnn.rule import Rule
from jaxcnn.training.arguments import require_one_seed
from jaxcnn.training.names import name_of
from jaxcnn.training.step import BACKWARD, TrainState


def gradients(
    network: Layer, loss: Rule, state: TrainState, images: Any, labels: Any, *, backward: str = "manual"
) -> dict[str, Any]:
    """What `train_step` hands its optimizer: the gradient of the mean loss by each parameter. No step is made.

    A pure function: under `jax.jit`, and `jax.vmap` or `lax.map` over states of several seeds. Called between steps it
    records what a changed backward pass gives; with backward="autodiff", what it should have given.

    Args:
      network: N×H×W×C -> logits. loss: a rule of (logits, labels), the mean over the batch.
      state: as the step would get it; randomness is a function of its key and step.
      images: N×H×W×C. labels: N class indices, or N rows.
      backward: "manual" or "autodiff", as for `train_step`.

    Returns:
      A tree like `state.params`.

    Raises:
      TypeError: a network that is no Layer, a loss that is no Rule, a state that is no TrainState. ValueError: an
      unknown `backward`; states of several seeds; and whatever the network and the loss refuse.

    >>> import jaxcnn, optax
    >>> network = jaxcnn.models.source()
    >>> state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, (8, 8, 1))
    >>> batch = jnp.ones((4, 8, 8, 1)), jnp.arange(4)
    >>> gradients(network, jaxcnn.softmax_cross_entropy, state, *batch)["dense_2"]["bias"].shape
    (10,)
    """
    require_layers("gradients", [network])
    if backward not in BACKWARD:
        raise ValueError(f"gradients: backward must be one of {', '.join(BACKWARD)}, got {backward!r}")
    if not isinstance(loss, Rule):
        raise TypeError(f"gradients: loss must be a jaxcnn.Rule of (logits, labels), got {type(loss).__name__}")
    if not isinstance(state, TrainState):
        raise TypeError(f"gradients: state must be a TrainState, got {type(state).__name__}")
    require_one_seed("gradients", state)
    key = jax.random.fold_in(state.key, state.step)
    batch = jnp.asarray(images), jnp.asarray(labels)
    return BACKWARD[backward](network, loss, 1.0, state.params, state.state, *batch, key)[1][0]


class Alignment(NamedTuple):
    """How near a gradient is to the right one; both are () arrays of float32, float64 where the gradients are."""

    cosine: jax.Array  # of the angle between the two: 1 the same direction, 0 unrelated, -1 the opposite
    ratio: jax.Array  # its length over the right one's


def alignment(got: Any, right: Any) -> dict[str, Alignment]:
    """Angle and length of a gradient against the right one, for each parameter apart.

    Args:
      got, right: trees of one structure, as `gradients` returns them.

    Returns:
      For each array by its name, as "conv2d_1/filters", an `Alignment`. Its cosine is NaN where one of the two is zero,
      its ratio inf or NaN where the right one is.

    Raises:
      ValueError: trees of different structure, or arrays of different shapes.

    Source: the angle as Lillicrap et al., "Random synaptic feedback weights support error backpropagation for deep
    learning", Nature Communications 2016, plot it.

    >>> near = alignment({"bias": jnp.array([2.0, 2.0])}, {"bias": jnp.array([1.0, 0.0])})["bias"]
    >>> round(float(near.cosine), 4), round(float(near.ratio), 4)
    (0.7071, 2.8284)
    """
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (got, right)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"alignment: got and right must be trees of the same arrays, got {shapes[0]} and {shapes[1]}")
    pairs = zip(jax.tree.leaves_with_path(got), jax.tree.leaves(right), strict=True)
    return {name_of(path): _alignment(g, r) for (path, g), r in pairs}


def _alignment(got: Any, right: Any) -> Alignment:
    # Each divided by its largest element first: the squares of a small gradient would be zero.
    dtype = jnp.promote_types(jnp.result_type(got, right), jnp.float32)
    (g, size), (r, right_size) = (_unit(jnp.asarray(a, dtype).ravel()) for a in (got, right))
    return Alignment(jnp.vdot(g, r), size / right_size)


def _unit(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the vector of length 1, its length)"""
    largest = jnp.abs(vector).max(initial=0.0)
    scaled = vector / largest
    norm = jnp.linalg.norm(scaled)
    return scaled / norm, jnp.where(largest == 0, 0, norm * largest)
