"""Files of images as arrays: PNG and JPEG by Pillow, and .npy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxcnn.training.image_files import Size, decoded, header
from jaxcnn.training.samples import DataError


def read_images(path: Path, size: Size, *, resize: bool = False) -> np.ndarray:
    """The images in a file, as a classifier of that size takes them.

    Args:
      path: PNG or JPEG, decoded as those of a folder of images are, as uint8, in gray or in color as the size has
        channels; or .npy, one image H×W, H×W×C or many N×H×W×C, in its own dtype.
      size: H, W, C. resize: whether of a picture of another size the middle in the shape of H×W is scaled to it.

    Returns:
      N×H×W×C.

    Raises:
      DataError: the file is missing or broken, of another size, has transparent pixels, more than 8 bits a channel, or
        values that are no numbers. ModuleNotFoundError: Pillow is not installed; the extra "images" brings it.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'a folder; give the files in it' if path.is_dir() else 'no such file'}")
    given = _array(path) if path.suffix == ".npy" else _picture(path, size, resize)
    images = given[..., None] if size[2] == 1 and given.shape[-2:] == size[:2] else given  # the channel left out
    images = images[None] if images.ndim == 3 else images
    if not given.size:
        raise DataError(f"{path}: holds no image")
    if images.ndim != 4 or images.shape[1:] != size:
        raise DataError(f"{path}: got an array {_words(given.shape)}, required {_words(size)} or N×{_words(size)}")
    return images


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: no .npy file of numbers") from error
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{path}: got the dtype {array.dtype}, required uint8 or floating")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: holds values that are NaN or infinite")
    return array


def _picture(path: Path, size: Size, resize: bool) -> np.ndarray:
    if size[2] not in (1, 3):
        raise DataError(f"{path}: a picture has 1 or 3 channels, the run's images have {size[2]}; give them as .npy")
    found = header(str(path))
    if found[:2] != size[:2] and not resize:
        raise DataError(f"{path}: got {_words(found[:2])} pixels, required {_words(size[:2])}; --resize scales it")
    _require_opaque(path)
    return decoded(str(path), size)[None]


def _require_opaque(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
            raise DataError(f"{path}: has transparent pixels; save it on a background")


def _words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "of a single number"
