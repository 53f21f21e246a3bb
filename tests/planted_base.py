"""What the catalogue of planted faults is made of: the fault, ways to break a right rule, proofs that it is broken."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn import Layer, Rule

CAUSES = (
    *("scaled", "negated", "zero", "rotated", "flipped", "transposed", "shifted", "swapped", "border", "partial"),
    *("ties", "kink", "not-linear", "precision", "nan", "structure", "second-order", "nondeterministic", "unknown"),
)


class Fault(NamedTuple):
    """A rule or layer with a wrong backward pass, and arrays on which it shows."""

    name: str
    rule: Rule | Layer
    arrays: tuple[np.ndarray, ...]
    static: dict[str, Any]
    causes: tuple[str, ...]  # one where it has one right name; several acceptable ones where not, and `note` says why
    note: str
    why: str  # which of PROOFS shows that it is wrong
    right: Rule | Layer  # the same done right


RIGHT = {rule.forward: rule for name in jaxcnn.__all__ if isinstance(rule := getattr(jaxcnn, name), Rule)}


def fault(name, rule, arrays, causes: str, *, why="autodiff", note="", right=None, **static) -> Fault:
    right = RIGHT[rule.forward] if right is None else right
    return Fault(name, rule, tuple(arrays), static, tuple(causes.split()), note, why, right)


def small(forward, backward, **fields) -> Rule:
    """A right rule of the catalogue's own."""
    return RIGHT.setdefault(forward, Rule(forward, backward, **fields))


def broken(rule: Rule, *, only: str = "", residuals=None, dy=None, static=None, **cotangents: Callable) -> Rule:
    """The rule with a change to what its right backward pass is given, or to the right cotangents.

    residuals, dy: functions of the right ones. static: other values. cotangents: by argument, functions of the right
    one. only: the arguments whose cotangents come out of the changed pass; the others stay right.
    """
    names = list(inspect.signature(rule.forward).parameters)

    def backward(saved, given, **values):
        right = rule.backward(saved, given, **values)
        saved = saved if residuals is None else residuals(saved)
        given = given if dy is None else dy(given)
        changed = rule.backward(saved, given, **(values | (static or {})))
        kept = [c if not only or n in only.split() else r for n, c, r in zip(names, changed, right, strict=False)]
        return tuple(cotangents.get(n, lambda c: c)(c) for n, c in zip(names, kept, strict=False))

    return rule.replace(backward=backward)


def after(rule: Rule, change: Callable) -> Rule:
    """The rule with `change(residuals, dy, *right cotangents)` for its backward pass."""
    return rule.replace(backward=lambda saved, dy, **static: change(saved, dy, *rule.backward(saved, dy, **static)))


def draws(seed: int) -> tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]:
    """(normal, whole): random arrays of a shape, of values that float32 holds exactly.

    `whole` draws small whole numbers: zeros and ties, as in images of few grey levels.
    """
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32).astype(np.float64)

    def whole(*shape: int) -> np.ndarray:
        return generator.integers(-2, 3, shape).astype(np.float64)

    return normal, whole


# --- proofs that a fault is one -------------------------------------------------------------------------------------


def really_wrong(fault: Fault) -> bool:
    """Whether the fault's own proof, `fault.why`, holds; in float64 but for the proofs that name another precision."""
    if fault.why == "smaller batch":
        axes = fault.rule.batch_axes
        fault = fault._replace(
            arrays=tuple(a if axis is None else a[: len(a) // 2] for a, axis in zip(fault.arrays, axes, strict=False))
        )
    with jax.enable_x64(True):
        return PROOFS[fault.why](*functions(fault))


def functions(fault: Fault):
    """(by hand, plain, values): two functions of the float arrays, differentiated by hand and by autodiff."""
    rule = fault.rule
    if isinstance(rule, Layer):
        (x,), key = fault.arrays, jax.random.key(0)
        params, state, _ = rule.init(key, x.shape[1:])
        values, tree = jax.tree.flatten((params, jnp.asarray(x)))

        def by_hand(*values):
            params, x = jax.tree.unflatten(tree, values)
            return jaxcnn.differentiable(rule)(params, state, x, train=True, key=key)[0]

        def plain(*values):
            params, x = jax.tree.unflatten(tree, values)
            return rule.plain(params, state, x, train=True, key=key)[0]

        return by_hand, plain, [v.astype(np.float64) for v in values]
    arrays, static = rule.bind(*fault.arrays, **fault.static)
    floats = [i for i, a in enumerate(arrays) if a is not None and jnp.issubdtype(a.dtype, jnp.inexact)]

    def of_floats(function):
        def call(*values):
            given = dict(zip(floats, values, strict=True))
            return function(*(given.get(i, a) for i, a in enumerate(arrays)), **static)

        return call

    return of_floats(rule), of_floats(rule.plain), [jnp.asarray(arrays[i], np.float64) for i in floats]


def _cotangents(function, values, dy):
    return jax.vjp(function, *values)[1](dy)


def _random_like(tree, seed: int, size: float = 1.0):
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(size * generator.standard_normal(a.shape), a.dtype), tree)


def _dys(function, values):
    """Ordinary ones, and ones of 1e6 and 1e-9."""
    shape = jax.eval_shape(function, *values)
    return [_random_like(shape, seed, size) for seed, size in enumerate((1.0, 1.0, 1e6, 1e-9))]


def _differ(a, b, tolerance: float = 1e-10) -> bool:
    """Whether any leaf differs by more than the tolerance, relative to its largest right element b."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if not np.abs(x - y).max(initial=0.0) <= tolerance * np.abs(y).max(initial=0.0):  # NaN differs
            return True
    return False


def _by_autodiff(by_hand, plain, values) -> bool:
    try:
        return any(
            _differ(_cotangents(by_hand, values, dy), _cotangents(plain, values, dy)) for dy in _dys(plain, values)
        )
    except Exception:  # it raises, or its cotangents are of the wrong form
        return True


def _by_finite_differences(by_hand, plain, values) -> bool:
    """⟨dx, u⟩ against the central difference of the forward pass in the direction u, argument by argument."""
    dy = _dys(plain, values)[0]
    for i, (value, cotangent) in enumerate(zip(values, _cotangents(by_hand, values, dy), strict=True)):
        u = _random_like(value, 5)
        along = [jnp.vdot(dy, plain(*values[:i], value + step * u, *values[i + 1 :])) for step in (1e-6, -1e-6)]
        slope, wanted = float(jnp.vdot(cotangent, u)), float(along[0] - along[1]) / 2e-6
        if abs(slope - wanted) > 1e-5 * (abs(wanted) + float(jnp.linalg.norm(cotangent))):
            return True
    return False


def _in_a_second_call(by_hand, plain, values) -> bool:
    dy = _dys(plain, values)[0]
    try:
        return _differ(*(_cotangents(by_hand, values, dy) for _ in range(2)))
    except Exception:
        return True


def _under_jit(by_hand, plain, values) -> bool:
    dy = _dys(plain, values)[0]
    try:
        return _differ(
            jax.jit(functools.partial(_cotangents, by_hand))(values, dy), _cotangents(by_hand, values, dy), 1e-8
        )
    except Exception:
        return True


def _under_vmap(by_hand, plain, values) -> bool:
    """Against a loop."""
    several = [(values, _dys(plain, values)[0]), (_random_like(values, 6), _dys(plain, values)[1])]
    looped = [_cotangents(by_hand, *one) for one in several]
    try:
        together = jax.vmap(functools.partial(_cotangents, by_hand))(*jax.tree.map(lambda *a: jnp.stack(a), *several))
        return _differ(together, jax.tree.map(lambda *a: jnp.stack(a), *looped), 1e-8)
    except Exception:
        return True


def _in_second_order(by_hand, plain, values) -> bool:
    """The derivative of the backward pass, with respect to the arrays and to dy."""
    dy = _dys(plain, values)[0]

    def derivative(function):
        cotangents, pullback = jax.vjp(functools.partial(_cotangents, function), values, dy)
        return pullback(_random_like(cotangents, 7))

    try:
        return _differ(derivative(by_hand), derivative(plain))
    except Exception:  # it has none
        return True


def _in(dtype: str):
    """The error in this precision, several times autodiff's own."""

    def proof(by_hand, plain, values) -> bool:
        low = [v.astype(dtype) for v in values]
        dy = _random_like(jax.eval_shape(plain, *low), 0)
        high = [v.astype(np.float64) for v in low]
        truth = _cotangents(plain, high, dy.astype(np.float64))
        pairs = zip(_cotangents(by_hand, low, dy), _cotangents(plain, low, dy), truth, strict=True)
        for mine, autodiff, exact in pairs:
            error, usual = (float(np.abs(np.asarray(g, np.float64) - exact).max()) for g in (mine, autodiff))
            if not error <= 4 * usual + 2 * float(jnp.finfo(dtype).eps * np.abs(exact).max()):
                return True
        return False

    return proof


PROOFS: dict[str, Callable[..., bool]] = {
    "autodiff": _by_autodiff,
    "finite differences": _by_finite_differences,
    "second call": _in_a_second_call,
    "jit": _under_jit,
    "vmap": _under_vmap,
    "smaller batch": _by_autodiff,
    "second order": _in_second_order,
    "bfloat16": _in("bfloat16"),
    "float16": _in("float16"),
    "float32": _in("float32"),
}
