"""Several seeds in one program and one run: each is what it would be alone."""

from __future__ import annotations

import dataclasses
import functools
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_checkpoint import assert_same_bits
from test_loop import lines_of, train
from test_training import mesh_of

import jaxcnn
from jaxcnn.training import choice, chunk, loop
from jaxcnn.training.augment import random_crop
from jaxcnn.training.checkpoint import params_sha256
from jaxcnn.training.config import Config
from jaxcnn.training.loop import Diverged, EpochEnd, Interrupted, Progress, Warned
from jaxcnn.training.run import augmentation_of, describe, from_folder, new_folder, prepare
from jaxcnn.training.run_folder import RunFolder
from jaxcnn.training.samples import DataError

LOSS, OPTIMIZER = jaxcnn.softmax_cross_entropy, optax.adamw(1e-2)
# What draws, and what is kept but not trained: each seed has its own.
NETWORK = jaxcnn.sequential(
    jaxcnn.Conv2D(4, 3), jaxcnn.BatchNorm(), jaxcnn.ReLU(), jaxcnn.Dropout(0.3), jaxcnn.Flatten(), jaxcnn.Dense(3)
)
AUGMENT = functools.partial(random_crop, padding=1)
SEEDS = (5, 0, 7)  # three: of two devices one has two of them, the other one


def batches(rng):
    images, labels = rng.normal(size=(20, 4, 4, 1)).astype(np.float32), rng.integers(0, 3, 20)
    return images, labels, np.stack([rng.permutation(20).reshape(5, 4) for _ in SEEDS])


@pytest.mark.parametrize("devices", [1, 2])
def test_each_seed_is_what_it_is_alone_to_the_bit(rng, devices):
    images, labels, indices = batches(rng)
    how = {"augment": AUGMENT, "microbatch": 2}
    run = jaxcnn.train_seeds(NETWORK, LOSS, OPTIMIZER, mesh=mesh_of(devices), **how)
    states, metrics = run(
        jaxcnn.init_train_states(NETWORK, OPTIMIZER, SEEDS, (4, 4, 1)), images[indices], labels[indices]
    )
    alone = jaxcnn.train_steps(NETWORK, LOSS, OPTIMIZER, mesh=mesh_of(1), **how)
    init = jax.jit(lambda seed: jaxcnn.init_train_state(NETWORK, OPTIMIZER, seed, (4, 4, 1)))
    ends = [alone(init(np.uint32(seed)), images, labels, own) for seed, own in zip(SEEDS, indices, strict=True)]
    assert len({float(end[1]["loss"][-1]) for end in ends}) == 3
    for i, end in enumerate(ends):
        assert_same_bits(jax.tree.map(lambda leaf, i=i: leaf[i], (states, metrics)), end)


def test_initially_each_seed_is_what_it_is_alone(rng):
    states = jaxcnn.init_train_states(NETWORK, OPTIMIZER, SEEDS, (4, 4, 1))
    for i, seed in enumerate(SEEDS):
        wanted = jax.jit(lambda seed: jaxcnn.init_train_state(NETWORK, OPTIMIZER, seed, (4, 4, 1)))(np.uint32(seed))
        assert_same_bits(jax.tree.map(lambda leaf, i=i: leaf[i], states), wanted)


def test_what_train_seeds_refuses(rng):
    images, labels, indices = batches(rng)
    states = jaxcnn.init_train_states(NETWORK, OPTIMIZER, SEEDS, (4, 4, 1))
    run = jaxcnn.train_seeds(NETWORK, LOSS, OPTIMIZER)
    one = jaxcnn.init_train_state(NETWORK, OPTIMIZER, 0, (4, 4, 1))
    images, labels = images[indices], labels[indices]
    for given, error, message in (
        (
            (states, images[:2], labels),
            ValueError,
            r"states, .* be of as many seeds, the first axis of each; got \(3,\), ",
        ),
        ((one, images, labels), ValueError, r"states, .* of as many seeds, the first axis of each; got \(\), \(3, 5, "),
        (
            (states, images, labels[:, :1]),
            ValueError,
            r"images and labels must be seeds × steps × batch alike in their",
        ),
        (
            (states, images[:, :, 0, 0, 0, 0], labels[:, 0]),
            ValueError,
            "images and labels must be seeds × steps × batch",
        ),
        ((None, images, labels), TypeError, "takes a TrainState first, got NoneType"),
        ((states, "images", labels), TypeError, "images must be an array, got str"),
        ((states, images, object()), TypeError, "labels must be an array, got object"),
    ):
        with pytest.raises(error, match=f"^train_seeds: {message}"):
            run(*given)
    with pytest.raises(ValueError, match="train_seeds: backward must be one of manual, autodiff, got 'both'"):
        jaxcnn.train_seeds(NETWORK, LOSS, OPTIMIZER, backward="both")


@pytest.mark.parametrize("seeds", [[], [1.5], "12", [-1], [2**32], [True]])
def test_seeds_that_are_none(seeds):
    with pytest.raises(
        ValueError, match=r"^init_train_states: seeds must be whole numbers from 0 to less than 429496729"
    ):
        jaxcnn.init_train_states(NETWORK, OPTIMIZER, seeds, (4, 4, 1))


def test_an_optimizer_that_is_none():
    with pytest.raises(TypeError, match=r"^init_train_states: optimizer must be an optax optimizer, made by a call as"):
        jaxcnn.init_train_states(NETWORK, optax.sgd, SEEDS, (4, 4, 1))  # pyright: ignore[reportArgumentType]


# A run of three seeds on the digits: 40 steps an epoch in chunks of 25, at a rate that is too large for them, so that
# the seeds choose different epochs.
THREE = Config(epochs=4, validation=0.1, schedule="constant", learning_rate=0.015, seed=1, seeds=3)


@pytest.fixture(scope="module", autouse=True)
def _short_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk, "CHUNK", 25)
        yield


@pytest.fixture(scope="module")
def run():
    return prepare(THREE)


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, train(run, path)


def test_the_data_of_each_seed_is_its_own(run):
    for i, seed in enumerate((1, 2, 3)):
        alone = prepare(dataclasses.replace(THREE, seed=seed, seeds=1))
        assert run.data[i].sha256 == alone.data[0].sha256
        np.testing.assert_array_equal(chunk.order_of(run, 2)[i], chunk.order_of(alone, 2)[0])
        assert_same_bits(jax.tree.map(lambda leaf, i=i: leaf[i], run.state), alone.state)
    described = describe(run)
    assert json.loads(json.dumps(described)) == described
    assert described["data_sha256"] == [data.sha256 for data in run.data]
    assert [len(described[name]) for name in ("pixel_mean", "pixel_deviation")] == [3, 3]


def test_data_that_the_seeds_have_in_common_is_kept_once(rng, tmp_path):
    np.savez(
        tmp_path / "data.npz",
        x_train=rng.integers(0, 255, (40, 8, 8), "u1"), y_train=np.arange(40) % 4,
        x_test=rng.integers(0, 255, (8, 8, 8), "u1"), y_test=np.arange(8) % 4,
    )  # fmt: skip
    config = Config(data=str(tmp_path / "data.npz"), classes=4, batch_size=8, seeds=3, validation=0.0)
    first, *others = prepare(config).data
    assert all(data is first for data in others)
    apart = prepare(dataclasses.replace(config, validation=0.1)).data
    assert len({data.sha256 for data in apart}) == 3


def test_a_run_of_several_seeds_is_that_of_each(run, whole, tmp_path):
    """Here the two devices share a batch of one seed alone: it rounds otherwise. On one they are equal to the bit."""
    _, events = whole
    lines = [event.metrics for event in events if isinstance(event, EpochEnd)]
    assert [event.step for event in events if isinstance(event, Progress)] == [25, 40, 65, 80, 105, 120, 145, 160]
    for i, seed in enumerate((1, 2, 3)):
        alone = train(prepare(dataclasses.replace(THREE, epochs=1, seed=seed, seeds=1)), tmp_path / str(seed))
        wanted = next(event.metrics for event in alone if isinstance(event, EpochEnd))
        for name in ("train_loss", "validation_loss"):  # of the first epoch: rounding grows with the steps
            np.testing.assert_allclose(lines[0][name][i], wanted[name], rtol=1e-2, err_msg=name)
        assert lines[0]["validation_accuracy"][i] == pytest.approx(wanted["validation_accuracy"], abs=0.01)
    assert {name for name, value in lines[-1].items() if isinstance(value, list)} == set(lines[-1]) - {
        "step", "epoch", "seconds", "images_per_second", "gradient_norms",
    }  # fmt: skip
    assert lines[-1]["images_per_second"] == pytest.approx(3 * 40 * 32 / lines[-1]["seconds"])


def test_each_seed_has_its_own_choice(run, whole):
    path, events = whole
    lines = [event.metrics for event in events if isinstance(event, EpochEnd)]
    chosen = lines[-1]["chosen_epoch"]
    assert len(set(chosen)) > 1
    for i, epoch in enumerate(chosen):
        accuracies = [line["validation_accuracy"][i] for line in lines]
        assert accuracies[epoch - 1] == max(accuracies)
        params, state = jaxcnn.load(path, seed=1 + i)
        assert params_sha256(params) == lines[-1]["params_sha256"][i]
        network = jaxcnn.init_train_state(run.network, run.optimizer, 0, (8, 8, 1))._replace(params=params, state=state)
        score = jaxcnn.evaluate(run.network, network, *run.data[i].test)
        np.testing.assert_allclose(score["loss"], lines[-1]["test_loss"][i], rtol=1e-5)
        assert score["accuracy"] == lines[-1]["test_accuracy"][i]
        score = jaxcnn.evaluate(run.network, network, *run.data[i].validation)
        np.testing.assert_allclose(score["loss"], lines[epoch - 1]["validation_loss"][i], rtol=1e-5)


@pytest.mark.parametrize("stops", [[25], [80], [65, 120, 145]], ids=str)
def test_interrupted_and_resumed_equals_uninterrupted(run, whole, tmp_path, stops):
    for i, step in enumerate(stops):
        with pytest.raises(Interrupted, match=f"step {step} of 160"):
            train(run, tmp_path, resume=i > 0, until=step)
    kept = from_folder(RunFolder(tmp_path))
    assert kept == run.config
    train(prepare(kept), tmp_path, resume=True)
    assert lines_of(tmp_path) == lines_of(whole[0])
    for seed in (1, 2, 3):
        assert_same_bits(jaxcnn.load(tmp_path, seed=seed), jaxcnn.load(whole[0], seed=seed))
    assert loop.finished(run, RunFolder(tmp_path)) == json.loads(
        (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    )


def test_the_average_of_each_seed(run, tmp_path):
    averaging = prepare(dataclasses.replace(THREE, average=0.9, epochs=1))
    end = train(averaging, tmp_path)[-1].metrics
    state = RunFolder(tmp_path).newest(averaging.state, loop.initially_chosen(averaging)).state
    for i in range(3):
        params, _ = jaxcnn.load(tmp_path, seed=1 + i)
        assert params_sha256(params) == end["params_sha256"][i]
        assert params_sha256(params) != params_sha256(jax.tree.map(lambda leaf, i=i: leaf[i], state.params))


def test_which_seed_is_loaded(whole, tmp_path):
    path = whole[0]
    for seed in (None, 0, 4):
        with pytest.raises(ValueError, match=f"^load: seed: got {seed}, but {path} has the seeds 1, 2, 3$"):
            jaxcnn.load(path, seed=seed)
    jaxcnn.save(tmp_path / "network", {"weights": np.ones(3)})
    with pytest.raises(ValueError, match=r"^load: seed: got 0, but .* has one network and no seeds$"):
        jaxcnn.load(tmp_path / "network", seed=0)
    one = prepare(Config(epochs=1, batch_size=256, seed=4))
    train(one, tmp_path / "one")
    assert_same_bits(jaxcnn.load(tmp_path / "one", seed=4), jaxcnn.load(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"^load: seed: got 3, but .* has the seeds 4$"):
        jaxcnn.load(tmp_path / "one", seed=3)


def test_the_test_images_of_each_seed_are_used_once(run, tmp_path, monkeypatch):
    seen, evaluate = [], choice.evaluate

    def watched(network, state, images, labels):
        seen.extend(i for i, data in enumerate(run.data) if images is data.test.images)
        return evaluate(network, state, images, labels)

    monkeypatch.setattr(choice, "evaluate", watched)
    train(run._replace(config=dataclasses.replace(run.config, epochs=2)), tmp_path)
    assert seen == [0, 1, 2]


def spoiled(run, seed, row):
    """The run with a label of one seed that is none, first met in the second epoch: (it, the number of that step)."""
    first, second = (chunk.order_of(run, epoch)[seed] for epoch in (0, 1))
    step, place = np.argwhere(~np.isin(second, first))[row]
    labels = run.data[seed].train.labels.copy()
    labels[second[step, place]] = -1
    data = run.data[seed]._replace(train=run.data[seed].train._replace(labels=labels))
    two_epochs = dataclasses.replace(run.config, epochs=2)
    return run._replace(
        config=two_epochs, data=tuple(data if i == seed else own for i, own in enumerate(run.data))
    ), 40 + int(step) + 1


def test_a_seed_that_diverges_ends_the_run(run, whole, tmp_path):
    """All seeds are kept as they were before that step, and go on from there."""
    bad, step = spoiled(run, 1, 0)
    says = f"^seed 2: the loss is nan at step {step}: first of all the loss is nan; 1 labels lie outside the classes; "
    with pytest.raises(Diverged, match=says):
        train(bad, tmp_path)
    kept = RunFolder(tmp_path).newest(run.state, loop.initially_chosen(run)).state
    assert (kept.step.tolist(), kept.skipped.tolist()) == ([step - 1] * 3, [0, 0, 0])
    with pytest.raises(Diverged, match=says):
        train(bad, tmp_path, resume=True)
    tolerant = bad._replace(config=dataclasses.replace(bad.config, skip_nonfinite=1))
    events = train(tolerant, tmp_path, resume=True)
    which = "it is left out, 1 of the 1 that --skip-nonfinite allows"
    assert [event for event in events if isinstance(event, Warned)] == [
        Warned(f"seed 2: step {step} is not finite; {which}")
    ]
    assert lines_of(tmp_path)[1]["skipped_steps"] == [0, 1, 0]
    # The others are not concerned, up to rounding: it is another program that was watched.
    for line, wanted in zip(lines_of(tmp_path), lines_of(whole[0]), strict=False):
        for i in (0, 2):
            np.testing.assert_allclose(line["train_loss"][i], wanted["train_loss"][i], rtol=1e-3)
    with pytest.raises(DataError, match="--skip-nonfinite: got 0, required at least 1, which the run has left out"):
        train(bad, tmp_path, resume=True)


def test_the_first_step_of_a_chunk_ends_the_run(run, tmp_path):
    """There is nothing of the chunk that the other seeds could keep."""
    _, second = chunk.order_of(run, 0)[2, 24:26]
    labels = run.data[2].train.labels.copy()
    labels[second[3]] = -1
    data = (*run.data[:2], run.data[2]._replace(train=run.data[2].train._replace(labels=labels)))
    with pytest.raises(Diverged, match=r"^seed 3: the loss is nan at step 26: "):
        train(run._replace(data=data), tmp_path)
    state = RunFolder(tmp_path).newest(run.state, loop.initially_chosen(run)).state
    assert state.step.tolist() == [25, 25, 25]


def test_black_is_each_seeds_own(rng):
    run = prepare(Config(augment="crop=7", seeds=2, epochs=1))
    images = jnp.zeros((1, 8, 8, 1))
    augment = augmentation_of(run.config, run.data)
    for i, data in enumerate(run.data):
        black = -data.mean[0] / data.deviation[0]
        made = jax.jit(lambda i: augment(i)(jax.random.key(0), images))(i)
        np.testing.assert_allclose(made[made != 0], np.float32(black), rtol=1e-6)
    assert run.data[0].mean != run.data[1].mean


def test_no_more_images_at_once_than_memory_is_meant_for(run, monkeypatch):
    assert chunk.steps_at_once(run) == 25
    assert chunk.steps_at_once(run._replace(config=dataclasses.replace(run.config, model="resnet20"))) == 2
    monkeypatch.setattr(chunk, "GATHERED", 10 * 3 * 32 * 8 * 8 * 4)
    assert chunk.steps_at_once(run) == 10
    monkeypatch.setattr(chunk, "GATHERED", 1)
    assert chunk.steps_at_once(run) == 1
    assert chunk.steps_at_once(run._replace(config=dataclasses.replace(run.config, seeds=1))) == 25


def test_several_seeds_need_no_batch_that_the_devices_share():
    assert prepare(Config(batch_size=33, seeds=2)).steps_an_epoch == 1437 // 33
    with pytest.raises(DataError, match="--seeds: got 0, required at least 1"):
        prepare(Config(seeds=0))
    with pytest.raises(DataError, match=f"--seed: got {2**32 - 2}, with --seeds 3, required seeds less than {2**32}"):
        prepare(Config(seed=2**32 - 2, seeds=3))


def test_a_new_folder_names_the_seeds():
    assert new_folder(Config(seed=2, seeds=3)).name.startswith("digits-source-seed2-4-")


def test_more_seeds_than_the_machine_holds(monkeypatch):
    """Two splits of the digits, 1,797 images of 8×8 in float32, take 0.9 MB."""
    for pages, allowed in ((900_000, False), (1_000_000, True)):
        monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 1}.__getitem__)
        if allowed:
            assert len(prepare(Config(seeds=2, epochs=1)).data) == 2
        else:
            with pytest.raises(
                DataError, match=r"--seeds: got 2, each with its own 0\.00043 GiB of images; required at"
            ):
                prepare(Config(seeds=2, epochs=1))
