"""The backward pass under what jax does to it: no jit, a second call, vmap, other batches, differentiation again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.verification.compilation import quick_jit
from jaxcnn.verification.rounding import moves
from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import EPSILON, Trial, first_line, largest_difference, runner, stream

# Another program sums in another order.
TOLERANCE = 1e-11
MIRACLE = 1e-4  # of the largest derivative, and of what it is made of the square: no rounding explains more
SECOND_ORDER = 1e-9  # two derivatives, each with its rounding


class Outcome(NamedTuple):
    """One argument under one transformation."""

    check: str
    index: int  # of the argument
    error: float
    tolerance: float
    scale: float
    got: np.ndarray | None
    right: np.ndarray | None


def again(subject: Subject, trial: Trial) -> tuple[list[Outcome], list[Outcome]]:
    """Without jit, compared with the jitted call; and a second call without jit, compared with the first.

    The backward pass of the first comes after the forward pass of the second, and after one at other values: what it
    needs must be in its residuals.
    """
    values, dy = [jnp.asarray(v) for v in trial.values], jnp.asarray(trial.dy)
    pullbacks = [subject.by_hand(at)[1] for at in (values, values, [jnp.flip(v) * 0.9 for v in values])]
    first, second = (_as_numpy(pullback(dy)) for pullback in pullbacks[:2])
    return _compare("without jit", first, trial.hand), _compare("second call", second, first)


def under_vmap(subject: Subject, trials: Sequence[Trial]) -> list[Outcome]:
    """Two trials at once under `jax.vmap`, compared with one after the other."""

    @quick_jit
    @jax.vmap
    def both(values, dy):
        return subject.by_hand(values)[1](dy)

    stacked = [jnp.stack(v) for v in zip(*(t.values for t in trials), strict=True)]
    got = _as_numpy(both(stacked, jnp.stack([t.dy for t in trials])))
    right = [np.stack(h) for h in zip(*(t.hand for t in trials), strict=True)]
    return _compare("vmap", got, right)


def refused_by_vmap(subject: Subject) -> str:
    """What the forward pass alone raises under `jax.vmap`, "" if nothing: no fault of the backward pass."""
    values = [a.astype(np.float64)[None] for a in subject.arrays]
    try:
        jax.eval_shape(jax.vmap(lambda values: subject.forward(values)[0]), values)
    except Exception as error:
        return first_line(error)
    return ""


def other_batch(subject: Subject, seed: int) -> tuple[list[Outcome], str]:
    """Half of the samples, in another order, where the rule says on which axis they stand; against autodiff there.

    Or why there is nothing to compare.
    """
    batched = [(a, axis) for a, axis in zip(subject.arrays, subject.batch_axes, strict=True) if axis is not None]
    sizes = sorted({a.shape[axis] if a.ndim > axis else 1 for a, axis in batched})
    if subject.take is None or not sizes:
        return [], "no axis of samples is declared (batch_axes)"
    samples = sizes[0]
    if len(sizes) > 1 or samples < 2:
        return [], f"the declared axes have {' and '.join(map(str, sizes))} sample(s)"
    try:
        part = subject.take(np.arange(samples)[::-1][: (samples + 1) // 2])
        values = [a.astype(np.float64) for a in part.arrays]
        shape = jax.eval_shape(part.plain, values).shape
    except (ValueError, TypeError):  # in arrays of these ranks the axis is another
        return [], "what is left of the arrays fits no longer"
    result = runner(part)("part", values, stream(seed).standard_normal(shape))
    return _compare("other batch", result.hand, result.right), ""


def second_order(subject: Subject, trial: Trial, seed: int, excuse: bool) -> list[Outcome]:
    """The derivative of the backward pass by the values and by dy, against that of autodiff's.

    `excuse`: whether it shall be looked up how much of a difference is rounding.
    """
    rng = stream(seed)
    cotangents = [rng.standard_normal(v.shape) for v in trial.values]

    def both(values, dy):
        def differentiated(passes):
            _, pullback = jax.vjp(lambda values, dy: passes(values)[1](dy), values, dy)
            dvalues, ddy = pullback([jnp.asarray(c) for c in cotangents])
            return [*dvalues, ddy]

        return differentiated(subject.by_hand), differentiated(subject.by_autodiff)

    got, right = map(_as_numpy, quick_jit(both)([jnp.asarray(v) for v in trial.values], jnp.asarray(trial.dy)))
    # A derivative that is 0 in exact arithmetic is not in floating point. What rounding may leave: a millionth of
    # the largest of the other derivatives, or some units in the last place of what they are made of.
    outcomes = _compare("second order", got, right)
    floor = 1e-6 * max(o.scale for o in outcomes)
    largest = [float(np.abs(a).max(initial=0.0)) for a in (trial.dy, *cotangents)]
    rounding = 8 * EPSILON * largest[0] * max(largest[1:])
    outcomes = [o._replace(tolerance=SECOND_ORDER * max(o.scale, floor) + rounding) for o in outcomes]
    wrong = [o.error for o in outcomes if not o.error <= o.tolerance]
    plausible = max(MIRACLE * max(o.scale for o in outcomes), MIRACLE**2 * largest[0] * max(largest[1:]))
    if excuse and wrong and max(wrong) <= plausible:
        moved = moves(lambda values, dy: [*itertools.chain(*both(values, dy))])(list(trial.values), trial.dy)
        sides = zip(moved[: len(outcomes)], moved[len(outcomes) :], strict=True)
        allowed = [sum(float(np.nan_to_num(m).max(initial=0.0)) for m in side) for side in sides]
        outcomes = [o._replace(tolerance=max(o.tolerance, a)) for o, a in zip(outcomes, allowed, strict=True)]
    return outcomes


def saved_bytes(subject: Subject) -> tuple[int, int]:
    """Bytes that the hand-written forward pass keeps for the backward pass, and those that autodiff keeps.

    Of arrays in the given dtypes; an array that both the caller and the residuals hold counts for both.
    """
    values = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in subject.arrays]
    by_hand = jax.eval_shape(lambda values: subject.forward(values)[1], values)
    by_autodiff = jax.eval_shape(lambda *values: jax.vjp(lambda *v: subject.plain(list(v)), *values)[1], *values)
    return _bytes(by_hand), _bytes(by_autodiff)


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _compare(check: str, got: Sequence[Any], right: Sequence[Any]) -> list[Outcome]:
    outcomes = []
    for i, (g, r) in enumerate(zip(got, right, strict=True)):
        scale = 0.0 if r is None else float(np.abs(r[np.isfinite(r)]).max(initial=0.0))
        error = math.inf if g is None or r is None or g.shape != r.shape else largest_difference(g, r)
        outcomes.append(Outcome(check, i, error, TOLERANCE * scale, scale, g, r))
    return outcomes


def _as_numpy(cotangents: Sequence[Any]) -> list[np.ndarray | None]:
    return [None if c is None else np.asarray(c) for c in cotangents]
