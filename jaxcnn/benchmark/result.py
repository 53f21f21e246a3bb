"""What a run of the benchmark has found, and the figures that follow from it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxcnn.benchmark.contestant import Contestant
from jaxcnn.benchmark.problem import RATE, Network
from jaxcnn.benchmark.surroundings import surroundings

PACKAGES = ("jaxcnn", "jax", "jaxlib", "numpy", "optax", "flax", "equinox", "torch")
TOLERANCE = 3e-5  # relative, of each of the first losses; ResNet-20's differ by 5e-6 from library to library


class Settings(NamedTuple):
    """What is to be timed."""

    networks: tuple[Network, ...]
    batches: tuple[int, ...]
    contestants: tuple[Contestant, ...]  # the reference first
    rounds: int
    seconds: float  # that a contestant's turn in a round takes at least
    seed: int


class Row(NamedTuple):
    """One contestant."""

    contestant: str
    library: str
    scan: bool
    refused: str | None = None  # why there are no figures
    seconds: tuple[float, ...] = ()  # a step, for each round
    steps: int = 0  # a round
    first_call: float | None = None  # seconds, compilation included
    temporaries: int | None = None  # bytes, of all devices together
    losses: tuple[float, ...] = ()  # of the first steps
    difference: float | None = None  # the largest of the losses from the reference's, relative

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)


class Result(NamedTuple):
    """One network with one size of batch."""

    network: Network
    batch: int
    operations: int  # of a step
    rate: float  # operations a second of the matrix product, the median of the same rounds
    rows: tuple[Row, ...]

    def best(self, library: str, scan: bool = False) -> Row | None:
        """The fastest of a library's rows; None if it has none."""
        rows = [row for row in self.rows if (row.library, row.scan) == (library, scan) and row.seconds]
        return min(rows, key=lambda row: row.median, default=None)

    def over(self, row: Row, library: str) -> float | None:
        """How many times as fast as the library's fastest row; for a row in a scan, jax's fastest in a scan."""
        other = self.best(library, row.scan and library == "jax")
        return other.median / row.median if other is not None and row.seconds else None

    def share(self, row: Row) -> float | None:
        """Of the machine's rate of matrix products."""
        return self.operations / row.median / self.rate if row.seconds else None


def difference(losses: tuple[float, ...], reference: tuple[float, ...]) -> float:
    """The largest, relative to the reference's; infinite where a loss is no number."""
    each = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)]
    return max(x if x == x else float("inf") for x in each)


def as_json(settings: Settings, results: Sequence[Result]) -> dict[str, Any]:
    """Plain numbers and strings: where and how, and of each network and batch the rows with the table's figures."""
    return {
        **surroundings(PACKAGES),
        "rounds": settings.rounds,
        "seconds_a_round": settings.seconds,
        "seed": settings.seed,
        "learning_rate": RATE,
        "dtype": "float32",
        "tolerance": TOLERANCE,
        "results": [
            {
                "network": result.network.model,
                "input_shape": list(result.network.input_shape),
                "batch": result.batch,
                "operations": result.operations,
                "matrix_product_rate": result.rate,
                "rows": [_row(result, row) for row in result.rows],
            }
            for result in results
        ],
    }


def _row(result: Result, row: Row) -> dict[str, Any]:
    figures = {"over_jax": result.over(row, "jax"), "over_torch": result.over(row, "torch"), "share": result.share(row)}
    return row._asdict() | {"median": row.median if row.seconds else None} | figures
