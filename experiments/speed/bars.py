"""What the benchmark has to show, as data, and whether it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxcnn.benchmark.result import Result, Row


class Bar(NamedTuple):
    """jaxcnn's fastest row, in a scan or not, is at least so many times better than the fastest of a library."""

    model: str
    batch: int
    over: str  # "jax", which is jax.value_and_grad, or "torch"
    required: float
    scan: bool = False
    what: str = "speed"  # or "temporaries": the memory, beside the library's most frugal row


BARS = (
    *(Bar("two_conv", batch, "jax", ratio) for batch, ratio in ((32, 2), (128, 4), (512, 5))),
    *(Bar("two_conv", batch, "torch", 1.3) for batch in (32, 128, 512)),
    *(Bar("resnet20", batch, "jax", 1.5) for batch in (32, 128, 512)),
    *(Bar("resnet20", batch, "torch", 1) for batch in (32, 128, 512)),
    *(
        Bar("source", batch, over, ratio, scan=True)
        for batch, ratio in ((32, 5), (128, 3))
        for over in ("jax", "torch")
    ),
    Bar("two_conv", 512, "jax", 20, what="temporaries"),
)


def judge(results: Sequence[Result], bars: Sequence[Bar] = BARS) -> list[dict[str, Any]]:
    """Each bar with each result that it is about: the ratio measured, null where a side has no figure, and whether it
    is passed. Bars of networks and batches that were not run are left out.
    """
    return [
        bar._asdict()
        | {"input_shape": list(result.network.input_shape), "measured": (ratio := measured(bar, result))}
        | {"passed": ratio is not None and ratio >= bar.required}
        for bar in bars
        for result in results
        if (bar.model, bar.batch) == (result.network.model, result.batch)
    ]


def measured(bar: Bar, result: Result) -> float | None:
    ours = result.best("jaxcnn", bar.scan)
    if ours is None:
        return None
    if bar.what == "speed":
        return result.over(ours, bar.over)
    theirs = [needs for row in result.rows if _is(bar, row) and (needs := row.temporaries) is not None]
    return min(theirs) / ours.temporaries if theirs and ours.temporaries else None


def _is(bar: Bar, row: Row) -> bool:
    return (row.library, row.scan, row.refused) == (bar.over, bar.scan, None)
