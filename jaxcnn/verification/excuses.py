"""Where a gradient by hand differs from autodiff's and is as good: at kinks of the verifier's own making."""

from __future__ import annotations

import numpy as np

from jaxcnn.verification.differences import STEP, TRUSTED, Slope
from jaxcnn.verification.rounding import contains
from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import Trial, stream

ELEMENTS = 24  # that are looked at, of those that differ
LEVELS = 8  # values that are moved as a whole, of those that the elements have


def arbitrary(subject: Subject, trial: Trial, i: int) -> bool:
    """Whether argument i's gradient by hand lies between the one-sided differences where autodiff has no say.

    Autodiff has none where it is between them itself (the halves of `jnp.maximum`), outside (its halves where both
    sides are equal), or at a side that jax chose (`jnp.abs`). Otherwise the forward pass says which side is meant, and
    so does a declared reference. Values that are equal move together as well: of a tied maximum they share one dy.
    """
    if subject.declared:
        return False
    slope, hand, right = Slope(subject, trial), np.asarray(trial.hand[i]), trial.right[i]
    chosen_by_jax = contains(subject, trial.values, "abs", "clamp")
    scale = float(np.abs(right).max(initial=0.0))
    differing = np.argwhere(~(np.abs(hand - right) <= 1e-10 * scale))
    places = [tuple(map(int, place)) for place in stream(0).permutation(differing)[:ELEMENTS]]
    for place in places:
        estimate = slope.along_element(i, place, scale)
        if estimate is None or not estimate.holds(float(hand[place]), scale):
            return False
        taken = min(abs(float(right[place]) - side) for side in (estimate.low, estimate.high))
        at_a_side = taken <= TRUSTED * (estimate.high - estimate.low) + estimate.slack
        if estimate.kink and at_a_side and not chosen_by_jax:
            return False
    for level in list(dict.fromkeys(float(trial.values[i][place]) for place in places))[:LEVELS]:
        direction = {j: (v == level).astype(float) for j, v in enumerate(slope.values)}
        estimate = slope.along(direction, STEP * max(slope.largest), scale)
        got = sum(float((np.asarray(trial.hand[j]) * d).sum()) for j, d in direction.items())
        if estimate is not None and not estimate.holds(got, scale):
            return False
    return True
