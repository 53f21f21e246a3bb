"""What is verified, a rule or a layer, in one form: named float arrays, a hand-written pass, a plain one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule


class StructureError(Exception):
    """A backward pass that gave no set of cotangents at all, or not one that fits its arrays."""


class Subject(NamedTuple):
    """Both passes take the list of float arrays; `hand` returns (output, pullback: dy -> list of cotangents)."""

    name: str
    arguments: tuple[str, ...]  # one name for each float array
    arrays: tuple[np.ndarray, ...]
    hand: Callable[[list], tuple[Any, Callable[[Any], list]]]
    plain: Callable[[list], Any]


def subject_of(rule_or_layer: Rule | Layer, arrays: tuple, key, train: bool, static: dict) -> Subject:
    """Raises TypeError or ValueError for a bad call, the only fault that is the caller's."""
    if isinstance(rule_or_layer, Rule):
        return _of_rule(rule_or_layer, arrays, static)
    if not isinstance(rule_or_layer, Layer):
        raise TypeError(f"verify: takes a Rule or a Layer, got {type(rule_or_layer).__name__}")
    if len(arrays) != 1 or static:
        raise TypeError("verify: a layer is verified with one array, x, and no static arguments")
    return _of_layer(rule_or_layer, arrays[0], key, train)


def _of_rule(rule: Rule, args: tuple, static: dict) -> Subject:
    given, static = rule.bind(*args, **static)
    given = tuple(None if a is None else a if _is_key(a) else np.asarray(a) for a in given)
    floats = [i for i, a in enumerate(given) if a is not None and jnp.issubdtype(a.dtype, jnp.inexact)]
    names = rule.argument_names(len(given))

    def fill(values: list) -> list:
        full = list(given)
        for i, value in zip(floats, values, strict=True):
            full[i] = value
        return full

    def hand(values):
        result = rule.forward(*fill(values), **static)
        if not isinstance(result, tuple) or len(result) != 2:
            raise StructureError(f"forward must return (output, residuals), got {type(result).__name__}")
        output, residuals = result

        def pullback(dy):
            cotangents = rule.backward(residuals, dy, **static)
            if not isinstance(cotangents, tuple) or len(cotangents) != len(given):
                got = f"a tuple of {len(cotangents)}" if isinstance(cotangents, tuple) else type(cotangents).__name__
                raise StructureError(f"backward must return a tuple of {len(given)} cotangents, got {got}")
            return [cotangents[i] for i in floats]

        return output, pullback

    return Subject(
        rule.name,
        tuple(names[i] for i in floats),
        tuple(np.asarray(given[i]) for i in floats),
        hand,
        lambda values: rule.plain(*fill(values), **static),
    )


def _of_layer(layer: Layer, x, key, train: bool) -> Subject:
    x = np.asarray(x)
    if x.ndim < 1:
        raise ValueError(f"verify: x must have an axis of samples, got shape {x.shape}")
    key = jax.random.key(0) if key is None else key
    params, state, _ = layer.init(key, x.shape[1:])
    paths, structure = jax.tree.flatten((params, x))
    labels = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(params)]

    def hand(values):
        params, x = jax.tree.unflatten(structure, values)
        output, _, residuals = layer.forward(params, _like(state, x), x, train=train, key=key)

        def pullback(dy):
            result = layer.backward(residuals, dy)
            if not isinstance(result, tuple) or jax.tree.structure(result) != structure:
                raise StructureError(
                    f"backward must return (dparams, dx) of structure {structure}, got {jax.tree.structure(result)}"
                )
            return jax.tree.leaves(result)

        return output, pullback

    def plain(values):
        params, x = jax.tree.unflatten(structure, values)
        return layer.plain(params, _like(state, x), x, train=train, key=key)[0]

    return Subject(layer.name, (*labels, "x"), tuple(map(np.asarray, paths)), hand, plain)


def _like(state, x):
    """The state's floats in the dtype of the check."""
    return jax.tree.map(lambda s: s.astype(x.dtype) if jnp.issubdtype(s.dtype, jnp.inexact) else s, state)


def _is_key(array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
