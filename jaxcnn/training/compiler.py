"""What XLA's CPU compiler is told of a step's threads and temporary memory."""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Jaxpr, jaxprs_in_params

from jaxcnn.training.devices import is_cpu, whole_kernels

# XLA orders a program so that operations may run side by side. With one device a core they do not, and what they keep
# meanwhile is memory: for 16 images in ResNet-20 64 MiB, in this order 34.
IN_ORDER = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}

# XLA asks for its temporaries anew at each call. What is larger than 32 MiB glibc gets from the system and gives back,
# page by page, which is a quarter of the time of a step of ResNet-20. Smaller pieces it mostly keeps; three of these
# fit into the 64 MiB that it holds together for a thread. jax's compilation cache takes no program of several pieces.
PIECE = 20 * 2**20


def compiler_options(program: Jaxpr, mesh: Any, *, in_pieces: bool) -> dict[str, Any] | None:
    """For a step's program on a mesh; None but on CPUs. in_pieces: whether it is called for each step."""
    if not is_cpu(mesh):
        return None
    options: dict[str, Any] = whole_kernels() | (IN_ORDER if mesh.size > 1 else {})
    if in_pieces and not _programs_are_kept():
        # Of an array that does not fit XLA writes lines to standard error.
        options["xla_multiheap_size_constraint_per_heap"] = max(PIECE, largest(program))
    return options


def _programs_are_kept() -> bool:
    config: Any = jax.config
    return bool(config.jax_enable_compilation_cache and config.jax_compilation_cache_dir)


def largest(program: Jaxpr) -> int:
    """The bytes of the largest array that a program computes.

    >>> largest(jax.make_jaxpr(lambda x: (x[:, None] * x).sum())(jax.numpy.ones(1000)).jaxpr)
    4000000
    """
    own = [_bytes(v.aval) for equation in program.eqns for v in equation.outvars]
    inner = [largest(called) for equation in program.eqns for called in jaxprs_in_params(equation.params)]
    return max(own + inner, default=0)


def _bytes(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize if hasattr(aval, "shape") else 0
