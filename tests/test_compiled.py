"""The training step as XLA's CPU compiler leaves it: what the source says to save memory or time is still there.

Each comes with the form that does not say it, as a proof that the compiler makes a difference between the two.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import FLOAT32, assert_close
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import jaxcnn
from jaxcnn import BatchNorm, Conv2D, Dense, GlobalAvgPool, ReLU, residual, sequential
from jaxcnn.rules.dense import DenseResiduals
from jaxcnn.rules.platform import materialised
from jaxcnn.training.compiler import IN_ORDER, PIECE, largest


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


@pytest.fixture
def no_cache():
    """No program is kept for other processes, so it may be one of several pieces."""
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    reset_cache()


@pytest.mark.usefixtures("no_cache")
def test_temporaries_come_in_pieces():
    """XLA can write down no program of several."""
    network, optimizer = small_resnet(), optax.sgd(0.1)
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer)
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, optimizer, 0, (32, 32, 1)))
    data = jax.ShapeDtypeStruct((288, 32, 32, 1), jnp.float32), jax.ShapeDtypeStruct((288,), jnp.int32)
    in_pieces = step.lower(state, *data).compile()
    in_one = jax.jit(step._inner, compiler_options=IN_ORDER).lower(state, *data).compile()
    assert PIECE < in_one.memory_analysis().temp_size_in_bytes < in_pieces.memory_analysis().temp_size_in_bytes * 1.1
    assert in_one.runtime_executable().serialize()
    with pytest.raises(jax.errors.JaxRuntimeError, match="Multiple temp buffer allocations"):
        in_pieces.runtime_executable().serialize()


@pytest.mark.usefixtures("no_cache")
def test_a_scan_takes_its_temporaries_in_one():
    network, optimizer = small_resnet(), optax.sgd(0.1)
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, optimizer, 0, (32, 32, 1)))
    shapes = ((320, 32, 32, 1), jnp.float32), ((320,), jnp.int32), ((2, 320), jnp.int32)
    run = jaxcnn.train_steps(network, jaxcnn.softmax_cross_entropy, optimizer)
    assert run.lower(state, *(jax.ShapeDtypeStruct(*s) for s in shapes)).compile().runtime_executable().serialize()


@pytest.mark.usefixtures("no_cache")
def test_an_array_that_is_larger_than_a_piece(capfd):
    """XLA then writes lines on standard error, so the pieces are larger."""
    network, optimizer = sequential(Conv2D(64, 3), ReLU(), GlobalAvgPool(), Dense(10)), optax.sgd(0.1)
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer)
    state = jaxcnn.init_train_state(network, optimizer, 0, (32, 32, 1))
    shapes = jax.eval_shape(lambda: (state, jnp.zeros((256, 32, 32, 1)), jnp.zeros(256, int)))
    assert largest(step.trace(*shapes).jaxpr.jaxpr) >= 4 * 128 * 32 * 32 * 64 > PIECE
    step.lower(*shapes).compile()
    assert capfd.readouterr().err == ""


def test_programs_that_are_kept_for_other_processes_are_whole():
    """jax's compilation cache takes no others."""
    assert jax.config.jax_compilation_cache_dir
    network, optimizer = small_resnet(), optax.sgd(0.1)
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, optimizer, 0, (32, 32, 1)))
    data = jax.ShapeDtypeStruct((320, 32, 32, 1), jnp.float32), jax.ShapeDtypeStruct((320,), jnp.int32)
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer)
    step.lower(state, *data).compile()  # warns where it cannot be written


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
