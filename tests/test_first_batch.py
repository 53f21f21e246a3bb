"""What a run keeps of the first batch's gradient: autodiff's difference in config.json, its length at each epoch."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_loop import SMALL, train

import jaxcnn
import jaxcnn.training.checkpoint
from jaxcnn.training.config import Config
from jaxcnn.training.first_batch import differences, gradients_of_first_batch
from jaxcnn.training.run import prepare
from jaxcnn.training.run_folder import RunFolder


def lengths(run, params, state) -> dict[str, float]:
    """By `jax.grad` of the loss of the first batch, of the first seed, at those parameters."""
    chosen = np.asarray(jaxcnn.shuffled(1437, run.config.batch_size, seed=run.config.seed, epoch=0))[0]
    images, labels = (a[chosen] for a in run.data[0].train)

    def loss(params):
        return jaxcnn.softmax_cross_entropy(run.network.plain(params, state, images)[0], labels)

    found = jax.jit(jax.grad(loss))(params)
    return {name: float(np.sqrt(sum((np.asarray(a) ** 2).sum() for a in found[name].values()))) for name in found}


@pytest.mark.parametrize("backward", ["manual", "autodiff"])
def test_the_lengths_are_those_of_autodiffs_gradient_after_each_epoch(tmp_path, backward):
    run = prepare(dataclasses.replace(SMALL, backward=backward))
    train(run, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    folder = RunFolder(tmp_path)
    for line in lines:
        kept = jaxcnn.training.checkpoint.read(tmp_path / "checkpoints" / str(line["step"])).tree
        assert line["gradient_norms"] == pytest.approx(lengths(run, kept["params"], kept["state"]), rel=1e-4)
    assert list(lines[0]["gradient_norms"]) == ["conv2d", "dense_1", "dense_2"]
    assert lines[0]["gradient_norms"] != lines[1]["gradient_norms"]
    assert folder.config()["gradient_check"] == differences(run, gradients_of_first_batch(run))


def test_of_several_seeds_the_first_ones(tmp_path):
    """The first seed is another one than that of the digits' default."""
    run = prepare(Config(epochs=1, seed=3, seeds=2))
    line = train(run, tmp_path)[-1].metrics
    params, state = jaxcnn.load(tmp_path, seed=3)
    assert line["gradient_norms"] == pytest.approx(lengths(run, params, state), rel=1e-4)
    assert len(line["train_accuracy"]) == 2


def test_a_wrong_backward_pass_is_what_the_check_and_the_lengths_show():
    run = prepare(SMALL)

    def doubled(residuals, dy, **static):
        dx, dw, db = jaxcnn.dense.backward(residuals, dy, **static)
        return dx, 2 * dw, db

    layers = list(run.network.layers)
    layers[-1] = jaxcnn.Dense(10, rule=jaxcnn.dense.replace(backward=doubled))
    gradient = gradients_of_first_batch(run._replace(network=jaxcnn.sequential(*layers)))
    found = differences(run, gradient)
    assert found.pop("dense_2/weights") == pytest.approx(1)
    assert max(found.values()) < 1e-5


def test_the_accuracy_is_the_mean_over_the_steps(tmp_path):
    """Of a network that does not change: what it gets right of the images that the epoch takes."""
    run = prepare(dataclasses.replace(SMALL, epochs=1, learning_rate=1e-30, weight_decay=0.0))
    line = train(run, tmp_path)[-1].metrics
    chosen = np.asarray(jaxcnn.shuffled(1437, 8, seed=0, epoch=0)).ravel()
    score = jaxcnn.evaluate(run.network, run.state, *(a[chosen] for a in run.data[0].train))
    assert line["train_accuracy"] == pytest.approx(score["accuracy"], abs=1e-6)
