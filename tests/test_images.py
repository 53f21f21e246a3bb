"""Folders of images: what is in them, that training on them is training in memory, and that little memory does."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from several import ends, training
from test_cli import ENVIRONMENT, end, start, wait_for, without_speed
from test_cli import lines_of as all_of
from test_loop import latest_step, lines_of, train

from jaxcnn.training import streamed
from jaxcnn.training.chunk import chunks_of
from jaxcnn.training.config import Config
from jaxcnn.training.data import load_data
from jaxcnn.training.image_files import decoded, size_from
from jaxcnn.training.loop import Diverged, Interrupted, Warned
from jaxcnn.training.run import prepare
from jaxcnn.training.samples import DataError

CLASSES = ("cat", "dog", "fox")


def save(path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(folder, parts):
    """PNG files of each part's (images, labels), in this order within a class."""
    for name, (images, labels) in parts.items():
        for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            save(folder / name / CLASSES[label] / f"{i:04}.png", pixels)
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The same images as a folder and as an .npz file: 360 for training, 60 for testing, of 8×8 in colour."""
    path, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    parts = {}
    for name, each in (("train", 120), ("test", 20)):
        labels = np.repeat(np.arange(3), each)  # a folder has class after class
        images = rng.integers(0, 150, (3 * each, 8, 8, 3)).astype(np.uint8)
        images[np.arange(len(labels)), 2 * labels] += 100
        parts[name] = images, labels
    arrays = {f"{axis}_{name}": array for name, pair in parts.items() for axis, array in zip("xy", pair, strict=True)}
    np.savez(path / "set.npz", **arrays)
    return write(path / "folder", parts), path / "set.npz"


def same_images(a, b) -> bool:
    return a.shape == b.shape and (np.asarray(a[:]) == np.asarray(b[:])).all()


def test_a_folder_is_the_same_data_as_an_npz_file(sets):
    a, b = (load_data(str(path), seed=3, validation=0.2, classes=3) for path in sets)
    assert a.sha256 == b.sha256
    assert (a.class_names, a.classes, a.augment) == (CLASSES, 3, "none")
    assert a.test.images[np.array([], int)].shape == (0, 8, 8, 3)
    np.testing.assert_allclose((a.mean, a.deviation), (b.mean, b.deviation), rtol=1e-14)
    for name in ("train", "validation", "test"):
        one, other = getattr(a, name), getattr(b, name)
        assert same_images(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert (one.images.dtype, one.labels.dtype) == (other.images.dtype, other.labels.dtype)
    chosen = np.array([[7, 0, 7], [200, 3, 1]])
    np.testing.assert_array_equal(a.train.images[chosen], b.train.images[chosen])
    parts = list(a.train.images.in_parts(100))
    assert [len(part) for part in parts] == [100, 100, 88]
    np.testing.assert_array_equal(np.concatenate(parts), b.train.images)


# Two chunks an epoch, 100 steps and 80, on two devices (conftest).
SMALL = Config(epochs=2, batch_size=2, validation=0.0, augment="crop=1,flip")


@pytest.fixture(scope="module")
def run(sets):
    return prepare(dataclasses.replace(SMALL, data=str(sets[0])))


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    train(run, path)
    return path


def test_training_is_that_in_memory_up_to_rounding(sets, whole, tmp_path):
    """To the bit on one device, below; of several devices the programs differ in the last bits."""
    train(prepare(dataclasses.replace(SMALL, data=str(sets[1]), classes=3)), tmp_path)
    for streamed_line, line in zip(lines_of(whole), lines_of(tmp_path), strict=True):
        for name in ("train_loss", *(["test_loss"] if "test_loss" in line else [])):
            np.testing.assert_allclose(streamed_line[name], line[name], rtol=1e-4)


@pytest.mark.parametrize("stop", [100, 180, 280])
def test_interrupted_and_resumed_equals_uninterrupted(run, whole, tmp_path, stop):
    with pytest.raises(Interrupted, match=f"step {stop} of 360"):
        train(run, tmp_path, until=stop)
    events = train(run, tmp_path, resume=True)
    assert latest_step(events) == 360
    assert lines_of(tmp_path) == lines_of(whole)


TRAIN = ("train", "--cores", 1, "--epochs", 6, "--batch-size", 4, "--augment", "crop=1,flip", "--validation", 0.2)


def test_on_one_device_it_is_training_in_memory_to_the_bit_killed_and_resumed_too(sets, tmp_path):
    folder, npz = sets
    cache = ("--cache", tmp_path / "cache")
    killed = tmp_path / "killed"
    process = start(*TRAIN, "--data", folder, *cache, "--out", killed, cwd=tmp_path)
    wait_for(lambda: (killed / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGKILL)
    end(process)
    status, out, _ = end(start("train", "--cores", 1, "--resume", killed, cwd=tmp_path))
    assert status == 0
    whole = end(start(*TRAIN, "--data", npz, "--classes", 3, "--out", tmp_path / "whole", cwd=tmp_path))
    assert (whole.status, whole.err) == (0, "")
    assert without_speed(all_of(killed)) == without_speed(all_of(tmp_path / "whole"))
    assert "1-nearest-neighbour" in whole.out
    assert "1-nearest-neighbour" not in out  # it would have to hold all images
    assert out.startswith(f"reading all images in {folder} once, for their mean, deviation and digest\n")
    config = json.loads((killed / "config.json").read_text())
    assert (config["class_names"], config["classes"]) == ([*CLASSES], 3)
    assert config["training_images"] == [288, 8, 8, 3]


def test_two_processes_share_the_batches(sets, run, whole, tmp_path):
    """Each decodes its half, and they end as one process with two devices."""
    options = ("--epochs", "2", "--batch-size", "2", "--validation", "0", "--augment", SMALL.augment)
    with training(2, *options, "--data", sets[0], "--out", tmp_path / "run") as started:
        ended = ends(started)
    assert [e.status for e in ended] == [0, 0], ended
    for line, other in zip(lines_of(tmp_path / "run"), lines_of(whole), strict=True):
        np.testing.assert_allclose(line["train_loss"], other["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(line["test_loss"], other["test_loss"], rtol=1e-5)


def test_images_are_decoded_off_the_training_thread_and_ahead_of_the_steps(run, tmp_path, monkeypatch):
    threads, counts, decode = set(), [], streamed.decoded

    def watched(path, size):
        threads.add(threading.current_thread())
        counts.append(path)
        return decode(path, size)

    monkeypatch.setattr(streamed, "decoded", watched)
    chunks = chunks_of(run, 0)
    next(chunks)
    deadline = time.monotonic() + 30
    while len(counts) < 360 and time.monotonic() < deadline:  # 200 of the first chunk, 160 of the second
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(counts) == 360  # and not the third, which would have to be held as well
    next(chunks)
    train(run, tmp_path)
    assert threads
    assert threading.main_thread() not in threads


def test_little_memory_does(tmp_path):
    """10,000 images of 64×64 in colour, 117 MiB as bytes: read for the digest, in chunks and to be evaluated."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        save(tmp_path / "set" / label / "0.png", np.tile(rng.integers(0, 256, (64, 1, 3)).astype(np.uint8), (1, 64, 1)))
        for i in range(1, 5000):
            os.link(tmp_path / "set" / label / "0.png", tmp_path / "set" / label / f"{i}.png")
    code = """
import resource, sys
from jaxcnn.training import chunk
from jaxcnn.training.config import Config
from jaxcnn.training.data import load_data
from jaxcnn.training.run import Run

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

chunk.READ = 2**22
small = load_data(sys.argv[2], seed=0)  # what the libraries take
before = peak()
data = load_data(sys.argv[1], seed=0)
config = Config(epochs=1)
run = Run(config, (data,), None, None, None, len(data.train.images) // config.batch_size)
images = sum(one.batches.size for one in chunk.chunks_of(run, 0))
images += sum(map(len, data.test.images.in_parts(250)))
print(images, peak() - before)
"""
    for label in ("a", "b"):
        for i in range(8):
            save(tmp_path / "small" / label / f"{i}.png", np.full((64, 64, 3), 9 * i, np.uint8))
    command = [sys.executable, "-c", code, str(tmp_path / "set"), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    images, grown = map(float, done.stdout.split())
    assert images == 10000
    assert grown < 117 / 4, f"{grown} MiB"


def test_a_step_that_is_not_finite_is_found_and_left_out(run, tmp_path):
    order = np.concatenate([one.batches[0] for one in chunks_of(run, 0)])
    labels = run.data[0].train.labels.copy()
    labels[order[130, 1]] = -1  # in the second chunk of the first epoch; later ones take it again
    bad = run._replace(data=(run.data[0]._replace(train=run.data[0].train._replace(labels=labels)),))
    with pytest.raises(
        Diverged, match="the loss is nan at step 131: first of all the loss is nan; 1 labels lie outside"
    ):
        train(bad, tmp_path / "a")
    tolerant = bad._replace(config=dataclasses.replace(bad.config, skip_nonfinite=2))
    warned = [event.message for event in train(tolerant, tmp_path / "b") if isinstance(event, Warned)]
    assert warned[0].startswith("step 131 is not finite; it is left out, 1 of the 2 ")
    assert len(warned) == 2  # once an epoch


def test_other_images_are_not_resumed_on(run, whole, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.config.data, copy)
    shutil.copytree(whole, tmp_path / "run")
    moved = dataclasses.replace(run.config, data=str(copy))
    train(prepare(moved), tmp_path / "run", resume=True)  # the same images elsewhere
    save(copy / "test" / "cat" / "0000.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=f"^{copy}: not the data that the run was begun with: sha256 "):
        train(prepare(moved), tmp_path / "run", resume=True)


def test_what_is_kept_is_not_decoded_again(sets, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    shutil.copytree(sets[0], folder)
    counts, decode = [], streamed.decoded
    monkeypatch.setattr(streamed, "decoded", lambda path, size: counts.append(path) or decode(path, size))
    plain = load_data(str(folder), seed=0)
    assert len(counts) == 420
    for wanted in (840, 840):  # the second time it is there
        kept = load_data(str(folder), seed=0, cache=tmp_path / "cache")
        assert len(counts) == wanted
        assert kept.sha256 == plain.sha256
        assert same_images(kept.train.images, plain.train.images[:])
        del counts[840:]
    (file,) = (tmp_path / "cache").iterdir()
    assert file.stat().st_size == 420 * 8 * 8 * 3
    save(folder / "train" / "cat" / "0000.png", np.zeros((8, 8, 3), np.uint8))
    changed = load_data(str(folder), seed=0, cache=tmp_path / "cache")
    assert not changed.train.images.pixels(np.array([0])).any()
    assert changed.sha256 != plain.sha256
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_without_parts_a_fifth_of_each_class_is_for_testing(tmp_path):
    for label, count in (("b", 10), ("a", 20)):
        for i in range(count):
            save(tmp_path / label / f"{i}.png", np.full((4, 4), 5 * i, np.uint8))
    save(tmp_path / ".hidden" / "0.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "a" / ".DS_Store").touch()
    data = load_data(str(tmp_path), seed=0)
    assert data.class_names == ("a", "b")
    assert [np.bincount(part.labels).tolist() for part in (data.train, data.test)] == [[16, 8], [4, 2]]
    assert data.train.images.shape == (24, 4, 4, 1)
    other = load_data(str(tmp_path), seed=1)
    assert other.sha256 != data.sha256


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_may_have_validation_images(sets, tmp_path, name):
    folder = tmp_path / "folder"
    shutil.copytree(sets[0], folder)
    shutil.copytree(sets[0] / "test", folder / name)
    data = load_data(str(folder), seed=0, validation=0.1)
    assert data.validation is not None
    assert len(data.train.labels) == 360
    assert same_images(data.validation.images, data.test.images)


def test_colours_and_sizes(tmp_path):
    """One image in colour makes all three channels; the middle of each is scaled to the size that is asked for."""
    gray = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4)
    save(tmp_path / "a" / "0.png", gray)
    save(tmp_path / "b" / "0.PNG", np.stack([np.full((4, 4), v, np.uint8) for v in (10, 20, 30)], -1))
    Image.fromarray(np.full((40, 80), 200, np.uint8)).save(tmp_path / "b" / "1.jpeg")
    save(tmp_path / "a" / "1.png", np.full((8, 8, 4), 7, np.uint8))  # with an opacity
    for label in ("a", "b"):
        for i in range(2, 10):
            save(tmp_path / label / f"{i}.png", np.full((4, 4), i, np.uint8))
    data = load_data(str(tmp_path), seed=0, image_size="4")
    assert data.train.images.shape == (16, 4, 4, 3)
    np.testing.assert_array_equal(decoded(str(tmp_path / "a" / "0.png"), (4, 4, 1))[..., 0], gray[1:5])
    np.testing.assert_array_equal(decoded(str(tmp_path / "b" / "0.PNG"), (4, 4, 3))[0, 0], [10, 20, 30])
    np.testing.assert_array_equal(decoded(str(tmp_path / "a" / "1.png"), (4, 4, 3)), np.full((4, 4, 3), 7))
    assert abs(decoded(str(tmp_path / "b" / "1.jpeg"), (5, 3, 3)).astype(int) - 200).max() <= 2
    assert (size_from("32"), size_from("48x64"), size_from("48×64")) == ((32, 32), (48, 64), (48, 64))


def broken(folder, name, content: bytes):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def cut(folder):
    path = folder / "train" / "cat" / "0001.png"
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:120])


def deep(folder):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "test" / "dog" / "0020.png")


WRONG = {
    "a broken image": (cut, r"train/cat/0001\.png: cannot be read: .*truncated.*$"),
    "no image": (
        lambda f: broken(f, "train/dog/a.png", b"text"),
        r"train/dog/a\.png: no PNG or JPEG image$",
    ),
    "an empty file": (lambda f: broken(f, "train/dog/a.jpg", b""), r"train/dog/a\.jpg: no PNG or JPEG image$"),
    "another kind": (
        lambda f: broken(f, "test/dog/a.txt", b""),
        r"test/dog/a\.txt: its name does not end in \.png, \.jpg, \.jpeg; take it away$",
    ),
    "a folder in a class": (lambda f: (f / "test/dog/x").mkdir(), r"test/dog/x: a folder in that of a class; take it"),
    "a file among the classes": (
        lambda f: broken(f, "train/a.png", b""),
        r"train/a\.png: a file beside the folders of the classes; put it into one, or take it away$",
    ),
    "an empty class": (
        lambda f: (f / "train/owl").mkdir(),
        r"train/owl: no images; put some into it, or take the folder away$",
    ),
    "an unknown class": (
        lambda f: shutil.copytree(f / "test/dog", f / "test/owl"),
        r"test/owl: no such class among the training images: cat, dog, fox$",
    ),
    "no test": (
        lambda f: (f / "test").rename(f / "val"),
        r"folder: no folder test; required are train and test, or only a folder for each class$",
    ),
    "two validation parts": (
        lambda f: [(f / name).mkdir() for name in ("val", "valid")],
        "folder: got val and valid, required one part for validation$",
    ),
    "one class": (
        lambda f: [shutil.rmtree(f / "train" / name) for name in ("dog", "fox")],
        "train: got 1 folders, required one for each of at least 2 classes$",
    ),
    "another size": (
        lambda f: save(f / "train/dog/a.png", np.zeros((9, 8, 3), np.uint8)),
        r"train/dog/a\.png: 9×8 pixels, .*train/cat/0000\.png 8×8; give the size that all are to have by --image-size$",
    ),
    "16 bits": (deep, r"test/dog/0020\.png: got Pillow's mode I;16, required 8 bits of gray or of each colour$"),
}


@pytest.mark.parametrize(("damage", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(sets, tmp_path, damage, says):
    folder = tmp_path / "folder"
    shutil.copytree(sets[0], folder)
    damage(folder)
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path))}.*{says}"):
        load_data(str(folder), seed=0)


def test_options_that_do_not_go_together(sets, tmp_path):
    folder = str(sets[0])
    for how, says in (
        ({"data": folder, "seeds": 2}, "--seeds: got 2, required 1 for a folder of images, which stay on disk"),
        ({"data": folder, "classes": 4}, f"--classes: got 4, {folder} has 3 classes; leave it out"),
        ({"data": folder, "image_size": "0"}, "--image-size: got '0', required pixels, as 32, or rows and columns, as"),
        ({"image_size": "32"}, "--image-size: got 32, but it is for folders of images, which digits is not"),
        ({"cache": "here"}, "--cache: got here, but it is for folders of images, which digits is not"),
        ({"data": folder, "cache": "/dev/null/x"}, "--cache /dev/null/x: 0.1 MiB of pixels cannot be kept: Not a dir"),
    ):
        with pytest.raises(DataError) as error:
            prepare(Config(**how))
        assert str(error.value).startswith(says)
    few = tmp_path / "few"
    for label in ("a", "b"):
        save(few / label / "0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"few: the test part: got 0\.2, but .*; add images$"):
        load_data(str(few), seed=0)


def test_without_grain_the_extra_is_named(sets, tmp_path):
    for package in ("grain", "PIL"):
        code = f"import sys; sys.modules[{package!r}] = None; from jaxcnn.__main__ import main; sys.exit(main())"
        done = end(start("train", "--data", sets[0], cwd=tmp_path, program=("-c", code)))
        said = f'jaxcnn: needs the package {package}; install it with: pip install "jaxcnn[images]"\n'
        assert (done.status, done.err) == (2, said)
