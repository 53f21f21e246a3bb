"""Errata of part 1, forward propagation: shapes that are announced, and code that is printed.

Nothing is differentiated here: the third value is what plain NumPy gives.
"""

from __future__ import annotations

import functools

import numpy as np
from erratum import Array, Case, Erratum, Three, erratum, run_printed

from jaxcnn import conv2d, flatten, max_pool, relu

ERRATA: list[Erratum] = []
enter = functools.partial(erratum, ERRATA, against="NumPy")

MAXPOOL_HW = """\
def maxpoolHW(im):
    H,W = im.shape
    out = np.zeros((H//2,W//2))
    for r in range(0,H,2):
        for c in range(0,W,2):
            out[r//2,c//2] = np.max(im[r:r+2,c:c+2])
    return out
"""

MAXPOOL_HWC = """\
def maxpoolHWC(im):
    H,W,C = im.shape
    out = np.zeros((H//2,W//2,C))
    for r in range(0,H,2):
        for c in range(0,W,2):
            for j in range(?):
                out[r//2,c//2,j] = np.max(im[r:r+2,c:c+2,j])
    return out
"""

RELU = """\
def ReLU(im):
    return (img>0)*img
"""

FLATTEN_HW = """\
def flatten(im):
    H,W = im.shape
    return img.reshape(H*W)
"""


def even_image(case: Case) -> Array:
    """H×W, both even, H ≠ W."""
    return case.rng().normal(size=(2 + 2 * case.size, 4 + 2 * case.size))


def odd_image(case: Case) -> Array:
    """H×W, both odd."""
    return case.rng().normal(size=(3 + 2 * case.size, 5 + 2 * case.size))


def filter_3x3(case: Case) -> Array:
    return case.rng().normal(size=(3, 3))


def padded_correlation(image: Array, kernel: Array) -> Array:
    """H×W with h×h, zeros around the image: H×W."""
    (H, W), h = image.shape, len(kernel)
    padded = np.pad(image, ((h - 1) // 2, h // 2))
    return np.array([[np.sum(padded[r : r + h, c : c + h] * kernel) for c in range(W)] for r in range(H)])


def pooled(image: Array) -> Array:
    """H×W to H//2×W//2 by reshaping: the four values of a window side by side."""
    H, W = image.shape[0] // 2, image.shape[1] // 2
    return image[: 2 * H, : 2 * W].reshape(H, 2, W, 2).max((1, 3))


@enter(
    "Convolution", "lines 5–11", "imprecise",
    "one matrix convolved by another, output `H×W`",
    "only with zeros added around the image, `(h-1)//2` before and `h//2` after; without, `(H-h+1)×(W-h+1)`",
)  # fmt: skip
def convolution_output_size(case: Case) -> Three:
    image, kernel = odd_image(case), filter_3x3(case)
    return (
        lambda: conv2d(image, kernel, padding="VALID"),
        lambda: conv2d(image, kernel, padding="SAME"),
        lambda: padded_correlation(image, kernel),
    )


@enter(
    "Convolution", "line 11", "error",
    "`def convNHWNpad(im,f):`", "a function with a body: `jaxcnn.conv2d`", raises="IndentationError",
)  # fmt: skip
def convolution_without_body(case: Case) -> Three:
    image, kernel = odd_image(case), filter_3x3(case)
    return (
        lambda: run_printed("def convNHWNpad(im,f):", 11)["convNHWNpad"](image, kernel),
        lambda: conv2d(image, kernel),
        lambda: padded_correlation(image, kernel),
    )


@enter(
    "Max-Pooling", "lines 15, 27, 40", "error",
    "output `W/2×H/2`", "`H/2×W/2`, which is what the code below it returns",
)  # fmt: skip
def pooling_output_size(case: Case) -> Three:
    image = even_image(case)
    H, W = image.shape
    return lambda: (W // 2, H // 2), lambda: max_pool(image).shape, lambda: pooled(image).shape


@enter(
    "Max-Pooling", "lines 21–23, 33–36", "error",
    "`range(0,H,2)`, `range(0,W,2)` at odd `H` or `W`", "`range(0,H-1,2)`, `range(0,W-1,2)`: whole windows only",
    raises="IndexError",
)  # fmt: skip
def pooling_odd_sizes(case: Case) -> Three:
    image = odd_image(case)
    return (
        lambda: run_printed(MAXPOOL_HW, 18)["maxpoolHW"](image),
        lambda: max_pool(image),
        lambda: pooled(image),
    )


@enter(
    "Max-Pooling", "lines 20, 32", "imprecise",
    "`np.zeros((H//2,W//2))`: float64 for every image", "`np.zeros((H//2,W//2), im.dtype)`",
)  # fmt: skip
def pooling_dtype(case: Case) -> Three:
    image = even_image(case).astype(np.float32)
    return (
        lambda: run_printed(MAXPOOL_HW, 18)["maxpoolHW"](image),
        lambda: max_pool(image),
        lambda: pooled(image),
    )


@enter("Max-Pooling", "line 35", "error", "`for j in range(?):`", "`for j in range(C):`", raises="SyntaxError")
def pooling_channel_range(case: Case) -> Three:
    image: Array = np.stack([even_image(case), -even_image(case)], axis=-1)
    return (
        lambda: run_printed(MAXPOOL_HWC, 30)["maxpoolHWC"](image),
        lambda: max_pool(image),
        lambda: np.stack([pooled(image[..., 0]), pooled(image[..., 1])], axis=-1),
    )


@enter(
    "ReLU Activation", "lines 48, 52", "error",
    "`def ReLU(im): return (img>0)*img`", "`im` for `img`", raises="NameError",
)  # fmt: skip
def relu_name(case: Case) -> Three:
    image = even_image(case)
    return lambda: run_printed(RELU, 47)["ReLU"](image), lambda: relu(image), lambda: np.maximum(image, 0)


@enter(
    "ReLU Activation", "lines 48, 52", "error",
    "`(im>0)*im`, which is NaN at -inf", "`np.where(im <= 0, 0, im)`: 0 at -inf, and NaN stays NaN",
)  # fmt: skip
def relu_at_minus_infinity(case: Case) -> Three:
    image = even_image(case)
    image[0, 0] = -np.inf

    def printed():
        with np.errstate(invalid="ignore"):
            return run_printed(RELU.replace("img", "im"), 47)["ReLU"](image)

    return printed, lambda: relu(image), lambda: np.maximum(image, 0)


@enter(
    "Flatten", "lines 64, 72, 80", "error",
    "`def flatten(im): ... return img.reshape(H*W)`", "`im` for `img`", raises="NameError",
)  # fmt: skip
def flatten_name(case: Case) -> Three:
    image = even_image(case)
    return (
        lambda: run_printed(FLATTEN_HW, 62)["flatten"](image),
        lambda: flatten(image),
        lambda: image.reshape(1, -1),
    )


@enter(
    "Flatten", "lines 58–73", "error",
    "output `1×HW`, but `reshape(H*W)` gives a vector `HW`", "`reshape(1,H*W)`, and `reshape(1,H*W*C)`",
)  # fmt: skip
def flatten_output_shape(case: Case) -> Three:
    image = even_image(case)
    return (
        lambda: run_printed(FLATTEN_HW.replace("img", "im"), 62)["flatten"](image),
        lambda: flatten(image),
        lambda: image.reshape(1, -1),
    )
