"""verify: a hand-written backward pass against autodiff, element by element."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule, autodiff_vjp
from jaxcnn.verification.report import Finding, Report, Row
from jaxcnn.verification.subject import StructureError, Subject, subject_of

# float64 carries 2e-16; sums over a layer's thousands of terms, in another order, stay a thousandfold below this.
FLOAT64_TOLERANCE = 1e-12


class Options(NamedTuple):
    """What `verify` does.

    cotangents: how many random ones. One alone misses a fault it happens to be orthogonal to.
    dtypes: in which the precision is measured, after float64.
    seed: of the cotangents.
    """

    cotangents: int = 3
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    seed: int = 0


def verify(
    rule_or_layer: Rule | Layer,
    *arrays: Any,
    options: Options | None = None,
    key: jax.Array | None = None,
    train: bool = True,
    **static: Any,
) -> Report:
    """Compares a hand-written backward pass with autodiff's, for each argument and every element.

    First in float64, whatever the default precision: equal to `jax.vjp` of the rule's reference (its plain forward
    where it has none) to 1e-12 of the largest element, for random cotangents. Then in float32 and bfloat16: the
    largest error over the array against the float64 gradient at the same rounded inputs may be at most twice that of
    autodiff's own gradient in that dtype, plus one unit in the last place of the largest element.

    Args:
      rule_or_layer: a `Rule`, or a `Layer`, whose parameters are then initialised here.
      arrays: the rule's arrays, or the layer's input x. Integer and key arrays have no gradient.
      key: of a layer's initial parameters and of its randomness. train: the layer's mode.
      options: see `Options`.
      static: the rule's static arguments.

    Returns:
      A `Report`: `.ok`, `.findings`, and a table when printed. Whatever a faulty backward pass does, raising included,
      is a finding.

    Raises:
      TypeError, ValueError: a bad call: what is no rule and no layer, arguments that the forward pass refuses.

    >>> import jaxcnn
    >>> wrong = jaxcnn.sigmoid.replace(backward=lambda residuals, dy: (dy * residuals.y,))
    >>> verify(jaxcnn.sigmoid, jnp.linspace(-3, 3, 7)).ok, verify(wrong, jnp.linspace(-3, 3, 7)).ok
    (True, False)
    """
    options = Options() if options is None else options
    subject = subject_of(rule_or_layer, arrays, key, train, static)
    rows: list[Row] = []
    findings: list[Finding] = []
    with jax.enable_x64(True):
        _refuse_bad_call(subject)
        run = _passes(subject)
        for dtype in ("float64", *options.dtypes):
            try:
                found = _compare(subject, run, dtype, options)
            except Exception as error:  # whatever the backward pass raises is its fault
                said = str(error) if isinstance(error, StructureError) else f"{type(error).__name__}: {error}"
                findings.append(Finding("", dtype, "structure", math.inf, 0.0, f"the backward pass failed: {said}"))
                break
            known = {finding.argument for finding in findings}  # said once, in the dtype that shows it best
            rows += [row for row, _ in found]
            new = (_finding(row, wrong) for row, wrong in found if row.argument not in known)
            findings += [finding for finding in new if finding is not None]
    return Report(subject.name, tuple(rows), tuple(findings))


def _refuse_bad_call(subject: Subject) -> None:
    """Runs the plain forward alone: what it raises is about the call."""
    if not subject.arrays:
        raise TypeError(f"verify: {subject.name} got no floating-point array, so there is no gradient to verify")
    jax.eval_shape(subject.plain, [a.astype(np.float64) for a in subject.arrays])


def _passes(subject: Subject):
    """(values, dy) -> the output by hand and by the reference, the cotangents by hand and by autodiff; jitted."""

    @jax.jit
    def run(values, dy):
        output, pullback = subject.hand(values)
        plain, reference = autodiff_vjp(lambda *v: subject.plain(list(v)), tuple(values))
        return output, plain, [None if c is None else jnp.asarray(c) for c in pullback(dy)], list(reference(dy))

    return run


def _compare(subject: Subject, run, dtype: str, options: Options) -> list[tuple[Row, str]]:
    """One Row for each argument, with what is wrong about the cotangent as such ("" if nothing)."""
    values = [jnp.asarray(a, dtype) for a in subject.arrays]
    shape = jax.eval_shape(subject.plain, values)
    generator = np.random.default_rng(options.seed)
    worst = [_Worst() for _ in values]
    for _ in range(options.cotangents):
        dy = jnp.asarray(generator.standard_normal(shape.shape), shape.dtype)
        output, plain, hand, auto = run(values, dy)
        _require_same_output(output, plain)
        exact = auto
        if dtype != "float64":  # the truth at the very values, rounded as they are
            exact = run([v.astype(np.float64) for v in values], dy.astype(np.float64))[3]
        worst = [w.updated(*four) for w, *four in zip(worst, values, hand, auto, exact, strict=True)]
    return [(w.row(name, dtype), w.wrong) for w, name in zip(worst, subject.arguments, strict=True)]


class _Worst(NamedTuple):
    """The largest errors over the cotangents so far."""

    error: float = 0.0
    autodiff_error: float = 0.0
    scale: float = 0.0
    wrong: str = ""

    def updated(self, value, hand, auto, exact) -> _Worst:
        if hand is None:
            return self._replace(error=math.inf, wrong="it is None, though its array has a gradient")
        if (hand.shape, hand.dtype) != (value.shape, value.dtype):
            wrong = f"it is {hand.dtype}{list(hand.shape)}, its array is {value.dtype}{list(value.shape)}"
            return self._replace(error=math.inf, wrong=wrong)
        hand, auto, exact = (np.asarray(a, np.float64) for a in (hand, auto, exact))
        finite = np.abs(exact[np.isfinite(exact)])
        return self._replace(
            error=max(self.error, _largest_difference(hand, exact), key=_nan_is_largest),
            autodiff_error=max(self.autodiff_error, _largest_difference(auto, exact), key=_nan_is_largest),
            scale=max(self.scale, float(finite.max(initial=0.0))),
        )

    def row(self, argument: str, dtype: str) -> Row:
        if dtype == "float64":
            return Row(argument, dtype, self.error, FLOAT64_TOLERANCE * self.scale, self.scale)
        tolerance = 2 * self.autodiff_error + _ulp(self.scale, dtype)
        return Row(argument, dtype, self.error, tolerance, self.scale, self.autodiff_error)


def _finding(row: Row, wrong: str) -> Finding | None:
    if row.ok and not wrong:
        return None
    if wrong:
        cause, message = "structure", f"d{row.argument} has the wrong form: {wrong}"
    elif math.isnan(row.error):
        cause, message = "nan", f"d{row.argument} is NaN or infinite in {row.check} where autodiff's gradient is not"
    else:
        cause = "unknown" if row.check == "float64" else "precision"
        message = (
            f"d{row.argument} differs in {row.check} by {row.error:.2e} from the right gradient, whose largest element "
            f"is {row.scale:.2e}; {row.tolerance:.2e} is allowed"
        )
    return Finding(row.argument, row.check, cause, row.error, row.tolerance, message)


def _largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    """NaN where one is NaN or infinite and the other is not that too."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    difference = np.where(np.isinf(difference), np.nan, difference)
    return float(difference.max(initial=0.0))


def _nan_is_largest(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _ulp(value: float, dtype: str) -> float:
    """One unit in the last place of the value, in the dtype."""
    info = jnp.finfo(dtype)
    exponent = math.floor(math.log2(max(value, float(info.tiny))))
    return float(info.eps) * 2.0**exponent


def _require_same_output(output, plain) -> None:
    if output.shape != plain.shape or output.dtype != plain.dtype:
        raise StructureError(
            f"forward gives {output.dtype}{list(output.shape)}, its reference {plain.dtype}{list(plain.shape)}"
        )
    eps = float(jnp.finfo(output.dtype).eps)
    output, plain = np.asarray(output, np.float64), np.asarray(plain, np.float64)
    scale = np.abs(plain[np.isfinite(plain)]).max(initial=0.0)
    difference = _largest_difference(output, plain)
    if not difference <= 64 * eps * scale:
        raise StructureError(f"forward and reference differ in value by {difference:.2e}, largest element {scale:.2e}")
