"""Per-sample gradients by hand, against `vmap` of `jax.grad` through the plain forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT32, NETWORK, assert_close

import jaxcnn
from jaxcnn import models, per_sample_gradients, softmax_cross_entropy


def started(network, shape, samples=5, dtype=jnp.float32):
    state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, shape)
    state = state._replace(params=jax.tree.map(lambda p: p.astype(dtype), state.params))
    rng = np.random.default_rng(1)
    return state, jnp.asarray(rng.normal(size=(samples, *shape)), dtype), jnp.asarray(rng.integers(0, 10, samples))


def by_autodiff(network, state, images, labels):
    def loss(params, image, label):
        logits = network.plain(params, state.state, image[None])[0]
        return softmax_cross_entropy.plain(logits, label[None])

    return jax.vmap(jax.grad(loss), (None, 0, 0))(state.params, images, labels)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (models.source(), (8, 8, 1)),
        (models.lenet5(), (28, 28, 1)),
        (
            jaxcnn.sequential(
                jaxcnn.residual(jaxcnn.Conv2D(4, 3, groups=2)), jaxcnn.MaxPool(3, stride=2, ties="split"),
                jaxcnn.Flatten(), jaxcnn.Dense(10, bias=False),
            ),
            (7, 6, 4),
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_equal_to_vmap_of_grad(network, shape, x64):
    given = started(network, shape, dtype=jnp.float64)
    got = jax.jit(lambda *given: per_sample_gradients(network, softmax_cross_entropy, *given))(*given)
    assert_close(got, jax.jit(lambda *given: by_autodiff(network, *given))(*given), NETWORK)


def test_labels_may_be_rows_and_the_mean_is_the_steps_gradient():
    network = models.source()
    state, images, labels = started(network, (8, 8, 1), samples=4)
    got = per_sample_gradients(network, softmax_cross_entropy, state, images, jax.nn.one_hot(labels, 10))
    step = jaxcnn.train_step(network, softmax_cross_entropy, optax.sgd(1.0), mesh=jax.make_mesh((1,), ("batch",)))
    moved = step(jax.tree.map(jnp.copy, state), images, labels)[0].params
    step_gradient = jax.tree.map(lambda before, after: before - after, state.params, moved)
    assert_close(jax.tree.map(lambda g: g.mean(0), got), step_gradient, 10 * FLOAT32)


def test_it_is_the_hand_written_pass_that_runs():
    doubled = jaxcnn.dense.replace(backward=lambda r, dy: tuple(2 * c for c in jaxcnn.dense.backward(r, dy)))
    shape = (8, 8, 1)
    state, images, labels = started(models.source(), shape)
    usual = per_sample_gradients(models.source(), softmax_cross_entropy, state, images, labels)
    network = jaxcnn.sequential(
        *models.source().layers[:-1], jaxcnn.Dense(10, rule=doubled, name="dense"), name="source"
    )  # fmt: skip
    changed = per_sample_gradients(network, softmax_cross_entropy, state, images, labels)
    assert_close(changed["dense_2"], jax.tree.map(lambda g: 2 * g, usual["dense_2"]), FLOAT32)
    assert_close(changed["conv2d"], jax.tree.map(lambda g: 2 * g, usual["conv2d"]), FLOAT32)


def test_errors():
    state, images, labels = started(models.source(), (8, 8, 1))
    call = per_sample_gradients
    with pytest.raises(TypeError, match="per_sample_gradients: state must be a TrainState, got dict"):
        call(models.source(), softmax_cross_entropy, {}, images, labels)
    with pytest.raises(TypeError, match="per_sample_gradients: takes Layers, got <lambda>"):
        call(lambda x: x, softmax_cross_entropy, state, images, labels)
    with pytest.raises(TypeError, match=r"per_sample_gradients: loss must be a jaxcnn.Rule of \(logits, labels\), got"):
        call(models.source(), optax.softmax_cross_entropy, state, images, labels)
    with pytest.raises(ValueError, match=r"one axis of samples, got shapes \(5, 8, 8, 1\) and \(4,\)"):
        call(models.source(), softmax_cross_entropy, state, images, labels[:4])
