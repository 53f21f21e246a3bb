"""The command line as a user meets it: what it prints, writes and returns, and what it says of bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from test_data import TEST, TEST_LABELS, TRAIN, TRAIN_LABELS, arrays, at, write
from test_idx import idx

from jaxcnn import cli, models, summary
from jaxcnn.cli_train import Train
from jaxcnn.training import devices
from jaxcnn.training.config import Config

ROOT = Path(__file__).parents[1]
# Every process is the same program: what one has compiled serves the others.
ENVIRONMENT = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "COLUMNS": "120",
}


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def start(*arguments, cwd, program=("-m", "jaxcnn")) -> subprocess.Popen:
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(process: subprocess.Popen) -> Ended:
    out, err = process.communicate(timeout=120)
    return Ended(process.returncode, out, err)


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_speed(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# A run on the digits. Two devices, so that every machine computes the same.

EPOCHS = 20  # some seconds, in which it can be interrupted
TRAIN_DIGITS = ("train", "--epochs", EPOCHS, "--validation", 0.1, "--cores", 2, "--out")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("digits") / "new" / "run"
    return folder, end(start(*TRAIN_DIGITS, folder, cwd=folder.parents[1]))


def test_train_writes_the_run_folder(whole):
    folder, ended = whole
    assert (ended.status, ended.err) == (0, "")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "config.json", "lock", "metrics.jsonl"]
    kept = sorted(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert kept == [40 * (EPOCHS - 2), 40 * (EPOCHS - 1), 40 * EPOCHS]
    config = json.loads((folder / "config.json").read_text())
    assert (config["data"], config["epochs"], config["validation"]) == ("digits", EPOCHS, 0.1)
    assert config["devices"] == ["cpu:0", "cpu:1"]
    lines = lines_of(folder)
    every = [
        "step", "epoch", "train_loss", "train_accuracy", "images_per_second", "seconds",
        "validation_loss", "validation_accuracy", "gradient_norms",
    ]  # fmt: skip
    assert [list(line) for line in lines[:-1]] == [every] * (EPOCHS - 1)
    assert list(lines[-1]) == [*every, "chosen_epoch", "test_loss", "test_accuracy", "params_sha256"]
    assert [(line["step"], line["epoch"]) for line in lines] == [(40 * e, e) for e in range(1, EPOCHS + 1)]
    assert lines[-1]["train_loss"] < 0.1 < 1 < lines[0]["train_loss"]
    assert lines[-1]["test_accuracy"] > 0.95
    assert re.fullmatch("[0-9a-f]{64}", lines[-1]["params_sha256"])


def test_train_says_what_it_does(whole):
    folder, (_, out, _) = whole
    last = lines_of(folder)[-1]
    # The heading; the two gradients of the first batch; the epochs; the table; where it all is.
    assert re.match(r"source on digits: [\d,]+ parameters, 1,293 training images, 20 epochs of 40 steps, batch 32", out)
    differences = dict(re.findall(r"((?:conv2d|dense_\d)/\w+) +(\S+) *\n", out))
    assert len(differences) == 6
    assert max(map(float, differences.values())) < 1e-5
    epoch = rf"epoch +20  train loss {last['train_loss']:.4f}  validation accuracy [\d.]+%  [\d,]+ images/s"
    assert re.search(epoch, out)
    chosen = f"epoch {last['chosen_epoch']}, of the highest validation accuracy, is kept and was tested"
    accuracy = last["test_accuracy"]
    assert f"\n{chosen}\n" in out
    assert re.search(rf"360 test images\n(.*\n)+source +{accuracy:.2%} +{round(360 * (1 - accuracy))} *\n", out)
    neighbour = re.search(r"1-nearest-neighbour +([\d.]+)% +(\d+) *\n", out)
    assert neighbour is not None
    assert float(neighbour[1]) == pytest.approx(100 * (1 - int(neighbour[2]) / 360), abs=0.01)
    assert out.endswith(f"run folder: {folder}\n")


def test_resuming_a_finished_run_changes_nothing(whole):
    folder, _ = whole

    def contents():
        return {
            path: (path.stat().st_mtime_ns, path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest())
            for path in [folder, *folder.rglob("*")]
        }

    before = contents()
    ended = end(start("train", "--cores", 2, "--resume", folder, cwd=folder.parent))
    accuracy = lines_of(folder)[-1]["test_accuracy"]
    assert ended == (0, f"{folder} is finished: test accuracy {accuracy:.2%}\n", "")
    assert contents() == before


def test_an_interrupted_run_ends_as_an_uninterrupted_one(whole, tmp_path):
    """Once by the keyboard, once by the system, in one run."""
    folder, arguments = tmp_path / "run", TRAIN_DIGITS
    metrics = folder / "metrics.jsonl"
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        done = len(lines_of(folder)) if metrics.exists() else 0
        process = start(*arguments, folder, cwd=tmp_path)
        wait_for(lambda done=done: metrics.exists() and metrics.read_bytes().count(b"\n") > done, process)
        process.send_signal(number)
        ended = end(process)
        assert (ended.status, ended.err) == (status, "")
        step = lines_of(folder)[-1]["step"]
        assert f"Interrupted at step {step} of 800; go on with: jaxcnn train --resume {folder}\n" in ended.out
        assert (folder / "checkpoints" / str(step)).is_dir()
        arguments = ("train", "--cores", 2, "--resume")
    assert end(start(*arguments, folder, cwd=tmp_path)).status == 0
    assert without_speed(lines_of(folder)) == without_speed(lines_of(whole[0]))
    ours, theirs = (json.loads((run / "config.json").read_text()) for run in (folder, whole[0]))
    assert {name for name in ours | theirs if ours[name] != theirs[name]} == {"run", "sha256"}


def test_seeds_that_come_to_nothing(tmp_path):
    """All steps are left out, and the loss of the network is NaN: the table says so."""
    options = ("--seeds", 2, "--epochs", 1, "--learning-rate", "1e30", "--skip-nonfinite", 1000, "--out", "run")
    ended = end(start("train", *options, cwd=tmp_path))
    assert ended.status == 0, ended
    assert re.search(r"deviation +\d+\.\d\d% +nan *\n", ended.out), ended.out


def test_several_seeds(tmp_path):
    """Each ends as it does alone on one core, to the bit; three on two cores."""
    options = ("train", "--epochs", 3, "--validation", 0.1, "--out")
    several = end(start(*options, "three", "--seed", 4, "--seeds", 3, "--cores", 2, cwd=tmp_path))
    alone = end(start(*options, "alone", "--seed", 5, "--cores", 1, cwd=tmp_path))
    assert (several.status, several.err, alone.status) == (0, "", 0)
    three, one = (lines_of(tmp_path / name) for name in ("three", "alone"))
    assert [line["train_loss"][1] for line in three] == [line["train_loss"] for line in one]
    for name in ("params_sha256", "chosen_epoch", "test_accuracy"):
        assert three[-1][name][1] == one[-1][name], name
    assert three[-1]["test_loss"][1] == pytest.approx(one[-1]["test_loss"], rel=1e-5)  # the images are shared by two
    assert ", batch 32, backward manual, each of the seeds 4 … 6\n" in several.out
    accuracies, losses = (three[-1][name] for name in ("test_accuracy", "test_loss"))
    for seed, accuracy, loss, epoch in zip((4, 5, 6), accuracies, losses, three[-1]["chosen_epoch"], strict=True):
        assert re.search(rf" +{seed} +{accuracy:.2%} +{loss:.4f} +{epoch} *\n", several.out)
    assert re.search(rf" +mean +{np.mean(accuracies):.2%} +{np.mean(losses):.4f} *\n", several.out)
    deviations = (np.std(values, ddof=1) for values in (accuracies, losses))
    assert re.search(r"deviation +{:.2%} +{:.4f} *\n".format(*deviations), several.out)
    ended = end(start("train", "--cores", 2, "--resume", "three", cwd=tmp_path))
    says = f"{tmp_path / 'three'} is finished: test accuracy {np.mean(accuracies):.2%}\n"
    assert ended == (0, says, "")


def test_a_folder_of_idx_files(rng, tmp_path):
    """By autodiff, in a run folder of its own choice, under a path that rich would take for a broken tag."""
    here = tmp_path / "x[" / "b]"
    here.mkdir(parents=True)
    files = {}
    for split, count in (("train", 60), ("t10k", 30)):
        labels = rng.integers(0, 3, count).astype("u1")
        images = rng.integers(0, 100, (count, 8, 9)).astype("u1")
        images[np.arange(count), :, labels * 3] += 150  # a bright column tells the class
        files |= {f"{split}-images-idx3-ubyte": idx(images), f"{split}-labels-idx1-ubyte": idx(labels)}
    write(here / "bars", files)
    options = ("--data", "bars", "--classes", 3, "--backward", "autodiff", "--batch-size", 15, "--learning-rate", 0.01)
    ended = end(start("train", *options, cwd=here))
    assert (ended.status, ended.err) == (0, "")
    assert "/bars: " in ended.out
    assert ", 54 training images, 5 epochs of 3 steps, batch 15, backward autodiff\n" in ended.out  # 6 are set aside
    assert "30 test images" in ended.out
    (run,) = (here / "runs").iterdir()
    assert run.name.startswith("bars-source-seed0-")
    assert ended.out.endswith(f"run folder: {run}\n")
    config = json.loads((run / "config.json").read_text())
    assert (config["classes"], config["backward"]) == (3, "autodiff")
    assert 15 % len(config["devices"]) == 0
    lines = lines_of(run)
    assert len(lines) == 5
    assert "validation_loss" in lines[0]
    assert lines[-1]["test_accuracy"] > 0.9


def test_a_run_that_diverges(tmp_path):
    ended = end(start("train", "--epochs", 1, "--learning-rate", 1e38, "--out", "run", cwd=tmp_path))
    assert ended.status == 1
    where = r"first of all the output of conv2d \[[\d, ]+\] is -?inf"
    says = rf"jaxcnn: the loss is (nan|inf) at step \d+: {where}; a smaller --learning-rate may help; the state .*\n"
    assert re.fullmatch(says, ended.err)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# Bad input: one line, status 2, and nothing is left behind.

BAD_ARGUMENTS = {
    "no command": (
        "",
        "Expected one of {train, report, predict, export, verify, explain, summary, bench}; see jaxcnn --help",
    ),
    "no such command": ("trian", "got the command trian; did you mean train? the commands are train, report, "),
    "unknown option": (
        "train --epoch 2",
        "Unrecognized options: --epoch, 2; did you mean --epochs? see jaxcnn train --help",
    ),
    "bad choice": ("train --model vgg16", "invalid choice 'vgg16' for argument '--model'. Expected one of ('source', "),
    "a choice misspelt": ("train --model lenet", "'convnext'); did you mean lenet5? see jaxcnn train --help"),
    "bad number": ("train --epochs ten", "--epochs: got ten, required a whole number; see jaxcnn train --help"),
    "fraction of an epoch": ("train --epochs 1.5", "--epochs: got 1.5, required a whole number; see"),
    "no seed": ("train --seeds 0", "--seeds: got 0, required at least 1"),
    "no core": ("train --cores 0", "--cores: got 0, required at least 1"),
    "half an image": (
        "train --batch-size 1.5",
        "--batch-size: got 1.5, required a whole number; see jaxcnn train --help",
    ),
    "no number": ("train --clip none", "--clip: got none, required a number; see jaxcnn train --help"),
    "no number at all": (
        "train --validation half",
        "--validation: got half, required a number; see jaxcnn train --help",
    ),
    "no value": ("train --seed", "Missing value for argument '--seed'"),
    "too few epochs": ("train --epochs 0", "--epochs: got 0, required at least 1"),
    "no batch": ("train --batch-size 0", "--batch-size: got 0, required at least 1"),
    "large batch": ("train --batch-size 2000", "--batch-size: got 2000, required at most the 1437 training images"),
    "negative seed": ("train --seed -1", "--seed: got -1, required at least 0"),
    "NaN for a rate": ("train --learning-rate nan", "--learning-rate: got nan, required more than 0"),
    "all for validation": ("train --validation 1", "validation: got 1.0, required a fraction from 0 to less than 1"),
    "classes of the digits": ("train --classes 5", "--classes: got 5, digits has 10"),
    "too large a network": ("train --model lenet5", "--model lenet5: not for images of 8×8×1: "),
    "no data": (
        "train --data nowhere",
        "nowhere: no such file or folder; give digits, fashion-mnist, a folder of idx ",
    ),
    "data is a file": ("train --data file", "file: not an .npz file, or a broken one (File is not a zip file); fetch "),
    "no Fashion-MNIST": (
        "train --data fashion-mnist --data-dir nowhere",
        "nowhere: no such folder; install Debian's package dataset-fashion-mnist, or give the folder of",
    ),
    "a folder of digits": ("train --data-dir empty", "empty, but it is for fashion-mnist; give other data by --data"),
    "augmentation of no size": (
        "train --augment crop,flip",
        "--augment: got 'crop' in 'crop,flip', required none, or of crop=PIXELS, flip, cutout=PIXELS some",
    ),
    "augmentation of too large a size": (
        "train --augment flip,cutout=9",
        "--augment flip,cutout=9: not for images of 8×8×1: cutout: size must be from 1 to 8, the shorter side, got 9",
    ),
    "empty folder": (
        "train --data empty",
        "empty: no train-images-idx*-ubyte[.gz]; MNIST's four files are required, or CIFAR",
    ),
    "out is in use": ("train --out used", "used: holds files already; give a new folder, or --resume it"),
    "out is a file": ("train --out file", "file is no folder that can be written to; give another"),
    "nothing to resume": ("train --resume nowhere", "nowhere: no run there: config.json: No such file or directory"),
    "summary of nothing": ("summary --input 8x8x1", "Missing from jaxcnn summary: MODEL"),
    "summary of no size": ("summary source", "Missing from jaxcnn summary: --input HxWxC"),
    "summary of a model's misspelling": (
        "summary lenet --input 28x28x1",
        "summary: got the model lenet; did you mean lenet5? the models are ",
    ),
    "summary of no model": ("summary thesis --input 28x28x1", "summary: got the model thesis; the models are "),
    "summary of a size with commas": (
        "summary source --input 28,28,1",
        "--input: got '28,28,1', required the size of one image as 32x32x3",
    ),
    "summary of a size of 0": (
        "summary source --input 0x28x1",
        "--input: got '0x28x1', required the size of one image",
    ),
    "summary of too small an image": (
        "summary lenet5 --input 4x4x1",
        "--input 4x4x1: not for lenet5: conv2d: the window spans 5×5, the padded image ",
    ),
    "summary of a flat image": (
        "summary source --input 64",
        "--input 64: not for source: conv2d: input_shape must be (H, W, C), without N, got",
    ),
    "summary of no images": ("summary source --input 8x8x1 --batch-size 0", "--batch-size: got 0, required at least 1"),
    "bench of no such network": ("bench --networks vgg", "invalid choice 'vgg' for argument '--networks"),
    "bench of no network": ("bench --networks", "--networks: got none, required at least one"),
    "bench of no batch": ("bench --batches", "--batches: got none, required at least one"),
    "bench of empty batches": ("bench --batches 32 0", "--batches: got 0, required at least 1"),
    "bench without a round": ("bench --rounds 0", "--rounds: got 0, required at least 1"),
    "bench of a letter": (
        "bench --batches 32 a",
        "--batches: got 32 a, required whole numbers; see jaxcnn bench --help",
    ),
    "bench into no folder": (
        "bench --json nowhere/bench.json",
        "--json: got nowhere/bench.json, required a file that can be written: No such file or directory",
    ),
    "bench into a folder": ("bench --json empty", "--json: got empty, required a file that can be written: Is a dir"),
    "bench drawn into no folder": (
        "bench --figure nowhere/bench.png",
        "--figure: got nowhere/bench.png, required a file that can be written: No such file or directory",
    ),
    "verify into no folder": (
        "verify --json nowhere/report.json",
        "--json: got nowhere/report.json, required a file that can be written: No such file or directory",
    ),
    "bench drawn as text": (
        "bench --figure bench.txt",
        "--figure: got bench.txt, required a name that ends in .pdf, .png or .svg",
    ),
    "report of nothing": ("report", "report: got no run, required at least one run folder"),
    "report of no folder": (
        "report nowhere",
        "nowhere: no such folder; give a run folder, as jaxcnn train names it at",
    ),
    "report of no run": ("report used", "used: no run there: config.json: No such file or directory"),
    "report of a file": ("report file", "file: no such folder; give a run folder"),
    "resume what is no run": ("train --resume used", "used: no run there: config.json: No such file or directory"),
}


@pytest.fixture
def place(tmp_path, monkeypatch, capfd):
    """A folder with some things in it. Gives a function that asserts how a command fails there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "use_cpu_cores", lambda n: n)  # this process has used its devices already
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").touch()

    def fails(arguments: str, says: str) -> None:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        assert cli.main(arguments.split()) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("jaxcnn: ")
        assert says in err
        assert err.index("\n") == len(err) - 1
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    return fails


@pytest.mark.parametrize(("arguments", "says"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(place, arguments, says):
    place(arguments, says)


BAD_DATA = {
    "NaN": (lambda f: {TRAIN: at(f[TRAIN].astype("f4"), (3, 2, 1), np.nan)}, "value [3, 2, 1] is NaN or infinite"),
    "overflow": (lambda f: {TRAIN: at(f[TRAIN].astype("f8"), (3, 2, 1), 1e300)}, "value [3, 2, 1] is NaN or infinite"),
    "no such class": (lambda f: {TEST_LABELS: f[TEST_LABELS] + 1}, "label 10 is outside the 10 classes 0 … 9; give"),
    "too few labels": (lambda f: {TRAIN_LABELS: f[TRAIN_LABELS][1:]}, "19 labels for 20 images"),
    "cut short": (lambda f: {TRAIN: idx(f[TRAIN])[:-5]}, "960 bytes, the file holds 955; fetch the file again"),
    "no idx file": (lambda f: {TRAIN: b"<html>"}, "not an idx file: it begins with 3c 68 74 6d"),
    "half a data set": (lambda f: {TEST_LABELS: None}, "no t10k-labels-idx*-ubyte[.gz]; MNIST's four files"),
    "a batch of more": (lambda f: {}, "--batch-size: got 32, required at most the 20 training images"),
}


@pytest.mark.parametrize(("change", "says"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data(place, rng, tmp_path, change, says):
    files = arrays(rng)
    write(tmp_path / "data", files | change(files))
    place("train --data data --out run --validation 0", says)


def test_resume_refuses_other_data(rng, tmp_path, monkeypatch, capfd):
    """An .npz in place of another, one pixel apart; the same are gone on with, where they lie now."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "use_cpu_cores", lambda n: n)  # this process has used its devices already
    names = dict(zip((TRAIN, TRAIN_LABELS, TEST, TEST_LABELS), ("x_train", "y_train", "x_test", "y_test"), strict=True))
    given = {names[name]: array for name, array in arrays(rng).items()}
    np.savez(tmp_path / "data.npz", **given)
    options = "train --data data.npz --batch-size 4 --epochs 2 --augment flip,crop=1 --validation 0 --out run"
    assert cli.main(options.split()) == 0
    before = lines_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")  # of the last epoch: there is something to be done
    np.savez(tmp_path / "data.npz", **given | {"x_test": at(given["x_test"], (1, 2, 3), given["x_test"][1, 2, 3] ^ 1)})
    capfd.readouterr()
    assert cli.main(["train", "--resume", "run"]) == 2
    says = rf"jaxcnn: {tmp_path}/data\.npz: not the data that the run was begun with: sha256 [^\n]*\n"
    assert re.fullmatch(says, capfd.readouterr().err)
    assert lines_of(tmp_path / "run") == before
    (tmp_path / "data.npz").unlink()
    np.savez_compressed(tmp_path / "moved.npz", **given)
    assert cli.main(["train", "--resume", "run", "--data", "moved.npz"]) == 0
    assert without_speed(lines_of(tmp_path / "run")) == without_speed(before)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--epochs 3", "--epochs: got 3, but the run to resume has 20; leave it out, only --cores, "),
        (
            "--seed=1",
            "--seed: got 1, but the run to resume has 0; leave it out, only --cores, --data, --data-dir, "
            "--cache and --skip-nonfinite may change",
        ),
        ("--validation 0", "--validation: got 0.0, but the run to resume has 0.1; leave it out"),  # the default
        ("--learning-rate 0.5", "--learning-rate: got 0.5, but the run to resume has 0.008; leave it out"),
        ("--out other", "--out: not with --resume, which goes on in the run's own folder"),
    ],
)
def test_resume_keeps_its_configuration(place, whole, options, says):
    place(f"train --resume {whole[0]} {options}", says)


def test_bad_input_of_a_process_of_its_own(tmp_path):
    """Nothing but the line reaches standard error: no warning, no trace, no word of XLA."""
    ended = end(start("train", "--data", tmp_path, "--out", "run", cwd=tmp_path))
    says = (
        f"jaxcnn: {tmp_path}: no train-images-idx*-ubyte[.gz]; MNIST's four files are required, or CIFAR-10's "
        "data_batch_1.bin, …, data_batch_5.bin and test_batch.bin\n"
    )
    assert ended == (2, "", says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["tyro", "rich", "sklearn", "orbax"])
def test_a_missing_package(tmp_path, package):
    program = f"import sys; sys.modules[{package!r}] = None; from jaxcnn.__main__ import main; sys.exit(main())"
    ended = end(start("train", "--epochs", 1, "--out", "run", cwd=tmp_path, program=("-c", program)))
    assert ended.status == 2
    assert re.fullmatch(
        rf'jaxcnn: needs the package {package}\S*; install it with: pip install "jaxcnn\[train\]"\n', ended.err
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("--help", "help train verify bench summary report"),
        ("train --help", f"help out resume cores {' '.join(f.name for f in dataclasses.fields(Config))}"),
        ("verify --help", "help full json"),
        ("summary --help", "help input batch_size"),
        ("report --help", "help out"),
        ("bench --help", "help networks batches contestants rounds quick json figure"),
    ],
)
def test_help(capsys, arguments, wanted):
    assert cli.main(arguments.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    named = {name for name in wanted.split() if f"--{name.replace('_', '-')}" in out or f"{name}  " in out}
    assert named == set(wanted.split())


def test_summary(capsys):
    assert cli.main(["summary", "lenet5", "--input", "28x28x1", "--batch-size", "2"]) == 0
    assert capsys.readouterr() == (f"{summary(models.lenet5(), (28, 28, 1), 2)}\n", "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_line_does_not_depend_on_the_terminal(monkeypatch, capsys, encoding):
    """tyro frames its errors in lines of characters, or of spaces where the encoding has no such lines."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    assert cli.main(["train", "--epoch", "2"]) == 2
    says = "jaxcnn: Unrecognized options: --epoch, 2; did you mean --epochs? see jaxcnn train --help\n"
    assert capsys.readouterr().err == says


@pytest.mark.parametrize(
    ("cores", "batch", "seeds", "used"),
    [(2, 32, 1, 2), (6, 32, 1, 4), (64, 32, 1, 32), (4, 15, 1, 3), (8, 7, 1, 7), (4, 7, 3, 3), (2, 7, 3, 2)],
)
def test_as_many_cores_as_share_the_batch(tmp_path, monkeypatch, cores, batch, seeds, used):
    """The default works on every machine, not only where the cores divide 32; several seeds are what is shared."""
    taken = []
    monkeypatch.setattr(devices, "available_cores", lambda: cores)
    monkeypatch.setattr(devices, "use_cpu_cores", taken.append)
    options = ["--batch-size", str(batch), "--seeds", str(seeds), "--data", str(tmp_path / "nowhere")]
    assert cli.main(["train", *options]) == 2
    assert taken == [used]


def test_only_the_command_line_prints():
    printing = {
        path.name
        for path in (ROOT / "jaxcnn").rglob("*.py")
        if re.search(
            r"(?<![\w.])print\(|sys\.std(out|err)|\bConsole\(", re.sub(r"(>>>|\.\.\.) .*|`.*?`", "", path.read_text())
        )
    }
    alone = "processes.py"  # a process that has lost the others ends at once, with a line
    assert printing == {"__main__.py", alone, *(path.name for path in (ROOT / "jaxcnn").glob("cli*.py"))}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_fits_on_a_screen_and_has_an_example(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 50
    assert f"\njaxcnn {command} " in short
    assert cli.main([command, "--help-verbose"]) == 0
    assert len(capsys.readouterr().out.split()) > len(short.split())


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shell_completion(shell, capsys):
    assert cli.main(["--tyro-print-completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*cli.COMMANDS, "--learning-rate", "mobilenet_v2"):
        assert word in script


def test_bash_completes_options_and_nothing_else(tmp_path, capsys):
    assert cli.main(["--tyro-print-completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    typed = "COMP_WORDS=(jaxcnn train --); COMP_CWORD=2; COMP_LINE='jaxcnn train --'; COMP_POINT=15"
    asks = f"source {tmp_path / 'script'}; {typed}; _tyro_jaxcnn jaxcnn -- train; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", asks], capture_output=True, text=True, check=True, cwd=tmp_path)
    options = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Train)}
    assert set(done.stdout.split("\n")) - {""} == options | {"--help"}
    assert "complete -o default -F" in (tmp_path / "script").read_text()
