"""What the verifier found, for a program and for a person."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CAUSES = (
    "scaled", "negated", "zero", "rotated", "flipped", "transposed", "shifted", "swapped", "border", "partial", "ties",
    "kink", "not-linear", "precision", "nan", "structure", "second-order", "nondeterministic", "unknown",
)  # fmt: skip
_SHADES = " .:-=+*#%@"


class Row(NamedTuple):
    """One check of one argument, passed or not."""

    argument: str  # the array whose gradient it is
    check: str  # a dtype ("float64": the values; lower ones: the precision), or what `verify` lists
    error: float  # largest absolute error over the array and over all cotangents
    tolerance: float  # what it may be
    scale: float  # largest element of the right gradient
    autodiff_error: float | None = None  # the same error of autodiff's own gradient in this dtype
    ulp: float | None = None  # a unit in the last place of the largest element, in this dtype

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    @property
    def relative(self) -> float:
        """The error in units of the right gradient's largest element."""
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else math.inf)

    @property
    def ulps(self) -> float | None:
        """The error in units in the last place, where the check is one of precision."""
        return self.error / self.ulp if self.ulp else None

    @property
    def autodiff_ulps(self) -> float | None:
        return self.autodiff_error / self.ulp if self.ulp and self.autodiff_error is not None else None


class Worst(NamedTuple):
    """The element that is furthest off."""

    index: tuple[int, ...]
    right: float
    got: float


class Finding(NamedTuple):
    """One failed check."""

    argument: str  # "" for the backward pass as a whole
    check: str
    cause: str  # one of CAUSES, the best supported
    error: float
    tolerance: float
    message: str  # a sentence with the evidence
    also: tuple[str, ...] = ()  # other causes that the evidence supports
    worst: Worst | None = None
    errors: Any = None  # H×W NumPy array, where the argument is like an image: the largest absolute error at each place

    def picture(self) -> str:
        """Where the error sits, as text: one character a place, darker for a larger error; "" where there is none."""
        if self.errors is None or not self.errors.size or not np.nanmax(self.errors) > 0:
            return ""
        with np.errstate(invalid="ignore"):
            shades = np.nan_to_num(self.errors / np.nanmax(self.errors), nan=1.0, posinf=1.0)
        levels = np.ceil(shades * (len(_SHADES) - 1)).astype(int)
        return "\n".join("|" + "".join(_SHADES[v] for v in row) + "|" for row in levels)


class Report(NamedTuple):
    """The outcome of `verify`: `ok`, the `findings`, a `Row` for each check; printed, a table."""

    name: str
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()  # what is no fault: bytes saved, kinks met, checks left out and why
    gaps: tuple[str, ...] = ()  # what could not be checked at the given arrays

    @property
    def ok(self) -> bool:
        return not self.findings

    def largest(self, check: str) -> float:
        """The largest relative error of one check over all arguments; NaN if it was not reached."""
        return max((row.relative for row in self.rows if row.check == check), default=math.nan)

    def __str__(self) -> str:
        correct = "correct where it could be checked" if self.gaps else "correct"
        lines = [f"{self.name}: {correct if self.ok else f'{len(self.findings)} finding(s)'}"]
        for finding in self.findings:
            also = f" (or {', '.join(finding.also)})" if finding.also else ""
            lines.append(f"  {finding.cause}{also}: {finding.message}")
            if finding.worst is not None:
                w = finding.worst
                place = f"[{', '.join(map(str, w.index))}]" if w.index else ""
                lines.append(f"    worst: d{finding.argument}{place} is {w.got:.6g}, right is {w.right:.6g}")
            lines += [f"    {row}" for row in finding.picture().splitlines()]
        lines += _table(self.rows) if self.rows else []
        lines += [f"  not checked: {gap}" for gap in self.gaps] + [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    __repr__ = __str__

    def plot(self, path: str | Path) -> None:
        """Writes a PNG: for each finding that has a place, where the error sits.

        Raises:
          ValueError: no finding has a place: all is correct, or no faulty array is like an image.
        """
        placed = [f for f in self.findings if f.errors is not None]
        if not placed:
            raise ValueError(f"plot: {self.name} has no finding with a place to show")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4 * len(placed), 4), layout="constrained")
        for axes, finding in zip(figure.subplots(1, len(placed), squeeze=False)[0], placed, strict=True):
            image = axes.imshow(finding.errors, cmap="magma", interpolation="nearest")
            axes.set_title(f"d{finding.argument}: {finding.cause} ({finding.check})", fontsize="medium")
            figure.colorbar(image, ax=axes, label="largest absolute error")
        figure.savefig(path, dpi=150)


def _table(rows: tuple[Row, ...]) -> list[str]:
    """A line a check, a column an argument; of many arguments (a network's) one column, the worst of them."""
    arguments = list(dict.fromkeys(row.argument for row in rows))
    checks = list(dict.fromkeys(row.check for row in rows))
    columns = {a: [r for r in rows if r.argument == a] for a in arguments}
    if len(arguments) > 5:
        columns = {f"worst of {len(arguments)}": list(rows)}
    cells = [["largest error, relative", *columns]]
    for check in checks:
        found = [[r for r in column if r.check == check] for column in columns.values()]
        cells.append([check, *(_cell(max(f, key=_excess)) if f else "" for f in found)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(row: Row) -> str:
    ulps = f" = {row.ulps:.2g} ulp (autodiff {row.autodiff_ulps:.2g})" if row.autodiff_ulps is not None else ""
    return f"{row.relative:.1e}{ulps}{'' if row.ok else ' FAILED'}"


def _excess(row: Row) -> float:
    return math.inf if math.isnan(row.error) or (row.error and not row.tolerance) else row.error / (row.tolerance or 1)
