"""Layers that only arrange values anew."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.rule import Array, Rule, Static
from jaxcnn.rules.window import is_whole


class FlattenResiduals(NamedTuple):
    shape: Static  # of the input; the values are not needed


def flatten_forward(x: Array) -> tuple[Array, FlattenResiduals]:
    """Each image as one row.

    H×W becomes 1×HW, H×W×C becomes 1×HWC, N×H×W×C becomes N×HWC, row-major. (The source announces 1×HW and returns
    a vector HW; here the row it announces.)

    Args:
      x: any of the three, any dtype.

    Returns:
      The rows, of x's dtype.

    Raises:
      ValueError: another number of axes.

    Source: the course text, part 1 "Flatten".

    >>> flatten(jnp.zeros((5, 2, 3, 4))).shape, flatten(jnp.zeros((2, 3))).shape
    ((5, 24), (1, 6))
    """
    if x.ndim not in (2, 3, 4):
        raise ValueError(f"flatten: x must be H×W, H×W×C or N×H×W×C, got shape {x.shape}")
    images = x.shape[0] if x.ndim == 4 else 1
    return x.reshape(images, math.prod(x.shape[x.ndim // 4 :])), FlattenResiduals(Static(x.shape))


# Every value keeps its place in row-major order, so dL/dx is dL/dy in x's shape: g = 1, and no weights.
def flatten_backward(residuals: FlattenResiduals, dy: Array):
    shape = residuals.shape.value
    N, H, W, C = shape if len(shape) == 4 else (1, *shape, 1)[:4]
    return (unflatten(dy, N, H, W, C).reshape(shape),)


flatten = Rule(flatten_forward, flatten_backward, "flatten", batch_axes=(0,))


def unflatten(a: Array, N: int, H: int, W: int, C: int) -> jax.Array:
    """Rows back to images: N×HWC becomes N×H×W×C, the inverse of `flatten` and its backward pass.

    Args:
      a: N·H·W·C values in any shape, any dtype.
      N, H, W, C: whole numbers.

    Returns:
      N×H×W×C, of a's dtype.

    Raises:
      ValueError: a holds another number of values.

    Source: the course text, part 2 "Backward Flatten".

    >>> unflatten(jnp.zeros((5, 24)), 5, 2, 3, 4).shape
    (5, 2, 3, 4)
    """
    a = jnp.asarray(a)
    if not all(is_whole(size) and size >= 0 for size in (N, H, W, C)):
        raise ValueError(f"unflatten: N, H, W and C must be whole numbers of at least 0, got {(N, H, W, C)}")
    if a.size != N * H * W * C:
        needed = f"N·H·W·C = {N}·{H}·{W}·{C} = {N * H * W * C}"
        raise ValueError(f"unflatten: a must hold {needed} values, got shape {a.shape}")
    return a.reshape(N, H, W, C)
