"""The backward pass against the forward pass itself: finite differences, and the adjoint identity.

Autodiff believes what a forward pass says of its own derivative; a `stop_gradient` in it, or an inner rule that is
wrong, deceives it. Finite differences look at values alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import EPSILON, Trial, quick_jit

ELEMENTS = 24  # of each argument, drawn at random; besides, two directions in which all of them move at once
DIRECTIONS = 2
STEP = 1e-3  # of the value; extrapolated from h and h/2, the truncation error is of order h⁴
TRUSTED = 1e-5  # how far, relative to the largest, the estimates from h and h/2 may be apart
MARGIN = 100  # times that distance the truth may be off: a kink that the step crosses moves both estimates
TOLERANCE = 1e-6  # of the largest element: what trusted differences achieve for a smooth function


class Differences(NamedTuple):
    """What finite differences say of one argument."""

    error: float  # the largest over what was compared
    tolerance: float
    scale: float
    index: tuple[int, ...] | None  # of the worst element; None for a direction
    right: float
    got: float
    kinks: int  # elements whose one-sided differences are apart
    trusted: int  # comparisons made
    skipped: int  # where the differences cannot be trusted


def differences(subject: Subject, trial: Trial, seed: int) -> list[Differences]:
    """For each argument; `trial` gives the values, the cotangent and the gradient by hand."""
    forward = quick_jit(lambda values: subject.forward(values)[0])
    values = [np.asarray(v) for v in trial.values]
    return [_of_argument(forward, values, trial, i, np.random.default_rng((seed, i))) for i in range(len(values))]


def _of_argument(forward: Callable[[list], Any], values: list, trial: Trial, i: int, rng) -> Differences:
    x, gradient = values[i], np.asarray(trial.hand[i])
    largest = float(np.abs(x).max(initial=0.0)) or 1.0
    at = np.asarray(forward(values))

    def change(direction: np.ndarray, h: float) -> np.ndarray:
        """(f(x + h·direction) - f(x))·dy, for each element of the output."""
        moved = [*values[:i], x + h * direction, *values[i + 1 :]]
        return (np.asarray(forward(moved)) - at) * trial.dy

    places = [np.unravel_index(k, x.shape) for k in rng.permutation(x.size)[:ELEMENTS]]
    probes = []
    for place in places:
        direction = np.zeros_like(x)
        direction[place] = 1
        probes.append((direction, STEP * max(abs(float(x[place])), 0.1 * largest), place))
    for _ in range(DIRECTIONS if x.size > 1 else 0):
        probes.append((rng.choice([-1.0, 1.0], x.shape), STEP * 0.1 * largest, None))

    scale = float(np.abs(gradient).max(initial=0.0))
    worst = Differences(0.0, TOLERANCE * scale, scale, None, 0.0, 0.0, 0, 0, 0)
    kinks = trusted = skipped = 0
    for direction, h, place in probes:
        got = float((gradient * direction).sum())
        estimate = _estimate(change, direction, h, max(scale, abs(got)))
        rounding = 16 * EPSILON * float(np.abs(at * trial.dy).sum()) / h  # what the forward pass itself rounds off
        if rounding > TRUSTED * max(scale, abs(got)):
            estimate = None
        if estimate is None or (estimate.kink and place is None):  # many elements at kinks at once bound nothing
            skipped += 1
            continue
        low, high, slack, kink = estimate
        kinks, trusted = kinks + kink, trusted + 1
        error = max(low - got, got - high, 0.0)
        tolerance = TOLERANCE * max(scale, abs(low), abs(high)) + slack + rounding
        if error / (tolerance or 1e-300) > worst.error / (worst.tolerance or 1e-300):
            index = None if place is None else tuple(map(int, place))
            right = low if abs(low - got) < abs(high - got) else high
            worst = worst._replace(error=error, tolerance=tolerance, index=index, right=right, got=got)
    return worst._replace(kinks=kinks, trusted=trusted, skipped=skipped)


class _Estimate(NamedTuple):
    low: float  # the derivative lies between low and high
    high: float
    slack: float  # to within this
    kink: bool


def _estimate(change, direction, h: float, scale: float) -> _Estimate | None:
    """The derivative of ⟨f, dy⟩ along the direction; None where differences cannot be trusted.

    At a kink the two one-sided differences stay apart when the step is halved; elsewhere their distance halves too.
    """
    full, half = (np.array([change(direction, s) / s, change(direction, -s) / -s]) for s in (h, h / 2))
    if not np.isfinite([full, half]).all():
        return None
    central, finer = np.mean(full, 0).sum(), np.mean(half, 0).sum()
    apart, still_apart = (float(np.abs(one[0] - one[1]).sum()) for one in (full, half))
    if still_apart > 1e-5 * scale and still_apart > 0.75 * apart:
        moved = float(np.abs(full - half).sum())
        if moved > TRUSTED * scale + 0.5 * still_apart:
            return None
        # Each element of the output has its own two sides.
        return _Estimate(float(np.minimum(*half).sum()), float(np.maximum(*half).sum()), 2 * moved, True)
    wandering = abs(central - finer)
    if wandering > TRUSTED * max(scale, abs(finer)):
        return None
    value = float(4 * finer - central) / 3
    return _Estimate(value, value, MARGIN * float(wandering), False)


def adjoint_errors(subject: Subject, trial: Trial, seed: int) -> list[tuple[float, float]] | None:
    """For each argument |⟨J v, u⟩ - ⟨v, Jᵀ u⟩| for a random v, with u = dy, and the size of the two sides' terms.

    J v by `jax.jvp` of the plain forward; None where it has no forward mode.
    """
    values = [np.asarray(v) for v in trial.values]
    push = quick_jit(lambda values, tangents: jax.jvp(lambda *v: subject.plain(list(v)), tuple(values), tangents)[1])
    rng = np.random.default_rng(seed)
    found = []
    for i, x in enumerate(values):
        v = rng.standard_normal(x.shape)
        tangents = tuple(v if j == i else np.zeros_like(y) for j, y in enumerate(values))
        try:
            pushed = np.asarray(push(values, tangents)) * trial.dy
        except TypeError:  # a custom_vjp inside has no jvp
            return None
        pulled = v * np.asarray(trial.hand[i])
        found.append((abs(float(pushed.sum() - pulled.sum())), float(np.abs(pushed).sum() + np.abs(pulled).sum())))
    return found
