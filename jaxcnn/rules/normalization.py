"""Normalisation: values brought to mean 0 and variance 1 together, then scaled and shifted channel by channel.

The statistics are those of the values themselves, so that each value moves all the others it is normalised with. They
are computed in float32 at least, the variance from the differences to the mean: E[x²] - E[x]² loses all digits where
the mean is large.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats, require_number
from jaxcnn.rules.window import is_whole


class NormalizationResiduals(NamedTuple):
    x: Array  # as given; the normalised values are computed again
    scale: Array  # as given, for dx
    mean: Array  # of the values normalised together, float32 or wider: small, and spares passes over x
    variance: Array  # likewise, biased


def batch_norm_forward(
    x: Array, scale: Array, shift: Array, *, epsilon: float = 1e-5
) -> tuple[Array, NormalizationResiduals]:
    """Batch normalisation by the batch's own statistics: each channel over all samples and places.

    The samples of a batch depend on each other: half of a batch gives other values than the same samples in the whole
    one. So `batch_axes` names no axis of samples. Inside `jax.shard_map` the statistics are those of the whole batch,
    of all devices along the mesh axes over which x varies. With `check_vma=False`, and under `jax.pmap`, jax does not
    tell these axes: each device then has the statistics of its own samples.

    Args:
      x: (N, ..., C), N×H×W×C for example, floating, at least one value a channel.
      scale: (C,), of x's dtype.
      shift: (C,), of x's dtype.
      epsilon: added to the variance, positive.

    Returns:
      scale · (x - mean) / √(variance + epsilon) + shift, of x's shape and dtype. The variance is the biased one, the
      mean of the squares.

    Raises:
      ValueError: shapes that do not fit, no values, epsilon not positive. TypeError: dtypes that are not floating or
        not equal, epsilon no number.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithm 1.

    >>> x = jnp.array([[1.0, -10.0], [3.0, 30.0]])
    >>> [[round(float(v), 3) for v in row] for row in batch_norm(x, jnp.ones(2), jnp.array([0.0, 0.5]))]
    [[-1.0, -0.5], [1.0, 1.5]]
    """
    _check("batch_norm", x, epsilon, scale=scale, shift=shift)
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"batch_norm: x must be (N, ..., C) and not empty, got shape {x.shape}")
    mean, variance = batch_statistics(x)
    return _normalised(x, scale, shift, mean, variance, epsilon, x.shape)


# z_i = (x_i - μ) / σ with μ = Σ x_k / n, σ² = Σ (x_k - μ)² / n + ε and y_i = γ z_i + β; i, k run over the n values that
# are normalised together. dγ = Σ dy_i z_i and dβ = Σ dy_i. With dz = γ dy, and since dμ/dx_k = 1/n, dσ/dx_k = z_k / n,
#
#     dz_i/dx_k = ([i = k] - 1/n - z_i z_k / n) / σ,      so      dx_k = (dz_k - mean(dz) - z_k mean(dz z)) / σ.
#
# γ is the channel's own: mean(dz) = γ mean(dy) and mean(dz z) = γ mean(dy z), so the sums that make dβ and dγ are all
# that is needed. The means are over the whole batch, here and on the other devices; dγ and dβ are this device's part.
def batch_norm_backward(residuals: NormalizationResiduals, dy: Array, *, epsilon):
    x, scale, mean, variance = residuals
    inverse = lax.rsqrt(variance + epsilon)
    centred, dy = x - mean, dy.astype(mean.dtype)
    dshift, dscale = _by_channel(dy), _by_channel(dy * (centred * inverse))  # in this order nothing large is made
    sums, over = jnp.stack([dshift, dscale]), _mesh_axes(x)
    mean_dy, mean_dy_z = (lax.pmean(sums, over) if over else sums) * (dscale.size / dy.size)
    dx = (dy - mean_dy - centred * (mean_dy_z * inverse)) * (scale * inverse)
    return tuple(d.astype(x.dtype) for d in (dx, dscale, dshift))


batch_norm = Rule(batch_norm_forward, batch_norm_backward, "batch_norm", batch_axes=(None, None, None))


def batch_statistics(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each channel of (N, ..., C), (C,) each, as `batch_norm` computes them.

    >>> batch_statistics(jnp.array([[1.0, 0.0], [3.0, 0.0]]))
    (Array([2., 0.], dtype=float32), Array([1., 0.], dtype=float32))
    """
    channels = x.shape[-1:]
    mean, variance = _statistics(x, tuple(range(x.ndim - 1)), _mesh_axes(x))
    return mean.reshape(channels), variance.reshape(channels)


def layer_norm_forward(
    x: Array, scale: Array, shift: Array, *, epsilon: float = 1e-6
) -> tuple[Array, NormalizationResiduals]:
    """Layer normalisation: each sample, at each place, over its channels.

    Args:
      x: (..., C), floating.
      scale: (C,), of x's dtype.
      shift: (C,), of x's dtype.
      epsilon: added to the variance, positive.

    Returns:
      scale · (x - mean) / √(variance + epsilon) + shift, of x's shape and dtype.

    Raises:
      ValueError: shapes that do not fit, epsilon not positive. TypeError: dtypes that are not floating or not equal,
        epsilon no number.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016, equation 4.

    >>> layer_norm(jnp.array([1.0, 3.0, 1.0, 3.0]), jnp.full(4, 2.0), jnp.zeros(4)).round(3)
    Array([-2.,  2., -2.,  2.], dtype=float32)
    """
    _check("layer_norm", x, epsilon, scale=scale, shift=shift)
    return _normalised(x, scale, shift, *_statistics(x, (-1,)), epsilon, x.shape)


# As for batch_norm, the n values that are normalised together being the channels; each has a γ of its own, dz = γ dy.
# dγ and dβ are sums over the samples and places.
def layer_norm_backward(residuals: NormalizationResiduals, dy: Array, *, epsilon):
    return _pulled(residuals, dy, epsilon, residuals.x.shape, (-1,))


layer_norm = Rule(layer_norm_forward, layer_norm_backward, "layer_norm", batch_axes=(0, None, None))


def group_norm_forward(
    x: Array, scale: Array, shift: Array, *, groups: int, epsilon: float = 1e-6
) -> tuple[Array, NormalizationResiduals]:
    """Group normalisation: each sample over its places and the channels of one group.

    Args:
      x: N×H×W×C, floating.
      scale: (C,), of x's dtype.
      shift: (C,), of x's dtype.
      groups: how many groups of neighbouring channels; it divides C. With 1 the whole sample is normalised together.
      epsilon: added to the variance, positive.

    Returns:
      scale · (x - mean) / √(variance + epsilon) + shift, of x's shape and dtype.

    Raises:
      ValueError: shapes that do not fit, groups that do not divide C, epsilon not positive. TypeError: dtypes that are
        not floating or not equal, groups no whole number, epsilon no number.

    Source: Wu and He, "Group normalization", ECCV 2018, equation 7.

    >>> x = jnp.array([1.0, 3.0, 10.0, 30.0]).reshape(1, 1, 1, 4)
    >>> group_norm(x, jnp.ones(4), jnp.zeros(4), groups=2).round(3).ravel()
    Array([-1.,  1., -1.,  1.], dtype=float32)
    """
    _check_images("group_norm", x, epsilon, scale, shift)
    if not is_whole(groups):
        raise TypeError(f"group_norm: groups must be a whole number, got {groups!r}")
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"group_norm: groups must divide the {x.shape[-1]} channels, got {groups}")
    return _group_norm(x, scale, shift, groups, epsilon)


# As for batch_norm, the n values that are normalised together being those of one sample and group, H·W·(C / groups) of
# them; γ is the channel's own, dz = γ dy. dγ and dβ are sums over the samples and places.
def group_norm_backward(residuals: NormalizationResiduals, dy: Array, *, groups, epsilon):
    return _pulled(residuals, dy, epsilon, _grouped(residuals.x, groups), (1, 3))


group_norm = Rule(group_norm_forward, group_norm_backward, "group_norm", batch_axes=(0, None, None))


def instance_norm_forward(
    x: Array, scale: Array, shift: Array, *, epsilon: float = 1e-6
) -> tuple[Array, NormalizationResiduals]:
    """Instance normalisation: each sample and channel over its places; `group_norm` with a group for each channel.

    Args:
      x: N×H×W×C, floating.
      scale: (C,), of x's dtype.
      shift: (C,), of x's dtype.
      epsilon: added to the variance, positive.

    Returns:
      scale · (x - mean) / √(variance + epsilon) + shift, of x's shape and dtype.

    Raises:
      ValueError: shapes that do not fit, epsilon not positive. TypeError: dtypes that are not floating or not equal,
        epsilon no number.

    Source: Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016, equation 4.

    >>> x = jnp.array([1.0, 3.0, 10.0, 30.0]).reshape(1, 2, 2, 1)
    >>> [round(float(v), 2) for v in instance_norm(x, jnp.ones(1), jnp.zeros(1)).ravel()]
    [-0.87, -0.7, -0.09, 1.66]
    """
    _check_images("instance_norm", x, epsilon, scale, shift)
    return _group_norm(x, scale, shift, x.shape[-1], epsilon)


# As for group_norm, each channel being a group: the H·W values of one sample and channel are normalised together.
def instance_norm_backward(residuals: NormalizationResiduals, dy: Array, *, epsilon):
    return group_norm_backward(residuals, dy, groups=residuals.x.shape[-1], epsilon=epsilon)


instance_norm = Rule(instance_norm_forward, instance_norm_backward, "instance_norm", batch_axes=(0, None, None))


class RmsNormResiduals(NamedTuple):
    x: Array  # as given; the normalised values are computed again
    scale: Array  # as given, for dx


def rms_norm_forward(x: Array, scale: Array, *, epsilon: float = 1e-6) -> tuple[Array, RmsNormResiduals]:
    """Root-mean-square normalisation: each sample, at each place, by the size of its channels; no mean is taken off.

    Args:
      x: (..., C), floating.
      scale: (C,), of x's dtype.
      epsilon: added to the mean square, positive.

    Returns:
      scale · x / √(mean(x²) + epsilon), of x's shape and dtype.

    Raises:
      ValueError: shapes that do not fit, epsilon not positive. TypeError: dtypes that are not floating or not equal,
        epsilon no number.

    Source: Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019, equation 4.

    >>> [round(float(v), 3) for v in rms_norm(jnp.array([1.0, 7.0]), jnp.ones(2))]
    [0.2, 1.4]
    """
    _check("rms_norm", x, epsilon, scale=scale)
    z, _ = _rms(x, epsilon)
    return (z * scale).astype(x.dtype), RmsNormResiduals(x, scale)


# z_i = x_i / r with r² = Σ x_k² / n + ε, so dr/dx_k = x_k / (n r) = z_k / n, and y_i = γ_i z_i. With dz = γ dy,
#
#     dz_i/dx_k = ([i = k] - z_i z_k / n) / r,      so      dx_k = (dz_k - z_k mean(dz z)) / r;      dγ = Σ dy z.
def rms_norm_backward(residuals: RmsNormResiduals, dy: Array, *, epsilon):
    x, scale = residuals
    z, inverse = _rms(x, epsilon)
    dy = dy.astype(z.dtype)
    dz = dy * scale
    dx = inverse * (dz - z * (dz * z).mean(-1, keepdims=True))
    return dx.astype(x.dtype), _by_channel(dy * z).astype(x.dtype)


rms_norm = Rule(rms_norm_forward, rms_norm_backward, "rms_norm", batch_axes=(0, None))


def frozen_batch_norm_forward(
    x: Array, scale: Array, shift: Array, mean: Array, variance: Array, *, epsilon: float = 1e-5
) -> tuple[Array, NormalizationResiduals]:
    """Batch normalisation by given statistics: what a trained network does, each sample by itself.

    Args:
      x: (..., C), floating.
      scale: (C,), of x's dtype.
      shift: (C,), of x's dtype.
      mean: (C,), floating; it may be wider than x, as running statistics are kept.
      variance: (C,), of the mean's dtype, not negative.
      epsilon: added to the variance, positive.

    Returns:
      scale · (x - mean) / √(variance + epsilon) + shift, of x's shape and dtype; differentiable in all five.

    Raises:
      ValueError: shapes that do not fit, epsilon not positive. TypeError: dtypes that are not floating or not equal,
        epsilon no number.

    Source: Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithm 2.

    >>> one, zero = jnp.ones(1), jnp.zeros(1)
    >>> round(float(frozen_batch_norm(jnp.array([[7.0]]), one, zero, one, 4 * one)[0, 0]), 3)
    3.0
    """
    _check("frozen_batch_norm", x, epsilon, scale=scale, shift=shift)
    require_equal_floats("frozen_batch_norm", mean=mean, variance=variance)
    _check_channels("frozen_batch_norm", x, mean=mean, variance=variance)
    wide_mean, wide_variance = _wide(x, mean, variance)
    y, _ = _normalised(x, scale, shift, wide_mean, wide_variance, epsilon, x.shape)
    return y, NormalizationResiduals(x, scale, mean, variance)


# z = (x - μ) / σ with σ² = v + ε, and y = γ z + β, where μ and v are given. So dx = γ dy / σ, dγ = Σ dy z, dβ = Σ dy,
# dμ = -γ Σ dy / σ, and since dσ/dv = 1 / (2σ), dz/dv = -z / (2σ²): dv = -γ Σ dy z / (2σ²). The sums are over all
# samples and places.
def frozen_batch_norm_backward(residuals: NormalizationResiduals, dy: Array, *, epsilon):
    x, scale, mean, variance = residuals
    wide_mean, wide_variance = _wide(x, mean, variance)
    z, inverse = _z(x, wide_mean, wide_variance, epsilon)
    dy = dy.astype(z.dtype)
    dscale, dshift = _by_channel(dy * z), _by_channel(dy)
    dmean, dvariance = -scale * inverse * dshift, -scale * inverse**2 / 2 * dscale
    cotangents = dy * scale * inverse, dscale, dshift
    return *(c.astype(x.dtype) for c in cotangents), *(c.astype(mean.dtype) for c in (dmean, dvariance))


frozen_batch_norm = Rule(
    frozen_batch_norm_forward,
    frozen_batch_norm_backward,
    "frozen_batch_norm",
    batch_axes=(0, None, None, None, None),
)


def _group_norm(x, scale, shift, groups, epsilon) -> tuple[Array, NormalizationResiduals]:
    shape = _grouped(x, groups)
    return _normalised(x, scale, shift, *_statistics(x.reshape(shape), (1, 3)), epsilon, shape)


def _grouped(x: Array, groups: int) -> tuple[int, ...]:
    n, h, w, c = x.shape
    return n, h * w, groups, c // groups


def _statistics(x: Array, axes: tuple[int, ...], over: tuple[str, ...] = ()) -> tuple[Array, Array]:
    """Mean and biased variance over some axes, which stay with size 1, and over mesh axes."""
    (x,) = _wide(x, x)
    mean = _mean(x, axes, over)
    return mean, _mean(jnp.square(x - mean), axes, over)


def _mean(x: Array, axes: tuple[int, ...], over: tuple[str, ...] = ()) -> Array:
    mean = x.mean(axes, keepdims=True)
    return lax.pmean(mean, over) if over else mean


def _mesh_axes(x: Array) -> tuple[str, ...]:
    """Those over which x is divided, under `shard_map`."""
    return tuple(sorted(jax.typeof(x).manual_axis_type.varying))


def _wide(x: Array, *arrays: Array) -> tuple[jax.Array, ...]:
    """The arrays in a dtype that holds x's and theirs, float32 at least."""
    dtype = functools.reduce(jnp.promote_types, (a.dtype for a in arrays), jnp.promote_types(x.dtype, jnp.float32))
    return tuple(jnp.asarray(a, dtype) for a in arrays)


def _z(x, mean, variance, epsilon) -> tuple[Array, Array]:
    """The normalised values and the inverse of the deviation, in the statistics' dtype."""
    inverse = lax.rsqrt(variance + epsilon)
    return (x - mean) * inverse, inverse


def _rms(x, epsilon) -> tuple[Array, Array]:
    (wide,) = _wide(x, x)
    inverse = lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
    return wide * inverse, inverse


def _normalised(x, scale, shift, mean, variance, epsilon, shape) -> tuple[Array, NormalizationResiduals]:
    """`shape`: the one in which x and its statistics fit together."""
    z, _ = _z(x.reshape(shape), mean, variance, epsilon)
    y = z.reshape(x.shape) * scale + shift
    return y.astype(x.dtype), NormalizationResiduals(x, scale, mean, variance)


def _pulled(residuals: NormalizationResiduals, dy, epsilon, shape, axes) -> tuple[Array, Array, Array]:
    """(dx, dscale, dshift), the statistics being functions of x: means over `axes` of `shape`."""
    x, scale, mean, variance = residuals
    z, inverse = _z(x.reshape(shape), mean, variance, epsilon)
    dy = dy.astype(z.dtype)
    dz = (dy * scale).reshape(shape)
    dx = inverse * (dz - dz.mean(axes, keepdims=True) - z * (dz * z).mean(axes, keepdims=True))
    cotangents = dx.reshape(x.shape), _by_channel(dy * z.reshape(x.shape)), _by_channel(dy)
    dx, dscale, dshift = (c.astype(x.dtype) for c in cotangents)
    return dx, dscale, dshift


def _by_channel(a: Array) -> Array:
    """The sum over all axes but the last."""
    return a.sum(tuple(range(a.ndim - 1)))


def _check(function: str, x: Array, epsilon: float, **parameters: Array) -> None:
    require_equal_floats(function, x=x, **parameters)
    _check_channels(function, x, **parameters)
    require_number(function, epsilon=epsilon)
    if not epsilon > 0:
        raise ValueError(f"{function}: epsilon must be positive, got {epsilon!r}")


def _check_channels(function: str, x: Array, **of_channels: Array) -> None:
    if x.ndim < 1:
        raise ValueError(f"{function}: x must be (..., C), got shape ()")
    for name, array in of_channels.items():
        if array.shape != x.shape[-1:]:
            raise ValueError(
                f"{function}: {name} must have shape {x.shape[-1:]}, one value a channel, got {array.shape}"
            )


def _check_images(function: str, x: Array, epsilon: float, scale: Array, shift: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"{function}: x must be N×H×W×C, got shape {x.shape}")
    _check(function, x, epsilon, scale=scale, shift=shift)
