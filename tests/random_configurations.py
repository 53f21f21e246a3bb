"""Random configurations of the rules, and random values of the kinds on which backward passes go wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import random_modern
from planted_small import average_pool, centre, join, leaky_relu, magnitude, product, softmax, standardise, swish

import jaxcnn

VALUES = {
    "distinct": lambda rng, shape: rng.normal(size=shape),
    "ties and zeros": lambda rng, shape: rng.integers(-1, 2, shape).astype(float),
    "mostly zeros": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.2),
    "large and small": lambda rng, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-6, 7, shape),
    "one value": lambda rng, shape: np.full(shape, rng.normal()),
}


def random_window(rng, widest, padding):
    """Height, width, window, stride, dilation and padding that fit together."""
    while True:
        size, window, stride = (tuple(rng.integers(1, most + 1, 2).tolist()) for most in (8, widest, 3))
        dilation = (1, 1) if padding == "pool" else tuple(rng.integers(1, 3, 2).tolist())
        most = [w - 1 if padding == "pool" else 5 for w in window]
        pads = tuple(tuple(rng.integers(0, m + 1, 2).tolist()) for m in most)
        kind = ("SAME", "VALID", pads)[rng.integers(3)]
        pads = ((0, 0), (0, 0)) if kind == "VALID" else pads
        reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        if kind == "SAME" or all(r <= s + sum(p) for r, s, p in zip(reach, size, pads, strict=True)):
            return size, window, {"stride": stride, "dilation": dilation, "padding": kind}


def random_convolution(rng):
    size, window, static = random_window(rng, 4, "convolution")
    groups, per_group, filters = rng.integers(1, 4, 3).tolist()
    rank = rng.integers(6)
    if rank == 0:
        shapes = size, window, ()
    elif rank == 1:
        shapes = (*size, per_group), (*window, per_group), ()
    else:
        N = () if rank == 2 else (2,)
        shapes = (*N, *size, groups * per_group), (groups * filters, *window, per_group), (groups * filters,)
        static |= {"groups": groups}
    return shapes if rng.integers(2) else shapes[:2], tuple(static.items())


def random_pooling(rng):
    size, window, static = random_window(rng, 4, "pool")
    del static["dilation"]
    static |= {"window": window, "ties": ("first", "split", "all")[rng.integers(3)]}
    return ((size, (*size, 2), (2, *size, 2))[rng.integers(3)],), tuple(static.items())


class Drawn(NamedTuple):
    """A right rule or layer with arrays for it."""

    subject: Any
    arrays: tuple[np.ndarray, ...]
    static: dict[str, Any]
    family: str
    said: str


# Where a right gradient is not one number to 1e-12: of these values no other gradient than autodiff's own would do.
EVERYWHERE = {
    **VALUES,
    "1e15": lambda rng, shape: rng.normal(size=shape) * 1e15,
    "1e-15": lambda rng, shape: rng.normal(size=shape) * 1e-15,
}


def draw(number: int) -> Drawn:
    """The configuration of this number: any subject, shape, static arguments, kind of values and dtype."""
    rng = np.random.default_rng((3, number))
    static: dict[str, Any] = {}
    kind, dtype = rng.choice(list(EVERYWHERE)), rng.choice(["float64", "float32", "bfloat16", "float16"])
    family = rng.choice(list(FAMILIES))
    subject, shapes, static = FAMILIES[family](rng)
    arrays = tuple(_rounded(EVERYWHERE[kind](rng, s) if isinstance(s, tuple) else s, dtype) for s in shapes)
    name = getattr(subject, "name", family)
    return Drawn(
        subject, arrays, static, family, f"{number}: {name} {[a.shape for a in arrays]} {static}, {kind}, {dtype}"
    )


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in the dtype, where it holds the values."""
    import ml_dtypes

    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):
        low = array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return low if np.isfinite(low.astype(float)).all() else array


def _sizes(rng, least: int, most: int, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(least, most + 1, count).tolist())


def _convolution(rng):
    shapes, static = random_convolution(rng)
    return jaxcnn.conv2d, shapes, dict(static)


def _pooling(rng):
    shapes, static = random_pooling(rng)
    return jaxcnn.max_pool, shapes, dict(static)


def _elementwise(rng):
    rule = (jaxcnn.relu, jaxcnn.sigmoid, leaky_relu, magnitude, swish)[rng.integers(5)]
    return rule, (_sizes(rng, 1, 6, int(rng.integers(1, 5))),), {}


def _flatten(rng):
    return jaxcnn.flatten, (_sizes(rng, 1, 5, int(rng.integers(2, 5))),), {}


def _dense(rng):
    inputs, outputs = _sizes(rng, 1, 6, 2)
    leading = _sizes(rng, 1, 5, int(rng.integers(0, 3)))
    shapes = ((*leading, inputs), (inputs, outputs), (outputs,))
    return jaxcnn.dense, shapes[: int(rng.integers(2, 4))], {}


def _loss(rng):
    samples, classes = _sizes(rng, 1, 6, 2)
    rows = rng.random((samples, classes)) + 0.01
    labels = (
        rng.integers(0, classes, samples).astype(np.int32),
        rows / rows.sum(-1, keepdims=True),
        rng.normal(size=(samples, classes)),
    )[rng.integers(3)]
    return jaxcnn.softmax_cross_entropy, ((samples, classes), labels), {}


def _own(rng):
    """Small right rules such as users write."""
    rule = (product, join, centre, standardise, softmax, average_pool)[rng.integers(6)]
    if rule is average_pool:
        n, h, w, c = _sizes(rng, 1, 3, 4)
        return rule, ((n, 2 * h, 2 * w, c),), {}
    shape = _sizes(rng, 1, 6, 2)
    return rule, (shape,) * (2 if rule in (product, join) else 1), {}


def _layer(rng):
    n, h, w, c = (*_sizes(rng, 1, 3, 1), *_sizes(rng, 2, 6, 2), *_sizes(rng, 1, 3, 1))
    filters, stride = _sizes(rng, 1, 3, 2)
    layers = (
        jaxcnn.Conv2D(filters, 3, stride=stride),
        jaxcnn.MaxPool(2, ties=("first", "split", "all")[rng.integers(3)]),
        jaxcnn.residual(jaxcnn.Conv2D(c, 3)),
        jaxcnn.sequential(jaxcnn.Conv2D(filters, 3), jaxcnn.ReLU(), jaxcnn.Flatten(), jaxcnn.Dense(3)),
        jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(4), jaxcnn.Sigmoid(), jaxcnn.Dense(2)),
    )
    return layers[rng.integers(len(layers))], ((n, h, w, c),), {}


FAMILIES = {
    "convolution": _convolution,
    "pooling": _pooling,
    "element by element": _elementwise,
    "flatten": _flatten,
    "dense": _dense,
    "loss": _loss,
    "own": _own,
    "layer": _layer,
    **random_modern.FAMILIES,
}
