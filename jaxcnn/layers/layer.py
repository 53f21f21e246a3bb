"""Layer: parameters, state, a forward pass and the backward pass written for it; what makes one of a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.handwritten import call_by_hand
from jaxcnn.rule import Rule, checked_cotangent, describe, equally_varying
from jaxcnn.rules.window import WORDS, is_whole


@dataclasses.dataclass(frozen=True)
class Layer:
    """A function of parameters and input, with the backward pass written for it.

        init(key, input_shape)                                -> (params, state, output_shape)   shapes without N
        forward(params, state, x, *, train=False, key=None)   -> (y, new_state, residuals)
        backward(residuals, dy)                               -> (dparams, dx)

    `params` is a nested dict with readable names; `dparams` has its structure. `state` is what is kept but not
    trained. What the backward pass needs of the weights is in the residuals.

    Plain `jax.grad` through `forward` is autodiff of the plain forward passes, the reference: it does not see
    `backward`. `differentiable(layer)` is the function for which `jax.grad` runs the hand-written passes.

    Fields:
      name: what the layer is called among the parameters of a network.
      rule: the rule it applies, or None. layers: the layers it is made of. With these a network can be walked.
      reference: as forward, but without residuals -> (y, new_state): a function whose `jax.vjp` is the gradient that
        `backward` intends (`Rule.reference`); the forward when None.
      rebuild: of one that is made of layers, (*layers) -> the same made of these instead: `summary` looks inside by it.

    >>> from jaxcnn import Dense
    >>> layer = Dense(3)
    >>> params, state, shape = layer.init(jax.random.key(0), (5,))
    >>> y, state, residuals = layer.forward(params, state, jnp.ones((2, 5)))
    >>> dparams, dx = layer.backward(residuals, jnp.ones_like(y))
    >>> shape, dx.shape, jax.tree.map(jnp.shape, dparams)
    ((3,), (2, 5), {'bias': (3,), 'weights': (5, 3)})
    """

    name: str
    init: Callable[..., tuple[dict, dict, tuple[int, ...]]]
    forward: Callable[..., tuple[Any, dict, Any]]
    backward: Callable[[Any, Any], tuple[dict, Any]]
    rule: Rule | None = None
    layers: tuple[Layer, ...] = ()
    reference: Callable[..., tuple[Any, dict]] | None = None
    rebuild: Callable[..., Layer] | None = None

    def plain(self, params, state, x, *, train: bool = False, key=None):
        """(y, new_state) by the reference, or by the forward where there is none."""
        if self.reference is not None:
            return self.reference(params, state, x, train=train, key=key)
        return self.forward(params, state, x, train=train, key=key)[:2]

    def __repr__(self) -> str:
        return f"Layer({self.name})"


def from_rule(
    rule: Rule,
    name: str,
    parameters: Mapping[str, Callable[..., jax.Array]] | None = None,
    *,
    images: bool = False,
    spatial_axes: int = 2,
    **static: Any,
) -> Layer:
    """The layer that applies a rule: its first array is the input, the others are the parameters, in order.

    Args:
      parameters: for each a name and a function (key, input_shape) -> initial value.
      images: whether the input must be N×H×W×C; a rule may read fewer axes otherwise.
      spatial_axes: how many axes these images have; 1 for signals N×W×C, 3 for volumes N×D×H×W×C.
      static: the rule's static arguments.

    >>> from jaxcnn import sigmoid
    >>> from_rule(sigmoid, "sigmoid").init(jax.random.key(0), (4, 4, 2))
    ({}, {}, (4, 4, 2))
    """
    parameters = dict(parameters or {})
    axes = (*WORDS[spatial_axes].axes.split("×"), "C")

    def init(key, input_shape):
        if images and len(input_shape) != len(axes):
            raise ValueError(f"{name}: input_shape must be ({', '.join(axes)}), without N, got {tuple(input_shape)}")
        keys = jax.random.split(key, max(len(parameters), 1))
        params = {p: make(k, tuple(input_shape)) for (p, make), k in zip(parameters.items(), keys, strict=False)}
        dtype = jax.tree.leaves(params)[0].dtype if params else jnp.result_type(float)
        one = jax.ShapeDtypeStruct((1, *input_shape), dtype)
        y = jax.eval_shape(lambda x, params: forward(params, {}, x)[0], one, params)
        return params, {}, y.shape[1:]

    def arrays(params, x):
        if images and x.ndim != 1 + len(axes):
            raise ValueError(f"{name}: x must be N×{'×'.join(axes)}, got shape {x.shape}")
        return rule.bind(x, *(params[p] for p in parameters), **static)

    def forward(params, state, x, *, train=False, key=None):
        given, values = arrays(params, x)
        y, residuals = rule.forward(*given, **values)
        return y, state, residuals

    def backward(residuals, dy):
        dx, *gradients = rule.backward(residuals, dy, **defaults)
        return dict(zip(parameters, gradients, strict=False)), dx  # a bias that is absent has a gradient too: dropped

    def reference(params, state, x, *, train=False, key=None):
        given, values = arrays(params, x)
        return rule.plain(*given, **values), state

    defaults = rule.static(**static)
    return Layer(name, init, forward, backward, rule, reference=reference)


def differentiable(layer: Layer) -> Callable[..., Any]:
    """The layer as a function (params, state, x, *, train=False, key=None) -> (y, new_state) that jax differentiates
    by the hand-written backward passes, and in forward mode through the plain forward passes.

    `jax.grad` through `layer.forward` instead is autodiff of the plain forward passes. `state` and `new_state` are not
    trained and carry no gradient.

    >>> from jaxcnn import Dense
    >>> layer = Dense(3)
    >>> params, state, _ = layer.init(jax.random.key(0), (5,))
    >>> f = differentiable(layer)
    >>> jax.grad(lambda p: f(p, state, jnp.ones((2, 5)))[0].sum())(params)["bias"]
    Array([2., 2., 2.], dtype=float32)
    """
    require_layers("differentiable", [layer])

    def call(params, state, x, *, train=False, key=None):
        params, x = equally_varying((params, jax.tree.map(jnp.asarray, x)))
        trained, structure = jax.tree.flatten((params, x))
        rest, others = jax.tree.flatten((jax.lax.stop_gradient(state), key))
        described, names = tuple(map(describe, trained)), _names(layer.name, structure)

        def run(passes, arrays):
            params, x = jax.tree.unflatten(structure, arrays[: len(trained)])
            state, key = jax.tree.unflatten(others, arrays[len(trained) :])
            y, new_state, *residuals = passes(params, state, x, train=train, key=key)
            return (y, jax.lax.stop_gradient(new_state)), *residuals

        def backward(residuals, cotangents):
            gradients, got = jax.tree.flatten(layer.backward(residuals, cotangents[0]))
            if got != structure:
                raise TypeError(f"{layer.name}: backward must return (dparams, dx) of structure {structure}, got {got}")
            return [*map(checked_cotangent, names, gradients, described), *(None for _ in rest)]

        return call_by_hand(
            lambda *arrays: run(layer.forward, arrays), backward, lambda *arrays: run(layer.plain, arrays)[0],
            [*trained, *rest],
        )  # fmt: skip

    return call


def _names(layer: str, structure) -> list[str]:
    """What errors call the gradients of (params, x), leaf by leaf."""
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    paths = [
        jax.tree_util.keystr(path[1:], simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(numbered)
    ]
    return [f"{layer}: backward's gradient of {path or 'x'}" for path in paths]


def require_layers(function: str, layers) -> None:
    for layer in layers:
        if not isinstance(layer, Layer):
            hint = "; layers are made by calls: ReLU()" if callable(layer) else ""
            hint = f"; give them one by one: {function}(*layers)" if isinstance(layer, list | tuple) else hint
            raise TypeError(f"{function}: takes Layers, got {getattr(layer, '__name__', type(layer).__name__)}{hint}")


def positive(function: str, argument: str, value: Any) -> int:
    if not is_whole(value):
        raise TypeError(f"{function}: {argument} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{function}: {argument} must be at least 1, got {value!r}")
    return int(value)
