"""A case: a rule or a layer, and random arrays on which it is verified."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule
from jaxcnn.verification.report import Report
from jaxcnn.verification.verify import Options, verify

Maker = Callable[[np.random.Generator], np.ndarray]


class Case(NamedTuple):
    subject: Rule | Layer
    what: str  # the ranks, or what is special
    arrays: tuple[Maker, ...]
    static: dict[str, Any]
    options: Options | None = None  # None: those of `verify`

    def verify(self, options: Options | None = None) -> Report:
        """By all checks; of a layer that applies one rule, whose own cases make them, by those of values and calls."""
        options = self.options if options is None else options
        if options is None and isinstance(self.subject, Layer) and self.subject.rule is not None:
            options = Options(dtypes=(), second_order=False)
        generator = np.random.default_rng(1)
        return verify(self.subject, *(make(generator) for make in self.arrays), options=options, **self.static)


def normal(*shape: int) -> Maker:
    return lambda generator: generator.standard_normal(shape)


def tied(*shape: int) -> Maker:
    """Whole numbers from -2 to 2: zeros and ties everywhere."""
    return lambda generator: generator.integers(-2, 3, shape).astype(float)


def indices(count: int | tuple, classes: int) -> Maker:
    return lambda generator: generator.integers(0, classes, count)


def soft(*shape: int) -> Maker:
    """Rows of probabilities."""

    def make(generator):
        rows = generator.random(shape)
        return rows / rows.sum(-1, keepdims=True)

    return make


def case(subject: Rule | Layer, what: str, *arrays: Maker, **static: Any) -> Case:
    return Case(subject, what, arrays, static)
