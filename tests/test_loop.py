"""The loop of the command line, in this process: the two backward passes, interruption, divergence."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import shutil
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest
from test_data import TRAIN, arrays, write

import jaxcnn
from jaxcnn.cli import Train
from jaxcnn.training import chunk, loop
from jaxcnn.training.checkpoint import params_sha256
from jaxcnn.training.config import OPTIMIZERS, PRECISIONS, SCHEDULES, Config
from jaxcnn.training.data import Samples
from jaxcnn.training.loop import Diverged, EpochEnd, GradientCheck, Interrupted, Progress, Warned
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run import augmentation_of, changed, describe, from_folder, new_folder, prepare
from jaxcnn.training.run_folder import RunFolder
from jaxcnn.training.samples import DataError

# 179 steps an epoch: two chunks, so that a run can be stopped in the middle of an epoch. Two devices (conftest).
SMALL = Config(epochs=2, batch_size=8)


def train(run, path, *, resume=False, until=None):
    """All that happens; asked to stop after step `until`. The run folder is written when it returns or raises."""
    events = []
    with RunFolder(path) as folder:
        for event in loop.train(run, folder, resume=resume, stop=lambda: latest_step(events) == until):
            events.append(event)
    return events


def latest_step(events) -> int:
    return max(event.step for event in events if isinstance(event, Progress))


def lines_of(path) -> list[dict]:
    """metrics.jsonl without what depends on the machine's speed."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def named(params) -> dict:
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in jax.tree.leaves_with_path(params)}


@pytest.fixture(scope="module")
def run():
    return prepare(SMALL)


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An uninterrupted run: its folder and its events."""
    path = tmp_path_factory.mktemp("whole")
    return path, train(run, path)


AUGMENTED = "crop=1,flip,cutout=3"


def test_augmentation_goes_on_where_it_was_stopped(run, whole, tmp_path):
    """And is not that of the run without it."""
    changed = prepare(dataclasses.replace(SMALL, augment=AUGMENTED))
    train(changed, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(changed, tmp_path / "stopped", until=100)
    kept = from_folder(RunFolder(tmp_path / "stopped"))
    assert kept == changed.config
    assert kept.augment == AUGMENTED
    train(prepare(kept), tmp_path / "stopped", resume=True)
    assert lines_of(tmp_path / "stopped") == lines_of(tmp_path / "whole")
    plain, lines = (lines_of(path) for path in (whole[0], tmp_path / "whole"))
    assert all(a["train_loss"] > p["train_loss"] for a, p in zip(lines, plain, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "momentum": 0.8, "learning_rate": 0.05, "warmup": 0.4},
        {"optimizer": "muon", "schedule": "one-cycle", "clip": 0.5, "freeze": ["conv2d", "dense_1/bias"]},
        {"precision": "bfloat16"},
    ],
    ids=["sgd", "muon", "bfloat16"],
)
def test_they_go_on_where_they_were_stopped(run, whole, tmp_path, changes):
    changed = prepare(dataclasses.replace(SMALL, **changes))
    train(changed, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(changed, tmp_path / "stopped", until=100)
    train(prepare(from_folder(RunFolder(tmp_path / "stopped"))), tmp_path / "stopped", resume=True)
    lines = lines_of(tmp_path / "whole")
    assert lines_of(tmp_path / "stopped") == lines
    assert lines[-1]["params_sha256"] != lines_of(whole[0])[-1]["params_sha256"]
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] < math.log(10)
    first, ended = (
        named(state.params) for state in (run.state, RunFolder(tmp_path / "stopped").newest(changed.state).state)
    )
    still = {name for name, leaf in ended.items() if (np.asarray(leaf) == np.asarray(first[name])).all()}
    assert still == ({"conv2d/filters", "conv2d/bias", "dense_1/bias"} if "freeze" in changes else set())


def test_the_average_is_what_is_evaluated_and_loaded(run, whole, tmp_path):
    """Over a break too; the training itself is that of the run without it."""
    changed = prepare(dataclasses.replace(SMALL, average=0.99))
    with pytest.raises(Interrupted):
        train(changed, tmp_path, until=279)
    end = train(changed, tmp_path, resume=True)[-1].metrics
    params, state = jaxcnn.load(tmp_path)
    assert params_sha256(params) == end["params_sha256"]
    kept = RunFolder(tmp_path).newest(changed.state).state
    score = jaxcnn.evaluate(run.network, kept._replace(params=params, state=state), *run.data[0].test)
    np.testing.assert_allclose(score["loss"], end["test_loss"], rtol=1e-6)
    assert score["accuracy"] == end["test_accuracy"]
    assert params_sha256(kept.params) != end["params_sha256"]
    for line, plain in zip(lines_of(tmp_path), lines_of(whole[0]), strict=True):
        np.testing.assert_allclose(line["train_loss"], plain["train_loss"], rtol=1e-4)


def test_other_data_is_not_resumed_on(run, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    other = run._replace(data=(run.data[0]._replace(sha256="0" * 64),))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(
        DataError, match=f"^digits: not the data that the run was begun with: sha256 {'0' * 64}, in config"
    ):
        train(other, tmp_path / "run", resume=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_augmentation_is_the_datas_unless_another_is_given(rng, tmp_path):
    folder = str(write(tmp_path, arrays(rng)))
    digits, files = Config(batch_size=2), Config(data="fashion-mnist", data_dir=folder, batch_size=2, validation=0.0)
    for config, augment in (
        (digits, "none"),
        (files, "crop=2,flip"),
        (dataclasses.replace(files, data=folder, data_dir=None), "none"),
        (dataclasses.replace(files, augment="none"), "none"),
        (dataclasses.replace(files, augment="flip"), "flip"),
    ):
        run = prepare(config)
        assert (run.config.augment, describe(run)["augment"]) == (augment, augment)


def test_black_is_put_around_the_training_images(rng, tmp_path):
    """Standardised as the images are, one for each channel."""
    files = arrays(rng) | {
        name: np.stack([a, 255 - a // 2, a // 3], -1) for name, a in arrays(rng).items() if a.ndim == 3
    }
    run = prepare(Config(data=str(write(tmp_path, files)), batch_size=2, augment="crop=5", validation=0.0))
    augment = augmentation_of(run.config, run.data)(0)
    assert augment is not None
    pixels = np.asarray(augment(jax.random.key(0), run.data[0].train.images)) * run.data[0].deviation + run.data[0].mean
    shown = np.rint(pixels * 255).astype(int)
    rows = (shown == 0).all((2, 3)).sum()  # wholly moved in from outside: 0 to 5 of 8
    assert 0.2 < rows / (20 * 8) < 0.5
    inside = shown[~(shown == 0).all(-1)]
    assert np.isin(inside.view("i8,i8,i8"), files[TRAIN].reshape(-1, 3).astype(int).view("i8,i8,i8")).all()


def test_what_happens(run, whole):
    path, (check, *events) = whole
    assert [type(e) for e in events] == [Progress, Progress, EpochEnd] * 2
    assert [e.step for e in events if isinstance(e, Progress)] == [100, 179, 279, 358]
    assert all(e.steps == run.steps == 358 and e.images_per_second > 0 for e in events if isinstance(e, Progress))
    assert isinstance(check, GradientCheck)
    assert sorted(check.differences) == sorted(
        f"{layer}/{name}" for layer in ("conv2d", "dense_1", "dense_2") for name in run.state.params[layer]
    )
    assert max(check.differences.values()) < 1e-5
    first, last = (e.metrics for e in events if isinstance(e, EpochEnd))
    every = ["step", "epoch", "train_loss", "train_accuracy", "images_per_second", "seconds", "gradient_norms"]
    assert list(first) == every
    assert list(last) == [*first, "test_loss", "test_accuracy", "params_sha256"]
    assert (first["step"], first["epoch"], last["step"], last["epoch"]) == (179, 1, 358, 2)
    assert last["train_loss"] < first["train_loss"] < math.log(10)
    # The mean over an epoch is that of its chunks.
    losses = [e.loss for e in events if isinstance(e, Progress)]
    np.testing.assert_allclose(first["train_loss"], (losses[0] * 100 + losses[1] * 79) / 179, rtol=1e-6)
    np.testing.assert_allclose(first["images_per_second"], 179 * 8 / first["seconds"])
    assert [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] == [first, last]


def test_the_last_line_describes_the_last_checkpoint(run, whole):
    path, (*_, end) = whole
    with RunFolder(path) as folder:
        state, *_ = folder.resume(run.state)
        assert loop.finished(run, folder) == end.metrics
    assert params_sha256(state.params) == end.metrics["params_sha256"]
    score = jaxcnn.evaluate(run.network, state, *run.data[0].test)
    assert score == {
        "loss": end.metrics["test_loss"], "accuracy": end.metrics["test_accuracy"], "samples": 360
    }  # fmt: skip
    assert score["accuracy"] > 0.9


def test_manual_and_autodiff_end_with_equal_losses(tmp_path, monkeypatch):
    ran, ends = [], []
    train_steps = chunk.train_steps
    monkeypatch.setattr(chunk, "train_steps", lambda *a, **how: ran.append(how["backward"]) or train_steps(*a, **how))
    for backward in ("manual", "autodiff"):
        *_, end = train(prepare(Config(epochs=1, backward=backward)), tmp_path / backward)
        ends.append(end.metrics)
    assert ran == ["manual", "manual", "autodiff", "autodiff"]  # and once watched, which is not called
    for name in ("train_loss", "test_loss"):
        np.testing.assert_allclose(ends[0][name], ends[1][name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("stops", [[100], [179], [279], [100, 179, 279]], ids=str)
def test_interrupted_and_resumed_equals_uninterrupted(run, whole, tmp_path, stops):
    for i, step in enumerate(stops):
        with pytest.raises(Interrupted, match=f"step {step} of 358"):
            train(run, tmp_path, resume=i > 0, until=step)
        assert loop.finished(run, RunFolder(tmp_path)) is None
    _, *events = train(run, tmp_path, resume=True)
    assert [e.step for e in events if isinstance(e, Progress)] == [s for s in (100, 179, 279, 358) if s > stops[-1]]
    assert lines_of(tmp_path) == lines_of(whole[0])


def test_a_run_whose_last_checkpoint_was_lost_is_not_finished(run, whole, tmp_path):
    """The line of metrics is written first: the power may fail before the checkpoint is."""
    train(run, tmp_path)
    last = tmp_path / "checkpoints" / "358"
    last.rename(tmp_path / "lost")
    assert loop.finished(run, RunFolder(tmp_path)) is None
    train(run, tmp_path, resume=True)
    assert last.is_dir()
    assert lines_of(tmp_path) == lines_of(whole[0])


def test_nothing_is_written_by_preparing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(SMALL)
    assert list(tmp_path.iterdir()) == []


def broken(run, **changes):
    """The run with other training images or labels than `prepare` would have let through."""
    train = Samples(**run.data[0].train._asdict() | changes)
    return run._replace(data=(run.data[0]._replace(train=train),))


def with_rate(run, rate):
    return prepare(dataclasses.replace(run.config, learning_rate=rate))


DIVERGING = {
    "a rate that is too large": (
        lambda run: with_rate(run, 1e38),
        r"the (loss is (nan|inf)|gradient or the update is not finite) at step \d+: "
        r"first of all the output of conv2d \[.*\] is -?inf; a smaller --learning-rate may help; the state ",
    ),
    "labels outside the classes": (
        lambda run: broken(run, labels=run.data[0].train.labels + 10),
        "the loss is nan at step 1: first of all the loss is nan; 8 labels lie outside the classes; the ",
    ),
    "NaN in the images": (
        lambda run: broken(run, images=np.full_like(run.data[0].train.images, np.nan)),
        r"the loss is nan at step 1: first of all the image \[0, 0, 0, 0\] is nan; ",
    ),
}


@pytest.mark.parametrize(("change", "says"), DIVERGING.values(), ids=DIVERGING)
def test_divergence_says_where_and_why(run, tmp_path, change, says):
    with pytest.raises(Diverged, match=f"^{says}"):
        train(change(run), tmp_path)
    # What is there can be looked at, and has no line that looks like a result.
    assert (tmp_path / "config.json").exists()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_late_divergence_names_its_step(run, tmp_path):
    """One label is wrong, of a sample that the first epoch leaves out: the second one's order tells the step."""
    first, second = (np.asarray(jaxcnn.shuffled(1437, 8, seed=0, epoch=epoch)) for epoch in (0, 1))
    row, column = np.argwhere(~np.isin(second, first))[0]
    labels = run.data[0].train.labels.copy()
    labels[second[row, column]] = -1
    bad = broken(run, labels=labels)
    says = f"the loss is nan at step {179 + row + 1}: first of all the loss is nan; 1 labels lie outside the classes"
    with pytest.raises(Diverged, match=says):
        train(bad, tmp_path)
    assert [line["epoch"] for line in lines_of(tmp_path)] == [1]
    # The state before that step is kept: where it is resumed, the same step ends it again.
    assert int(RunFolder(tmp_path).newest(run.state).state.step) == 179 + row
    with pytest.raises(Diverged, match=says):
        train(bad, tmp_path, resume=True)
    # Where one such step is allowed, it goes on; the epoch's loss is the mean over its other steps.
    tolerant = bad._replace(config=dataclasses.replace(run.config, skip_nonfinite=1))
    events = train(tolerant, tmp_path, resume=True)
    which = "it is left out, 1 of the 1 that --skip-nonfinite allows"
    assert [e for e in events if isinstance(e, Warned)] == [Warned(f"step {179 + row + 1} is not finite; {which}")]
    with pytest.raises(DataError, match="--skip-nonfinite: got 0, required at least 1, which the run has left out"):
        train(bad, tmp_path, resume=True)
    (tmp_path / "whole").mkdir()
    whole = train(tolerant, tmp_path / "whole")[-1].metrics
    for name in ("train_loss", "test_loss"):  # other programs, by the places where it stopped, round otherwise
        np.testing.assert_allclose(events[-1].metrics[name], whole[name], rtol=1e-4)
    assert lines_of(tmp_path)[-1]["skipped_steps"] == 1


def test_what_has_changed_since_the_run_began(run, whole, monkeypatch):
    folder = RunFolder(whole[0])
    assert changed(run, folder) == []
    other = run._replace(data=(run.data[0]._replace(sha256="0" * 64),))
    with pytest.raises(DataError, match="digits: not the data that the run was begun with: sha256 0000"):
        changed(other, folder)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.99" if name == "jaxlib" else version(name))
    was = version("jaxlib")
    assert changed(run, folder) == [
        f"jaxlib {was} is now 0.99: the result may differ in its last bits from that of a run without a break"
    ]


def test_describe(run):
    described = describe(run)
    assert json.loads(json.dumps(described)) == described
    assert {name: described[name] for name in dataclasses.asdict(run.config)} == dataclasses.asdict(run.config)
    assert described["epochs"] == 2
    assert described["training_images"] == [1437, 8, 8, 1]
    assert described["test_images"] == [360, 8, 8, 1]
    assert (described["pixel_mean"], described["pixel_deviation"]) == ([*run.data[0].mean], [*run.data[0].deviation])
    assert described["data_sha256"] == run.data[0].sha256
    assert described["devices"] == [str(d) for d in jax.devices()]
    assert described["versions"]["jaxcnn"] == jaxcnn.__version__
    assert described["versions"]["jax"] == jax.__version__


def test_the_configuration_comes_back(run, whole):
    assert from_folder(RunFolder(whole[0])) == run.config


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        ({"data": "digits"}, "KeyError"),
        ([], "TypeError"),
        ({"epochs": "ten"}, "TypeError"),
        ({"model": "x"}, "--model"),
    ],
    ids=["too little", "a list", "no number", "no such model"],
)
def test_a_configuration_that_is_none(run, tmp_path, monkeypatch, kept, says):
    full = dataclasses.asdict(run.config)
    monkeypatch.setattr(RunFolder, "config", lambda _: kept)
    kept = kept if not isinstance(kept, dict) or "data" in kept else full | kept
    with pytest.raises(DataError, match=says):
        from_folder(RunFolder(tmp_path))


def test_defaults_belong_to_the_model_too():
    full = Config(model="resnet20").complete()
    assert (full.epochs, full.learning_rate, full.weight_decay) == RECIPES["resnet20"].digits
    full = Config(model="resnet20", data="folder").complete()
    assert (full.epochs, full.learning_rate, full.weight_decay) == RECIPES["resnet20"].other


def test_the_command_line_names_every_recipe():
    assert set(get_args(get_type_hints(Train)["model"])) == set(RECIPES)
    assert {name: recipe.network(3).name for name, recipe in RECIPES.items()} == {name: name for name in RECIPES}


def test_the_command_line_names_every_optimizer_schedule_and_precision():
    hints = get_type_hints(Train)
    assert (get_args(hints["optimizer"]), get_args(hints["schedule"])) == (OPTIMIZERS, SCHEDULES)
    assert get_args(hints["precision"]) == PRECISIONS


def test_a_network_for_large_images_gets_the_digits_scaled_up():
    run = prepare(Config(model="resnet20"))
    assert describe(run)["training_images"] == [1437, 32, 32, 1]
    assert run.data[0].test.images.shape == (360, 32, 32, 1)


def test_defaults_belong_to_the_data():
    assert (Config().complete().epochs, Config(data="folder").complete().epochs) == (40, 5)
    given = Config(epochs=1, learning_rate=1.0, weight_decay=0.0, warmup=0.1, validation=0.2)
    assert given.complete() == given
    assert Config().complete().complete() == Config().complete()


REFUSED = {
    "model": ({"model": "vgg16"}, "--model: got 'vgg16', required one of source, lenet5, two_conv, vgg, all_conv, "),
    "backward": ({"backward": "both"}, "--backward: got 'both', required one of manual, autodiff"),
    "epochs": ({"epochs": 0}, "--epochs: got 0, required at least 1"),
    "batch": ({"batch_size": 0}, "--batch-size: got 0, required at least 1"),
    "classes": ({"classes": 1}, "--classes: got 1, required at least 2"),
    "seed": ({"seed": -1}, "--seed: got -1, required at least 0"),
    "large seed": ({"seed": 2**32}, "--seed: got 4294967296, required seeds less than 4294967296"),
    "decay": ({"weight_decay": -0.1}, "--weight-decay: got -0.1, required at least 0"),
    "NaN for decay": ({"weight_decay": math.nan}, "--weight-decay: got nan, required at least 0"),
    "steps to skip": ({"skip_nonfinite": -1}, "--skip-nonfinite: got -1, required at least 0"),
    "optimizer": ({"optimizer": "lion"}, "--optimizer: got 'lion', required one of adamw, adam, sgd, muon"),
    "schedule": ({"schedule": "step"}, "--schedule: got 'step', required one of cosine, constant, one-cycle"),
    "precision": ({"precision": "float16"}, "--precision: got 'float16', required one of float32, bfloat16"),
    "momentum": (
        {"momentum": 0.9},
        "--momentum: got 0.9, but it belongs to sgd, and --optimizer is adamw",
    ),
    "large momentum": (
        {"optimizer": "sgd", "momentum": 1.0},
        "--momentum: got 1.0, required from 0 to less than 1",
    ),
    "warm-up": ({"warmup": 1.0}, "--warmup: got 1.0, required from 0 to less than 1"),
    "NaN for a warm-up": ({"warmup": math.nan}, "--warmup: got nan, required from 0 to less than 1"),
    "clip": ({"clip": 0.0}, "--clip: got 0.0, required more than 0"),
    "layer to freeze": (
        {"freeze": ["conv2d", "dense"]},
        "--freeze: got 'dense', required layers of source: conv2d, dense_1, dense_2",
    ),
    "all frozen": (
        {"freeze": ["conv2d", "dense_1", "dense_2"]},
        "--freeze: got conv2d dense_1 dense_2, all layers; required at least one to be trained",
    ),
    "average": ({"average": 1.0}, "--average: got 1.0, required more than 0 and less than 1"),
    "NaN for an average": ({"average": math.nan}, "--average: got nan, required more than 0 and less than 1"),
    "no rate": ({"learning_rate": 0.0}, "--learning-rate: got 0.0, required more than 0"),
    "NaN for a rate": ({"learning_rate": math.nan}, "--learning-rate: got nan, required more than 0"),
    "large batch": ({"batch_size": 1438}, "--batch-size: got 1438, required at most the 1437 training images"),
    "microbatch": ({"microbatch": "all"}, "--microbatch: got all, required auto or a number of images, at least 1"),
    "no microbatch": ({"microbatch": 0}, "--microbatch: got 0, required auto or a number of images, at least 1"),
    "odd batch": ({"batch_size": 33}, "--batch-size: got 33, required a multiple of the 2 devices; give another, or"),
    "augmentation": (
        {"augment": "crop"},
        "--augment: got 'crop' in 'crop', required none, or of crop=PIXELS, flip, cutout=PIXELS some",
    ),
    "large augmentation": (
        {"augment": "crop=9,flip"},
        "--augment crop=9,flip: not for images of 8×8×1: random_crop: padding must be from 1 to 8, the shorter side",
    ),
    "too small": ({"model": "lenet5"}, "--model lenet5: not for images of 8×8×1: "),
}


@pytest.mark.parametrize(("changes", "says"), REFUSED.values(), ids=REFUSED)
def test_refused_configuration(changes, says):
    with pytest.raises(DataError) as error:
        prepare(Config(**changes))
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "begins"),
    [("digits", "digits-source-seed7-"), ("/data/mnist/", "mnist-source-seed7-"), ("/data/m.npz", "m-source-seed7-")],
)
def test_a_new_folder_says_what_it_holds(data, begins):
    path = new_folder(Config(data=data, seed=7))
    assert path.parent.name == "runs"
    assert path.name.startswith(begins)
