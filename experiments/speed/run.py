"""How fast is a training step beside jax.value_and_grad, Flax, Equinox and PyTorch?

    python experiments/speed/run.py [--quick] [--out DIR]

Runs `jaxcnn bench` and holds its ratios against the bars of bars.py. Exit status 0 if every bar is passed, 1 otherwise.
PyTorch, Flax and Equinox take part where they are installed; a bar over a library that is not is not passed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bars import BARS, Bar, judge
from rich import box
from rich.console import Console
from rich.table import Table

from jaxcnn.benchmark.figure import draw
from jaxcnn.benchmark.result import as_json
from jaxcnn.cli_bench import Bench, measure, settings_of

sys.path.append(str(Path(__file__).parents[1]))
from command_line import parsed, parser_of


def main(arguments: Sequence[str] | None = None, bars: Sequence[Bar] = BARS) -> int:
    parser = parser_of(__doc__ or "", "batch 32 and short turns", "result.json and speed.png")
    options = parsed(parser, __file__, arguments)

    start = time.perf_counter()
    settings = settings_of(Bench(quick=options.quick))
    results = measure(settings)
    judged = judge(results, bars)
    passed = sum(one["passed"] for one in judged)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table(judged))
    print(f"{passed} of {len(judged)} bars passed")
    record = {
        "command": options.command,
        "seconds": round(time.perf_counter() - start, 1),
        "bars_passed": passed,
        "bars": judged,
        **as_json(settings, results),
    }
    (options.out / "result.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(results, options.out / "speed.png")
    return 0 if passed == len(judged) else 1


def table(judged: Sequence[dict[str, Any]]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("network", "batch", "", "over", "required", "measured", ""):
        shown.add_column(heading, justify="right" if heading in ("batch", "required", "measured") else "left")
    for one in judged:
        network = f"{one['model']}, {'×'.join(map(str, one['input_shape']))}{', scan' if one['scan'] else ''}"
        ratio = "-" if one["measured"] is None else f"{one['measured']:.2f}"
        required = f"{one['required']:g}"
        mark = "passed" if one["passed"] else "MISSED"
        shown.add_row(network, str(one["batch"]), one["what"], one["over"], required, ratio, mark)
    return shown


def in_readme(record: dict[str, Any]) -> list[str]:
    """The rows of the README's table: milliseconds of each library's fastest way, one step at a time or in a scan."""
    return [_in_readme(result) for result in record["results"]]


def _in_readme(result: dict[str, Any]) -> str:
    timed = sorted((row for row in result["rows"] if row["median"] is not None), key=lambda row: row["median"])
    jax_, torch, ours = (next(row for row in timed if row["library"] == name) for name in ("jax", "torch", "jaxcnn"))
    scanned = [row for row in timed if row["library"] == "jax" and row["scan"] and row is not jax_][:1]
    size = "×".join(map(str, result["input_shape"]))
    cells = (
        f"{result['network']} {size}, {result['batch']}",
        milliseconds(jax_) + "".join(f" ({milliseconds(row)} in a scan)" for row in scanned),
        milliseconds(torch),
        milliseconds(ours) + (", in a scan" if ours["scan"] else ""),
        *(f"{other['median'] / ours['median']:.1f}" for other in (jax_, torch)),
    )
    return f"| {' | '.join(cells)} |"


def milliseconds(row: dict[str, Any]) -> str:
    """Three digits of them."""
    ms = row["median"] * 1e3
    return f"{ms:.0f}" if ms >= 99.95 else f"{ms:#.3g}"


if __name__ == "__main__":
    sys.exit(main())
