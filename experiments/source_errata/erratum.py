"""What an erratum is, and how one is judged: as printed, as corrected and by autodiff, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

EXACT = 1e-12  # float64: sums of at most a few hundred terms of size one, in another order
DIFFERENT = 1e-6  # far above any rounding of float64: what differs by more was computed by another formula

Array = Any  # a NumPy array: the library takes it, but its annotation jax.Array does not include it
Three = tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]  # printed, corrected, autodiff


class Case(NamedTuple):
    """Where a formula is evaluated: random arrays of a seed, of shapes that grow with the size 1, 2, ..."""

    seed: int
    size: int

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


@dataclasses.dataclass(frozen=True)
class Erratum:
    """One place of the source.

    `evaluate(case)` gives three functions without arguments: the printed form, the corrected one, and the value that
    the corrected one must have: by `against`, autodiff of a plain forward pass or, where nothing is differentiated,
    plain NumPy. `raises` names the exception of a printed form that does not run.

    kind: "error": a wrong value, or it does not run; "imprecise": right under one reading, which the text does not
    state or does not keep to.
    """

    id: str
    section: str
    lines: str
    kind: str
    printed: str
    right: str
    raises: str | None
    against: str
    evaluate: Callable[[Case], Three]

    def row(self, number: int) -> str:
        """The erratum's row in experiments/README.md."""
        return f"| {number} | {self.section}, {self.lines} | {self.kind} | {self.printed} | {self.right} |"


def erratum(
    table: list[Erratum],
    section: str,
    lines: str,
    kind: str,
    printed: str,
    right: str,
    raises: str | None = None,
    against: str = "autodiff",
) -> Callable:
    """Enters the decorated function (case) -> three functions into a table; its name is the erratum's id."""

    def enter(evaluate: Callable[[Case], Three]) -> Erratum:
        one = Erratum(evaluate.__name__, section, lines, kind, printed, right, raises, against, evaluate)
        table.append(one)
        return one

    return enter


def run_printed(code: str, line: int, **names: Any) -> dict[str, Any]:
    """Executes code of the source as it stands there; returns the names that it leaves behind.

    Args:
      line: where it stands, so that a SyntaxError names the source's own line.
      names: what the code may use beside NumPy.
    """
    namespace = {"np": np, **names}
    exec(compile("\n" * (line - 1) + code, "source.md", "exec"), namespace)
    return namespace


class Result(NamedTuple):
    """One erratum in one case."""

    confirmed: bool
    printed: str  # the value at the element where printed and autodiff differ most, or the exception, shape or dtype
    corrected: str
    autodiff: str
    printed_error: float | None  # relative, the largest over all elements; None where there is none to give
    corrected_error: float | None


def judge(one: Erratum, case: Case) -> Result:
    """Confirmed: the printed form raises or differs, the corrected one equals autodiff in shape, dtype and value."""
    printed, corrected, autodiff = map(_outcome, one.evaluate(case))
    printed_error, corrected_error = relative_error(printed, autodiff), relative_error(corrected, autodiff)
    if isinstance(printed, Exception):
        wrong = type(printed).__name__ == one.raises
    else:
        wrong = one.raises is None and (printed_error is None or not printed_error < DIFFERENT)
    right = corrected_error is not None and corrected_error < EXACT
    words = _show(printed, corrected, autodiff)
    return Result(wrong and right, *words, printed_error, corrected_error)


def worst(results: Iterable[Result]) -> Result:
    """The case that speaks least for the erratum: one not confirmed, else the one with the smallest difference."""
    results = list(results)
    least = min(results, key=lambda r: (r.confirmed, _or_infinity(r.printed_error)))
    largest = max(results, key=lambda r: _or_infinity(r.corrected_error))
    return least._replace(corrected_error=largest.corrected_error)


def relative_error(value: Any, reference: Any) -> float | None:
    """max |value - reference| / max |reference|, inf for NaN; None where shapes or dtypes differ or one has raised."""
    if not (isinstance(value, np.ndarray) and isinstance(reference, np.ndarray)):
        return None
    if (value.shape, value.dtype) != (reference.shape, reference.dtype):
        return None
    error = np.abs(value - reference).max() / (np.abs(reference).max() or 1.0)
    return float(error) if error == error else float("inf")


def _outcome(function: Callable[[], Any]) -> np.ndarray | Exception:
    try:
        return np.asarray(function())
    except Exception as error:
        return error


def _show(
    printed: np.ndarray | Exception, corrected: np.ndarray | Exception, autodiff: np.ndarray | Exception
) -> tuple[str, str, str]:
    """What tells the three apart, in words: exceptions, else shapes, else dtypes, else the worst element."""
    three = printed, corrected, autodiff
    arrays = [a for a in three if isinstance(a, np.ndarray)]
    if len({a.shape for a in arrays}) > 1:
        words = [f"shape {a.shape}" for a in arrays]
    elif len({a.dtype for a in arrays}) > 1:
        words = [str(a.dtype) for a in arrays]
    else:
        place = _worst_place(printed, autodiff)
        words = [f"{float(a.ravel()[place]):.6g}" for a in arrays]
    given = iter(words)
    shown = [f"{type(a).__name__}: {a}" if isinstance(a, Exception) else next(given) for a in three]
    return shown[0], shown[1], shown[2]


def _worst_place(printed: np.ndarray | Exception, autodiff: np.ndarray | Exception) -> int:
    """Where the two differ most (a NaN counts most); where there is one only, its largest element."""
    if isinstance(autodiff, Exception):
        return 0
    difference = autodiff if isinstance(printed, Exception) else printed - autodiff
    return int(np.abs(difference).argmax())


def _or_infinity(error: float | None) -> float:
    return float("inf") if error is None else error
