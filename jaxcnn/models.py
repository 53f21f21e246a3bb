"""Networks, each a Layer."""

from __future__ import annotations

from jaxcnn.layers import Conv2D, Dense, Flatten, Layer, MaxPool, ReLU, Sigmoid, sequential


def source(classes: int = 10) -> Layer:
    """The source's network: convolution, ReLU, max-pool, flatten, a sigmoid layer, softmax.

    The softmax is part of the loss; the output is logits (N, classes). For images from 8×8×1 on.

    Source: the course text, parts 1 and 2.
    """
    return sequential(
        Conv2D(64, 3), ReLU(), MaxPool(2), Flatten(), Dense(128), Sigmoid(), Dense(classes), name="source"
    )


def lenet5(classes: int = 10) -> Layer:
    """LeNet-5 (LeCun et al. 1998) for 28×28 images, as it is usually built today: ReLU and max-pooling in place of
    scaled tanh and trained subsampling, every map connected to every other, softmax in place of radial basis
    functions. The output is logits (N, classes).
    """
    return sequential(
        Conv2D(6, 5), ReLU(), MaxPool(2),
        Conv2D(16, 5, padding="VALID"), ReLU(), MaxPool(2),
        Flatten(), Dense(120), ReLU(), Dense(84), ReLU(), Dense(classes),
        name="lenet5",
    )  # fmt: skip


def two_conv(classes: int = 10) -> Layer:
    """Two convolutions of 32 and 64 filters, a sigmoid layer of 128: the usual small network for 28×28 or 32×32 images.

    The output is logits (N, classes).
    """
    return sequential(
        Conv2D(32, 3), ReLU(), MaxPool(2),
        Conv2D(64, 3), ReLU(), MaxPool(2),
        Flatten(), Dense(128), Sigmoid(), Dense(classes),
        name="two_conv",
    )  # fmt: skip
