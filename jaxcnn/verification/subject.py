"""What is verified, a rule or a layer, in one form: named float arrays, a hand-written pass, a plain one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule, autodiff_vjp
from jaxcnn.verification.compilation import quick_jit

Pullback = Callable[[Any], list]


class StructureError(Exception):
    """A pass that gave no output and residuals, or no set of cotangents that fits its arrays."""


class Subject(NamedTuple):
    """Both passes take the list of float arrays, in any dtype."""

    name: str
    arguments: tuple[str, ...]  # one name for each float array
    arrays: tuple[np.ndarray, ...]
    batch_axes: tuple[int | None, ...]  # of each float array the axis of the samples
    forward: Callable[[list], tuple[Any, Any]]  # values -> (output, residuals)
    value: Callable[[list], Any]  # values -> output, compiled
    backward: Callable[[Any, Any], list]  # (residuals, dy) -> cotangents
    plain: Callable[[list], Any]  # values -> output, for autodiff
    take: Callable[[np.ndarray], Subject] | None  # the same of some of the samples
    declared: bool  # whether a reference says what the gradient is where the forward pass has none
    chained: bool = False  # whether it applies one rule after another: then rounding decides what is at a kink within
    reversible: bool = True  # whether autodiff has a reverse mode of the plain forward pass
    epsilon: float = 2.0**-52  # of the precision that "float64" is, where the forward pass narrows what it is given

    def by_hand(self, values: list) -> tuple[Any, Pullback]:
        output, residuals = self.forward(values)
        return output, lambda dy: self.backward(residuals, _like_output(dy, output))

    def by_autodiff(self, values: list) -> tuple[Any, Pullback]:
        if not self.reversible:  # as of a `while_loop`: each column of the Jacobian by forward mode
            jacobians = jax.jacfwd(self.plain)(values)
            return self.plain(values), lambda dy: [jnp.tensordot(dy, j, jnp.ndim(dy)) for j in jacobians]
        output, pullback = autodiff_vjp(lambda *v: self.plain(list(v)), tuple(values))
        return output, lambda dy: list(pullback(_like_output(dy, output)))


def _like_output(dy: Any, output: Any) -> Any:
    """A cotangent has its output's dtype, which need not be that of the arrays."""
    return jnp.asarray(dy, getattr(output, "dtype", None))


def subject_of(rule_or_layer: Rule | Layer, arrays: tuple, key, train: bool | None, static: dict) -> Subject:
    """Raises TypeError or ValueError for a bad call, the only fault that is the caller's."""
    if isinstance(rule_or_layer, Rule):
        own = {"key": key, "train": train}  # a rule's static argument may have such a name
        return _of_rule(rule_or_layer, arrays, static | {n: v for n, v in own.items() if v is not None})
    if not isinstance(rule_or_layer, Layer):
        raise TypeError(f"verify: takes a Rule or a Layer, got {type(rule_or_layer).__name__}")
    if len(arrays) != 1 or static:
        raise TypeError("verify: a layer is verified with one array, x, and no static arguments")
    return _of_layer(rule_or_layer, arrays[0], _key(key), train is None or train)


def _of_rule(rule: Rule, args: tuple, static: dict) -> Subject:
    given, static = rule.bind(*args, **static)
    given = tuple(None if a is None else a if _is_key(a) else np.asarray(a) for a in given)
    floats = [i for i, a in enumerate(given) if a is not None and jnp.issubdtype(a.dtype, jnp.inexact)]
    names, original = rule.argument_names(len(given)), rule
    rule = _with_one_output(rule, given, static)
    axes = (rule.batch_axes or ())[: len(given)]
    axes += (None,) * (len(given) - len(axes))
    for name, array, axis in zip(names, given, axes, strict=True):
        if array is not None and axis is not None and not axis < max(array.ndim, 1):
            raise ValueError(
                f"verify: {rule.name}: batch_axes names axis {axis} of {name}, whose shape is {array.shape}"
            )

    def fill(values: list) -> list:
        full = list(given)
        for i, value in zip(floats, values, strict=True):
            full[i] = value
        return full

    def forward(values):
        result = rule.forward(*fill(values), **static)
        if not isinstance(result, tuple) or len(result) != 2:
            raise StructureError(f"forward must return (output, residuals), got {_kind(result)}")
        return result

    def backward(residuals, dy):
        cotangents = rule.backward(residuals, dy, **static)
        if not isinstance(cotangents, tuple) or len(cotangents) != len(given):
            raise StructureError(f"backward must return a tuple of {len(given)} cotangents, got {_kind(cotangents)}")
        return _arrays([cotangents[i] for i in floats], [names[i] for i in floats])

    def take(samples):
        def of(array, axis):
            return array if array is None or axis is None else np.take(np.asarray(array), samples, axis)

        return _of_rule(original, tuple(map(of, given, axes)), static)

    batched = [a for a, axis in zip(given, axes, strict=True) if a is not None and axis is not None]

    def plain(values):
        if rule.reference is None:
            return forward(values)[0]
        return rule.reference(*fill(values), **static)

    return Subject(
        rule.name,
        tuple(names[i] for i in floats),
        tuple(np.asarray(given[i]) for i in floats),
        tuple(axes[i] for i in floats),
        forward,
        quick_jit(lambda values: forward(values)[0]),
        backward,
        plain,
        take if batched and all(a.ndim for a in batched) else None,
        rule.reference is not None,
    )


def _with_one_output(rule: Rule, given: tuple, static: dict) -> Rule:
    """Of a rule whose output is a tree of floating arrays: the same with all of these in one vector."""
    try:
        output = jax.eval_shape(lambda *arrays: rule.forward(*arrays, **static)[0], *given)
    except Exception:  # said where the forward pass is first run
        return rule
    leaves, structure = jax.tree.flatten(output)
    if hasattr(output, "shape") or not leaves or not all(jnp.issubdtype(y.dtype, jnp.floating) for y in leaves):
        return rule
    ends = np.cumsum([y.size for y in leaves])[:-1]

    def join(tree):
        return jnp.concatenate([jnp.ravel(y) for y in jax.tree.leaves(tree)])

    def split(dy):
        parts = zip(jnp.split(dy, ends), leaves, strict=True)
        return jax.tree.unflatten(structure, [part.reshape(y.shape) for part, y in parts])

    @functools.wraps(rule.forward)
    def forward(*arrays, **values):
        tree, residuals = rule.forward(*arrays, **values)
        return join(tree), residuals

    def backward(residuals, dy, **values):
        return rule.backward(residuals, split(dy), **values)

    changed = rule.replace(forward=forward, backward=backward)
    if (plain := rule.reference) is None:
        return changed
    return changed.replace(reference=functools.wraps(plain)(lambda *a, **v: join(plain(*a, **v))))


def _key(key: Any) -> Any:
    if key is None:
        return jax.random.key(0)
    if not hasattr(key, "dtype") or not (_is_key(key) or key.dtype == jnp.uint32):
        raise TypeError(f"verify: key must be a jax key, as of jax.random.key(0), got {key!r}")
    return key


def _of_layer(layer: Layer, x, key, train: bool) -> Subject:
    x = np.asarray(x)
    if x.dtype == object:
        raise TypeError("verify: x must be an array of numbers, got dtype object")
    x = np.asarray(jnp.asarray(x))  # of the dtype that the layer would see
    if x.ndim < 1:
        raise ValueError(f"verify: x must have an axis of samples, got shape {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"verify: x of a layer must be floating point, got {x.dtype}")
    params, state = quick_jit(lambda key: layer.init(key, x.shape[1:])[:2])(key)
    return _at_parameters(layer, _disturbed(params), state, x, key, train)


def _at_parameters(layer: Layer, params, state, x: np.ndarray, key, train: bool) -> Subject:
    arrays, structure = jax.tree.flatten((params, x))
    labels = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]

    def forward(values):
        params, x = jax.tree.unflatten(structure, values)
        output, _, residuals = layer.forward(params, _like(state, x), x, train=train, key=key)
        return output, residuals

    def backward(residuals, dy):
        result = layer.backward(residuals, dy)
        if not isinstance(result, tuple) or jax.tree.structure(result) != structure:
            raise StructureError(
                f"backward must return (dparams, dx) of structure {structure}, got {jax.tree.structure(result)}"
            )
        return _arrays(jax.tree.leaves(result), [*labels, "x"])

    def plain(values):
        params, x = jax.tree.unflatten(structure, values)
        return layer.plain(params, _like(state, x), x, train=train, key=key)[0]

    return Subject(
        layer.name,
        (*labels, "x"),
        tuple(map(np.asarray, arrays)),
        (*(None for _ in labels), 0),
        forward,
        quick_jit(lambda values: forward(values)[0]),
        backward,
        plain,
        lambda samples: _at_parameters(layer, params, state, x[samples], key, train),
        _declares(layer),
        chained=_rules_in(layer) > 1,
    )


def _declares(layer: Layer) -> bool:
    return (layer.rule is not None and layer.rule.reference is not None) or any(map(_declares, layer.layers))


def require_array_residuals(subject: Subject) -> None:
    """What a rule saves goes through jax, which takes arrays and numbers alone."""
    found = {}
    values = [a.astype(np.float64) for a in subject.arrays]
    jax.eval_shape(lambda values: found.update(saved=subject.forward(values)[1]), values)
    for path, leaf in jax.tree.leaves_with_path(found["saved"]):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            place = jax.tree_util.keystr(path)
            raise StructureError(
                f"residuals must be arrays, residuals{place} is {_kind(leaf)}; Static wraps what is none"
            )


def _rules_in(layer: Layer) -> int:
    return (layer.rule is not None) + sum(map(_rules_in, layer.layers))


def _arrays(cotangents: list, names: list[str]) -> list:
    for cotangent, name in zip(cotangents, names, strict=True):
        if cotangent is not None and not hasattr(cotangent, "dtype") and not isinstance(cotangent, int | float):
            raise StructureError(f"backward's cotangent of {name} must be an array, got {_kind(cotangent)}")
    return cotangents


def _kind(value: Any) -> str:
    if isinstance(value, jax.Array):
        return "an array"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


def _disturbed(params):
    """Initial parameters, moved: a bias of 0 or a scale of 1 would hide a backward pass that forgets it."""
    generator = np.random.default_rng(0)

    def move(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        scale = float(np.std(np.asarray(leaf, np.float64))) or 1.0
        return leaf + jnp.asarray(0.2 * scale * generator.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(move, params)


def _like(state, x):
    """The state's floats in the dtype of the check."""
    return jax.tree.map(lambda s: s.astype(x.dtype) if jnp.issubdtype(s.dtype, jnp.inexact) else s, state)


def _is_key(array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
