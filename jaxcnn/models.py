"""Networks, each a Layer that ends in logits (N, classes): the softmax is part of the loss.

`width` is the number of channels that the published network starts with; the other numbers of channels follow it.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxcnn.layers import (
    GELU,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    Layer,
    LayerNorm,
    LayerScale,
    MaxPool,
    ReLU,
    ReLU6,
    Sigmoid,
    StochasticDepth,
    residual,
    sequential,
)


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


def all_conv(classes: int = 10, width: int = 96) -> Layer:
    """All-CNN-C (Springenberg et al., "Striving for simplicity", 2015, table 1): convolutions alone, those of stride 2
    in place of pooling, dropout 0.2 of the image and 0.5 behind each stride; without the last ReLU, on the logits.

    For images from 32×32 on; 1,369,738 parameters for 32×32×3 and 10 classes. Training needs a key.
    """
    wide = 2 * width
    return sequential(
        Dropout(0.2),
        Conv2D(width, 3), ReLU(), Conv2D(width, 3), ReLU(), Conv2D(width, 3, stride=2), ReLU(), Dropout(0.5),
        Conv2D(wide, 3), ReLU(), Conv2D(wide, 3), ReLU(), Conv2D(wide, 3, stride=2), ReLU(), Dropout(0.5),
        Conv2D(wide, 3, padding="VALID"), ReLU(), Conv2D(wide, 1), ReLU(), Conv2D(classes, 1), GlobalAvgPool(),
        name="all_conv",
    )  # fmt: skip


def vgg(classes: int = 10, width: int = 32) -> Layer:
    """A small VGG (Simonyan and Zisserman 2015): 3×3 convolutions, with batch normalisation, and the image halved by
    max-pooling between them; in place of its dense layers the mean over the image and one.

    For images from 8×8 on, made for 28×28; 94,122 parameters for three channels and 10 classes, 93,546 for one.
    """
    return sequential(
        *_conv(width), MaxPool(2),
        *_conv(2 * width), *_conv(2 * width), MaxPool(2),
        *_conv(2 * width), MaxPool(2),
        GlobalAvgPool(), Dense(classes),
        name="vgg",
    )  # fmt: skip


def resnet20(classes: int = 10, width: int = 16) -> Layer:
    """ResNet-20 for CIFAR's images (He et al. 2016, section 4.2): three stages of three residual blocks.

    Where the shapes differ the shortcut is a 1×1 convolution of stride 2 (the paper's option B; for CIFAR it takes
    option A, zeros for the channels that are missing, which differs by 1 % of the parameters).

    For images from 8×8 on, made for 32×32; 272,474 parameters for 32×32×3 and 10 classes.
    """

    def block(features, stride=1):
        layer = sequential(*_conv(features, stride=stride), *_conv(features, activation=None), name="layer")
        shortcut = None if stride == 1 else sequential(*_conv(features, 1, stride=stride, activation=None))
        return sequential(residual(layer, shortcut), ReLU(), name="block")

    stages = ((width, 1), (2 * width, 2), (4 * width, 2))
    blocks = [block(features, stride if i == 0 else 1) for features, stride in stages for i in range(3)]
    return sequential(*_conv(width), *blocks, GlobalAvgPool(), Dense(classes), name="resnet20")


def resnet9(classes: int = 10, width: int = 64) -> Layer:
    """ResNet-9 as the DAWNBench speed runs on CIFAR-10 have it (Page, "How to train your ResNet", 2018): wide and
    shallow, pooled by maxima, two residual blocks; without the constant 1/8 on the logits.

    For images from 8×8 on, made for 32×32; 6,573,120 parameters for 32×32×3 and 10 classes.
    """

    def stage(factor, *more):
        return *_conv(factor * width), MaxPool(2), *more

    def block(factor):
        return residual(sequential(*_conv(factor * width), *_conv(factor * width)), name="block")

    return sequential(
        *_conv(width), *stage(2, block(2)), *stage(4), *stage(8, block(8)),
        GlobalMaxPool(), Dense(classes, bias=False),
        name="resnet9",
    )  # fmt: skip


def mobilenet_v2(classes: int = 10, width: int = 16) -> Layer:
    """A small MobileNetV2 (Sandler et al. 2018): inverted residual blocks, which widen the channels six times by a 1×1
    convolution, filter each by itself (3×3, depthwise), and narrow them by another, without an activation.

    For images from 8×8 on, made for 32×32; 508,810 parameters for 32×32×3 and 10 classes.
    """

    def block(before, after, stride, expansion):
        wide = expansion * before
        layer = sequential(
            *(_conv(wide, 1, activation=ReLU6) if expansion > 1 else ()),
            *_conv(wide, stride=stride, groups=wide, activation=ReLU6),
            *_conv(after, 1, activation=None),
            name="block",
        )
        return residual(layer, name="block") if stride == 1 and before == after else layer

    # Of each stage: the channels in widths, blocks, the first block's stride, the expansion.
    blocks, before = [], width
    for factor, count, stride, expansion in ((1, 1, 1, 1), (2, 2, 2, 6), (4, 3, 2, 6), (8, 2, 2, 6)):
        for i in range(count):
            blocks.append(block(before, factor * width, stride if i == 0 else 1, expansion))
            before = factor * width
    head = _conv(4 * before, 1, activation=ReLU6)
    return sequential(
        *_conv(width, activation=ReLU6), *blocks, *head, GlobalAvgPool(), Dense(classes), name="mobilenet_v2"
    )


def convnext(classes: int = 10, width: int = 40, drop: float = 0.1) -> Layer:
    """A small ConvNeXt (Liu et al. 2022): three stages of two residual blocks, each a 7×7 depthwise convolution, layer
    normalisation and two dense layers with a GELU between, scaled channel by channel and left out at random (stochastic
    depth, from rate 0 at the first block to `drop` at the last).

    LayerScale starts at 0.1, as Touvron et al. (2021) have it for networks of so few blocks.

    For images from 8×8 on, made for 32×32; 637,090 parameters for 32×32×3 and 10 classes. Training needs a key.
    """

    def block(features, rate):
        layer = sequential(
            Conv2D(features, 7, groups=features), LayerNorm(),
            Dense(4 * features), GELU(approximate=False), Dense(features),
            LayerScale(0.1), StochasticDepth(rate),
        )  # fmt: skip
        return residual(layer, name="block")

    # Each stage halves the image: the first by patches of 2×2 pixels (the paper's 4×4 are for large images).
    first, second, third = (
        [block(factor * width, drop * (2 * stage + i) / 5) for i in (0, 1)] for stage, factor in enumerate((1, 2, 4))
    )
    return sequential(
        Conv2D(width, 2, stride=2), LayerNorm(), *first,
        LayerNorm(), Conv2D(2 * width, 2, stride=2), *second,
        LayerNorm(), Conv2D(4 * width, 2, stride=2), *third,
        GlobalAvgPool(), LayerNorm(), Dense(classes),
        name="convnext",
    )  # fmt: skip


def _conv(
    features: int,
    size: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], Layer] | None = ReLU,
) -> tuple[Layer, ...]:
    """Convolution, batch normalisation, whose shift takes the bias's place, and the activation."""
    convolution = Conv2D(features, size, stride=stride, groups=groups, bias=False)
    return convolution, BatchNorm(), *(() if activation is None else (activation(),))
