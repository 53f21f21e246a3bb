"""NumPy's .npz: a zip of arrays, each with a header of its own. What is pickled is not read."""

from __future__ import annotations

import contextlib
import functools
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.training.samples import DataError, Stored, StoredArray, reading, require_unpackable

# The names that Keras and MedMNIST give to images and labels.
_KERAS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
_MEDMNIST = {
    "train": ("train_images", "train_labels"),
    "test": ("test_images", "test_labels"),
    "validation": ("val_images", "val_labels"),
}
_HEADER = 1000  # characters; those of arrays of numbers have about 100, and longer ones may be made to stall the parser

# What zipfile raises where a bit is wrong: of its own, of zlib and struct, NotImplementedError, UnicodeDecodeError.
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError)


def npz_file(path: Path) -> Stored:
    """The arrays by their names in Keras' data sets or in MedMNIST's, whose validation images may be left out.

    Raises:
      DataError: no .npz, one with other names, with arrays that are pickled, encrypted or announce more than their
        packed bytes are let unpack to, one that cannot be read.
    """
    with _opened(path) as archive:
        names = archive.namelist()
        for naming in (_KERAS, _MEDMNIST):
            complete = {split: pair for split, pair in naming.items() if all(f"{name}.npy" in names for name in pair)}
            if {"train", "test"} <= complete.keys():
                stored = {s: [_stored(path, archive, name) for name in pair] for s, pair in complete.items()}
                return {split: (images, labels) for split, (images, labels) in stored.items()}
    found = ", ".join(repr(name.removesuffix(".npy")[:30]) for name in names[:8]) or "none"
    raise DataError(f"{path}: got the arrays {found}; required x_train, y_train, x_test, y_test or train_images, …")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with reading(path):
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except DataError:
            raise
        except _BROKEN as error:
            raise DataError(f"{path}: not an .npz file, or a broken one ({error}); fetch the file again") from None


def _stored(path: Path, archive: zipfile.ZipFile, name: str) -> StoredArray:
    """Of the array of that name, after its header and the zip's own sizes have been checked."""
    info, where = archive.getinfo(f"{name}.npy"), f"{path}: {name}"
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where}: encrypted, or packed as NumPy does not; save it by numpy.savez_compressed")
    require_unpackable(where, info.file_size, min(info.compress_size, path.stat().st_size))
    with _member(where, archive, name) as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                raise DataError(f"{where}: no plain array of numbers; save it by numpy.savez_compressed")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_HEADER)
        except (DataError, OSError, EOFError, zlib.error, zipfile.BadZipFile):
            raise
        except Exception:  # whatever NumPy's parser raises, quoting the header
            raise DataError(f"{where}: not an array of NumPy's: its header is broken; fetch the file again") from None
        header = file.tell()
    if any(size < 0 for size in shape) or dtype.hasobject:
        kind = "pickled Python objects, which are not read" if dtype.hasobject else f"sizes {shape}"
        raise DataError(f"{where}: got {kind}; required an array of numbers")
    needed = math.prod(shape) * dtype.itemsize
    if header + needed != info.file_size:
        raise DataError(
            f"{where}: the header announces {shape} values, {needed} bytes, the zip {info.file_size - header}; "
            "fetch the file again"
        )
    return StoredArray(where, tuple(shape), dtype.newbyteorder("="), functools.partial(_values, path, where, name))


@contextlib.contextmanager
def _member(where: str, archive: zipfile.ZipFile, name: str) -> Iterator[Any]:
    """The bytes of an array, of which zipfile checks the sum at the end."""
    try:
        with archive.open(f"{name}.npy") as file:
            yield file
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"{where}: cut short or broken ({error}); fetch the file again") from None


def _values(path: Path, where: str, name: str) -> np.ndarray:
    with _opened(path) as archive, _member(where, archive, name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False, max_header_size=_HEADER)
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
