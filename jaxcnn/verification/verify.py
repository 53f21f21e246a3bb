"""verify: a hand-written backward pass against autodiff and finite differences, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule
from jaxcnn.verification.comparisons import Cause, Pairs, compare, spatial_axes
from jaxcnn.verification.diagnosis import Evidence, diagnose, sizes
from jaxcnn.verification.differences import DIAGNOSED, adjoint_errors, differences, numeric_gradient
from jaxcnn.verification.precision import precision
from jaxcnn.verification.report import Finding, Report, Row, Worst
from jaxcnn.verification.subject import StructureError, Subject, subject_of
from jaxcnn.verification.transforms import Outcome, again, other_batch, saved_bytes, second_order, under_vmap
from jaxcnn.verification.trials import (
    Trial,
    first_line,
    float64_trials,
    form_of,
    largest_difference,
    runner,
    worst_difference,
)

ADJOINT = 1e-11  # of the sum of the absolute terms


class Options(NamedTuple):
    """What `verify` does; what is left out is said in the report.

    cotangents: how many random ones. One alone misses a fault it happens to be orthogonal to.
    dtypes: in which the precision is measured, after float64.
    seed: of the cotangents and of the elements that finite differences look at.
    finite_differences: leave them out for a rule whose intended gradient is not its forward's (gradient reversal, a
      straight-through estimate), which declares it by `reference`.
    transforms: leave out eager calls, vmap and other batches. second_order: leave out the derivative of the backward.
    """

    cotangents: int = 3
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    seed: int = 0
    finite_differences: bool = True
    transforms: bool = True
    second_order: bool = True


def verify(
    rule_or_layer: Rule | Layer,
    *arrays: Any,
    options: Options | None = None,
    key: jax.Array | None = None,
    train: bool = True,
    **static: Any,
) -> Report:
    """Compares a hand-written backward pass with autodiff's and with finite differences, for each argument.

    In float64, whatever the default precision:

    - "float64": equal to `jax.vjp` of the rule's reference (its plain forward where it has none), for random
      cotangents, one with a few huge and tiny entries, zero, a large one, and ones that look at a single element of the
      output; at the given values, and at these rounded so that they tie and contain zeros;
    - "differences": equal to finite differences of the forward pass, where these can be trusted; at a kink the gradient
      must lie between the one-sided differences;
    - "adjoint": ⟨J v, u⟩ = ⟨v, Jᵀ u⟩, with J v by `jax.jvp`;
    - "without jit", "second call", "vmap", and, on a declared batch axis, "other batch": half of it in another order;
    - "second order": the derivative of the backward pass equals that of autodiff's.

    Then in float32, bfloat16 and float16, at the given values and close to them: the largest error against the
    float64 gradient at the same rounded inputs may be at most four times that of autodiff's own gradient in that dtype,
    plus one unit in the last place of the largest element.

    Args:
      rule_or_layer: a `Rule`, or a `Layer`, whose parameters are then initialised here.
      arrays: the rule's arrays, or the layer's input x. Integer and key arrays have no gradient.
      key: of a layer's initial parameters and of its randomness. train: the layer's mode.
      options: see `Options`.
      static: the rule's static arguments.

    Returns:
      A `Report`: `.ok`, `.findings` (each with its cause in one word and the evidence in a sentence), and a table when
      printed. Whatever a faulty backward pass does, raising included, is a finding.

    Raises:
      TypeError, ValueError: a bad call: what is no rule and no layer, arguments that the forward pass refuses.

    >>> import jaxcnn
    >>> wrong = jaxcnn.sigmoid.replace(backward=lambda residuals, dy: (-dy * residuals.y * (1 - residuals.y),))
    >>> verify(jaxcnn.sigmoid, jnp.linspace(-3, 3, 7)).ok
    True
    >>> verify(wrong, jnp.linspace(-3, 3, 7)).findings[0].message
    'dx equals the right gradient with its sign changed'
    """
    options = Options() if options is None else options
    if not isinstance(options, Options):
        raise TypeError(f"verify: options must be an Options, got {type(options).__name__}")
    subject = subject_of(rule_or_layer, arrays, key, train, static)
    with jax.enable_x64(True), np.errstate(all="ignore"):  # NaN and infinity are told apart here, not by warnings
        _refuse_bad_call(subject)
        return _Verification(subject, options).report()


def _refuse_bad_call(subject: Subject) -> None:
    """Runs the plain forward alone: what it raises is about the call."""
    if not subject.arrays:
        raise TypeError(f"verify: {subject.name} got no floating-point array, so there is no gradient to verify")
    for name, array in zip(subject.arguments, subject.arrays, strict=True):
        if not array.size:
            raise ValueError(f"verify: {subject.name}: {name} must not be empty, got shape {array.shape}")
        if not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"verify: {subject.name}: {name} must be finite, got NaN or infinity")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"verify: {subject.name}: {name} must be real, got {array.dtype}")
    try:
        output = jax.eval_shape(subject.plain, [a.astype(np.float64) for a in subject.arrays])
    except StructureError:  # no pair of output and residuals: the rule's fault, found below
        return
    if not hasattr(output, "shape"):
        raise TypeError(f"verify: {subject.name} must have one array as output, got {type(output).__name__}")


class _Verification:
    """One call of `verify`: the rows and findings as they come in."""

    def __init__(self, subject: Subject, options: Options):
        self.subject, self.options = subject, options
        self.rows: list[Row] = []
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
                self._guarded("other batch", lambda: self._outcomes(other_batch(self.subject, self.options.seed)))
            else:
                self.notes.append("without jit, vmap and other batches left out by option")
            if self.options.second_order:
                self._guarded("second order", lambda: self._second_order(usual))
            else:
                self.notes.append("second order left out by option")
            for dtype in self.options.dtypes:
                self._guarded(dtype, lambda dtype=dtype: self._precision(dtype))
            self._residuals()
        return Report(self.subject.name, tuple(self.rows), tuple(self.findings), tuple(self.notes))

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
        self.run = runner(self.subject)
        self.trials = float64_trials(self.subject, self.run, self.options.seed, max(2, self.options.cotangents))
        unsteady = self._unsteady()
        for i, name in enumerate(self.subject.arguments):
            worst = worst_difference(self.trials, i)
            row = Row(name, "float64", worst.error, worst.tolerance, worst.scale)
            self.rows.append(row)
            form = form_of(worst.trial.hand[i], worst.trial.values[i])
            if row.ok and not form:
                continue
            evidence = Evidence(self.subject, self.run, self.trials, i)
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
                shown = next((t for t in self.trials if t.kind == "random" and _differ(t, i)), worst.trial)
                self._found(row, causes, (shown.hand[i], shown.right[i]))

    def _unsteady(self) -> set[int]:
        """The arguments whose gradients differ between two calls without jit: the pass keeps or draws something.

        Looked at only where something is wrong already; it explains that best.
        """
        worst = [worst_difference(self.trials, i) for i in range(len(self.subject.arguments))]
        if all(w.error <= w.tolerance for w in worst):
            return set()
        try:
            return {o.index for o in again(self.subject, self.trials[0])[1] if not o.error <= o.tolerance}
        except Exception as error:  # it runs under jit alone: what it keeps or needs explains the rest
            self._failed("without jit", error)
            return set()

    def _differences(self, usual: Trial) -> None:
        kinks = skipped = 0
        for i, found in enumerate(differences(self.subject, usual, self.options.seed)):
            name = self.subject.arguments[i]
            row = Row(name, "differences", found.error, found.tolerance, found.scale)
            self.rows.append(row)
            kinks, skipped = kinks + found.kinks, skipped + found.skipped
            if not row.ok and name not in self._faulty():
                cause = self._against_differences(usual, i)
                message = (
                    f"d{name} equals autodiff's gradient but not the finite differences of the forward pass, which "
                    "overrides its own derivative (stop_gradient, or an inner rule)"
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
        errors = adjoint_errors(self.subject, usual, self.options.seed)
        if errors is None:
            self.notes.append("adjoint identity left out: the plain forward has no forward mode")
        for name, (error, size) in zip(self.subject.arguments, errors or [], strict=False):
            row = Row(name, "adjoint", error, ADJOINT * size, size)
            self.rows.append(row)
            if not row.ok and name not in self._faulty():
                self._found(row, [Cause("unknown", f"⟨J v, u⟩ and ⟨v, Jᵀ u⟩ differ by {error:.2e} for d{name}")])

    def _against_differences(self, usual: Trial, i: int) -> Cause:
        """What the finite differences of all elements, taken for the right gradient, say about the wrong one."""
        right = numeric_gradient(self.subject, usual, i)
        if right is None:
            return Cause("unknown", "")
        name, hand = f"d{self.subject.arguments[i]}", np.asarray(usual.hand[i])
        pairs = Pairs(name, [hand], [right], {}, sizes(self.subject, usual.dy), exact=DIAGNOSED)
        return next(iter(compare(pairs)), Cause("unknown", ""))

    def _vmap(self, usual: Trial) -> None:
        other = self.run("other values", [np.flip(v) for v in usual.values], self.trials[1].dy)
        self._outcomes(under_vmap(self.subject, [usual, other]))

    def _again(self, usual: Trial) -> None:
        jitless, second = again(self.subject, usual)
        self._outcomes(second, "nondeterministic", "differs between two calls with the same arguments")
        self._outcomes(jitless, "nondeterministic", "differs between a call under jit and one without")

    def _second_order(self, usual: Trial) -> None:
        names = [*self.subject.arguments, "dy"]
        failed = []
        for outcome in second_order(self.subject, usual, self.options.seed):
            name = names[outcome.index]
            row = Row(name, "second order", outcome.error, outcome.tolerance, outcome.scale)
            self.rows.append(row)
            if not row.ok and not self._faulty():
                failed.append((row, outcome, name))
        for row, outcome, name in failed[:1]:
            by = "dy" if name == "dy" else f"the values of {name}"
            message = f"the backward pass is right, its own derivative by {by} is not: a constant where a value belongs"
            self._found(row, [Cause("second-order", message)], (outcome.got, outcome.right))

    def _outcomes(self, outcomes: Iterable[Outcome], cause: str = "", said: str = "") -> None:
        for o in outcomes:
            name = self.subject.arguments[o.index]
            row = Row(name, o.check, o.error, o.tolerance, o.scale)
            self.rows.append(row)
            if not row.ok and name not in self._faulty():
                causes = [Cause(cause, f"d{name} {said}")] if cause else self._diagnosed(o)
                self._found(row, causes, (o.got, o.right))

    def _diagnosed(self, o: Outcome) -> list[Cause]:
        name = f"d{self.subject.arguments[o.index]}"
        said = f"{name} is right for the given arrays and wrong under {o.check}"
        got, right = np.asarray(o.got), np.asarray(o.right)
        pairs = Pairs(name, [got], [right], {}, sizes(self.subject, self.trials[0].dy))
        causes = compare(pairs) if o.got is not None and got.shape == right.shape else []
        return [Cause(word, f"{said}: {message}") for word, message in causes] or [Cause("unknown", said)]

    def _precision(self, dtype: str) -> None:
        found = precision(self.subject, self.run, self.trials, dtype, self.options.seed)
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
    return worst, error.max(tuple(a for a in range(error.ndim) if a not in spatial))
