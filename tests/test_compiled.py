"""The training step as XLA's CPU compiler leaves it: what the source says to save memory or time is still there.

Each comes with the form that does not say it, as a proof that the compiler makes a difference between the two.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import FLOAT32, assert_close

import jaxcnn
from jaxcnn import BatchNorm, Conv2D, Dense, GlobalAvgPool, ReLU, residual, sequential
from jaxcnn.rules.dense import DenseResiduals
from jaxcnn.rules.platform import materialised


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def small_resnet():
    layers = [Conv2D(8, 3), BatchNorm(), ReLU()]
    return sequential(*layers, residual(sequential(*layers)), residual(sequential(*layers)), GlobalAvgPool(), Dense(10))


@pytest.fixture
def step():
    """(a step on two devices, its state, images, labels)"""
    network, optimizer = small_resnet(), optax.sgd(0.1)
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer)
    assert step.mesh.size == 2
    state = jaxcnn.init_train_state(network, optimizer, 0, (16, 16, 1))
    return step, state, jax.random.normal(jax.random.key(1), (32, 16, 16, 1)), jnp.arange(32) % 10


def test_a_step_over_devices_is_ordered_for_memory(step):
    step, *given = step
    in_order, as_xla_likes = (
        lowered.compile().memory_analysis().temp_size_in_bytes
        for lowered in (step.lower(*given), step._inner.lower(*given))
    )
    assert in_order < 0.8 * as_xla_likes


def test_a_step_over_devices_inside_a_jitted_function(step):
    step, *given = step
    state, metrics = jax.jit(step)(*given)
    alone, alone_metrics = step(*given)
    assert_close(metrics, alone_metrics, FLOAT32)
    assert_close(state.params, alone.params, FLOAT32)
    assert int(state.step) == 1


def test_dense_turns_its_rows_before_the_filter_gradient():
    x, w, dy = jnp.ones((128, 64)), jnp.ones((64, 32)), jnp.ones((128, 32))
    turns_as_it_multiplies = "lhs_contracting_dims={0}"
    assert turns_as_it_multiplies in compiled(lambda x, dy: x.T @ dy, x, dy)
    assert turns_as_it_multiplies not in compiled(
        lambda x, w, dy: jaxcnn.dense.backward(DenseResiduals(x, w), dy)[1], x, w, dy
    )


def test_what_is_materialised_is_not_computed_where_it_is_read():
    x = jnp.ones(64)

    def outer(keep):
        return lambda x: jnp.tanh(keep(jnp.add, x, 1.0)[:, None] - x)

    assert "conditional(" not in compiled(outer(lambda function, *arrays: function(*arrays)), x)
    assert "conditional(" in compiled(outer(materialised), x)
