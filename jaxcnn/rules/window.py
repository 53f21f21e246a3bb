"""What convolution and pooling share: windows that slide over the spatial axes of an array.

The arrays are N×W×C, N×H×W×C or N×D×H×W×C; what is said here of H×W holds of one and of three spatial axes. A *tap* is
one place of the window: the array of all values that this place sees, N×Ho×Wo×C, one for each position of the window.
A window of h×w has h·w taps, in row-major order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxcnn.rule import Array


class Words(NamedTuple):
    """How errors speak of arrays with so many spatial axes."""

    array: str
    axes: str
    number: str
    pairs: str
    padding: str


WORDS = {
    1: Words("signal", "W", "a whole number", "one pair", "((left, right),)"),
    2: Words("image", "H×W", "a whole number or a pair of them", "two pairs", "((top, bottom), (left, right))"),
    3: Words(
        array="volume",
        axes="D×H×W",
        number="a whole number or three of them",
        pairs="three pairs",
        padding="((front, back), (top, bottom), (left, right))",
    ),
}


class Geometry(NamedTuple):
    """One entry for each spatial axis: two, for the rows and the columns, of an image."""

    size: tuple[int, ...]  # H, W of the array
    window: tuple[int, ...]  # h, w
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]  # (before, after), >= 0
    output: tuple[int, ...]  # Ho, Wo

    @property
    def reach(self) -> tuple[int, ...]:
        """How many rows and columns one window spans: (h - 1)·dilation + 1."""
        return _reach(self.window, self.dilation)

    @property
    def taps(self) -> list[tuple[int, ...]]:
        """Where each tap first looks in the padded array, row-major."""
        return [tuple(i * d for i, d in zip(at, self.dilation, strict=True)) for at in np.ndindex(*self.window)]


def geometry(function: str, size, window, stride, dilation, padding) -> Geometry:
    """The geometry, checked; `padding` is "SAME", "VALID" or a pair for each spatial axis.

    Raises ValueError or TypeError that name `function`, the argument, what was got and what is required.
    """
    words = WORDS[len(size)]
    stride, dilation = (numbers(function, n, v, len(size)) for n, v in (("stride", stride), ("dilation", dilation)))
    reach = _reach(window, dilation)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f'{function}: padding must be "SAME", "VALID" or {words.pairs}, got {padding!r}')
        pads = lax.padtype_to_pads(size, reach, stride, padding)
    else:
        pads = padding_pairs(function, padding, len(size))
    pads = tuple((int(before), int(after)) for before, after in pads)
    padded = [s + before + after for s, (before, after) in zip(size, pads, strict=True)]
    if any(r > p for r, p in zip(reach, padded, strict=True)):
        raise ValueError(
            f"{function}: the window spans {by(reach)}, the padded {words.array} is {by(padded)}; "
            "the window must fit into it"
        )
    output = tuple((p - r) // s + 1 for p, r, s in zip(padded, reach, stride, strict=True))
    return Geometry(tuple(size), tuple(window), stride, dilation, pads, output)


def with_all_axes(x: Array, axes: int = 2) -> Array:
    """H×W and H×W×C as 1×H×W×1 and 1×H×W×C, where `axes` is 2."""
    x = x.reshape(*x.shape, 1) if x.ndim == axes else x
    return x if x.ndim == axes + 2 else x[None]


def tap(padded: Array, place: tuple[int, ...], g: Geometry) -> Array:
    """What one tap sees: the padded N×H×W×C array from `place` on, every stride-th value, N×Ho×Wo×C."""
    ends = (i + (out - 1) * s + 1 for i, out, s in zip(place, g.output, g.stride, strict=True))
    n, *_, c = padded.shape
    return lax.slice(padded, (0, *place, 0), (n, *ends, c), (1, *g.stride, 1))


def untap(dy: Array, place: tuple[int, ...], g: Geometry) -> Array:
    """The transpose of pad-then-`tap`: N×Ho×Wo×C values put back where the tap saw them, zeros elsewhere, N×H×W×C."""
    # Negative padding crops what lay outside the image.
    return _stretched(dy, [start - before for start, (before, _) in zip(place, g.padding, strict=True)], g.size, g)


def untap_one(place: Array, dy: Array, g: Geometry) -> Array:
    """Each value put back where the tap of this number saw it: N×Ho×Wo×C numbers and values to N×H×W×C."""
    if g.stride != g.window or max(g.dilation) > 1:
        numbers = range(len(g.taps))
        parts = (untap(jnp.where(place == k, dy, 0), p, g) for k, p in zip(numbers, g.taps, strict=True))
        return functools.reduce(jnp.add, parts)
    # The windows lie side by side: each of their places looks up whether it is the one.
    taps = np.arange(len(g.taps)).reshape([size for w in g.window for size in (1, w)] + [1]).astype(place.dtype)
    between = tuple(range(2, 2 + 2 * len(g.window), 2))
    dx = jnp.where(jnp.expand_dims(place, between) == taps, jnp.expand_dims(dy, between), 0)
    filled = [out * w for out, w in zip(g.output, g.window, strict=True)]
    ends = [(-low, size + low - n, 0) for (low, _), size, n in zip(g.padding, g.size, filled, strict=True)]
    dx = dx.reshape(dy.shape[0], *filled, dy.shape[-1])
    return lax.pad(dx, np.zeros((), dy.dtype), [(0, 0, 0), *ends, (0, 0, 0)])


def stretched(dy: Array, g: Geometry) -> Array:
    """N×Ho×Wo×C stretched by the stride with zeros, and padded: windows in steps of 1 have H×W places in it.

    The window at a place, turned by 180 degrees, sees there the dy of every window that saw this place of the array.
    """
    size = [n + reach - 1 for n, reach in zip(g.size, g.reach, strict=True)]
    return _stretched(dy, [before for before, _ in turned_around(g).padding], size, g)


def turned_around(g: Geometry) -> Geometry:
    """The geometry of the convolution, in steps of 1, of a dy stretched by the stride that gives H×W places."""
    ones = (1,) * len(g.size)
    lengths = [(out - 1) * s + 1 for out, s in zip(g.output, g.stride, strict=True)]
    low = [reach - 1 - before for reach, (before, _) in zip(g.reach, g.padding, strict=True)]
    ends = zip(low, g.size, g.reach, lengths, strict=True)
    pads = tuple((before, size + reach - 1 - before - length) for before, size, reach, length in ends)
    return Geometry(tuple(lengths), g.window, ones, g.dilation, pads, g.size)


def _stretched(dy: Array, low, size, g: Geometry) -> Array:
    """To a size, with so many zeros before."""
    stretch = zip(low, size, g.output, g.stride, strict=True)
    config = [(before, n - before - ((out - 1) * s + 1), s - 1) for before, n, out, s in stretch]
    return lax.pad(dy, np.zeros((), dy.dtype), [(0, 0, 0), *config, (0, 0, 0)])


def numbers(function: str, argument: str, value: Any, axes: int) -> tuple[int, ...]:
    """A positive number, or one for each spatial axis, as one for each."""
    values = (value,) * axes if is_whole(value) else value
    if not _are_whole(values, axes):
        raise TypeError(f"{function}: {argument} must be {WORDS[axes].number}, got {value!r}")
    if min(values) < 1:
        raise ValueError(f"{function}: {argument} must be at least 1, got {value!r}")
    return tuple(map(int, values))


def pair(function: str, argument: str, value: Any) -> tuple[int, int]:
    """A positive number, or a pair of them, as a pair."""
    rows, columns = numbers(function, argument, value, 2)
    return rows, columns


def padding_pairs(function: str, padding: Any, axes: int) -> Any:
    """The padding, checked to be a pair of whole numbers, not negative, for each spatial axis."""
    if not isinstance(padding, Sequence) or len(padding) != axes or not all(_are_whole(p, 2) for p in padding):
        raise TypeError(
            f'{function}: padding must be "SAME", "VALID" or {WORDS[axes].padding} in whole numbers, got {padding!r}'
        )
    if min(map(min, padding)) < 0:
        raise ValueError(f"{function}: padding must not be negative, got {padding!r}")
    return padding


def by(sizes) -> str:
    """The sizes as errors write them, 3×4."""
    return "×".join(map(str, sizes))


def is_whole(value: Any) -> bool:
    """An integer of Python or NumPy; a truth value is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _are_whole(values: Any, count: int) -> bool:
    ok = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    return ok and all(map(is_whole, values))


def _reach(window, dilation) -> tuple[int, ...]:
    return tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
