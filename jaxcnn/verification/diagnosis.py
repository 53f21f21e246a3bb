"""What is wrong with a gradient: the hypotheses that explain it, the best supported first.

Each hypothesis is a way in which backward passes go wrong, and predicts the wrong gradient from right ones: the right
gradient turned, or that for a turned filter, or for a cotangent without its first sample. It is supported if the
prediction holds for every cotangent. Most predictions run the plain forward's autodiff at changed values; nothing is
compiled for that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import LARGE, Runner, Trial

MATCH = 1e-7  # relative to the largest element: a hypothesis that is right fits far better, a wrong one far worse
DTYPES = ("float16", "bfloat16", "float32")


class Cause(NamedTuple):
    word: str
    message: str


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

    def hand(self, kind: str = "random") -> list[np.ndarray]:
        return [np.asarray(t.hand[self.index]) for t in self.of(kind)]

    def right(self, kind: str = "random") -> list[np.ndarray]:
        return [t.right[self.index] for t in self.of(kind)]

    def changed(self, values=lambda v: v, dy=lambda d: d) -> list[np.ndarray]:
        """The right gradients at other values or for other cotangents."""
        return [self.run("changed", values(list(t.values)), dy(t.dy)).right[self.index] for t in self.of("random")]

    def predicted_by(self, gradients: Sequence[np.ndarray]) -> float | None:
        """How well these explain the wrong gradients; None if they do not, or just as well explain the right ones."""
        error = _misfit(self.hand(), gradients)
        return error if error < MATCH and _misfit(self.right(), gradients) > MATCH else None


def diagnose(evidence: Evidence) -> list[Cause]:
    """All supported causes, the best first; [unknown] where there is none."""
    hand, right = evidence.hand(), evidence.right()
    if not all(np.isfinite(h).all() for h in hand):
        return [Cause("nan", f"{evidence.name} has {_count_bad(hand[0])} values that are NaN or infinite")]
    if hand[0].shape != right[0].shape:
        return list(_transposed(evidence)) or [Cause("structure", "")]
    if _misfit(hand, right) < 1e-12:  # right for ordinary cotangents at the given values
        return _only_elsewhere(evidence)
    hypotheses: list[Callable[[Evidence], Iterator[Cause]]] = [
        _zero, _rounded, _not_linear, _scaled, _at_special_points, _swapped, _transposed, _flipped, _shifted,
        _reordered, _partial_cotangent, _turned_argument, _where, _nearly,
    ]  # fmt: skip
    found: dict[str, Cause] = {}
    for hypothesis in hypotheses:
        for cause in hypothesis(evidence):
            found.setdefault(cause.word, cause)
        if found:  # later ones are weaker
            break
    return list(found.values()) or [_unknown(evidence)]


def _zero(e: Evidence) -> Iterator[Cause]:
    if all(not h.any() for h in e.hand()):
        yield Cause("zero", f"{e.name} is zero everywhere, the right gradient is not")


def _not_linear(e: Evidence) -> Iterator[Cause]:
    (at_zero,), (large,), first = e.hand("zero"), e.hand("large"), e.hand()[0]
    scale = max(_largest(h) for h in e.hand())
    if not np.isfinite(at_zero).all() or _largest(at_zero) > 1e-9 * scale:
        yield Cause(
            "not-linear",
            f"{e.name} for dy = 0 has elements up to {_largest(at_zero):.3g}: something is added that does not depend "
            "on dy",
        )
    elif np.abs(large - LARGE * first).max() > 1e-7 * max(_largest(large), abs(LARGE) * scale):
        yield Cause("not-linear", f"{e.name} for -10⁶·dy is not -10⁶ times {e.name} for dy: dy enters it non-linearly")
    else:
        one, two, *_ = e.of("random")
        together = np.asarray(e.run("sum", one.values, one.dy + two.dy).hand[e.index])
        apart = e.hand()[0] + e.hand()[1]
        if np.abs(together - apart).max() > 1e-7 * _largest(apart):
            yield Cause("not-linear", f"{e.name} for dy₁ + dy₂ is not the sum of those for dy₁ and dy₂")


def _scaled(e: Evidence) -> Iterator[Cause]:
    hand, right = (np.concatenate([g.ravel() for g in gradients]) for gradients in (e.hand(), e.right()))
    factor = float(hand @ right / (right @ right)) if right.any() else 0.0
    if factor == 0 or np.abs(hand - factor * right).max() > 1e-9 * _largest(hand):
        return
    if abs(factor + 1) < 1e-9:
        yield Cause("negated", f"{e.name} equals the right gradient with its sign changed")
    else:
        yield Cause("scaled", f"{e.name} equals the right gradient times {factor:.6g}{_origin(e, factor)}")


def _origin(e: Evidence, factor: float) -> str:
    """A guess at where a factor comes from: a size, or a product of two, of the arrays or of dy."""
    sizes: dict[int, str] = {}
    for name, array in (("dy", e.of("random")[0].dy), *zip(e.subject.arguments, e.subject.arrays, strict=True)):
        for count in range(1, array.ndim + 1):
            for axes in itertools.combinations(range(array.ndim), count):
                said = (
                    f"the number of elements of {name}" if count == array.ndim else f"the size of {name} along {axes}"
                )
                sizes.setdefault(math.prod(array.shape[a] for a in axes), said)
    for n, what in sizes.items():
        for candidate, said in ((n, f"{n}"), (1 / n if n else 0, f"1/{n}")):
            if n > 1 and abs(abs(factor) - candidate) < 1e-9 * abs(factor):
                return f", that is {said}, and {n} is {what}: a mean where a sum belongs, or the reverse"
    return ""


def _at_special_points(e: Evidence) -> Iterator[Cause]:
    """Right when the values are moved a little apart, so wrong only where some are equal or zero."""
    rng = np.random.default_rng(0)

    def apart(values):
        return [v + 1e-3 * (_largest(v) or 1) * rng.standard_normal(v.shape) for v in values]

    def shifted(values):  # ties stay, zeros go
        return [v + 0.37 * (_largest(v) or 1) * (i == e.index) for i, v in enumerate(values)]

    trial = (e.of("random") or e.of("ties"))[0]
    if not _right_at(e, trial, apart):
        return
    if _right_at(e, trial, shifted):
        yield Cause("kink", f"{e.name} is wrong only where {e.name[1:]} is exactly at a kink of the forward pass")
    else:
        yield Cause("ties", f"{e.name} is wrong only where several values of {e.name[1:]} tie")


def _right_at(e: Evidence, trial: Trial, move: Callable) -> bool:
    moved = e.run("moved", move(list(trial.values)), trial.dy)
    return _misfit([np.asarray(moved.hand[e.index])], [moved.right[e.index]]) < 1e-10


def _swapped(e: Evidence) -> Iterator[Cause]:
    for j, other in enumerate(e.subject.arguments):
        gradients = [t.right[j] for t in e.of("random")]
        if j != e.index and gradients[0].shape == e.right()[0].shape and e.predicted_by(gradients) is not None:
            yield Cause("swapped", f"{e.name} equals the right gradient of {other}")


def _transposed(e: Evidence) -> Iterator[Cause]:
    right, hand = e.right(), e.hand()
    for axes in itertools.permutations(range(right[0].ndim)):
        if axes == tuple(range(right[0].ndim)) or right[0].ndim > 5:
            continue
        turned = [r.transpose(axes) for r in right]
        if turned[0].shape == hand[0].shape and (error := e.predicted_by(turned)) is not None:
            moved = ", ".join(str(i) for i, axis in enumerate(axes) if i != axis)
            yield Cause(
                "transposed", f"{e.name} equals the right gradient with its axes {moved} exchanged, to {error:.0e}"
            )
            return
    if hand[0].shape != right[0].shape or right[0].ndim > 5:
        return
    for axes in itertools.permutations(range(right[0].ndim)):
        back = np.argsort(axes)
        layouts = (
            [r.transpose(axes).reshape(r.shape) for r in right],
            [r.reshape([r.shape[a] for a in axes]).transpose(back) for r in right],
        )
        if axes != tuple(range(right[0].ndim)) and any(e.predicted_by(layout) is not None for layout in layouts):
            yield Cause("transposed", f"{e.name} has the right values, its axes laid out in the order {axes} in memory")
            return


def _flipped(e: Evidence) -> Iterator[Cause]:
    right = e.right()
    spatial = spatial_axes(right[0].ndim)
    choices = [spatial] if spatial else []
    choices += [(axis,) for axis in range(right[0].ndim)]
    for axes in choices:
        if (error := e.predicted_by([np.flip(r, axes) for r in right])) is None:
            continue
        if len(axes) == 2:
            yield Cause("rotated", f"{e.name} equals the right gradient rotated by 180 degrees, to {error:.0e}")
        elif right[0].ndim > 2 and axes[0] not in spatial:
            yield Cause("partial", f"{e.name} has the slices of its axis {axes[0]} in reverse order")
        else:
            yield Cause(
                "flipped", f"{e.name} equals the right gradient flipped along its axis {axes[0]}, to {error:.0e}"
            )
        return


def _shifted(e: Evidence) -> Iterator[Cause]:
    right, hand = e.right(), e.hand()
    spatial = spatial_axes(right[0].ndim) or tuple(range(right[0].ndim))
    reach = {axis: range(-min(3, (right[0].shape[axis] - 1) // 2 or right[0].shape[axis] - 1), 4) for axis in spatial}
    shifts = [
        dict(zip(spatial, by, strict=True))
        for by in itertools.product(*(
            [s for s in reach[axis] if abs(s) <= abs(reach[axis].start)] for axis in spatial
        ))
        if any(by)
    ]  # fmt: skip
    for shift in sorted(shifts, key=lambda s: sum(map(abs, s.values()))):
        seen, source = [slice(None)] * right[0].ndim, [slice(None)] * right[0].ndim
        for axis, by in shift.items():
            n = right[0].shape[axis]
            seen[axis], source[axis] = slice(max(by, 0), n + min(by, 0)), slice(max(-by, 0), n - max(by, 0))
        overlap = [h[tuple(seen)] for h in hand], [r[tuple(source)] for r in right]
        if overlap[0][0].size < 2 or not any(o.any() for o in overlap[1]) or _misfit(*overlap) > MATCH:
            continue
        if _varies(overlap[1]):
            said = " and ".join(f"{by:+d} along axis {axis}" for axis, by in shift.items() if by)
            yield Cause("shifted", f"{e.name} is the right gradient shifted by {said}: an offset or a padding is off")
            return


def _varies(arrays: Sequence[np.ndarray]) -> bool:
    return any(np.ptp(a) > 1e-3 * _largest(a) for a in arrays)


def _partial_cotangent(e: Evidence) -> Iterator[Cause]:
    """The right gradient for a cotangent of which some part is left out, or whose samples are mixed up."""
    dy = e.of("random")[0].dy
    spatial = spatial_axes(dy.ndim) if dy.ndim > 2 else ()
    for axis, n in enumerate(dy.shape):
        if n < 2:
            continue
        what = f"axis {axis} of dy"
        word = "border" if axis in spatial else "partial"
        tries: list[tuple[str, str, np.ndarray]] = []
        for i in dict.fromkeys([0, n - 1, *range(n)]):
            tries.append((word, f"without index {i} of {what}", np.where(np.arange(n) == i, 0, np.arange(n) + 1)))
            tries.append(("partial", f"of index {i} of {what} alone", np.where(np.arange(n) == i, np.arange(n) + 1, 0)))
        for keep in range(1, n):
            tries.append(
                ("partial", f"of the first {keep} of {what} alone", np.where(np.arange(n) < keep, np.arange(n) + 1, 0))
            )
        tries.append((word, f"without both ends of {what}", np.r_[0, np.arange(2, n), 0][:n]))
        tries.append(("partial", f"with {what} in reverse order", np.arange(n)[::-1] + 1))
        tries += [("partial", f"with {what} moved by {k}", np.roll(np.arange(n), k) + 1) for k in (1, -1)]
        for cause, said, order in tries:  # order: for each place which slice stands there, counted from 1; 0 for none

            def changed(dy, axis=axis, order=order):
                padded = np.concatenate([np.zeros_like(np.take(dy, [0], axis)), dy], axis)
                return np.take(padded, order, axis)

            if e.predicted_by(e.changed(dy=changed)) is not None:
                yield Cause(cause, f"{e.name} equals the right gradient for dy {said}")
                return


def _turned_argument(e: Evidence) -> Iterator[Cause]:
    """The right gradient for another argument that is turned, exchanged or negated."""
    for j, name in enumerate(e.subject.arguments):
        array = e.subject.arrays[j]
        for word, said, turn in _turns(array):

            def turned(values, j=j, turn=turn):
                return [turn(v) if i == j else v for i, v in enumerate(values)]

            if np.array_equal(turn(array), array) or (word == "negated" and j == e.index):
                continue
            if (error := e.predicted_by(e.changed(values=turned))) is not None:
                why = ": the filter was not rotated" if word == "rotated" else ""
                yield Cause(word, f"{e.name} equals the right gradient for {name} {said}, to {error:.0e}{why}")
                return


def _turns(array: np.ndarray) -> Iterator[tuple[str, str, Callable]]:
    spatial = spatial_axes(array.ndim)
    if spatial:
        yield "rotated", "rotated by 180 degrees", lambda a: np.flip(a, spatial)
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


def _where(e: Evidence) -> Iterator[Cause]:
    """Only part of the elements is wrong: whole slices of an axis, or the edge."""
    wrong = _wrong_elements(e.hand(), e.right())
    if wrong.all() or wrong.ndim == 0:
        return
    spatial = spatial_axes(wrong.ndim) if wrong.ndim > 2 else ()
    for axis in (a for a in range(wrong.ndim) if a not in spatial):
        slices = np.asarray(wrong.any(tuple(a for a in range(wrong.ndim) if a != axis)))
        if 0 < slices.sum() < slices.size and wrong.sum() > 1:
            indices = np.flatnonzero(slices)
            yield Cause("partial", f"{e.name} is wrong at {_listed(indices)} of its axis {axis} and right elsewhere")
            return
    sizes = [wrong.shape[a] for a in spatial]
    for margin in range(1, (min(sizes, default=0) + 1) // 2):
        inside = [slice(None)] * wrong.ndim
        for axis in spatial:
            inside[axis] = slice(margin, wrong.shape[axis] - margin)
        if wrong[tuple(inside)].size and not wrong[tuple(inside)].any():
            yield Cause("border", f"{e.name} is wrong only within {margin} of the edge of axes {spatial}")
            return
    for axis in spatial:
        slices = np.asarray(wrong.any(tuple(a for a in range(wrong.ndim) if a != axis)))
        n, k = slices.size, int(slices.sum())
        if k <= n // 2 and (slices[:k].all() or slices[n - k :].all()):
            yield Cause(
                "border", f"{e.name} is wrong only at {_listed(np.flatnonzero(slices))} of axis {axis}, its edge"
            )
            return


def _rounded(e: Evidence) -> Iterator[Cause]:
    """Every element is a number of a lower precision, and about right."""
    hand, right = e.hand(), e.right()
    if _misfit(hand, right) > 0.02:
        return
    for dtype in DTYPES:
        if all(_representable(h, dtype) for h in hand) and not all(_representable(r, dtype) for r in right):
            yield Cause("precision", f"all elements of {e.name} are {dtype} numbers: it was computed in that precision")
            return


def _nearly(e: Evidence) -> Iterator[Cause]:
    misfit = _misfit(e.hand(), e.right())
    if misfit < 1e-2 and _wrong_elements(e.hand(), e.right()).mean() > 0.5:
        yield Cause("precision", f"{e.name} is right to {misfit:.0e} of its largest element, as after rounding")


def _reordered(e: Evidence) -> Iterator[Cause]:
    """Each slice along an axis is the right one of another place."""
    hand, right = np.stack(e.hand()), np.stack(e.right())
    for axis in range(right.ndim - 1):
        n = right.shape[axis + 1]
        if n < 2 or n > 64:
            continue
        rows, wanted = (np.moveaxis(a, axis + 1, 0).reshape(n, -1) for a in (hand, right))
        order = [int(np.abs(wanted - row).max(1).argmin()) for row in rows]
        if order != list(range(n)) and np.abs(wanted[order] - rows).max() < MATCH * _largest(right):
            yield Cause("partial", f"{e.name} has along its axis {axis} the right slices {order}, in that order")
            return


def _only_elsewhere(e: Evidence) -> list[Cause]:
    """Right for ordinary cotangents at the given values; wrong at ties, or for a cotangent of another size."""
    failing = {t.kind for t in e.trials if _misfit([np.asarray(t.hand[e.index])], [t.right[e.index]]) > 1e-11}
    if failing == {"ties"}:
        causes = list(_at_special_points(e._replace(trials=[t for t in e.trials if t.kind == "ties"])))
        return causes or [_unknown(e)]
    sizes = failing & {"zero", "small", "large", "spread"}
    if sizes:
        return [
            Cause(
                "not-linear", f"{e.name} is right for ordinary dy and wrong for dy of kind {', '.join(sorted(sizes))}"
            )
        ]
    return [_unknown(e)]


def _unknown(e: Evidence) -> Cause:
    wrong = _wrong_elements(e.hand(), e.right())
    share = f"{int(wrong.sum())} of {wrong.size} elements are wrong"
    return Cause("unknown", f"{e.name} differs from the right gradient, and no known mistake explains how; {share}")


def spatial_axes(ndim: int) -> tuple[int, ...]:
    """Rows and columns of H×W, H×W×C and N×H×W×C; of a filter likewise."""
    return {2: (0, 1), 3: (0, 1), 4: (1, 2)}.get(ndim, ())


def _wrong_elements(hand: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> np.ndarray:
    """A mask of the gradient's shape: wrong for any of the cotangents."""
    scale = max(map(_largest, right))
    wrong = np.stack([~(np.abs(h - r) <= 1e-11 * scale) for h, r in zip(hand, right, strict=True)])
    return np.asarray(wrong.any(axis=0))


def _misfit(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The largest difference over all pairs, relative to the largest element of either."""
    if any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return math.inf
    scale = max(map(_largest, [*a, *b]))
    difference = max(float(np.abs(x - y).max(initial=0.0)) for x, y in zip(a, b, strict=True))
    return (difference / scale if scale else 0.0) if math.isfinite(difference) else math.inf


def _representable(array: np.ndarray, dtype: str) -> bool:
    import ml_dtypes

    with np.errstate(over="ignore"):
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        return bool((array.astype(kind).astype(np.float64) == array).all())


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))


def _count_bad(array: np.ndarray) -> str:
    return f"{int((~np.isfinite(array)).sum())} of {array.size}"


def _listed(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:6])) + (" …" if len(indices) > 6 else "")
    return f"index {shown}" if len(indices) == 1 else f"indices {shown}"
