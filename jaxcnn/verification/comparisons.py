"""What is wrong with a gradient, as the wrong arrays beside the right ones show it.

Each comparison is a way in which gradients go wrong: turned, scaled, of another argument. It is supported if it holds
for every pair of a wrong and a right array.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

DTYPES = ("float16", "bfloat16", "float32")


class Cause(NamedTuple):
    word: str
    message: str


class Pairs(NamedTuple):
    """Wrong gradients of one array, and the right ones, for several cotangents."""

    name: str  # "dw"
    hand: Sequence[np.ndarray]
    right: Sequence[np.ndarray]
    others: Mapping[str, Sequence[np.ndarray]]  # the right gradients of the other arguments
    sizes: Mapping[int, str]  # what a number in the arrays' shapes is the size of
    exact: float = 1e-11  # how well two equal gradients agree, relative to their largest element

    @property
    def match(self) -> float:
        """A comparison that is right fits far better than this, a wrong one far worse."""
        return max(1e-7, 10 * self.exact)

    def fit(self, gradients: Sequence[np.ndarray]) -> float | None:
        """How well these equal the wrong gradients; None if they do not, or equal the right ones just as well."""
        error = misfit(self.hand, gradients)
        return error if error < self.match and misfit(self.right, gradients) > self.match else None


def compare(pairs: Pairs) -> list[Cause]:
    """The causes that the arrays alone support: those of the first comparison that holds; [] where none does."""
    for causes in (
        zero(pairs), scaled(pairs), swapped(pairs), transposed(pairs), flipped(pairs), shifted(pairs), reordered(pairs),
        where(pairs), nearly(pairs),
    ):  # fmt: skip
        if found := list(causes):
            return found
    return []


def zero(p: Pairs) -> Iterator[Cause]:
    if all(not h.any() for h in p.hand):
        yield Cause("zero", f"{p.name} is zero everywhere, the right gradient is not")


def scaled(p: Pairs) -> Iterator[Cause]:
    hand, right = (np.concatenate([g.ravel() for g in gradients]) for gradients in (p.hand, p.right))
    factor = float(hand @ right / (right @ right)) if right.any() else 0.0
    rest = float(np.abs(hand - factor * right).max()) / (largest(hand) or 1.0)
    # What a factor leaves over is small, also beside what it explains: an error of formula is no factor of 1 + 1e-9.
    if factor == 0 or rest > max(1e-9, 10 * p.exact) or rest > 1e-2 * abs(factor - 1):
        return
    if abs(factor + 1) < max(1e-9, p.exact):
        yield Cause("negated", f"{p.name} equals the right gradient with its sign changed")
    else:
        shown = f"{factor:.6g}"
        if shown == "1":
            shown = f"1 {'-' if factor < 1 else '+'} {abs(factor - 1):.1e}"
        yield Cause("scaled", f"{p.name} equals the right gradient times {shown}{_origin(p, factor)}")


def _origin(p: Pairs, factor: float) -> str:
    """A guess at where a factor comes from: a size, or a product of several, of the arrays or of dy."""
    for n, what in p.sizes.items():
        for candidate, said in ((n, ""), (1 / n if n else 0, f", that is 1/{n}")):
            if n > 1 and abs(abs(factor) - candidate) < max(1e-9, p.exact) * abs(factor):
                return f"{said}, and {n} is {what}: a mean where a sum belongs, or the reverse"
    return ""


def swapped(p: Pairs) -> Iterator[Cause]:
    for other, gradients in p.others.items():
        if gradients[0].shape == p.right[0].shape and p.fit(gradients) is not None:
            yield Cause("swapped", f"{p.name} equals the right gradient of {other}")


def transposed(p: Pairs) -> Iterator[Cause]:
    """The axes exchanged, or laid out in another order in memory; the shapes may differ."""
    shape = p.right[0].shape
    orders = [o for o in itertools.permutations(range(len(shape))) if o != tuple(range(len(shape)))]
    if len(shape) > 5:
        return
    for axes in orders:
        turned = [r.transpose(axes) for r in p.right]
        if turned[0].shape == p.hand[0].shape and (error := p.fit(turned)) is not None:
            moved = ", ".join(str(i) for i, axis in enumerate(axes) if i != axis)
            yield Cause(
                "transposed", f"{p.name} equals the right gradient with its axes {moved} exchanged, to {error:.0e}"
            )
            return
    for axes in orders if p.hand[0].shape == shape else []:
        back = np.argsort(axes)
        layouts = (
            [r.transpose(axes).reshape(shape) for r in p.right],
            [r.reshape([shape[a] for a in axes]).transpose(back) for r in p.right],
        )
        if any(p.fit(layout) is not None for layout in layouts):
            yield Cause("transposed", f"{p.name} has the right values, its axes laid out in the order {axes} in memory")
            return


def flipped(p: Pairs) -> Iterator[Cause]:
    ndim = p.right[0].ndim
    spatial = spatial_axes(ndim)
    for axes in [*turned_axes(ndim), *((axis,) for axis in range(ndim))]:
        if (error := p.fit([np.flip(r, axes) for r in p.right])) is None:
            continue
        if len(axes) > 1:
            yield Cause("rotated", f"{p.name} equals the right gradient rotated by 180 degrees, to {error:.0e}")
        elif ndim > 2 and axes[0] not in spatial:
            yield Cause("partial", f"{p.name} has the slices of its axis {axes[0]} in reverse order")
        else:
            yield Cause(
                "flipped", f"{p.name} equals the right gradient flipped along its axis {axes[0]}, to {error:.0e}"
            )
        return


def shifted(p: Pairs) -> Iterator[Cause]:
    """Where both overlap, the one is the other of up to three places further; the rest may be anything."""
    shape = p.right[0].shape
    axes = spatial_axes(len(shape)) or tuple(range(len(shape)))
    reach = [min(3, (shape[axis] - 1) // 2 or shape[axis] - 1) for axis in axes]
    shifts = [by for by in itertools.product(*(range(-r, r + 1) for r in reach)) if any(by)]
    for by in sorted(shifts, key=lambda by: sum(map(abs, by))):
        there, here = [slice(None)] * len(shape), [slice(None)] * len(shape)
        for axis, b in zip(axes, by, strict=True):
            n = shape[axis]
            there[axis], here[axis] = slice(max(b, 0), n + min(b, 0)), slice(max(-b, 0), n - max(b, 0))
        hand, right = [h[tuple(there)] for h in p.hand], [r[tuple(here)] for r in p.right]
        if hand[0].size >= 2 and any(map(_varies, right)) and misfit(hand, right) <= p.match:
            said = " and ".join(f"{b:+d} along axis {axis}" for axis, b in zip(axes, by, strict=True) if b)
            yield Cause("shifted", f"{p.name} is the right gradient shifted by {said}: an offset or a padding is off")
            return


def _varies(array: np.ndarray) -> bool:
    return bool(np.ptp(array) > 1e-3 * largest(array))


def reordered(p: Pairs) -> Iterator[Cause]:
    """Each slice along an axis is the right one of another place."""
    hand, right = np.stack(p.hand), np.stack(p.right)
    for axis, n in enumerate(p.right[0].shape):
        if n < 2 or n > 64:
            continue
        rows, wanted = (np.moveaxis(a, axis + 1, 0).reshape(n, -1) for a in (hand, right))
        order = [int(np.abs(wanted - row).max(1).argmin()) for row in rows]
        if order != list(range(n)) and np.abs(wanted[order] - rows).max() < p.match * largest(right):
            yield Cause("partial", f"{p.name} has along its axis {axis} the right slices {order}, in that order")
            return


def where(p: Pairs) -> Iterator[Cause]:
    """Only some of the elements are wrong: whole slices of an axis, or the edge."""
    wrong = wrong_elements(p)
    if wrong.all() or wrong.ndim == 0:
        return
    spatial = spatial_axes(wrong.ndim) if wrong.ndim > 2 else ()
    for margin in range(1, min(wrong.shape) // 4 + 1) if not spatial else ():  # any axis may be one of places
        if np.array_equal(wrong, _edge(wrong.shape, range(wrong.ndim), margin)):
            yield Cause("border", f"{p.name} is wrong everywhere within {margin} of its edge and right elsewhere")
            return
    for axis in (a for a in range(wrong.ndim) if a not in spatial):
        slices = np.asarray(wrong.any(tuple(a for a in range(wrong.ndim) if a != axis)))
        if 0 < slices.sum() < slices.size and wrong.sum() > 1:
            indices = np.flatnonzero(slices)
            yield Cause("partial", f"{p.name} is wrong at {_listed(indices)} of its axis {axis} and right elsewhere")
            return
    for margin in range(1, (min((wrong.shape[a] for a in spatial), default=0) + 1) // 2):
        inside = ~_edge(wrong.shape, spatial, margin)
        if inside.any() and not wrong[inside].any():
            yield Cause("border", f"{p.name} is wrong only within {margin} of the edge of axes {spatial}")
            return
    for axis in spatial:
        slices = np.asarray(wrong.any(tuple(a for a in range(wrong.ndim) if a != axis)))
        n, k = slices.size, int(slices.sum())
        if k <= n // 2 and (slices[:k].all() or slices[n - k :].all()):
            yield Cause(
                "border", f"{p.name} is wrong only at {_listed(np.flatnonzero(slices))} of axis {axis}, its edge"
            )
            return


def _edge(shape: Sequence[int], axes: Collection[int], margin: int) -> np.ndarray:
    """A mask of what is that close to an end of one of the axes."""
    edge = np.ones(shape, bool)
    edge[tuple(slice(margin, n - margin) if a in axes else slice(None) for a, n in enumerate(shape))] = False
    return edge


def rounded(p: Pairs) -> Iterator[Cause]:
    """Every element is a number of a lower precision, and about right."""
    if misfit(p.hand, p.right) > 0.02:
        return
    for dtype in DTYPES:
        if all(_representable(h, dtype) for h in p.hand) and not all(_representable(r, dtype) for r in p.right):
            yield Cause("precision", f"all elements of {p.name} are {dtype} numbers: it was computed in that precision")
            return


def nearly(p: Pairs) -> Iterator[Cause]:
    error = misfit(p.hand, p.right)
    if error < 1e-10 or (error < 1e-2 and wrong_elements(p).mean() > 0.5):
        yield Cause("precision", f"{p.name} is right to {error:.0e} of its largest element, as after rounding")


def unknown(p: Pairs) -> Cause:
    wrong = wrong_elements(p)
    share = f"{int(wrong.sum())} of {wrong.size} elements are wrong"
    return Cause("unknown", f"{p.name} differs from the right gradient, and no known mistake explains how; {share}")


def spatial_axes(ndim: int) -> tuple[int, ...]:
    """Rows and columns of H×W, H×W×C and N×H×W×C, and the depth before them of N×D×H×W×C; of a filter likewise."""
    return {2: (0, 1), 3: (0, 1), 4: (1, 2), 5: (1, 2, 3)}.get(ndim, ())


def turned_axes(ndim: int) -> list[tuple[int, ...]]:
    """Axes in which an image or a filter may be turned by 180 degrees: in our layout, then in any other."""
    neighbours = [tuple(range(i, i + n)) for n in (2, 3) for i in range(ndim - n + 1)]
    return list(dict.fromkeys([*([spatial_axes(ndim)] if ndim > 1 else []), *neighbours]))


def wrong_elements(p: Pairs) -> np.ndarray:
    """A mask of the gradient's shape: wrong for any of the cotangents."""
    scale = max(map(largest, p.right))
    wrong = np.stack([~(np.abs(h - r) <= p.exact * scale) for h, r in zip(p.hand, p.right, strict=True)])
    return np.asarray(wrong.any(axis=0))


def misfit(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The largest difference over all pairs, relative to the largest element of either."""
    if any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return math.inf
    scale = max(map(largest, [*a, *b]))
    difference = max(float(np.abs(x - y).max(initial=0.0)) for x, y in zip(a, b, strict=True))
    return (difference / scale if scale else 0.0) if math.isfinite(difference) else math.inf


def _representable(array: np.ndarray, dtype: str) -> bool:
    import ml_dtypes

    with np.errstate(over="ignore"):
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        return bool((array.astype(kind).astype(np.float64) == array).all())


def largest(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))


def _listed(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:6])) + (" …" if len(indices) > 6 else "")
    return f"index {shown}" if len(indices) == 1 else f"indices {shown}"
