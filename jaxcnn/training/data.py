"""Data sets: which reader a name or a path stands for, the split, the scaling, and a digest of it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.rules.resize import upsample_bilinear
from jaxcnn.training.cifar import cifar_folder, is_cifar
from jaxcnn.training.idx import idx_folder
from jaxcnn.training.npz import npz_file
from jaxcnn.training.samples import DataError, Samples, Stored, read_samples

DIGITS = "digits"
FASHION_MNIST = "fashion-mnist"
NAMES = (DIGITS, FASHION_MNIST)  # all else is a path
PACKAGED = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it


class DataSet(NamedTuple):
    """Standardised by the mean and deviation of all pixels of the training images, of each channel by itself."""

    train: Samples
    validation: Samples | None
    test: Samples
    classes: int
    mean: tuple[float, ...]  # one a channel, of pixels from 0 to 1 where they were bytes
    deviation: tuple[float, ...]
    augment: str  # what is usual for such images, as `jaxcnn.augment.from_text` takes it
    sha256: str  # of all images and labels as they are shared out, before they were standardised
    names: tuple[str, ...]  # of the classes; their numbers where the data has no names
    enlarged: int = 1  # how often the images were scaled up


class Form(NamedTuple):
    read: Callable[[Path], Stored]
    augment: str = "none"
    names: tuple[str, ...] | None = None  # of the classes; where None the caller says how many they are


IDX = Form(idx_folder)
NPZ = Form(npz_file)
CLOTHES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FASHION = Form(idx_folder, "crop=2,flip", CLOTHES)
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR = Form(cifar_folder, "crop=4,flip", OBJECTS)


def load_data(
    name: str, *, seed: int, folder: str | Path | None = None, validation: float = 0.0, classes: int = 10
) -> DataSet:
    """The data set of that name or path.

    Args:
      name: "digits", scikit-learn's 1,797 images of 8×8, a stratified, shuffled 80/20 split by the seed;
        "fashion-mnist"; a folder of idx files with MNIST's names, {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped
        or not; a folder of CIFAR-10's binary version; or an .npz file with the names of Keras (x_train, y_train,
        x_test, y_test) or of MedMNIST (train_images, train_labels, …).
      folder: where Fashion-MNIST's four files are, where that is not the Debian package's folder.
      validation: the fraction of the training images, stratified, that is set aside. An .npz file that has validation
        images of its own gives these instead.
      classes: how many, for a folder of idx files and an .npz file; labels are 0 … classes - 1.

    Raises:
      DataError: files missing or broken, images and labels of different number, labels outside the classes, values
        that are NaN or infinite, a validation fraction that leaves nothing on one side.
    """
    if not 0 <= validation < 1:
        raise DataError(f"--validation: got {validation}, required a fraction from 0 to less than 1")
    if folder is not None and name != FASHION_MNIST:
        raise DataError(f"--data-dir: got {folder}, but it is for {FASHION_MNIST}; give other data by --data")
    splits, form = _digits(seed, classes) if name == DIGITS else _stored(name, folder, classes)
    parts = {"train": splits["train"], "test": splits["test"]}
    if validation and "validation" in splits:
        parts["validation"] = splits["validation"]
    elif validation:
        parts["train"], parts["validation"] = _split(splits["train"], validation, seed)
    digest = _sha256(parts)
    parts = {split: _unit(part) for split, part in parts.items()}
    mean, deviation = _statistics(name, parts["train"].images)
    for part in parts.values():
        _standardise(part, mean, deviation)
    train, held_out, test = parts["train"], parts.get("validation"), parts["test"]
    names = form.names or tuple(map(str, range(classes)))
    return DataSet(train, held_out, test, classes, mean, deviation, form.augment, digest, names)


def require_same_data(name: str, sha256: str, data: DataSet) -> None:
    """Raises DataError where an earlier run, whose data had that digest, was begun with other images or labels."""
    if sha256 != data.sha256:
        raise DataError(
            f"{name}: not the data that the run was begun with: sha256 {data.sha256}, in config.json {sha256}; bring "
            "the files back, or start a new run"
        )


def enlarged(data: DataSet, size: int) -> DataSet:
    """Images that go into size×size more than once, scaled up as often as they do, bilinearly; others as they are.

    The digits' 8×8 pixels become 32×32 for a network that is made for these.
    """
    factor = size // max(data.train.images.shape[1:3])
    if factor < 2:
        return data

    def scaled(samples: Samples | None) -> Samples | None:
        if samples is None:
            return None
        return samples._replace(images=np.asarray(upsample_bilinear(samples.images, factor=factor)))

    parts = {name: scaled(getattr(data, name)) for name in ("train", "validation", "test")}
    return data._replace(**parts, enlarged=factor)


def _stored(name: str, folder: str | Path | None, classes: int) -> tuple[dict[str, Samples], Form]:
    """The splits that the files of a name or a path hold, and what is known of such data."""
    if name == FASHION_MNIST:
        path, form = Path(folder or PACKAGED), FASHION
        if not path.is_dir():
            raise DataError(
                f"{path}: no such folder; install Debian's package dataset-fashion-mnist, or give the folder of "
                "Fashion-MNIST's four idx files by --data-dir"
            )
    else:
        path, form = Path(name), _form_of(Path(name))
    if form.names is None:
        return read_samples(form.read(path), classes, "give --classes"), form
    _require_classes(name, classes, len(form.names))
    return read_samples(form.read(path), classes, "fetch the files again"), form


def _form_of(path: Path) -> Form:
    if path.is_dir():
        return CIFAR if is_cifar(path) else IDX
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; give {', '.join(NAMES)}, a folder of idx files or of CIFAR-10's binary "
            "version, or an .npz file"
        )
    return NPZ


def _require_classes(name: str, got: int, classes: int) -> None:
    if got != classes:
        raise DataError(f"--classes: got {got}, {name} has {classes}; it is for folders of idx files and .npz files")


def _digits(seed: int, classes: int) -> tuple[dict[str, Samples], Form]:
    from sklearn.datasets import load_digits

    _require_classes(DIGITS, classes, 10)
    digits: Any = load_digits()
    images = digits.images[..., None].astype(np.float32) / 16
    train, test = _split(Samples(images, digits.target.astype(np.int32)), 0.2, seed)
    return {"train": train, "test": test}, NPZ


def _split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Shuffled, each class with its share on both sides; the fraction is the second side's."""
    from sklearn.model_selection import train_test_split

    try:
        kept, apart = train_test_split(
            np.arange(len(samples.labels)), test_size=fraction, stratify=samples.labels, random_state=seed
        )
    except ValueError as error:
        raise DataError(f"--validation: got {fraction}, but {error}; give another fraction, or 0 for none") from None
    return tuple(Samples(samples.images[i], samples.labels[i]) for i in (kept, apart))  # pyright: ignore[reportReturnType]


def _sha256(parts: dict[str, Samples]) -> str:
    """Of names, dtypes, shapes and bytes: the same for a file and its gzipped form."""
    digest = hashlib.sha256()
    for split, part in parts.items():
        for name, array in part._asdict().items():
            digest.update(f"{split} {name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _unit(samples: Samples) -> Samples:
    """Bytes as numbers from 0 to 1."""
    if samples.images.dtype != np.uint8:
        return samples
    images = samples.images.astype(np.float32)
    images /= 255
    return samples._replace(images=images)


def _statistics(name: str, images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the deviation of each channel; a channel that does not vary has 1, so that it is only shifted."""
    channels = [images[..., c] for c in range(images.shape[-1])]
    means = tuple(float(channel.mean(dtype=np.float64)) for channel in channels)
    deviations = tuple(float(channel.std(dtype=np.float64)) for channel in channels)
    if not any(deviations):
        values = ", ".join(map(str, means))
        raise DataError(f"{name}: all training pixels have the value {values}; there is nothing to learn from")
    return means, tuple(deviation or 1.0 for deviation in deviations)


def _standardise(samples: Samples, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    """In place: images may take much of the memory."""
    images = samples.images
    images -= np.asarray(mean, np.float32)
    images /= np.asarray(deviation, np.float32)
