"""An .npz by both families of names, and every way in which it can be broken."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxcnn.training.data import load_data
from jaxcnn.training.samples import DataError


def arrays(rng) -> dict[str, np.ndarray]:
    """Keras' four, of 20 and 10 images of 8×6."""
    return {
        "x_train": rng.integers(0, 256, (20, 8, 6)).astype("u1"),
        "y_train": np.repeat(np.arange(10, dtype="u1"), 2),
        "x_test": rng.integers(0, 256, (10, 8, 6)).astype("u1"),
        "y_test": np.arange(10, dtype="u1"),
    }


def medmnist(rng) -> dict[str, np.ndarray]:
    """MedMNIST's six, whose labels are columns."""
    of = arrays(rng)
    named = {
        f"{split}_{kind}": of[f"{letter}_{split}"]
        for split in ("train", "test")
        for kind, letter in (("images", "x"), ("labels", "y"))
    } | {"val_images": of["x_test"] // 2, "val_labels": of["y_test"]}
    return {name: a[:, None] if "labels" in name else a for name, a in named.items()}


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def header(descr: str, shape: str, *, length: int = 118) -> bytes:
    """Of an .npy file, as numpy.save would not write it."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(length - 1) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text.encode()


def write(path: Path, files: dict[str, np.ndarray | bytes | None], packing=zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
    return path


def load(path: Path, **options):
    return load_data(str(path), seed=0, **options)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_as_numpy_writes_it(tmp_path, rng, save):
    given = arrays(rng)
    save(tmp_path / "data.npz", **given, more=np.array("something else"))
    data = load(tmp_path / "data.npz")
    assert (data.train.images.shape, data.test.images.shape) == ((20, 8, 6, 1), (10, 8, 6, 1))
    np.testing.assert_array_equal(data.train.labels, given["y_train"])
    pixels = data.test.images[..., 0] * data.deviation + data.mean
    np.testing.assert_allclose(pixels, given["x_test"] / 255, rtol=0, atol=1e-6)
    assert (data.validation, data.augment) == (None, "none")


def test_validation_images_of_its_own_are_those_that_are_asked_for(tmp_path, rng):
    given = medmnist(rng)
    np.savez(tmp_path / "data.npz", **given)
    data, plain = load(tmp_path / "data.npz", validation=0.1), load(tmp_path / "data.npz")
    assert data.train.labels.shape == (20,)
    assert data.validation is not None
    pixels = data.validation.images[..., 0] * data.deviation + data.mean
    np.testing.assert_allclose(pixels, given["val_images"] / 255, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(data.validation.labels, np.arange(10))
    assert plain.validation is None
    assert (plain.mean, plain.deviation) == (data.mean, data.deviation)


def test_any_numbers_in_any_order(tmp_path, rng):
    """Big-endian, by columns, whole or floating; only bytes are divided by 255."""
    given = arrays(rng)
    images = rng.normal(size=(20, 8, 6, 3))
    given |= {
        "x_train": np.asfortranarray(images.astype(">f8")),
        "x_test": rng.integers(-9, 9, (10, 8, 6, 3)).astype(">i2"),
        "y_train": given["y_train"].astype(">i8"),
    }
    data = load(write(tmp_path / "data.npz", given))
    np.testing.assert_allclose(data.mean, images.mean((0, 1, 2)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(data.deviation, images.std((0, 1, 2)), rtol=1e-6)
    pixels = data.train.images * data.deviation + data.mean
    np.testing.assert_allclose(pixels, images, rtol=0, atol=1e-5)
    pixels = data.test.images * data.deviation + data.mean
    np.testing.assert_allclose(pixels, given["x_test"], rtol=0, atol=1e-5)


def at(array: np.ndarray, place, value) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


AGAIN = "fetch the file again"
BROKEN = {
    "an array missing": (
        lambda f: {"y_test": None},
        "got the arrays 'x_train', 'y_train', 'x_test'; required x_train, ",
    ),
    "nothing": (lambda f: dict.fromkeys(f), "got the arrays none; required x_train, y_train, x_test, y_test or train_"),
    "objects": (
        lambda f: {"x_train": npy(f["x_train"].astype(object))},
        "x_train: got pickled Python objects, which are not read; required an array of numbers",
    ),
    "objects for labels": (lambda f: {"y_test": npy(f["y_test"].astype(object))}, "y_test: got pickled Python objects"),
    "a pickle": (
        lambda f: {"x_train": pickle.dumps(f["x_train"])},
        "x_train: not an array of NumPy's: its header is broken",
    ),
    "text": (lambda f: {"x_train": np.full((20, 8, 6), "a")}, "x_train: got <U1, required whole or floating numbers"),
    "complex": (
        lambda f: {"x_train": f["x_train"] * 1j},
        "x_train: got complex128, required whole or floating numbers",
    ),
    "truth values": (lambda f: {"x_train": f["x_train"] > 9}, "x_train: got bool, required whole or floating numbers"),
    "records": (lambda f: {"x_train": np.zeros((20, 8, 6), "u1,f4")}, "required whole or floating numbers"),
    "more than double": (lambda f: {"x_train": f["x_train"].astype("g")}, "required whole or floating numbers"),
    "flat images": (lambda f: {"x_train": f["x_train"][0]}, "x_train: got an array (8, 6), required M×H×W or M×H×W×C"),
    "a number": (lambda f: {"x_train": np.array(3)}, "x_train: got an array (), required M×H×W or M×H×W×C images"),
    "no images": (
        lambda f: {"x_test": f["x_test"][:0]},
        "x_test: got an array (0, 8, 6); at least one image of one pix",
    ),
    "images of nothing": (
        lambda f: {"x_test": f["x_test"][:, :0]},
        "x_test: got an array (10, 0, 6); at least one image",
    ),
    "two sizes": (
        lambda f: {"x_test": f["x_test"][:, 1:]},
        "x_test: test images are (7, 6, 1), train images (8, 6, 1); they must have one size",
    ),
    "too few labels": (
        lambda f: {"y_test": f["y_test"][1:]},
        "y_test: 9 labels for 10 images; there must be one for each",
    ),
    "a label": (lambda f: {"y_test": np.array(3)}, "y_test: got int64 (), required one whole number an image"),
    "labels as rows": (
        lambda f: {"y_train": np.eye(20, 10)},
        "y_train: got float64 (20, 10), required one whole number",
    ),
    "labels of fractions": (lambda f: {"y_train": f["y_train"] / 2}, "y_train: got float64 (20,), required one whole"),
    "label 10": (
        lambda f: {"y_test": at(f["y_test"], 3, 10)},
        "y_test: label 10 is outside the 10 classes 0 … 9; give --classes",
    ),
    "label 2⁶³": (lambda f: {"y_test": at(f["y_test"].astype("u8"), 3, 2**63)}, "label 9223372036854775808 is outside"),
    "NaN": (
        lambda f: {"x_test": at(f["x_test"].astype("f2"), (4, 7, 2), np.nan)},
        "x_test: value [4, 7, 2] is NaN or infinite; all pixels must be finite",
    ),
    "beyond float32": (
        lambda f: {"x_train": at(f["x_train"] * 1.0, (0, 1, 2), 1e300)},
        "value [0, 1, 2] is NaN or inf",
    ),
    "values missing": (
        lambda f: {"x_test": npy(f["x_test"])[:-7]},
        f"x_test: the header announces (10, 8, 6) values, 480 bytes, the zip 473; {AGAIN}",
    ),
    "bytes left over": (
        lambda f: {"x_test": npy(f["x_test"]) + b"1"},
        "values, 480 bytes, the zip 481; fetch the file",
    ),
    "2⁴⁰ images": (
        lambda f: {"x_test": header("'|u1'", f"({2**40}, 28, 28)") + bytes(480)},
        f"x_test: the header announces ({2**40}, 28, 28) values, {784 << 40} bytes, the zip 480; {AGAIN}",
    ),
    "more than 64 bits": (
        lambda f: {"x_test": header("'|u1'", f"({2**70}, 28, 28)")},
        f"announces ({2**70}, 28, 28) val",
    ),
    "sizes below 0": (
        lambda f: {"x_test": header("'|u1'", "(-10, -8, 6)") + bytes(480)},
        "x_test: got sizes (-10, -8, 6); required an array of numbers",
    ),
    "no header": (lambda f: {"x_test": b""}, f"x_test: not an array of NumPy's: its header is broken; {AGAIN}"),
    "half a header": (
        lambda f: {"x_test": npy(f["x_test"])[:40]},
        "x_test: not an array of NumPy's: its header is broken",
    ),
    "another version": (
        lambda f: {"x_test": npy(f["x_test"], version=(2, 0))},
        "x_test: no plain array of numbers; save it by numpy.savez_compressed",
    ),
    "a header that is code": (lambda f: {"x_test": header("__import__('os').abort()", "(1,)")}, "its header is broken"),
    "a header without end": (
        lambda f: {"x_test": header("'|u1'", "(10, 8, 6)", length=2000) + bytes(480)},
        "x_test: not an array of NumPy's: its header is broken",
    ),
    "a header of brackets": (lambda f: {"x_test": header("(" * 800, "(1,)", length=900)}, "its header is broken"),
    "a header of signs": (lambda f: {"x_test": header("-" * 800 + "1", "(1,)", length=900)}, "its header is broken"),
}


@pytest.mark.parametrize(("change", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_arrays(tmp_path, rng, change, says):
    files = arrays(rng)
    refused(write(tmp_path / "data.npz", files | change(files)), says)


def refused(path: Path, says: str) -> None:
    with pytest.raises(DataError) as error:
        load(path)
    assert says in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda whole: b"", "not an .npz file, or a broken one (File is not a zip file); fetch the file again"),
        (lambda whole: pickle.dumps({"x_train": 1}), "not an .npz file, or a broken one (File is not a zip file)"),
        (lambda whole: npy(np.zeros(3)), "not an .npz file, or a broken one (File is not a zip file)"),
        (lambda whole: whole[:-1], "not an .npz file, or a broken one (File is not a zip file)"),
        (lambda whole: whole[100:], "cannot be read: Invalid argument"),
        (
            lambda whole: whole.replace(b"x_test", b"x_best", 1),
            "x_test: cut short or broken (File name in directory 'x_test.npy' and header b'x_best.npy' differ.); fetch",
        ),
        (lambda whole: whole.replace(b"\x93NUMPY", b"\x93NUMPI", 1), "x_train: cut short or broken (Bad CRC-32 for"),
        (
            lambda whole: whole.replace(bytes(range(10)), bytes(10), 1),
            "y_test: cut short or broken (Bad CRC-32 for file",
        ),
    ],
    ids=["empty", "a pickle", "an array", "cut short", "begun late", "two names", "no array", "another label"],
)
def test_broken_file(tmp_path, rng, change, says):
    path = write(tmp_path / "data.npz", arrays(rng), zipfile.ZIP_STORED)
    path.write_bytes(change(path.read_bytes()))
    refused(path, says)


def test_packed_as_numpy_does_not(tmp_path, rng):
    path = write(tmp_path / "data.npz", arrays(rng), zipfile.ZIP_LZMA)
    refused(path, "x_train: encrypted, or packed as NumPy does not; save it by numpy.savez_compressed")


def test_encrypted(tmp_path, rng):
    path = write(tmp_path / "data.npz", arrays(rng))
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PK\1\2") + 8] |= 1  # in the directory at the end, of the first array
    path.write_bytes(whole)
    refused(path, "x_train: encrypted, or packed as NumPy does not")


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch, rng):
    path = write(tmp_path / "data.npz", arrays(rng))

    def fails(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", fails)
    refused(path, "data.npz: cannot be read: Permission denied")


def lying(path: Path, files, size: int) -> Path:
    """The zip's own directory says that x_train is of that many bytes when unpacked, and as many packed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else npy(content))
        info = archive.getinfo("x_train.npy")
        info.file_size = info.compress_size = size
    return path


def test_a_small_file_takes_little_memory(tmp_path, rng):
    """Zeros that unpack to as much as is announced; a header and a zip that announce the same, which is not there."""
    files = arrays(rng)
    zeros = header("'|u1'", f"({2**27 // 64}, 8, 8)") + bytes(2**27)
    bomb = write(tmp_path / "bomb.npz", files | {"x_train": zeros})
    announced = lying(tmp_path / "lying.npz", files | {"x_train": zeros[:200]}, len(zeros))
    many = {"x_train": header("'|u1'", "(1000000, 8, 6)"), "y_train": np.zeros(1_000_000, "u1")}
    held = lying(tmp_path / "held.npz", files | many, 128 + 48_000_000)
    del zeros
    limit = f"packed bytes announce {2**27 + 128}, of which at most 67108864 are unpacked; fetch the file again"
    tracemalloc.start()
    try:
        for path, says, most in ((bomb, limit, 2**22), (announced, limit, 2**22), (held, "x_train: cut short", 2**27)):
            tracemalloc.reset_peak()
            refused(path, says)
            assert tracemalloc.get_traced_memory()[1] < most, path
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_damaged_file_is_not_taken_for_another(tmp_path, rng, packing):
    """Any bit flipped, any end cut off: refused, or the very arrays, where it is in what no one reads."""
    whole = load(write(tmp_path / "data.npz", arrays(rng), packing))
    content = (tmp_path / "data.npz").read_bytes()
    path, ended = tmp_path / "damaged.npz", {True: 0, False: 0}
    for place in rng.choice(8 * len(content), 400, replace=False):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        ended[same_or_refused(path, whole)] += 1
    assert ended[False] > 250
    for length in rng.choice(len(content), 50, replace=False):
        path.write_bytes(content[:length])
        assert not same_or_refused(path, whole)


def same_or_refused(path: Path, whole) -> bool:
    try:
        data = load(path)
    except DataError:
        return False
    assert data.sha256 == whole.sha256
    return True
