"""The precision of the backward pass in a lower dtype, beside autodiff's own, against the truth in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.verification.report import Row
from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import Runner, Trial, first_line, form_of, largest_difference

WORSE = 4  # times autodiff's own error: two formulas that are equally good differ by a factor of 2 now and then
NEARBY = 3  # other values for each cotangent, each up to a tenth smaller


class Precision(NamedTuple):
    rows: list[Row]
    forms: dict[str, str]  # by argument, what is wrong with the form of its cotangent in this dtype
    notes: list[str]  # what was left out, and why


def precision(subject: Subject, run: Runner, trials: Sequence[Trial], dtype: str, seed: int) -> Precision:
    """Both gradients in the dtype, against that in float64 at the same rounded inputs.

    Of few elements one rounding is luck, so both are looked at for several values close to the given ones. Allowed are
    two bits less than autodiff's own result has, and one unit in the last place of the largest element.
    """
    values = [jnp.asarray(a, dtype) for a in subject.arrays]
    try:
        jax.eval_shape(subject.plain, values)
    except Exception as error:
        return Precision([], {}, [f"{dtype} left out: the forward pass refuses it: {first_line(error)}"])
    if not all(bool(jnp.isfinite(v).all()) for v in values):
        return Precision([], {}, [f"{dtype} left out: the given values do not fit into it"])
    errors = {name: [0.0, 0.0, 0.0] for name in subject.arguments}  # by hand, by autodiff; the largest right element
    forms: dict[str, str] = {}
    for low, exact in _runs(values, run, trials, dtype, np.random.default_rng(seed)):
        for i, name in enumerate(subject.arguments):
            if form := form_of(low.hand[i], low.values[i]):
                forms.setdefault(name, form)
                continue
            right = exact.right[i]
            by_hand, by_autodiff = largest_difference(low.hand[i], right), largest_difference(low.right[i], right)
            new = by_hand, by_autodiff, float(np.abs(right).max(initial=0.0))
            errors[name] = [max(pair, key=_nan_is_largest) for pair in zip(errors[name], new, strict=True)]
    rows, notes = [], []
    for name in (n for n in subject.arguments if n not in forms):
        error, own, scale = errors[name]
        if math.isfinite(own):
            unit = _unit_in_last_place(scale, dtype)
            rows.append(Row(name, dtype, error, WORSE * own + unit, scale, own, error / unit))
        else:
            notes.append(f"d{name} in {dtype}: autodiff's own gradient is not finite, nothing to compare with")
    return Precision(rows, forms, notes)


def _runs(values: list, run: Runner, trials: Sequence[Trial], dtype: str, rng: np.random.Generator):
    """Pairs of trials, in the dtype and in float64 at the same inputs."""
    for trial in (t for t in trials if t.kind == "random"):
        for nearby in range(1 + NEARBY):
            shrunk = [v * jnp.asarray(1 - 0.1 * rng.random(v.shape) * bool(nearby), dtype) for v in values]
            low = run("low", shrunk, jnp.asarray(trial.dy, dtype))
            yield low, run("exact", [v.astype(np.float64) for v in low.values], low.dy.astype(np.float64))


def _nan_is_largest(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _unit_in_last_place(value: float, dtype: str) -> float:
    info = jnp.finfo(dtype)
    exponent = math.floor(math.log2(max(value, float(info.tiny))))
    return float(info.eps) * 2.0**exponent
