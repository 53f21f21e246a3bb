"""The epoch is chosen on validation images: what was best is kept, survives a break, and alone meets the test set."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest
from test_loop import lines_of, train

import jaxcnn
from jaxcnn.training import choice, loop
from jaxcnn.training.checkpoint import checkpoints, params_sha256
from jaxcnn.training.config import Config
from jaxcnn.training.loop import Diverged, EpochEnd, Interrupted
from jaxcnn.training.optimizer import evaluated_params
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run import prepare
from jaxcnn.training.run_folder import RunFolder
from jaxcnn.training.samples import DataError

# 161 steps an epoch at a rate that is too large for them: after the first epochs it gets worse.
WORSE = Config(epochs=4, batch_size=8, validation=0.1, schedule="constant", learning_rate=0.03)


@pytest.fixture(scope="module")
def run():
    return prepare(WORSE)


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, [event.metrics for event in train(run, path) if isinstance(event, EpochEnd)]


def test_the_best_epoch_is_chosen_and_loaded(run, whole, tmp_path):
    """What it was then is what a run of so many epochs ends with."""
    path, lines = whole
    accuracies = [line["validation_accuracy"] for line in lines]
    chosen = lines[-1]["chosen_epoch"]
    assert chosen < WORSE.epochs
    assert accuracies[chosen - 1] == max(accuracies) > accuracies[-1]
    shorter = prepare(dataclasses.replace(WORSE, epochs=chosen))
    end = train(shorter, tmp_path)[-1].metrics
    for name in ("chosen_epoch", "test_loss", "test_accuracy", "params_sha256"):
        assert lines[-1][name] == end[name], name
    params, state = jaxcnn.load(path)
    last = RunFolder(tmp_path).newest(shorter.state, loop.initially_chosen(shorter)).state
    assert params_sha256(params) == params_sha256(last.params) == end["params_sha256"]
    score = jaxcnn.evaluate(run.network, last._replace(params=params, state=state), *run.data[0].test)
    np.testing.assert_allclose(score["loss"], end["test_loss"], rtol=1e-6)
    assert score["accuracy"] == end["test_accuracy"]
    score = jaxcnn.evaluate(run.network, last._replace(params=params, state=state), *run.data[0].validation)
    np.testing.assert_allclose(score["loss"], lines[chosen - 1]["validation_loss"], rtol=1e-6)


def test_while_a_run_is_unfinished_its_best_so_far_is_loaded(run, tmp_path):
    with pytest.raises(Interrupted):
        train(run, tmp_path, until=100)  # in the first epoch
    assert params_sha256(jaxcnn.load(tmp_path)[0]) == params_sha256(run.state.params)
    with pytest.raises(Interrupted):
        train(run, tmp_path, resume=True, until=161)
    first = RunFolder(tmp_path).newest(run.state, loop.initially_chosen(run)).state.params
    with pytest.raises(Interrupted):
        train(run, tmp_path, resume=True, until=261)  # in the second one
    assert params_sha256(jaxcnn.load(tmp_path)[0]) == params_sha256(first)


@pytest.mark.parametrize("stop", [322, 422, 483], ids=["after an epoch", "in one", "after the chosen one"])
def test_the_choice_survives_a_break(run, whole, tmp_path, stop):
    with pytest.raises(Interrupted):
        train(run, tmp_path, until=stop)
    train(run, tmp_path, resume=True)
    assert lines_of(tmp_path) == lines_of(whole[0])
    for got, wanted in zip(*(jax.tree.leaves(jaxcnn.load(path)) for path in (tmp_path, whole[0])), strict=True):
        assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_the_test_images_are_used_once(tmp_path, monkeypatch, validation):
    run, seen = prepare(dataclasses.replace(WORSE, validation=validation, epochs=3)), []
    evaluate = choice.evaluate

    def watched(network, state, images, labels):
        seen.append("test" if images is run.data[0].test.images else "validation")
        return evaluate(network, state, images, labels)

    monkeypatch.setattr(choice, "evaluate", watched)
    with pytest.raises(Interrupted):
        train(run, tmp_path, until=run.steps_an_epoch)
    train(run, tmp_path, resume=True)
    assert seen == ["validation"] * (3 if validation else 0) + ["test"]


def test_without_validation_images_the_parameters_are_kept_once(run, whole, tmp_path):
    """And the last epoch is what is tested and loaded."""
    plain = prepare(dataclasses.replace(WORSE, validation=0.0, epochs=1))
    end = train(plain, tmp_path)[-1].metrics
    assert "chosen_epoch" not in end
    kept = RunFolder(tmp_path).newest(plain.state)
    assert kept.chosen is None
    assert params_sha256(jaxcnn.load(tmp_path)[0]) == params_sha256(kept.state.params) == end["params_sha256"]
    once, twice = (bytes_of(checkpoints(path)[0]) for path in (tmp_path, whole[0]))
    assert once < 0.8 * twice  # parameters and Adam's two moments, of four as many


def bytes_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_averaged_parameters_of_the_chosen_epoch(tmp_path):
    run = prepare(dataclasses.replace(WORSE, average=0.9))
    end = train(run, tmp_path / "whole")[-1].metrics
    chosen = end["chosen_epoch"]
    shorter = prepare(dataclasses.replace(run.config, epochs=chosen))
    train(shorter, tmp_path / "shorter")
    kept = RunFolder(tmp_path / "shorter").newest(shorter.state, loop.initially_chosen(shorter)).state
    averaged = evaluated_params(kept.params, kept.opt_state)
    assert params_sha256(jaxcnn.load(tmp_path / "whole")[0]) == params_sha256(averaged) == end["params_sha256"]
    assert params_sha256(averaged) != params_sha256(kept.params)


def test_running_statistics_of_the_chosen_epoch(tmp_path, monkeypatch):
    """They are chosen with the parameters."""
    batch_norm = jaxcnn.sequential(jaxcnn.Conv2D(4, 3), jaxcnn.BatchNorm(), jaxcnn.Flatten(), jaxcnn.Dense(10))
    recipe = RECIPES["source"]._replace(network=lambda classes: batch_norm)
    monkeypatch.setitem(RECIPES, "source", recipe)
    first, run = (prepare(dataclasses.replace(WORSE, epochs=epochs)) for epochs in (1, 2))
    wanted = train(first, tmp_path / "first")[-1].metrics
    monkeypatch.setattr(choice, "best", lambda lines, number: 1)
    end = train(run, tmp_path / "whole")[-1].metrics
    then = RunFolder(tmp_path / "first").newest(first.state, loop.initially_chosen(first)).state
    got, kept = (jax.tree.leaves(tree) for tree in (jaxcnn.load(tmp_path / "whole"), (then.params, then.state)))
    assert [a.tobytes() for a in got] == [np.asarray(a).tobytes() for a in kept]
    assert len(got) == 4 + 2 + 2  # of two layers, scale and bias, mean and variance
    assert (end["test_loss"], end["test_accuracy"]) == (wanted["test_loss"], wanted["test_accuracy"])


def test_a_run_that_diverges_keeps_its_best(run, tmp_path):
    """A label of the second epoch is none; the network of the first epoch is there."""
    first, second = (np.asarray(jaxcnn.shuffled(1293, 8, seed=0, epoch=epoch)) for epoch in (0, 1))
    labels = run.data[0].train.labels.copy()
    labels[np.setdiff1d(second, first)[0]] = -1
    bad = run._replace(data=(run.data[0]._replace(train=run.data[0].train._replace(labels=labels)),))
    with pytest.raises(Diverged):
        train(bad, tmp_path / "bad")
    only = prepare(dataclasses.replace(WORSE, epochs=1))
    train(only, tmp_path / "one")
    shas = {params_sha256(jaxcnn.load(tmp_path / name)[0]) for name in ("bad", "one")}
    assert len(shas) == 1


def line(epoch, accuracy, loss):
    return {"epoch": epoch, "validation_accuracy": accuracy, "validation_loss": loss}


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 2),  # the accuracy, whatever the loss
        ([(0.5, 1.0), (0.5, 0.5), (0.5, 0.7)], 2),  # of equal ones the lower loss
        ([(0.5, 0.5), (0.5, 0.5)], 1),  # then the earlier
        ([(0.5, math.nan), (0.5, 2.0), (0.4, 0.1)], 2),
        ([(0.5, math.inf), (0.5, math.nan)], 1),
    ],
)
def test_which_epoch_is_the_best(figures, chosen):
    assert choice.best([line(i, *pair) for i, pair in enumerate(figures, 1)]) == chosen


def test_a_tenth_by_default_but_for_the_digits():
    assert Config().complete().validation == 0
    assert Config(data="fashion-mnist").complete().validation == 0.1
    assert Config(data="fashion-mnist", validation=0.0).complete().validation == 0
    with pytest.raises(DataError, match=r"^--validation: got 0\.001, but .*; give another fraction, or 0 for none$"):
        prepare(Config(validation=0.001))
