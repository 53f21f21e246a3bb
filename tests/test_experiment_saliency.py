"""The experiment on saliency maps: each backward pass is its formula; what is compared is what it says."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment_folder import FOLDER, README, experiment, imported
from scipy import stats

import jaxcnn
from jaxcnn.training.step import TrainState


@pytest.fixture(scope="module")
def run():
    with imported("saliency"):
        yield experiment("saliency")


def test_quick_runs(run, tmp_path):
    assert run.main(["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == "python experiments/saliency/run.py --quick"
    assert (tmp_path / "saliency.png").stat().st_size > 10_000
    near = record["similarity"]["cascade"]["dense_2"]["gradient"]["rank"]
    assert near["mean"] == pytest.approx(np.mean(near["each"]), abs=1e-4)


# --- the backward passes --------------------------------------------------------------------------------------------


def test_each_relu_is_its_formula(run):
    x, dy = jnp.array([-1.0, 2, 3, 0, 4, -2]), jnp.array([5.0, -1, 4, 2, 0, -3])
    given = {name: jax.vjp(rule, x)[1](dy)[0].tolist() for name, rule in run.RULES.items()}
    assert given == {
        "gradient": [0, -1, 4, 0, 0, 0],
        "guided": [0, 0, 4, 0, 0, 0],
        "deconvnet": [5, 0, 4, 2, 0, 0],
    }


def maps(run, layers, params, x, name):
    """A network of these layers, "relu" standing for one with the method's rule."""
    made = [jaxcnn.ReLU(rule=run.RULES[name]) if layer == "relu" else layer for layer in layers]
    return run.logit_by_input(jaxcnn.sequential(*made), params, {}, jnp.asarray(x), jnp.array([1] * len(x)))


def test_a_network_by_hand(run):
    """z = x W = (1, -1, 2), of logit 1 dz is (2, 3, -1) before the ReLU's backward pass."""
    x, W = np.array([[1.0, 1.0]]), np.array([[2.0, -3.0, 1.0], [-1.0, 2.0, 1.0]])
    V = np.array([[9.0, 2.0], [9.0, 3.0], [9.0, -1.0]])
    layers = jaxcnn.Dense(3, bias=False), "relu", jaxcnn.Dense(2, bias=False)
    params = {f"dense_{i}": {"weights": jnp.asarray(w, jnp.float32)} for i, w in ((1, W), (2, V))}
    behind = {"gradient": [2, 0, -1], "guided": [2, 0, 0], "deconvnet": [2, 3, 0]}
    for name, dz in behind.items():
        assert maps(run, layers, params, x, name).tolist() == [(W @ dz).tolist()], name
    # (2, 0, -1) by W: 2·2 - 1 and -1·2 - 1.
    assert maps(run, layers, params, x, "gradient").tolist() == [[3, -3]]


def trained_like(run, rng):
    params, state, _ = run.network_of().init(jax.random.key(0), run.SHAPE)
    params = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(p.dtype), params)
    return params, state, rng.random((3, *run.SHAPE), np.float32), np.array([3, 0, 7])


def test_gradient_is_autodiffs_and_times_input(run, rng):
    params, state, images, classes = trained_like(run, rng)
    got = run.maps_of(params, state, images, classes)

    def logits(images):
        return run.network_of().plain(params, state, images)[0][np.arange(3), classes].sum()

    expected = jax.grad(logits)(jnp.asarray(images))[..., 0]
    np.testing.assert_allclose(got["gradient"], expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(got["gradient × input"], got["gradient"] * images[..., 0], rtol=1e-6)
    for one, other in (("gradient", "guided"), ("guided", "deconvnet"), ("gradient", "deconvnet")):
        assert np.abs(got[one] - got[other]).max() > 0.1 * np.abs(expected).max()


def test_where_all_is_positive_they_are_one(run, rng):
    """Positive weights and images: every ReLU is open, every gradient positive, the network linear there."""
    params, state, images, classes = trained_like(run, rng)
    params = jax.tree.map(jnp.abs, params)
    got = run.maps_of(params, state, images, classes)
    assert got["gradient"].min() > 0
    np.testing.assert_array_equal(got["gradient"], got["guided"])
    np.testing.assert_array_equal(got["gradient"], got["deconvnet"])


def test_the_networks_differ_in_their_relus_alone(run, rng):
    params, state, images, _ = trained_like(run, rng)
    outputs = [run.network_of(rule).forward(params, state, images)[0] for rule in run.RULES.values()]
    for other in outputs[1:]:
        np.testing.assert_array_equal(outputs[0], other)


# --- similarity -----------------------------------------------------------------------------------------------------


def test_rank_correlations_are_scipys(run, rng):
    """Of absolute values, with ties; inside: of the pixels of the image that are not black."""
    maps, others = (rng.integers(-5, 6, (4, 9, 9)).astype(np.float32) for _ in range(2))
    images = np.maximum(rng.standard_normal((4, 9, 9, 1)), 0)
    got = run.similarity(maps, others, images)
    for i, image in enumerate(images[..., 0]):
        everywhere, inside = np.ones_like(image, bool), image > 0
        wanted = [stats.spearmanr(*np.abs([maps[i][at], others[i][at]]))[0] for at in (everywhere, inside)]
        assert abs(wanted[0] - wanted[1]) > 1e-3
        assert [got["rank"][i], got["rank_inside"][i]] == pytest.approx(wanted)


def test_the_sign_and_the_scale_do_not_count(run, rng):
    maps, images = rng.standard_normal((2, 9, 9)), np.ones((2, 9, 9, 1))
    for measure, values in run.similarity(maps, -3 * maps, images).items():
        np.testing.assert_allclose(values, 1, err_msg=measure)


def test_a_constant_map_is_like_none(run, rng):
    maps = rng.standard_normal((2, 9, 9))
    others = maps * np.array([0, 1])[:, None, None]
    for values in run.similarity(maps, others, np.ones((2, 9, 9, 1))).values():
        assert np.isnan(values).tolist() == [True, False]


def test_structural_similarity_is_its_formula(run, rng):
    """Of 7×7 there is one window."""
    a, b = rng.random((2, 1, 7, 7))
    a, b = a / a.max(), b / b.max()
    c, d = 1e-4, 9e-4
    covariance = np.cov(a.ravel(), b.ravel(), ddof=0)
    expected = (2 * a.mean() * b.mean() + c) * (2 * covariance[0, 1] + d)
    expected /= (a.mean() ** 2 + b.mean() ** 2 + c) * (covariance[0, 0] + covariance[1, 1] + d)
    assert run.structural_similarity(a, 4 * b) == pytest.approx(expected)


# --- randomisation --------------------------------------------------------------------------------------------------


def test_layers_are_randomised_from_the_last_one_down(run):
    made = run.network_of().init(jax.random.key(0), run.SHAPE)[0]
    assert sorted(run.LAYERS) == sorted(made)
    cascade, alone = run.stages().values()
    assert cascade == [run.LAYERS[:n] for n in range(1, 6)]
    assert [layer for (layer,) in alone] == list(run.LAYERS)
    fresh = run.fresh_of(0)
    mixed = run.randomised(made, fresh, ("dense_2", "conv2d_1"))
    assert {name for name in mixed if mixed[name] is fresh[name]} == {"dense_2", "conv2d_1"}
    assert {name for name in mixed if mixed[name] is made[name]} == {"dense_1", "conv2d_2", "conv2d_3"}
    for seed in run.SEEDS:
        weights = run.network_of().init(jax.random.key(seed), run.SHAPE)[0]["dense_2"]["weights"]
        assert (fresh["dense_2"]["weights"] != weights).any()


def test_a_network_is_compared_with_its_own_stages(run, rng):
    """Two seeds whose trained parameters are already the fresh ones: nothing changes, in any stage."""
    images = rng.random((4, *run.SHAPE), np.float32)
    state = run.network_of().init(jax.random.key(0), run.SHAPE)[1]
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(run.fresh_of(seed) for seed in (0, 1)))
    states = TrainState(both, state, (), jnp.int32(0), jax.random.key(0))
    found = run.compared(states, images, (0, 1))
    for kind in run.stages():
        for near in found[kind]:
            for method in run.METHODS:
                np.testing.assert_allclose(near[method]["rank"], [1, 1])
                np.testing.assert_allclose(near[method]["ssim"], [1, 1])
    assert (found["another network"]["gradient"]["rank"] < 0.9).all()
    assert (found["another image"]["gradient"]["rank"] < 0.9).all()


# --- the result -----------------------------------------------------------------------------------------------------


def test_the_whole_run_says_what_was_found(run):
    record = json.loads((FOLDER / "saliency" / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == "python experiments/saliency/run.py"
    assert (record["seeds"], record["rates"], record["epochs"]) == (list(run.SEEDS), list(run.RATES), run.EPOCHS)
    assert (record["train"], record["images"]) == (run.TRAIN, run.IMAGES)
    assert (FOLDER / "saliency" / "saliency.png").stat().st_size > 10_000
    row = next(line for line in README.splitlines() if line.startswith("| [saliency]"))
    for part in (f"`{record['command']}`", "saliency/result.json", "saliency/saliency.png"):
        assert part in row
    assert f"\n{run.table(record)}\n" in README
