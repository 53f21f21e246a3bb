"""What the verifier found, for a program and for a person."""

from __future__ import annotations

import math
from typing import NamedTuple


class Row(NamedTuple):
    """One check of one argument, passed or not."""

    argument: str  # the array whose gradient it is; "" for the whole
    check: str  # "forward", "float64", "float32", "bfloat16"
    error: float  # largest absolute error over the array and over all cotangents
    tolerance: float  # what it may be
    scale: float  # largest element of the right gradient
    autodiff_error: float | None = None  # the same error of autodiff's own gradient in this dtype

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    @property
    def relative(self) -> float:
        """The error in units of the right gradient's largest element."""
        return self.error / self.scale if self.scale else (0.0 if self.error == 0 else math.inf)


class Finding(NamedTuple):
    """One failed check."""

    argument: str
    check: str
    cause: str  # one word: "structure", "nan", "precision", "unknown"
    error: float
    tolerance: float
    message: str  # a sentence with the evidence


class Report(NamedTuple):
    """The outcome of `verify`: `ok`, the `findings`, a `Row` for each check; printed, a table."""

    name: str
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not self.findings

    def largest(self, check: str) -> float:
        """The largest relative error of one check over all arguments; NaN if it was not reached."""
        return max((row.relative for row in self.rows if row.check == check), default=math.nan)

    def __str__(self) -> str:
        lines = [f"{self.name}: {'correct' if self.ok else f'{len(self.findings)} finding(s)'}"]
        width = max((len(row.argument) for row in self.rows), default=0)
        for row in self.rows:
            beside = "" if row.autodiff_error is None else f"   autodiff's own {row.autodiff_error:.1e}"
            lines.append(
                f"  {row.argument:<{width}}  {row.check:<8}  error {row.error:.1e}  allowed {row.tolerance:.1e}"
                f"  {'ok' if row.ok else 'FAILED'}{beside}"
            )
        lines += [f"  {f.cause}: {f.message}" for f in self.findings]
        return "\n".join(lines)
