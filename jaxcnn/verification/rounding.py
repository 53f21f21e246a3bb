"""How much rounding matters to a function, by its program: each intermediate is moved as rounding would move it.

Source: Parker, "Monte Carlo arithmetic", UCLA 1997.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxcnn.verification.compilation import quick_jit
from jaxcnn.verification.subject import Subject
from jaxcnn.verification.trials import EPSILON, Trial, stream

MOVED = 2.0**-30  # relative: where rounding alone hides a result's digits (1 - y² at y = 1), this shows them
SAMPLES = 3
DRAWS, STRIDE = 4096, 1013  # random numbers in all; how far apart they begin for one array and for the next
MARGIN = 16  # times what was seen: few samples, and sums of many terms
# What these give is rounded; other operations move, compare or choose values, and a mask must stay what it is.
ROUNDED = frozenset((
    "add", "add_any", "sub", "mul", "div", "dot_general", "conv_general_dilated", "reduce_sum", "reduce_prod",
    "reduce_window_sum", "cumsum", "cumprod", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erfc",
    "erf_inv", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow", "square", "sin", "cos", "tan", "asin", "acos", "atan",
    "atan2", "sinh", "cosh", "asinh", "acosh", "atanh", "lgamma", "digamma", "scatter-add", "select_and_scatter_add",
    "triangular_solve", "lu", "cholesky",
))  # fmt: skip


def of_gradients(subject: Subject) -> Callable[[Trial], list[float]]:
    """A function of a trial: by how much rounding may set the two gradients of each argument apart in float64.

    A formula that cancels loses digits, and autodiff's may cancel elsewhere: 1 - y² for a tanh near 1.
    """

    def both(values, dy):
        return [c for passes in (subject.by_hand, subject.by_autodiff) for c in passes(values)[1](dy)]

    moved, count = moves(both), len(subject.arguments)
    known: dict[int, tuple[Trial, list[float]]] = {}  # of all arguments at once: asked for one after the other

    def of_trial(trial):
        if id(trial) not in known:
            largest = [_largest(m) for m in moved(trial.values, trial.dy)]
            known[id(trial)] = trial, [largest[i] + largest[count + i] for i in range(count)]
        return known[id(trial)][1]

    return of_trial


def of_forward(subject: Subject, trial: Trial) -> float:
    """How far rounding may move ⟨f(values), dy⟩."""
    (moved,) = moves(lambda values, dy: [subject.forward(values)[0] * dy])(trial.values, trial.dy)
    return float(np.where(np.isfinite(moved), moved, 0.0).sum())


def coarsest(subject: Subject, values: Sequence[Any]) -> float:
    """The epsilon of the narrowest dtype to which the plain forward pass converts what it makes of these values."""
    narrowed = [
        eqn.params["new_dtype"]
        for eqn in _on_the_way(jax.make_jaxpr(subject.plain)(values).jaxpr)
        if eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == np.float64
    ]
    return max([EPSILON, *(float(jnp.finfo(d).eps) for d in narrowed if jnp.issubdtype(d, jnp.floating))])


def contains(subject: Subject, values: Sequence[Any], *primitives: str) -> bool:
    """Whether the plain forward pass makes use of one of these primitives of jax."""
    return any(e.primitive.name in primitives for e in _equations(jax.make_jaxpr(subject.plain)(values).jaxpr))


def moves(function: Callable[..., list]) -> Callable[..., list[np.ndarray]]:
    """A function of the same arguments: how far the elements of each result move, scaled to float64's rounding."""

    @quick_jit
    def run(noise, *arguments):
        jaxpr = jax.make_jaxpr(function)(*arguments)
        return _evaluate(jaxpr.jaxpr, jaxpr.consts, jax.tree.leaves(arguments), _Mover(noise))

    def of_arguments(*arguments):
        noises = [MOVED * stream(k).uniform(-1, 1, DRAWS) for k in range(SAMPLES)]
        here, *there = [run(noise, *arguments) for noise in (np.zeros(DRAWS), *noises)]
        return [
            MARGIN * EPSILON / MOVED * np.max([np.abs(np.asarray(t[j]) - np.asarray(y)) for t in there], axis=0)
            for j, y in enumerate(here)
        ]

    return of_arguments


class _Mover:
    """Moves arrays of float64, each by numbers from another place of the noise, which costs no program to draw."""

    def __init__(self, noise: jax.Array):
        self.noise, self.moved = jnp.concatenate([noise, noise]), 0

    def __call__(self, array: Any) -> Any:
        if array.dtype != np.float64:
            return array
        self.moved += 1
        start = self.moved * STRIDE % DRAWS
        noise = self.noise[start : start + min(array.size, DRAWS)]
        return array * (1 + jnp.resize(noise, array.shape))


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], move: _Mover) -> list:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    for eqn in jaxpr.eqns:
        given = [v.val if hasattr(v, "val") else known[v] for v in eqn.invars]  # a literal has its value
        inner = _inner(eqn)
        if inner is not None:
            given = given[len(given) - len(inner.jaxpr.invars) :]  # without the number of the platform
            results = _evaluate(inner.jaxpr, inner.consts, given, move)
        else:
            results = eqn.primitive.bind(*given, **eqn.primitive.get_bind_params(eqn.params))
            results = list(results) if eqn.primitive.multiple_results else [results]
        if eqn.primitive.name in ROUNDED:
            results = [move(r) for r in results]
        known.update(zip(eqn.outvars, results, strict=True))
    return [v.val if hasattr(v, "val") else known[v] for v in jaxpr.outvars]


CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")


def _inner(eqn: Any) -> Any:
    """The program that an equation calls as it is, if it does."""
    if platforms := eqn.params.get("branches_platforms"):  # of several forms the one for the platform at hand
        here = [p is None or jax.default_backend() in p for p in platforms].index(True)
        return eqn.params["branches"][here]
    if eqn.primitive.name not in CALLS:
        return None
    program = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return program if hasattr(program, "consts") or program is None else jax.extend.core.ClosedJaxpr(program, ())


def _on_the_way(jaxpr: Any) -> Iterator[Any]:
    """The equations that depend on a program's arguments and on which its results depend, with all those inside."""
    dependent, needed = set(jaxpr.invars), {v for v in jaxpr.outvars if not hasattr(v, "val")}
    for eqn in jaxpr.eqns:
        if any(not hasattr(v, "val") and v in dependent for v in eqn.invars):
            dependent.update(eqn.outvars)
    for eqn in reversed(jaxpr.eqns):
        if needed.isdisjoint(eqn.outvars):
            continue
        needed.update(v for v in eqn.invars if not hasattr(v, "val"))
        if not dependent.isdisjoint(eqn.outvars):
            yield from _with_inner(eqn)


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Of a program and all those inside it."""
    for eqn in jaxpr.eqns:
        yield from _with_inner(eqn)


def _with_inner(eqn: Any) -> Iterator[Any]:
    yield eqn
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            yield from _equations(getattr(value, "jaxpr", value))


def _largest(array: np.ndarray) -> float:
    return float(array[np.isfinite(array)].max(initial=0.0))
