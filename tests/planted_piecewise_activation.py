"""Planted faults of the activations made of pieces."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import elu, hard_sigmoid, hard_swish, leaky_relu, prelu, relu6, selu

normal, whole = draws(0)

X = (4 * normal(2, 5, 4, 3),)  # beyond every kink
NEAR = (normal(2, 5, 4, 3),)
KINKS = (3 * whole(4, 5, 2),)  # 0, ±3, ±6
LARGE = (np.array([[-1000.0, -30.0, -2.0, 0.5], [1000.0, 30.0, 1.0, -0.25]]),)
OF_CHANNELS, OF_ONE = (normal(4, 5, 2, 3), normal(3)), (normal(4, 5, 2, 3), np.array(0.25))
SIGN = "the right gradient at -x"


def of(rule, gradient):
    """The rule with dx = gradient(saved, dy, **static), where one array is saved."""
    return rule.replace(backward=lambda r, dy, **static: (gradient(r[0], dy, **static),))


def of_x(rule, gradient):
    """The rule saves its input: dx = gradient(x, dy, **static)."""

    @functools.wraps(rule.forward)
    def forward(x, **static):
        return rule.forward(x, **static)[0], (x,)

    return of(rule.replace(forward=forward), gradient)


def planted(right, name, wrong, arrays, causes, **rest):
    return fault(name, wrong, arrays, causes, right=right, **rest)


# --- made of pieces -------------------------------------------------------------------------------------------------

_relu6 = functools.partial(planted, relu6)
RELU6 = [
    _relu6("derivative 1 at 0", of_x(relu6, lambda x, dy: jnp.where((x >= 0) & (x < 6), dy, 0)), KINKS, "kink"),
    _relu6("derivative 1 at 6", of_x(relu6, lambda x, dy: jnp.where((x > 0) & (x <= 6), dy, 0)), KINKS, "kink"),
    _relu6(
        "derivative 1/2 at both",
        of_x(relu6, lambda x, dy: dy * (jnp.sign(x) - jnp.sign(x - 6)) / 2),
        KINKS,
        "kink",
        note="what autodiff makes of clip",
    ),
    _relu6("ReLU's: no ceiling", of(relu6, lambda y, dy: jnp.where(y > 0, dy, 0)), X, "unknown"),
    _relu6("no floor", of(relu6, lambda y, dy: jnp.where(y < 6, dy, 0)), X, "unknown"),
    _relu6("mask 0 <= y <= 6 passes everything", of(relu6, lambda y, dy: dy), X, "unknown"),
    _relu6(
        "mask for the output clipped to 1", of(relu6, lambda y, dy: jnp.where((y > 0) & (y < 1), dy, 0)), X, "unknown"
    ),
    _relu6("scaled to 1/6", broken(relu6, x=lambda d: d / 6), X, "scaled", note="as if the output were y / 6"),
]

_leaky = functools.partial(planted, leaky_relu, negative_slope=0.25)
LEAKY_RELU = [
    _leaky(
        "slope on the wrong side",
        of(leaky_relu, lambda y, dy, negative_slope: jnp.where(y > 0, negative_slope * dy, dy)),
        NEAR,
        "unknown negated",
        note=SIGN,
    ),
    _leaky("slope 0", of(leaky_relu, lambda y, dy, negative_slope: jnp.where(y > 0, dy, 0)), NEAR, "unknown"),
    _leaky("slope on both sides", of(leaky_relu, lambda y, dy, negative_slope: negative_slope * dy), NEAR, "unknown"),
    _leaky("the default slope", broken(leaky_relu, static={"negative_slope": 0.01}), NEAR, "unknown"),
    _leaky("1 - slope", of(leaky_relu, lambda y, dy, negative_slope: jnp.where(y > 0, dy, 0.75 * dy)), NEAR, "unknown"),
    _leaky("1 / slope", of(leaky_relu, lambda y, dy, negative_slope: jnp.where(y > 0, dy, 4 * dy)), NEAR, "unknown"),
    _leaky(
        "slope for the sign of dy",
        of(leaky_relu, lambda y, dy, negative_slope: jnp.where(dy > 0, dy, negative_slope * dy)),
        NEAR,
        "not-linear",
    ),
    _leaky(
        "derivative 1 at 0",
        of(leaky_relu, lambda y, dy, negative_slope: jnp.where(y >= 0, dy, negative_slope * dy)),
        KINKS,
        "kink",
        note="jax.nn's",
    ),
]


def slopes(formula):
    """prelu with dslope = formula(min(x, 0) dy), of N×H×W×C."""
    return after(prelu, lambda r, dy, dx, ds: (dx, formula(jnp.minimum(r.x, 0) * dy)))


_prelu = functools.partial(planted, prelu)
PRELU = [
    _prelu("slope gradient not summed", slopes(lambda p: p), OF_CHANNELS, "structure"),
    _prelu("slope gradient not summed over the batch", slopes(lambda p: p.sum((1, 2))), OF_CHANNELS, "structure"),
    _prelu("slope gradient summed over the batch alone", slopes(lambda p: p.sum(0)), OF_CHANNELS, "structure"),
    _prelu("slope gradient a number", slopes(jnp.sum), OF_CHANNELS, "structure", note="summed over channels too"),
    _prelu(
        "slope gradient summed over channels too",
        slopes(lambda p: jnp.broadcast_to(p.sum(), p.shape[-1:])),
        OF_CHANNELS,
        "unknown",
    ),
    _prelu("one slope's gradient by channel", slopes(lambda p: p.sum((0, 1, 2))), OF_ONE, "structure"),
    _prelu("slope gradient averaged", slopes(lambda p: p.mean((0, 1, 2))), OF_CHANNELS, "scaled"),
    _prelu("slope gradient averaged over the batch", slopes(lambda p: p.mean(0).sum((0, 1))), OF_CHANNELS, "scaled"),
    _prelu("slope gradient of the first sample", slopes(lambda p: p[0].sum((0, 1))), OF_CHANNELS, "partial"),
    _prelu(
        "slope gradient of the other side",
        after(prelu, lambda r, dy, dx, ds: (dx, (jnp.maximum(r.x, 0) * dy).sum((0, 1, 2)))),
        OF_CHANNELS,
        "unknown",
    ),
    _prelu(
        "slope gradient of both sides",
        after(prelu, lambda r, dy, dx, ds: (dx, (r.x * dy).sum((0, 1, 2)))),
        OF_CHANNELS,
        "unknown",
    ),
    _prelu(
        "slope gradient by |x|",
        after(prelu, lambda r, dy, dx, ds: (dx, (jnp.maximum(-r.x, 0) * dy).sum((0, 1, 2)))),
        OF_CHANNELS,
        "negated",
    ),
    _prelu(
        "slope gradient by y",
        after(prelu, lambda r, dy, dx, ds: (dx, r.slope * ds)),
        OF_ONE,
        "scaled",
        note="y is slope · x",
    ),
    _prelu(
        "slope gradient without dy",
        after(prelu, lambda r, dy, dx, ds: (dx, jnp.minimum(r.x, 0).sum((0, 1, 2)))),
        OF_CHANNELS,
        "not-linear",
    ),
    _prelu("slope not learned", broken(prelu, slope=jnp.zeros_like), OF_CHANNELS, "zero"),
    _prelu(
        "slope gradient in bfloat16",
        slopes(lambda p: p.astype(jnp.bfloat16).sum((0, 1, 2)).astype(p.dtype)),
        OF_CHANNELS,
        "precision",
    ),
    _prelu(
        "dx without the slope",
        after(prelu, lambda r, dy, dx, ds: (jnp.where(r.x > 0, dy, 0), ds)),
        OF_CHANNELS,
        "unknown",
    ),
    _prelu(
        "dx by the next channel's slope",
        broken(prelu, only="x", residuals=lambda r: r._replace(slope=jnp.roll(r.slope, 1))),
        OF_CHANNELS,
        "partial",
    ),
    _prelu(
        "slope held constant in dx",
        broken(prelu, only="x", residuals=lambda r: r._replace(slope=lax.stop_gradient(r.slope))),
        OF_CHANNELS,
        "second-order",
        why="second order",
    ),
    _prelu(
        "derivative 1 at 0",
        after(prelu, lambda r, dy, dx, ds: (jnp.where(r.x >= 0, dy, r.slope * dy), ds)),
        (whole(4, 5, 3), normal(3)),
        "kink",
    ),
]

_elu, _elu2 = functools.partial(planted, elu), functools.partial(planted, elu, alpha=2.0)
ELU = [
    _elu2("y for y + α", of(elu, lambda y, dy, alpha: jnp.where(y > 0, dy, dy * y)), NEAR, "unknown"),
    _elu2("y + 1", of(elu, lambda y, dy, alpha: jnp.where(y > 0, dy, dy * (y + 1))), NEAR, "unknown"),
    _elu2("α left out", of_x(elu, lambda x, dy, alpha: jnp.where(x > 0, dy, dy * jnp.exp(x))), NEAR, "unknown"),
    _elu2("α for α exp(x)", of(elu, lambda y, dy, alpha: jnp.where(y > 0, dy, dy * alpha)), NEAR, "unknown"),
    _elu("exp of the output", of(elu, lambda y, dy, alpha: jnp.where(y > 0, dy, dy * jnp.exp(y))), NEAR, "unknown"),
    _elu2("derivative 1 at 0", of(elu, lambda y, dy, alpha: jnp.where(y >= 0, dy, dy * (y + alpha))), KINKS, "kink"),
    _elu2("exp(-x)", of_x(elu, lambda x, dy, alpha: jnp.where(x > 0, dy, dy * alpha * jnp.exp(-x))), NEAR, "unknown"),
    _elu(
        "pieces by masks: 0 · exp(1000)",
        of_x(elu, lambda x, dy, alpha: dy * ((x > 0) + (x <= 0) * alpha * jnp.exp(x))),
        LARGE,
        "nan",
    ),
]

SCALE, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717
_selu = functools.partial(planted, selu)
SELU = [
    _selu("scale left out", broken(selu, x=lambda d: d / SCALE), NEAR, "scaled"),
    _selu("scale twice", broken(selu, x=lambda d: d * SCALE), NEAR, "scaled"),
    _selu(
        "scale above 0 alone", of(selu, lambda y, dy: dy * jnp.where(y > 0, SCALE, y / SCALE + ALPHA)), NEAR, "unknown"
    ),
    _selu("scale left out of λα", of(selu, lambda y, dy: dy * jnp.where(y > 0, SCALE, y + ALPHA)), NEAR, "unknown"),
    _selu("1 above 0", of(selu, lambda y, dy: dy * jnp.where(y > 0, 1, y + SCALE * ALPHA)), NEAR, "unknown"),
    _selu("ELU's", of(selu, lambda y, dy: dy * jnp.where(y > 0, 1, y + 1)), NEAR, "unknown"),
    _selu("derivative λ at 0", of(selu, lambda y, dy: dy * jnp.where(y >= 0, SCALE, y + SCALE * ALPHA)), KINKS, "kink"),
]

_hard_sigmoid = functools.partial(planted, hard_sigmoid)
HARD_SIGMOID = [
    _hard_sigmoid("1/6 left out", broken(hard_sigmoid, x=lambda d: 6 * d), X, "scaled"),
    _hard_sigmoid(
        "1/5", broken(hard_sigmoid, x=lambda d: 1.2 * d), X, "scaled", note="the slope of another definition"
    ),
    _hard_sigmoid("never flat", of(hard_sigmoid, lambda flat, dy: dy / 6), X, "unknown"),
    _hard_sigmoid("flat where it is not", of(hard_sigmoid, lambda flat, dy: jnp.where(flat, dy / 6, 0)), X, "unknown"),
    _hard_sigmoid(
        "flat beyond 2.5", of_x(hard_sigmoid, lambda x, dy: jnp.where(jnp.abs(x) < 2.5, dy / 6, 0)), X, "unknown"
    ),
    _hard_sigmoid(
        "the sigmoid's", of_x(hard_sigmoid, lambda x, dy: dy * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)), X, "unknown"
    ),
    _hard_sigmoid(
        "derivative 1/6 at ±3", of_x(hard_sigmoid, lambda x, dy: jnp.where(jnp.abs(x) <= 3, dy / 6, 0)), KINKS, "kink"
    ),
]


def swish_pieces(middle):
    return of(hard_swish, lambda x, dy: dy * jnp.select([x <= -3, x < 3], [0 * x, middle(x)], 1))


_hard_swish = functools.partial(planted, hard_swish)
HARD_SWISH = [
    _hard_swish("x/6 left out: the hard sigmoid", swish_pieces(lambda x: (x + 3) / 6), X, "unknown"),
    _hard_swish("x/6 alone", swish_pieces(lambda x: x / 6), X, "unknown"),
    _hard_swish("x/3 without 1/2", swish_pieces(lambda x: x / 3), X, "unknown"),
    _hard_swish("x/3 + 1", swish_pieces(lambda x: x / 3 + 1), X, "unknown"),
    _hard_swish("no pieces", of(hard_swish, lambda x, dy: dy * (x / 3 + 0.5)), X, "unknown"),
    _hard_swish(
        "flat above 3", of(hard_swish, lambda x, dy: dy * jnp.where(jnp.abs(x) < 3, x / 3 + 0.5, 0)), X, "unknown"
    ),
    _hard_swish(
        "derivative -1/2 at -3, 3/2 at 3",
        of(hard_swish, lambda x, dy: dy * jnp.select([x < -3, x <= 3], [0 * x, x / 3 + 0.5], 1)),
        KINKS,
        "kink",
        note="those of the inner side",
    ),
]

FAULTS = [*RELU6, *LEAKY_RELU, *PRELU, *ELU, *SELU, *HARD_SIGMOID, *HARD_SWISH]
