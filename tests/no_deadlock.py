"""Steps called in a loop without waiting, on 2 CPU devices: `python tests/no_deadlock.py SCENARIO STEPS`.

Executions with a collective that overlap on the CPU devices of one process can wait for each other for ever (XLA aborts
the process after 40 seconds). tests/test_no_deadlock.py runs this in processes of its own, with a time limit.
"""

from __future__ import annotations

import argparse
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

import jaxcnn

BATCH, SHAPE = 32, (8, 8, 1)


class Parts(NamedTuple):
    network: jaxcnn.Layer
    state: jaxcnn.TrainState
    step: Any
    images: Any
    labels: Any


def parts(seed: int = 0) -> Parts:
    """The source's network and a batch of numbers, on the devices already, so that nothing slows the loop down."""
    network, optimizer = jaxcnn.models.source(), optax.sgd(0.1)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(BATCH, *SHAPE)).astype(np.float32)
    state = jaxcnn.init_train_state(network, optimizer, seed, SHAPE)
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer)
    images, labels = jax.device_put((images, rng.integers(0, 10, BATCH)), jax.NamedSharding(step.mesh, P("batch")))
    return Parts(network, state, step, images, labels)


def alone(steps: int) -> jaxcnn.TrainState:
    _, state, step, images, labels = parts()
    for _ in range(steps):
        state, _ = step(state, images, labels)
    return state


def with_evaluation(steps: int) -> jaxcnn.TrainState:
    """Beside the steps another thread evaluates the network as it was at first."""
    network, first, _, images, labels = parts()
    ended = threading.Event()

    def evaluate():
        count = 0
        while not (count and ended.is_set()):
            count += jaxcnn.evaluate(network, first, images, labels, batch=20)["samples"] == BATCH
        return count

    with ThreadPoolExecutor() as threads:
        evaluations = threads.submit(evaluate)
        try:
            state = alone(steps)
        finally:
            ended.set()
        assert evaluations.result() > 0
    return state


def two_kinds(steps: int) -> jaxcnn.TrainState:
    """Single steps, and several in one scan, of two states in turn."""
    network, state, step, images, labels = parts()
    run = jaxcnn.train_steps(network, jaxcnn.softmax_cross_entropy, optax.sgd(0.1))
    other = parts(seed=1).state
    order = np.arange(2 * BATCH).reshape(2, BATCH) % BATCH
    data = jax.device_put((images, labels, order), run.shardings)
    for _ in range(steps):
        state, _ = step(state, images, labels)
        other, _ = run(other, *data)
    return state


def two_threads(steps: int) -> jaxcnn.TrainState:
    """Two trainings at the same time, each in a thread."""

    def train(seed):
        _, state, step, images, labels = parts(seed)
        for _ in range(steps):
            state, _ = step(state, images, labels)
        return state

    with ThreadPoolExecutor() as threads:
        first, second = threads.map(train, (0, 1))
    assert int(second.step) == steps
    return first


def of_sharded_data(steps: int) -> jaxcnn.TrainState:
    """Each batch is made by a jitted function of the user's with a collective in it, which nobody waits for."""
    _, state, step, images, labels = parts()

    def centred(images):
        return images - lax.pmean(images.mean(0), "batch")

    centred = jax.jit(jax.shard_map(centred, mesh=step.mesh, in_specs=P("batch"), out_specs=P("batch")))
    for _ in range(steps):
        state, _ = step(state, centred(images), labels)
    return state


def overlapping(steps: int) -> jaxcnn.TrainState:
    """What the library prevents: the same program, called as jax would call it. It gets stuck."""
    _, state, step, images, labels = parts()
    state = jax.device_put(state, jax.NamedSharding(step.mesh, P()))
    for _ in range(steps):
        state, _ = step.jitted(state, images, labels)(state, images, labels)
    return state


SCENARIOS = {f.__name__: f for f in (alone, with_evaluation, two_kinds, two_threads, of_sharded_data, overlapping)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("steps", type=int)
    options = parser.parse_args()
    jaxcnn.use_cpu_cores(2)
    state = SCENARIOS[options.scenario](options.steps)
    print(f"{options.scenario}: {int(state.step)} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
