"""What the rules say to XLA's compilers: which form of a function is for which platform, what to compute only once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax


def by_platform(cpu: Callable[..., Any], elsewhere: Callable[..., Any], *arrays: Any) -> Any:
    """`cpu(*arrays)` or `elsewhere(*arrays)`: chosen when the program is lowered, for the platform it is lowered for.

    Both must compute the same. Nothing is asked of the machine at hand: a program lowered here for a TPU has the other
    form.

    >>> import jax, jax.numpy as jnp
    >>> double = jax.jit(lambda x: by_platform(lambda x: x + x, lambda x: jnp.exp2(1.0) * x, x))
    >>> "exponential" in double.trace(1.0).lower(lowering_platforms=("tpu",)).as_text()
    True
    """
    return lax.platform_dependent(*arrays, cpu=cpu, default=elsewhere)


def materialised(function: Callable[..., Any], *arrays: Any) -> Any:
    """function(*arrays), computed once into an array of its own, on a CPU.

    XLA would compute a cheap value again at each place that reads it; for what is read by a broadcast, that is many
    times. It drops `lax.optimization_barrier` before it decides so, but does not look through a choice: of two that
    are the same, by a value of the first array.

    >>> import jax.numpy as jnp
    >>> materialised(jnp.add, jnp.ones(2), 1.0)
    Array([2., 2.], dtype=float32)
    """
    chosen = jnp.ravel(arrays[0])[:1].sum() > 0
    return lax.cond(chosen, function, function, *arrays)
