"""The experiment `noise`: that it runs, that its result is what its code and README say, that its parts do it."""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from experiment_folder import FOLDER, README, imported, result_of

import jaxcnn

MODULES = ("changed", "rounding", "straight_through", "gradient_noise", "reversal")
DTYPES = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
}


@pytest.fixture(scope="module", autouse=True)
def folder():
    with imported("noise"):
        yield


def part(name: str):
    return importlib.import_module(name)


def test_quick_runs(tmp_path):
    assert part("run").main(["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == "python experiments/noise/run.py --quick"
    assert str(FOLDER) not in json.dumps(record)
    assert (tmp_path / "noise.png").stat().st_size > 10_000


def test_the_whole_run_is_committed_and_listed():
    record = result_of("noise")
    assert record["command"] == "python experiments/noise/run.py"
    row = next(line for line in README.splitlines() if line.startswith("| [noise]"))
    for name in (f"`{record['command']}`", "noise/result.json", "noise/noise.png"):
        assert name in row
    assert (FOLDER / "noise" / "noise.png").stat().st_size > 10_000
    for table in part("run").tables(record):
        assert f"\n{table}\n" in README


def test_the_whole_run_is_of_what_the_code_says():
    record, modules = result_of("noise"), {name: part(name) for name in MODULES}
    rounding, straight, noise, reversal = (modules[name] for name in MODULES[1:])
    assert all(record["seeds"] == list(module.SEEDS) for module in (rounding, straight))
    assert record["reversal"]["seeds"] == list(reversal.SEEDS)
    for name, module in (("rounding", rounding), ("straight_through", straight), ("reversal", reversal)):
        assert (record[name]["rates"], record[name]["epochs"]) == (list(module.RATES), module.EPOCHS)
    ways = [(way["format"], way["rounding"]) for way in record["rounding"]["ways"]]
    others = [name for name in rounding.FORMATS if name != "float32"]
    assert ways[1:] == [(name, how) for name in others for how in ("to nearest", "stochastic")]
    assert record["rounding"]["draws"] == rounding.DRAWS
    assert [entry["bits"] for entry in record["straight_through"]["by_bits"]] == list(straight.BITS)
    assert [entry["strength"] for entry in record["reversal"]["by_strength"]] == list(reversal.STRENGTHS)
    for one in record["gradient_noise"]:
        name = one["network"]
        assert (one["rates"], one["epochs"]) == (list(noise.RATES[name]), noise.EPOCHS[name])
        got = [{key: entry[key] for key in ("eta", "gamma", "relative")} for entry in one["by_noise"]]
        assert got == list(noise.VARIANTS[name])
        assert one["seeds"] == list(noise.SEEDS[name])


# --- rounding -------------------------------------------------------------------------------------------------------


def numbers_of_many_sizes(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(count) * 10.0 ** rng.uniform(-8, 1.5, count)).astype(np.float32)


@pytest.mark.parametrize("name", DTYPES)
def test_to_nearest_is_the_cast_of_the_format(name):
    rounding, dtype = part("rounding"), DTYPES[name]
    # Halfway between two as well, of normal and of subnormal numbers.
    ties = np.outer(2.0 ** np.arange(-20, 5), 1 + np.arange(512) / 512).ravel().astype(np.float32)
    x = np.concatenate([numbers_of_many_sizes(2000), ties, -ties, [0.0, -0.0]]).astype(np.float32)
    got = rounding.rounded(jax.random.key(0), x, rounding.NUMBERS[name], 0)
    np.testing.assert_array_equal(got, x.astype(dtype).astype(np.float32))
    largest = float(rounding.rounded(jax.random.key(0), jnp.array([1e6]), rounding.NUMBERS[name], 0)[0])
    assert largest == float(dtype(1e6) if name == "bfloat16" else ml_dtypes.finfo(dtype).max)


def test_a_scale_of_the_loss_is_another_range_of_exponents():
    rounding = part("rounding")
    x = numbers_of_many_sizes(2000).clip(-1.7, 1.7)
    got = rounding.rounded(jax.random.key(0), x, rounding.NUMBERS["float8_e4m3fn, loss × 2⁸"], 0)
    np.testing.assert_array_equal(got, (x * 256).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) / 256)


@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (4, 7), (2, 1)])
def test_fixed_point_has_its_levels_and_keeps_the_largest(bits, levels):
    rounding = part("rounding")
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    scale = np.abs(x).max() / levels
    got = np.asarray(rounding.rounded(jax.random.key(0), x, rounding.NUMBERS[f"fixed, {bits} bits"], 0))
    assert np.abs(got).max() == np.abs(x).max()
    assert len(np.unique(got)) <= 2 * levels + 1
    assert np.abs(got - x).max() <= scale / 2 * (1 + 1e-5)
    assert not rounding.rounded(jax.random.key(0), jnp.zeros(3), rounding.NUMBERS[f"fixed, {bits} bits"], 0).any()


def neighbours(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The largest number of a format that is at most x, the smallest that is at least x."""
    if name not in DTYPES:
        scale = np.abs(x).max() / np.float32({"fixed, 8 bits": 127, "fixed, 2 bits": 1}[name])
        return np.floor(x / scale) * scale, np.ceil(x / scale) * scale
    near = x.astype(DTYPES[name])
    ends = [np.nextafter(near, np.asarray(end, DTYPES[name])).astype(np.float32) for end in (-400, 400)]
    near = near.astype(np.float32)
    return np.where(near <= x, near, ends[0]), np.where(near >= x, near, ends[1])


@pytest.mark.parametrize("name", [*DTYPES, "fixed, 8 bits", "fixed, 2 bits"])
def test_stochastic_rounding_is_unbiased_and_lands_on_neighbours(name):
    """The mean of n draws, each below + spacing · Bernoulli(p), has the deviation spacing · √(p (1 - p) / n)."""
    rounding, draws = part("rounding"), 4000
    number = rounding.NUMBERS[name]
    x = numbers_of_many_sizes(200, seed=1) if name in DTYPES else np.linspace(-0.1, 1, 201, dtype=np.float32)
    below, above = neighbours(x, name)
    keys = jax.random.split(jax.random.key(2), draws)
    got = np.asarray(jax.jit(jax.vmap(lambda key: rounding.rounded(key, x, number, 1)))(keys))
    assert ((got == below) | (got == above)).all()
    spacing = (above - below).astype(np.float64)
    p = (x - below) / np.where(spacing > 0, spacing, 1)
    bound = spacing * (5 * np.sqrt(p * (1 - p) / draws) + 5 / draws)
    assert (np.abs(got.mean(0, dtype=np.float64) - x) <= bound).all()
    # Rounding to nearest is biased beyond it.
    nearest = np.asarray(rounding.rounded(keys[0], x, number, 0), np.float64)
    assert (np.abs(nearest - x) > bound).mean() > 0.3


def gradient_of(network, settings: dict, key: int = 0, step: int = 0, shape=(8, 8, 1)):
    common = part("common")
    state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, shape)
    state = state._replace(key=jax.random.key(key), step=jnp.asarray(step))
    for name, value in settings.items():
        state = state._replace(state=common.with_leaves(state.state, name, value))
    images, labels = jax.random.normal(jax.random.key(1), (16, *shape)), jnp.arange(16) % 10
    return jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, state, images, labels)


def test_a_network_in_float32_is_not_changed_and_in_bfloat16_it_is_rounded_in_every_layer():
    rounding = part("rounding")
    network = rounding.network()
    inside = [
        jaxcnn.Conv2D(8, 3), jaxcnn.ReLU(), jaxcnn.MaxPool(2), jaxcnn.Conv2D(8, 3), jaxcnn.ReLU(), jaxcnn.MaxPool(2),
        jaxcnn.Flatten(), jaxcnn.Dense(10),
    ]  # fmt: skip
    plain = gradient_of(jaxcnn.sequential(*inside), {})
    for settings in ({}, {"stochastic": 1}):
        for a, b in zip(*map(jax.tree.leaves, (gradient_of(network, settings), plain)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    for stochastic in (0, 1):
        got = gradient_of(network, {"format": rounding.NUMBERS["bfloat16"], "stochastic": stochastic})
        for a, b in zip(*map(jax.tree.leaves, (got, plain)), strict=True):
            np.testing.assert_array_equal(a, a.astype(jnp.bfloat16).astype(jnp.float32))
            assert not np.array_equal(a, b.astype(jnp.bfloat16).astype(jnp.float32))  # dy was rounded too


def test_randomness_is_the_steps():
    rounding = part("rounding")
    network, settings = rounding.network(), {"format": rounding.NUMBERS["float8_e5m2"], "stochastic": 1}
    first, again, next_step, other = (gradient_of(network, settings, *k) for k in ((0, 3), (0, 3), (0, 4), (1, 3)))
    leaves = [np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(g)]) for g in (first, again, next_step, other)]
    np.testing.assert_array_equal(leaves[0], leaves[1])
    assert (leaves[0] != leaves[2]).any()
    assert (leaves[0] != leaves[3]).any()


# --- straight through -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantise_has_its_levels(bits):
    quantise = part("straight_through").quantise
    w = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    top = np.abs(w).max()
    q = np.asarray(quantise(w, np.float32(bits), np.float32(1)))
    if bits == 1:
        np.testing.assert_allclose(q, np.sign(w) * np.abs(w).mean(), rtol=1e-5)
    else:
        levels = ((np.arange(2**bits) + 0.5) * 2 / 2**bits - 1) * top
        assert np.abs(q[:, None] - levels).min(-1).max() < 1e-5
        assert np.abs(q - w).max() <= top / 2**bits * (1 + 1e-5)
    np.testing.assert_array_equal(quantise(w, np.float32(0), np.float32(1)), w)


def test_the_gradient_passes_straight_through_and_the_verifier_says_it_is_none():
    quantise = part("straight_through").quantise
    w, dy = np.linspace(-1, 1, 9, dtype=np.float32) ** 3, np.arange(9, dtype=np.float32)
    for through in (0, 1):
        dw, *others = jax.vjp(quantise, w, np.float32(2), np.float32(through))[1](dy)
        np.testing.assert_array_equal(dw, through * dy)
        assert not any(others)
    report = jaxcnn.verify(quantise, np.array([0.1, -0.4, 0.7, 1.0]), np.array(2.0), np.array(1.0))
    assert not report.ok
    assert {finding.argument for finding in report.findings} >= {"w"}


def test_a_quantised_layer_uses_few_weights_in_both_passes():
    straight = part("straight_through")
    layer = straight.quantised(jaxcnn.Dense(4))
    params, state, _ = layer.init(jax.random.key(0), (6,))
    state = {**state, "bits": jnp.array(1.0)}
    x, dy = jax.random.normal(jax.random.key(1), (3, 6)), jax.random.normal(jax.random.key(2), (3, 4))
    y, new_state, residuals = layer.forward(params, state, x)
    low = jnp.sign(params["weights"]) * jnp.abs(params["weights"]).mean()
    np.testing.assert_allclose(y, x @ low, rtol=1e-5)
    dparams, dx = layer.backward(residuals, dy)
    np.testing.assert_allclose(dx, dy @ low.T, rtol=1e-5)
    np.testing.assert_allclose(dparams["weights"], x.T @ dy, rtol=1e-4, atol=1e-6)
    assert jax.tree.structure(new_state) == jax.tree.structure(state)


# --- gradient noise -------------------------------------------------------------------------------------------------


def test_noise_has_the_variance_that_is_said():
    noise = part("gradient_noise")
    gradients = {"a": jnp.full((100, 100), 3.0), "b": jnp.zeros(10_000)}

    def deviation(**settings):
        got = noise.add_noise(jax.random.key(0), gradients, {**noise.NONE, "longest": np.inf, **settings})
        parts = jax.tree.map(lambda g, right: float((g - right).std()), got, gradients)
        assert parts["a"] == pytest.approx(parts["b"], rel=0.05) or not parts["a"]
        return parts["a"]

    assert deviation(step=0) == 0
    assert deviation(eta=0.25, step=7) == pytest.approx(0.5, rel=0.03)
    assert deviation(eta=0.25, gamma=0.55, step=99) == pytest.approx(0.5 * 100**-0.275, rel=0.03)
    assert deviation(relative=2.0, step=0) == pytest.approx(2 * 3 / 2**0.5, rel=0.03)
    short = noise.add_noise(jax.random.key(0), gradients, {**noise.NONE, "longest": 10.0, "step": 0})
    np.testing.assert_allclose(short["a"], gradients["a"] * 10 / 300, rtol=1e-5)


def test_the_steps_are_counted():
    noise = part("gradient_noise")
    network = noise.network("one hidden layer")
    state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, (8, 8, 1))
    mesh = jax.make_mesh((1,), ("batch",))
    run = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optax.sgd(0.1), mesh=mesh)
    for _ in range(3):
        state, _ = run(state, jnp.ones((4, 8, 8, 1)), jnp.arange(4))
    assert int(state.state["step"]) == 3
    evaluated = network.forward(state.params, state.state, jnp.ones((4, 8, 8, 1)))[1]
    assert int(evaluated["step"]) == 3


# --- reversal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [-1.0, 0.0, 0.3, 1.0, 3.0])
def test_reversal_is_the_identity_forward_and_minus_lambda_backward(strength):
    reverse = part("reversal").reverse
    x, dy = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    y, pullback = jax.vjp(reverse, x, np.float32(strength))
    np.testing.assert_array_equal(y, x)
    dx, dstrength = pullback(dy)
    np.testing.assert_array_equal(dx, np.float32(-strength) * dy)
    assert float(dstrength) == 0


@pytest.mark.parametrize(("strength", "cause"), [(1.0, "negated"), (-2.0, "scaled"), (0.0, "zero"), (0.3, "scaled")])
def test_the_verifier_says_what_reversal_does(strength, cause):
    report = jaxcnn.verify(part("reversal").reverse, np.linspace(-2, 3, 12).reshape(3, 4), np.array(strength))
    (found,) = {(f.argument, f.cause) for f in report.findings if f.check == "float64"}
    assert found == ("x", cause)


def test_the_domains_head_reverses_what_reaches_the_features_and_nothing_else():
    reversal, common = part("reversal"), part("common")
    network = reversal.network()
    state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, (8, 8, 1))
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
    of_class, of_domain = np.zeros((2, 8, 12), np.float32)
    of_class[range(8), range(8)] = 1
    of_domain[range(8), 10 + np.arange(8) % 2] = 1

    def by(strength, labels):
        own = state._replace(state=common.with_leaves(state.state, "strength", strength))
        return jaxcnn.gradients(network, reversal.both, own, images, labels)

    cooperative, reversed_ = by(-1.0, of_domain), by(2.0, of_domain)
    for a, b in zip(*(jax.tree.leaves(g["features"]) for g in (cooperative, reversed_)), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(b, -2 * a, rtol=1e-4, atol=1e-7)
    for a, b in zip(*(jax.tree.leaves(g["heads"]) for g in (cooperative, reversed_)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert not any(leaf.any() for leaf in jax.tree.leaves(by(0.0, of_domain)["features"]))
    # Images without a class teach the class's head nothing.
    assert not any(leaf.any() for leaf in jax.tree.leaves(reversed_["heads"]["class"]))
    whole, parts = by(0.3, of_class + of_domain), (by(0.3, of_class), by(0.3, of_domain))
    for a, b, c in zip(*map(jax.tree.leaves, (whole, *parts)), strict=True):
        np.testing.assert_allclose(a, b + c, rtol=1e-4, atol=1e-6)


def test_the_loss_and_the_choice_of_the_classes_are_right():
    reversal = part("reversal")
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((4, 12)), rng.random((4, 12))
    labels[2:, :10] = 0
    assert jaxcnn.verify(reversal.both, logits, labels).ok
    assert jaxcnn.verify(reversal.classes, logits).ok


def test_the_inverted_half_has_no_classes():
    reversal, common = part("reversal"), part("common")
    split = common.digits((0, 1))
    own, labelled = (reversal.two_domains(split, known).train for known in (False, True))
    half = 1149 // 2
    np.testing.assert_array_equal(own.images[:, :half], split.train.images[:, :half])
    np.testing.assert_array_equal(own.images[:, half:], -split.train.images[:, half:])
    assert not own.labels[:, half:, :10].any()
    np.testing.assert_array_equal(own.labels[:, :half, :10].argmax(-1), split.train.labels[:, :half])
    np.testing.assert_array_equal(labelled.labels[..., :10].argmax(-1), split.train.labels)
    np.testing.assert_array_equal(own.labels[..., 10:].argmax(-1), np.broadcast_to(np.arange(1149) >= half, (2, 1149)))
