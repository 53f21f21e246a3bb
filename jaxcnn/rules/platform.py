"""The same function in two forms: the fast one on a CPU, and the one that XLA's compilers for GPU and TPU like best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax import lax


def by_platform(cpu: Callable[..., Any], elsewhere: Callable[..., Any], *arrays: Any) -> Any:
    """`cpu(*arrays)` or `elsewhere(*arrays)`: chosen when the program is lowered, for the platform it is lowered for.

    Both must compute the same. Nothing is asked of the machine at hand: a program lowered here for a TPU has the other form.

    >>> import jax, jax.numpy as jnp
    >>> double = jax.jit(lambda x: by_platform(lambda x: x + x, lambda x: jnp.exp2(1.0) * x, x))
    >>> "exponential" in double.trace(1.0).lower(lowering_platforms=("tpu",)).as_text()
    True
    """
    return lax.platform_dependent(*arrays, cpu=cpu, default=elsewhere)
