"""Planted faults of the smooth activations and of softmax."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import broken, draws
from planted_piecewise_activation import SIGN, of, of_x, planted

from jaxcnn import gelu, hard_swish, log_softmax, silu, softmax, softplus, tanh
from jaxcnn.rules.piecewise_activation import HardSwishResiduals

normal, _ = draws(1)

NEAR = (normal(2, 5, 4, 3),)
LARGE = (np.array([[-1000.0, -30.0, -2.0, 0.5], [1000.0, 30.0, 1.0, -0.25]]),)
sigmoid = jax.nn.sigmoid

_tanh = functools.partial(planted, tanh)
TANH = [
    _tanh("the sigmoid's y (1 - y)", of(tanh, lambda y, dy: dy * y * (1 - y)), NEAR, "unknown"),
    _tanh("1 - x²", of_x(tanh, lambda x, dy: dy * (1 - x * x)), NEAR, "unknown", note="input saved for output"),
    _tanh("1 + y²", of(tanh, lambda y, dy: dy * (1 + y * y)), NEAR, "unknown"),
    _tanh("1 - y² of tanh y", of(tanh, lambda y, dy: dy * (1 - jnp.tanh(y) ** 2)), NEAR, "unknown"),
    _tanh("y² - 1", of(tanh, lambda y, dy: dy * (y * y - 1)), NEAR, "negated"),
    _tanh("1 - sinh² / cosh²", of_x(tanh, lambda x, dy: dy * (1 - (jnp.sinh(x) / jnp.cosh(x)) ** 2)), LARGE, "nan"),
    _tanh(
        "y saved in float16",
        broken(tanh, residuals=lambda r: r._replace(y=r.y.astype(jnp.float16).astype(r.y.dtype))),
        NEAR,
        "precision",
    ),
    _tanh("y held constant", broken(tanh, residuals=lax.stop_gradient), NEAR, "second-order", why="second order"),
]

_softplus = functools.partial(planted, softplus)
SOFTPLUS = [
    _softplus("exp(x) / (1 + exp(x))", of(softplus, lambda x, dy: dy * jnp.exp(x) / (1 + jnp.exp(x))), LARGE, "nan"),
    _softplus("σ(y)", of_x(softplus, lambda x, dy: dy * jax.nn.sigmoid(jax.nn.softplus(x))), NEAR, "unknown"),
    _softplus("σ(-x)", of(softplus, lambda x, dy: dy * jax.nn.sigmoid(-x)), NEAR, "unknown negated", note=SIGN),
    _softplus(
        "the sigmoid's", of(softplus, lambda x, dy: dy * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)), NEAR, "unknown"
    ),
    _softplus("the rectifier's", of(softplus, lambda x, dy: jnp.where(x > 0, dy, 0)), NEAR, "unknown"),
]

_silu = functools.partial(planted, silu)
SILU = [
    _silu("x σ' left out", of(silu, lambda x, dy: dy * sigmoid(x)), NEAR, "unknown"),
    _silu("σ left out", of(silu, lambda x, dy: dy * x * sigmoid(x) * sigmoid(-x)), NEAR, "unknown"),
    _silu("x left out of x σ'", of(silu, lambda x, dy: dy * sigmoid(x) * (1 + sigmoid(-x))), NEAR, "unknown"),
    _silu("1 - σ left out of σ'", of(silu, lambda x, dy: dy * sigmoid(x) * (1 + x)), NEAR, "unknown"),
    _silu("σ for 1 - σ", of(silu, lambda x, dy: dy * sigmoid(x) * (1 + x * sigmoid(x))), NEAR, "unknown"),
    _silu(
        "σ - x σ'", of(silu, lambda x, dy: dy * sigmoid(x) * (1 - x * sigmoid(-x))), NEAR, "unknown negated", note=SIGN
    ),
    _silu(
        "output saved for input",
        broken(silu, residuals=lambda r: r._replace(x=r.x * sigmoid(r.x))),
        NEAR,
        "unknown",
    ),
    _silu("hard swish's", of(silu, lambda x, dy: hard_swish.backward(HardSwishResiduals(x), dy)[0]), NEAR, "unknown"),
    _silu(
        "σ held constant",
        of(silu, lambda x, dy: dy * lax.stop_gradient(sigmoid(x)) * (1 + x * sigmoid(-x))),
        NEAR,
        "second-order",
        why="second order",
    ),
]


def density(x):
    return jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def distribution(x):
    return lax.erfc(-x * math.sqrt(0.5)) / 2


def by_tanh(inner, factor=1.0):
    """dx = Φ + x · factor · (1 - tanh² u) / 2 · inner(x)."""

    def gradient(x, dy, approximate):
        t = jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        return dy * (0.5 * (1 + t) + factor * 0.5 * x * (1 - t * t) * inner(x))

    return of(gelu, gradient)


APPROXIMATION = "right to 1e-3 or 1e-2, as an approximation is"
_gelu, _exact = functools.partial(planted, gelu), functools.partial(planted, gelu, approximate=False)
ROOT = math.sqrt(2 / math.pi)
GELU = [
    _exact(
        "the approximation's for the exact one",
        broken(gelu, static={"approximate": True}),
        NEAR,
        "unknown precision",
        note=APPROXIMATION,
    ),
    _gelu(
        "the exact one's for the approximation",
        broken(gelu, static={"approximate": False}),
        NEAR,
        "unknown precision",
        note=APPROXIMATION,
    ),
    _exact(
        "of x σ(1.702 x)",
        of(gelu, lambda x, dy, approximate: dy * sigmoid(1.702 * x) * (1 + 1.702 * x * sigmoid(-1.702 * x))),
        NEAR,
        "unknown precision",
        note=APPROXIMATION,
    ),
    _exact("x φ left out", of(gelu, lambda x, dy, approximate: dy * distribution(x)), NEAR, "unknown"),
    _exact(
        "x left out of x φ", of(gelu, lambda x, dy, approximate: dy * (distribution(x) + density(x))), NEAR, "unknown"
    ),
    _exact(
        "1/√(2π) left out",
        of(gelu, lambda x, dy, approximate: dy * (distribution(x) + x * jnp.exp(-(x**2) / 2))),
        NEAR,
        "unknown",
    ),
    _exact(
        "exp(-x²) for exp(-x²/2)",
        of(gelu, lambda x, dy, approximate: dy * (distribution(x) + x * jnp.exp(-(x**2)) / math.sqrt(2 * math.pi))),
        NEAR,
        "unknown",
    ),
    _exact(
        "erf for Φ",
        of(gelu, lambda x, dy, approximate: dy * (lax.erf(x * math.sqrt(0.5)) + x * density(x))),
        NEAR,
        "unknown",
    ),
    _gelu("du/dx left out", by_tanh(lambda x: 1.0), NEAR, "unknown"),
    _gelu("the 3 of 3 c x² left out", by_tanh(lambda x: ROOT * (1 + 0.044715 * x**2)), NEAR, "unknown"),
    _gelu("√(2/π) left out of du/dx", by_tanh(lambda x: 1 + 0.134145 * x**2), NEAR, "unknown"),
    _gelu("1/2 left out of dΦ/du", by_tanh(lambda x: ROOT * (1 + 0.134145 * x**2), factor=2.0), NEAR, "unknown"),
    _exact("in float16", broken(gelu, x=lambda d: d.astype(jnp.float16).astype(d.dtype)), NEAR, "precision"),
]

# --- along an axis --------------------------------------------------------------------------------------------------

ROWS, WIDE_ROWS = (normal(4, 5),), (np.array([[1000.0, 0.0, -2.0], [3.0, 1.0, 2.0]]),)


def total(a, axis=-1):
    return a.sum(axis, keepdims=True)


_softmax = functools.partial(planted, softmax)
SOFTMAX = [
    _softmax("mean left out", of(softmax, lambda y, dy, axis: y * dy), ROWS, "unknown"),
    _softmax("the diagonal alone", of(softmax, lambda y, dy, axis: y * (1 - y) * dy), ROWS, "unknown"),
    _softmax("y left out", of(softmax, lambda y, dy, axis: dy - total(y * dy)), ROWS, "unknown"),
    _softmax(
        "mean not weighted", of(softmax, lambda y, dy, axis: y * (dy - dy.mean(axis, keepdims=True))), ROWS, "unknown"
    ),
    _softmax("sum for mean", of(softmax, lambda y, dy, axis: y * (dy - total(dy))), ROWS, "unknown"),
    _softmax("mean over the samples", of(softmax, lambda y, dy, axis: y * (dy - total(y * dy, 0))), ROWS, "unknown"),
    _softmax("mean over everything", of(softmax, lambda y, dy, axis: y * (dy - (y * dy).sum())), ROWS, "unknown"),
    _softmax("the last axis for axis 0", broken(softmax, static={"axis": -1}), ROWS, "unknown", axis=0),
    _softmax("mean - dy", of(softmax, lambda y, dy, axis: y * (total(y * dy) - dy)), ROWS, "negated"),
    _softmax("log-softmax's", of(softmax, lambda y, dy, axis: dy - y * total(dy)), ROWS, "unknown"),
    _softmax(
        "delta of the loss", of(softmax, lambda y, dy, axis: y - dy), ROWS, "not-linear", note="dy taken for labels"
    ),
    _softmax(
        "1/y of -y/a, and back",
        of(softmax, lambda y, dy, axis: y * y * (dy / y - total(dy * y) / y)),
        WIDE_ROWS,
        "nan",
        note="0/0 where y is 0",
    ),
    _softmax(
        "mean held constant",
        of(softmax, lambda y, dy, axis: y * (dy - total(lax.stop_gradient(y) * dy))),
        ROWS,
        "second-order",
        why="second order",
    ),
]

_log_softmax = functools.partial(planted, log_softmax)
LOG_SOFTMAX = [
    _log_softmax("y for exp(y)", of(log_softmax, lambda y, dy, axis: dy - y * total(dy)), ROWS, "unknown"),
    _log_softmax("dy for Σ dy", of(log_softmax, lambda y, dy, axis: dy - jnp.exp(y) * dy), ROWS, "unknown"),
    _log_softmax(
        "Σ y dy for Σ dy", of(log_softmax, lambda y, dy, axis: dy - jnp.exp(y) * total(y * dy)), ROWS, "unknown"
    ),
    _log_softmax("normalisation held constant", of(log_softmax, lambda y, dy, axis: dy), ROWS, "unknown"),
    _log_softmax(
        "mean of dy taken off", of(log_softmax, lambda y, dy, axis: dy - dy.mean(axis, keepdims=True)), ROWS, "unknown"
    ),
    _log_softmax(
        "Σ over the samples", of(log_softmax, lambda y, dy, axis: dy - jnp.exp(y) * total(dy, 0)), ROWS, "unknown"
    ),
    _log_softmax("the last axis for axis 0", broken(log_softmax, static={"axis": -1}), ROWS, "unknown", axis=0),
    _log_softmax(
        "softmax's", of(log_softmax, lambda y, dy, axis: jnp.exp(y) * (dy - total(jnp.exp(y) * dy))), ROWS, "unknown"
    ),
    _log_softmax("exp(y) Σ dy - dy", of(log_softmax, lambda y, dy, axis: jnp.exp(y) * total(dy) - dy), ROWS, "negated"),
    _log_softmax(
        "softmax overflows",
        of_x(log_softmax, lambda x, dy, axis: dy - jnp.exp(x) / total(jnp.exp(x)) * total(dy)),
        WIDE_ROWS,
        "nan",
    ),
    _log_softmax(
        "softmax in float16",
        of(log_softmax, lambda y, dy, axis: dy - jnp.exp(y.astype(jnp.float16)).astype(y.dtype) * total(dy)),
        ROWS,
        "precision",
    ),
    _log_softmax(
        "softmax held constant",
        broken(log_softmax, residuals=lax.stop_gradient),
        ROWS,
        "second-order",
        why="second order",
    ),
]

FAULTS = [*TANH, *SOFTPLUS, *SILU, *GELU, *SOFTMAX, *LOG_SOFTMAX]
