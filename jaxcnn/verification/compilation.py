"""Compiling programs that run a few dozen times on small arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SMALL_ARRAYS = 50_000  # elements in all
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def quick_jit(function: Callable) -> Callable:
    """`jax.jit`; for small arrays on a CPU it compiles in a fraction of the time, and runs slower.

    That form does not vectorise either; XLA's CPU compiler aborts the process on some vectorised float16
    (openxla/xla#44943), which therefore always takes it.
    """
    usual = jax.jit(function)
    if jax.default_backend() != "cpu":
        return usual
    quick = jax.jit(function, compiler_options=QUICK)

    def call(*arguments):
        arrays = jax.tree.leaves(arguments)
        small = sum(map(np.size, arrays)) <= SMALL_ARRAYS or any(map(_is_float16, arrays))
        return (quick if small else usual)(*arguments)

    return call


def _is_float16(array: Any) -> bool:
    return getattr(array, "dtype", None) == jnp.float16
