"""The digits' split and scaling; folders of idx files, whole and broken; Fashion-MNIST; the digest of the data."""

from __future__ import annotations

import gzip
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits
from test_idx import idx

from jaxcnn.training import data as data_sets
from jaxcnn.training.data import PACKAGED, enlarged, load_data, require_same_data
from jaxcnn.training.samples import DataError

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TRAIN, TRAIN_LABELS, TEST, TEST_LABELS = FILES


def arrays(rng) -> dict[str, np.ndarray]:
    """The four files of a small data set: 20 and 10 images of 8×6, two of each class and one."""
    return {
        TRAIN: rng.integers(0, 256, (20, 8, 6)).astype("u1"),
        TRAIN_LABELS: np.repeat(np.arange(10, dtype="u1"), 2),
        TEST: rng.integers(0, 256, (10, 8, 6)).astype("u1"),
        TEST_LABELS: np.arange(10, dtype="u1"),
    }


def write(folder, files: dict[str, np.ndarray | bytes | None]):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else idx(content))
    return folder


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", seed=0)


@pytest.mark.parametrize(("validation", "sizes"), [(0, (1437, 0, 360)), (0.1, (1293, 144, 360))])
def test_digits_are_shared_out_whole(digits, validation, sizes):
    data = load_data("digits", seed=0, validation=validation)
    parts = [part for part in (data.train, data.validation, data.test) if part is not None]
    assert tuple(len(part.labels) for part in parts) == tuple(size for size in sizes if size)
    assert data.classes == 10
    for part in parts:
        assert (part.images.dtype, part.labels.dtype) == (np.float32, np.int32)
        assert part.images.shape[1:] == (8, 8, 1)
    # Complete and disjoint: the pixels are sixteenths, so undoing the scaling gives every image back, each once.
    got = Counter(
        (int(label), np.rint((image * data.deviation + data.mean) * 16).astype(int).tobytes())
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    )
    source = load_digits()
    assert got == Counter(
        (int(label), image.astype(int).tobytes()) for image, label in zip(source.images, source.target, strict=True)
    )
    np.testing.assert_array_equal(data.test.labels, digits.test.labels)  # the validation images are training images


def test_digits_are_stratified(digits):
    share = np.bincount(load_digits().target) * 0.2
    assert np.abs(np.bincount(digits.test.labels) - share).max() < 1


def test_the_split_is_a_function_of_the_seed(digits):
    again, other = load_data("digits", seed=0), load_data("digits", seed=1)
    np.testing.assert_array_equal(again.train.images, digits.train.images)
    np.testing.assert_array_equal(again.test.labels, digits.test.labels)
    assert not np.array_equal(other.test.images, digits.test.images)


def test_the_training_images_alone_are_standard(rng, tmp_path):
    files = arrays(rng)
    files[TEST] = files[TEST] // 4  # as many dark test images as one likes change nothing
    data = load_data(str(write(tmp_path, files)), seed=0)
    plain = files[TRAIN] / 255
    np.testing.assert_allclose((*data.mean, *data.deviation), (plain.mean(), plain.std()), rtol=1e-6)
    for part, pixels in ((data.train, plain), (data.test, files[TEST] / 255)):
        np.testing.assert_allclose(part.images[..., 0], (pixels - plain.mean()) / plain.std(), rtol=0, atol=1e-5)


def test_a_validation_part_does_not_enter_the_scaling():
    data = load_data("digits", seed=0, validation=0.5)
    np.testing.assert_allclose((data.train.images.mean(), data.train.images.std()), (0, 1), atol=1e-5)


RENAMED = {
    "as MNIST has them": lambda name: name,
    "dotted": lambda name: name.replace("-idx", ".idx"),
    "test for t10k": lambda name: name.replace("t10k", "test"),
    "gzipped": lambda name: f"{name}.gz",
}


@pytest.mark.parametrize("rename", RENAMED.values(), ids=RENAMED)
def test_folder_by_any_of_its_names(rng, tmp_path, rename):
    files = arrays(rng)
    pack = gzip.compress if rename(TRAIN).endswith("gz") else bytes
    data = load_data(str(write(tmp_path, {rename(name): pack(idx(a)) for name, a in files.items()})), seed=0)
    assert (data.train.images.shape, data.test.images.shape) == ((20, 8, 6, 1), (10, 8, 6, 1))
    np.testing.assert_array_equal(data.train.labels, files[TRAIN_LABELS])
    np.testing.assert_array_equal(data.test.labels, files[TEST_LABELS])


def test_colour_and_values_that_are_no_bytes(rng, tmp_path):
    files = arrays(rng) | {name: rng.normal(size=(n, 8, 6, 3)) for name, n in ((TRAIN, 20), (TEST, 10))}
    data = load_data(str(write(tmp_path, files)), seed=0)
    assert data.test.images.shape == (10, 8, 6, 3)
    wanted = [files[TRAIN][..., c].mean() for c in range(3)]
    np.testing.assert_allclose(data.mean, wanted, rtol=0, atol=1e-6)  # only bytes are divided by 255


def at(array: np.ndarray, place, value) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


# What is changed in the folder (None: the file is left out), and what the error says.
BROKEN = {
    "images missing": (
        lambda f: {TEST: None},
        "no t10k-images-idx*-ubyte[.gz]; MNIST's four files are required, or CIFAR-10's data_batch_1.bin",
    ),
    "labels missing": (lambda f: {TRAIN_LABELS: None}, "no train-labels-idx*-ubyte[.gz]; MNIST's four"),
    "nothing there": (lambda f: dict.fromkeys(FILES), "no train-images-idx*-ubyte[.gz]; MNIST's four"),
    "too few labels": (lambda f: {TEST_LABELS: f[TEST_LABELS][1:]}, "9 labels for 10 images; there must be one for"),
    "no such class": (
        lambda f: {TEST_LABELS: at(f[TEST_LABELS], 3, 12)},
        f"{TEST_LABELS}: label 12 is outside the 10 classes 0 … 9; give --classes",
    ),
    "negative class": (lambda f: {TRAIN_LABELS: at(f[TRAIN_LABELS].astype("i4"), 5, -1)}, "label -1 is outside"),
    "labels of fractions": (
        lambda f: {TRAIN_LABELS: f[TRAIN_LABELS] / 2},
        "got float64 (20,), required one whole number an image",
    ),
    "labels as rows": (lambda f: {TRAIN_LABELS: np.eye(20, dtype="u1")}, "got uint8 (20, 20), required one whole"),
    "images in a row": (lambda f: {TRAIN: f[TRAIN][0]}, "got an array (8, 6), required M×H×W or M×H×W×C images"),
    "NaN": (
        lambda f: {TEST: at(f[TEST].astype("f4"), (4, 7, 2), np.nan)},
        f"{TEST}: value [4, 7, 2] is NaN or infinite; all pixels must be finite",
    ),
    "infinity": (lambda f: {TRAIN: at(f[TRAIN].astype("f8"), (0, 1, 2), -np.inf)}, "value [0, 1, 2] is NaN or inf"),
    "beyond float32": (lambda f: {TRAIN: at(f[TRAIN].astype("f8"), (0, 1, 2), 1e300)}, "value [0, 1, 2] is NaN or inf"),
    "two sizes": (
        lambda f: {TEST: f[TEST][:, 1:]},
        "test images are (7, 6, 1), train images (8, 6, 1); they must have one size",
    ),
    "one colour": (lambda f: {TRAIN: np.full_like(f[TRAIN], 255)}, "all training pixels have the value 1.0; there is"),
    "a file cut short": (lambda f: {TRAIN: idx(f[TRAIN])[:-1]}, f"{TRAIN}: cut short: the header announces 20 × 8 × 6"),
    "no images": (lambda f: {TRAIN: f[TRAIN][:0]}, "announces 0 × 8 × 6 values; at least one is required"),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_folder(rng, tmp_path, change, says):
    files = arrays(rng)
    folder = write(tmp_path / "data", files | change(files))
    with pytest.raises(DataError) as error:
        load_data(str(folder), seed=0)
    assert says in str(error.value)
    assert str(error.value).startswith(str(folder))  # the folder, or the very file in it


REFUSED = {
    "no folder": (
        {"name": "nowhere"},
        "nowhere: no such file or folder; give digits, fashion-mnist, a folder of idx files, of CIFAR-10's binary "
        "version or of images, or an .npz file",
    ),
    "a folder of digits": (
        {"folder": "here"},
        "--data-dir: got here, but it is for fashion-mnist; give other data by --data",
    ),
    "Fashion-MNIST that is not there": (
        {"name": "fashion-mnist", "folder": "nowhere"},
        "nowhere: no such folder; install Debian's package dataset-fashion-mnist, or give the folder of "
        "Fashion-MNIST's four idx files by --data-dir",
    ),
    "all for validation": ({"validation": 1.0}, "validation: got 1.0, required a fraction from 0 to less than 1"),
    "less than none": ({"validation": -0.1}, "validation: got -0.1, required a fraction from 0 to less than 1"),
    "NaN for validation": ({"validation": float("nan")}, "validation: got nan, required a fraction"),
    "too few for validation": ({"validation": 0.001}, "--validation: got 0.001, but The "),
    "too few for training": ({"validation": 0.999}, "--validation: got 0.999, but The "),
    "other classes": ({"classes": 5}, "--classes: got 5, digits has 10; it is for folders of idx files and .npz files"),
}


@pytest.mark.parametrize(("arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_refused_arguments(arguments, says):
    with pytest.raises(DataError) as error:
        load_data(**{"name": "digits", "seed": 0} | arguments)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_more_classes_than_ten(rng, tmp_path):
    files = arrays(rng)
    files[TEST_LABELS] = at(files[TEST_LABELS], 3, 11)
    assert load_data(str(write(tmp_path, files)), seed=0, classes=12).classes == 12


def test_images_are_scaled_up_as_often_as_they_fit(digits):
    """Each pixel's block of 4×4 keeps about its value; nothing that is large enough is touched."""
    large = enlarged(digits, 35)
    assert large.train.images.shape == (1437, 32, 32, 1)
    assert large.test.images.dtype == np.float32
    assert large.validation is None
    blocks = large.test.images.reshape(-1, 8, 4, 8, 4).mean((2, 4))
    assert np.corrcoef(blocks.ravel(), digits.test.images.ravel())[0, 1] > 0.95
    assert np.array_equal(large.test.labels, digits.test.labels)
    for size in (1, 8, 15):
        assert enlarged(digits, size) is digits
    assert enlarged(load_data("digits", seed=0, validation=0.1), 16).validation.images.shape == (144, 16, 16, 1)


def test_fashion_mnist_is_where_the_option_says(rng, tmp_path):
    files = arrays(rng)
    folder = str(write(tmp_path, files))
    data = load_data("fashion-mnist", seed=0, folder=folder)
    np.testing.assert_array_equal(data.train.images, load_data(folder, seed=0).train.images)
    assert (data.augment, load_data(folder, seed=0).augment) == ("crop=2,flip", "none")
    with pytest.raises(DataError, match="--classes: got 12, fashion-mnist has 10; it is for folders of idx files and"):
        load_data("fashion-mnist", seed=0, folder=folder, classes=12)
    write(tmp_path, {TEST_LABELS: at(files[TEST_LABELS], 3, 10)})
    with pytest.raises(DataError, match="label 10 is outside the 10 classes 0 … 9; fetch the files again"):
        load_data("fashion-mnist", seed=0, folder=folder)


def test_fashion_mnist_is_where_the_package_puts_it(rng, tmp_path, monkeypatch):
    monkeypatch.setattr(data_sets, "PACKAGED", tmp_path / "here")
    with pytest.raises(
        DataError, match="here: no such folder; install Debian's package dataset-fashion-mnist, or give"
    ):
        load_data("fashion-mnist", seed=0)
    write(tmp_path / "here", arrays(rng))
    assert len(load_data("fashion-mnist", seed=0).train.labels) == 20


@pytest.mark.skipif(not PACKAGED.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_the_packages_fashion_mnist():
    """The mean and the deviation are those that others give: 0.2860 and 0.3530."""
    data = load_data("fashion-mnist", seed=0)
    assert (data.train.images.shape, data.test.images.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    assert (np.bincount(data.train.labels) == 6000).all()
    assert (np.bincount(data.test.labels) == 1000).all()
    np.testing.assert_allclose((*data.mean, *data.deviation), (0.2860, 0.3530), rtol=0, atol=5e-5)


# The digest.


def test_the_digest_is_of_the_values_not_of_their_packing(rng, tmp_path):
    files = arrays(rng)
    plain = load_data(str(write(tmp_path / "plain", files)), seed=0)
    zipped = {f"{name}.gz": gzip.compress(idx(array)) for name, array in files.items()}
    assert load_data(str(write(tmp_path / "zipped", zipped)), seed=7).sha256 == plain.sha256
    names = dict(zip(FILES, ("x_train", "y_train", "x_test", "y_test"), strict=True))
    np.savez(tmp_path / "data.npz", **{names[name]: array for name, array in files.items()})
    assert load_data(str(tmp_path / "data.npz"), seed=0).sha256 == plain.sha256
    require_same_data("somewhere", plain.sha256, plain)


CHANGED = {
    "a training pixel": lambda f: {TRAIN: at(f[TRAIN], (3, 2, 1), f[TRAIN][3, 2, 1] ^ 1)},
    "a training label": lambda f: {TRAIN_LABELS: at(f[TRAIN_LABELS], 3, 9)},
    "a test pixel": lambda f: {TEST: at(f[TEST], (3, 2, 1), f[TEST][3, 2, 1] ^ 1)},
    "a test label": lambda f: {TEST_LABELS: at(f[TEST_LABELS], 3, 9)},
    "the order": lambda f: {TRAIN: f[TRAIN][::-1], TRAIN_LABELS: f[TRAIN_LABELS][::-1]},
    "the shape": lambda f: {TRAIN: f[TRAIN].reshape(20, 6, 8), TEST: f[TEST].reshape(10, 6, 8)},
    "the split": lambda f: {
        TRAIN: np.concatenate([f[TRAIN], f[TEST][:1]]), TEST: f[TEST][1:],
        TRAIN_LABELS: np.concatenate([f[TRAIN_LABELS], f[TEST_LABELS][:1]]), TEST_LABELS: f[TEST_LABELS][1:],
    },
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_other_data_has_another_digest(rng, tmp_path, change):
    files = arrays(rng)
    before = load_data(str(write(tmp_path, files)), seed=0)
    after = load_data(str(write(tmp_path, files | change(files))), seed=0)
    with pytest.raises(DataError) as error:
        require_same_data("somewhere", before.sha256, after)
    assert str(error.value) == (
        f"somewhere: not the data that the run was begun with: sha256 {after.sha256}, in config.json {before.sha256}; "
        "bring the files back, or start a new run"
    )


def test_another_share_of_the_data_has_another_digest(digits):
    others = [load_data("digits", seed=1), load_data("digits", seed=0, validation=0.1)]
    assert len({digits.sha256, *(other.sha256 for other in others)}) == 3
    assert load_data("digits", seed=0).sha256 == digits.sha256
