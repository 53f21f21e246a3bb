"""Planted faults of relu and sigmoid."""

from __future__ import annotations

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import relu, sigmoid

normal, whole = draws(0)

X, ZEROS = (normal(2, 5, 4, 3),), (whole(2, 5, 4, 3),)
WIDE = (np.array([[-1000.0, -30.0, -2.0, 0.5], [1000.0, 30.0, 1.0, -0.25]]),)


def of_relu(gradient):
    """A rectifier with dx = gradient(y, dy)."""
    return relu.replace(backward=lambda r, dy: (gradient(r.y, dy),))


def of_sigmoid(gradient):
    return sigmoid.replace(backward=lambda r, dy: (gradient(r.y, dy),))


def from_x(rule, gradient):
    """The rule saves its input: dx = gradient(x, dy)."""
    return rule.replace(forward=lambda x: (rule.forward(x)[0], x), backward=lambda x, dy: (gradient(x, dy),))


from_x_relu, from_x_sigmoid = functools.partial(from_x, relu), functools.partial(from_x, sigmoid)


def fault_of(rule, name, broken_rule, arrays, causes, **rest):
    """A fault whose forward pass is not the rule's own."""
    return fault(name, broken_rule, arrays, causes, right=rule, **rest)


of_zeros = functools.partial(fault_of, relu)
of_x = functools.partial(fault_of, sigmoid)

RELU = [
    of_zeros("derivative 1 at 0", from_x_relu(lambda x, dy: jnp.where(x >= 0, dy, 0)), ZEROS, "kink"),
    of_zeros("derivative 1/2 at 0", from_x_relu(lambda x, dy: dy * (1 + jnp.sign(x)) / 2), ZEROS, "kink"),
    of_zeros(
        "derivative 0.01 at 0",
        from_x_relu(lambda x, dy: dy * jnp.select([x > 0, x < 0], [1.0, 0.0], 0.01)),
        ZEROS,
        "kink",
    ),
    fault("mask y >= 0 passes everything", of_relu(lambda y, dy: jnp.where(y >= 0, dy, 0)), X, "unknown"),
    fault("mask of dy", of_relu(lambda y, dy: jnp.maximum(dy, 0)), X, "not-linear"),
    fault(
        "guided backpropagation",
        of_relu(lambda y, dy: jnp.where((y > 0) & (dy > 0), dy, 0)),
        X,
        "not-linear",
        note="mxnet 5812 and keras 16153 want it; as ReLU's gradient it is wrong",
    ),
    fault("slope 0.01 below 0", of_relu(lambda y, dy: jnp.where(y > 0, dy, 0.01 * dy)), X, "unknown"),
    fault(
        "mask inverted",
        of_relu(lambda y, dy: jnp.where(y > 0, 0, dy)),
        X,
        "unknown negated",
        note="the right gradient at -x",
    ),
    fault("the output for the mask", of_relu(lambda y, dy: dy * y), X, "unknown"),
    fault("the mask alone", of_relu(lambda y, dy: (y > 0).astype(dy.dtype)), X, "not-linear", note="dy ignored"),
    of_zeros("mask as quotient y / x", from_x_relu(lambda x, dy: dy * jnp.maximum(x, 0) / x), ZEROS, "nan"),
    of_zeros(
        "passes nothing above 2",
        from_x_relu(lambda x, dy: jnp.where((x > 0) & (x < 2), dy, 0)),
        X,
        "unknown",
        note="wrong only where x is large",
    ),
    fault("a constant added", broken(relu, x=lambda d: d + 1e-3), X, "not-linear"),
    fault("magnitude for value", broken(relu, x=jnp.abs), X, "not-linear"),
    fault("sign for value", broken(relu, dy=jnp.sign), X, "not-linear"),
    fault("dy clipped to ±1", broken(relu, dy=lambda d: jnp.clip(d, -1, 1)), X, "not-linear"),
    fault(
        "dy clipped to ±1000",
        broken(relu, dy=lambda d: jnp.clip(d, -1e3, 1e3)),
        X,
        "not-linear",
        note="no random dy of size 1 shows it",
    ),
    fault("small dy dropped", broken(relu, dy=lambda d: jnp.where(jnp.abs(d) < 1e-6, 0, d)), X, "not-linear"),
    fault("dead", broken(relu, x=jnp.zeros_like), X, "zero"),
    fault("negated", broken(relu, x=jnp.negative), X, "negated"),
    fault(
        "needs the value of dy",
        broken(relu, dy=lambda d: d if bool(d.max() > -np.inf) else 0 * d),
        X,
        "structure",
        why="jit",
    ),
    fault(
        "branch of Python",
        after(relu, lambda r, dy, dx: (dx if float(r.y.sum()) >= 0 else dy,)),
        X,
        "structure",
        why="jit",
    ),
]


def in_the_host(r, dy):
    """NumPy from within jax: right, but jax cannot differentiate it."""
    kind = jax.ShapeDtypeStruct(dy.shape, dy.dtype)
    return (jax.pure_callback(lambda a, d: d * a * (1 - a), kind, r.y, dy, vmap_method="broadcast_all"),)


def by_iteration(r, dy):
    """a (1 - a) by a loop of unknown length, which reverse mode cannot run backward."""

    def step(state):
        i, a, total = state
        return i + 1, a * r.y, total + jnp.where(i < 2, (-1.0) ** i, 0).astype(a.dtype) * a

    total = lax.while_loop(lambda state: state[0] < 2, step, (0, r.y, jnp.zeros_like(r.y)))[2]
    return (dy * total,)


@jax.custom_batching.custom_vmap
def slope(a):
    return a * (1 - a)


@slope.def_vmap
def _(size, batched, a):
    return slope(a[::-1]), True  # a batching rule that loses the order


_calls, _previous = itertools.count(1), []


def averaged(r, dy, dx):
    return (dx * (1 + 1 / next(_calls)),)


def accumulated(r, dy, dx):
    """`grad +=` of a buffer that nobody sets to zero."""
    _previous.append(dx)
    return (sum(d for d in _previous if d.shape == dx.shape),)


def stale(rule):
    """The activation is kept outside, and the backward pass takes the previous call's."""
    kept = []

    def forward(x):
        y, _ = rule.forward(x)
        return y, x

    def backward(x, dy):
        kept.append(rule.forward(x)[0])
        a = kept[-2] if len(kept) > 1 else 1 - kept[-1] ** 2
        return (dy * a * (1 - a),)

    return rule.replace(forward=forward, backward=backward)


def difference(x, dy, step=1e-4):
    return dy * (sigmoid.forward(x + step)[0] - sigmoid.forward(x - step)[0]) / (2 * step)


LEAKS = "under jit what is kept is a tracer of an earlier trace, and using it raises"

SIGMOID = [
    fault("a (1 + a)", of_sigmoid(lambda a, dy: dy * a * (1 + a)), X, "unknown"),
    fault("a", of_sigmoid(lambda a, dy: dy * a), X, "unknown"),
    fault("1 - a", of_sigmoid(lambda a, dy: dy * (1 - a)), X, "unknown"),
    fault("1 - a², tanh's", of_sigmoid(lambda a, dy: dy * (1 - a * a)), X, "unknown"),
    fault("derivative applied twice", of_sigmoid(lambda a, dy: dy * (a * (1 - a)) ** 2), X, "unknown"),
    fault(
        "sigmoid of the output",
        of_sigmoid(lambda a, dy: dy * jax.nn.sigmoid(a) * (1 - jax.nn.sigmoid(a))),
        X,
        "unknown",
        note="the activation applied once more to what is saved",
    ),
    of_x("x (1 - x)", from_x_sigmoid(lambda x, dy: dy * x * (1 - x)), X, "unknown", note="input saved for output"),
    fault("derivative left out", of_sigmoid(lambda a, dy: dy), X, "unknown"),
    fault("a (a - 1)", of_sigmoid(lambda a, dy: dy * a * (a - 1)), X, "negated"),
    fault("times 4", of_sigmoid(lambda a, dy: dy * 4 * a * (1 - a)), X, "scaled", note="scaled to 1 at its peak"),
    fault("dy left out", of_sigmoid(lambda a, dy: a * (1 - a)), X, "not-linear"),
    fault("dy squared", of_sigmoid(lambda a, dy: dy * dy * a * (1 - a)), X, "not-linear"),
    fault("dy normalised", broken(sigmoid, dy=lambda d: d / jnp.sqrt((d * d).sum())), X, "not-linear"),
    of_x(
        "exp(-x) / (1 + exp(-x))²",
        from_x_sigmoid(lambda x, dy: dy * jnp.exp(-x) / (1 + jnp.exp(-x)) ** 2),
        WIDE,
        "nan",
        note="∞/∞ at -1000",
    ),
    fault("a² (1/a - 1)", of_sigmoid(lambda a, dy: dy * a * a * (1 / a - 1)), WIDE, "nan", note="0 · ∞ where a is 0"),
    fault(
        "1 - a saved as bfloat16",
        of_sigmoid(lambda a, dy: dy * a * (1 - a).astype(jnp.bfloat16).astype(a.dtype)),
        X,
        "precision",
    ),
    fault("in float16", broken(sigmoid, x=lambda d: d.astype(jnp.float16).astype(d.dtype)), X, "precision"),
    fault("in float32", broken(sigmoid, x=lambda d: d.astype(jnp.float32).astype(d.dtype)), X, "precision"),
    of_x("by a difference", from_x_sigmoid(difference), X, "precision", note="right to the step's 1e-9"),
    fault("a held constant", broken(sigmoid, residuals=lax.stop_gradient), X, "second-order", why="second order"),
    fault("dy held constant", broken(sigmoid, dy=lax.stop_gradient), X, "second-order", why="second order"),
    fault("dx held constant", broken(sigmoid, x=lax.stop_gradient), X, "second-order", why="second order"),
    fault("by a callback", sigmoid.replace(backward=in_the_host), X, "second-order", why="second order"),
    fault("by a while loop", sigmoid.replace(backward=by_iteration), X, "second-order", why="second order"),
    fault(
        "order lost under vmap",
        sigmoid.replace(backward=lambda r, dy: (dy * slope(r.y),)),
        X,
        "unknown structure partial flipped",
        why="vmap",
        note="no word means vmap",
    ),
    fault("needs NumPy", of_sigmoid(lambda a, dy: dy * np.asarray(a) * (1 - np.asarray(a))), X, "structure", why="jit"),
    fault(
        "noise of NumPy",
        broken(sigmoid, x=lambda d: d + 1e-3 * np.random.standard_normal(d.shape)),
        X,
        "nondeterministic",
        why="second call",
    ),
    fault(
        "dropout drawn anew",
        broken(sigmoid, x=lambda d: d * (np.random.random(d.shape) < 0.9)),
        X,
        "nondeterministic",
        why="second call",
    ),
    fault(
        "noise of the clock",
        broken(
            sigmoid,
            x=lambda d: d * (1 + 1e-3 * jax.random.normal(jax.random.key(time.time_ns() % 2**31), d.shape, d.dtype)),
        ),
        X,
        "nondeterministic",
        why="second call",
    ),
    fault("counts its calls", after(sigmoid, averaged), X, "nondeterministic", why="second call"),
    fault("accumulates", after(sigmoid, accumulated), X, "nondeterministic structure", why="second call", note=LEAKS),
    of_x(
        "activation of the previous call",
        stale(sigmoid),
        X,
        "nondeterministic structure",
        why="second call",
        note=LEAKS,
    ),
    fault(
        "one value wrong",
        broken(sigmoid, x=lambda d: d.at[1, 2, 1, 0].multiply(1.001)),
        X,
        "unknown partial",
        note="no pattern; in one sample and one channel only",
    ),
]

FAULTS = RELU + SIGMOID
