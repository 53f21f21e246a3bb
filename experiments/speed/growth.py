"""How does the cost of a training step grow with the batch, the size of the images and the number of channels?

    python experiments/speed/growth.py [--quick] [--out DIR]

Networks like two_conv, each beside its floor: its operations over the rate of a matrix product measured in the same
run. A cliff is where the time of one operation rises to more than twice from one point to the next, or where a point
takes half as long again as the next, larger one; exit status 1 if there is one.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

import jaxcnn
from jaxcnn.benchmark.surroundings import surroundings
from jaxcnn.training.devices import available_cores

sys.path.append(str(Path(__file__).parents[1]))
from command_line import parsed, parser_of

CLIFF, CLEARLY = 2.0, 1.5
MOST_OPERATIONS = 5e11  # a point with more is left out: seconds for one step
SECONDS, MOST_STEPS = 2.0, 30  # a point is measured for so long, at least 3 steps
MATRIX = 2048


class Point(NamedTuple):
    """A network like two_conv: convolutions of `channels` and twice as many filters, on size×size×1 images."""

    batch: int = 128
    size: int = 32
    channels: int = 32

    @property
    def operations(self) -> int:
        """Multiplications and additions of one step: forward, gradients of the weights and of the layers' inputs,
        without that of the images, which nobody needs."""
        c, half, quarter = self.channels, self.size // 2, self.size // 4  # pooling leaves out what fills no window
        first, second = self.size**2 * 9 * c, half**2 * 9 * c * 2 * c
        dense = quarter**2 * 2 * c * 128 + 128 * 10
        return 2 * self.batch * (2 * first + 3 * (second + dense))


class Measured(NamedTuple):
    point: Point
    seconds: float  # one step, the median
    floor: float  # seconds, at the rate of a matrix product

    @property
    def times_floor(self) -> float:
        return self.seconds / self.floor


SWEEPS = {
    "batch": [16, 32, 64, 128, 256, 512, 1024, 2048, 4096],
    "size": [8, 12, 16, 24, 31, 32, 33, 37, 48, 64, 96, 128],
    "channels": [8, 15, 16, 17, 24, 32, 48, 64, 100, 128, 256],
}
QUICK = {"batch": [16, 64, 256], "size": [8, 16, 32], "channels": [8, 16, 32]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__ or "", "three small points each", "growth.json and growth.png")
    options = parsed(parser, __file__, arguments)
    jaxcnn.use_cpu_cores(max(n for n in range(1, available_cores() + 1) if 16 % n == 0))  # all batches divide by it

    results = {name: measure(points(name, options.quick)) for name in SWEEPS}
    found = [cliff for name, measured in results.items() for cliff in cliffs(name, measured)]
    left_out = [p._asdict() for name in SWEEPS for p in points(name, options.quick) if p.operations > MOST_OPERATIONS]
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    for name, measured in results.items():
        console.print(table(name, measured))
    for point in left_out:
        print(f"left out: {point}, more than {MOST_OPERATIONS:.0e} operations a step")
    print(
        "\n".join(f"cliff: {c['sweep']} {c['from']} to {c['to']}: {c['factor']:.1f} times" for c in found) or "no cliff"
    )
    record = {
        "command": options.command,
        **surroundings(["jaxcnn", "jax", "jaxlib", "optax", "numpy"]),
        "most_operations": MOST_OPERATIONS,
        "left_out": left_out,
        "sweeps": {name: [as_json(m) for m in measured] for name, measured in results.items()},
        "cliffs": found,
    }
    (options.out / "growth.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(results, options.out / "growth.png")
    return 1 if found else 0


def points(sweep: str, quick: bool) -> list[Point]:
    return [Point(**{sweep: value}) for value in (QUICK if quick else SWEEPS)[sweep]]


def measure(sweep: Sequence[Point]) -> list[Measured]:
    """Each point between two measurements of the matrix product: the machine's rate drifts."""
    product = timed_product()
    measured = []
    for point in sweep:
        if point.operations > MOST_OPERATIONS:
            continue
        before = product()
        seconds = statistics.median(step_times(point))
        rate = 2 * MATRIX**3 / statistics.mean([before, product()])
        measured.append(Measured(point, seconds, point.operations / rate))
        print(f"{point}: {seconds * 1e3:.1f} ms, {measured[-1].times_floor:.1f} times its floor", flush=True)
    return measured


def timed_product() -> Callable[[], float]:
    """A function that gives the seconds of one matrix product on all cores, the median of some."""
    a, b = (jax.random.normal(key, (MATRIX, MATRIX)) for key in jax.random.split(jax.random.key(0)))
    multiply = jax.jit(jnp.matmul)

    def once() -> float:
        start = time.perf_counter()
        multiply(a, b).block_until_ready()
        return time.perf_counter() - start

    once()
    return lambda: statistics.median(once() for _ in range(5))


def step_times(point: Point) -> Iterator[float]:
    """Seconds of single steps, after the first, which compiles."""
    network, optimizer = network_of(point), optax.sgd(0.01)
    shape = (point.size, point.size, 1)
    state = jaxcnn.init_train_state(network, optimizer, 0, shape)
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer, microbatch="auto")
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(point.batch, *shape)).astype(np.float32), rng.integers(0, 10, point.batch)
    images, labels = jax.device_put((images, labels), jax.NamedSharding(step.mesh, jax.P("batch")))
    begin, count = float("inf"), 0
    for i in range(MOST_STEPS + 2):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, images, labels))
        if i >= 2:  # one compiles, one more warms up
            yield time.perf_counter() - start
            begin, count = min(begin, start), count + 1
        if count >= 3 and time.perf_counter() - begin > SECONDS:
            return


def network_of(point: Point) -> jaxcnn.Layer:
    return jaxcnn.sequential(
        jaxcnn.Conv2D(point.channels, 3), jaxcnn.ReLU(), jaxcnn.MaxPool(2),
        jaxcnn.Conv2D(2 * point.channels, 3), jaxcnn.ReLU(), jaxcnn.MaxPool(2),
        jaxcnn.Flatten(), jaxcnn.Dense(128), jaxcnn.Sigmoid(), jaxcnn.Dense(10),
    )  # fmt: skip


def cliffs(sweep: str, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Where an operation takes more than `CLIFF` times as long as at the point before, or a whole step `CLEARLY` longer
    than at the point after, which has more to do.
    """
    found = []
    for before, after in itertools.pairwise(measured):
        ends = {"sweep": sweep, "from": getattr(before.point, sweep), "to": getattr(after.point, sweep)}
        factor = after.seconds / after.point.operations / (before.seconds / before.point.operations)
        if factor > CLIFF:
            found.append({**ends, "factor": factor})
        if before.seconds > CLEARLY * after.seconds:
            found.append({**ends, "factor": after.seconds / before.seconds})
    return found


def as_json(measured: Measured) -> dict[str, Any]:
    point = measured.point
    cost = {"operations": point.operations, "seconds": measured.seconds, "floor_seconds": measured.floor}
    return {**point._asdict(), **cost, "times_floor": measured.times_floor}


def table(sweep: str, measured: Sequence[Measured]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in (sweep, "GFLOP a step", "ms a step", "floor, ms", "times the floor"):
        shown.add_column(heading, justify="right")
    for m in measured:
        numbers = (m.point.operations / 1e9, m.seconds * 1e3, m.floor * 1e3, m.times_floor)
        shown.add_row(str(getattr(m.point, sweep)), *(f"{n:.3g}" for n in numbers))
    return shown


def draw(results: dict[str, list[Measured]], path: Path) -> None:
    """A panel for each sweep, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(results), figsize=(12, 4), sharey=True, layout="constrained")
    units = {"batch": "images a step", "size": "pixels a side", "channels": "filters of the first convolution"}
    for panel, (sweep, measured) in zip(panels, results.items(), strict=True):
        at = [getattr(m.point, sweep) for m in measured]
        panel.loglog(at, [m.seconds * 1e3 for m in measured], "o-", label="one training step")
        panel.loglog(at, [m.floor * 1e3 for m in measured], "--", label="floor: at the rate of a matrix product")
        panel.set_xscale("log", base=2)
        panel.set_xlabel(units[sweep])
        others = {name: value for name, value in Point()._asdict().items() if name != sweep}
        panel.set_title(", ".join(f"{name} {value}" for name, value in others.items()), fontsize="medium")
        panel.grid(which="major", alpha=0.3)
    panels[0].set_ylabel("milliseconds")
    panels[0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
