"""What is wrong with a gradient: the hypotheses that explain it, the best supported first.

Each hypothesis is a way in which backward passes go wrong. Some are seen by comparing the wrong array with the right
one (`comparisons`); the others, here, predict the wrong gradient as the right one at changed values or for a changed
cotangent: a filter that is turned, a dy without its first sample. They run autodiff of the plain forward pass; nothing
is compiled for that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxcnn.verification.comparisons import (
    Cause,
    Pairs,
    flipped,
    largest,
    misfit,
    nearly,
    reordered,
    rounded,
    scaled,
    shifted,
    spatial_axes,
    swapped,
    transposed,
    turned_axes,
    unknown,
    where,
    zero,
)
from jaxcnn.verification.excuses import arbitrary
from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import LARGE, Runner, Trial

ALIKE = 0.8  # the cosine between the errors at two close values, above which they are of one smooth function
SAMPLES = 12  # of so many it is looked up which sample of an argument each sample of dy was paired with


class Evidence(NamedTuple):
    subject: Subject
    run: Runner
    trials: Sequence[Trial]
    index: int  # of the argument

    @property
    def name(self) -> str:
        return f"d{self.subject.arguments[self.index]}"

    def of(self, kind: str) -> list[Trial]:
        return [t for t in self.trials if t.kind == kind]

    def pairs(self, kind: str = "random") -> Pairs:
        trials, names = self.of(kind), self.subject.arguments
        return Pairs(
            self.name,
            [np.asarray(t.hand[self.index]) for t in trials],
            [t.right[self.index] for t in trials],
            {name: [t.right[j] for t in trials] for j, name in enumerate(names) if j != self.index},
            sizes(self.subject, trials[0].dy if trials else np.zeros(())),
        )

    def at(self, values=lambda v: v, dy=lambda d: d) -> list[np.ndarray]:
        """The right gradients at other values or for other cotangents."""
        return [self.run("changed", values(list(t.values)), dy(t.dy)).right[self.index] for t in self.of("random")]


def sizes(subject: Subject, dy: np.ndarray) -> dict[int, str]:
    """What each number in the shapes is the size of: of an axis, or of several together."""
    found: dict[int, str] = {}
    for name, array in (("dy", dy), *zip(subject.arguments, subject.arrays, strict=True)):
        for count in range(1, array.ndim + 1):
            for axes in itertools.combinations(range(array.ndim), count):
                of = f"the size of {name} along {axes}" if count < array.ndim else f"the number of elements of {name}"
                found.setdefault(math.prod(array.shape[a] for a in axes), of)
    return found


def diagnose(evidence: Evidence) -> list[Cause]:
    """The supported causes, the best first; [unknown] where there is none."""
    e, p = evidence, evidence.pairs()
    if bad := sum(int((~np.isfinite(h)).sum()) for h in p.hand[:1]):
        return [Cause("nan", f"{e.name} has {bad} of {p.hand[0].size} values that are NaN or infinite")]
    if p.hand[0].shape != p.right[0].shape:
        return list(transposed(p)) or [Cause("structure", "")]
    if misfit(p.hand, p.right) < 1e-12:  # right for ordinary cotangents at the given values
        return _only_elsewhere(e)
    for causes in (
        zero(p), rounded(p), _not_linear(e), scaled(p), _at_special_points(e), swapped(p), transposed(p), flipped(p),
        shifted(p), reordered(p), _cotangent_itself(e), _cut_cotangent(e), _mixed_samples(e), _turned_argument(e),
        _rearranged_cotangent(e), where(p), _nearly(e),
    ):  # fmt: skip
        if found := list(causes):  # later ones are weaker
            return list({cause.word: cause for cause in reversed(found)}.values())[::-1]
    return [unknown(p)]


def _not_linear(e: Evidence) -> Iterator[Cause]:
    (at_zero,), (large,), hand = e.pairs("zero").hand, e.pairs("large").hand, e.pairs().hand
    scale = max(map(largest, hand))
    if np.array_equal(at_zero, hand[0]):
        yield Cause("not-linear", f"{e.name} is the same for dy = 0: dy does not enter it")
    elif not np.isfinite(at_zero).all() or largest(at_zero) > 1e-9 * scale:
        added = f"{e.name} for dy = 0 has elements up to {largest(at_zero):.3g}"
        yield Cause("not-linear", f"{added}: something is added that does not depend on dy")
    elif np.abs(large - LARGE * hand[0]).max() > 1e-7 * max(largest(large), abs(LARGE) * scale):
        yield Cause("not-linear", f"{e.name} for -10⁶·dy is not -10⁶ times {e.name} for dy: dy enters it non-linearly")
    else:
        one, two, *_ = e.of("random")
        together = np.asarray(e.run("sum", one.values, one.dy + two.dy).hand[e.index])
        apart = hand[0] + hand[1]
        if np.abs(together - apart).max() > 1e-7 * largest(apart):
            yield Cause("not-linear", f"{e.name} for dy₁ + dy₂ is not the sum of those for dy₁ and dy₂")


def _at_special_points(e: Evidence) -> Iterator[Cause]:
    """Right when the values are moved a little apart, so wrong only where some are equal or zero."""
    rng = np.random.default_rng(0)

    def apart(values):
        return [v + 1e-3 * (largest(v) or 1) * rng.standard_normal(v.shape) for v in values]

    def moved(values):  # ties stay, zeros go
        return [v + 0.37 * (largest(v) or 1) * (i == e.index) for i, v in enumerate(values)]

    trials = e.of("random") or e.of("ties")
    trial = max(trials, key=lambda t: misfit([np.asarray(t.hand[e.index])], [t.right[e.index]]))
    if not _right_at(e, trial, apart):
        return
    said = (
        "; autodiff's value there lies between both sides; a reference can declare yours"
        if arbitrary(e.subject, trial, e.index)
        else ""
    )
    if _right_at(e, trial, moved):
        yield Cause("kink", f"{e.name} is wrong only where {e.name[1:]} is exactly at a kink of the forward pass{said}")
    else:
        yield Cause("ties", f"{e.name} is wrong only where several values of {e.name[1:]} tie{said}")


def _not_finite(e: Evidence) -> Iterator[Cause]:
    for trial in e.trials:
        value, bad = trial.values[e.index], ~np.isfinite(np.asarray(trial.hand[e.index]))
        if bad.any():
            where = "is zero" if not value[bad].any() else "is zero or several of its values tie"
            yield Cause("nan", f"{e.name} has values that are NaN or infinite where {e.name[1:]} {where}")
            return


def _right_at(e: Evidence, trial: Trial, move: Callable) -> bool:
    moved = e.run("moved", move(list(trial.values)), trial.dy)
    return misfit([np.asarray(moved.hand[e.index])], [moved.right[e.index]]) < 1e-10


def _cotangent_itself(e: Evidence) -> Iterator[Cause]:
    dys = [t.dy for t in e.of("random")]
    if dys[0].shape == e.trials[0].right[e.index].shape and e.pairs().fit(dys) is not None:
        yield Cause("unknown", f"{e.name} equals dy: the derivative of the pass itself is left out")


def _nearly(e: Evidence) -> Iterator[Cause]:
    """About right: after rounding, whose error at other values is another, or by a formula that is about right."""
    for cause in nearly(e.pairs()):
        trial, errors = e.of("random")[0], []
        for factor in (1.0, 1.013):
            at = e.run("near", [v * factor for v in trial.values], trial.dy)
            errors.append((np.asarray(at.hand[e.index]) - at.right[e.index]).ravel())
        size = float(np.linalg.norm(errors[0]) * np.linalg.norm(errors[1]))
        if errors[0].size > 2 and size and errors[0] @ errors[1] > ALIKE * size:
            share = misfit(e.pairs().hand, e.pairs().right)
            said = f"{e.name} is right to {share:.0e} of its largest element, and its error a smooth function"
            yield Cause("unknown", f"{said}: the derivative of another formula, close to that of the forward pass")
        else:
            yield cause


def _cut_cotangent(e: Evidence) -> Iterator[Cause]:
    """The right gradient for a cotangent of which some part is left out, or is in another order."""
    fit = e.pairs().fit
    dy = e.of("random")[0].dy
    spatial = spatial_axes(dy.ndim) if dy.ndim > 2 else ()
    ends = [[(i, n - j) for i in (0, 1) for j in (0, 1) if i < n - j] for n in (dy.shape[a] for a in spatial)]
    for kept in itertools.product(*ends):
        inside = [slice(None)] * dy.ndim
        for axis, (first, end) in zip(spatial, kept, strict=True):
            inside[axis] = slice(first, end)

        def cut(dy, inside=tuple(inside)):
            less = np.zeros_like(dy)
            less[inside] = dy[inside]
            return less

        if any(s != slice(None) for s in inside) and fit(e.at(dy=cut)) is not None:
            rows = " and ".join(f"{a}–{b - 1} of axis {axis}" for axis, (a, b) in zip(spatial, kept, strict=True))
            yield Cause("border", f"{e.name} equals the right gradient for the inner part of dy alone, {rows}")
            return
    if elsewhere := next(_away_from_the_edge(e, dy, spatial), None):
        yield elsewhere
        return
    samples = any(axis is not None for axis in e.subject.batch_axes)
    for axis, n in enumerate(dy.shape):
        if n < 2:
            continue
        what, numbers = f"axis {axis} of dy", np.arange(1, n + 1)
        turned = "partial" if (axis == 0 and samples) or (dy.ndim > 2 and axis not in spatial) else "flipped"
        for word, said, order in (
            *(("partial", f"without index {i} of {what}", numbers * (numbers != i + 1)) for i in range(n)),
            *(("partial", f"for index {i} of {what} alone", numbers * (numbers == i + 1)) for i in range(n)),
            *(("partial", f"for the first {k} of {what} alone", numbers * (numbers <= k)) for k in range(2, n)),
            (turned, f"for dy with {what} in reverse order", numbers[::-1]),
            *(("partial", f"for dy with {what} moved by {k}", np.roll(numbers, k)) for k in (1, -1)),
        ):  # order: for each place the slice that stands there, counted from 1; 0 for none

            def changed(dy, axis=axis, order=order):
                padded = np.concatenate([np.zeros_like(np.take(dy, [0], axis)), dy], axis)
                return np.take(padded, order, axis)

            if fit(e.at(dy=changed)) is not None:
                yield Cause(word, f"{e.name} equals the right gradient {said}")
                return


def _away_from_the_edge(e: Evidence, dy: np.ndarray, spatial: tuple[int, ...]) -> Iterator[Cause]:
    """For a dy that is zero near the edge: right there, or right for a dy that is moved."""
    values = e.of("random")[0].values

    def framed(by: tuple[int, ...]) -> np.ndarray:
        inside = dy.copy()
        for axis, k in zip(spatial, by, strict=True):
            places = np.arange(dy.shape[axis]).reshape([-1 if a == axis else 1 for a in range(dy.ndim)])
            inside = np.where((places >= k) & (places < dy.shape[axis] - k), inside, 0.0)
        return inside

    if not spatial:
        return
    for margin in (1, 2):
        inside = e.run("framed", values, framed((margin,) * len(spatial)))
        if inside.right[e.index].any() and misfit([np.asarray(inside.hand[e.index])], [inside.right[e.index]]) < 1e-12:
            said = f"within {margin} of the edge of its axes {', '.join(map(str, spatial))}"
            yield Cause("border", f"{e.name} is right for a dy that is zero {said}, wrong for others")
            return
    steps = [by for by in itertools.product((-2, -1, 0, 1, 2), repeat=len(spatial)) if 0 < sum(map(abs, by)) < 3]
    for by in sorted(steps, key=lambda by: sum(map(abs, by))):
        inside = framed(tuple(abs(k) + 1 if k else 0 for k in by))
        here, moved = (e.run("moved", values, at) for at in (inside, np.roll(inside, by, spatial)))
        hand, same, right = np.asarray(here.hand[e.index]), here.right[e.index], moved.right[e.index]
        if right.any() and misfit([hand], [right]) < 1e-10 and misfit([same], [right]) > 1e-7:
            said = " and ".join(f"{k:+d} along axis {axis}" for k, axis in zip(by, spatial, strict=True) if k)
            yield Cause("shifted", f"{e.name} equals the right gradient for dy moved by {said}: an offset is off")
            return


def _mixed_samples(e: Evidence) -> Iterator[Cause]:
    """Each sample of dy meets another sample of some argument than its own."""
    dy = e.of("random")[0].dy
    for j, (name, axis) in enumerate(zip(e.subject.arguments, e.subject.batch_axes, strict=True)):
        n = dy.shape[0] if dy.ndim else 0
        if axis is None or not 2 <= n <= SAMPLES or e.subject.arrays[j].shape[axis] != n:
            continue
        trial = e.of("random")[0]
        order = []
        for sample in range(n):
            alone = np.where(np.arange(n).reshape(-1, *[1] * (dy.ndim - 1)) == sample, dy, 0)
            wrong = np.asarray(e.run("alone", trial.values, alone).hand[e.index])
            for other in [sample, *(k for k in range(n) if k != sample)]:
                values = list(trial.values)
                values[j] = np.take(values[j], [other if k == sample else k for k in range(n)], axis)
                right = e.run("alone", values, alone).right[e.index]
                if right.any() and misfit([wrong], [right]) < 1e-7:
                    order.append(other)
                    break
            else:
                break
        if len(order) == n and order != list(range(n)):
            yield Cause("partial", f"{e.name} pairs the samples of dy with samples {order} of {name}, in that order")
            return


def _turned_argument(e: Evidence) -> Iterator[Cause]:
    """The right gradient for another argument that is turned, exchanged or negated."""
    fit = e.pairs().fit
    for j, name in enumerate(e.subject.arguments):
        array = e.subject.arrays[j]
        for word, said, turn in _turns(array):

            def turned(values, j=j, turn=turn):
                return [turn(v) if i == j else v for i, v in enumerate(values)]

            if np.array_equal(turn(array), array) or (word == "negated" and j == e.index):
                continue
            if (error := fit(e.at(values=turned))) is not None:
                why = ": the filter was not rotated" if word == "rotated" else ""
                yield Cause(word, f"{e.name} equals the right gradient for {name} {said}, to {error:.0e}{why}")
                return


def _rearranged_cotangent(e: Evidence) -> Iterator[Cause]:
    """The right gradient for a dy whose axes, or one axis's places, are taken for others."""
    fit, dy = e.pairs().fit, e.of("random")[0].dy
    for said, change in _rearrangements(dy.shape):
        if fit(e.at(dy=change)) is not None:
            yield Cause("transposed", f"{e.name} equals the right gradient for dy {said}")
            return
    for axis in range(dy.ndim) if dy.ndim == e.subject.arrays[e.index].ndim else ():
        turned = e.at(dy=lambda dy, axis=axis: np.flip(dy, axis))
        if fit([np.flip(right, axis) for right in turned]) is not None:
            said = f"{e.name} runs along axis {axis} the wrong way: with dy in reverse order it is the right gradient"
            yield Cause("flipped", f"{said}, in reverse order")
            return


def _rearrangements(shape: tuple[int, ...]) -> Iterator[tuple[str, Callable]]:
    for axes in itertools.permutations(range(len(shape))) if len(shape) <= 4 else ():
        moved = [i for i, axis in enumerate(axes) if i != axis]
        if moved and tuple(shape[axis] for axis in axes) == shape:
            yield f"with its axes {', '.join(map(str, moved))} exchanged", lambda dy, axes=axes: dy.transpose(axes)
    for axis, n in enumerate(shape):
        for k in (k for k in range(2, n) if n % k == 0):

            def exchanged(dy, axis=axis, split=(k, n // k)):
                apart = dy.reshape(*shape[:axis], *split, *shape[axis + 1 :])
                return apart.swapaxes(axis, axis + 1).reshape(shape)

            yield f"with axis {axis} laid out as {k}×{n // k}, where {n // k}×{k} belongs", exchanged


def _turns(array: np.ndarray) -> Iterator[tuple[str, str, Callable]]:
    spatial = spatial_axes(array.ndim)
    for axes in turned_axes(array.ndim):
        where = "" if axes == spatial else f" in its axes {', '.join(map(str, axes))}"
        yield "rotated", f"rotated by 180 degrees{where}", lambda a, axes=axes: np.flip(a, axes)
    for axis in range(array.ndim):
        word = "partial" if array.ndim > 2 and axis not in spatial else "flipped"
        yield word, f"with axis {axis} reversed", lambda a, axis=axis: np.flip(a, axis)
        for by in (1, -1):
            said = f"with axis {axis} moved round by {by}"
            yield "partial", said, lambda a, axis=axis, by=by: np.roll(a, by, axis)
    for axes in itertools.permutations(range(array.ndim)):
        if axes != tuple(range(array.ndim)) and array.transpose(axes).shape == array.shape and array.ndim <= 4:
            moved = ", ".join(str(i) for i, axis in enumerate(axes) if i != axis)
            yield "transposed", f"with its axes {moved} exchanged", lambda a, axes=axes: a.transpose(axes)
    yield "negated", "with its sign changed", lambda a: -a


def _only_elsewhere(e: Evidence) -> list[Cause]:
    """Right for ordinary cotangents at the given values; wrong at ties, at more digits, or for another size of dy."""
    failing = {t.kind for t in e.trials if misfit([np.asarray(t.hand[e.index])], [t.right[e.index]]) > 1e-11}
    if failing == {"ties"}:
        e = e._replace(trials=e.of("ties"))
        return list(_not_finite(e)) or list(_at_special_points(e)) or [unknown(e.pairs("ties"))]
    if failing == {"finer"} and misfit((p := e.pairs("finer")).hand, p.right) < 1e-6:
        said = f"{e.name} is right at the given values and not at values of more digits than float32 keeps"
        return [Cause("precision", f"{said}: they are rounded on the way")]
    kinds = ", ".join(sorted(failing & {"zero", "small", "large", "spread"}))
    if kinds:
        return [Cause("not-linear", f"{e.name} is right for ordinary dy and wrong for dy of kind {kinds}")]
    return [unknown(e.pairs())]
