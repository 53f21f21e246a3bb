"""Images that stay on disk: what is asked for is decoded by Grain's threads, and may be kept decoded in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.extras import needed_for
from jaxcnn.training.devices import available_cores
from jaxcnn.training.image_files import Files, Size, decoded, header
from jaxcnn.training.samples import DataError

BLOCK, HEADERS = 16, 256  # images that a thread decodes at a time, and whose headers it reads
KEPT = 2**20  # bytes of decoded images that a thread reads at a time
AHEAD = 4  # blocks a thread that are read before they are asked for


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages:
    """Looks like an array of images, M×H×W×C; an index reads from disk, and nothing is kept.

    Bytes, or, once there is a table, standardised float32 like the images of any other data, to the bit.
    """

    files: Files
    numbers: np.ndarray  # (M,) of the files
    size: Size
    kept: np.ndarray | None = None  # files×H×W×C uint8, where they are decoded already: lies on disk
    table: np.ndarray | None = None  # (256, C) float32, what each byte is once it is standardised

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.numbers), *self.size

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.table is None else np.float32)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Of a slice or an array of indices. Raises DataError where a file has become unreadable."""
        return self._by_table(self.pixels(index))

    def pixels(self, index: Any) -> np.ndarray:
        """The bytes, before they are standardised."""
        numbers = self.numbers[index]
        if not numbers.size:
            return np.empty((*numbers.shape, *self.size), np.uint8)
        (pixels,) = self._in_parts(numbers.reshape(-1), numbers.size)
        return pixels.reshape(*numbers.shape, *self.size)

    def in_parts(self, size: int) -> Iterator[np.ndarray]:
        """Consecutive slices; the next ones are read while one is in use."""
        return map(self._by_table, self._in_parts(self.numbers, size))

    def _in_parts(self, numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
        parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
        block = BLOCK if self.kept is None else max(1, KEPT // math.prod(self.size))
        in_blocks = [[part[start : start + block] for start in range(0, len(part), block)] for part in parts]
        read = by_threads(self._read, [block for blocks in in_blocks for block in blocks])
        for blocks in in_blocks:
            yield np.concatenate([next(read) for _ in blocks])

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        if self.kept is not None:
            return self.kept[numbers]
        return np.stack([decoded(self.files.path(number), self.size) for number in numbers])

    def _by_table(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if self.table is None else standardised(pixels, self.table)


def standardised(pixels: Any, table: Any) -> Any:
    """By the table, also under jit: a division by XLA may round otherwise than NumPy's."""
    return table[pixels, np.arange(table.shape[1])]


def by_threads(function: Callable[[Any], Any], elements: Sequence[Any]) -> Iterator[Any]:
    """function(element) for each in order, computed by threads, a few ahead of the one that is asked for.

    Raises:
      ModuleNotFoundError: Grain is not installed; the extra "images" brings it. DataError: as the function.
    """
    grain, threads = _grain(), available_cores()
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD * threads)

    def given(element):
        try:
            return function(element)
        except DataError as error:  # Grain would add to its text
            return error

    for value in grain.MapDataset.source(elements).map(given).to_iter_dataset(options):
        if isinstance(value, DataError):
            raise value
        yield value


def size_of(files: Files, given: tuple[int, int] | None) -> Size:
    """The size that all images have or are given, and one channel if all are gray, else three; by the headers.

    Raises:
      DataError: images of several sizes and none given; what is no image.
    """
    numbers = np.arange(len(files.names))
    blocks = [numbers[start : start + HEADERS] for start in range(0, len(numbers), HEADERS)]
    headers = itertools.chain.from_iterable(by_threads(lambda block: [header(files.path(i)) for i in block], blocks))
    channels, first = 1, None
    for number, one in enumerate(headers):
        first, channels = first or one, max(channels, one.channels)
        if given is None and one[:2] != first[:2]:
            raise DataError(
                f"{files.path(number)}: {one.height}×{one.width} pixels, {files.path(0)} {first.height}×{first.width}; "
                "give the size that all are to have by --image-size"
            )
    assert first is not None  # there are images
    return *(given or first[:2]), channels  # pyright: ignore[reportReturnType]


def kept_in(folder: Path, files: Files, size: Size) -> np.ndarray:
    """All images decoded, files×H×W×C uint8, in a file of that folder, which is made unless it is there.

    It is found again by the names, sizes and times of the files, the size of the images and the version of Pillow.

    Raises:
      DataError: an image is broken, or the file cannot be written.
    """
    path, shape = folder / f"{_key(files, size)}.pixels", (len(files.names), *size)
    try:
        if not path.exists() or path.stat().st_size != np.prod(shape):
            _write(path, StreamedImages(files, np.arange(len(files.names)), size))
        return np.asarray(np.memmap(path, np.uint8, "r", shape=shape))
    except OSError as error:
        needed = f"{np.prod(shape) / 2**20:.1f} MiB of pixels"
        raise DataError(f"--cache {folder}: {needed} cannot be kept: {error.strerror or error}") from None


def _write(path: Path, images: StreamedImages) -> None:
    """The file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            for pixels in images.in_parts(256):
                file.write(pixels.data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _key(files: Files, size: Size) -> str:
    import PIL

    sha256 = hashlib.sha256(json.dumps([size, PIL.__version__]).encode())
    for number, name in enumerate(files.names):
        found = os.stat(files.path(number))
        sha256.update(json.dumps([name, found.st_size, found.st_mtime_ns]).encode())
    return sha256.hexdigest()[:32]


def _grain() -> Any:
    with needed_for("folders of images"):
        import grain
    return grain
