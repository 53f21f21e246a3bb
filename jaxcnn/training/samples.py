"""What every reader of data gives: arrays, announced before they are read; and the samples that they make."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

UNPACKED = 2**26  # bytes that any packed file may unpack to
RATIO = 100  # beyond that, bytes for each packed one: images come to 2 to 20, a file of zeros to 1,000


class DataError(ValueError):
    """Data that is missing or broken; the message says what was got, what is required and what to do."""


class StoredArray(NamedTuple):
    """An array in a file, of which only the header has been read."""

    name: str  # the file, and which array of it, for messages
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]  # raises DataError


class Samples(NamedTuple):
    images: Any  # M×H×W×C, uint8 or float32: an array, or StreamedImages, which are read when they are indexed
    labels: np.ndarray  # (M,) int32 class indices


Stored = dict[str, tuple[StoredArray, StoredArray]]  # "train", "test", perhaps "validation" -> images, labels


def read_samples(stored: Stored, classes: int, remedy: str) -> dict[str, Samples]:
    """Reads each split, after all that the headers say has been checked.

    Args:
      classes: labels are 0 … classes - 1. remedy: what to do about another label.

    Raises:
      DataError: no images, labels of another number or kind, splits of different sizes, labels outside the classes,
        pixels that are NaN or infinite.
    """
    for images, labels in stored.values():
        _require_images(images)
        _require_labels(labels, images.shape[0])
    first, *others = ((split, images.name, _size(images)) for split, (images, _) in stored.items())
    for split, name, size in others:
        if size != first[2]:
            raise DataError(f"{name}: {split} images are {size}, {first[0]} images {first[2]}; they must have one size")
    return {split: _read(images, labels, classes, remedy) for split, (images, labels) in stored.items()}


def require_unpackable(name: str, unpacked: int, packed: int) -> None:
    """Raises DataError where so many packed bytes announce more than they are let unpack to."""
    limit = max(UNPACKED, RATIO * packed)
    if unpacked > limit:
        raise DataError(
            f"{name}: {packed} packed bytes announce {unpacked}, of which at most {limit} are unpacked; "
            "fetch the file again, or unpack it"
        )


def in_memory(images: Any) -> bool:
    return isinstance(images, np.ndarray)


def in_parts(images: Any, size: int) -> Iterator[Any]:
    """Consecutive slices of an array; of images on disk the next ones are read while one is in use."""
    if hasattr(images, "in_parts"):
        return images.in_parts(size)
    return (images[start : start + size] for start in range(0, len(images), size))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within it, a file that cannot be read is a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _size(images: StoredArray) -> tuple[int, ...]:
    """H×W×C"""
    return images.shape[1:] if len(images.shape) == 4 else (*images.shape[1:], 1)


def _require_images(images: StoredArray) -> None:
    if len(images.shape) not in (3, 4):
        raise DataError(f"{images.name}: got an array {images.shape}, required M×H×W or M×H×W×C images")
    if not math.prod(images.shape):
        raise DataError(f"{images.name}: got an array {images.shape}; at least one image of one pixel is required")
    if images.dtype.kind not in "uif" or images.dtype.itemsize > 8:
        raise DataError(f"{images.name}: got {_words(images.dtype)}, required whole or floating numbers")


def _require_labels(labels: StoredArray, images: int) -> None:
    one_each = len(labels.shape) == 1 or (len(labels.shape) == 2 and labels.shape[1] == 1)
    if not one_each or labels.dtype.kind not in "ui":
        raise DataError(f"{labels.name}: got {_words(labels.dtype)} {labels.shape}, required one whole number an image")
    if labels.shape[0] != images:
        raise DataError(f"{labels.name}: {labels.shape[0]} labels for {images} images; there must be one for each")


def _words(dtype: np.dtype) -> str:
    return "pickled Python objects" if dtype.hasobject else str(dtype)


def _read(images: StoredArray, labels: StoredArray, classes: int, remedy: str) -> Samples:
    targets = labels.read().ravel()
    if targets.min() < 0 or targets.max() >= classes:
        bad = targets[(targets < 0) | (targets >= classes)][0]
        raise DataError(f"{labels.name}: label {bad} is outside the {classes} classes 0 … {classes - 1}; {remedy}")
    pixels = images.read()
    if pixels.dtype != np.uint8:
        with np.errstate(over="ignore"):  # a float64 may be more than float32 holds; it is named below
            pixels = pixels.astype(np.float32, copy=False)
        finite = np.isfinite(pixels)
        if not finite.all():
            where = [int(i) for i in np.unravel_index(finite.argmin(), finite.shape)]
            raise DataError(f"{images.name}: value {where} is NaN or infinite; all pixels must be finite")
    return Samples(pixels.reshape(-1, *_size(images)), targets.astype(np.int32))
