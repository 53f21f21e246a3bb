"""What the machine can do at best, as far as a network is concerned: a matrix product, on all cores."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcnn.benchmark.contestant import Prepared
from jaxcnn.benchmark.problem import Problem

SIZE = 2048
OPERATIONS = 2 * SIZE**3


def prepare(problem: Problem, devices: int) -> Prepared:
    """Of two SIZE×SIZE matrices of float32; there are no losses."""
    del problem, devices
    a, b = (jax.random.normal(key, (SIZE, SIZE)) for key in jax.random.split(jax.random.key(0)))
    product = jax.jit(jnp.matmul)

    def run(count):
        for _ in range(count):
            product(a, b).block_until_ready()
        return ()

    return Prepared(run, lambda: None)
