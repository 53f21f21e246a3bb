"""Each augmentation against a plain formulation in NumPy, of the same draws; and their distribution."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import augment

KEY = jax.random.key(3)


def images(rng, n=400, h=5, w=7, c=2) -> np.ndarray:
    """All pixels different from each other, and none 0."""
    return (rng.permutation(n * h * w * c) + 1).reshape(n, h, w, c).astype(np.float32)


def shift_of(changed: np.ndarray, image: np.ndarray, padding: int, fill) -> tuple[int, int]:
    """The only place of the padded image that the changed one was cut out of."""
    h, w, c = image.shape
    wide = np.full((h + 2 * padding, w + 2 * padding, c), fill, np.float32)
    wide[padding : padding + h, padding : padding + w] = image
    places = [
        (i, j)
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
        if np.array_equal(wide[i : i + h, j : j + w], changed)
    ]
    assert len(places) == 1
    return places[0]


@pytest.mark.parametrize("fill", [0.0, (-1.0, -2.0)], ids=["one number", "one a channel"])
def test_random_crop(rng, fill):
    given = images(rng)
    changed = np.asarray(jax.jit(functools.partial(augment.random_crop, padding=2, fill=fill))(KEY, given))
    places = [shift_of(*pair, 2, fill) for pair in zip(changed, given, strict=True)]
    counts = np.bincount([5 * i + j for i, j in places], minlength=25)
    assert counts.sum() == 400
    assert counts.min() > 3  # of 16 expected: each of the 25 places has its share
    assert counts.max() < 35


def test_random_horizontal_flip(rng):
    given = images(rng)
    changed = np.asarray(augment.random_horizontal_flip(KEY, given))
    flipped = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(changed, given, strict=True)])
    kept = np.array([np.array_equal(a, b) for a, b in zip(changed, given, strict=True)])
    assert (flipped ^ kept).all()
    assert 160 < flipped.sum() < 240


@pytest.mark.parametrize(("size", "fill"), [(1, 0.0), (2, 0.0), (3, (-1.0, -2.0)), (5, 0.0)], ids=str)
def test_cutout(rng, size, fill):
    """What is hidden is the square around one pixel, any of them, as far as it lies in the image."""
    given = images(rng)
    changed = np.asarray(augment.cutout(KEY, given, size=size, fill=fill))
    hidden = (changed == np.float32(fill)).all(-1)
    np.testing.assert_array_equal(changed[~hidden], given[~hidden])
    rows, columns = np.arange(5), np.arange(7)
    squares = {}
    for y in rows:
        for x in columns:
            vertical = (rows >= y - size // 2) & (rows < y - size // 2 + size)
            horizontal = (columns >= x - size // 2) & (columns < x - size // 2 + size)
            squares.setdefault((vertical[:, None] & horizontal).tobytes(), []).append((y, x))
    counts = dict.fromkeys(squares, 0)
    for mask in hidden:
        counts[mask.tobytes()] += 1  # a KeyError were no square
    assert min(counts.values()) > 0
    share = np.array([counts[s] / len(squares[s]) for s in squares])  # of 400 / 35 expected
    assert share.max() < 30


def test_compose_gives_each_a_key_of_its_own(rng):
    given = images(rng)
    twice = augment.compose(augment.random_horizontal_flip, augment.random_horizontal_flip)(KEY, given)
    flipped = (np.asarray(twice) != given).any((1, 2, 3))
    assert 160 < flipped.sum() < 240  # were the keys one, each would be flipped back
    first, second = jax.random.split(KEY)
    in_turn = augment.cutout(second, augment.random_crop(first, given, padding=1), size=2)
    both = augment.compose(functools.partial(augment.random_crop, padding=1), functools.partial(augment.cutout, size=2))
    np.testing.assert_array_equal(both(KEY, given), in_turn)


def test_from_text(rng):
    given = images(rng)
    parts = [
        functools.partial(augment.random_crop, padding=2, fill=(-5.0, -6.0)),
        augment.random_horizontal_flip,
        functools.partial(augment.cutout, size=3),
    ]
    named = augment.from_text("crop=2,flip,cutout=3", black=(-5.0, -6.0))
    np.testing.assert_array_equal(named(KEY, given), augment.compose(*parts)(KEY, given))
    named = augment.from_text("flip")
    np.testing.assert_array_equal(named(KEY, given), augment.compose(parts[1])(KEY, given))
    assert augment.from_text("none") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flip,",
        "flip=2",
        "crop",
        "crop=",
        "crop=0",
        "crop=-1",
        "crop=2.0",
        "crop=²",
        "none,flip",
        "rotate",
        "crop 2",
    ],
)
def test_text_that_names_nothing(text):
    with pytest.raises(
        ValueError, match=r"^got '.*' in '.*', required none, or of crop=PIXELS, flip, cutout=PIXELS some$"
    ):
        augment.from_text(text)


EACH = {
    "random_crop": functools.partial(augment.random_crop, padding=2),
    "random_horizontal_flip": augment.random_horizontal_flip,
    "cutout": functools.partial(augment.cutout, size=2),
}


@pytest.mark.parametrize("function", EACH.values(), ids=EACH)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_a_function_of_the_key(rng, function, dtype):
    given = jnp.asarray(images(rng)).astype(dtype)
    changed = function(KEY, given)
    assert (changed.shape, changed.dtype) == (given.shape, given.dtype)
    np.testing.assert_array_equal(changed, jax.jit(function)(KEY, given))
    assert (changed != function(jax.random.key(4), given)).any()


REFUSED = {
    "a row": (
        augment.random_horizontal_flip, (7,), ValueError,
        "random_horizontal_flip: images must be N×H×W×C, got (7,)",
    ),
    "no channels": (EACH["cutout"], (4, 5, 7), ValueError, "cutout: images must be N×H×W×C, got (4, 5, 7)"),
    "no padding": (
        functools.partial(augment.random_crop, padding=0), (1, 5, 7, 1), ValueError,
        "random_crop: padding must be from 1 to 5, the shorter side, got 0",
    ),
    "too much padding": (
        functools.partial(augment.random_crop, padding=6), (1, 7, 5, 1), ValueError,
        "random_crop: padding must be from 1 to 5, the shorter side, got 6",
    ),
    "half a pixel": (
        functools.partial(augment.cutout, size=2.5), (1, 7, 5, 1), TypeError,
        "cutout: size must be a whole number, got 2.5",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "shape", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_refused(function, shape, error, says):
    with pytest.raises(error) as raised:
        function(KEY, jnp.zeros(shape))
    assert str(raised.value) == says
