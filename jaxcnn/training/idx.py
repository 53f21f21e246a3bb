"""The idx format, MNIST's: two zero bytes, the type, the number of axes, the sizes, the values; big-endian."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BLOCK = 1 << 20  # bytes read at a time: a broken header may announce more than any memory holds


class DataError(ValueError):
    """Data that is missing or broken; the message says what was got, what is required and what to do."""


def read_idx(path: Path) -> np.ndarray:
    """The array in an idx file, gzipped (by its first bytes, not its name) or not.

    No more is read than the header announces, so a small file cannot unpack into a large one.

    Raises:
      DataError: no idx file, one cut short, with bytes left over or without values, a broken gzip stream, one that
        cannot be read.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _read(path, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip stream is cut short or broken ({error}); fetch the file again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read(path: Path, file) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not 1 <= magic[3] <= 4:
        raise DataError(f"{path}: not an idx file: it begins with {magic.hex(' ') or 'nothing'}, idx with 00 00")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: the header is cut short; fetch the file again")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    dtype = np.dtype(_TYPES[magic[2]])
    needed = math.prod(shape) * dtype.itemsize
    announced = f"the header announces {' × '.join(map(str, shape))} values"
    if not needed:
        raise DataError(f"{path}: {announced}; at least one is required")
    values = bytearray()
    while len(values) < needed and (block := file.read(min(needed - len(values), _BLOCK))):
        values += block
    if len(values) < needed:
        raise DataError(
            f"{path}: cut short: {announced}, {needed} bytes, the file holds {len(values)}; fetch the file again"
        )
    if file.read(1):
        raise DataError(f"{path}: holds more than the {needed} bytes that its header announces; fetch the file again")
    return np.frombuffer(values, dtype).reshape(shape).astype(dtype.newbyteorder("="))
