"""`jaxcnn verify`: its arguments, and what it prints."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxcnn.files import require_writable
from jaxcnn.tables import lean_table

if TYPE_CHECKING:
    from rich.console import Console


@dataclasses.dataclass(frozen=True)
class Verify:
    """Verify hand-written backward passes: those of the library, or one of your own.

    jaxcnn verify path/to/module.py:my_rule --shapes 2x8x8x3 4x3x3x3 4
    """

    target: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE.py:NAME]")] = None
    """A jaxcnn.Rule or Layer of your own; all of the library's when not given."""
    shapes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SHAPE ...")] = ()
    """Its arrays, drawn at random: 2x8x8x3 3x3x3x4; scalar; 8:10 for 8 whole numbers below 10."""
    static: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Its static arguments: stride=2 padding=VALID."""
    full: bool = False
    """All cases: odd and even sizes, strides, groups, ties, single pixels (minutes)."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the result to this file."""


def verify(arguments: Verify) -> int:
    """Verifies; returns the exit status."""
    require_writable("--json", arguments.json)
    if arguments.target is not None:
        return _verify_target(arguments, arguments.target)
    if arguments.shapes or arguments.static:
        raise ValueError("verify: --shapes and --static are for a rule of your own; give it as path/to/module.py:name")
    from rich.console import Console

    from jaxcnn.training.devices import available_cores
    from jaxcnn.verification import cases
    from jaxcnn.verification.options import Options

    console = Console(highlight=False, markup=False)
    count = len(cases.full_cases() if arguments.full else cases.short_cases())
    checks = ("float64", *Options().dtypes)
    table = lean_table("hand-written backward passes: largest error relative to the largest element")
    for heading in ("rule or layer", "case", *checks, ""):
        table.add_column(heading, justify="right" if heading in checks else "left")
    reports = []
    start = time.perf_counter()
    for case, report in _tracked(cases.verify_all(arguments.full, available_cores()), count, console):
        reports.append((case.what, case.static, report))
        largest = (report.largest(check) for check in checks)
        errors = ("-" if math.isnan(error) else f"{error:.1e}" for error in largest)
        table.add_row(report.name, case.what, *errors, "ok" if report.ok else "FAILED")
    console.print(table)
    for _, _, report in reports:
        if not report.ok:
            console.print(str(report))
    failed = sum(not report.ok for _, _, report in reports)
    largest = max(report.largest("float64") for _, _, report in reports)
    console.print(
        f"{len(reports)} cases, {failed} failed; largest float64 error {largest:.1e} of the largest element; "
        f"{time.perf_counter() - start:.0f} s"
    )
    _write_json(arguments.json, reports)
    return 1 if failed else 0


def _verify_target(arguments: Verify, target: str) -> int:
    import jaxcnn
    from jaxcnn.verification.target import load_target, make_array, make_static

    if arguments.full:
        raise ValueError("--full: is for the library's own rules; a rule of your own is always verified whole")
    rule = load_target(target)
    if not arguments.shapes:
        raise ValueError(
            f"--shapes: got none, required a shape for each array of {rule.name}: --shapes 2x8x8x3 3x3x3x4"
        )
    static = dict(map(make_static, arguments.static))
    try:
        report = jaxcnn.verify(rule, *(make_array(s, seed) for seed, s in enumerate(arguments.shapes)), **static)
    except TypeError as error:  # arguments that do not fit the rule
        raise ValueError(str(error)) from error
    print(report)
    _write_json(arguments.json, [(" ".join(arguments.shapes), static, report)])
    return 0 if report.ok else 1


def _write_json(file: Path | None, reports: Sequence[tuple[str, dict[str, Any], Any]]) -> None:
    if file is None:
        return
    results = []
    for what, static, report in reports:
        rows = [row._asdict() | {"relative": row.relative, "ok": row.ok} for row in report.rows]
        findings = [
            finding._asdict() | {"worst": finding.worst and finding.worst._asdict(), "errors": None}
            for finding in report.findings
        ]
        entry = {"name": report.name, "case": what, "static": repr(static), "ok": report.ok}
        results.append({**entry, "rows": rows, "findings": findings, "notes": report.notes})
    summary = {"cases": len(reports), "failed": sum(not report.ok for _, _, report in reports)}
    summary["largest_float64_error"] = max(report.largest("float64") for _, _, report in reports)
    file.write_text(json.dumps({**summary, "results": results}, indent=1) + "\n")


def _tracked(items: Iterator[Any], count: int, console: Console) -> Iterator[Any]:
    from rich.progress import track

    hidden = not console.is_terminal
    return iter(track(items, "verifying", total=count, console=console, transient=True, disable=hidden))
