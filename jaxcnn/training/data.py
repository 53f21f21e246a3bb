"""Data sets: scikit-learn's digits, and folders of idx files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.rules.resize import upsample_bilinear
from jaxcnn.training.idx import DataError, read_idx

SPLITS = {"train": ("train",), "test": ("t10k", "test")}  # how idx files name the two


class Samples(NamedTuple):
    images: np.ndarray  # M×H×W×C float32
    labels: np.ndarray  # (M,) int32 class indices


class DataSet(NamedTuple):
    """Standardised by the mean and deviation of all pixels of the training images."""

    train: Samples
    validation: Samples | None
    test: Samples
    classes: int
    mean: float
    deviation: float


def load_data(name: str, *, seed: int, validation: float = 0.0, classes: int = 10) -> DataSet:
    """The data set of that name, or of the folder of that path.

    Args:
      name: "digits", scikit-learn's 1,797 images of 8×8, a stratified, shuffled 80/20 split by the seed; or a folder of
        idx files with MNIST's names: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not.
      validation: the fraction of the training images, stratified, that is set aside.
      classes: how many, for a folder; labels are 0 … classes - 1.

    Raises:
      DataError: files missing or broken, images and labels of different number, labels outside the classes, values
        that are NaN or infinite, a validation fraction that leaves nothing on one side.
    """
    if not 0 <= validation < 1:
        raise DataError(f"validation: got {validation}, required a fraction from 0 to less than 1")
    if name == "digits":
        if classes != 10:
            raise DataError(f"classes: got {classes}, the digits have 10; it is for folders of idx files")
        train, test = _digits(seed)
    else:
        train, test = (_from_folder(Path(name), split, classes) for split in SPLITS)
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DataError(
                f"{name}: training images are {train.images.shape[1:]}, test images {test.images.shape[1:]}; "
                "they must have one size"
            )
    held_out = None
    if validation:
        train, held_out = _split(train, validation, seed)
    mean, deviation = float(train.images.mean(dtype=np.float64)), float(train.images.std(dtype=np.float64))
    if deviation == 0:
        raise DataError(f"{name}: all training pixels have the value {mean}; there is nothing to learn from")

    def standard(samples: Samples) -> Samples:
        return Samples(((samples.images - mean) / deviation).astype(np.float32), samples.labels)

    held_out = None if held_out is None else standard(held_out)
    return DataSet(standard(train), held_out, standard(test), classes, mean, deviation)


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

    return data._replace(**{name: scaled(getattr(data, name)) for name in ("train", "validation", "test")})


def _digits(seed: int) -> tuple[Samples, Samples]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return _split(Samples(digits.images[..., None].astype(np.float32) / 16, digits.target.astype(np.int32)), 0.2, seed)


def _split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Shuffled, each class with its share on both sides; the fraction is the second side's."""
    from sklearn.model_selection import train_test_split

    try:
        kept, apart = train_test_split(
            np.arange(len(samples.labels)), test_size=fraction, stratify=samples.labels, random_state=seed
        )
    except ValueError as error:
        raise DataError(f"cannot set aside a fraction of {fraction}: {error}") from None
    return tuple(Samples(samples.images[i], samples.labels[i]) for i in (kept, apart))  # pyright: ignore[reportReturnType]


def _from_folder(folder: Path, split: str, classes: int) -> Samples:
    images, labels = (_find(folder, split, kind) for kind in ("images", "labels"))
    pixels, targets = read_idx(images), read_idx(labels)
    if pixels.ndim not in (3, 4):
        raise DataError(f"{images}: got an array {pixels.shape}, required M×H×W or M×H×W×C images")
    if targets.ndim != 1 or not np.issubdtype(targets.dtype, np.integer):
        raise DataError(f"{labels}: got {targets.dtype} {targets.shape}, required one whole number an image")
    if len(pixels) != len(targets):
        raise DataError(f"{labels}: {len(targets)} labels for {len(pixels)} images; there must be one for each")
    if targets.min() < 0 or targets.max() >= classes:
        bad = targets[(targets < 0) | (targets >= classes)][0]
        raise DataError(f"{labels}: label {bad} is outside the {classes} classes 0 … {classes - 1}; give --classes")
    scale = np.float32(255 if pixels.dtype == np.uint8 else 1)
    with np.errstate(over="ignore"):  # a float64 may be more than float32 holds; it is named below
        pixels = pixels.astype(np.float32) / scale
    if not np.isfinite(pixels).all():
        where = np.argwhere(~np.isfinite(pixels))[0].tolist()
        raise DataError(f"{images}: value {where} is NaN or infinite; all pixels must be finite")
    return Samples(pixels.reshape(*pixels.shape[:3], -1), targets.astype(np.int32))


def _find(folder: Path, split: str, kind: str) -> Path:
    if not folder.is_dir():
        raise DataError(f'{folder}: no such folder; give "digits" or a folder of idx files')
    found = sorted(p for prefix in SPLITS[split] for p in folder.glob(f"{prefix}-{kind}[-.]idx*"))
    if not found:
        raise DataError(f"{folder}: no {SPLITS[split][0]}-{kind}-idx*-ubyte[.gz]; MNIST's four files are required")
    return found[0]
