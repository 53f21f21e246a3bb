"""The hand-written step on a TPU, by the compiler's figures; tpu_cost.py."""

import functools
import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import plain_networks
import pytest
import tpu_cost
from conftest import FLOAT32, QUICK, assert_close
from tpu_cost import ALLOWED, SHAPES, Cost, holds, ratios

import jaxcnn

PLAIN = Cost(100.0, 100.0, 100)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed, and no dependency")
@pytest.mark.parametrize("network", SHAPES)
def test_the_hand_written_step_is_as_cheap_on_a_tpu(network):
    """In a process of its own: libtpu belongs to one process at a time, and to it until it ends."""
    command = [sys.executable, tpu_cost.__file__, "--network", network]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(tpu_cost.__file__).parent)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("hand", "verdict"),
    [
        (Cost(ALLOWED * 100, 200.0, 105), True),
        (Cost(106.0, 100.0, 100), False),
        (Cost(100.0, 100.0, 106), False),
    ],
)
def test_bytes_and_temporaries_are_judged_and_operations_are_shown(hand, verdict):
    costs = {"by hand": hand, "jax.value_and_grad": PLAIN}
    assert holds(costs) == verdict
    assert ratios(costs).bytes_accessed == pytest.approx(hand.bytes_accessed / 100)


@pytest.mark.parametrize("name", SHAPES)
def test_the_plain_network_is_the_same_function(name):
    network, plain = getattr(jaxcnn.models, name)(), getattr(plain_networks, name)
    x, labels = jax.random.normal(jax.random.key(1), (4, *SHAPES[name])), np.arange(4)
    params, state, _ = network.init(jax.random.key(0), SHAPES[name])
    run = functools.partial(jax.jit, compiler_options=QUICK)
    here = run(lambda *arrays: network.forward(*arrays, train=True)[0])(params, state, x)
    assert_close(here, run(plain)(params, x), 10 * FLOAT32)
    stepped, loss = run(plain_networks.training_step(plain, 0.1))(params, x, labels)
    assert_close(loss, jaxcnn.softmax_cross_entropy(here, labels), 10 * FLOAT32)
    assert jax.tree.map(jnp.shape, stepped) == jax.tree.map(jnp.shape, params)
