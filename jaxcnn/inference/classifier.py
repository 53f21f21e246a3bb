"""What a run has learned, as a function: images as they come out of a file -> the probability of each class."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.layers import Layer
from jaxcnn.rules.resize import upsample_bilinear
from jaxcnn.training.checkpoint import load
from jaxcnn.training.run import config_of, network_of
from jaxcnn.training.run_folder import read_config


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A trained network with all that stands around it: scaling of the pixels, size of the image, names of the classes.

    Called with images N×H×W×C it gives probabilities (N, classes), float32. Images of bytes are divided by 255; floats
    are taken as the training data's were: from 0 to 1 where these were bytes, and for the digits. A pure function of
    arrays: it can be jitted, differentiated and exported.
    """

    network: Layer
    params: Any = dataclasses.field(repr=False)
    state: Any = dataclasses.field(repr=False)
    size: tuple[int, int, int]  # H, W, C of the images it takes
    enlarged: int  # how often they are scaled up before the network, bilinearly
    mean: tuple[float, ...]  # of each channel of the training images
    deviation: tuple[float, ...]
    names: tuple[str, ...]  # of the classes
    unit: bool  # whether its floats are from 0 to 1

    def __call__(self, images: Any) -> jax.Array:
        images = jnp.asarray(images)
        if images.ndim != 4 or images.shape[1:] != self.size:
            required = "×".join(map(str, self.size))
            raise ValueError(f"classifier: images must be N×{required}, got shape {tuple(images.shape)}")
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"classifier: images must be uint8 or floating, got {images.dtype}")
        x = (images.astype(jnp.float32) - jnp.asarray(self.mean)) / jnp.asarray(self.deviation)
        if self.enlarged > 1:
            x = upsample_bilinear(x, factor=self.enlarged)
        return jax.nn.softmax(self.network.forward(self.params, self.state, x)[0])


def classifier(run: str | Path, *, seed: int | None = None) -> Classifier:
    """The network of a run folder, as `jaxcnn.load` reads it, ready for images.

    Args:
      run: the folder that `jaxcnn train` wrote. seed: which one's network, of a run of several seeds.

    Raises:
      DataError: no run there, or not as it was written. ValueError: no seed given for a run of several, or one that it
      does not have.

    >>> classifier("runs/none")
    Traceback (most recent call last):
    jaxcnn.training.samples.DataError: runs/none: no run there: config.json: No such file or directory
    """
    config = read_config(Path(run))
    params, state = load(run, seed=seed)
    network = network_of(config_of(config), len(config["class_names"]))
    mean, deviation = config["pixel_mean"], config["pixel_deviation"]
    if config["seeds"] > 1:
        assert seed is not None  # load saw to it
        mean, deviation = (values[seed - config["seed"]] for values in (mean, deviation))
    factor = config["enlarged"]
    *rows_and_columns, channels = config["training_images"][1:]
    height, width = (n // factor for n in rows_and_columns)
    return Classifier(
        network, params, state, (height, width, channels), factor, tuple(mean), tuple(deviation),
        tuple(config["class_names"]), not config["data"].endswith(".npz"),
    )  # fmt: skip
