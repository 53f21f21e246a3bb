"""Random changes of a batch of images, pure functions of (key, images), for the `augment` of a training step.

They work on images as the network gets them. Where there is no pixel they put `fill`, a number or one for each channel;
0 is the mean of standardised images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.rules.window import is_whole

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]


def random_crop(key: jax.Array, images: jax.Array, *, padding: int, fill: Any = 0.0) -> jax.Array:
    """Each image moved by -padding … padding pixels along each axis, at random: cut out of its padded form.

    Args:
      key: () key. images: N×H×W×C. padding: pixels on every side, at most H and W. fill: a number or (C,).

    Returns:
      N×H×W×C, dtype as images.

    Raises:
      TypeError: padding is no whole number. ValueError: images of another rank, padding out of range.

    >>> images = jnp.ones((2, 4, 4, 3))
    >>> random_crop(jax.random.key(0), images, padding=1).shape
    (2, 4, 4, 3)
    """
    _require("random_crop", "padding", padding, images)
    n, h, w, c = images.shape
    wide = jnp.broadcast_to(jnp.asarray(fill, images.dtype), (n, h + 2 * padding, w + 2 * padding, c))
    wide = wide.at[:, padding : padding + h, padding : padding + w].set(images)
    corners = jax.random.randint(key, (n, 2), 0, 2 * padding + 1)

    # The plain form is the fastest on a CPU too: as selects, one-hot products or takes it has 2 to 50 times the time.
    def cut(image, corner):
        return lax.dynamic_slice(image, (*corner, 0), (h, w, c))

    return jax.vmap(cut)(wide, corners)


def random_horizontal_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image mirrored left to right, or not, with equal chance.

    Args:
      key: () key. images: N×H×W×C.

    Raises:
      ValueError: images of another rank.

    >>> images = jnp.ones((2, 4, 4, 3))
    >>> random_horizontal_flip(jax.random.key(0), images).shape
    (2, 4, 4, 3)
    """
    _require_rank("random_horizontal_flip", images)
    mirrored = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def cutout(key: jax.Array, images: jax.Array, *, size: int, fill: Any = 0.0) -> jax.Array:
    """In each image a square replaced by `fill`; its centre is any pixel, so at the edge less than a square.

    Source: DeVries and Taylor, 2017.

    Args:
      key: () key. images: N×H×W×C. size: pixels of a side, at most H and W. fill: a number or (C,).

    Raises:
      TypeError: size is no whole number. ValueError: images of another rank, size out of range.

    >>> images = jnp.ones((2, 4, 4, 3))
    >>> cutout(jax.random.key(0), images, size=2).shape
    (2, 4, 4, 3)
    """
    _require("cutout", "size", size, images)
    n, h, w, _ = images.shape
    for_rows, for_columns = jax.random.split(key)

    def hidden(key, length):
        first = jax.random.randint(key, (n, 1), 0, length) - size // 2
        return (jnp.arange(length) >= first) & (jnp.arange(length) < first + size)

    square = hidden(for_rows, h)[:, :, None, None] & hidden(for_columns, w)[:, None, :, None]
    return jnp.where(square, jnp.asarray(fill, images.dtype), images)


def compose(*augmentations: Augmentation) -> Augmentation:
    """One after the other, each with a key of its own.

    >>> both = compose(functools.partial(random_crop, padding=4), random_horizontal_flip)
    >>> both(jax.random.key(0), jnp.ones((2, 32, 32, 3))).shape
    (2, 32, 32, 3)
    """

    def composed(key: jax.Array, images: jax.Array) -> jax.Array:
        for augmentation, own in zip(augmentations, jax.random.split(key, len(augmentations)), strict=True):
            images = augmentation(own, images)
        return images

    return composed


def from_text(text: str, *, black: Any = 0.0) -> Augmentation | None:
    """The augmentation that "crop=PIXELS,flip,cutout=PIXELS", or some of these, stands for; None for "none".

    Args:
      black: the pixel around an image, a number or (C,): black as standardisation leaves it. A cutout has the mean, 0.

    Raises:
      ValueError: anything else.

    >>> from_text("crop=2,flip")(jax.random.key(0), jnp.ones((2, 28, 28, 1))).shape
    (2, 28, 28, 1)
    """
    if text == "none":
        return None
    made = []
    for part in text.split(","):
        name, _, pixels = part.partition("=")
        number = int(pixels) if pixels.isascii() and pixels.isdecimal() else 0
        if name == "crop" and number:
            made.append(functools.partial(random_crop, padding=number, fill=black))
        elif name == "cutout" and number:
            made.append(functools.partial(cutout, size=number))
        elif part == "flip":
            made.append(random_horizontal_flip)
        else:
            raise ValueError(f"got {part!r} in {text!r}, required none, or of crop=PIXELS, flip, cutout=PIXELS some")
    return compose(*made)


def _require(function: str, argument: str, value: Any, images: jax.Array) -> None:
    _require_rank(function, images)
    if not is_whole(value):
        raise TypeError(f"{function}: {argument} must be a whole number, got {value!r}")
    most = min(images.shape[1:3])
    if not 1 <= value <= most:
        raise ValueError(f"{function}: {argument} must be from 1 to {most}, the shorter side, got {value}")


def _require_rank(function: str, images: jax.Array) -> None:
    if images.ndim != 4:
        raise ValueError(f"{function}: images must be N×H×W×C, got {images.shape}")
