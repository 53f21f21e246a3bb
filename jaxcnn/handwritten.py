"""A differentiable function made of a forward pass and the backward pass written for it.

`jax.custom_vjp` would do for reverse mode, and forbids forward mode. Here the derivative is one linear primitive:

    evaluated (`jax.jvp`, `jax.jacfwd`)     it pushes tangents through the plain forward pass, by autodiff;
    transposed (`jax.grad`, `jax.vjp`)      it runs the hand-written backward pass.

Both are derivatives of one function, so that their compositions, `jax.hessian` among them, are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Push = Callable[[Sequence[Any], Sequence[Any]], list]  # (arrays, tangents of the live ones) -> tangents of the outputs
Pull = Callable[[Sequence[Any], Sequence[Any]], list]  # (residuals, cotangents of the outputs) -> of the live arrays


def call_by_hand(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[[Any, Any], Sequence[Any]],
    plain: Callable[..., Any],
    arrays: Sequence[Any],
) -> Any:
    """forward(*arrays)[0], a tree of arrays, with `backward` for its derivative.

    Args:
      forward: (*arrays) -> (output, residuals), a tree of arrays each.
      backward: (residuals, dy) -> one cotangent for each array, of its shape and dtype, None for what has none.
      plain: (*arrays) -> output, which forward mode differentiates.
      arrays: jax arrays, or None.
    """

    @jax.custom_jvp
    def function(*arrays):
        return forward(*arrays)[0]

    def derivative(arrays, tangents):
        if any(isinstance(array, jax.core.Tracer) for array in arrays):
            # The output by the function, not by the forward pass: where this is differentiated in turn, the output's
            # derivative is the hand-written one too. Under jit XLA merges the two equal computations.
            output, saved = function(*arrays), forward(*arrays)[1]
        else:
            output, saved = forward(*arrays)
        residuals, kept = jax.tree.flatten(saved)
        outputs, structure = jax.tree.flatten(output)
        live = [i for i, (a, t) in enumerate(zip(arrays, tangents, strict=True)) if _moves(a, t)]
        smooth = [i for i, y in enumerate(outputs) if jnp.issubdtype(jax.typeof(y).dtype, jnp.inexact)]
        present = [i for i, a in enumerate(arrays) if a is not None]

        def push(given, tangents):
            full = list(arrays)
            for i, array in zip(present, given, strict=True):
                full[i] = array

            def of_live(*some):
                for i, array in zip(live, some, strict=True):
                    full[i] = array
                leaves = jax.tree.leaves(plain(*full))
                return [leaves[i] for i in smooth]

            return jax.jvp(of_live, tuple(full[i] for i in live), tuple(tangents))[1]

        def pull(residuals, cotangents):
            dy = [np.zeros(np.shape(y), jax.dtypes.float0) for y in outputs]
            for i, cotangent in zip(smooth, cotangents, strict=True):
                dy[i] = cotangent
            gradients = backward(jax.tree.unflatten(kept, residuals), jax.tree.unflatten(structure, dy))
            return [gradients[i] for i in live]

        moved: list[Any] = [SymbolicZero.from_primal_value(y) for y in outputs]
        if live:
            pushed = _derivative.bind(
                *map(jnp.asarray, residuals), *(arrays[i] for i in present), *(tangents[i] for i in live),
                push=push, pull=pull, kept=len(residuals), given=len(present),
                types=tuple(jax.typeof(outputs[i]).to_tangent_aval() for i in smooth),
            )  # fmt: skip
            for i, tangent in zip(smooth, pushed, strict=True):
                moved[i] = tangent
        return output, jax.tree.unflatten(structure, moved)

    function.defjvp(derivative, symbolic_zeros=True)
    return function(*arrays)


def _moves(array: Any, tangent: Any) -> bool:
    if array is None or isinstance(tangent, SymbolicZero):
        return False
    return jnp.issubdtype(jax.typeof(array).dtype, jnp.inexact)


# The derivative at some arrays, linear in the tangents. Operands: the residuals (the first `kept`), of which the
# transpose is made; the arrays (`given`), of which the value is made; the tangents. `types`: of the outputs' tangents.
_derivative = Primitive("derivative_by_hand")
_derivative.multiple_results = True


def _parts(operands, kept: int, given: int):
    return operands[:kept], operands[kept : kept + given], operands[kept + given :]


@_derivative.def_impl
def _value(*operands, push: Push, pull: Pull, kept: int, given: int, types):
    _, arrays, tangents = _parts(operands, kept, given)
    return list(push(arrays, tangents))


@_derivative.def_abstract_eval
def _types(*operands, push, pull, kept, given, types):
    return list(types)


def _transpose(cotangents, *operands, push: Push, pull: Pull, kept: int, given: int, types):
    residuals, _, tangents = _parts(operands, kept, given)
    gradients = pull(residuals, [ad.instantiate_zeros(c) for c in cotangents])
    wanted = [g if ad.is_undefined_primal(t) else None for g, t in zip(gradients, tangents, strict=True)]
    return [None] * (kept + given) + wanted


def _jvp(operands, moved, **parameters):
    constant = parameters["kept"] + parameters["given"]
    if all(type(m) is ad.Zero for m in moved[:constant]):  # in the tangents it is linear, its transpose by hand
        tangents = [ad.instantiate_zeros(m) for m in moved[constant:]]
        at = operands[:constant]
        return _derivative.bind(*operands, **parameters), _derivative.bind(*at, *tangents, **parameters)
    # The value does not depend on the residuals, so neither does its derivative: autodiff of the plain forward pass.
    kept = parameters["kept"]
    live = [i for i in range(kept, len(operands)) if type(moved[i]) is not ad.Zero]

    def of_live(*some):
        full = list(operands)
        for i, operand in zip(live, some, strict=True):
            full[i] = operand
        return _value(*full, **parameters)

    if not live:  # the residuals alone move
        outputs = _derivative.bind(*operands, **parameters)
        return outputs, [ad.Zero(t) for t in parameters["types"]]
    return jax.jvp(of_live, tuple(operands[i] for i in live), tuple(moved[i] for i in live))


def _batch(axis, operands, dimensions, *, push: Push, pull: Pull, kept: int, given: int, types):
    if all(d is None for d in dimensions):
        outputs = _derivative.bind(*operands, push=push, pull=pull, kept=kept, given=given, types=types)
        return outputs, [None] * len(outputs)
    constant = kept + given
    tangents = zip(operands[constant:], dimensions[constant:], strict=True)
    tangents = [batching.bdim_at_front(t, d, axis.size) for t, d in tangents]
    residuals, arrays, _ = _parts(list(dimensions), kept, given)

    def mapped(function, where):
        def call(at, moved):
            one = jax.vmap(
                lambda at, moved: function(at, moved), in_axes=(where, 0), axis_size=axis.size, axis_name=axis.name,
                spmd_axis_name=axis.spmd_name,
            )  # fmt: skip
            return one(list(at), list(moved))

        return call

    outputs = _derivative.bind(
        *operands[:constant], *tangents, push=mapped(push, arrays), pull=mapped(pull, residuals), kept=kept,
        given=given, types=tuple(t.update(shape=(axis.size, *t.shape)) for t in types),
    )  # fmt: skip
    return outputs, [0] * len(outputs)


ad.primitive_jvps[_derivative] = _jvp
ad.primitive_transposes[_derivative] = _transpose
batching.fancy_primitive_batchers[_derivative] = _batch
mlir.register_lowering(_derivative, mlir.lower_fun(_value, multiple_results=True))
