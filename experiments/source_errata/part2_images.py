"""Errata of part 2, backward propagation: flatten, max-pooling and convolution.

The plain forward passes that autodiff runs through are written here, not the library's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from erratum import Array, Case, Erratum, Three, erratum, run_printed
from jax import lax

from jaxcnn import Dense, Flatten, MaxPool, conv2d, flatten, g_maxpool, max_pool, relu, rotate180, sequential, unflatten

ERRATA: list[Erratum] = []
enter = functools.partial(erratum, ERRATA)

G_MAXPOOL = """\
def g_maxpool(z_l, a_mp):  #a_mp is the output of maxpooling
    g = np.repeat(a_mp,2, axis=1) #duplicate the columns
    g = np.repeat(g,2, axis=0) #duplicate the rows
    g = (g==z_l)*1. #z_l is the input to max-pooling
    return g
"""


@functools.partial(jax.jit, static_argnums=0)
def gradients(function: Callable, *arrays: Any, dy: Any) -> tuple:
    """The cotangents of the arrays: of a plain function by autodiff, of a rule by its hand-written backward pass."""
    return jax.vjp(function, *arrays)[1](dy)


def plain_convolution(image, filters):
    """N×H×W×C with n×h×h×C, zeros around the image: N×H×W×n."""
    H, W, h = *image.shape[1:3], filters.shape[1]
    padded = jnp.pad(image, ((0, 0), *[((h - 1) // 2, h // 2)] * 2, (0, 0)))
    rows, columns = (np.arange(size)[:, None] + np.arange(h) for size in (H, W))
    patches = padded[:, rows[:, None, :, None], columns[None, :, None, :]]  # N×H×W×h×h×C
    return jnp.einsum("NHWijC,nijC->NHWn", patches, filters)


def plain_convolution_2d(image, kernel):
    """H×W with h×h: H×W."""
    return plain_convolution(image[None, :, :, None], kernel[None, :, :, None])[0, :, :, 0]


def plain_relu_convolution(image, kernel):
    return jax.nn.relu(plain_convolution_2d(image, kernel))


def plain_flatten_dense(images, W):
    """N×H×W×C with HWC×out: N×out."""
    return images.reshape(len(images), -1) @ W


def plain_pooling(image):
    """H×W to H//2×W//2; the gradient goes to the first maximum of a window."""
    return lax.reduce_window(image, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID")


def printed_mask(z_l, a_mp) -> Array:
    """The source's `g_maxpool` as it stands there, in NumPy."""
    return run_printed(G_MAXPOOL, 168)["g_maxpool"](np.asarray(z_l), np.asarray(a_mp))


def pooling_input(case: Case, odd: int = 0) -> Array:
    """H×W, even or odd, without ties."""
    return case.rng().normal(size=(2 + 2 * case.size + odd, 4 + 2 * case.size + odd))


def spread(dy: Array) -> Array:
    """H×W to 2H×2W: each value to the four places of its window."""
    return np.repeat(np.repeat(dy, 2, axis=1), 2, axis=0)


def tail_of_network(case: Case) -> tuple[Array, dict, Array]:
    """The output of max-pooling, N×H×W×C; the parameters of max-pooling, flatten and a dense layer, by layer; ∂L/∂z of
    the dense layer, N×5.
    """
    rng, (H, W, C) = case.rng(), (2, 1 + case.size, 3)
    params, _, _ = sequential(MaxPool(), Flatten(), Dense(5)).init(jax.random.key(case.seed), (2 * H, 2 * W, C))
    return rng.normal(size=(2, H, W, C)), params, rng.normal(size=(2, 5))


@enter(
    "Backward Flatten", "line 135", "imprecise",
    "`∂L/∂a^l = ∂L/∂a^(l+1) W^l` of a layer without weights", "`W^(l+1)`, those of the dense layer above, transposed",
    raises="KeyError",
)  # fmt: skip
def flatten_weights(case: Case) -> Three:
    pooled, params, delta = tail_of_network(case)
    W = params["dense"]["weights"]
    return (
        lambda: delta @ params["flatten"]["weights"].T,
        lambda: unflatten(delta @ W.T, *pooled.shape),
        lambda: gradients(plain_flatten_dense, pooled, W, dy=delta)[0],
    )


@enter(
    "Backward Max-pool", "line 162", "imprecise",
    "`g^l = 1` where `Z^l = a^l`, of H×W and H/2×W/2", "a^l spread over its windows first, as `g_maxpool` does",
    raises="ValueError",
)  # fmt: skip
def pooling_mask_sizes(case: Case) -> Three:
    z = pooling_input(case)
    a: Array = np.asarray(max_pool(z))
    return (
        lambda: np.where(z == a, 1.0, 0.0),
        lambda: g_maxpool(z, a),
        lambda: gradients(plain_pooling, z, dy=np.ones_like(a))[0],
    )


@enter(
    "Backward Max-pool", "lines 144, 162, 171", "error",
    "`g = 1` for every value that matches the max",
    "for one of them (or equal shares): at a tie of k values the mask counts the gradient k times",
)  # fmt: skip
def pooling_ties(case: Case) -> Three:
    z = case.rng().integers(2, size=pooling_input(case).shape).astype(float)
    z[:2, :2] = 1  # a window of four equal values, whatever the seed
    a = np.asarray(max_pool(z))
    dy = case.rng().normal(size=a.shape)
    return (
        lambda: printed_mask(z, a) * spread(dy),
        lambda: gradients(max_pool, z, dy=dy)[0],
        lambda: gradients(plain_pooling, z, dy=dy)[0],
    )


@enter(
    "Backward Max-pool", "line 163", "error",
    "`∂L/∂a^l = ∂L/∂a^(l+1) W^(l+1)`, where layer l + 1 is the flatten layer",
    "no W: `unflatten` alone; W has been used in line 135", raises="KeyError",
)  # fmt: skip
def pooling_weights(case: Case) -> Three:
    pooled, params, delta = tail_of_network(case)
    W = params["dense"]["weights"]
    d_flat = delta @ W.T
    return (
        lambda: d_flat @ params["flatten"]["weights"].T,
        lambda: gradients(flatten, pooled, dy=d_flat)[0],
        lambda: gradients(plain_flatten_dense, pooled, W, dy=delta)[0],
    )


@enter(
    "Backward Max-pool", "line 163", "imprecise",
    "`∂L/∂a^l = ∂L/∂a^(l+1) ...` without `g^l`, of H/2×W/2",
    "where ∂L/∂a^l means ∂L/∂z^l, as in lines 89–127: `g^l ⊙ ∂L/∂a^l`, spread over the windows, H×W",
)  # fmt: skip
def pooling_mask_omitted(case: Case) -> Three:
    z = pooling_input(case)
    dy = case.rng().normal(size=max_pool(z).shape)
    return (
        lambda: dy,
        lambda: g_maxpool(z, max_pool(z)) * spread(dy),
        lambda: gradients(plain_pooling, z, dy=dy)[0],
    )


@enter(
    "Backward Max-pool", "lines 168–172", "error",
    "`g==z_l` at odd H or W", "zeros in the last row and column: they belong to no window", raises="ValueError",
)  # fmt: skip
def pooling_mask_odd_sizes(case: Case) -> Three:
    z = pooling_input(case, odd=1)
    a: Array = np.asarray(max_pool(z))
    return (
        lambda: printed_mask(z, a),
        lambda: g_maxpool(z, a),
        lambda: gradients(plain_pooling, z, dy=np.ones_like(a))[0],
    )


@enter(
    "Backward Max-pool", "line 171", "imprecise",
    "`(g==z_l)*1.`: float64 for every image", "`(g==z_l).astype(z_l.dtype)`",
)  # fmt: skip
def pooling_mask_dtype(case: Case) -> Three:
    z = pooling_input(case).astype(np.float32)
    a: Array = np.asarray(max_pool(z))
    return (
        lambda: printed_mask(z, a),
        lambda: g_maxpool(z, a),
        lambda: gradients(plain_pooling, z, dy=np.ones_like(a))[0],
    )


def image_kernel_dy(case: Case, h: int = 3) -> tuple[Array, Array, Array]:
    """H×W, h×h, H×W."""
    rng, shape = case.rng(), (4 + case.size, 5 + case.size)
    return rng.normal(size=shape), rng.normal(size=(h, h)), rng.normal(size=shape)


def batch_filters_dy(case: Case, n: int, C: int) -> tuple[Array, Array, Array]:
    """N×H×W×C, n×3×3×C, N×H×W×n."""
    rng, NHW = case.rng(), (2, 3 + case.size, 4 + case.size)
    return rng.normal(size=(*NHW, C)), rng.normal(size=(n, 3, 3, C)), rng.normal(size=(*NHW, n))


@enter(
    "Backward Convolution", "lines 142–179", "imprecise",
    "from max-pooling straight to the convolution: no backward pass of the ReLU between them",
    "`∂L/∂z = ∂L/∂a ⊙ [z > 0]` before `∂L/∂W`",
)  # fmt: skip
def relu_backward_missing(case: Case) -> Three:
    image, kernel, dy = image_kernel_dy(case)
    z = conv2d(image, kernel)
    return (
        lambda: gradients(conv2d, image, kernel, dy=dy)[1],
        lambda: gradients(conv2d, image, kernel, dy=gradients(relu, z, dy=dy)[0])[1],
        lambda: gradients(plain_relu_convolution, image, kernel, dy=dy)[1],
    )


@enter(
    "Backward Convolution", "line 177", "error",
    "`dL/da^l = convolution(W, dL/da^(l+1))`", "with W turned by 180 degrees (a mathematical convolution, line 183)",
)  # fmt: skip
def convolution_rotation(case: Case) -> Three:
    image, kernel, dy = image_kernel_dy(case)
    return (
        lambda: conv2d(dy, kernel),
        lambda: conv2d(dy, rotate180(kernel)),
        lambda: gradients(plain_convolution_2d, image, kernel, dy=dy)[0],
    )


@enter(
    "Backward Convolution", "line 177", "error",
    "`convolution(W, dL/da^(l+1))`: the filter first, so the output has the filter's size",
    "`convolution(dL/da^(l+1), W)`: image first, as in `convNHWNpad(im,f)`; it does not commute",
)  # fmt: skip
def convolution_argument_order(case: Case) -> Three:
    image, kernel, dy = image_kernel_dy(case)
    return (
        lambda: conv2d(rotate180(kernel), dy),
        lambda: gradients(conv2d, image, kernel, dy=dy)[0],
        lambda: gradients(plain_convolution_2d, image, kernel, dy=dy)[0],
    )


@enter(
    "Backward Convolution", "line 177", "error",
    "`W` with its axes n×h×h×C", "in and out channels exchanged, C×h×h×n (as printed it runs only where n = C)",
)  # fmt: skip
def convolution_channels(case: Case) -> Three:
    images, filters, dy = batch_filters_dy(case, n=3, C=3)
    return (
        lambda: conv2d(dy, rotate180(filters)),
        lambda: conv2d(dy, rotate180(filters).transpose(3, 1, 2, 0)),
        lambda: gradients(plain_convolution, images, filters, dy=dy)[0],
    )


@enter(
    "Backward Convolution", "lines 5–11, 177", "imprecise",
    "the same padded convolution backward, for every h×h",
    "for even h the zeros change sides: `h//2` before and `(h-1)//2` after",
)  # fmt: skip
def convolution_even_filters(case: Case) -> Three:
    image, kernel, dy = image_kernel_dy(case, h=2)
    return (
        lambda: conv2d(dy, rotate180(kernel)),
        lambda: conv2d(dy, rotate180(kernel), padding=((1, 0), (1, 0))),
        lambda: gradients(plain_convolution_2d, image, kernel, dy=dy)[0],
    )


@enter(
    "Backward Convolution", "line 179", "error",
    "`dL/dW^l = convolution(a^(l-1), dL/da^l)`, output H×W",
    "a^(l-1) padded as in the forward pass, then no padding: h×h",
)  # fmt: skip
def filter_gradient_size(case: Case) -> Three:
    image, kernel, dy = image_kernel_dy(case)
    return (
        lambda: conv2d(image, dy),
        lambda: conv2d(image, dy, padding=((1, 1), (1, 1))),
        lambda: gradients(plain_convolution_2d, image, kernel, dy=dy)[1],
    )


@enter(
    "Backward Convolution", "line 179", "error",
    "`convolution(a^(l-1), dL/da^l)` of N×H×W×C and N×H×W×n",
    "channels in the place of images and images in that of channels, C×H×W×N and n×H×W×N: it sums over the images",
    raises="ValueError",
)  # fmt: skip
def filter_gradient_axes(case: Case) -> Three:
    images, filters, dy = batch_filters_dy(case, n=4, C=3)
    padding = ((1, 1), (1, 1))

    def corrected():
        a, d = images.transpose(3, 1, 2, 0), dy.transpose(3, 1, 2, 0)
        return conv2d(a, d, padding=padding).transpose(3, 1, 2, 0)  # C×h×h×n to n×h×h×C

    return (
        lambda: conv2d(images, dy, padding=padding),
        corrected,
        lambda: gradients(plain_convolution, images, filters, dy=dy)[1],
    )
