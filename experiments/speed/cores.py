"""How many times as fast is a training step with a CPU device a core as with one?

    python experiments/speed/cores.py [--quick] [--out DIR]

two_conv on 28×28×1, on a mesh of one CPU device and on one of a device a core, in turn; medians over the rounds. One
device is not one core: XLA gives the larger operations of one to several threads. Exit status 1 if all devices are less
than 1.5 times as fast at batch 128 or 512.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import jaxcnn
from jaxcnn.benchmark.surroundings import surroundings
from jaxcnn.training.devices import available_cores

sys.path.append(str(Path(__file__).parents[1]))
from command_line import parsed, parser_of

BATCHES = (32, 128, 512)
REQUIRED = {128: 1.5, 512: 1.5}
SHAPE = (28, 28, 1)
ROUNDS, IMAGES = 15, 2048  # a round is as many steps as take this many images


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__ or "", "one round", "cores.json")
    options = parsed(parser, __file__, arguments)
    cores = max(n for n in range(1, available_cores() + 1) if BATCHES[0] % n == 0)
    if cores == 1:
        parser.error("there is one core, and nothing to compare it with")
    jax.config.update("jax_num_cpu_devices", cores)  # and nothing else: one device has to itself what XLA gives to one

    found = [{"batch": batch, **compare(batch, cores, 1 if options.quick else ROUNDS)} for batch in BATCHES]
    for one in found:
        print(
            f"batch {one['batch']}: {one['one'] * 1e3:.3g} ms on one device, {one['all'] * 1e3:.3g} ms on {cores}: "
            f"{one['times']:.2f} times as fast"
        )
    record = {
        "command": options.command,
        **surroundings(["jaxcnn", "jax", "jaxlib", "optax", "numpy"]),
        "required": REQUIRED,
        "batches": found,
    }
    (options.out / "cores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if any(one["times"] < REQUIRED.get(one["batch"], 0) for one in found) else 0


def compare(batch: int, cores: int, rounds: int) -> dict[str, float]:
    """Seconds of a step on one device and on all, and their ratio."""
    first, every = (timed(batch, Mesh(np.array(jax.devices()[:count]), ("batch",))) for count in (1, cores))
    times = [(first(), every()) for _ in range(rounds)]
    one, all_ = map(statistics.median, zip(*times, strict=True))
    return {"one": one, "all": all_, "times": one / all_}


def timed(batch: int, mesh: Mesh) -> Callable[[], float]:
    """A function that gives the seconds of a step, the mean of some."""
    network, optimizer = jaxcnn.models.two_conv(), optax.sgd(0.01)
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer, microbatch="auto", mesh=mesh)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(batch, *SHAPE)).astype(np.float32), rng.integers(0, 10, batch)
    data = jax.device_put(data, step.shardings)
    state, _ = step(jaxcnn.init_train_state(network, optimizer, 0, SHAPE), *data)
    count = max(1, IMAGES // batch)

    def once() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(count):
            state, _ = step(state, *data)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / count

    once()
    return once


if __name__ == "__main__":
    sys.exit(main())
