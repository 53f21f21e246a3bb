"""A folder of images, for each class a folder: which files it has, what their headers say, and one of them decoded."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.training.samples import DataError, reading

SPLITS = {
    "train": ("train",),
    "test": ("test",),
    "validation": ("val", "valid", "validation"),
}  # what folders are called
SUFFIXES = (".png", ".jpg", ".jpeg")
GRAY, COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")  # Pillow's modes of 8 bits and fewer

Size = tuple[int, int, int]  # H×W×C


class Files(NamedTuple):
    folder: Path
    names: list[str]  # below the folder
    splits: dict[str, tuple[np.ndarray, np.ndarray]]  # numbers of files, their labels; without splits all are "train"
    classes: tuple[str, ...]  # the names of the training folders, sorted

    def path(self, number: int) -> str:
        return os.path.join(self.folder, self.names[number])


class Header(NamedTuple):
    height: int
    width: int
    channels: int


def is_image_folder(folder: Path) -> bool:
    """Whether it has folders in it, and no idx files beside them."""
    return any(map(os.path.isdir, _visible(folder))) and not any(folder.glob("*-images[-.]idx*"))


def image_files(folder: Path) -> Files:
    """The files of train/CLASS/ and test/CLASS/, perhaps of val/CLASS/ (or valid, validation); else those of CLASS/.

    Names that begin with a dot are passed over.

    Raises:
      DataError: train or test missing; fewer than two classes; a class without images, or one that train does not have;
        a file that is no .png, .jpg or .jpeg, or lies elsewhere.
    """
    parts = {split: [folder / name for name in names if (folder / name).is_dir()] for split, names in SPLITS.items()}
    if not (parts["train"] or parts["test"]):
        parts = {"train": [folder]}
    for split, found in parts.items():
        if not found and split != "validation":
            raise DataError(
                f"{folder}: no folder {split}; required are train and test, or only a folder for each class"
            )
        if len(found) > 1:
            raise DataError(f"{folder}: got {' and '.join(p.name for p in found)}, required one part for validation")
    classes = tuple(path.name for path in _folders(parts["train"][0]))
    if len(classes) < 2:
        raise DataError(f"{parts['train'][0]}: got {len(classes)} folders, required one for each of at least 2 classes")
    names, splits = [], {}
    for split, (part,) in ((split, found) for split, found in parts.items() if found):
        first, labels = len(names), []
        for path in _folders(part):
            if path.name not in classes:
                raise DataError(f"{path}: no such class among the training images: {', '.join(classes)}")
            images = _images(path)
            names += (os.path.relpath(image, folder) for image in images)
            labels += [classes.index(path.name)] * len(images)
        splits[split] = np.arange(first, len(names)), np.array(labels, np.int32)
    return Files(folder, names, splits, classes)


def header(path: str) -> Header:
    """Raises DataError for what is no image, or one of more than 8 bits."""
    with _opened(path) as image:
        rows, columns = image.size if _lies(image) else image.size[::-1]
        return Header(rows, columns, _channels(path, image))


def decoded(path: str, size: Size) -> np.ndarray:
    """H×W×C uint8. Of an image of another size the middle in the shape of H×W, scaled.

    A photo is turned as its EXIF data say, and transparency is dropped. A large JPEG is decoded at an eighth, a quarter
    or half of its size where that is enough.

    Raises:
      DataError: no image, or a broken one.
    """
    from PIL import Image, ImageOps

    height, width, channels = size
    with _opened(path) as image:
        image.draft(None, (height, width) if _lies(image) else (width, height))
        _channels(path, image)
        image = ImageOps.exif_transpose(image) if image.format == "JPEG" else image
        mode = "L" if channels == 1 else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        if image.size != (width, height):
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(size)


def size_from(text: str) -> tuple[int, int]:
    """(H, W) of "32" or "48x64". Raises DataError for anything else."""
    if not re.fullmatch(r"[1-9]\d{0,4}([x×][1-9]\d{0,4})?", text):
        raise DataError(f"--image-size: got {text!r}, required pixels, as 32, or rows and columns, as 48x64")
    rows, *columns = map(int, re.split("[x×]", text))
    return rows, *(columns or [rows])  # pyright: ignore[reportReturnType]


def _lies(image: Any) -> bool:
    """Whether a photo is to be turned by 90 degrees. In a PNG file that may stand behind the pixels: not looked for."""
    return image.format == "JPEG" and image.getexif().get(0x0112, 1) > 4


def _channels(path: str, image: Any) -> int:
    if image.mode not in (*GRAY, *COLOUR):
        raise DataError(f"{path}: got Pillow's mode {image.mode}, required 8 bits of gray or of each colour")
    return 1 if image.mode in GRAY else 3


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The image, of which only the header has been read."""
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            yield image
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: no PNG or JPEG image") from None
    except Exception as error:  # of many kinds, by what is broken
        said = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read: {said}") from None


def _visible(folder: Path) -> list[Path]:
    with reading(folder):
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _folders(part: Path) -> list[Path]:
    """Those of the classes."""
    found = _visible(part)
    for path in found:
        if not path.is_dir():
            raise DataError(f"{path}: a file beside the folders of the classes; put it into one, or take it away")
    return found


def _images(folder: Path) -> list[Path]:
    """Those of one class."""
    found = _visible(folder)
    for path in found:
        if path.suffix.lower() not in SUFFIXES:
            what = "a folder in that of a class" if path.is_dir() else f"its name does not end in {', '.join(SUFFIXES)}"
            raise DataError(f"{path}: {what}; take it away")
    if not found:
        raise DataError(f"{folder}: no images; put some into it, or take the folder away")
    return found
