"""Dtypes of parameters and of computation: what is cast where, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import EXACT, assert_close
from test_loop import train

import jaxcnn
from jaxcnn import BatchNorm, Conv2D, Dense, Flatten, ReLU, residual, sequential, with_dtypes
from jaxcnn.training.config import Config
from jaxcnn.training.run import prepare
from jaxcnn.training.step import BACKWARD

BFLOAT16 = 3e-2  # epsilon 8e-3, through the layers of a network
KEY = jax.random.key(0)
NETWORK = sequential(Conv2D(4, 3), BatchNorm(), ReLU(), residual(Conv2D(4, 3)), Flatten(), Dense(3))


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def images(rng, dtype="float32"):
    return jnp.asarray(rng.normal(size=(4, 4, 4, 1)), dtype)


def passed(layer, params, state, x):
    """(y, new state, dparams, dx), dy = y."""
    y, state, residuals = layer.forward(params, state, x, train=True)
    return y, state, *layer.backward(residuals, y)


def test_computation_follows_the_parameters(rng):
    narrow = with_dtypes(NETWORK, parameters="bfloat16")
    params, state, shape = narrow.init(KEY, (4, 4, 1))
    assert (dtypes(params), dtypes(state), shape) == ({"bfloat16"}, {"float32"}, (3,))
    x = images(rng)
    y, new_state, dparams, dx = passed(narrow, params, state, x)
    assert (dtypes(y), dtypes(new_state), dtypes(dparams), dtypes(dx)) == (
        {"bfloat16"}, {"float32"}, {"bfloat16"}, {"float32"},
    )  # fmt: skip
    # As if the images had been given in that dtype, dx apart, which is theirs.
    cast_before = passed(NETWORK, params, state, x.astype("bfloat16"))
    assert_close((y, new_state, dparams), cast_before[:3], EXACT)
    assert_close(dx, cast_before[3].astype("float32"), EXACT)


def test_mixed_precision(rng):
    mixed = with_dtypes(NETWORK, computation="bfloat16")
    params, state, _ = mixed.init(KEY, (4, 4, 1))
    assert dtypes(params) == {"float32"}
    x = images(rng)
    y, new_state, dparams, dx = passed(mixed, params, state, x)
    narrow = jax.tree.map(lambda p: p.astype("bfloat16"), params)
    wanted = passed(NETWORK, narrow, state, x.astype("bfloat16"))
    assert_close((y, new_state), wanted[:2], EXACT)
    assert_close((dparams, dx), jax.tree.map(lambda d: d.astype("float32"), wanted[2:]), EXACT)


def test_differentiable_and_plain_autodiff_agree(x64, rng):
    """float32 parameters computed in float64: the casts alone separate the two."""
    network = sequential(Conv2D(4, 3), ReLU(), residual(Conv2D(4, 3)), Flatten(), Dense(3))
    layer = with_dtypes(network, parameters="float32", computation="float64", output="float32")
    params, state, _ = layer.init(KEY, (4, 4, 1))
    x, dy = images(rng, "float32"), jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)

    def by(function):
        return jax.jit(jax.grad(lambda p, x: jnp.vdot(function(p, state, x, train=True)[0], dy), (0, 1)))(params, x)

    hand, auto = by(jaxcnn.differentiable(layer)), by(layer.plain)
    assert dtypes(hand) == {"float32"}
    assert_close(hand, auto, 1e-6)  # each gradient rounded to float32 at the end


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_branches_of_several_dtypes(x64, rng, dtype):
    """x itself in float64, the layer beside it in the parameters' dtype; each is given its own cotangent."""
    layer = with_dtypes(residual(Dense(3)), parameters=dtype)
    params, state, _ = layer.init(KEY, (3,))
    x, dy = (jnp.asarray(rng.normal(size=(2, 3))) for _ in range(2))
    y, _, residuals = layer.forward(params, state, x)
    dparams, dx = layer.backward(residuals, dy)
    assert (dtypes(y), dtypes(dparams), dtypes(dx)) == ({"float64"}, {dtype}, {"float64"})
    assert_close(dparams["layer"]["bias"], dy.astype(dtype).sum(0), 1e-2)
    wanted = dy + (dy.astype(dtype) @ params["layer"]["weights"].T).astype("float64")
    assert_close(dx, wanted, 1e-2)


def test_training_from_images_of_another_dtype(rng):
    """bfloat16 parameters, float32 images: a step of either kind; mixed precision adds up in float32."""
    labels = jnp.arange(4) % 3
    for layer, kept in (
        (with_dtypes(NETWORK, parameters="bfloat16"), {"bfloat16"}),
        (with_dtypes(NETWORK, computation="bfloat16", output="float32"), {"float32"}),
    ):
        sgd = optax.sgd(0.1)
        step = jaxcnn.train_step(layer, jaxcnn.softmax_cross_entropy, sgd)
        state, metrics = step(jaxcnn.init_train_state(layer, sgd, 0, (4, 4, 1)), images(rng), labels)
        assert dtypes(state.params) == kept
        assert dtypes(state.state) == {"float32"}
        assert np.isfinite(float(metrics["loss"]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: with_dtypes(Dense(2), output="x"), TypeError, "with_dtypes: output must be a floating dtype, got 'x'"),
        (lambda: with_dtypes(Dense(2), parameters="float64").init(KEY, (3,)), ValueError,
         "with_dtypes: float64 is switched off in jax"),
        (lambda: with_dtypes(Dense(2), parameters=int), TypeError,
         "with_dtypes: parameters must be a floating dtype, got int"),
        (lambda: with_dtypes(Dense), TypeError, "with_dtypes: takes Layers, got Dense"),
        (lambda: Dense(2).forward(Dense(2).init(KEY, (3,))[0], {}, jnp.ones((1, 3), "int32")), TypeError,
         "dense: x must be floating point, got int32"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_gradients_of_the_command_lines_bfloat16(rng):
    """By hand they are autodiff's of the same forward pass, up to bfloat16's rounding; the rest is float32."""
    run = prepare(Config(precision="bfloat16", batch_size=64))
    exact = prepare(Config(batch_size=64))
    batch = (run.data[0].train.images[:64], run.data[0].train.labels[:64])

    def by(run, name):
        given = (run.state.params, run.state.state, *batch, run.state.key)
        return jax.jit(lambda *given: BACKWARD[name](run.network, jaxcnn.softmax_cross_entropy, 1.0, *given)[1])(*given)

    (hand, metrics), (auto, _), (wanted, _) = by(run, "manual"), by(run, "autodiff"), by(exact, "manual")
    assert dtypes(run.state.params) == dtypes(hand) == dtypes((metrics["loss"], metrics["accuracy"])) == {"float32"}
    assert_close(hand, auto, BFLOAT16)
    assert_close(hand, wanted, 0.1)  # rounded otherwise, some units are on the other side of 0, some maxima elsewhere
    differences = jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), hand, wanted)
    assert min(jax.tree.leaves(differences)) > 1e-4  # float32 has 1e-7: it is computed in bfloat16 indeed


def test_a_run_in_bfloat16_learns_as_one_in_float32_does(tmp_path):
    """To the digits' last figures they cannot agree; what is kept and what is tested is float32."""
    narrow, wide = (
        train(prepare(Config(epochs=4, precision=precision)), tmp_path / precision)[-1].metrics
        for precision in ("bfloat16", "float32")
    )
    for name in ("train_loss", "test_loss"):
        assert narrow[name] == pytest.approx(wide[name], rel=0.1)
        assert narrow[name] != wide[name]
    assert abs(narrow["test_accuracy"] - wide["test_accuracy"]) < 0.02
    params, _ = jaxcnn.load(tmp_path / "bfloat16")
    assert dtypes(params) == {"float32"}
