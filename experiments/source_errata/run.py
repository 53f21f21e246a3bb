"""Are the errors in the source really errors? Each formula as printed, as corrected, and by autodiff.

    python experiments/source_errata/run.py [--quick] [--out DIR]

Exit status 0 if every erratum is confirmed: the printed form raises or gives another value, and the corrected form
equals autodiff to 1e-12 in float64, in every case. 1 otherwise.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import part1
import part2_images
import part2_layers
import part2_theory
from erratum import EXACT, Case, Erratum, Result, judge, worst
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxcnn.benchmark.surroundings import surroundings

sys.path.append(str(Path(__file__).parents[1]))
from command_line import parsed, parser_of

ERRATA: list[Erratum] = part1.ERRATA + part2_theory.ERRATA + part2_layers.ERRATA + part2_images.ERRATA

# Slips of the pen with no value to compute. (line, printed, right)
TYPOS = [
    ("11", "`convNHWNpad`", "N stands for the images and for the n filters: N×H×W×n"),
    ("87", "layer I", "layer l"),
    ("87", "a^l : activation function", "the activation function's value"),
    ("87", "`∂a^l/∂z^l`", "`∂a^l/∂Z^l`"),
    ("93", "`∂L/∂w^l`", "`∂L/∂W^l`"),
    ("129", "Backward Flatten (1)", "Backward Flatten (l)"),
    ("150", "`7 ^l`", "`Z^l`"),
    ("177", "`W`", "`W^(l+1)`"),
]


def main(arguments: Sequence[str] | None = None, errata: Sequence[Erratum] = tuple(ERRATA)) -> int:
    parser = parser_of(__doc__ or "", "one seed and the smallest shapes", "result.json")
    options = parsed(parser, __file__, arguments)
    seeds, sizes = ([0], [1]) if options.quick else ([0, 1, 2], [1, 2])

    start = time.perf_counter()
    with jax.enable_x64(True):
        cases = [Case(seed, size) for size in sizes for seed in seeds]
        results = [worst(judge(one, case) for case in cases) for one in errata]

    failed = [one.id for one, result in zip(errata, results, strict=True) if not result.confirmed]
    kinds = Counter(one.kind for one in errata)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table(errata, results))
    for kind, count in kinds.items():
        console.print(f"{count:4} {kind}", highlight=False)
    print(f"{len(errata) - len(failed):4} of {len(errata)} confirmed, each in {len(cases)} case(s)")
    if failed:
        print(f"not confirmed: {', '.join(failed)}")

    device = jax.devices()[0]
    record = {
        "command": options.command,
        **surroundings(("jax", "jaxlib", "numpy")),
        "device": f"{device.platform} ({device.device_kind})",
        "dtype": "float64",
        "tolerance": EXACT,
        "seeds": seeds,
        "sizes": sizes,
        "seconds": round(time.perf_counter() - start, 1),
        "errata_count": len(errata),
        "confirmed_count": len(errata) - len(failed),
        "kinds": kinds,
        "errata": [entry(i, *pair) for i, pair in enumerate(zip(errata, results, strict=True), 1)],
        "typos": [dict(zip(("line", "printed", "right"), typo, strict=True)) for typo in TYPOS],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (options.out / "result.json").write_text(text + "\n", encoding="utf-8")
    return 1 if failed else 0


def entry(number: int, one: Erratum, result: Result) -> dict:
    """The erratum's record. Values are those of the case in which printed and autodiff differ least."""
    return {
        "number": number,
        "id": one.id,
        "place": f"{one.section}, {one.lines}",
        "kind": one.kind,
        "printed": one.printed,
        "corrected": one.right,
        "confirmed": result.confirmed,
        "values": {"printed": result.printed, "corrected": result.corrected, one.against: result.autodiff},
        "relative_errors": {  # null: it raises, or its shape or dtype differs
            "printed": _without_infinity(result.printed_error),
            "corrected": _without_infinity(result.corrected_error),
        },
    }


def table(errata: Sequence[Erratum], results: Sequence[Result]) -> Table:
    """Three rows an erratum: as printed, as corrected, by autodiff."""
    shown = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption_justify="left",
        caption="worst value: at the element where printed and autodiff differ most. error: the largest relative\n"
        "difference from autodiff (NumPy where nothing is differentiated); – where it raises, or differs in shape or "
        "dtype.",
    )
    shown.add_column("#", justify="right", width=2)
    shown.add_column("place in the source", width=20)
    shown.add_column("", width=9)
    shown.add_column("form", ratio=5, overflow="fold")
    shown.add_column("worst value", ratio=3, overflow="fold")
    shown.add_column("error", justify="right", width=7)
    for number, (one, result) in enumerate(zip(errata, results, strict=True), 1):
        mark = one.kind if result.confirmed else f"{one.kind}, NOT CONFIRMED"
        rows = [
            (str(number), one.section, "printed", one.printed, result.printed, number_of(result.printed_error)),
            ("", one.lines, "corrected", one.right, result.corrected, number_of(result.corrected_error)),
            ("", mark, one.against, "", result.autodiff, ""),
        ]
        for row in rows:
            shown.add_row(*(Text(cell.replace("`", "")) for cell in row))
        shown.add_section()
    return shown


def _without_infinity(error: float | None) -> float | str | None:
    """A NaN among the values makes the error infinite, which JSON cannot say: the word instead."""
    return "NaN" if error == float("inf") else error


def number_of(error: float | None) -> str:
    return "–" if error is None else f"{error:.1e}"


if __name__ == "__main__":
    sys.exit(main())
