"""What joins branches: sums, channels side by side, channels scaled."""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.rule import Array, Rule, Static
from jaxcnn.rules.dtypes import require_equal_floats, wide


def add_forward(*xs: Array) -> tuple[Array, Static]:
    """The sum of arrays of one shape.

    Args:
      xs: at least one; any shape, any floating dtype from 16 bits, the same for all.

    Returns:
      An array of their shape and dtype.

    Raises:
      ValueError: shapes that are not equal, no array. TypeError: dtypes that are not floating or not equal.

    Source: He et al., "Deep residual learning for image recognition", CVPR 2016, equation 1.

    >>> add(jnp.ones(2), jnp.array([1.0, 2.0]), jnp.ones(2))
    Array([3., 4.], dtype=float32)
    """
    shapes = _shapes("add", xs)
    if len(set(shapes)) > 1:
        raise ValueError(f"add: shapes must be equal, got {', '.join(map(str, shapes))}")
    return functools.reduce(operator.add, map(jnp.asarray, xs)), Static(len(xs))


# y = x_1 + x_2 + …: each has derivative 1 and gets the whole of dy.
def add_backward(residuals: Static, dy: Array):
    return (dy,) * residuals.value


add = Rule(add_forward, add_backward, "add")


def concatenate_forward(*xs: Array) -> tuple[Array, Static]:
    """Arrays side by side: the channels of the first, then those of the second, and so on.

    Args:
      xs: at least one, (..., C_i) each; but for the channels of one shape; any floating dtype from 16 bits, the
        same for all.

    Returns:
      (..., C_1 + C_2 + …), of their dtype.

    Raises:
      ValueError: shapes that do not fit, no array. TypeError: dtypes that are not floating or not equal.

    Source: Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 4.

    >>> concatenate(jnp.ones((1, 2)), jnp.zeros((1, 1)))
    Array([[1., 1., 0.]], dtype=float32)
    """
    shapes = _shapes("concatenate", xs)
    if () in shapes or len({shape[:-1] for shape in shapes}) > 1:
        raise ValueError(f"concatenate: shapes must be equal but for the channels, got {', '.join(map(str, shapes))}")
    return jnp.concatenate(xs, axis=-1), Static(tuple(shape[-1] for shape in shapes))


# y = (x_1, x_2, …): each value of y is one value of one x, so each x gets its own channels of dy.
def concatenate_backward(residuals: Static, dy: Array):
    ends = np.cumsum(residuals.value)
    return tuple(dy[..., end - channels : end] for channels, end in zip(residuals.value, ends, strict=True))


concatenate = Rule(concatenate_forward, concatenate_backward, "concatenate")


class ScaleChannelsResiduals(NamedTuple):
    x: Array  # as given; dscale correlates it with dy
    scale: Array  # as given; dx is dy times it


def scale_channels_forward(x: Array, scale: Array) -> tuple[Array, ScaleChannelsResiduals]:
    """Each channel times a factor: one for all samples, or each sample its own.

    Args:
      x: (N, ..., C), N×H×W×C for example, floating.
      scale: (C,) or (N, C), of x's dtype.

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: shapes that do not fit. TypeError: dtypes that are not floating or not equal.

    Source: Hu et al., "Squeeze-and-excitation networks", CVPR 2018, equation 4, a factor for each sample and channel;
    Touvron et al., "Going deeper with image transformers", ICCV 2021, equation 3, one for each channel.

    >>> scale_channels(jnp.ones((1, 2, 2)), jnp.array([[3.0, 4.0]]))
    Array([[[3., 4.],
            [3., 4.]]], dtype=float32)
    """
    require_equal_floats("scale_channels", x=x, scale=scale)
    if x.ndim < 2 or scale.shape not in (x.shape[-1:], (x.shape[0], x.shape[-1])):
        raise ValueError(
            f"scale_channels: x must be (N, ..., C) and scale (C,) or (N, C), got shapes {x.shape} and {scale.shape}"
        )
    return x * _beside(scale, x), ScaleChannelsResiduals(x, scale)


# y_c = s_c x_c at every place: dx_c = s_c dy_c, and ds_c = Σ x_c dy_c over the places that share s_c; over the samples
# too where all share it.
def scale_channels_backward(residuals: ScaleChannelsResiduals, dy: Array):
    x, scale = residuals
    shared = range(1 if scale.ndim == 2 else 0, x.ndim - 1)
    dscale = (wide(x) * wide(dy)).sum(tuple(shared))
    return dy * _beside(scale, x), dscale.astype(scale.dtype)


scale_channels = Rule(scale_channels_forward, scale_channels_backward, "scale_channels", batch_axes=(0, None))


def _beside(scale: Array, x: Array) -> jax.Array:
    """In a shape that fits x's."""
    samples = scale.shape[:-1] or (1,)
    return jnp.reshape(scale, (*samples, *(1,) * (x.ndim - 2), scale.shape[-1]))


def _shapes(function: str, xs: tuple[Array, ...]) -> list[tuple[int, ...]]:
    if not xs:
        raise ValueError(f"{function}: got no array, at least one is required")
    require_equal_floats(function, **{f"xs[{i}]": x for i, x in enumerate(xs)})
    return [x.shape for x in xs]
