"""The precision of the backward pass in a lower dtype, beside autodiff's own, against the truth in float64."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.verification.excuses import arbitrary
from jaxcnn.verification.report import Row
from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import Runner, Trial, first_line, form_of, largest_difference, stream

WORSE = 4  # times autodiff's own error: two formulas that are equally good differ by a factor of 2 now and then
NEARBY = 3  # other values for each cotangent, each up to a tenth smaller
AS_GIVEN = "as given"


class Precision(NamedTuple):
    rows: list[Row]
    forms: dict[str, str]  # by argument, what is wrong with the form of its cotangent in this dtype
    notes: list[str]  # what was left out, and why


def precision(
    subject: Subject,
    run: Runner,
    trials: Sequence[Trial],
    dtype: str,
    seed: int,
    faulty: Collection[str] = (),
    x64: bool = False,
) -> Precision:
    """Both gradients in the dtype, or each array in its own, against that in float64 at the same rounded inputs.

    Of few elements one rounding is luck, so both are looked at for several values close to the given ones. Allowed are
    two bits less than autodiff's own result has, and one unit in the last place of the largest element.

    faulty: arguments known to be wrong. x64: jax's setting meanwhile, under which a constant of the passes may be wider
    than the arrays.
    """
    dtypes = [a.dtype if dtype == AS_GIVEN else jnp.dtype(dtype) for a in subject.arrays]
    with jax.enable_x64(x64):
        values = [np.asarray(jnp.asarray(a, d)) for a, d in zip(subject.arrays, dtypes, strict=True)]
        try:
            kind = jax.eval_shape(subject.plain, values).dtype
        except Exception as error:
            return Precision([], {}, [f"{dtype} left out: the forward pass refuses it: {first_line(error)}"])
    if not all(bool(np.isfinite(np.asarray(v, np.float64)).all()) for v in values):
        return Precision([], {}, [f"{dtype} left out: the given values do not fit into it"])
    errors = {name: [0.0, 0.0, 0.0] for name in subject.arguments}  # by hand, by autodiff; the largest right element
    forms: dict[str, str] = {}
    try:
        pairs = list(_runs(values, kind, run, trials, stream(seed), x64))
    except Exception:
        if refusal := _refusal(subject, values, kind, x64):
            return Precision([], {}, [f"{dtype} left out: {refusal}"])
        raise
    for low, exact in pairs:
        for i, name in enumerate(subject.arguments):
            if form := form_of(low.hand[i], low.values[i]):
                forms.setdefault(name, form)
                continue
            right = exact.right[i]
            by_hand = largest_difference(low.hand[i], right if name in faulty else _truth(subject, exact, i))
            new = by_hand, largest_difference(low.right[i], right), float(np.abs(right).max(initial=0.0))
            errors[name] = [max(pair, key=_nan_is_largest) for pair in zip(errors[name], new, strict=True)]
    notes = []
    promoted = jnp.result_type(*dtypes)
    if kind != promoted and all(a.dtype not in dtypes for a in subject.arrays):
        # The caller works in another dtype; there a constant of the passes is too wide, and jax.grad would say so.
        notes += [
            f"in {dtype} the forward pass gives {kind}, wider than {promoted}; d{name} there: {form}"
            for name, form in forms.items()
        ]
        errors = {name: e for name, e in errors.items() if name not in forms}
        forms = {}
    rows = []
    for i, name in enumerate(subject.arguments):
        if name in forms or name not in errors:
            continue
        error, own, scale = errors[name]
        if math.isfinite(own) and math.isfinite(scale):
            unit = _unit_in_last_place(scale, dtypes[i])
            rows.append(Row(name, dtype, error, WORSE * own + unit, scale, own, unit))
        else:
            notes.append(f"d{name} in {dtype}: autodiff's own gradient is not finite, nothing to compare with")
    return Precision(rows, forms, notes)


def _runs(
    values: list, kind: Any, run: Runner, trials: Sequence[Trial], rng: np.random.Generator, x64: bool
) -> Iterator[tuple[Trial, Trial]]:
    """Pairs of trials, in the dtype and in float64 at the same inputs."""
    for trial in (t for t in trials if t.kind == "random"):
        for nearby in range(1 + NEARBY):
            factors = [(1 - 0.1 * rng.random(v.shape) * bool(nearby)).astype(v.dtype) for v in values]
            shrunk = [np.multiply(v, f, dtype=v.dtype) for v, f in zip(values, factors, strict=True)]
            with jax.enable_x64(x64):
                low = run("low", shrunk, jnp.asarray(trial.dy, kind))
            yield low, run("exact", [v.astype(np.float64) for v in low.values], low.dy.astype(np.float64))


def _truth(subject: Subject, exact: Trial, i: int) -> np.ndarray:
    """The gradient in float64: by hand where rounding hit a kink at which autodiff's is arbitrary, else autodiff's."""
    hand, right = np.asarray(exact.hand[i]), exact.right[i]
    apart = largest_difference(hand, right)
    if apart <= 1e-9 * float(np.abs(right).max(initial=0.0)) or math.isnan(apart):
        return right
    return hand if arbitrary(subject, exact, i) else right


def _refusal(subject: Subject, values: list, kind: Any, x64: bool) -> str:
    """What autodiff of the plain forward pass raises in this dtype, "" if nothing."""
    with jax.enable_x64(x64):
        try:
            output, pullback = subject.by_autodiff(values)
            pullback(jnp.zeros(output.shape, kind))
        except Exception as error:
            return f"autodiff of the forward pass fails: {first_line(error)}"
    return ""


def _nan_is_largest(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _unit_in_last_place(value: float, dtype: Any) -> float:
    info = jnp.finfo(dtype)
    exponent = math.floor(math.log2(max(value, float(info.tiny))))
    return float(info.eps) * 2.0**exponent
