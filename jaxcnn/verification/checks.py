"""The checks of one call of `verify`, one after the other, and what they find."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from jaxcnn.verification import rounding
from jaxcnn.verification.comparisons import Cause, Pairs, compare, spatial_axes
from jaxcnn.verification.diagnosis import Evidence, diagnose, sizes
from jaxcnn.verification.differences import DIAGNOSED, adjoint_errors, differences, numeric_gradient, off_kinks
from jaxcnn.verification.excuses import arbitrary
from jaxcnn.verification.options import Options
from jaxcnn.verification.precision import AS_GIVEN, precision
from jaxcnn.verification.report import Finding, Report, Row, Worst
from jaxcnn.verification.subject import StructureError, Subject, require_array_residuals
from jaxcnn.verification.transforms import (
    MIRACLE,
    Outcome,
    again,
    other_batch,
    refused_by_vmap,
    saved_bytes,
    second_order,
    under_vmap,
)
from jaxcnn.verification.trials import (
    EPSILON,
    Difference,
    Trial,
    each_difference,
    first_line,
    float64_trials,
    form_of,
    largest_difference,
    runner,
    stream,
    worst_difference,
)

ADJOINT = 1e-11  # of the sum of the absolute terms


class Checks:
    """One call of `verify`: the rows and findings as they come in."""

    def __init__(self, subject: Subject, options: Options, x64: bool, gaps: list[str]):
        self.subject, self.options, self.x64, self.gaps = subject, options, x64, gaps
        self.rows: list[Row] = []
        self.rounding = rounding.of_gradients(subject)
        self.findings: list[Finding] = []
        self.notes: list[str] = []

    def report(self) -> Report:
        if self._guarded("float64", self._float64) and self._well_formed():
            usual = self.trials[0]
            if self.options.finite_differences:
                self._guarded("differences", lambda: self._differences(usual))
            else:
                self.notes.append("finite differences left out: the option says that the gradient is not the forward's")
            if self.options.transforms:
                self._guarded("without jit", lambda: self._again(usual))
                self._guarded("vmap", lambda: self._vmap(usual))
                self._guarded("other batch", self._other_batch)
            else:
                self.notes.append("without jit, vmap and other batches left out by option")
            if self.options.second_order:
                self._guarded("second order", lambda: self._second_order(usual))
            else:
                self.notes.append("second order left out by option")
            mixed = len({a.dtype for a in self.subject.arrays}) > 1
            for dtype in (*self.options.dtypes, *([AS_GIVEN] if mixed else [])):
                self._guarded(dtype, lambda dtype=dtype: self._precision(dtype))
            self._residuals()
        rows, findings, notes, gaps = tuple(self.rows), tuple(self.findings), tuple(self.notes), tuple(self.gaps)
        return Report(self.subject.name, rows, findings, notes, gaps)

    def _guarded(self, check: str, step: Callable[[], None]) -> bool:
        """Whatever a pass raises is its fault, and a finding; said once."""
        try:
            step()
        except Exception as error:
            self._failed(check, error)
            return False
        return True

    def _failed(self, check: str, error: Exception) -> None:
        where = "" if check == "float64" else f" ({check})"
        message = f"the backward pass failed{where}: {type(error).__name__}: {first_line(error)}"
        message = str(error) if isinstance(error, StructureError) else message
        if not any(f.cause == "structure" and not f.argument for f in self.findings):
            cause = "second-order" if check == "second order" else "structure"
            self.findings.append(Finding("", check, cause, math.inf, 0.0, message))

    def _well_formed(self) -> bool:
        """Whether there are gradients to look at further."""
        if all(f.cause not in ("structure", "nan") for f in self.findings):
            return True
        self.notes.append("the other checks need finite gradients of the right form and were left out")
        return False

    def _faulty(self) -> set[str]:
        """The arguments whose gradient is known to be wrong: said once, by the check that shows it best."""
        return {finding.argument for finding in self.findings}

    def _float64(self) -> None:
        require_array_residuals(self.subject)
        self.run = runner(self.subject)
        self.trials = float64_trials(self.subject, self.run, self.options.seed, max(2, self.options.cotangents))
        if self.subject.chained:
            self.notes.append("values that tie left out: its rules are verified at these one by one")
        unsteady = self._unsteady()
        for i, name in enumerate(self.subject.arguments):
            trials, allowed = self._without_excuses(i)
            worst = worst_difference(self._each(trials, i))
            row = Row(name, "float64", worst.error, max(worst.tolerance, allowed), worst.scale)
            self.rows.append(row)
            form = form_of(worst.trial.hand[i], worst.trial.values[i])
            if bad := sum(int((~np.isfinite(t.right[i])).sum()) for t in trials[:1]):
                self.gaps.append(f"{bad} of {trials[0].right[i].size} elements of the right d{name} are not finite")
            if row.ok and not form:
                continue
            evidence = Evidence(self.subject, self.run, trials, i)
            if i in unsteady and not form:
                causes = [Cause("nondeterministic", f"d{name} differs between two calls with the same arguments")]
            elif form:
                causes = [Cause("structure", f"d{name} has the wrong form: {form}")]
                hand = worst.trial.hand[i]
                if hand is not None and hand.shape != worst.trial.values[i].shape:
                    causes += [c for c in diagnose(evidence) if c.word != "structure"]
            else:
                causes = diagnose(evidence)
            if form:
                self._found(row, causes)
            else:  # shown where it looks most ordinary
                shown = next((t for t in trials if t.kind == "random" and _differ(t, i)), worst.trial)
                self._found(row, causes, (shown.hand[i], shown.right[i]))

    def _each(self, trials: list[Trial], i: int) -> list[Difference]:
        return each_difference(trials, i, self.subject.epsilon)

    def _without_excuses(self, i: int) -> tuple[list[Trial], float]:
        """The trials but for those in which argument i's gradient differs from autodiff's and is as good.

        And what rounding accounts for in those that stay.
        """
        kept, kinks, allowed, wrong = [], 0, 0.0, False
        for trial, found in zip(self.trials, self._each(self.trials, i), strict=True):
            if wrong or found.error <= found.tolerance or not math.isfinite(found.error):
                kept.append(trial)
            elif found.error <= (rounds := self._rounding(trial, i, found.error)):
                kept, allowed = [*kept, trial], max(allowed, rounds)
            elif trial.kind == "ties" and arbitrary(self.subject, trial, i):
                kinks += 1
            else:  # one is enough: the others need no excuse
                kept, wrong = [*kept, trial], True
        name = self.subject.arguments[i]
        if kinks:
            self.notes.append(
                f"d{name} differs from autodiff's at a kink that the given arrays do not have; both lie between the "
                "one-sided differences, and only a reference would say which is meant"
            )
        if allowed:
            self.notes.append(f"d{name} differs from autodiff's by rounding: in float32 by as many digits")
        return kept, allowed

    def _unsteady(self) -> set[int]:
        """The arguments whose gradients differ between two calls without jit: the pass keeps or draws something.

        Looked at only where something is wrong already; it explains that best.
        """
        worst = [worst_difference(self._each(self.trials, i)) for i in range(len(self.subject.arguments))]
        if all(w.error <= w.tolerance for w in worst):
            return set()
        try:
            return {o.index for o in again(self.subject, self.trials[0])[1] if not o.error <= o.tolerance}
        except Exception as error:  # it runs under jit alone: what it keeps or needs explains the rest
            self._failed("without jit", error)
            return set()

    def _differences(self, usual: Trial) -> None:
        kinks = skipped = 0
        rng = stream(self.options.seed)

        def elsewhere():
            return self.run("elsewhere", [off_kinks(v, rng) for v in usual.values], usual.dy)

        found_by = differences(self.subject, usual, elsewhere, self.options.seed, self._faulty())
        for i, found in enumerate(found_by):
            name = self.subject.arguments[i]
            row = Row(name, "differences", found.error, found.tolerance, found.scale)
            self.rows.append(row)
            kinks, skipped = kinks + found.kinks, skipped + found.skipped
            if not found.trusted:
                self.gaps.append(f"no finite difference of {name} could be trusted")
            if not row.ok and name not in self._faulty():
                cause = self._against_differences(usual, i)
                message = f"d{name} equals autodiff's gradient but not the finite differences of the forward pass, "
                message += (
                    "since a reference declares another; if that is meant, say Options(finite_differences=False)"
                    if self.subject.declared
                    else "which overrides its own derivative (stop_gradient, or an inner rule)"
                )
                message += f": {cause.message}" if cause.message else ""
                worst = None if found.index is None else Worst(found.index, found.right, found.got)
                self.findings.append(
                    Finding(name, "differences", cause.word, found.error, found.tolerance, message, worst=worst)
                )
        if kinks:
            self.notes.append(
                f"{kinks} element(s) at a kink: the gradient lies between the one-sided differences there"
            )
        if skipped:
            self.notes.append(f"{skipped} finite difference(s) could not be trusted and were left out")
        self._adjoint(usual)

    def _adjoint(self, usual: Trial) -> None:
        errors = adjoint_errors(self.subject, usual, self.options.seed)
        if errors is None:
            self.notes.append("adjoint identity left out: the plain forward has no forward mode")
        for i, found in enumerate(errors or []):
            if found is None:
                continue
            (error, size), name = found, self.subject.arguments[i]
            row = self._row(i, "adjoint", error, ADJOINT * size, size)
            if not row.ok and name not in self._faulty():
                self._found(row, [Cause("unknown", f"⟨J v, u⟩ and ⟨v, Jᵀ u⟩ differ by {error:.2e} for d{name}")])

    def _row(self, i: int, check: str, error: float, tolerance: float, scale: float) -> Row:
        """A row of argument i; where the gradient loses digits, to what rounding leaves of it."""
        tolerance *= self.subject.epsilon / EPSILON
        name = self.subject.arguments[i]
        if tolerance < error < math.inf and scale and name not in self._faulty():
            usual = self.trials[0]
            largest = float(np.abs(usual.right[i][np.isfinite(usual.right[i])]).max(initial=0.0))
            relative = scale / largest if largest else float(usual.right[i].size)  # a sum over that many elements
            tolerance = max(tolerance, self._rounding(usual, i, error / relative) * relative)
        row = Row(name, check, error, tolerance, scale)
        self.rows.append(row)
        return row

    def _rounding(self, trial: Trial, i: int, error: float) -> float:
        """How far rounding may move argument i's gradient; 0 for an error that it could only explain by a miracle."""
        sizes = (float(np.abs(a).max(initial=0.0)) for a in (trial.right[i], trial.dy, *trial.values))
        right, dy, *values = sizes
        if error > max(MIRACLE * right, MIRACLE**2 * dy * max(1.0, *values)):
            return 0.0
        return self.rounding(trial)[i]

    def _against_differences(self, usual: Trial, i: int) -> Cause:
        """What the finite differences of all elements, taken for the right gradient, say about the wrong one."""
        right = numeric_gradient(self.subject, usual, i)
        if right is None:
            return Cause("unknown", "")
        name, hand = f"d{self.subject.arguments[i]}", np.asarray(usual.hand[i])
        pairs = Pairs(name, [hand], [right], {}, sizes(self.subject, usual.dy), exact=DIAGNOSED)
        return next(iter(compare(pairs)), Cause("unknown", ""))

    def _vmap(self, usual: Trial) -> None:
        if refused := refused_by_vmap(self.subject):
            self.notes.append(f"vmap left out: the forward pass refuses it: {refused}")
            return
        other = self.run("other values", [np.flip(v) for v in usual.values], self.trials[1].dy)
        self._outcomes(under_vmap(self.subject, [usual, other]))

    def _again(self, usual: Trial) -> None:
        jitless, second = again(self.subject, usual)
        self._outcomes(second, "nondeterministic", "differs between two calls with the same arguments")
        self._outcomes(jitless, "nondeterministic", "differs between a call under jit and one without")

    def _second_order(self, usual: Trial) -> None:
        if not self.subject.reversible:
            self.notes.append("second order left out: autodiff has no reverse mode of the forward pass")
            return
        names = [*self.subject.arguments, "dy"]
        failed = []
        for outcome in second_order(self.subject, usual, self.options.seed, not self._faulty()):
            name = names[outcome.index]
            coarser = self.subject.epsilon / EPSILON
            row = Row(name, "second order", outcome.error, outcome.tolerance * coarser, outcome.scale)
            self.rows.append(row)
            if not row.ok and not self._faulty():
                failed.append((row, outcome, name))
        for row, outcome, name in failed[:1]:
            by = "dy" if name == "dy" else f"the values of {name}"
            message = f"the backward pass is right, its own derivative by {by} is not: a constant where a value belongs"
            self._found(row, [Cause("second-order", message)], (outcome.got, outcome.right))

    def _other_batch(self) -> None:
        outcomes, why = other_batch(self.subject, self.options.seed)
        self._outcomes(outcomes)
        if why:
            self.notes.append(f"other batch left out: {why}")

    def _outcomes(self, outcomes: Iterable[Outcome], cause: str = "", said: str = "") -> None:
        for o in outcomes:
            name = self.subject.arguments[o.index]
            row = self._row(o.index, o.check, o.error, o.tolerance, o.scale)
            if not row.ok and name not in self._faulty():
                bad = 0 if o.got is None or o.right is None else int((~np.isfinite(o.got) & np.isfinite(o.right)).sum())
                causes = [Cause(cause, f"d{name} {said}")] if cause else self._diagnosed(o)
                if bad:
                    causes = [Cause("nan", f"d{name} has {bad} values that are NaN or infinite under {o.check} alone")]
                self._found(row, causes, (o.got, o.right))

    def _diagnosed(self, o: Outcome) -> list[Cause]:
        name = f"d{self.subject.arguments[o.index]}"
        said = f"{name} is right for the given arrays and wrong under {o.check}"
        got, right = np.asarray(o.got), np.asarray(o.right)
        pairs = Pairs(name, [got], [right], {}, sizes(self.subject, self.trials[0].dy))
        causes = compare(pairs) if o.got is not None and got.shape == right.shape else []
        return [Cause(word, f"{said}: {message}") for word, message in causes] or [Cause("unknown", said)]

    def _precision(self, dtype: str) -> None:
        x64 = self.x64 and dtype == AS_GIVEN
        found = precision(self.subject, self.run, self.trials, dtype, self.options.seed, self._faulty(), x64)
        self.notes += found.notes
        for name, form in found.forms.items():
            finding = Finding(name, dtype, "structure", math.inf, 0.0, f"d{name} has the wrong form: {form}")
            self.findings += [finding] * (name not in self._faulty())
        for row in found.rows:
            self.rows.append(row)
            if not row.ok and row.argument not in self._faulty():
                word = "nan" if math.isnan(row.error) else "precision"
                message = (
                    f"d{row.argument} is right in float64; in {dtype} it is off by {row.error:.2e}, autodiff's own by "
                    f"{row.autodiff_error:.2e}; {row.tolerance:.2e} is allowed"
                )
                self._found(row, [Cause(word, message)])

    def _residuals(self) -> None:
        try:
            hand, auto = saved_bytes(self.subject)
        except Exception:  # residuals that are no arrays: said by the checks above where it matters
            return
        self.notes.append(f"saved for the backward pass: {hand:,} bytes, by autodiff {auto:,}")

    def _found(self, row: Row, causes: list[Cause], arrays: tuple | None = None) -> None:
        worst = errors = None
        if arrays is not None and arrays[0] is not None and np.shape(arrays[0]) == np.shape(arrays[1]):
            worst, errors = _place(*map(np.asarray, arrays))
        first, *others = causes
        self.findings.append(
            Finding(
                row.argument, row.check, first.word, row.error, row.tolerance, first.message,
                tuple(dict.fromkeys(c.word for c in others)), worst, errors,
            )
        )  # fmt: skip


def _differ(trial: Trial, i: int) -> bool:
    return not largest_difference(trial.hand[i], trial.right[i]) <= 1e-11 * np.abs(trial.right[i]).max(initial=0.0)


def _place(hand: np.ndarray, right: np.ndarray) -> tuple[Worst | None, np.ndarray | None]:
    if not right.size:
        return None, None
    with np.errstate(invalid="ignore"):
        error = np.where(hand == right, 0.0, np.abs(hand - right))
    error = np.where(np.isnan(error), np.inf, error)
    index = np.unravel_index(error.argmax(), error.shape)
    worst = Worst(tuple(map(int, index)), float(right[index]), float(hand[index]))
    spatial = spatial_axes(error.ndim)
    if not spatial or min(error.shape[a] for a in spatial) < 2:
        return worst, None
    return worst, error.max(tuple(a for a in range(error.ndim) if a not in spatial[-2:]))
