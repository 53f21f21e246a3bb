"""Several seeds trained side by side in one compiled program, each as it would be trained alone on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule, as_array
from jaxcnn.rules.window import is_whole
from jaxcnn.training.augment import Augmentation
from jaxcnn.training.devices import all_devices, require_one_axis
from jaxcnn.training.step import Step, TrainState, init_train_state, one_step

# On two cores, a device each, a step of one seed takes, with `jax.vmap` over the seeds, with `lax.map` over those of a
# device, and with the seeds one after the other and the batch shared by the devices: 0.46, 0.30 and 0.70 ms for the
# source's network on the digits, 9.2, 5.7 and 6.7 ms for two_conv on 28×28 (batch 32; at 128 39, 21 and 25).


def init_train_states(
    network: Layer, optimizer: optax.GradientTransformation, seeds: Iterable[int], input_shape: tuple[int, ...]
) -> TrainState:
    """`init_train_state` of each seed: each array has a leading axis, the seeds'.

    Args:
      network: any Layer. optimizer: any optax GradientTransformation.
      seeds: whole numbers from 0 to less than 2³². input_shape: of one image, H×W×C.

    Raises:
      ValueError: no seeds, or other ones. TypeError: what is no optimizer.

    >>> import jaxcnn
    >>> states = init_train_states(jaxcnn.models.source(), optax.sgd(0.1), range(3), (8, 8, 1))
    >>> states.step.shape, states.params["dense_2"]["bias"].shape
    ((3,), (3, 10))
    """

    given: list[Any] = [seeds] if isinstance(seeds, str) else list(seeds)
    if not given or not all(is_whole(seed) and 0 <= seed < 2**32 for seed in given):
        raise ValueError(
            f"init_train_states: seeds must be whole numbers from 0 to less than {2**32}, at least one, got {given}"
        )
    if not hasattr(optimizer, "init"):
        raise TypeError("init_train_states: optimizer must be an optax optimizer, made by a call as optax.adam(1e-3)")

    def all_of(seeds):
        return lax.map(lambda seed: init_train_state(network, optimizer, seed, input_shape), seeds)

    return jax.jit(all_of)(np.array(given, np.uint32))


def train_seeds(
    network: Layer,
    loss: Rule,
    optimizer: optax.GradientTransformation,
    *,
    backward: str = "manual",
    microbatch: int | str | None = None,
    augment: Augmentation | None = None,
    skip_nonfinite: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Many steps of several seeds: `states, metrics = run(states, images, labels)`.

    The devices share the seeds, and meet once, at the end; each seed ends as `train_steps` with a mesh of one device
    leaves it. For small networks that is faster than one seed after the other with the batch shared.

    Args: those of `train_steps`; states as `init_train_states` makes them, of n seeds.
      images: n×S×N×H×W×C, the batch of each of S steps, labels: (n, S, N, ...): `images[indices]` and `labels[indices]`
        for indices (n, S, N) into one data set. They need not be on a device.

    Returns:
      The new states, and metrics as those of `train_step`, each (n, S). The old states are donated: do not use them
      again.

    Raises:
      ValueError: states, images and labels of different numbers of seeds, steps or images; TypeError: what is no state
      or no array; and what `train_steps` raises.

    >>> import jaxcnn
    >>> network, optimizer = jaxcnn.models.source(), optax.sgd(0.1)
    >>> states = init_train_states(network, optimizer, range(3), (8, 8, 1))
    >>> run = train_seeds(network, jaxcnn.softmax_cross_entropy, optimizer)
    >>> indices = np.stack([jaxcnn.shuffled(10, 4, seed=seed, epoch=0) for seed in range(3)])
    >>> states, metrics = run(states, np.zeros((10, 8, 8, 1), np.float32)[indices], np.arange(10)[indices])
    >>> states.step.tolist(), metrics["loss"].shape
    ([2, 2, 2], (3, 2))
    """
    how = {"backward": backward, "microbatch": microbatch, "skip_nonfinite": skip_nonfinite}
    return seeds_step(network, loss, optimizer, lambda _: augment, mesh=mesh, **how)


def seeds_step(
    network: Layer,
    loss: Rule,
    optimizer: optax.GradientTransformation,
    augment: Callable[[jax.Array], Augmentation | None],
    *,
    backward: str,
    microbatch: int | str | None,
    skip_nonfinite: int | None,
    mesh: Mesh | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`train_seeds` with an augmentation for each seed, a function of its number among the seeds, () int32."""
    mesh = all_devices() if mesh is None else mesh
    require_one_axis("train_seeds", mesh)

    def step_of(row):
        return one_step(
            "train_seeds", network, loss, optimizer, backward, microbatch, augment(row), skip_nonfinite, None
        )

    step_of(0)  # what it refuses, it refuses here

    def of_a_device(states, images, labels):
        first = lax.axis_index(mesh.axis_names) * len(images) if mesh.size > 1 else 0
        rows = jnp.minimum(first + jnp.arange(len(images)), len(states.step) - 1)

        def of_a_seed(given):
            row, state, images, labels = given
            one = step_of(row)
            return lax.scan(lambda state, batch: one(state, *batch), state, (images, labels))

        return lax.map(of_a_seed, (rows, jax.tree.map(lambda leaf: leaf[rows], states), images, labels))

    shared, everywhere = P(mesh.axis_names), P()

    def of_all(states, images, labels):
        if mesh.size == 1:
            return of_a_device(states, images, labels)
        # With the check, batch normalisation would know of the other devices, and take its statistics of their seeds.
        how = {"in_specs": (everywhere, shared, shared), "out_specs": shared, "check_vma": False}
        made = jax.shard_map(of_a_device, mesh=mesh, **how)(states, images, labels)
        made = jax.tree.map(lambda leaf: leaf[: len(states.step)], made)
        return lax.with_sharding_constraint(made, NamedSharding(mesh, everywhere))

    step = Step("train_seeds", of_all, mesh, {"images": shared, "labels": shared}, in_pieces=False)

    def run(states: TrainState, images: Any, labels: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        if not isinstance(states, TrainState):
            raise TypeError(f"train_seeds: takes a TrainState first, got {type(states).__name__}")
        images, labels = (
            given if isinstance(given, np.ndarray) else as_array("train_seeds", name, given)
            for name, given in (("images", images), ("labels", labels))
        )
        count, *shapes = (np.shape(given) for given in (states.step, images, labels))
        if not (len(count) == 1 and count == shapes[0][:1] == shapes[1][:1]):
            got = ", ".join(map(str, (count, *shapes)))
            raise ValueError(
                f"train_seeds: states, images and labels must be of as many seeds, the first axis of each; got {got}"
            )
        if min(map(len, shapes)) < 3 or shapes[0][:3] != shapes[1][:3]:
            raise ValueError(
                "train_seeds: images and labels must be seeds × steps × batch alike in their first axes, got "
                f"{shapes[0]} and {shapes[1]}"
            )
        (count,) = count
        # Where the seeds do not divide by the devices the last one is trained more than once.
        rows = np.minimum(np.arange(-(-count // mesh.size) * mesh.size), count - 1)
        if len(rows) > count:
            images, labels = images[rows], labels[rows]
        return step(states, images, labels)

    return run
