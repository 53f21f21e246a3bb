"""jaxcnn's own training step, as its users call it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn.benchmark.contestant import STEPS_A_SCAN, Prepared, in_scans, one_by_one, temporary_bytes
from jaxcnn.benchmark.problem import RATE, Problem
from jaxcnn.training.devices import place


def prepare(problem: Problem, devices: int, *, scan: bool = False) -> Prepared:
    """`train_step` over one CPU device a core; `train_steps` where `scan`."""
    del devices  # the step takes all there are
    network, optimizer = getattr(jaxcnn.models, problem.network.model)(), optax.sgd(RATE)
    state = jaxcnn.init_train_state(network, optimizer, 0, problem.network.input_shape)
    params = _filled(network.init(jax.random.key(0), problem.network.input_shape)[0], iter(problem.parameters))
    state = state._replace(params=params)
    make = jaxcnn.train_steps if scan else jaxcnn.train_step
    step = make(network, jaxcnn.softmax_cross_entropy, optimizer, backward="manual", microbatch="auto")

    def with_loss(state, *data):
        state, metrics = step(state, *data)
        return state, metrics["loss"]

    if scan:
        images, labels = (a.reshape(-1, *a.shape[2:]) for a in (problem.images, problem.labels))
        indices = jnp.arange(STEPS_A_SCAN * problem.labels.shape[1]) % len(labels)
        data = (images, labels, indices.reshape(STEPS_A_SCAN, -1))
    else:
        data = (problem.images[0], problem.labels[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (state, *data))

    def temporaries():
        return temporary_bytes(step.lower(*shapes).compile(), step.mesh.size)

    state = place(state, step.mesh, P())
    if scan:
        data = [place(a, step.mesh, spec) for a, spec in zip(data, step.specs.values(), strict=True)]
        return Prepared(in_scans(with_loss, jax.block_until_ready, state, *data), temporaries, STEPS_A_SCAN)
    batches = [
        [place(a, step.mesh, spec) for a, spec in zip(batch, step.specs.values(), strict=True)]
        for batch in zip(problem.images, problem.labels, strict=True)
    ]
    return Prepared(one_by_one(with_loss, jax.block_until_ready, state, batches), temporaries)


def _filled(params: dict[str, Any], arrays: Any) -> dict[str, Any]:
    """The parameters, which stand in the order of the forward pass, with the arrays' values."""
    filled = {}
    for name, value in params.items():
        if isinstance(value, dict):
            filled[name] = _filled(value, arrays)
        else:
            array = next(arrays)
            array = array.transpose(3, 0, 1, 2) if array.ndim == 4 else array  # jaxcnn's filters are n×h×w×C
            if array.shape != value.shape:
                raise ValueError(f"benchmark: {name} has the shape {value.shape}, the given array {array.shape}")
            filled[name] = jnp.asarray(array)
    return filled
