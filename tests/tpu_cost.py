"""What a training step costs on a TPU, by the compiler's own figures and without a TPU: by hand against by autodiff.

`python tests/tpu_cost.py [--network NAME ...] [--json FILE]` prints a table; it exits 1 where the hand-written step
moves more bytes, or needs more temporary memory, than 1.05 times `jax.value_and_grad` of the network in plain jax.
Needs libtpu (`pip install "libtpu==0.0.42.*"`), which is no dependency of anything else. Minutes, for compilation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_networks
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

import jaxcnn

BATCH, RATE, TOPOLOGY = 512, 0.01, "v5e:2x2"
ALLOWED = 1.05
SHAPES = {"two_conv": (28, 28, 1), "resnet20": (32, 32, 3)}


class Cost(NamedTuple):
    """Of one compiled step on one device, by the compiler."""

    bytes_accessed: float
    operations: float
    temporaries: int  # bytes


def one_device() -> Mesh:
    """A mesh of one v5e chip that is not there."""
    devices = np.array(topologies.get_topology_desc(TOPOLOGY, "tpu").devices[:1])
    return Mesh(devices, ("batch",), axis_types=(AxisType.Auto,))


def steps(name: str, mesh: Mesh) -> Iterator[tuple[str, Callable, tuple[Any, ...]]]:
    """By hand and by autodiff: name, a function with `lower`, and the shapes of its arguments on the mesh."""
    network, optimizer = getattr(jaxcnn.models, name)(), optax.sgd(RATE)
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, optimizer, 0, SHAPES[name]))
    images = jax.ShapeDtypeStruct((BATCH, *SHAPES[name]), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    where = NamedSharding(mesh, P())
    state, images, labels = jax.tree.map(lambda leaf: leaf.update(sharding=where), (state, images, labels))
    by_hand = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer, mesh=mesh)
    yield "by hand", by_hand, (state, images, labels)
    plain = jax.jit(plain_networks.training_step(getattr(plain_networks, name), RATE), donate_argnums=0)
    yield "jax.value_and_grad", plain, (state.params, images, labels)


def cost(step: Any, arguments: tuple[Any, ...]) -> Cost:
    compiled = step.lower(*arguments).compile()
    figures = compiled.cost_analysis()
    return Cost(figures["bytes accessed"], figures["flops"], compiled.memory_analysis().temp_size_in_bytes)


def measured(name: str, mesh: Mesh) -> dict[str, Cost]:
    return {which: cost(step, arguments) for which, step, arguments in steps(name, mesh)}


def ratios(costs: dict[str, Cost]) -> Cost:
    """By hand over by autodiff."""
    hand, plain = costs["by hand"], costs["jax.value_and_grad"]
    return Cost(*(h / p for h, p in zip(hand, plain, strict=True)))


def holds(costs: dict[str, Cost]) -> bool:
    hand, plain = costs["by hand"], costs["jax.value_and_grad"]
    fewer_bytes = hand.bytes_accessed <= ALLOWED * plain.bytes_accessed
    return fewer_bytes and hand.temporaries <= ALLOWED * plain.temporaries


def table(results: dict[str, dict[str, Cost]]) -> Table:
    shown = Table(title=f"one training step, batch {BATCH}, compiled for one chip of {TOPOLOGY}")
    shown.add_column("network")
    shown.add_column("step")
    for title in ("bytes accessed", "operations", "temporaries"):
        shown.add_column(title, justify="right")
    for name, costs in results.items():
        for which, c in costs.items():
            memory = f"{c.temporaries / 2**20:.1f} MiB"
            shown.add_row(name, which, f"{c.bytes_accessed / 1e9:.3f} GB", f"{c.operations / 1e9:.1f} G", memory)
        verdict = "by hand / autodiff" + ("" if holds(costs) else f", NOT within {ALLOWED}")
        shown.add_row(name, verdict, *(f"{ratio:.2f}" for ratio in ratios(costs)))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # for what jax itself computes; the TPU is only compiled for
    mesh = one_device()
    results = {name: measured(name, mesh) for name in options.network}
    Console(width=None if sys.stdout.isatty() else 120).print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps({n: {w: c._asdict() for w, c in r.items()} for n, r in results.items()}))
    return 0 if all(map(holds, results.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
