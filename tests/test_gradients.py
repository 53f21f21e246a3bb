"""The gradient of a training step, and the angle between two gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT32, NETWORK, assert_close

import jaxcnn
from jaxcnn import alignment, gradients, models, softmax_cross_entropy

SHAPE = (8, 8, 1)


def started(network, samples=6, dtype=jnp.float32):
    state = jaxcnn.init_train_state(network, optax.sgd(1.0), 0, SHAPE)
    state = state._replace(params=jax.tree.map(lambda p: p.astype(dtype), state.params))
    rng = np.random.default_rng(1)
    return state, jnp.asarray(rng.normal(size=(samples, *SHAPE)), dtype), jnp.asarray(rng.integers(0, 10, samples))


def doubled_network():
    doubled = jaxcnn.dense.replace(backward=lambda r, dy: tuple(2 * c for c in jaxcnn.dense.backward(r, dy)))
    last = jaxcnn.Dense(10, rule=doubled, name="dense")
    return jaxcnn.sequential(*models.source().layers[:-1], last, name="source")


@pytest.mark.parametrize("backward", ["manual", "autodiff"])
@pytest.mark.parametrize("network", [models.source(), doubled_network()], ids=["source", "doubled"])
def test_it_is_what_the_step_subtracts(network, backward):
    """Of a network with dropout too: the same key."""
    network = jaxcnn.sequential(jaxcnn.Dropout(0.3), *network.layers)
    state, *batch = started(network)
    got = gradients(network, softmax_cross_entropy, state, *batch, backward=backward)
    mesh = jax.make_mesh((1,), ("batch",))
    step = jaxcnn.train_step(network, softmax_cross_entropy, optax.sgd(1.0), backward=backward, mesh=mesh)
    moved = step(jax.tree.map(jnp.copy, state), *batch)[0].params
    assert_close(got, jax.tree.map(lambda before, after: before - after, state.params, moved), 10 * FLOAT32)


def test_by_hand_it_equals_autodiff_and_a_changed_rule_shows(x64):
    state, *batch = started(models.source(), dtype=jnp.float64)
    ways = [
        gradients(models.source(), softmax_cross_entropy, state, *batch, backward=b) for b in ("manual", "autodiff")
    ]
    assert_close(*ways, NETWORK)
    changed = gradients(doubled_network(), softmax_cross_entropy, state, *batch)
    for name, (cosine, ratio) in alignment(changed, ways[1]).items():
        assert float(cosine) == pytest.approx(1, abs=1e-12), name
        assert float(ratio) == pytest.approx(2, abs=1e-12), name


def test_of_several_seeds_in_one_program():
    network, optimizer = models.source(), optax.sgd(0.1)
    states = jaxcnn.init_train_states(network, optimizer, range(3), SHAPE)
    _, *batch = started(network)
    of_one = lambda state: gradients(network, softmax_cross_entropy, state, *batch)  # noqa: E731
    together = jax.jit(lambda states: jax.lax.map(of_one, states))(states)
    for seed in range(3):
        alone = jax.jit(of_one)(jaxcnn.init_train_state(network, optimizer, seed, SHAPE))
        assert_close(jax.tree.map(lambda leaf: leaf[seed], together), alone, 10 * FLOAT32)  # noqa: B023


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_angle_and_length(scale):
    right = {"a": {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]]) * scale}, "b": jnp.array([1.0, 0.0]) * scale}
    got = {"a": {"w": jnp.array([[-3.0, 0.0], [0.0, -4.0]]) * scale}, "b": jnp.array([0.0, 5.0]) * scale}
    near = jax.jit(alignment)(got, right)
    assert list(near) == ["a/w", "b"]
    np.testing.assert_allclose(near["a/w"], (-1, 1), rtol=1e-6)
    np.testing.assert_allclose(near["b"], (0, 5), rtol=1e-6)


def test_of_bfloat16_it_is_computed_in_float32():
    x = jnp.full(1000, 0.1, jnp.bfloat16)
    near = alignment({"x": x}, {"x": x})["x"]
    assert near.cosine.dtype == jnp.float32
    assert float(near.cosine) == pytest.approx(1, abs=1e-5)


def test_of_a_gradient_of_zero_there_is_no_angle():
    zero, one = {"x": jnp.zeros(3)}, {"x": jnp.ones(3)}
    assert np.isnan(alignment(zero, one)["x"].cosine)
    assert float(alignment(zero, one)["x"].ratio) == 0
    assert np.isnan(alignment(one, zero)["x"].cosine)
    assert np.isinf(alignment(one, zero)["x"].ratio)


def test_errors():
    state, *batch = started(models.source())
    with pytest.raises(TypeError, match="gradients: takes Layers, got <lambda>"):
        gradients(lambda x: x, softmax_cross_entropy, state, *batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"gradients: loss must be a jaxcnn.Rule of \(logits, labels\), got function"):
        gradients(models.source(), lambda logits, labels: 0, state, *batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="gradients: state must be a TrainState, got dict"):
        gradients(models.source(), softmax_cross_entropy, {}, *batch)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="gradients: backward must be one of manual, autodiff, got 'hand'"):
        gradients(models.source(), softmax_cross_entropy, state, *batch, backward="hand")
    with pytest.raises(ValueError, match=r"alignment: got and right must be trees of the same arrays, got {'a'"):
        alignment({"a": jnp.ones(2)}, {"a": jnp.ones(3)})
