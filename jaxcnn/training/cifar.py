"""The binary version of CIFAR-10: for each image one byte of label and its red, green and blue bytes, row by row."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from jaxcnn.training.samples import DataError, Stored, StoredArray, reading

_SIDE = 32
_RECORD = 1 + 3 * _SIDE * _SIDE  # bytes
_TRAIN = [f"data_batch_{i}.bin" for i in range(1, 6)]
_TEST = ["test_batch.bin"]
_PICKLED = ("data_batch_1", "test_batch", "batches.meta")  # the same batches for Python: reading one runs what is in it


def is_cifar(folder: Path) -> bool:
    """Whether the folder is meant to be CIFAR-10's, in whatever version."""
    return any((folder / name).exists() for name in (*_TRAIN, *_TEST, *_PICKLED))


def cifar_folder(folder: Path) -> Stored:
    """The five batches of training images and the one of test images, M×32×32×3.

    Raises:
      DataError: the pickled version; a batch missing, of no whole number of images, or of other length than the rest.
    """
    missing = [name for name in (*_TRAIN, *_TEST) if not (folder / name).exists()]
    if missing:
        if any((folder / name).exists() for name in _PICKLED):
            raise DataError(
                f"{folder}: holds CIFAR-10's pickled version, and to read a pickle is to run it; "
                "the binary version is required, cifar-10-binary.tar.gz"
            )
        raise DataError(f"{folder}: no {missing[0]}; CIFAR-10's six .bin files are required")
    counts = {name: _images_in(folder / name) for name in (*_TRAIN, *_TEST)}
    for name, count in counts.items():  # they are as long as each other, so one that lacks images shows
        if count != counts[_TRAIN[0]]:
            raise DataError(
                f"{folder / name}: holds {count} images, {_TRAIN[0]} {counts[_TRAIN[0]]}; all must hold as many; "
                "fetch the files again"
            )
    return {"train": _stored(folder, _TRAIN, counts), "test": _stored(folder, _TEST, counts)}


def _images_in(path: Path) -> int:
    with reading(path):
        size = path.stat().st_size
        if path.is_dir() or not size or size % _RECORD:
            raise DataError(
                f"{path}: {size} bytes are no images: each takes {_RECORD}, its label and 3 × {_SIDE} × {_SIDE} "
                "values; fetch the file again"
            )
    return size // _RECORD


def _stored(folder: Path, names: list[str], counts: dict[str, int]) -> tuple[StoredArray, StoredArray]:
    paths, count, byte = [folder / name for name in names], sum(counts[name] for name in names), np.dtype(np.uint8)
    where = f"{folder / names[0]}" if len(names) == 1 else f"{folder / names[0]} … {names[-1]}"
    images = StoredArray(where, (count, _SIDE, _SIDE, 3), byte, functools.partial(_images, paths))
    return images, StoredArray(where, (count,), byte, functools.partial(_labels, paths))


def _images(paths: list[Path]) -> np.ndarray:
    planes = np.concatenate([_records(path)[:, 1:] for path in paths]).reshape(-1, 3, _SIDE, _SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def _labels(paths: list[Path]) -> np.ndarray:
    return np.concatenate([_records(path)[:, 0] for path in paths])


def _records(path: Path) -> np.ndarray:
    with reading(path):
        return np.fromfile(path, np.uint8).reshape(-1, _RECORD)
