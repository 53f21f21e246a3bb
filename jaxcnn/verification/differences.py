"""The backward pass against the forward pass itself: finite differences, and the adjoint identity.

Autodiff believes what a forward pass says of its own derivative; a `stop_gradient` in it, or an inner rule that is
wrong, deceives it. Finite differences look at values alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import numpy as np

from jaxcnn.verification.compilation import quick_jit
from jaxcnn.verification.rounding import of_forward
from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import Trial, stream

ELEMENTS = 24  # of each argument, drawn at random; besides, two directions in which all of them move at once
DIRECTIONS = 2
FINER = 100
CLOSER = 4  # times as fine it is looked at again before it is held against a gradient
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


def differences(
    subject: Subject, trial: Trial, elsewhere: Callable[[], Trial], seed: int, faulty: Collection[str]
) -> list[Differences]:
    """For each argument; `trial` gives the values, the cotangent and the gradient by hand.

    elsewhere: makes the same at values close by, without ties and zeros: along a direction in which all elements move,
    differences say nothing where one of them is at a kink. faulty: arguments known to be wrong, for which nobody need
    look twice.
    """
    slope, away = Slope(subject, trial), functools.cache(lambda: Slope(subject, elsewhere()))
    return [_of_argument(slope, away, i, stream(seed, i), n in faulty) for i, n in enumerate(subject.arguments)]


def off_kinks(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values close by of which none is zero and no two are equal."""
    largest = float(np.abs(array).max(initial=0.0)) or 1.0
    return np.where(array == 0, 0.1 * largest, array) * (1 + 0.1 * rng.uniform(-1, 1, array.shape))


def numeric_gradient(subject: Subject, trial: Trial, i: int) -> np.ndarray | None:
    """The whole gradient of one argument by finite differences; None where it is large or not to be trusted."""
    slope, shape = Slope(subject, trial), trial.values[i].shape
    if trial.values[i].size > SMALL:
        return None
    estimates = [slope.along_element(i, place, 0.0) for place in np.ndindex(shape)]
    if any(e is None or e.kink for e in estimates):
        return None
    return np.array([e.low for e in estimates if e is not None]).reshape(shape)


def _of_argument(
    slope: Slope, away: Callable[[], Slope], i: int, rng: np.random.Generator, faulty: bool
) -> Differences:
    x, gradient = slope.values[i], np.asarray(slope.trial.hand[i])
    finite = np.isfinite(gradient)
    scale = float(np.abs(gradient[finite]).max(initial=0.0))
    places = [tuple(map(int, place)) for place in rng.permutation(np.argwhere(finite))[:ELEMENTS]]
    probes: list[tuple[tuple[int, ...] | None, np.ndarray, float]] = [
        (place, *slope.element(i, place)) for place in places
    ]
    # Besides, all at once: values that tie part in it, which shows the kink.
    for _ in range(DIRECTIONS if x.size > 1 and finite.all() else 0):
        probes.append((None, rng.standard_normal(x.shape), STEP * 0.1 * slope.largest[i]))

    worst = Differences(0.0, TOLERANCE * scale, scale, None, 0.0, 0.0, 0, 0, 0)
    kinks = trusted = skipped = 0
    for place, direction, step in probes:
        here, got = slope, float((gradient * direction).sum())
        size = scale if place is not None else max(scale, abs(got))
        estimate = here.along({i: direction}, step, size)
        if place is None and (estimate is None or estimate.kink):  # many elements at kinks at once bound nothing
            here = away()
            there = np.asarray(here.trial.hand[i])
            got = float((there * direction).sum()) if np.isfinite(there).all() else math.nan
            estimate = here.along({i: direction}, step, size) if math.isfinite(got) else None
            estimate = None if estimate is None or estimate.kink else estimate
        held = estimate is not None and (
            faulty or estimate.holds(got, scale) or here.stands({i: direction}, estimate, size)
        )
        if estimate is None or not held:
            skipped += 1
            continue
        kinks, trusted = kinks + estimate.kink, trusted + 1
        error, tolerance = estimate.error(got), estimate.tolerance(scale)
        if error / (tolerance or 1e-300) > worst.error / (worst.tolerance or 1e-300):
            right = min(estimate.low, estimate.high, key=lambda side: abs(side - got))
            worst = worst._replace(error=error, tolerance=tolerance, index=place, right=right, got=got)
    return worst._replace(kinks=kinks, trusted=trusted, skipped=skipped)


class Estimate(NamedTuple):
    """A derivative by differences."""

    low: float  # it lies between low and high
    high: float
    slack: float  # to within this
    kink: bool
    step: float

    def error(self, got: float) -> float:
        return max(self.low - got, got - self.high, 0.0)

    def tolerance(self, scale: float) -> float:
        return TOLERANCE * max(scale, abs(self.low), abs(self.high)) + self.slack

    def holds(self, got: float, scale: float) -> bool:
        return self.error(got) <= self.tolerance(scale)

    def agrees_with(self, other: Estimate) -> bool:
        apart = max(abs(self.low - other.low), abs(self.high - other.high))
        return apart <= 1e-2 * max(abs(self.high - self.low), self.slack, other.slack)


class Slope:
    """The derivative of ⟨f(values), dy⟩ along directions, by differences of the forward pass.

    A direction is an array for each argument that moves.
    """

    def __init__(self, subject: Subject, trial: Trial):
        self.subject, self.trial = subject, trial
        self.forward = subject.value
        self.values = [np.asarray(v) for v in trial.values]
        self.largest = [float(np.abs(v).max(initial=0.0)) or 1.0 for v in self.values]
        self.here = np.asarray(self.forward(self.values))
        self.defined = np.isfinite(self.here)
        self.size = float(np.abs(np.where(self.defined, self.here * trial.dy, 0.0)).sum())

    def element(self, i: int, place: tuple[int, ...]) -> tuple[np.ndarray, float]:
        """The direction of one element of argument i, and the step that suits it."""
        direction = np.zeros_like(self.values[i])
        direction[place] = 1
        return direction, STEP * max(abs(float(self.values[i][place])), 0.1 * self.largest[i])

    def along_element(self, i: int, place: tuple[int, ...], scale: float) -> Estimate | None:
        direction, step = self.element(i, place)
        return self.along({i: direction}, step, scale)

    def along(self, direction: dict[int, np.ndarray], h: float, scale: float) -> Estimate | None:
        """With the step h, or a finer one where f bends within it; None where no step can be trusted."""
        for step in (h, h / FINER, h / FINER**2):
            estimate = self._with_step(direction, step, scale)
            if isinstance(estimate, Estimate) and not estimate.kink:
                return estimate
            if isinstance(estimate, Estimate):  # a kink looks the same from closer; a bend that is jumped over does not
                closer = self._with_step(direction, step / FINER, scale)
                if isinstance(closer, Estimate) and closer.kink and estimate.agrees_with(closer):
                    return closer
        return None

    def stands(self, direction: dict[int, np.ndarray], estimate: Estimate, scale: float) -> bool:
        """Whether an estimate can be held against a gradient.

        It is no longer rounding that makes it, when a forward pass loses digits on its way; and it is the same from
        closer, as long as there are digits: a step longer than a period of f sees nothing of its slope.
        """
        scale, step = max(scale, abs(estimate.low), abs(estimate.high)), estimate.step  # a gradient of zeros too
        if self._noise / step > TRUSTED * scale:
            return False
        for _ in range(CLOSER):
            step /= FINER
            closer = self._with_step(direction, step, scale)
            if closer == _ROUNDED or self._noise / step > TRUSTED * scale:
                break
            if not isinstance(closer, Estimate):
                return False
            if not estimate.kink and abs(closer.low - estimate.low) > closer.tolerance(scale) + estimate.slack:
                return False
        return True

    @functools.cached_property
    def _noise(self) -> float:
        return of_forward(self.subject, self.trial)

    def _with_step(self, direction: dict[int, np.ndarray], h: float, scale: float) -> Estimate | str:
        """Why differences cannot be trusted, relative to the scale or to the derivative itself, where they cannot.

        At a kink the two one-sided differences stay apart when the step is halved; elsewhere their distance halves too.
        """
        full, half = (np.array([self._change(direction, s) / s, self._change(direction, -s) / -s]) for s in (h, h / 2))
        if not np.isfinite([full, half]).all():
            return _BENT
        central, finer = float(np.mean(full, 0).sum()), float(np.mean(half, 0).sum())
        scale = max(scale, abs(finer))
        rounding = 16 * self.subject.epsilon * self.size / h  # what the forward pass rounds off
        if rounding > TRUSTED * scale:
            return _ROUNDED
        apart, still_apart = (float(np.abs(one[0] - one[1]).sum()) for one in (full, half))
        if still_apart > 1e-5 * scale and still_apart > 0.75 * apart:
            moved = float(np.abs(full - half).sum())
            if moved > TRUSTED * scale + 0.5 * still_apart:
                return _BENT
            # Each element of the output has its own two sides.
            low, high = float(np.minimum(*half).sum()), float(np.maximum(*half).sum())
            return Estimate(low, high, 2 * moved + rounding, True, h)
        wandering = abs(central - finer)
        if wandering > TRUSTED * scale:
            return _BENT
        value = (4 * finer - central) / 3
        return Estimate(value, value, MARGIN * wandering + rounding, False, h)

    def _change(self, direction: dict[int, np.ndarray], h: float) -> np.ndarray:
        """(f(values + h·direction) - f(values))·dy, for each element of the output."""
        moved = [v + h * direction[i] if i in direction else v for i, v in enumerate(self.values)]
        return np.where(self.defined, (np.asarray(self.forward(moved)) - self.here) * self.trial.dy, 0.0)


_BENT, _ROUNDED = "f bends within the step", "the step drowns in rounding"


def adjoint_errors(subject: Subject, trial: Trial, seed: int) -> list[tuple[float, float] | None] | None:
    """For each argument |⟨J v, u⟩ - ⟨v, Jᵀ u⟩| for a random v, with u = dy, and the size of the two sides' terms.

    J v by `jax.jvp` of the plain forward; None where it has no forward mode, or the gradient is not finite.
    """
    values = [np.asarray(v) for v in trial.values]
    push = quick_jit(lambda values, tangents: jax.jvp(lambda *v: subject.plain(list(v)), tuple(values), tangents)[1])
    rng = stream(seed, 0)
    found = []
    for i, x in enumerate(values):
        v = rng.standard_normal(x.shape)
        if not np.isfinite(trial.right[i]).all():
            found.append(None)
            continue
        tangents = tuple(v if j == i else np.zeros_like(y) for j, y in enumerate(values))
        try:
            pushed = np.asarray(push(values, tangents)) * trial.dy
        except TypeError:  # a custom_vjp inside has no jvp
            return None
        pulled = v * np.asarray(trial.hand[i])
        found.append((abs(float(pushed.sum() - pulled.sum())), float(np.abs(pushed).sum() + np.abs(pulled).sum())))
    return found
