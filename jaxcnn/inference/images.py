"""Files of images as arrays: PNG and JPEG by Pillow, and .npy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.training.samples import DataError

_COLORS = {1: "L", 3: "RGB"}  # Pillow's mode for so many channels
_OF_BYTES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")  # Pillow's modes of at most 8 bits a channel, without transparency


def read_images(path: Path, size: tuple[int, int, int], *, resize: bool = False) -> np.ndarray:
    """The images in a file, as a classifier of that size takes them.

    Args:
      path: PNG, JPEG or whatever Pillow reads, as uint8, turned as its EXIF data say, in grey or in color as the size
        has channels; or .npy, one image H×W, H×W×C or many N×H×W×C, in its own dtype.
      size: H, W, C. resize: whether a picture of another size is scaled to it, without regard to its proportions.

    Returns:
      N×H×W×C.

    Raises:
      DataError: the file is missing or broken, of another size, has transparent pixels, more than 8 bits a channel, or
        values that are no numbers. ModuleNotFoundError: Pillow is not installed; the extra "images" brings it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    given = _array(path) if path.suffix == ".npy" else _picture(path, size, resize)
    images = given[..., None] if size[2] == 1 and given.shape[-2:] == size[:2] else given  # the channel left out
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1:] != size:
        raise DataError(f"{path}: got an array {_words(given.shape)}, required {_words(size)} or N×{_words(size)}")
    return images


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a .npy file of numbers: {' '.join(str(error).split())}") from None
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{path}: got the dtype {array.dtype}, required uint8 or floating")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: holds values that are NaN or infinite")
    return array


def _picture(path: Path, size: tuple[int, int, int], resize: bool) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width, channels = size
    if channels not in _COLORS:
        raise DataError(f"{path}: a picture has 1 or 3 channels, the run's images have {channels}; give them as .npy")
    try:
        with Image.open(path) as file:
            picture: Any = ImageOps.exif_transpose(file)
            picture.load()
    except UnidentifiedImageError:
        raise DataError(f"{path}: no picture that can be read; PNG, JPEG or .npy is required") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: broken: {' '.join(str(error).split())}") from None
    if picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        if opaque.getextrema()[3][0] < 255:
            raise DataError(f"{path}: has transparent pixels; save it on a background")
        picture = opaque.convert("RGB")
    if picture.mode not in _OF_BYTES:
        raise DataError(f"{path}: has more than 8 bits a channel (Pillow's mode {picture.mode}); save it with 8")
    picture = picture.convert(_COLORS[channels])
    if picture.size != (width, height):
        if not resize:
            got = f"{picture.height}×{picture.width}"
            raise DataError(f"{path}: got {got} pixels, required {height}×{width}; --resize scales it")
        picture = picture.resize((width, height))  # bicubic, averaged where it shrinks
    return np.asarray(picture).reshape(1, *size)


def _words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
