"""Casting: the same values in another floating dtype."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.rule import Array, Rule, Static
from jaxcnn.rules.dtypes import require_equal_floats


def cast_forward(x: Array, *, dtype: Any) -> tuple[Array, Static]:
    """x in another floating dtype, rounded where that is narrower.

    Args:
      x: any shape, any floating dtype.
      dtype: the floating dtype of the result, or its name.

    Returns:
      An array of x's shape and of that dtype.

    Raises:
      ValueError: float64 where jax has it switched off, which would give float32 unasked. TypeError: an x or a dtype
        that is not floating.

    Source: Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.1.

    >>> cast(jnp.array([1.0, 1 / 3]), dtype="bfloat16")
    Array([1, 0.333984], dtype=bfloat16)
    """
    require_equal_floats("cast", x=x)
    return jnp.asarray(x, floating("cast", "dtype", dtype)), Static(x.dtype)


# Rounding is taken for the identity, its error for noise: dy goes back as it is, in x's dtype. Of the rounding itself,
# a staircase, the derivative would be 0.
def cast_backward(residuals: Static, dy: Array, *, dtype):
    return (dy.astype(residuals.value),)


cast = Rule(cast_forward, cast_backward, "cast", batch_axes=(0,))


def floating(function: str, argument: str, dtype: Any) -> Any:
    """The dtype of that name; raises TypeError unless it is floating, ValueError where jax would take another."""
    try:
        named = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"{function}: {argument} must be a floating dtype, got {dtype!r}") from None
    if not jnp.issubdtype(named, jnp.floating):
        raise TypeError(f"{function}: {argument} must be a floating dtype, got {named}")
    if jax.dtypes.canonicalize_dtype(named) != named:
        raise ValueError(f"{function}: {argument} {named} is switched off in jax; jax.enable_x64(True) switches it on")
    return named
