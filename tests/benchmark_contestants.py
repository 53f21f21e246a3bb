"""Contestants that must not get into the benchmark's table, for test_benchmark.py: their processes import this file,
which leaves jax's settings alone."""

import os

import jax.numpy as jnp

from jaxcnn.benchmark import by_jax


def prepare(problem, devices, *, fault):
    match fault:
        case "another network":
            by_jax.max_pool = lambda x: (x[:, ::2, ::2] + x[:, 1::2, 1::2]) / 2
        case "another rate":  # the first loss is right
            by_jax.RATE *= 1.5
        case "an exception":
            raise ValueError("no such\nkernel")
        case "an exception later":
            prepared = by_jax.prepare(problem, devices)
            return prepared._replace(run=_limited(prepared.run))
        case "the end of the process":
            os._exit(7)
        case "NaN":
            problem = problem._replace(images=problem.images * jnp.nan)
    return by_jax.prepare(problem, devices)


def _limited(run):
    steps = 0

    def limited(count):
        nonlocal steps
        steps += count
        if steps > 3:
            raise RuntimeError("out of memory")
        return run(count)

    return limited
