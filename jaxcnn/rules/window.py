"""What convolution and pooling share: windows that slide over the two spatial axes of an N×H×W×C array.

A *tap* is one place of the window: the array of all values that this place sees, N×Ho×Wo×C, one for each position of
the window. A window of h×w has h·w taps, in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax

from jaxcnn.rule import Array


class Geometry(NamedTuple):
    """Two numbers each, for the rows and the columns."""

    size: tuple[int, int]  # H, W of the array
    window: tuple[int, int]  # h, w
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]  # (before, after), >= 0
    output: tuple[int, int]  # Ho, Wo

    @property
    def reach(self) -> tuple[int, int]:
        """How many rows and columns one window spans: (h - 1)·dilation + 1."""
        return _reach(self.window, self.dilation)

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Where each tap first looks in the padded array, row-major."""
        return [(i * self.dilation[0], j * self.dilation[1]) for i, j in np.ndindex(*self.window)]


def geometry(function: str, size, window, stride, dilation, padding) -> Geometry:
    """The geometry, checked; `padding` is "SAME", "VALID" or two pairs.

    Raises ValueError or TypeError that name `function`, the argument, what was got and what is required.
    """
    stride, dilation = pair(function, "stride", stride), pair(function, "dilation", dilation)
    reach = _reach(window, dilation)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f'{function}: padding must be "SAME", "VALID" or two pairs, got {padding!r}')
        pads = lax.padtype_to_pads(size, reach, stride, padding)
    else:
        pads = _pairs(function, padding)
    (top, bottom), (left, right) = pads
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    padded = [s + before + after for s, (before, after) in zip(size, pads, strict=True)]
    if any(r > p for r, p in zip(reach, padded, strict=True)):
        raise ValueError(
            f"{function}: the window spans {reach[0]}×{reach[1]}, the padded image is {padded[0]}×{padded[1]}; "
            "the window must fit into it"
        )
    output = ((padded[0] - reach[0]) // stride[0] + 1, (padded[1] - reach[1]) // stride[1] + 1)
    return Geometry(tuple(size), tuple(window), stride, dilation, pads, output)


def tap(padded: Array, place: tuple[int, int], g: Geometry) -> Array:
    """What one tap sees: the padded N×H×W×C array from `place` on, every stride-th value, N×Ho×Wo×C."""
    (i, j), (ho, wo), (si, sj) = place, g.output, g.stride
    n, _, _, c = padded.shape
    return lax.slice(padded, (0, i, j, 0), (n, i + (ho - 1) * si + 1, j + (wo - 1) * sj + 1, c), (1, si, sj, 1))


def untap(dy: Array, place: tuple[int, int], g: Geometry) -> Array:
    """The transpose of pad-then-`tap`: N×Ho×Wo×C values put back where the tap saw them, zeros elsewhere, N×H×W×C."""
    config = [(0, 0, 0)]
    for start, s, size, out, (before, _) in zip(place, g.stride, g.size, g.output, g.padding, strict=True):
        low = start - before  # negative padding crops what lay outside the image
        config.append((low, size - low - ((out - 1) * s + 1), s - 1))
    return lax.pad(dy, np.zeros((), dy.dtype), [*config, (0, 0, 0)])


def pair(function: str, argument: str, value: Any) -> tuple[int, int]:
    """A positive number, or a pair of them, as a pair."""
    values = (value, value) if is_whole(value) else value
    if (
        not isinstance(values, Sequence)
        or isinstance(values, str)
        or len(values) != 2
        or not all(map(is_whole, values))
    ):
        raise TypeError(f"{function}: {argument} must be a whole number or a pair of them, got {value!r}")
    if min(values) < 1:
        raise ValueError(f"{function}: {argument} must be at least 1, got {value!r}")
    return int(values[0]), int(values[1])


def _pairs(function: str, padding: Any) -> Any:
    ok = isinstance(padding, Sequence) and len(padding) == 2
    ok = ok and all(isinstance(p, Sequence) and len(p) == 2 and all(map(is_whole, p)) for p in padding)
    if not ok:
        raise TypeError(
            f'{function}: padding must be "SAME", "VALID" or ((top, bottom), (left, right)) in whole numbers, '
            f"got {padding!r}"
        )
    if min(map(min, padding)) < 0:
        raise ValueError(f"{function}: padding must not be negative, got {padding!r}")
    return padding


def _reach(window, dilation) -> tuple[int, int]:
    return (window[0] - 1) * dilation[0] + 1, (window[1] - 1) * dilation[1] + 1


def is_whole(value: Any) -> bool:
    """An integer of Python or NumPy; a truth value is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
