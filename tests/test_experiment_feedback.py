"""The experiment on feedback weights: each backward pass is its formula, and the result what the code says."""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiment_folder import FOLDER, README, experiment, imported

import jaxcnn
from jaxcnn import Conv2D, Dense, ReLU, sequential

LAYERS = {"conv2d": (Conv2D(4, 3), (6, 5, 3)), "dense": (Dense(4), (7,))}
KEY = jax.random.key(5)


@pytest.fixture(scope="module", autouse=True)
def folder():
    with imported("feedback"):
        yield


@pytest.fixture(scope="module")
def methods():
    return importlib.import_module("methods")


@pytest.fixture(scope="module")
def run():
    return experiment("feedback")


@pytest.fixture(params=LAYERS)
def made(request, methods):
    """A layer, the same with feedback, its parameters and state, an input and the cotangent of its output."""
    layer, shape = LAYERS[request.param]
    changed = methods.with_feedback(layer, outputs=3)
    params, state, out = changed.init(jax.random.key(0), shape)
    x, dy = (jax.random.normal(jax.random.key(i), (2, *size)) for i, size in ((1, shape), (2, out)))
    return layer, changed, params, state, x, dy


def passes(methods, layer, params, state, method, x, dy, key=KEY):
    """(y, dparams, dx)"""
    state = state | {"variant": jnp.int32(methods.METHODS.index(method))}
    y, _, residuals = layer.forward(params, state, x, train=True, key=key)
    return y, *layer.backward(residuals, dy)


def by_autodiff(layer, params, x, dy):
    """(dparams, dx) of the layer without feedback."""
    return jax.vjp(lambda params, x: layer.forward(params, {}, x)[0], params, x)[1](dy)


def assert_close(got, expected, **tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-5} | tolerance))


# --- the formulas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["BP", "FA", "uSF", "brSF", "frSF", "DFA"])
def test_forward_and_the_gradients_of_the_parameters_are_the_layers_own(methods, made, method):
    layer, changed, params, state, x, dy = made
    y, dparams, _ = passes(methods, changed, params, state, method, x, dy)
    assert (y == layer.forward(params, {}, x)[0]).all()
    assert (y == changed.forward(params, state, x)[0]).all()
    assert_close(dparams, by_autodiff(layer, params, x, dy)[0])


# Written out by the layers' parameters, of which one is the weights and one the bias: dx knows nothing of that.
FORMULAS = {
    "BP": lambda w, m: w,
    "FA": lambda w, m: m,
    "uSF": lambda w, m: np.sqrt(np.mean(np.square(m))) * np.sign(w),
    "frSF": lambda w, m: np.abs(m) * np.sign(w),
}


@pytest.mark.parametrize("method", FORMULAS)
def test_dx_is_autodiffs_with_the_weights_of_the_formula(methods, made, method):
    layer, changed, params, state, x, dy = made
    instead = jax.tree.map(lambda w, m: jnp.asarray(FORMULAS[method](w, m)), params, state["fixed"])
    dx = passes(methods, changed, params, state, method, x, dy)[2]
    assert_close(dx, by_autodiff(layer, instead, x, dy)[1])
    if method != "BP":
        right = by_autodiff(layer, params, x, dy)[1]
        assert np.abs(dx - right).max() > 0.1 * np.abs(right).max()


def test_with_w_for_the_feedback_weights_each_is_backpropagation(methods, made):
    _, changed, params, state, x, dy = made
    right = passes(methods, changed, params, state, "BP", x, dy)
    for method in ("FA", "frSF"):
        got = passes(methods, changed, params, state | {"fixed": params}, method, x, dy)
        assert_close(got, right, rtol=0, atol=0)
    # Uniform: where all weights have one size. Of a batch: where the draw is W.
    even = jax.tree.map(lambda w: jnp.sign(w) / 4, params)
    got = passes(methods, changed, even, state | {"fixed": even}, "uSF", x, dy)
    assert_close(got, passes(methods, changed, even, state, "BP", x, dy), rtol=1e-6)
    drawn = methods.feedback_weights(methods.METHODS.index("brSF"), params, state["fixed"], lambda: params)
    assert_close(drawn, params, rtol=0, atol=0)


def test_batchwise_magnitudes_are_drawn_for_each_step(methods, made):
    layer, changed, params, state, x, dy = made
    one, again, other = (
        passes(methods, changed, params, state, "brSF", x, dy, jax.random.key(k))[2] for k in (5, 5, 6)
    )
    assert (one == again).all()
    assert np.abs(one - other).max() > 0.1 * np.abs(one).max()
    drawn = layer.init(KEY, x.shape[1:])[0]
    expected = jax.tree.map(lambda m, w: jnp.abs(m) * jnp.sign(w), drawn, params)
    assert_close(one, by_autodiff(layer, expected, x, dy)[1])


def test_fixed_weights_are_drawn_as_the_parameters_are_and_apart_from_them(methods):
    layer = methods.with_feedback(Dense(300), 10)
    params, state, _ = layer.init(jax.random.key(0), (200,))
    w, m = (np.asarray(tree["weights"]) for tree in (params, state["fixed"]))
    assert m.std() == pytest.approx(w.std(), rel=0.02)
    assert np.abs(m).max() <= np.sqrt(6 / 500)  # Glorot's bound
    assert abs(np.corrcoef(w.ravel(), m.ravel())[0, 1]) < 0.02
    assert state["direct"].shape == (10, 200)
    assert np.asarray(state["direct"]).std() == pytest.approx(np.sqrt(2 / 210), rel=0.05)


def test_training_needs_a_key(methods, made):
    _, changed, params, state, x, _ = made
    with pytest.raises(ValueError, match=r"(conv2d|dense): got no key; training needs one: forward\(params, state, x"):
        changed.forward(params, state, x, train=True)


# --- direct feedback ------------------------------------------------------------------------------------------------


def linear(methods):
    layers = [methods.with_feedback(Dense(size, name=f"dense_{size}"), 3) for size in (8, 6, 3)]
    network = methods.telling_the_error(sequential(*layers))
    params, state, _ = network.init(jax.random.key(0), (5,))
    return network, params, state


def test_direct_feedback_by_the_true_chain_is_backpropagation_in_a_linear_network(methods, common):
    network, params, state = linear(methods)
    x, dy = (jax.random.normal(jax.random.key(i), (4, size)) for i, size in ((1, 5), (2, 3)))
    direct = common.with_leaves(state, "variant", methods.METHODS.index("DFA"))
    random = network.backward(network.forward(params, direct, x, train=True, key=KEY)[2], dy)
    chain = jnp.eye(3)
    for name in ("dense_3", "dense_6", "dense_8"):
        chain = chain @ params[name]["weights"].T
        direct[name] = direct[name] | {"direct": chain}
    right = network.backward(network.forward(params, state, x, train=True, key=KEY)[2], dy)
    assert_close(network.backward(network.forward(params, direct, x, train=True, key=KEY)[2], dy), right)
    plain = sequential(*(Dense(size, name=f"dense_{size}") for size in (8, 6, 3)))
    assert_close(right, by_autodiff(plain, params, x, dy))
    below = (both[0]["dense_8"]["weights"] for both in (random, right))
    assert abs(_cosine(*below)) < 0.9


def test_direct_feedback_is_the_error_times_a_matrix(methods, common):
    """dW = xᵀ ((e D) ⊙ ReLU'(z)), with D of the layer above; of the last layer it is the true one."""
    below, above = Dense(6, name="below"), methods.with_feedback(Dense(3, name="above"), 3)
    network = methods.telling_the_error(sequential(below, ReLU(), above))
    params, state, _ = network.init(jax.random.key(0), (5,))
    state = common.with_leaves(state, "variant", methods.METHODS.index("DFA"))
    x, error = (np.array(jax.random.normal(jax.random.key(i), (4, size))) for i, size in ((1, 5), (2, 3)))
    dparams, _ = network.backward(network.forward(params, state, x, train=True, key=KEY)[2], error)
    z = x @ np.asarray(params["below"]["weights"])
    assert_close(dparams["below"]["weights"], x.T @ ((error @ np.asarray(state["above"]["direct"])) * (z > 0)))
    assert_close(dparams["above"]["weights"], np.maximum(z, 0).T @ error)


# --- LeNet ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def common():
    return importlib.import_module("common")


def test_lenet_with_each_method(methods, common):
    """All gradients in one program: backpropagation's is autodiff's of the library's LeNet; the last layer's is exact
    whatever the method; those below are not.
    """
    network, plain = methods.lenet(), jaxcnn.models.lenet5()
    state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, (28, 28, 1))
    images, labels = jax.random.normal(jax.random.key(1), (16, 28, 28, 1)), jnp.arange(16) % 10
    assert (network.forward(state.params, state.state, images)[0] == plain.forward(state.params, {}, images)[0]).all()

    def of(variant):
        own = state._replace(state=common.with_leaves(state.state, "variant", variant))
        return jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, own, images, labels)

    every = jax.jit(lambda variants: jax.lax.map(of, variants))(jnp.arange(len(methods.METHODS)))
    without = state._replace(state={})
    right = jaxcnn.gradients(plain, jaxcnn.softmax_cross_entropy, without, images, labels, backward="autodiff")
    for number, method in enumerate(methods.METHODS):
        near = jaxcnn.alignment(jax.tree.map(lambda leaf, n=number: leaf[n], every), right)
        for name, (cosine, ratio) in near.items():
            if method == "BP" or name.startswith("dense_3"):
                assert (float(cosine), float(ratio)) == pytest.approx((1, 1), abs=1e-4), (method, name)
            else:
                assert float(cosine) < 0.97, (method, name)
    # Signs alone give most of the direction of the layer below, random weights none of it.
    cosines = {
        m: _cosine(every["dense_2"]["weights"][i], right["dense_2"]["weights"]) for i, m in enumerate(methods.METHODS)
    }
    assert min(cosines[m] for m in ("uSF", "brSF", "frSF")) > 0.5
    assert max(abs(cosines[m]) for m in ("FA", "DFA")) < 0.5


def _cosine(a, b):
    return float(jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))


# --- the run --------------------------------------------------------------------------------------------------------


def test_the_rate_falls_to_nothing(run):
    """With a gradient of 1 and no weights to decay, the step is the rate times the sum of the momenta."""
    optimizer = run.optimizer_of(4)(0.5)
    params = jnp.zeros(())
    state, velocity = optimizer.init(params), 0.0
    for share in (1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0):
        velocity = 0.9 * velocity + 1
        update, state = optimizer.update(jnp.ones(()), state, params)
        assert float(update) == pytest.approx(-0.5 * share * velocity, rel=1e-5, abs=1e-6)
    decayed, _ = run.optimizer_of(4)(0.5).update(jnp.zeros(()), optimizer.init(params), jnp.array(2.0))
    assert float(decayed) == pytest.approx(-0.5 * 0.001 * 2)


def test_digits_enlarged(run, common):
    split = run.enlarged(common.digits((0,)))
    images = split.validation.images
    assert images.shape == (1, 288, 28, 28, 1)
    small = common.digits((0,)).validation.images
    assert (images[:, :, 2:-2:3, 2:-2:3] == small).all()
    assert (images[:, :, 4:-2:3, 4:-2:3] == small).all()
    assert (images[:, :, :2] == small.min()).all()


def test_quick_runs(run, tmp_path):
    assert run.main(["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == "python experiments/feedback/run.py --quick"
    assert set(record["versions"]) >= {"python", "jax", "optax"}
    assert record["cpu"]
    assert str(FOLDER) not in json.dumps(record)
    assert (tmp_path / "feedback.png").stat().st_size > 10_000
    cosines = {r["method"]: r["cosine_by_epoch"] for r in record["results"]}
    for method, layers in cosines.items():
        assert layers["dense_3/weights"]["mean"] == pytest.approx([1, 1], abs=1e-4), method
    assert cosines["BP"]["conv2d_1/filters"]["mean"] == pytest.approx([1, 1], abs=1e-4)


def test_the_whole_run_is_committed_and_says_what_was_found(run, methods):
    record = json.loads((FOLDER / "feedback" / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == "python experiments/feedback/run.py"
    assert (FOLDER / "feedback" / "feedback.png").stat().st_size > 10_000
    assert [r["method"] for r in record["results"]] == list(methods.METHODS)
    assert (record["seeds"], record["epochs"]) == (list(run.SEEDS), run.EPOCHS)
    assert (record["train_images"], record["validation_images"], record["test_images"]) == (
        run.TRAIN,
        run.VALIDATION,
        10_000,
    )
    assert record["literature"] == run.LITERATURE
    tried = {method: [str(rate) for rate in rates] for methods, rates in run.RATES.items() for method in methods}
    assert {r["method"]: list(r["validation_error_by_rate"]) for r in record["results"]} == tried
    for result in record["results"]:
        errors = result["validation_error_by_rate"]
        assert min(errors, key=errors.get) == str(result["rate"])
        assert np.mean(result["test_error"]["each"]) == pytest.approx(result["test_error"]["mean"], rel=1e-3)
    assert run.table(record["results"]) in README
    row = next(line for line in README.splitlines() if line.startswith("| [feedback]"))
    assert all(part in row for part in (f"`{record['command']}`", "feedback/result.json", "feedback/feedback.png"))
