"""The training step as a GPU's compiler gets it: convolutions and matrix products, nothing made for a CPU's cache.

Lowered on a machine without a GPU; what is counted are operations of StableHLO, a function's as often as it is called.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxcnn
from jaxcnn.training.step import BACKWARD

BATCH = 128


class Expected(NamedTuple):
    shape: tuple[int, ...]  # of one image
    convolutions: int  # in one forward pass
    dense: int
    largest: int  # values in the largest activation of one image


NETWORKS = {
    "two_conv": Expected((28, 28, 1), 2, 2, 28 * 28 * 32),
    "resnet20": Expected((32, 32, 3), 21, 1, 32 * 32 * 16),
}


class Program(NamedTuple):
    operations: Counter[str]
    largest: int  # elements of its largest array
    concatenated: int  # elements of the largest array that is put together of others


def program(text: str) -> Program:
    """What a module of StableHLO does, from its text."""
    bodies = {m[1]: m[2] for m in re.finditer(r"func\.func \w+ @([^(]+)\((.*?)\n  }", text, re.DOTALL)}

    def count(name: str) -> Counter[str]:
        own = Counter(re.findall(r"stablehlo\.(\w+)", bodies[name]))
        return sum((count(called) for called in re.findall(r"call @([^(]+)", bodies[name])), own)

    joined = re.findall(r"stablehlo\.concatenate.*-> tensor<([\dx]+)x\w+>", text)
    arrays = re.findall(r"tensor<([\dx]+)x\w+>", text)
    return Program(count("main"), max(map(_elements, arrays)), max(map(_elements, joined), default=0))


def _elements(sizes: str) -> int:
    return math.prod(map(int, sizes.split("x")))


def lowered(name: str, platform: str, **options) -> Program:
    network, optimizer = getattr(jaxcnn.models, name)(), optax.sgd(0.1)
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, optimizer, 0, NETWORKS[name].shape))
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer, mesh=mesh, **options)
    images = jax.ShapeDtypeStruct((BATCH, *NETWORKS[name].shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return program(step.trace(state, images, labels).lower(lowering_platforms=(platform,)).as_text())


def faults(found: Program, expected: Expected) -> list[str]:
    """What is not as it should be on a GPU."""
    operations, n = found.operations, expected.convolutions
    checks = {
        # Forward, filter gradient, image gradient; that of the network's own images nobody asks for.
        "convolutions": operations["convolution"] in (3 * n - 1, 3 * n),
        "matrix products": operations["dot_general"] in (3 * expected.dense - 1, 3 * expected.dense),
        "loops": operations["while"] == 0,
        "patches": found.concatenated < BATCH * math.prod(expected.shape),
        # Zeros around the largest images are a tenth of them.
        "large arrays": found.largest < 1.3 * BATCH * expected.largest,
    }
    return [name for name, right in checks.items() if not right]


@pytest.mark.parametrize("backward", BACKWARD)
@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_gpu_the_step_is_plain_convolutions(name, backward):
    assert backward in BACKWARD
    found = lowered(name, "cuda", backward=backward, microbatch="auto" if backward == "manual" else None)
    assert faults(found, NETWORKS[name]) == [], found


def test_what_a_gpu_should_not_get_is_seen():
    def step(x, w):
        patches = jnp.concatenate([x] * 9, -1)
        return jax.lax.fori_loop(0, 2, lambda i, y: y @ w, patches)

    arrays = (jax.ShapeDtypeStruct((BATCH, 28, 28, 1), jnp.float32), jax.ShapeDtypeStruct((9, 9), jnp.float32))
    found = program(jax.jit(step).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text())
    all_of_them = ["convolutions", "matrix products", "loops", "patches", "large arrays"]
    assert faults(found, Expected((28, 28, 1), 2, 2, 28 * 28)) == all_of_them
    assert "loops" in faults(lowered("two_conv", "cuda", microbatch=16), NETWORKS["two_conv"])


def test_a_function_counts_as_often_as_it_is_called():
    @jax.jit
    def squared(x):
        return x @ x

    text = jax.jit(lambda x: squared(squared(x)) @ jnp.concatenate([x, x], 1)).lower(jnp.ones((3, 3))).as_text()
    found = program(text)
    assert text.count("stablehlo.dot_general") == 2
    assert (found.operations["dot_general"], found.largest, found.concatenated) == (3, 18, 18)
