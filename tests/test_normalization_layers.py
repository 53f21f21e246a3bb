"""Layers that do one thing in training and another outside of it: batch normalisation, dropout."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import EXACT, FLOAT64, assert_close, random_like
from jax.sharding import AxisType

import jaxcnn
from jaxcnn import BatchNorm, Dropout, GroupNorm, Identity, LayerNorm, RMSNorm, SpatialDropout, StochasticDepth
from jaxcnn.layers import by_mode

KEY = jax.random.key(0)


def plain_batch_norm(params, x, mean, variance):
    return params["scale"] * (x - mean) / jnp.sqrt(variance + 1e-5) + params["shift"]


def in_training(params, state, x):
    return plain_batch_norm(params, x, x.mean((0, 1, 2)), ((x - x.mean((0, 1, 2))) ** 2).mean((0, 1, 2)))


def outside(params, state, x):
    return plain_batch_norm(params, x, state["mean"], state["variance"])


@pytest.mark.parametrize(("train", "plain"), [(True, in_training), (False, outside)])
def test_batch_norm_in_both_modes(x64, rng, train, plain):
    layer = BatchNorm()
    params, _, shape = layer.init(KEY, (4, 2, 3))
    assert shape == (4, 2, 3)
    params = random_like(rng, params)
    state = {"mean": jnp.asarray(rng.normal(size=3)), "variance": jnp.asarray(rng.random(3) + 0.1)}
    x, dy = (jnp.asarray(rng.normal(size=(5, 4, 2, 3)) + 1) for _ in range(2))

    @jax.jit
    def run(params, state, x, dy):
        y, _, residuals = layer.forward(params, state, x, train=train)
        wanted, pullback = jax.vjp(lambda params, x: plain(params, state, x), params, x)
        return (y, layer.backward(residuals, dy)), (wanted, pullback(dy))

    assert_close(*run(params, state, x, dy), FLOAT64)


def test_running_statistics(x64, rng):
    layer = BatchNorm(momentum=0.75)
    params, state, _ = layer.init(KEY, (3,))
    assert_close(state, {"mean": jnp.zeros(3), "variance": jnp.ones(3)}, EXACT)
    first, second = rng.normal(size=(2, 5, 3)) + 4
    wanted = {"mean": np.zeros(3), "variance": np.ones(3)}
    for x in (first, second):
        state = layer.forward(params, state, jnp.asarray(x), train=True)[1]
        wanted["mean"] = wanted["mean"] * 0.75 + x.mean(0) * 0.25
        wanted["variance"] = wanted["variance"] * 0.75 + x.var(0) * 0.25
    assert_close(state, wanted, FLOAT64)
    by_plain, by_forward = (f(params, state, second, train=True)[1] for f in (layer.plain, layer.forward))
    assert_close(by_plain, by_forward, EXACT)
    assert layer.forward(params, state, second)[1] is state  # outside training it stays


@pytest.mark.parametrize("momentum", [0.9, np.float64(0.9), Fraction(9, 10)], ids=repr)
def test_running_statistics_stay_in_float32(momentum, x64, rng):
    layer = BatchNorm(momentum=momentum)
    params, state, _ = layer.init(KEY, (3,))
    params = jax.tree.map(lambda p: p.astype("bfloat16"), params)
    state = jax.tree.map(lambda s: s.astype("float32"), state)
    x = jnp.asarray(rng.normal(size=(64, 3)) + 100, jnp.bfloat16)
    y, state, _ = layer.forward(params, state, x, train=True)
    assert y.dtype == jnp.bfloat16
    assert {s.dtype for s in state.values()} == {jnp.dtype("float32")}
    mean = np.asarray(x, np.float64).mean(0)
    np.testing.assert_allclose(state["mean"], 0.1 * mean, rtol=1e-6)  # bfloat16 has 8 bits: 4e-3


NETWORK = jaxcnn.sequential(
    jaxcnn.Conv2D(4, 3, bias=False), BatchNorm(), jaxcnn.ReLU(), jaxcnn.Flatten(), jaxcnn.Dense(3)
)


@pytest.mark.parametrize("backward", ["manual", "autodiff"])
def test_training_normalises_by_the_whole_batch_on_several_devices(rng, backward):
    images, labels = jnp.asarray(rng.normal(size=(8, 4, 4, 1)), jnp.float32), jnp.arange(8) % 3
    images = images * jnp.arange(1, 9).reshape(8, 1, 1, 1)  # the halves have other statistics
    states = []
    for devices in (1, 2):
        mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        step = jaxcnn.train_step(NETWORK, jaxcnn.softmax_cross_entropy, optax.sgd(0.1), mesh=mesh, backward=backward)
        state = jaxcnn.init_train_state(NETWORK, optax.sgd(0.1), 0, (4, 4, 1))
        for _ in range(2):
            state, _ = step(state, images, labels)
        states.append(jax.device_get((state.params, state.state)))
    assert_close(states[1], states[0], 1e-5)


@pytest.mark.parametrize(("microbatch", "slices"), [(4, [(0, 4), (4, 8)]), (3, [(0, 2), (2, 5), (5, 8)])], ids=str)
def test_micro_batches_are_normalised_one_by_one(microbatch, slices, rng):
    """The running statistics take each in turn, first the smaller one; the gradient is the mean over all images."""
    images, labels = jnp.asarray(rng.normal(size=(8, 4, 4, 1)), jnp.float32), jnp.arange(8) % 3
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    sgd, loss = optax.sgd(1.0), jaxcnn.softmax_cross_entropy
    step = jaxcnn.train_step(NETWORK, loss, sgd, mesh=mesh, microbatch=microbatch)
    start = jaxcnn.init_train_state(NETWORK, sgd, 0, (4, 4, 1))
    params, state = start.params, start.state
    after = step(jax.tree.map(jnp.copy, start), images, labels)[0]

    def cost(params, state, images, labels):
        logits, state = NETWORK.plain(params, state, images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    wanted = params
    for begin, end in slices:
        part = slice(begin, end)
        gradient, state = jax.jit(jax.grad(cost, has_aux=True))(params, state, images[part], labels[part])
        wanted = jax.tree.map(lambda p, g, share=(end - begin) / 8: p - share * g, wanted, gradient)
    assert_close(after.state, state, 1e-5)
    assert_close(after.params, wanted, 1e-5)


@pytest.mark.parametrize(
    ("layer", "axes"), [(Dropout(0.5), ()), (SpatialDropout(0.5), (1, 2)), (StochasticDepth(0.5), (1, 2, 3))]
)
def test_dropout_in_both_modes(layer, axes):
    x = jnp.ones((8, 3, 2, 16))
    y, _, residuals = layer.forward({}, {}, x, train=True, key=KEY)
    assert set(np.unique(y)) == {0.0, 2.0}
    if axes:
        assert (np.ptp(y, axes) == 0).all()
    else:
        assert (np.ptp(y, (1, 2)) > 0).any()
    assert_close(layer.backward(residuals, 3 * x), ({}, 3 * y), EXACT)  # the same mask
    for y, _, residuals in (layer.forward({}, {}, x), layer.forward({}, {}, x, key=KEY)):
        assert_close((y, layer.backward(residuals, x)), (x, ({}, x)), EXACT)
    with pytest.raises(ValueError, match=f"{layer.name}: got no key; training needs one"):
        layer.forward({}, {}, x, train=True)


def test_dropout_of_rate_0_needs_no_key():
    x = jnp.ones((2, 3))
    assert_close(Dropout(0.0).forward({}, {}, x, train=True)[0], x, EXACT)


def test_by_mode_runs_the_backward_pass_of_the_layer_that_ran():
    layer = by_mode(jaxcnn.ReLU(), Identity())
    x, dy = jnp.array([-1.0, 2.0]), jnp.array([3.0, 4.0])
    for train, wanted in ((True, [0.0, 4.0]), (False, [3.0, 4.0])):
        # The residuals cross from one compiled pass to the other, the mode with them.
        residuals = jax.jit(functools.partial(layer.forward, train=train))({}, {}, x)[2]
        assert_close(jax.jit(layer.backward)(residuals, dy), ({}, jnp.array(wanted)), EXACT)
        f = functools.partial(jaxcnn.differentiable(layer), {}, {}, train=train)
        assert_close(jax.grad(lambda x, f=f: jnp.vdot(f(x)[0], dy))(x), jnp.array(wanted), EXACT)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BatchNorm(momentum=1.5), ValueError, "BatchNorm: momentum must be from 0 to 1, got 1.5"),
        (lambda: BatchNorm(momentum="0.9"), TypeError, "BatchNorm: momentum must be a number, got '0.9'"),
        (lambda: BatchNorm().init(KEY, ()), ValueError, r"BatchNorm: input_shape must be \(..., C\), without N"),
        (lambda: BatchNorm(epsilon=0).init(KEY, (3,)), ValueError, "epsilon must be positive, got 0"),
        (lambda: GroupNorm(3).init(KEY, (2, 2, 4)), ValueError, "groups must divide the 4 channels, got 3"),
        (lambda: GroupNorm(2).init(KEY, (4,)), ValueError, r"group_norm: input_shape must be \(H, W, C\)"),
        (lambda: LayerNorm().init(KEY, ()), ValueError, "LayerNorm: input_shape"),
        (lambda: RMSNorm().init(KEY, ()), ValueError, "RMSNorm: input_shape"),
        (lambda: Dropout(1.0), ValueError, "Dropout: rate must be at least 0 and less than 1, got 1.0"),
        (lambda: SpatialDropout("a"), TypeError, "SpatialDropout: rate must be a number, got 'a'"),
        (lambda: StochasticDepth(-0.1), ValueError, "StochasticDepth: rate must be at least 0"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
