"""Layer: parameters, state, a forward pass and the backward pass written for it; what makes one of a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.handwritten import call_by_hand
from jaxcnn.rule import Rule, Static, checked_cotangent, describe, equally_varying
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


class LayerResiduals(NamedTuple):
    saved: Any  # the rule's own residuals
    dtype: Static  # x's, in which dx is: the computation's may be another


def from_rule(
    rule: Rule,
    name: str,
    parameters: Mapping[str, Callable[..., jax.Array]] | None = None,
    *,
    state: Mapping[str, Callable[..., jax.Array]] | None = None,
    update: Callable[[dict, jax.Array], dict] | None = None,
    draws: bool = False,
    images: bool = False,
    spatial_axes: int = 2,
    **static: Any,
) -> Layer:
    """The layer that applies a rule to x, its parameters, its state and a key, in this order.

    Computation follows the parameters: an x of another floating dtype is cast to theirs, and dx cast back.

    Args:
      parameters: for each a name and a function (key, input_shape) -> initial value.
      state: likewise, for the arrays that are kept but not trained; their cotangents are dropped.
      update: (state, x) -> the new state; the state stays when None.
      draws: whether the rule's last array is a key.
      images: whether the input must be N×H×W×C; a rule may read fewer axes otherwise.
      spatial_axes: how many axes these images have; 1 for signals N×W×C, 3 for volumes N×D×H×W×C.
      static: the rule's static arguments.

    >>> from jaxcnn import sigmoid
    >>> from_rule(sigmoid, "sigmoid").init(jax.random.key(0), (4, 4, 2))
    ({}, {}, (4, 4, 2))
    """
    parameters, kept = dict(parameters or {}), dict(state or {})
    axes = (*WORDS[spatial_axes].axes.split("×"), "C")

    def init(key, input_shape):
        input_shape = sizes(name, input_shape)
        if images and len(input_shape) != len(axes):
            raise ValueError(f"{name}: input_shape must be ({', '.join(axes)}), without N, got {input_shape}")
        makers = parameters | kept
        keys = jax.random.split(key, max(len(makers), 1))
        made = {n: make(k, input_shape) for (n, make), k in zip(makers.items(), keys, strict=False)}
        params, state = ({n: made[n] for n in names} for names in (parameters, kept))
        dtype = jax.tree.leaves(params)[0].dtype if params else jnp.result_type(float)
        one = jax.ShapeDtypeStruct((1, *input_shape), dtype)
        y = jax.eval_shape(lambda x, params, state: forward(params, state, x)[0], one, params, state)
        return params, state, y.shape[1:]

    def arrays(params, state, x, key):
        if images and x.ndim != 1 + len(axes):
            raise ValueError(f"{name}: x must be N×{'×'.join(axes)}, got shape {x.shape}")
        if draws and key is None:
            raise ValueError(f"{name}: got no key; training needs one: forward(params, state, x, train=True, key=key)")
        for argument, given, names in (("params", params, parameters), ("state", state, kept)):
            if not set(names) <= set(given):
                got = ", ".join(given) or "nothing"
                raise ValueError(f"{name}: {argument} must have {', '.join(names)}, got {got}")
        keys = (key,) if draws else ()
        return rule.bind(x, *(params[p] for p in parameters), *(state[s] for s in kept), *keys, **static)

    def forward(params, state, x, *, train=False, key=None):
        dtype, x = x.dtype, _following(params, x)
        given, values = arrays(params, state, x, key)
        y, residuals = rule.forward(*given, **values)
        return y, state if update is None else update(state, x), LayerResiduals(residuals, Static(dtype))

    def backward(residuals, dy):
        dx, *gradients = rule.backward(residuals.saved, dy, **defaults)
        # Those of a bias that is absent, of the state and of a key come after the parameters' own: dropped.
        return dict(zip(parameters, gradients, strict=False)), dx.astype(residuals.dtype.value)

    def reference(params, state, x, *, train=False, key=None):
        x = _following(params, x)
        given, values = arrays(params, state, x, key)
        return rule.plain(*given, **values), state if update is None else update(state, x)

    defaults = rule.static(**static)
    return Layer(name, init, forward, backward, rule, reference=reference)


def _following(params: dict, x: Any) -> Any:
    """x in the parameters' dtype; what is no float, or fits no single dtype, is left to the rule to refuse."""
    dtypes = {p.dtype for p in params.values()}
    if len(dtypes) != 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return x.astype(dtypes.pop())


def Identity(*, name: str = "identity") -> Layer:
    """x itself: the way around in a residual block, a branch that does nothing. No parameters.

    >>> Identity().init(jax.random.key(0), (4, 4, 2))
    ({}, {}, (4, 4, 2))
    """

    def forward(x):
        return x, ()

    def backward(residuals, dy):
        return (dy,)

    return from_rule(Rule(forward, backward, "identity", batch_axes=(0,)), name)


class ModeResiduals(NamedTuple):
    saved: Any  # those of the layer that ran
    train: Static  # which one did: its backward pass belongs to them


def by_mode(training: Layer, otherwise: Layer) -> Layer:
    """One layer in training, another outside of it; the parameters and the state are those that `otherwise` makes.

    >>> from jaxcnn import ReLU, Sigmoid
    >>> layer = by_mode(ReLU(), Sigmoid())
    >>> x = jnp.zeros(2)
    >>> layer.forward({}, {}, x, train=True)[0], layer.forward({}, {}, x)[0]
    (Array([0., 0.], dtype=float32), Array([0.5, 0.5], dtype=float32))
    """

    def chosen(train):
        return training if train else otherwise

    def forward(params, state, x, *, train=False, key=None):
        y, new_state, saved = chosen(train).forward(params, state, x, train=train, key=key)
        return y, new_state, ModeResiduals(saved, Static(bool(train)))

    def backward(residuals, dy):
        return chosen(residuals.train.value).backward(residuals.saved, dy)

    def reference(params, state, x, *, train=False, key=None):
        return chosen(train).plain(params, state, x, train=train, key=key)

    return Layer(training.name, otherwise.init, forward, backward, training.rule, reference=reference)


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
            hint = "; jaxcnn.layers.from_rule makes a layer of a rule" if isinstance(layer, Rule) else hint
            raise TypeError(f"{function}: takes Layers, got {getattr(layer, '__name__', type(layer).__name__)}{hint}")


def sizes(function: str, input_shape: Any) -> tuple[int, ...]:
    """The shape without N, checked."""
    if not isinstance(input_shape, tuple | list):
        raise TypeError(f"{function}: input_shape must be the sizes without N, as (28, 28, 1), got {input_shape!r}")
    return tuple(positive(function, "input_shape", size) for size in input_shape)


def positive(function: str, argument: str, value: Any) -> int:
    if not is_whole(value):
        raise TypeError(f"{function}: {argument} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{function}: {argument} must be at least 1, got {value!r}")
    return int(value)
