"""Layers made of layers: one after the other, side by side."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.layers.layer import Identity, Layer, require_layers, sizes
from jaxcnn.rule import Rule, Static
from jaxcnn.rules.join import add, concatenate

JOINS = {"sum": add, "concatenate": concatenate}


def sequential(*layers: Layer, name: str = "sequential") -> Layer:
    """The layers one after the other; its backward pass is the chain of the source's theory part.

    Of several layers with one name, each gets its number: conv2d_1, conv2d_2, and so on. `params` and `state` have an
    entry, by that name, for each layer that has any. Each layer gets a key of its own.

    Raises:
      ValueError: no layer. TypeError: something that is no Layer.

    Source: the course text, part 2 "Backprop Theory".

    >>> from jaxcnn import Conv2D, Dense, Flatten, ReLU
    >>> network = sequential(Conv2D(4, 3), ReLU(), Flatten(), Dense(10))
    >>> params, state, shape = network.init(jax.random.key(0), (8, 8, 1))
    >>> shape, sorted(params)
    ((10,), ['conv2d', 'dense'])
    """
    require_layers("sequential", layers)
    if not layers:
        raise ValueError("sequential: got no layer, at least one is required")
    names = _unique("sequential", [layer.name for layer in layers])

    def init(key, input_shape):
        params, state, shape = {}, {}, sizes(name, input_shape)
        for i, (n, layer) in enumerate(zip(names, layers, strict=True)):
            p, s, shape = layer.init(jax.random.fold_in(key, i), shape)
            params |= {n: p} if p else {}
            state |= {n: s} if s else {}
        return params, state, shape

    def run(passes, params, state, x, train, key):
        new_state, kept = {}, []
        for i, (n, one) in enumerate(zip(names, passes, strict=True)):
            layer_key = None if key is None else jax.random.fold_in(key, i)
            x, s, *residuals = one(params.get(n, {}), state.get(n, {}), x, train=train, key=layer_key)
            new_state |= {n: s} if s else {}
            kept += residuals
        return x, new_state, tuple(kept)

    def forward(params, state, x, *, train=False, key=None):
        return run([layer.forward for layer in layers], params, state, x, train, key)

    def reference(params, state, x, *, train=False, key=None):
        return run([layer.plain for layer in layers], params, state, x, train, key)[:2]

    # dL/da^(l-1) = dL/da^l · da^l/da^(l-1): each layer turns the cotangent of its output into that of its input, last
    # to first, and on the way gives the gradient of its own parameters.
    def backward(residuals, dy):
        dparams = {}
        for n, layer, saved in reversed(list(zip(names, layers, residuals, strict=True))):
            gradients, dy = layer.backward(saved, dy)
            dparams |= {n: gradients} if gradients else {}
        return dparams, dy

    rebuild = functools.partial(sequential, name=name)
    return Layer(name, init, forward, backward, layers=layers, reference=reference, rebuild=rebuild)


class ParallelResiduals(NamedTuple):
    branches: tuple[Any, ...]  # each layer's own
    joined: Any  # the join's own
    dtypes: Static  # of the branches' outputs: they are cast to one, and dy back


def parallel(
    *layers: Layer, join: str | Rule = "sum", names: Sequence[str] | None = None, name: str = "parallel"
) -> Layer:
    """The layers side by side, each of them given x, their outputs joined.

    Names, parameters, state and keys as for `sequential`. Outputs of several floating dtypes are cast to the one that
    holds them all.

    Args:
      join: "sum", "concatenate" (the channels side by side), or a rule of as many arrays as there are layers.
      names: what the layers are called among the parameters; their own names when None.

    Raises:
      ValueError: no layer, an unknown join, another number of names; at init, outputs that do not fit together.
      TypeError: something that is no Layer, a rule of another number of arrays.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015, figure 2, by concatenation.

    >>> from jaxcnn import Conv2D, MaxPool
    >>> inception = parallel(Conv2D(4, 1), Conv2D(8, 3), MaxPool(3, stride=1, padding="SAME"), join="concatenate")
    >>> inception.init(jax.random.key(0), (8, 8, 2))[2]
    (8, 8, 14)
    """
    require_layers("parallel", layers)
    if not layers:
        raise ValueError("parallel: got no layer, at least one is required")
    if names is not None and len(names) != len(layers):
        raise ValueError(f"parallel: names must be {len(layers)}, one for each layer, got {names!r}")
    rule = _join(join, len(layers))
    branches = dict(zip(_unique("parallel", names or [layer.name for layer in layers]), layers, strict=True))

    def init(key, input_shape):
        parts = {n: b.init(jax.random.fold_in(key, i), input_shape) for i, (n, b) in enumerate(branches.items())}
        shapes = {n: shape for n, (_, _, shape) in parts.items()}
        outputs = [jax.ShapeDtypeStruct((1, *shape), jnp.result_type(float)) for shape in shapes.values()]
        try:
            joined = jax.eval_shape(lambda *ys: rule.forward(*ys)[0], *outputs)
        except ValueError as error:
            given = ", ".join(f"{n} {shape}" for n, shape in shapes.items())
            raise ValueError(f"{name}: the branches give {given}, which do not fit together: {error}") from None
        params, state = ({n: part[i] for n, part in parts.items() if part[i]} for i in (0, 1))
        return params, state, joined.shape[1:]

    def run(passes, params, state, x, train, key):
        """(the branches' outputs in one dtype, new state, residuals, dtypes of the outputs)"""
        outputs, new_state, kept = [], {}, []
        for i, (n, one) in enumerate(zip(branches, passes, strict=True)):
            branch_key = None if key is None else jax.random.fold_in(key, i)
            y, s, *residuals = one(params.get(n, {}), state.get(n, {}), x, train=train, key=branch_key)
            outputs.append(y)
            new_state |= {n: s} if s else {}
            kept += residuals
        common = jnp.result_type(*outputs)
        return [y.astype(common) for y in outputs], new_state, tuple(kept), Static(tuple(y.dtype for y in outputs))

    def forward(params, state, x, *, train=False, key=None):
        passes = [branch.forward for branch in branches.values()]
        outputs, new_state, kept, dtypes = run(passes, params, state, x, train, key)
        y, joined = rule.forward(*outputs)
        return y, new_state, ParallelResiduals(kept, joined, dtypes)

    def reference(params, state, x, *, train=False, key=None):
        passes = [branch.plain for branch in branches.values()]
        outputs, new_state, _, _ = run(passes, params, state, x, train, key)
        return rule.plain(*outputs), new_state

    # y = join(f(x), g(x), …): the join turns dy into a cotangent for each branch, and x, which goes into all of them,
    # gets the sum of what they return.
    def backward(residuals, dy):
        cotangents = rule.backward(residuals.joined, dy, **rule.static())
        dparams, parts = {}, []
        for n, saved, d, dtype in zip(branches, residuals.branches, cotangents, residuals.dtypes.value, strict=True):
            gradients, dx = branches[n].backward(saved, d.astype(dtype))
            dparams |= {n: gradients} if gradients else {}
            parts.append(dx)
        return dparams, add.forward(*parts)[0]

    rebuild = functools.partial(parallel, join=join, names=tuple(branches), name=name)
    return Layer(name, init, forward, backward, layers=layers, reference=reference, rebuild=rebuild)


def residual(layer: Layer, shortcut: Layer | None = None, *, name: str = "residual") -> Layer:
    """layer(x) + x, or layer(x) + shortcut(x) where the shapes differ (He et al. 2016).

    The same as `parallel(layer, shortcut)`, the identity where there is no shortcut; the parameters are called "layer"
    and "shortcut".

    Raises:
      ValueError: at init, when the two sides have different shapes. TypeError: something that is no Layer.

    >>> from jaxcnn import Conv2D
    >>> residual(Conv2D(3, 3)).init(jax.random.key(0), (8, 8, 3))[2]
    (8, 8, 3)
    """
    sides = layer, Identity() if shortcut is None else shortcut
    require_layers("residual", sides)
    return parallel(*sides, names=("layer", "shortcut"), name=name)


def _join(join: str | Rule, count: int) -> Rule:
    if not isinstance(join, Rule):
        if join not in JOINS:
            raise ValueError(f"parallel: join must be one of {', '.join(JOINS)}, or a Rule; got {join!r}")
        return JOINS[join]
    signature = inspect.signature(join)
    try:
        signature.bind(*range(count))
    except TypeError:
        required = f"a rule of {count} arrays, one for each layer"
        raise TypeError(f"parallel: join must be {required}, got {join.name}{signature}") from None
    return join


def _unique(function: str, names: Sequence[str]) -> tuple[str, ...]:
    total, seen, unique = Counter(names), Counter(), []
    for name in names:
        seen[name] += 1
        unique.append(f"{name}_{seen[name]}" if total[name] > 1 else name)
    if len(set(unique)) < len(unique):
        raise ValueError(f"{function}: layer names must stay distinct when numbered, got {', '.join(unique)}")
    return tuple(unique)
