"""The idx format, MNIST's: two zero bytes, the type, the number of axes, the sizes, the values; big-endian."""

from __future__ import annotations

import contextlib
import functools
import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.training.samples import DataError, Stored, StoredArray, reading, require_unpackable

_SPLITS = {"train": ("train",), "test": ("t10k", "test")}  # how the files name the two
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BLOCK = 1 << 20  # bytes read at a time: a gzip stream may hold less than the header announces


def idx_folder(folder: Path) -> Stored:
    """The four files {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not. Raises DataError as `idx_file`."""
    found = {split: tuple(_find(folder, split, kind) for kind in ("images", "labels")) for split in _SPLITS}
    return {split: (idx_file(images), idx_file(labels)) for split, (images, labels) in found.items()}


def idx_file(path: Path) -> StoredArray:
    """The array in an idx file, gzipped (by its first bytes, not its name) or not.

    Raises:
      DataError: no idx file, one cut short, with bytes left over or without values, a broken gzip stream, a header that
        announces more than a gzip stream is let unpack to, one that cannot be read.
    """
    with _opened(path) as (file, zipped):
        shape, dtype = _header(path, file)
        needed = math.prod(shape) * dtype.itemsize
        if zipped:
            require_unpackable(str(path), needed, path.stat().st_size)
        else:
            _require_held(path, shape, needed, path.stat().st_size - file.tell())
    return StoredArray(str(path), shape, dtype.newbyteorder("="), functools.partial(_values, path))


def _find(folder: Path, split: str, kind: str) -> Path:
    found = sorted(p for prefix in _SPLITS[split] for p in folder.glob(f"{prefix}-{kind}[-.]idx*"))
    if not found:
        raise DataError(
            f"{folder}: no {_SPLITS[split][0]}-{kind}-idx*-ubyte[.gz]; MNIST's four files are required, or CIFAR-10's "
            "data_batch_1.bin, …, data_batch_5.bin and test_batch.bin"
        )
    return found[0]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, bool]]:
    """The file, unpacked, and whether it is packed."""
    with reading(path):
        try:
            with path.open("rb") as raw:
                zipped = raw.read(2) == b"\x1f\x8b"
            with gzip.open(path) if zipped else path.open("rb") as file:
                yield file, zipped
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: the gzip stream is cut short or broken ({error}); fetch the file again") from None


def _header(path: Path, file: Any) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the dtype as it is stored."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 4:
        raise DataError(f"{path}: not an idx file: it begins with {magic.hex(' ') or 'nothing'}, idx with 00 00")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: the header is cut short; fetch the file again")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if not math.prod(shape):
        raise DataError(f"{path}: {_announced(shape)}; at least one is required")
    return shape, np.dtype(_TYPES[magic[2]])


def _values(path: Path) -> np.ndarray:
    with _opened(path) as (file, _):
        shape, dtype = _header(path, file)
        needed = math.prod(shape) * dtype.itemsize
        values = bytearray()
        while len(values) < needed and (block := file.read(min(needed - len(values), _BLOCK))):
            values += block
        _require_held(path, shape, needed, len(values) + len(file.read(1)))
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _require_held(path: Path, shape: tuple[int, ...], needed: int, held: int) -> None:
    if held < needed:
        raise DataError(
            f"{path}: cut short: {_announced(shape)}, {needed} bytes, the file holds {held}; fetch the file again"
        )
    if held > needed:
        raise DataError(f"{path}: holds more than the {needed} bytes that its header announces; fetch the file again")


def _announced(shape: tuple[int, ...]) -> str:
    return f"the header announces {' × '.join(map(str, shape))} values"
