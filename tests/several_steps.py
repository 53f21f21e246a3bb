"""Steps from Python on the devices of several processes: `python tests/several_steps.py ADDRESS PROCESSES ID SEED`.

Each process gives its share of every batch; at the end it prints what it has. tests/test_processes.py compares.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import numpy as np
import optax

import jaxcnn
from jaxcnn.training.checkpoint import params_sha256

BATCH, SHAPE, STEPS = 16, (8, 8, 1), 5


def network() -> jaxcnn.Layer:
    """With batch normalisation, whose statistics are those of the whole batch."""
    return jaxcnn.sequential(
        jaxcnn.Conv2D(4, 3), jaxcnn.BatchNorm(), jaxcnn.ReLU(), jaxcnn.MaxPool(2), jaxcnn.Flatten(), jaxcnn.Dense(10)
    )


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(BATCH, *SHAPE)).astype(np.float32), rng.integers(0, 10, BATCH)) for _ in range(STEPS)]


def train(process: int, processes: int, seed: int, mesh: Any = None) -> dict:
    layers, optimizer = network(), optax.sgd(0.1, momentum=0.9)
    state = jaxcnn.init_train_state(layers, optimizer, seed, SHAPE)
    step = jaxcnn.train_step(layers, jaxcnn.softmax_cross_entropy, optimizer, mesh=mesh)
    losses = []
    for batch in batches():
        if processes > 1:
            own = slice(process * BATCH // processes, (process + 1) * BATCH // processes)
            shares = (array[own] for array in batch)
            batch = map(jax.make_array_from_process_local_data, step.shardings, shares)
        state, metrics = step(state, *batch)
        losses.append(float(metrics["loss"]))
    # 16 images divide among the processes, the 7 after them do not.
    images, labels = (np.concatenate([a, b[:7]]) for a, b in zip(*batches()[:2], strict=True))
    score = jaxcnn.evaluate(layers, state, images, labels, batch=16)
    return {"losses": losses, "sha256": params_sha256(state.params), **score}


def main() -> int:
    address, processes, process, seed = sys.argv[1], *map(int, sys.argv[2:])
    jax.distributed.initialize(address, processes, process)
    print(json.dumps(train(process, processes, seed + (process if seed else 0))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
