"""Data sets: which reader a name or a path stands for, the split, the scaling, and a digest of it all."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.rules.resize import upsample_bilinear
from jaxcnn.training.cifar import cifar_folder, is_cifar
from jaxcnn.training.idx import idx_folder
from jaxcnn.training.image_files import image_files, is_image_folder, size_from
from jaxcnn.training.npz import npz_file
from jaxcnn.training.samples import DataError, Samples, Stored, in_memory, in_parts, read_samples
from jaxcnn.training.streamed import StreamedImages, kept_in, size_of

DIGITS = "digits"
FASHION_MNIST = "fashion-mnist"
NAMES = (DIGITS, FASHION_MNIST)  # all else is a path
PIECE = 256  # images that are digested at a time
PACKAGED = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it


class DataSet(NamedTuple):
    """Standardised by the mean and deviation of all pixels of the training images, of each channel by itself."""

    train: Samples
    validation: Samples | None
    test: Samples
    classes: int
    mean: tuple[float, ...]  # one a channel, of pixels from 0 to 1 where they were bytes
    deviation: tuple[float, ...]
    augment: str  # what is usual for such images, as `jaxcnn.augment.from_text` takes it
    sha256: str  # of all images and labels as they are shared out, before they were standardised
    class_names: tuple[str, ...]  # their numbers where the data has no names
    enlarged: int = 1  # how often the images were scaled up


class Form(NamedTuple):
    read: Callable[[Path], Stored]
    augment: str = "none"
    names: tuple[str, ...] | None = None  # of the classes; where None the caller says how many they are


IDX = Form(idx_folder)
NPZ = Form(npz_file)
CLOTHES = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FASHION = Form(idx_folder, "crop=2,flip", CLOTHES)
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR = Form(cifar_folder, "crop=4,flip", OBJECTS)


def load_data(
    name: str,
    *,
    seed: int,
    folder: str | Path | None = None,
    validation: float = 0.0,
    classes: int = 10,
    image_size: str | None = None,
    cache: str | Path | None = None,
) -> DataSet:
    """The data set of that name or path.

    Args:
      name: "digits", scikit-learn's 1,797 images of 8×8, a stratified, shuffled 80/20 split by the seed;
        "fashion-mnist"; a folder of idx files with MNIST's names, {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped
        or not; a folder of CIFAR-10's binary version; an .npz file with the names of Keras (x_train, y_train, x_test,
        y_test) or of MedMNIST (train_images, train_labels, …); or a folder of PNG and JPEG files, train/CLASS/ and
        test/CLASS/, or CLASS/ alone, of which a fifth, stratified, is the test part. These stay on disk: the `images`
        are StreamedImages.
      folder: where Fashion-MNIST's four files are, where that is not the Debian package's folder.
      validation: the fraction of the training images, stratified, that is set aside. An .npz file or a folder of
        images that has validation images of its own gives these instead.
      classes: how many, for a folder of idx files and an .npz file; labels are 0 … classes - 1.
      image_size: of a folder of images: pixels that each is scaled to, "32" or "48x64"; where None, the size of all.
      cache: of a folder of images: a folder where they are kept decoded.

    Raises:
      DataError: files missing or broken, images and labels of different number, labels outside the classes, values
        that are NaN or infinite, a validation fraction that leaves nothing on one side.
      ModuleNotFoundError: a folder of images without Grain or Pillow; the extra "images" brings them.
    """
    if not 0 <= validation < 1:
        raise DataError(f"--validation: got {validation}, required a fraction from 0 to less than 1")
    if folder is not None and name != FASHION_MNIST:
        raise DataError(f"--data-dir: got {folder}, but it is for {FASHION_MNIST}; give other data by --data")
    if is_streamed(name):
        return _streamed(Path(name), seed, validation, classes, image_size, cache)
    for option, value in (("image-size", image_size), ("cache", cache)):
        if value is not None:
            raise DataError(f"--{option}: got {value}, but it is for folders of images, which {name} is not")
    splits, form = _digits(seed, classes) if name == DIGITS else _stored(name, folder, classes)
    parts = _shared_out(splits, validation, seed)
    digest = _sha256(parts)
    parts = {split: _unit(part) for split, part in parts.items()}
    mean, deviation = _statistics(name, parts["train"].images)
    for part in parts.values():
        _standardise(part, mean, deviation)
    train, held_out, test = parts["train"], parts.get("validation"), parts["test"]
    names = form.names or tuple(map(str, range(classes)))
    return DataSet(train, held_out, test, classes, mean, deviation, form.augment, digest, names)


def is_streamed(name: str) -> bool:
    """Whether the images of that name or path stay on disk."""
    folder = Path(name)
    return name not in NAMES and folder.is_dir() and not is_cifar(folder) and is_image_folder(folder)


def require_same_data(name: str, sha256: str, data: DataSet) -> None:
    """Raises DataError where an earlier run, whose data had that digest, was begun with other images or labels."""
    if sha256 != data.sha256:
        raise DataError(
            f"{name}: not the data that the run was begun with: sha256 {data.sha256}, in config.json {sha256}; bring "
            "the files back, or start a new run"
        )


def enlarged(data: DataSet, size: int) -> DataSet:
    """Images that go into size×size more than once, scaled up as often as they do, bilinearly; others as they are.

    The digits' 8×8 pixels become 32×32 for a network that is made for these.
    """
    factor = size // max(data.train.images.shape[1:3])
    if factor < 2 or not in_memory(data.train.images):  # --image-size says how large those on disk are to be
        return data

    def scaled(samples: Samples | None) -> Samples | None:
        if samples is None:
            return None
        return samples._replace(images=np.asarray(upsample_bilinear(samples.images, factor=factor)))

    parts = {name: scaled(getattr(data, name)) for name in ("train", "validation", "test")}
    return data._replace(**parts, enlarged=factor)


def _stored(name: str, folder: str | Path | None, classes: int) -> tuple[dict[str, Samples], Form]:
    """The splits that the files of a name or a path hold, and what is known of such data."""
    if name == FASHION_MNIST:
        path, form = Path(folder or PACKAGED), FASHION
        if not path.is_dir():
            raise DataError(
                f"{path}: no such folder; install Debian's package dataset-fashion-mnist, or give the folder of "
                "Fashion-MNIST's four idx files by --data-dir"
            )
    else:
        path, form = Path(name), _form_of(Path(name))
    if form.names is None:
        return read_samples(form.read(path), classes, "give --classes"), form
    _require_classes(name, classes, len(form.names))
    return read_samples(form.read(path), classes, "fetch the files again"), form


def _form_of(path: Path) -> Form:
    if path.is_dir():
        return CIFAR if is_cifar(path) else IDX
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; give {', '.join(NAMES)}, a folder of idx files, of CIFAR-10's binary "
            "version or of images, or an .npz file"
        )
    return NPZ


def _require_classes(name: str, got: int, classes: int) -> None:
    if got != classes:
        raise DataError(f"--classes: got {got}, {name} has {classes}; it is for folders of idx files and .npz files")


def _digits(seed: int, classes: int) -> tuple[dict[str, Samples], Form]:
    from sklearn.datasets import load_digits

    _require_classes(DIGITS, classes, 10)
    digits: Any = load_digits()
    images = digits.images[..., None].astype(np.float32) / 16
    train, test = _split(Samples(images, digits.target.astype(np.int32)), 0.2, seed)
    return {"train": train, "test": test}, NPZ


def _streamed(
    folder: Path, seed: int, validation: float, classes: int, image_size: str | None, cache: str | Path | None
) -> DataSet:
    """A folder of images, after one pass over them all."""
    files = image_files(folder)
    if classes not in (10, len(files.classes)):  # 10 is what nobody may have given
        raise DataError(f"--classes: got {classes}, {folder} has {len(files.classes)} classes; leave it out")
    size = size_of(files, None if image_size is None else size_from(image_size))
    splits = {split: Samples(*numbers) for split, numbers in files.splits.items()}
    if "test" not in splits:
        splits["train"], splits["test"] = _split(splits["train"], 0.2, seed, f"{folder}: the test part")
    kept = None if cache is None else kept_in(Path(cache), files, size)
    parts = {
        split: Samples(StreamedImages(files, part.images, size, kept), part.labels)
        for split, part in _shared_out(splits, validation, seed).items()
    }
    counts = np.zeros((256, size[2]), np.int64)  # of the bytes of each channel

    def count(split: str, pixels: np.ndarray) -> None:
        if split == "train" and pixels.ndim == 4:
            for c in range(size[2]):
                counts[:, c] += np.bincount(pixels[..., c].ravel(), minlength=256)

    digest = _sha256(parts, count)
    each = _unit(Samples(np.tile(np.arange(256, dtype=np.uint8)[:, None, None, None], size[2]), np.arange(256)))
    values = each.images[:, 0, 0].astype(np.float64)
    mean = (counts * values).sum(0) / counts.sum(0)
    variance = (counts * (values - mean) ** 2).sum(0) / counts.sum(0)
    variance[np.count_nonzero(counts, 0) == 1] = 0  # not almost
    mean, deviation = _varying(str(folder), tuple(mean.tolist()), tuple(np.sqrt(variance).tolist()))
    _standardise(each, mean, deviation)
    table = each.images[:, 0, 0]
    train, test, *held_out = (
        part._replace(images=dataclasses.replace(part.images, table=table)) for part in parts.values()
    )
    own = (train, held_out[0] if held_out else None, test, len(files.classes))
    return DataSet(*own, mean, deviation, "none", digest, files.classes)


def _shared_out(splits: dict[str, Samples], validation: float, seed: int) -> dict[str, Samples]:
    """train, test and, where it is asked for, validation."""
    parts = {"train": splits["train"], "test": splits["test"]}
    if validation and "validation" in splits:
        parts["validation"] = splits["validation"]
    elif validation:
        parts["train"], parts["validation"] = _split(splits["train"], validation, seed)
    return parts


def _split(samples: Samples, fraction: float, seed: int, what: str = "--validation") -> tuple[Samples, Samples]:
    """Shuffled, each class with its share on both sides; the fraction is the second side's."""
    from sklearn.model_selection import train_test_split

    try:
        kept, apart = train_test_split(
            np.arange(len(samples.labels)), test_size=fraction, stratify=samples.labels, random_state=seed
        )
    except ValueError as error:
        remedy = "give another fraction, or 0 for none" if what == "--validation" else "add images"
        raise DataError(f"{what}: got {fraction}, but {error}; {remedy}") from None
    return tuple(Samples(samples.images[i], samples.labels[i]) for i in (kept, apart))  # pyright: ignore[reportReturnType]


def _sha256(parts: dict[str, Samples], seen: Callable[[str, np.ndarray], None] = lambda split, array: None) -> str:
    """Of names, dtypes, shapes and bytes: the same for a file and its gzipped form, and for images in a folder.

    seen: is given each piece of an array when it is read.
    """
    digest = hashlib.sha256()
    for split, part in parts.items():
        for name, array in part._asdict().items():
            digest.update(f"{split} {name} {array.dtype} {array.shape}\n".encode())
            for piece in in_parts(array, PIECE):
                digest.update(np.ascontiguousarray(piece).data)
                seen(split, piece)
    return digest.hexdigest()


def _unit(samples: Samples) -> Samples:
    """Bytes as numbers from 0 to 1."""
    if samples.images.dtype != np.uint8:
        return samples
    images = samples.images.astype(np.float32)
    images /= 255
    return samples._replace(images=images)


def _statistics(name: str, images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the deviation of each channel; a channel that does not vary has 1, so that it is only shifted."""
    channels = [images[..., c] for c in range(images.shape[-1])]
    means = tuple(float(channel.mean(dtype=np.float64)) for channel in channels)
    deviations = tuple(float(channel.std(dtype=np.float64)) for channel in channels)
    return _varying(name, means, deviations)


def _varying(
    name: str, means: tuple[float, ...], deviations: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not any(deviations):
        values = ", ".join(map(str, means))
        raise DataError(f"{name}: all training pixels have the value {values}; there is nothing to learn from")
    return means, tuple(deviation or 1.0 for deviation in deviations)


def _standardise(samples: Samples, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    """In place: images may take much of the memory."""
    images = samples.images
    images -= np.asarray(mean, np.float32)
    images /= np.asarray(deviation, np.float32)
