"""The networks of the command line, each with the size of image it is made for and how it is trained by default."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxcnn import models
from jaxcnn.layers import Layer


class Rates(NamedTuple):
    epochs: int
    learning_rate: float  # of AdamW at the start
    weight_decay: float


class Recipe(NamedTuple):
    network: Callable[[int], Layer]  # of the number of classes
    size: int = 1  # rows and columns; images that go into it several times are scaled up
    digits: Rates = Rates(40, 8e-3, 0.3)
    other: Rates = Rates(5, 1e-3, 0.01)  # of a folder's images


# With normalisation in every block a few epochs do for the digits.
DEEP = Rates(10, 4e-3, 0.05)

RECIPES = {
    "source": Recipe(models.source),
    "lenet5": Recipe(models.lenet5),
    "two_conv": Recipe(models.two_conv),
    "vgg": Recipe(models.vgg, 8, DEEP),
    "all_conv": Recipe(models.all_conv, 32, Rates(40, 1e-3, 0.01)),
    "resnet20": Recipe(models.resnet20, 32, DEEP),
    "resnet9": Recipe(models.resnet9, 32, DEEP),
    "mobilenet_v2": Recipe(models.mobilenet_v2, 32, DEEP),
    "convnext": Recipe(models.convnext, 32, DEEP),
}
