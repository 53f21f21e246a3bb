"""Layers made of layers: one after the other, side by side."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence

import jax

from jaxcnn.layers.layer import Layer, require_layers


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
    names = _unique([layer.name for layer in layers])

    def init(key, input_shape):
        params, state, shape = {}, {}, tuple(input_shape)
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


def residual(layer: Layer, shortcut: Layer | None = None, *, name: str = "residual") -> Layer:
    """layer(x) + x, or layer(x) + shortcut(x) where the shapes differ (He et al. 2016).

    Raises:
      ValueError: at init, when the two sides have different shapes. TypeError: something that is no Layer.

    >>> from jaxcnn import Conv2D
    >>> residual(Conv2D(3, 3)).init(jax.random.key(0), (8, 8, 3))[2]
    (8, 8, 3)
    """
    sides = {"layer": layer} if shortcut is None else {"layer": layer, "shortcut": shortcut}
    require_layers("residual", sides.values())

    def init(key, input_shape):
        parts = {n: s.init(jax.random.fold_in(key, i), input_shape) for i, (n, s) in enumerate(sides.items())}
        shapes = [shape for _, _, shape in parts.values()] + ([tuple(input_shape)] if shortcut is None else [])
        if len(set(shapes)) > 1:
            raise ValueError(
                f"residual: {layer.name} gives {shapes[0]}, the shortcut {shapes[1]}; they are added and must be equal"
            )
        return {n: p for n, (p, _, _) in parts.items() if p}, {n: s for n, (_, s, _) in parts.items() if s}, shapes[0]

    def run(passes, params, state, x, train, key):
        results = {}
        for i, (n, one) in enumerate(passes.items()):
            side_key = None if key is None else jax.random.fold_in(key, i)
            results[n] = one(params.get(n, {}), state.get(n, {}), x, train=train, key=side_key)
        y = sum(result[0] for result in results.values()) + (x if shortcut is None else 0)
        return y, {n: r[1] for n, r in results.items() if r[1]}, tuple(r[2] for r in results.values() if len(r) > 2)

    def forward(params, state, x, *, train=False, key=None):
        return run({n: s.forward for n, s in sides.items()}, params, state, x, train, key)

    def reference(params, state, x, *, train=False, key=None):
        return run({n: s.plain for n, s in sides.items()}, params, state, x, train, key)[:2]

    # y = f(x) + g(x): each side gets dy, and x gets what both return.
    def backward(residuals, dy):
        dparams, dx = {}, dy if shortcut is None else 0
        for (n, side), saved in zip(sides.items(), residuals, strict=True):
            gradients, d = side.backward(saved, dy)
            dparams |= {n: gradients} if gradients else {}
            dx = dx + d
        return dparams, dx

    rebuild, layers = functools.partial(residual, name=name), tuple(sides.values())
    return Layer(name, init, forward, backward, layers=layers, reference=reference, rebuild=rebuild)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    total, seen, unique = Counter(names), Counter(), []
    for name in names:
        seen[name] += 1
        unique.append(f"{name}_{seen[name]}" if total[name] > 1 else name)
    if len(set(unique)) < len(unique):
        raise ValueError(f"sequential: layer names must stay distinct when numbered, got {', '.join(unique)}")
    return tuple(unique)
