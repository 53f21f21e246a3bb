"""Every type and every way in which an idx file can be broken."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import numpy as np
import pytest

from jaxcnn.training.idx import idx_file
from jaxcnn.training.samples import UNPACKED, DataError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
WRITE = {"plain": bytes, "gzip": gzip.compress}


def idx(array: np.ndarray) -> bytes:
    return header(array.shape, CODES[array.dtype.str[1:]]) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def header(shape: tuple[int, ...], code: int = 0x08) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


@pytest.mark.parametrize("write", WRITE)
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (2, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("code", CODES)
def test_reads_what_was_written(tmp_path, rng, code, shape, write):
    path = tmp_path / "file"  # gzip is known by its first bytes: the name says nothing
    lowest = 0 if code == "u1" else -100
    array = rng.uniform(lowest, 100, shape).astype(code)
    path.write_bytes(WRITE[write](idx(array)))
    stored = idx_file(path)
    got = stored.read()
    assert (stored.shape, stored.dtype, got.dtype) == (shape, np.dtype(code), np.dtype(code))  # this machine's order
    np.testing.assert_array_equal(got, array)


def test_a_gzipped_file_may_be_large_where_it_unpacks_to_what_images_do(tmp_path, rng):
    """More than unpacks from any file, at 40 for each packed byte."""
    array = np.zeros((70, 1000, 1000), "u1")
    array[:, ::40] = rng.integers(0, 255, (70, 25, 1000))
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx(array), 1))
    assert path.stat().st_size < array.nbytes / 30
    assert array.nbytes > UNPACKED
    np.testing.assert_array_equal(idx_file(path).read(), array)


def test_a_gzipped_file_with_a_bit_flipped_is_not_taken_for_another(tmp_path, rng):
    array = rng.integers(0, 255, (3, 5, 5)).astype("u1")
    whole = gzip.compress(idx(array))
    path = tmp_path / "file"
    refused = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(idx_file(path).read(), array)
        except DataError:
            refused += 1
    assert refused > 7 * len(whole)  # the rest is the time, the system: what gzip does not check


def test_reads_more_than_one_block(tmp_path, rng):
    array = rng.integers(0, 255, (3, 1000, 1001)).astype("u1")
    path = tmp_path / "file"
    path.write_bytes(idx(array))
    np.testing.assert_array_equal(idx_file(path).read(), array)


GOOD = idx(np.arange(6, dtype="i2").reshape(2, 3))
ZIPPED = gzip.compress(GOOD)
FETCH = "fetch the file again"
MOST = 2**32 - 1
BROKEN = {
    "empty": (b"", "not an idx file: it begins with nothing, idx with 00 00"),
    "text": (b"P5 28 28", "not an idx file: it begins with 50 35 20 32"),
    "magic cut short": (GOOD[:3], "not an idx file: it begins with 00 00 0b"),
    "unknown type": (b"\0\0\x0a\1" + GOOD, "not an idx file: it begins with 00 00 0a 01"),
    "no axes": (b"\0\0\x08\0" + GOOD, "not an idx file"),
    "five axes": (header((1,) * 5) + b"1", "not an idx file"),
    "header cut short": (GOOD[:9], f"the header is cut short; {FETCH}"),
    "no values": (header((0, 28, 28)), "the header announces 0 × 28 × 28 values; at least one is required"),
    "no values of any size": (header((0, MOST, MOST, MOST)), "at least one is required"),
    "values missing": (GOOD[:12], f"cut short: the header announces 2 × 3 values, 12 bytes, the file holds 0; {FETCH}"),
    "half a value missing": (GOOD[:-1], f"2 × 3 values, 12 bytes, the file holds 11; {FETCH}"),
    "a byte left over": (GOOD + b"\0", f"holds more than the 12 bytes that its header announces; {FETCH}"),
    "more than memory": (header((MOST, 2**20)) + b"1" * 80, f"{MOST} × 1048576 values, {MOST << 20} bytes, the file"),
    "more than 64 bits": (header((MOST,) * 4) + b"1" * 80, "the file holds 80"),
    "gzip of too little": (gzip.compress(GOOD[:-1]), "the file holds 11"),
    "gzip of too much": (gzip.compress(GOOD + b"\0"), "holds more than the 12 bytes"),
    "gzip of more than memory": (
        gzip.compress(header((MOST, 2**20)) + b"1" * 80, mtime=0),
        f"[0-9]+ packed bytes announce {MOST << 20}, of which at most 67108864 are unpacked; {FETCH}, or unpack it",
    ),
    "gzip of 2⁴⁰ images": (
        gzip.compress(header((2**20, 2**20, 28, 28))),
        f"announce {28 * 28 << 40}, of which at most",
    ),
    "gzip of nothing": (gzip.compress(b""), "begins with nothing"),
    "gzip header cut short": (ZIPPED[:5], "the gzip stream is cut short or broken"),
    "gzip cut short": (ZIPPED[:-12], f"the gzip stream is cut short or broken .*; {FETCH}"),
    "gzip without its sum": (ZIPPED[:-8], "the gzip stream is cut short or broken"),
    "gzip with a wrong sum": (ZIPPED[:-8] + b"\1" * 8, r"the gzip stream is cut short or broken \(CRC check failed"),
    "gzip, then something": (ZIPPED + b"something", "the gzip stream is cut short or broken"),
    "gzip with a wrong byte": (ZIPPED[:10] + b"\xff" * 8 + ZIPPED[18:], "the gzip stream is cut short or broken"),
}


@pytest.mark.parametrize(("content", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_file(tmp_path, content, says):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        idx_file(path).read()
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [(lambda path: None, "No such file"), (lambda path: path.mkdir(), "Is a directory")],
    ids=["missing", "a folder"],
)
def test_no_file(tmp_path, make, says):
    path = tmp_path / "file"
    make(path)
    with pytest.raises(DataError, match=f"file: cannot be read: {says}"):
        idx_file(path).read()


ZEROS = gzip.compress(header((1 << 27,)) + bytes(1 << 27), 1)  # of 0.6 MB, to 128 MB, as its header announces


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(header((2, 3)) + bytes(1 << 26)), "holds more than the 6 bytes"),
        (gzip.compress(header((1 << 25,)) + b"1" * 80), "the file holds 80"),
        (gzip.compress(header((1 << 30,)) + b"1" * 80), "announce 1073741824, of which at most 67108864 are unpacked"),
        (header((1 << 30,)) + b"1" * 80, "the file holds 80"),
        (ZEROS, f"{len(ZEROS)} packed bytes announce {1 << 27}, of which at most 67108864 are unpacked"),
    ],
    ids=["unpacks to 64 MB", "announces 32 MB, gzipped", "announces 1 GB, gzipped", "announces 1 GB", "a gzip bomb"],
)
def test_a_small_file_takes_little_memory(tmp_path, content, says):
    path = tmp_path / "file"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=says):
            idx_file(path).read()
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
