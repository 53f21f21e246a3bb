"""Layers: rules with parameters, and networks, which are layers made of layers."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxcnn.rule import Rule, Static, checked_cotangent, describe, equally_varying
from jaxcnn.rules.activation import relu, sigmoid
from jaxcnn.rules.convolution import conv2d
from jaxcnn.rules.dense import dense
from jaxcnn.rules.pooling import max_pool
from jaxcnn.rules.shape import flatten
from jaxcnn.rules.window import is_whole, pair

Initializer = initializers.Initializer
HE_NORMAL = initializers.he_normal(in_axis=-1, out_axis=0)  # for filters n×h×w×C
GLOROT_UNIFORM = initializers.glorot_uniform()


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
    **static: Any,
) -> Layer:
    """The layer that applies a rule: its first array is the input, the others are the parameters, in order.

    Args:
      parameters: for each a name and a function (key, input_shape) -> initial value.
      images: whether the input must be N×H×W×C; a rule may read fewer axes otherwise.
      static: the rule's static arguments.

    >>> from_rule(sigmoid, "sigmoid").init(jax.random.key(0), (4, 4, 2))
    ({}, {}, (4, 4, 2))
    """
    parameters = dict(parameters or {})

    def init(key, input_shape):
        if images and len(input_shape) != 3:
            raise ValueError(f"{name}: input_shape must be (H, W, C), without N, got {tuple(input_shape)}")
        keys = jax.random.split(key, max(len(parameters), 1))
        params = {p: make(k, tuple(input_shape)) for (p, make), k in zip(parameters.items(), keys, strict=False)}
        dtype = jax.tree.leaves(params)[0].dtype if params else jnp.result_type(float)
        one = jax.ShapeDtypeStruct((1, *input_shape), dtype)
        y = jax.eval_shape(lambda x, params: forward(params, {}, x)[0], one, params)
        return params, {}, y.shape[1:]

    def arrays(params, x):
        if images and x.ndim != 4:
            raise ValueError(f"{name}: x must be N×H×W×C, got shape {x.shape}")
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


def Conv2D(
    features: int,
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | tuple = "SAME",
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    bias: bool = True,
    filters_init: Initializer = HE_NORMAL,
    bias_init: Initializer = initializers.zeros,
    rule: Rule = conv2d,
    name: str = "conv2d",
) -> Layer:
    """Convolution, N×H×W×C -> N×Ho×Wo×features; the arguments are those of `conv2d`.

    Parameters: "filters" features×h×w×(C/groups), and "bias" (features,) unless bias=False. `size` is h = w or (h, w).
    The initial filters are He et al.'s (2015), made for the ReLU that follows.

    >>> Conv2D(32, 3, stride=2).init(jax.random.key(0), (28, 28, 1))[2]
    (14, 14, 32)
    """
    window = pair("Conv2D", "size", size)
    features, groups = _positive("Conv2D", "features", features), _positive("Conv2D", "groups", groups)

    def filters(key, shape):
        return filters_init(key, (features, *window, max(shape[-1] // groups, 1)))  # conv2d says what does not divide

    parameters = {"filters": filters}
    if bias:
        parameters["bias"] = lambda key, shape: bias_init(key, (features,))
    static = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return from_rule(rule, name, parameters, images=True, **static)


def Dense(
    features: int,
    *,
    bias: bool = True,
    weights_init: Initializer = GLOROT_UNIFORM,
    bias_init: Initializer = initializers.zeros,
    rule: Rule = dense,
    name: str = "dense",
) -> Layer:
    """Dense layer, (N, in) -> (N, features).

    Parameters: "weights" (in, features), and "bias" (features,) unless bias=False. The initial weights are Glorot and
    Bengio's (2010).

    >>> Dense(10).init(jax.random.key(0), (64,))[2]
    (10,)
    """
    features = _positive("Dense", "features", features)

    def weights(key, shape):
        if not shape:
            raise ValueError("Dense: input_shape must be (in,), without N, got ()")
        return weights_init(key, (shape[-1], features))

    parameters = {"weights": weights}
    if bias:
        parameters["bias"] = lambda key, shape: bias_init(key, (features,))
    return from_rule(rule, name, parameters)


def MaxPool(
    window: int | tuple[int, int] = 2,
    *,
    stride: int | tuple[int, int] | None = None,
    padding: str | tuple = "VALID",
    ties: str = "first",
    rule: Rule = max_pool,
    name: str = "max_pool",
) -> Layer:
    """Max-pooling; the arguments are those of `max_pool`. No parameters."""
    return from_rule(rule, name, images=True, window=window, stride=stride, padding=padding, ties=ties)


def ReLU(*, rule: Rule = relu, name: str = "relu") -> Layer:
    """The rectifier. No parameters."""
    return from_rule(rule, name)


def Sigmoid(*, rule: Rule = sigmoid, name: str = "sigmoid") -> Layer:
    """The logistic function. No parameters."""
    return from_rule(rule, name)


def Flatten(*, rule: Rule = flatten, name: str = "flatten") -> Layer:
    """N×H×W×C -> N×HWC. No parameters."""
    return from_rule(rule, name, images=True)


def sequential(*layers: Layer, name: str = "sequential") -> Layer:
    """The layers one after the other; its backward pass is the chain of the source's theory part.

    Of several layers with one name, each gets its number: conv2d_1, conv2d_2, and so on. `params` and `state` have an
    entry, by that name, for each layer that has any. Each layer gets a key of its own.

    Raises:
      ValueError: no layer. TypeError: something that is no Layer.

    Source: the course text, part 2 "Backprop Theory".

    >>> network = sequential(Conv2D(4, 3), ReLU(), Flatten(), Dense(10))
    >>> params, state, shape = network.init(jax.random.key(0), (8, 8, 1))
    >>> shape, sorted(params)
    ((10,), ['conv2d', 'dense'])
    """
    _require_layers("sequential", layers)
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

    return Layer(name, init, forward, backward, layers=layers, reference=reference)


def residual(layer: Layer, shortcut: Layer | None = None, *, name: str = "residual") -> Layer:
    """layer(x) + x, or layer(x) + shortcut(x) where the shapes differ (He et al. 2016).

    Raises:
      ValueError: at init, when the two sides have different shapes. TypeError: something that is no Layer.

    >>> residual(Conv2D(3, 3)).init(jax.random.key(0), (8, 8, 3))[2]
    (8, 8, 3)
    """
    sides = {"layer": layer} if shortcut is None else {"layer": layer, "shortcut": shortcut}
    _require_layers("residual", sides.values())

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

    return Layer(name, init, forward, backward, layers=tuple(sides.values()), reference=reference)


def differentiable(layer: Layer) -> Callable[..., Any]:
    """The layer as a function (params, state, x, *, train=False, key=None) -> (y, new_state) that jax differentiates
    by the hand-written backward passes.

    `jax.grad` through `layer.forward` instead is autodiff of the plain forward passes. `state` and `new_state` are not
    trained and carry no gradient.

    >>> layer = Dense(3)
    >>> params, state, _ = layer.init(jax.random.key(0), (5,))
    >>> f = differentiable(layer)
    >>> jax.grad(lambda p: f(p, state, jnp.ones((2, 5)))[0].sum())(params)["bias"]
    Array([2., 2., 2.], dtype=float32)
    """
    _require_layers("differentiable", [layer])

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def function(train, params, state, x, key):
        return layer.forward(params, state, x, train=train, key=key)[:2]

    def forward(train, params, state, x, key):
        residuals = layer.forward(params, state, x, train=train, key=key)[2]
        leaves, structure = jax.tree.flatten((params, x))
        # As in Rule: the output by the function again, so that its own derivative is the hand-written one.
        output = function(train, params, state, x, key)
        return output, (residuals, Static((structure, tuple(map(describe, leaves)))))

    def backward(train, saved, cotangents):
        residuals, (structure, arrays) = saved[0], saved[1].value
        gradients, got = jax.tree.flatten(layer.backward(residuals, cotangents[0]))
        if got != structure:
            raise TypeError(f"{layer.name}: backward must return (dparams, dx) of structure {structure}, got {got}")
        where = f"{layer.name}: backward's gradient of"
        names = [f"{where} {path}" for path in _paths(structure)]
        checked = map(checked_cotangent, names, gradients, arrays)
        dparams, dx = jax.tree.unflatten(structure, list(checked))
        return dparams, None, dx, None

    function.defvjp(forward, backward)

    def call(params, state, x, *, train=False, key=None):
        params, x = equally_varying((params, jax.tree.map(jnp.asarray, x)))
        return function(train, params, jax.lax.stop_gradient(state), x, key)

    return call


def _paths(structure) -> list[str]:
    """The names of the leaves of (params, x)."""
    numbered = jax.tree.unflatten(structure, range(structure.num_leaves))
    names = [
        jax.tree_util.keystr(path[1:], simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(numbered)
    ]
    return [name or "x" for name in names]


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    total, seen, unique = Counter(names), Counter(), []
    for name in names:
        seen[name] += 1
        unique.append(f"{name}_{seen[name]}" if total[name] > 1 else name)
    if len(set(unique)) < len(unique):
        raise ValueError(f"sequential: layer names must stay distinct when numbered, got {', '.join(unique)}")
    return tuple(unique)


def _require_layers(function: str, layers) -> None:
    for layer in layers:
        if not isinstance(layer, Layer):
            hint = "; layers are made by calls: ReLU()" if callable(layer) else ""
            hint = f"; give them one by one: {function}(*layers)" if isinstance(layer, list | tuple) else hint
            raise TypeError(f"{function}: takes Layers, got {getattr(layer, '__name__', type(layer).__name__)}{hint}")


def _positive(function: str, argument: str, value: Any) -> int:
    if not is_whole(value):
        raise TypeError(f"{function}: {argument} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{function}: {argument} must be at least 1, got {value!r}")
    return int(value)
