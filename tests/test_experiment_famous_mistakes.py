"""The experiment on mistakes: each is one, in the network too; what it counts, and that its README says so."""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiment_folder import README, experiment, imported, result_of

import jaxcnn


@pytest.fixture(scope="module", autouse=True)
def folder():
    with imported("famous_mistakes"):
        yield


@pytest.fixture(scope="module")
def common():
    return importlib.import_module("common")


@pytest.fixture(scope="module")
def mistakes():
    return importlib.import_module("mistakes")


def test_each_mistake_is_one(mistakes):
    from planted_faults import really_wrong

    # Those of the catalogue are proved in test_planted_faults.
    assert [m.name for m in mistakes.OWN if not really_wrong(m.fault)] == []
    names = [m.name for m in mistakes.MISTAKES]
    assert len(set(names)) == len(names)


def test_each_mistake_is_made_in_the_network_and_the_right_one_is_right(mistakes, common):
    """All gradients in one program; of the right network they are autodiff's."""
    network, (images, labels) = mistakes.network_of(mistakes.MISTAKES), mistakes.sample_of(mistakes.BATCH)
    state = jaxcnn.init_train_state(network, optax.sgd(0.1), 0, (8, 8, 1))
    # Another step's images are what a stale layer remembers.
    _, kept, _ = network.forward(state.params, state.state, images[::-1], train=True)
    # Scales of 1 and biases of 0 would hide some.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(p.dtype), state.params)
    state = state._replace(state=kept, params=params)

    def of(variant):
        own = state._replace(state=common.with_leaves(state.state, "variant", variant))
        return jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, own, images, labels)

    every = jax.jit(lambda variants: jax.lax.map(of, variants))(jnp.arange(1 + len(mistakes.MISTAKES)))
    right = jax.tree.map(lambda leaf: leaf[0], every)
    expected = jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, state, images, labels, backward="autodiff")
    for name, (cosine, ratio) in jaxcnn.alignment(right, expected).items():
        assert float(cosine) == pytest.approx(1, abs=1e-5), name
        assert float(ratio) == pytest.approx(1, abs=1e-5), name
    same = [
        m.name
        for i, m in enumerate(mistakes.MISTAKES, 1)
        if all(
            np.allclose(leaf[i], leaf[0], rtol=1e-5, atol=1e-6 * np.abs(leaf[0]).max())
            for leaf in jax.tree.leaves(every)
        )
    ]
    # Nothing in this network ties but zeros, behind a ReLU, and no cotangent is as large as 1.
    assert set(same) <= {"all ties get the gradient", "dy clipped to ±1"}
    # These two show where dy is large, and where plain areas tie above zero.
    plain = np.tile(rng.standard_normal((mistakes.BATCH, 1, 1, 1)), (1, 8, 8, 1)).astype(np.float32)
    for name, given, factor in (("dy clipped to ±1", images, 1000.0), ("all ties get the gradient", plain, 1.0)):
        number = 1 + [m.name for m in mistakes.MISTAKES].index(name)
        gradients = []
        for variant in (0, number):
            own = common.with_leaves(state.state, "variant", variant)
            logits, _, residuals = network.forward(params, own, given, train=True)
            dy = factor * (jax.nn.softmax(logits) - jax.nn.one_hot(labels, 10)) / len(labels)
            gradients.append(network.backward(residuals, dy)[0])
        near = jaxcnn.alignment(*gradients)
        assert min(float(a.cosine) for a in near.values()) < 0.999, name


def test_outcomes_and_what_is_hidden():
    module = experiment("famous_mistakes")
    right = np.array([[2.0, 1.0], [1.8, 1.2]])
    assert module.within(np.array([1.9, 1.1]), right)
    assert not module.within(np.array([1.9, 0.9]), right)
    assert not module.within(np.array([1.9, np.nan]), right)

    def result(mean, low, high, inside):
        return {
            "test_accuracy": {"mean": mean},
            "minus_right": {"low": low, "high": high},
            "loss_within_right_runs": inside,
        }

    cases = {
        "no difference": (0.95, -0.01, 0.01, True),
        "worse": (0.9, -0.06, -0.01, True),
        "better": (0.97, 0.01, 0.02, True),
        "fails": (0.1, -0.9, -0.8, False),
    }
    assert {name: module.outcome(result(*case)) for name, case in cases.items()} == {name: name for name in cases}
    assert [module.hidden(result(*case)) for case in cases.values()] == [True, False, False, False]
    assert not module.hidden(result(0.95, -0.01, 0.01, False))


def test_the_right_network_again(common):
    """Of the same splits, with other initial parameters and another order."""
    module, seeds = experiment("famous_mistakes"), range(2)
    split = common.digits(seeds)
    again = module.right_again("sgd", 0.03, split, seeds, 1, 2)
    assert (again.accuracy.shape, again.loss.shape) == ((2, 2), (2, 2, 1))
    how = {"rates": (0.03,), "epochs": 1, "batch": module.BATCH, "optimizer": optax.sgd}
    second = common.train(module.network_of([]), split, (200, 201), **how)
    np.testing.assert_array_equal(again.accuracy[1], common.tested(module.network_of([]), second, split)[0])
    np.testing.assert_array_equal(again.loss[1], second.loss[0, 0])
    assert (again.loss[0] != again.loss[1]).all()


def test_what_is_said_of_a_network_beside_the_right_one():
    module = experiment("famous_mistakes")
    right = module.Right(np.array([[0.8, 0.9], [0.6, 0.9]]), np.array([[[2.0, 1.0]] * 2, [[1.0, 0.5]] * 2]))
    said = right.beside(np.array([0.5, 0.8]), np.array([[1.5, 0.9], [1.7, 0.7]]))
    assert said["minus_right"]["mean"] == pytest.approx(-0.15)  # of 0.7 and 0.9, the means of the sets
    np.testing.assert_allclose(said["loss_by_epoch"], [1.6, 0.8])
    assert said["loss_within_right_runs"]
    assert not right.beside(np.array([0.5, 0.8]), np.array([[1.5, 1.2], [1.7, 0.9]]))["loss_within_right_runs"]
    first, second = module.each_right(right)  # each beside the other alone
    assert (first["minus_right"]["mean"], second["minus_right"]["mean"]) == pytest.approx((0.1, -0.1))
    assert not first["loss_within_right_runs"]


def test_famous_mistakes_says_what_was_found(mistakes):
    module, record = experiment("famous_mistakes"), result_of("famous_mistakes")
    assert [e["mistake"] for e in record["mistakes"]] == [m.name for m in mistakes.MISTAKES]
    assert (record["seeds"], record["epochs"]) == (list(module.SEEDS), module.EPOCHS)
    assert record["counts"] == json.loads(json.dumps(module.counts(record["mistakes"], record["right_sets"])))
    assert module.table(record["right"], record["mistakes"]) in README
    assert all(len(record["right_sets"][optimizer]) == 1 + module.SETS for optimizer in module.OPTIMIZERS)
    results = [result for entry in record["mistakes"] for result in entry["training"].values()]
    for result in results + [result for again in record["right_sets"].values() for result in again]:
        assert (result["outcome"], result["hidden"]) == (module.outcome(result), module.hidden(result))


def test_the_verifier_says_so_still(mistakes):
    """Of three, what is in the record."""
    module, record = experiment("famous_mistakes"), result_of("famous_mistakes")
    for name in module.QUICK[:3]:
        mistake = next(m for m in mistakes.MISTAKES if m.name == name)
        entry = next(e for e in record["mistakes"] if e["mistake"] == name)
        report = jaxcnn.verify(mistake.fault.rule, *mistake.fault.arrays, **mistake.fault.static)
        assert (report.findings[0].cause, report.findings[0].message) == (entry["verifier"], entry["message"])


def test_a_checker_that_is_not_installed_has_not_found_nothing():
    run = experiment("famous_mistakes")
    assert run.found(["found", "missed", "n/a: not this one", "found"]) == 2
    assert run.found(["missed", "missed"]) == 0
    assert run.found(["n/a: torch is not installed"] * 3) == "n/a: torch is not installed"
