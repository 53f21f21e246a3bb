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
FINER = 100
STEP = 1e-3  # of the value; extrapolated from h and h/2, the truncation error is of order h⁴
TRUSTED = 1e-5  # how far, relative to the largest, the estimates from h and h/2 may be apart
MARGIN = 100  # times that distance the truth may be off: a kink that the step crosses moves both estimates
TOLERANCE = 1e-6  # of the largest element: what trusted differences achieve for a smooth function
DIAGNOSED = 1e-5  # so far a gradient by differences may be off and still be compared with
SMALL = 512  # elements: of such an array all differences are taken where they are needed


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
    forward = _forward(subject)
    return [_of_argument(_Slope(forward, trial, i), np.random.default_rng((seed, i))) for i in range(len(trial.values))]


def numeric_gradient(subject: Subject, trial: Trial, i: int) -> np.ndarray | None:
    """The whole gradient of one argument by finite differences; None where it is large or not to be trusted."""
    slope = _Slope(_forward(subject), trial, i)
    x = slope.x
    if x.size > SMALL:
        return None
    estimates = [slope.along_element(place, 0.0) for place in np.ndindex(x.shape)]
    if any(e is None or e.kink for e in estimates):
        return None
    return np.array([e.low for e in estimates if e is not None]).reshape(x.shape)


def _forward(subject: Subject) -> Callable[[list], Any]:
    return quick_jit(lambda values: subject.forward(values)[0])


def _of_argument(slope: _Slope, rng: np.random.Generator) -> Differences:
    x, gradient = slope.x, np.asarray(slope.trial.hand[slope.index])
    scale = float(np.abs(gradient).max(initial=0.0))
    places = [tuple(map(int, np.unravel_index(k, x.shape))) for k in rng.permutation(x.size)[:ELEMENTS]]
    probes: list[tuple[tuple[int, ...] | None, float, _Estimate | None]] = [
        (place, float(gradient[place]), slope.along_element(place, scale)) for place in places
    ]
    for _ in range(DIRECTIONS if x.size > 1 else 0):
        direction = rng.standard_normal(x.shape)  # values that tie part in it, which shows the kink
        got = float((gradient * direction).sum())
        estimate = slope.along(direction, STEP * 0.1 * slope.largest, max(scale, abs(got)))
        if estimate is not None and estimate.kink:  # many elements at kinks at once bound nothing
            estimate = None
        probes.append((None, got, estimate))

    worst = Differences(0.0, TOLERANCE * scale, scale, None, 0.0, 0.0, 0, 0, 0)
    kinks = trusted = skipped = 0
    for place, got, estimate in probes:
        if estimate is None:
            skipped += 1
            continue
        low, high, slack, kink = estimate
        kinks, trusted = kinks + kink, trusted + 1
        error = max(low - got, got - high, 0.0)
        tolerance = TOLERANCE * max(scale, abs(low), abs(high)) + slack
        if error / (tolerance or 1e-300) > worst.error / (worst.tolerance or 1e-300):
            right = low if abs(low - got) < abs(high - got) else high
            worst = worst._replace(error=error, tolerance=tolerance, index=place, right=right, got=got)
    return worst._replace(kinks=kinks, trusted=trusted, skipped=skipped)


class _Estimate(NamedTuple):
    low: float  # the derivative lies between low and high
    high: float
    slack: float  # to within this
    kink: bool

    def agrees_with(self, other: _Estimate) -> bool:
        apart = max(abs(self.low - other.low), abs(self.high - other.high))
        return apart <= 1e-2 * max(abs(self.high - self.low), self.slack, other.slack)


class _Slope:
    """The derivative of ⟨f(x), dy⟩ along directions of one argument x, by differences."""

    def __init__(self, forward: Callable[[list], Any], trial: Trial, index: int):
        self.forward, self.trial, self.index = forward, trial, index
        self.values = [np.asarray(v) for v in trial.values]
        self.x = self.values[index]
        self.largest = float(np.abs(self.x).max(initial=0.0)) or 1.0
        self.here = np.asarray(forward(self.values))

    def along_element(self, place: tuple[int, ...], scale: float) -> _Estimate | None:
        direction = np.zeros_like(self.x)
        direction[place] = 1
        return self.along(direction, STEP * max(abs(float(self.x[place])), 0.1 * self.largest), scale)

    def along(self, direction: np.ndarray, h: float, scale: float) -> _Estimate | None:
        """With the step h, or a finer one where f bends within it; None where no step can be trusted."""
        for step in (h, h / FINER, h / FINER**2):
            estimate = self._with_step(direction, step, scale)
            if estimate is not None and not estimate.kink:
                return estimate
            if estimate is not None:  # a kink looks the same from closer; a bend that the step jumps over does not
                closer = self._with_step(direction, step / FINER, scale)
                if closer is not None and closer.kink and estimate.agrees_with(closer):
                    return closer
        return None

    def _with_step(self, direction: np.ndarray, h: float, scale: float) -> _Estimate | None:
        """None where differences cannot be trusted, relative to the scale or to the derivative itself.

        At a kink the two one-sided differences stay apart when the step is halved; elsewhere their distance halves too.
        """
        full, half = (np.array([self._change(direction, s) / s, self._change(direction, -s) / -s]) for s in (h, h / 2))
        if not np.isfinite([full, half]).all():
            return None
        central, finer = float(np.mean(full, 0).sum()), float(np.mean(half, 0).sum())
        scale = max(scale, abs(finer))
        rounding = 16 * EPSILON * float(np.abs(self.here * self.trial.dy).sum()) / h  # what the forward pass rounds off
        if rounding > TRUSTED * scale:
            return None
        apart, still_apart = (float(np.abs(one[0] - one[1]).sum()) for one in (full, half))
        if still_apart > 1e-5 * scale and still_apart > 0.75 * apart:
            moved = float(np.abs(full - half).sum())
            if moved > TRUSTED * scale + 0.5 * still_apart:
                return None
            # Each element of the output has its own two sides.
            low, high = float(np.minimum(*half).sum()), float(np.maximum(*half).sum())
            return _Estimate(low, high, 2 * moved + rounding, True)
        wandering = abs(central - finer)
        if wandering > TRUSTED * scale:
            return None
        value = (4 * finer - central) / 3
        return _Estimate(value, value, MARGIN * wandering + rounding, False)

    def _change(self, direction: np.ndarray, h: float) -> np.ndarray:
        """(f(x + h·direction) - f(x))·dy, for each element of the output."""
        i = self.index
        moved = [*self.values[:i], self.x + h * direction, *self.values[i + 1 :]]
        return (np.asarray(self.forward(moved)) - self.here) * self.trial.dy


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
