"""What is timed: networks, and the arrays that every contestant starts from."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

BATCHES = 4  # of images, which the steps take in turn
RATE = 0.01  # of plain stochastic gradient descent: small, so that rounding errors do not grow from step to step
CLASSES = 10


class Network(NamedTuple):
    """One of `jaxcnn.models` for images of one size."""

    model: str
    input_shape: tuple[int, int, int]  # H, W, C
    filters: tuple[int, ...] = ()  # of each 3×3 convolution, behind which are a ReLU and a 2×2 max-pool
    scan: bool = False  # so small a network that many steps in one scan are timed as well


NETWORKS = (
    Network("two_conv", (28, 28, 1), (32, 64)),
    Network("two_conv", (32, 32, 3), (32, 64)),
    Network("source", (8, 8, 1), (64,), scan=True),
    Network("resnet20", (32, 32, 3)),
)
HIDDEN = 128  # of the sigmoid layer, in the networks with `filters`
STAGES = ((16, 1), (32, 2), (64, 2))  # of ResNet-20: channels, the first block's stride; three blocks each


class Weights(NamedTuple):
    """Of one convolution or dense layer."""

    shape: tuple[int, ...]  # h×w×C×n, or in×out
    places: int  # at which it is applied to an image
    vectors: int = 1  # behind it: 1, a bias; 2, scale and shift of a batch normalisation


def weights(network: Network) -> list[Weights]:
    """In the order of the forward pass, a residual block's shortcut last.

    >>> [w.shape for w in weights(NETWORKS[0])]
    [(3, 3, 1, 32), (3, 3, 32, 64), (3136, 128), (128, 10)]
    """
    height, width, channels = network.input_shape
    found = []
    if network.filters:
        for features in network.filters:
            found.append(Weights((3, 3, channels, features), height * width))
            height, width, channels = height // 2, width // 2, features
        flat = height * width * channels
        return [*found, Weights((flat, HIDDEN), 1), Weights((HIDDEN, CLASSES), 1)]
    found.append(Weights((3, 3, channels, 16), height * width, 2))
    channels = 16
    for features, stride in STAGES:
        height, width = -(-height // stride), -(-width // stride)
        for block in range(3):
            found.append(Weights((3, 3, channels, features), height * width, 2))
            found.append(Weights((3, 3, features, features), height * width, 2))
            if block == 0 and stride > 1:
                found.append(Weights((1, 1, channels, features), height * width, 2))
            channels = features
    return [*found, Weights((channels, CLASSES), 1)]


def operations(network: Network, batch: int) -> int:
    """Of one training step, the same number for every contestant, whatever it really computes.

    The matrix products and convolutions alone: forward, gradient of the weights, gradient of the layer's input, each a
    multiplication and an addition for each term. The gradient of the images themselves is not needed and not counted.

    >>> round(operations(NETWORKS[0], 512) / 1e9, 1)
    12.8
    """
    forward = [math.prod(w.shape) * w.places for w in weights(network)]
    return 2 * batch * (3 * sum(forward) - forward[0])


class Problem(NamedTuple):
    """A network, parameters and data. Arrays are float32, labels int32."""

    network: Network
    parameters: list[np.ndarray]  # of each of `weights`: itself, then its bias, or its scale and shift
    images: np.ndarray  # (BATCHES, N, H, W, C)
    labels: np.ndarray  # (BATCHES, N)


def make_problem(network: Network, batch: int, seed: int) -> Problem:
    """All of it a function of the seed.

    >>> problem = make_problem(NETWORKS[2], 32, seed=0)
    >>> problem.images.shape, len(problem.parameters)
    ((4, 32, 8, 8, 1), 6)
    """
    rng = np.random.default_rng(seed)
    parameters = []
    for w in weights(network):
        parameters.append(rng.normal(size=w.shape) * (2 / math.prod(w.shape[:-1])) ** 0.5)
        scale, shift = 1 + rng.normal(size=w.shape[-1]) / 10, rng.normal(size=w.shape[-1]) / 10
        parameters += [scale, shift] if w.vectors == 2 else [shift]
    images = rng.normal(size=(BATCHES, batch, *network.input_shape))
    labels = rng.integers(0, CLASSES, (BATCHES, batch), np.int32)
    return Problem(network, [p.astype(np.float32) for p in parameters], images.astype(np.float32), labels)


def channels_first(problem: Problem) -> list[np.ndarray]:
    """The parameters for images N×C×H×W: filters n×C×h×w, dense weights out×in."""
    parameters, channels = [], 0
    for p in problem.parameters:
        if p.ndim == 4:
            channels = p.shape[-1]
            p = p.transpose(3, 2, 0, 1)
        elif p.ndim == 2:
            if channels and problem.network.filters:  # the inputs of the first dense layer are flattened images
                size = (problem.network.input_shape[0] >> len(problem.network.filters), -1, channels)
                p = p.reshape(*size, p.shape[-1]).transpose(2, 0, 1, 3).reshape(p.shape)
                channels = 0
            p = p.T
        parameters.append(np.ascontiguousarray(p))
    return parameters
