"""two_conv and ResNet-20 in plain jax, with nothing of the library's: what `jax.value_and_grad` is measured on.

The parameters are those of `jaxcnn.models`, in the same nested dict, so that both start from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def training_step(logits_of: Callable, learning_rate: float) -> Callable:
    """(params, images, labels) -> (params, loss): one step of gradient descent by `jax.value_and_grad`."""

    def loss(params, images, labels):
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits_of(params, images)), labels[:, None], axis=1)
        return -chosen.mean()

    def step(params, images, labels):
        value, gradient = jax.value_and_grad(loss)(params, images, labels)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient), value

    return step


def two_conv(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """`jaxcnn.models.two_conv`: N×H×W×C to logits."""
    for name in ("conv2d_1", "conv2d_2"):
        x = jax.nn.relu(convolution(x, params[name]["filters"]) + params[name]["bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.sigmoid(x @ params["dense_1"]["weights"] + params["dense_1"]["bias"])
    return x @ params["dense_2"]["weights"] + params["dense_2"]["bias"]


def resnet20(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """`jaxcnn.models.resnet20` in training, without the running statistics: N×H×W×C to logits."""
    x = jax.nn.relu(normalized(convolution(x, params["conv2d"]["filters"]), params["batch_norm"]))
    for i in range(1, 10):
        block = params[f"block_{i}"]["residual"]
        layer, stride = block["layer"], 2 if i in (4, 7) else 1
        y = convolution(x, layer["conv2d_1"]["filters"], stride)
        y = jax.nn.relu(normalized(y, layer["batch_norm_1"]))
        y = normalized(convolution(y, layer["conv2d_2"]["filters"]), layer["batch_norm_2"])
        if stride == 2:
            x = convolution(x, block["shortcut"]["conv2d"]["filters"], stride)
            x = normalized(x, block["shortcut"]["batch_norm"])
        x = jax.nn.relu(x + y)
    return x.mean((1, 2)) @ params["dense"]["weights"] + params["dense"]["bias"]


def convolution(x: jax.Array, filters: jax.Array, stride: int = 1) -> jax.Array:
    """The filters are n×h×w×C, as the library has them."""
    return lax.conv_general_dilated(x, filters, (stride, stride), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC"))


def normalized(x: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    """Batch normalisation by the batch's own statistics."""
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * lax.rsqrt(variance + 1e-5) * params["scale"] + params["shift"]
