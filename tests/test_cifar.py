"""CIFAR-10's binary version: six files of one length, and what else such a folder may hold."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from jaxcnn.training.data import load_data
from jaxcnn.training.samples import DataError

TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
TEST = "test_batch.bin"


def batches(rng, images: int = 4) -> dict[str, bytes]:
    """Each image has its label's number in every red pixel, 100 in green ones; blue is random."""
    return {
        name: b"".join(record(rng, label % 10) for label in range(i, i + images))
        for i, name in enumerate([*TRAIN, TEST])
    }


def record(rng, label: int) -> bytes:
    return bytes([label]) + bytes([label]) * 1024 + bytes([100]) * 1024 + rng.bytes(1024)


def write(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def test_planes_become_channels_last(tmp_path, rng):
    files = batches(rng)
    data = load_data(str(write(tmp_path, files)), seed=0)
    assert (data.train.images.shape, data.test.images.shape) == ((20, 32, 32, 3), (4, 32, 32, 3))
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(data.train.labels, [label % 10 for i in range(5) for label in range(i, i + 4)])
    np.testing.assert_array_equal(data.test.labels, [5, 6, 7, 8])
    pixels = np.rint((data.test.images * data.deviation + data.mean) * 255)
    assert (pixels[..., 0] == data.test.labels[:, None, None]).all()
    assert (pixels[..., 1] == 100).all()
    blue = np.frombuffer(files[TEST], np.uint8).reshape(4, 3073)[:, 2049:]
    np.testing.assert_array_equal(pixels[..., 2], blue.reshape(4, 32, 32))  # row by row
    assert data.augment == "crop=4,flip"


def test_each_channel_is_standard_by_itself(tmp_path, rng):
    """Green does not vary: it is only shifted."""
    data = load_data(str(write(tmp_path, batches(rng))), seed=0)
    assert len(data.mean) == len(data.deviation) == 3
    np.testing.assert_allclose(data.train.images.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(data.train.images.std((0, 1, 2)), (1, 0, 1), atol=1e-4)
    np.testing.assert_allclose((data.mean[1], data.deviation[1]), (100 / 255, 1), rtol=1e-6)


PICKLED = dict.fromkeys([name.removesuffix(".bin") for name in (*TRAIN, TEST)], pickle.dumps({b"labels": [1]}))
BROKEN = {
    "a byte missing": (
        lambda f: {TEST: f[TEST][:-1]},
        f"{TEST}: 12291 bytes are no images: each takes 3073, its label and 3 × 32 × 32 values; fetch the file again",
    ),
    "a byte left over": (
        lambda f: {TRAIN[2]: f[TRAIN[2]] + b"1"},
        f"{TRAIN[2]}: 12293 bytes are no images: each takes",
    ),
    "an empty file": (lambda f: {TRAIN[0]: b""}, f"{TRAIN[0]}: 0 bytes are no images: each takes 3073"),
    "images missing": (
        lambda f: {TRAIN[3]: f[TRAIN[3]][3073:]},
        f"{TRAIN[3]}: holds 3 images, {TRAIN[0]} 4; all must hold as many; fetch the files again",
    ),
    "a batch missing": (lambda f: {TRAIN[1]: None}, f"no {TRAIN[1]}; CIFAR-10's six .bin files are required"),
    "no test images": (lambda f: {TEST: None}, f"no {TEST}; CIFAR-10's six .bin files are required"),
    "label 10": (
        lambda f: {TEST: b"\n" + f[TEST][1:]},
        f"{TEST}: label 10 is outside the 10 classes 0 … 9; fetch the files again",
    ),
    "the pickled version": (
        lambda f: dict.fromkeys(f) | PICKLED,
        "holds CIFAR-10's pickled version, and to read a pickle is to run it; the binary version is required",
    ),
    "its names alone": (lambda f: dict.fromkeys(f) | {"batches.meta": b""}, "holds CIFAR-10's pickled version"),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_folder(tmp_path, rng, change, says):
    files = batches(rng)
    folder = write(tmp_path / "data", files | change(files))
    with pytest.raises(DataError) as error:
        load_data(str(folder), seed=0)
    assert says in str(error.value)
    assert str(error.value).startswith(str(folder))


def test_a_folder_in_place_of_a_batch(tmp_path, rng):
    (write(tmp_path, batches(rng) | {TEST: None}) / TEST).mkdir()
    with pytest.raises(DataError, match=f"{TEST}: .* bytes are no images"):
        load_data(str(tmp_path), seed=0)


def test_both_versions_in_one_folder(tmp_path, rng):
    """The pickled one is left alone."""
    data = load_data(str(write(tmp_path, batches(rng) | PICKLED)), seed=0)
    assert data.train.images.shape == (20, 32, 32, 3)


def test_its_classes_are_its_own(tmp_path, rng):
    folder = write(tmp_path, batches(rng))
    with pytest.raises(DataError, match=f"--classes: got 9, {folder} has 10; it is for folders of idx files and .npz"):
        load_data(str(folder), seed=0, classes=9)
