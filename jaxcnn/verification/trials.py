"""Trials: both gradients of a subject at some values, for some cotangent, in one dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.verification.compilation import quick_jit
from jaxcnn.verification.subject import StructureError, Subject

EPSILON = 2.0**-52
# float64 carries 2e-16; sums over a layer's thousands of terms, in another order, stay a thousandfold below this.
FLOAT64_TOLERANCE = 1e-12
SMALL = 1e-6
LARGE = -1e6  # a cotangent times this: a rule that is not linear in dy, or that looks at its sign, shows here
FINER = 1 + 2.0**-30  # values times this have more digits than float32 keeps; those that tie still do
ONE_HOT = 24  # cotangents that look at one element of the output each: they see what a sum over all would drown
# Whoever calls with default_rng(0).normal() shall not meet dy = x: the verifier draws from streams of its own.
STREAM = 0x6A6178

Runner = Callable[[str, Sequence[Any], Any], "Trial"]  # (kind, values, dy)


class Trial(NamedTuple):
    """One comparison. All in NumPy; a cotangent by hand is None where the backward pass gave None."""

    kind: str  # "random", "spread", "zero", "small", "large", "finer", "one element", "ties"
    values: tuple[np.ndarray, ...]
    dy: np.ndarray
    hand: tuple[np.ndarray | None, ...]
    right: tuple[np.ndarray, ...]  # by autodiff


def stream(seed: int, *what: int) -> np.random.Generator:
    """Random numbers of the verifier's own, for a seed and for what they are drawn."""
    return np.random.default_rng((STREAM, seed, *what))


def runner(subject: Subject) -> Runner:
    """Makes trials, compiled once for each dtype of the values.

    Raises StructureError for passes that do not fit together, and whatever the passes raise.
    """

    @quick_jit
    def both(values, dy):
        output, pullback = subject.by_hand(values)
        plain, reference = subject.by_autodiff(values)
        return output, plain, [None if c is None else jnp.asarray(c) for c in pullback(dy)], reference(dy)

    def run(kind: str, values: Sequence[Any], dy: Any) -> Trial:
        values = [jnp.asarray(v) for v in values]
        output, plain, hand, right = both(values, jnp.asarray(dy))
        require_same_output(output, plain)
        return Trial(kind, *jax.tree.map(np.asarray, (tuple(values), dy, tuple(hand), tuple(right))))

    return run


def float64_trials(subject: Subject, run: Runner, seed: int, cotangents: int) -> list[Trial]:
    """The given values with cotangents of several kinds, and values with more digits, with ties and zeros.

    Of rules one after the other not the latter three: there rounding decides on which side of the later kinks they are.
    """
    generator = stream(seed)
    values = [np.asarray(a, np.float64) for a in subject.arrays]
    shape = jax.eval_shape(subject.plain, values).shape
    random = [generator.standard_normal(shape) for _ in range(cotangents)]
    trials = [run("random", values, dy) for dy in random]
    trials.append(run("spread", values, _spread(generator, shape)))
    trials += [run(kind, values, by * random[0]) for kind, by in (("zero", 0), ("small", SMALL), ("large", LARGE))]
    size = math.prod(shape)
    for place in generator.permutation(size)[:ONE_HOT] if size > 1 else ():
        dy = np.zeros(size)
        dy[place] = 1
        trials.append(run("one element", values, dy.reshape(shape)))
    if subject.chained:
        return trials
    trials.append(run("finer", [v * FINER for v in values], random[0]))
    for make in (rounded, constant, with_zeros):
        special = [make(v, generator) for v in values]
        tied = [run("ties", special, dy) for dy in random[:2]]
        # Where the plain gradient is infinite at such values there is nothing to compare with.
        trials += [t for t in tied if all(np.isfinite(r).all() for r in t.right)]
    return trials


def _spread(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Mostly ordinary, a few entries huge and a few tiny."""
    return generator.standard_normal(shape) * generator.choice([1, 1, 1, 1e8, 1e-8], shape)


def rounded(array: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """The array rounded so coarsely that values coincide, and some are zero."""
    return np.round(array / _grid(array)) * _grid(array)


def constant(array: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """All elements equal."""
    return np.full_like(array, _grid(array))


def with_zeros(array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Half of the elements zero; the only one, if there is one."""
    return np.where((generator.random(array.shape) < 0.5) | (array.size == 1), 0.0, array)


def _grid(array: np.ndarray) -> float:
    """A power of two, so that arrays of about one size get common values, which may tie with each other."""
    size = _largest(array)
    return 2.0 ** math.floor(math.log2(size / 2)) if size else 1.0


class Difference(NamedTuple):
    """The largest error of one argument's gradient in a trial, and what is allowed there."""

    error: float
    tolerance: float
    scale: float
    trial: Trial


def each_difference(trials: Sequence[Trial], i: int, epsilon: float = EPSILON) -> list[Difference]:
    """The error of argument i's gradient in each trial, and what is allowed there.

    Allowed is 1e-12 (of float64) of the trial's own largest right element, so that a small cotangent's fault is not
    drowned by a large one's, plus a few units in the last place of the largest that an ordinary cotangent gives.
    """
    sizes = [(_largest(t.right[i]), _largest(t.dy)) for t in trials]
    ordinary = {True: 0.0, False: 0.0}  # of values that tie, and of the others
    for trial, (scale, dy) in zip(trials, sizes, strict=True):
        ties = trial.kind == "ties"
        ordinary[ties] = max(ordinary[ties], scale / max(dy, 1e-300))
    differences = []
    for trial, (scale, dy) in zip(trials, sizes, strict=True):
        hand, right, usual = trial.hand[i], trial.right[i], ordinary[trial.kind == "ties"] * dy
        error = largest_difference(hand, right) if hand is not None and hand.shape == right.shape else math.inf
        tolerance = FLOAT64_TOLERANCE * epsilon / EPSILON * scale + 8 * epsilon * usual
        # Of a right gradient of zeros, an error is seen beside what such a cotangent gives elsewhere.
        differences.append(Difference(error, tolerance, scale or usual, trial))
    return differences


def worst_difference(differences: Sequence[Difference]) -> Difference:
    """The one whose error is largest in units of what is allowed."""
    return max(differences, key=lambda d: _excess(d.error, d.tolerance))


def _excess(error: float, tolerance: float) -> float:
    if math.isnan(error):
        return math.inf
    return error / tolerance if tolerance else (math.inf if error else 0.0)


def largest_difference(a: Any, b: Any) -> float:
    """NaN where one is NaN or infinite and the other is not that too, and where one is complex."""
    if np.iscomplexobj(a) or np.iscomplexobj(b):
        return math.nan
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    difference = np.where(np.isinf(difference), np.nan, difference)
    return float(difference.max(initial=0.0))


def form_of(hand: Any, value: Any) -> str:
    """What is wrong about a cotangent as such, "" if nothing."""
    if hand is None:
        return "it is None, though its array has a gradient"
    if (hand.shape, hand.dtype) != (value.shape, value.dtype):
        return f"it is {hand.dtype}{list(hand.shape)}, its array is {value.dtype}{list(value.shape)}"
    return ""


def require_same_output(output: Any, plain: Any) -> None:
    """The forward pass and its reference agree in form and value."""
    if not hasattr(output, "shape") or output.shape != plain.shape or output.dtype != plain.dtype:
        got = f"{output.dtype}{list(output.shape)}" if hasattr(output, "shape") else type(output).__name__
        raise StructureError(f"forward gives {got}, its reference {plain.dtype}{list(plain.shape)}")
    eps = float(jnp.finfo(output.dtype).eps)
    difference, scale = largest_difference(output, plain), _largest(plain)
    if not difference <= 64 * eps * scale:
        raise StructureError(f"forward and reference differ in value by {difference:.2e}, largest element {scale:.2e}")


def _largest(array: Any) -> float:
    array = np.asarray(array, np.float64)
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
