"""Rule: a forward pass, the backward pass written for it, and the differentiable function the two make."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import Any, Generic, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.handwritten import call_by_hand

P = ParamSpec("P")
Array = jax.Array | np.ndarray  # what a rule takes; its forward pass is given jax arrays


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A hashable Python value (a shape, a dtype) that travels inside residuals.

    A bare `int` among the residuals would turn into a traced array when they cross `jax.jit` or `jax.vmap`;
    wrapped, it is part of the tree's structure and stays what it is.

    >>> Static((2, 3)).value
    (2, 3)
    """

    value: Any


@dataclasses.dataclass(frozen=True)
class Rule(Generic[P]):
    """A function whose derivative is written by hand.

        forward(*arrays, **static)             -> (output, residuals)
        backward(residuals, dy, **static)      -> a tuple: one cotangent for each array parameter of forward, in order

    The positional parameters of `forward` are arrays (an optional one has the default `None`); the keyword-only
    ones are static: hashable Python values, the same for both passes. (Lists and NumPy arrays become tuples, real
    numbers that are not whole become floats.) `residuals` is whatever the backward pass needs, a tree of arrays
    (`Static` wraps what is no array). A cotangent has the shape and dtype of its array; `None` stands for the cotangent
    of an integer, boolean or key array, and only of those.

    Calling a rule gives forward's output; `jax.grad` of the call runs `backward`, under jit, vmap, grad of grad,
    `jax.checkpoint`, `lax.scan` and `shard_map` alike. Forward mode (`jax.jvp`, `jax.jacfwd`) differentiates the plain
    forward pass; `jax.hessian` combines the two. Rules are frozen and compare by (forward, backward).

    Args:
      forward, backward: the two passes, pure functions.
      name: what errors and reports call the rule; forward's name without `_forward` when not given.
      reference: a plain function (*arrays, **static) -> output, equal to the forward in value, whose `jax.vjp` is
        the gradient that `backward` intends, where that is a convention (the ties of a maximum). The plain forward
        when not given. Only `autodiff` and the verifier use it.
      batch_axes: for each array the axis of the samples, or None; for the verifier.

    Raises:
      TypeError: forward or backward is no function; on a call: arguments that do not fit forward's signature, an
        argument that is no array, a static one that is not hashable; under differentiation: a backward pass whose
        cotangents have the wrong number, shape or dtype.

    >>> def square_forward(x):
    ...     return x * x, x
    >>> def square_backward(x, dy):
    ...     return (2 * x * dy,)
    >>> square = Rule(square_forward, square_backward)
    >>> float(jax.grad(square)(3.0))
    6.0
    """

    forward: Callable[P, tuple[Any, Any]]
    backward: Callable[..., tuple[Any, ...]]
    name: str = dataclasses.field(default="", compare=False)
    _: dataclasses.KW_ONLY
    reference: Callable[..., Any] | None = dataclasses.field(default=None, compare=False)
    batch_axes: tuple[int | None, ...] | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        for argument in ("forward", "backward"):
            if not callable(getattr(self, argument)):
                raise TypeError(f"Rule: {argument} must be a function, got {type(getattr(self, argument)).__name__}")
        name = self.name or getattr(self.forward, "__name__", "rule").removesuffix("_forward")
        object.__setattr__(self, "name", name)
        signature = inspect.signature(self.forward)
        if all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in signature.parameters.values()):
            raise TypeError(f"Rule: forward must have a positional parameter, an array; got {name}{signature}")
        if self.batch_axes is not None:
            self._check_batch_axes(signature)
        # What `help`, `inspect.signature` and documentation tools read: the rule presents itself as its forward.
        self.__dict__.update(
            __name__=name,
            __qualname__=name,
            __module__=getattr(self.forward, "__module__", None),
            __doc__=self.forward.__doc__,
            __signature__=signature,
        )

    def _check_batch_axes(self, signature: inspect.Signature) -> None:
        axes, kinds = self.batch_axes, [p.kind for p in signature.parameters.values()]
        if not isinstance(axes, tuple) or not all(a is None or (type(a) is int and a >= 0) for a in axes):
            raise TypeError(f"Rule: batch_axes must be a tuple with an axis or None for each array, got {axes!r}")
        count = sum(k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for k in kinds)
        if len(axes) > count and inspect.Parameter.VAR_POSITIONAL not in kinds:
            raise ValueError(f"Rule: batch_axes must have an entry for each of the {count} arrays, got {axes}")

    def __repr__(self) -> str:
        return f"Rule({self.name})"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        arrays, static = self.bind(*args, **kwargs)
        arrays = equally_varying(arrays)
        described = tuple(map(describe, arrays))

        def forward(*arrays):
            return self._split(self.forward(*arrays, **static))  # pyright: ignore[reportCallIssue]

        def backward(residuals, dy):
            return self._checked(self.backward(residuals, dy, **static), described)

        return call_by_hand(forward, backward, functools.partial(self.plain, **static), arrays)

    def bind(self, *args: Any, **kwargs: Any) -> tuple[tuple[jax.Array | None, ...], dict[str, Hashable]]:
        """The arrays, one for each array parameter (None where absent), and all static values, defaults included."""
        bound = self._bound_arguments(*args, **kwargs)
        names, parameters = self.argument_names(len(bound.args)), self._signature.parameters
        optional = {n for n, p in parameters.items() if p.default is None}
        for n, array in zip(names, bound.args, strict=True):
            if array is None and n not in optional:
                raise TypeError(f"{self.name}: {n} must be an array, got None")
        arrays = tuple(as_array(self.name, n, a) for n, a in zip(names, bound.args, strict=True))
        return arrays, {n: _hashable(self.name, n, v) for n, v in bound.kwargs.items()}

    def _bound_arguments(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            keywords = ", ".join(n for n, p in self._signature.parameters.items() if p.kind is p.KEYWORD_ONLY)
            hint = f"; {keywords} are given by keyword" if keywords and "too many" in str(error) else ""
            raise TypeError(f"{self.name}: {error}{hint}") from None
        bound.apply_defaults()
        return bound

    def argument_names(self, count: int) -> list[str]:
        """The names of the first `count` arrays; those of a forward(*arrays) are numbered."""
        parameters = self._signature.parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return (names + [f"{p.name}[{i}]" for p in parameters if p.kind is p.VAR_POSITIONAL for i in range(count)])[
            :count
        ]

    def static(self, **given: Any) -> dict[str, Hashable]:
        """All static values, defaults included."""
        parameters = self._signature.parameters.values()
        arrays = [None for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return {n: _hashable(self.name, n, v) for n, v in self._bound_arguments(*arrays, **given).kwargs.items()}

    def replace(self, **changes: Any) -> Rule:
        """Another rule with some fields changed: `conv2d.replace(backward=mine)`. Reference and batch axes stay."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportCallIssue]

    def partial(self, **static: Any) -> Rule:
        """The same rule with other defaults of its static arguments: for what calls a rule with its arrays alone.

        Rules made alike are equal, so that jit compiles for them once.

        >>> import jaxcnn
        >>> loss = jaxcnn.softmax_cross_entropy.partial(label_smoothing=0.1)
        >>> loss.static()
        {'label_smoothing': 0.1}
        >>> loss == jaxcnn.softmax_cross_entropy.partial(label_smoothing=0.1)
        True
        """
        parameters = self._signature.parameters.values()
        names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        if unknown := [n for n in static if n not in names]:
            takes = f"the static arguments {', '.join(names)}" if names else "nothing: there are no static arguments"
            raise TypeError(f"{self.name}: partial takes {takes}; got {', '.join(unknown)}")
        given = {n: _hashable(self.name, n, v) for n, v in static.items()}
        passes = {"forward": self.forward, "backward": self.backward, "reference": self.reference}
        return self.replace(**{n: None if f is None else _bound(f, given) for n, f in passes.items()})

    def autodiff(self) -> Rule:
        """The same forward, its backward made by `jax.vjp` of the reference: what the hand-written one must equal."""
        return self._autodiff

    def plain(self, *arrays: Any, **static: Any) -> Any:
        """The output by the reference, or by the forward where there is none: what autodiff may differentiate."""
        return self.forward(*arrays, **static)[0] if self.reference is None else self.reference(*arrays, **static)

    @property
    def _signature(self) -> inspect.Signature:
        return self.__dict__["__signature__"]

    @functools.cached_property
    def _autodiff(self) -> Rule:
        passes: Callable[..., tuple[Any, Any]] = self.forward

        @functools.wraps(passes)
        def forward(*args, **kwargs):
            arrays, static = self.bind(*args, **kwargs)
            return passes(*arrays, **static)[0], arrays

        def backward(arrays, dy, **static):
            return autodiff_vjp(functools.partial(self.plain, **static), arrays)[1](dy)

        return self.replace(forward=forward, backward=backward)

    def _split(self, result: Any) -> tuple[Any, Any]:
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"{self.name}: forward must return (output, residuals), got {_kind(result)}")
        return result

    def _checked(self, cotangents: Any, arrays: tuple[Described | None, ...]) -> tuple[Any, ...]:
        """The cotangents as `jax.custom_vjp` wants them; it lets a wrong float dtype pass, this does not."""
        if not isinstance(cotangents, tuple) or len(cotangents) != len(arrays):
            raise TypeError(
                f"{self.name}: backward must return a tuple of {len(arrays)} cotangents, one for each array parameter "
                f"of forward, got {_kind(cotangents)}"
            )
        return tuple(
            checked_cotangent(f"{self.name}: backward's cotangent {i}", c, a)
            for i, (c, a) in enumerate(zip(cotangents, arrays, strict=True))
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: all but what is made when first needed."""
        return {name: value for name, value in self.__dict__.items() if name != "_autodiff"}


class Described(NamedTuple):
    """What a cotangent must agree with; hashable, so that it can be kept beside the residuals."""

    shape: tuple[int, ...]
    dtype: Any
    varying: frozenset[str]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def describe(array: Any) -> Described | None:
    if array is None:
        return None
    kind = jax.typeof(array)
    return Described(kind.shape, kind.dtype, frozenset(kind.manual_axis_type.varying))


def checked_cotangent(where: str, cotangent: Any, array: Described | None) -> Any:
    """The cotangent as `jax.custom_vjp` wants it; TypeError unless it has the array's shape and dtype."""
    if array is None or not jnp.issubdtype(array.dtype, jnp.inexact):
        return None
    if cotangent is None:
        raise TypeError(f"{where} is None, its array is {array}; None is for integer, boolean and key arrays")
    try:
        got = describe(cotangent)
    except TypeError:
        raise TypeError(f"{where} is of type {type(cotangent).__name__}, its array is {array}") from None
    if got is None or (got.shape, got.dtype) != (array.shape, array.dtype):
        raise TypeError(f"{where} is {got}, its array is {array}; shape and dtype must be equal")
    return _vary(cotangent, array.varying)


class _Bound(functools.partial):
    """A partial function that equals another one of the same function and values."""

    __signature__: inspect.Signature

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bound) and (self.func, self.keywords) == (other.func, other.keywords)

    def __hash__(self) -> int:
        return hash((self.func, frozenset(self.keywords.items())))


def _bound(function: Callable[..., Any], static: dict[str, Hashable]) -> _Bound:
    if isinstance(function, _Bound):
        function, static = function.func, function.keywords | static
    bound = _Bound(function, **static)
    signature = inspect.signature(bound)  # before update_wrapper hides it behind the function's own
    functools.update_wrapper(bound, function)
    bound.__signature__ = signature
    return bound


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


def as_array(rule: str, name: str, value: Any) -> jax.Array | None:
    """An argument; None stays None. Raises TypeError for what is no array, ValueError for integers that do not fit."""
    try:
        array = None if value is None else jnp.asarray(value)
    except (TypeError, ValueError, OverflowError):
        kind = type(value).__name__
        kind = f"an {kind} of dtype {value.dtype}" if isinstance(value, np.ndarray) else kind
        raise TypeError(f"{rule}: {name} must be an array, got {kind}") from None
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.dtype.itemsize == 8:
        kind = np.iinfo(jnp.asarray(value[:0] if value.ndim else value).dtype)
        if value.size and not kind.min <= value.min() <= value.max() <= kind.max:
            raise ValueError(f"{rule}: {name} holds values that {kind.dtype} cannot, got {value.min()} … {value.max()}")
    return array


def _hashable(rule: str, name: str, value: Any) -> Hashable:
    """Lists and NumPy arrays become tuples, so that `padding=[(1, 1), (1, 1)]` is as good as a tuple. A real number
    that is not whole becomes a float: one of NumPy would widen the arrays that it meets, and a fraction meets none.
    """
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list | tuple):
        return tuple(_hashable(rule, name, v) for v in value)
    if isinstance(value, float | np.floating | Fraction):
        return float(value)
    if isinstance(value, jax.Array):
        raise TypeError(f"{rule}: {name} must be a Python value known before tracing, got an array")
    try:
        hash(value)
    except TypeError:
        raise TypeError(f"{rule}: {name} must be hashable, got {type(value).__name__}") from None
    return value


def _vary(array: Any, axes: frozenset[str]) -> Any:
    missing = tuple(sorted(axes - frozenset(jax.typeof(array).manual_axis_type.varying)))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def equally_varying(tree: Any) -> Any:
    """Under `shard_map`, every leaf varying over the mesh axes that any of them varies over; elsewhere, no change.

    The cast stands outside the hand-written pass, so its transpose, the sum over the devices, is added by jax:
    a backward pass need not know that an array was the same on all of them.
    """
    leaves = jax.tree.leaves(tree)
    axes = frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves))
    return jax.tree.map(lambda leaf: _vary(leaf, axes), tree)


def autodiff_vjp(function: Callable[..., Any], arrays: tuple[Any, ...]) -> tuple[Any, Callable[[Any], tuple]]:
    """`jax.vjp` of a plain function in those of its arrays that have a derivative; None for the others."""
    inexact = [a is not None and jnp.issubdtype(jax.typeof(a).dtype, jnp.inexact) for a in arrays]

    def partial(*some):
        given = iter(some)
        return function(*(next(given) if i else a for a, i in zip(arrays, inexact, strict=True)))

    output, pullback = jax.vjp(partial, *(a for a, i in zip(arrays, inexact, strict=True) if i))

    def all_cotangents(dy):
        given = iter(pullback(dy))
        return tuple(next(given) if i else None for i in inexact)

    return output, all_cotangents
