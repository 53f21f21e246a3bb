"""What all rules ask of their dtypes."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.rule import Array


def require_equal_floats(function: str, **arrays: Array | None) -> None:
    """Raises TypeError unless all arrays (None is left out) have one and the same floating dtype, of 16 bits at least:
    of the narrower ones some have no infinity, which a maximum starts from, and jax promotes none of them.

    Nothing is promoted: a gradient has its array's dtype, and a silent cast there would lose digits unseen.
    """
    given = {name: a.dtype for name, a in arrays.items() if a is not None}
    for name, dtype in given.items():
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{function}: {name} must be floating point, got {dtype}")
        if jnp.finfo(dtype).bits < 16:
            raise TypeError(f"{function}: {name} must be float16, bfloat16, float32 or float64, got {dtype}")
    if len(set(given.values())) > 1:
        got = ", ".join(f"{name} {dtype}" for name, dtype in given.items())
        raise TypeError(f"{function}: dtypes must be equal, got {got}")


def wide(x: Array) -> jax.Array:
    """x, if narrower than float32 in that: in float16 the square of 300 is infinite and so is a count of 10⁵, in
    bfloat16 counting stops at 256, and a difference loses too many digits in both.
    """
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def require_number(function: str, **values: Any) -> None:
    """Raises TypeError unless all static values are real numbers; a truth value is none."""
    for name, value in values.items():
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            raise TypeError(f"{function}: {name} must be a number, got {value!r}")
