"""How many operations a program does, read off its jaxpr: a formula for each kind of primitive."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

# They move values, name them anew or make keys, and compute nothing.
MOVEMENTS = frozenset((
    "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p",
    "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "iota", "optimization_barrier", "pad",
    "platform_index", "random_fold_in", "random_split", "random_unwrap", "random_wrap", "reshape", "rev", "scatter",
    "slice", "split", "squeeze", "stop_gradient", "transpose",
))  # fmt: skip
CALLED = ("jaxpr", "call_jaxpr", "body_jaxpr", "branches")  # where a primitive keeps the programs that it runs


def operations(program: Jaxpr | ClosedJaxpr) -> int:
    """The arithmetic operations of a program.

    A matrix product and a convolution: 2, a multiplication and an addition, for each term of their sums, the zeros of
    a padding included. A reduction over windows: one for each element that a window sees. What only moves values: none.
    Everything else, as if it were elementwise: one for each element of the largest array in it, so that an exponential
    counts as much as an addition. Of the branches of a choice the longest counts; a loop of unknown length counts once.

    >>> import jax, jax.numpy as jnp
    >>> operations(jax.make_jaxpr(lambda x, w, b: jnp.tanh(x @ w + b))(jnp.ones((2, 3)), jnp.ones((3, 5)), jnp.ones(5)))
    80
    """
    equations = program.jaxpr.eqns if isinstance(program, ClosedJaxpr) else program.eqns
    return sum(map(_of_equation, equations))


def _of_equation(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    sizes = [math.prod(getattr(v.aval, "shape", ())) for v in (*equation.invars, *equation.outvars)]
    result = math.prod(getattr(equation.outvars[0].aval, "shape", ())) if equation.outvars else 0
    if name in MOVEMENTS:
        return 0
    if name == "dot_general":
        (summed, _), _ = parameters["dimension_numbers"]
        return 2 * result * math.prod(equation.invars[0].aval.shape[i] for i in summed)
    if name == "conv_general_dilated":
        filters = equation.invars[1].aval.shape
        return 2 * result * math.prod(filters) // filters[parameters["dimension_numbers"].rhs_spec[0]]
    if "window_dimensions" in parameters:
        return result * math.prod(parameters["window_dimensions"])
    if parameters.get("branches_platforms"):  # forms for several platforms; the last, for all others, is the definition
        return operations(parameters["branches"][-1])
    inner = [] if name == "reduce" else [*map(operations, _called(parameters))]
    if inner:
        return max(inner) * parameters.get("length", 1)  # the length of a scan
    return max(sizes, default=0)


def _called(parameters: dict[str, Any]) -> Iterator[Jaxpr | ClosedJaxpr]:
    for name in CALLED:
        found = parameters.get(name, ())
        yield from found if isinstance(found, tuple) else (found,)
