"""Planted faults of layer_norm, group_norm, instance_norm and rms_norm, which normalise each sample by itself."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault
from planted_normalization import FACTORS, by_channel, changed, constant, exchanged, means, no_epsilon, through

from jaxcnn import group_norm, instance_norm, layer_norm, rms_norm

normal, _ = draws(1)

ROWS = (normal(5, 4), normal(4), normal(4))
SQUARE = (normal(4, 4), *ROWS[1:])
IMAGES = (normal(2, 5, 3, 4), normal(4), normal(4))
RMS = ROWS[:2]
WITH_ZEROS = (ROWS[0] * np.array([[1], [0], [1], [1], [1]]), ROWS[1])

OF_SAMPLES = "a factor for each sample, no single one"


def scale_outside(p):
    """γ applied to the finished sum, as if it were the same for all that is normalised together."""
    return p.scale * p._replace(dz=p.dy).dx()


def unbiased(p):
    """Of four channels."""
    return p.by(lax.rsqrt(p.variance * 4 / 3 + p.epsilon)).dx()


def epsilon_outside(p):
    return p.by(1 / (jnp.sqrt(p.variance) + p.epsilon)).dx()


def batch_of_five(r, dy, dx, dscale, dshift):
    return dx, dscale, dy.reshape(5, 4).sum(0)


def interleaved(p):
    """Groups of every second channel, where they are of neighbours."""
    order = jnp.array([0, 2, 1, 3])  # its own inverse
    mean = means(p.x, (1, 3), 2)
    return p._replace(mean=lambda a: mean(a[..., order])[..., order]).dx()


def in_groups(a):
    return a.reshape(*a.shape[:-1], 2, 2)


def of_the_group(d):
    """Each channel gets the sum of its group."""
    return jnp.repeat(d.reshape(2, 2).sum(1), 2)


def first_of_group(scale):
    return jnp.repeat(scale[::2], 2)


def deinterleaved(dx):
    return in_groups(dx).swapaxes(-1, -2).reshape(dx.shape)


def scale_in_one_term(p):
    return p.inverse * (p.dz - p.z * p.mean(p.dy * p.z))


def x_for_z(p):
    return p.inverse * (p.dz - p.x * p.mean(p.dz * p.x))


def root_held_constant(p):
    return p.by(lax.stop_gradient(p.inverse)).dx(0)


LAYER_NORM = [
    fault("statistics taken for constants", changed(layer_norm, x=lambda p: p.dx(0, 0)), ROWS, "unknown"),
    fault("mean taken for a constant", changed(layer_norm, x=lambda p: p.dx(mean=0)), ROWS, "unknown"),
    fault("variance taken for a constant", changed(layer_norm, x=lambda p: p.dx(variance=0)), ROWS, "unknown"),
    fault("variance's term over n - 1", changed(layer_norm, x=lambda p: p.dx(variance=4 / 3)), ROWS, "unknown"),
    fault("variance unbiased", changed(layer_norm, x=unbiased), ROWS, "unknown"),
    fault("means over the batch", changed(layer_norm, x=lambda p: p.over(0).dx()), ROWS, "unknown"),
    fault("means over the whole image", changed(layer_norm, x=lambda p: p.over((1, 2, 3)).dx()), IMAGES, "unknown"),
    fault("scale left out of dx", changed(layer_norm, x=lambda p: p._replace(dz=p.dy).dx()), ROWS, "unknown"),
    fault("scale outside", changed(layer_norm, x=scale_outside), ROWS, "unknown"),
    fault("1/σ² for 1/σ", changed(layer_norm, x=lambda p: p.dx() * p.inverse), ROWS, "unknown scaled", note=OF_SAMPLES),
    fault("epsilon added to σ", changed(layer_norm, x=epsilon_outside), ROWS, "unknown", epsilon=0.5),
    fault("large epsilon forgotten", changed(layer_norm, x=no_epsilon), ROWS, "unknown", epsilon=0.5),
    fault("dscale averaged over the batch", broken(layer_norm, scale=lambda d: d / 5), ROWS, "scaled"),
    fault(
        "dscale, dshift averaged", broken(layer_norm, scale=lambda d: d / 30, shift=lambda d: d / 30), IMAGES, "scaled"
    ),
    fault("dscale not summed over the batch", changed(layer_norm, scale=lambda p: p.dy * p.z), ROWS, "structure"),
    fault(
        "dscale summed over the channels", changed(layer_norm, scale=lambda p: (p.dy * p.z).sum(-1)), SQUARE, "unknown"
    ),
    fault("dscale of the first sample", changed(layer_norm, scale=lambda p: (p.dy * p.z)[0]), ROWS, "partial"),
    fault("dscale with x for z", changed(layer_norm, scale=lambda p: by_channel(p.dy * p.x)), ROWS, "unknown"),
    fault(
        "dscale not divided by σ", changed(layer_norm, scale=lambda p: by_channel(p.dy * p.centred)), ROWS, "unknown"
    ),
    fault(
        "dscale times the scale",
        changed(layer_norm, scale=lambda p: by_channel(p.dz * p.z)),
        ROWS,
        "unknown scaled",
        note=FACTORS,
    ),
    fault(
        "dshift times the scale",
        changed(layer_norm, shift=lambda p: by_channel(p.dz)),
        ROWS,
        "unknown scaled",
        note=FACTORS,
    ),
    fault("dscale and dshift exchanged", after(layer_norm, exchanged), ROWS, "swapped"),
    fault("dx: samples and channels exchanged", broken(layer_norm, x=jnp.transpose), SQUARE, "transposed"),
    fault("dx negated", broken(layer_norm, x=jnp.negative), ROWS, "negated"),
    fault("dx through bfloat16", broken(layer_norm, x=through(jnp.bfloat16)), ROWS, "precision"),
    fault(
        "statistics held constant",
        broken(layer_norm, residuals=constant("mean", "variance")),
        ROWS,
        "second-order",
        why="second order",
    ),
    fault("batch size written into the code", after(layer_norm, batch_of_five), ROWS, "structure", why="smaller batch"),
]

GROUP_NORM = [
    fault("statistics taken for constants", changed(group_norm, x=lambda p: p.dx(0, 0)), IMAGES, "unknown", groups=2),
    fault("mean taken for a constant", changed(group_norm, x=lambda p: p.dx(mean=0)), IMAGES, "unknown", groups=2),
    fault(
        "variance taken for a constant", changed(group_norm, x=lambda p: p.dx(variance=0)), IMAGES, "unknown", groups=2
    ),
    fault("groups interleaved", changed(group_norm, x=interleaved), IMAGES, "unknown", groups=2),
    fault("means of each channel", changed(group_norm, x=lambda p: p.over((1, 2)).dx()), IMAGES, "unknown", groups=2),
    fault(
        "means of the whole sample",
        changed(group_norm, x=lambda p: p.over((1, 2, 3)).dx()),
        IMAGES,
        "unknown",
        groups=2,
    ),
    fault("means of each place", changed(group_norm, x=lambda p: p.over(3, 2).dx()), IMAGES, "unknown", groups=2),
    fault(
        "means over the batch too",
        changed(group_norm, x=lambda p: p.over((0, 1, 3), 2).dx()),
        IMAGES,
        "unknown",
        groups=2,
    ),
    fault(
        "means over H·W, the group's channels forgotten",
        changed(group_norm, x=lambda p: p.dx(2, 2)),
        IMAGES,
        "unknown",
        groups=2,
    ),
    fault(
        "scale left out of dx", changed(group_norm, x=lambda p: p._replace(dz=p.dy).dx()), IMAGES, "unknown", groups=2
    ),
    fault("scale outside", changed(group_norm, x=scale_outside), IMAGES, "unknown", groups=2),
    fault(
        "scale of the group's first channel",
        broken(group_norm, only="x", residuals=lambda r: r._replace(scale=first_of_group(r.scale))),
        IMAGES,
        "unknown",
        groups=2,
    ),
    fault("dx of the first group", broken(group_norm, x=lambda d: d.at[..., 2:].set(0)), IMAGES, "partial", groups=2),
    fault("dx: groups exchanged", broken(group_norm, x=lambda d: jnp.roll(d, 2, -1)), IMAGES, "partial", groups=2),
    fault("dx: channels dealt out to the groups", broken(group_norm, x=deinterleaved), IMAGES, "partial", groups=2),
    fault(
        "dscale of each group",
        broken(group_norm, scale=lambda d: d.reshape(2, 2).sum(1)),
        IMAGES,
        "structure",
        groups=2,
    ),
    fault("dscale: the sum of the group", broken(group_norm, scale=of_the_group), IMAGES, "unknown", groups=2),
    fault("dscale divided by the groups", broken(group_norm, scale=lambda d: d / 2), IMAGES, "scaled", groups=2),
    fault(
        "dscale of each sample",
        changed(group_norm, scale=lambda p: (p.dy * p.z).sum((1, 2))),
        IMAGES,
        "structure",
        groups=2,
    ),
    fault(
        "dshift of the first sample",
        changed(group_norm, shift=lambda p: by_channel(p.dy[:1])),
        IMAGES,
        "partial",
        groups=2,
    ),
    fault(
        "statistics held constant",
        broken(group_norm, residuals=constant("mean", "variance")),
        IMAGES,
        "second-order",
        why="second order",
        groups=2,
    ),
]

INSTANCE_NORM = [
    fault("statistics taken for constants", changed(instance_norm, x=lambda p: p.dx(0, 0)), IMAGES, "unknown"),
    fault("mean taken for a constant", changed(instance_norm, x=lambda p: p.dx(mean=0)), IMAGES, "unknown"),
    fault("variance taken for a constant", changed(instance_norm, x=lambda p: p.dx(variance=0)), IMAGES, "unknown"),
    fault("variance's term over n - 1", changed(instance_norm, x=lambda p: p.dx(variance=15 / 14)), IMAGES, "unknown"),
    fault("means over the batch too", changed(instance_norm, x=lambda p: p.over((0, 1, 2)).dx()), IMAGES, "unknown"),
    fault("means over the channels too", changed(instance_norm, x=lambda p: p.over((1, 2, 3)).dx()), IMAGES, "unknown"),
    fault("means of each column", changed(instance_norm, x=lambda p: p.over(1).dx()), IMAGES, "unknown"),
    fault("means over H only", changed(instance_norm, x=lambda p: p.dx(3, 3)), IMAGES, "unknown"),
    fault(
        "1/σ² for 1/σ",
        changed(instance_norm, x=lambda p: p.dx() * p.inverse),
        IMAGES,
        "unknown scaled",
        note="a factor for each sample and channel",
    ),
    fault(
        "scale left out of dx",
        changed(instance_norm, x=lambda p: p._replace(dz=p.dy).dx()),
        IMAGES,
        "unknown scaled",
        note=FACTORS,
    ),
    fault("dscale averaged over the samples", broken(instance_norm, scale=lambda d: d / 2), IMAGES, "scaled"),
    fault(
        "dscale of each sample", changed(instance_norm, scale=lambda p: (p.dy * p.z).sum((1, 2))), IMAGES, "structure"
    ),
    fault(
        "dscale of the first sample",
        changed(instance_norm, scale=lambda p: by_channel((p.dy * p.z)[:1])),
        IMAGES,
        "partial",
    ),
    fault(
        "dshift of the first row",
        changed(instance_norm, shift=lambda p: by_channel(p.dy[:, :1])),
        IMAGES,
        "partial border",
        note="the other rows are left out",
    ),
    fault("dscale and dshift exchanged", after(instance_norm, exchanged), IMAGES, "swapped"),
    fault(
        "variance held constant",
        broken(instance_norm, residuals=constant("variance")),
        IMAGES,
        "second-order",
        why="second order",
    ),
]

RMS_NORM = [
    fault("root taken for a constant", changed(rms_norm, x=lambda p: p.dx(0, 0)), RMS, "unknown"),
    fault("a mean taken off, as in layer_norm", changed(rms_norm, x=lambda p: p.dx()), RMS, "unknown"),
    fault("root's term added", changed(rms_norm, x=lambda p: p.dx(0, -1)), RMS, "unknown"),
    fault("root's term twice: the root forgotten", changed(rms_norm, x=lambda p: p.dx(0, 2)), RMS, "unknown"),
    fault("root's term halved", changed(rms_norm, x=lambda p: p.dx(0, 0.5)), RMS, "unknown"),
    fault("sum for mean", changed(rms_norm, x=lambda p: p.dx(0, 4)), RMS, "unknown"),
    fault("means over the batch", changed(rms_norm, x=lambda p: p.over(0).dx(0)), RMS, "unknown"),
    fault("scale left out of dx", changed(rms_norm, x=lambda p: p._replace(dz=p.dy).dx(0)), RMS, "unknown"),
    fault("scale outside", changed(rms_norm, x=lambda p: p.scale * p._replace(dz=p.dy).dx(0)), RMS, "unknown"),
    fault("scale left out of the root's term", changed(rms_norm, x=scale_in_one_term), RMS, "unknown"),
    fault("1/r² for 1/r", changed(rms_norm, x=lambda p: p.dx(0) * p.inverse), RMS, "unknown scaled", note=OF_SAMPLES),
    fault("x for z in the root's term", changed(rms_norm, x=x_for_z), RMS, "unknown"),
    fault(
        "epsilon forgotten, a sample of zeros",
        changed(rms_norm, x=lambda p: p.by(p.variance**-0.5).dx(0)),
        WITH_ZEROS,
        "nan",
    ),
    fault("dscale with x for z", changed(rms_norm, scale=lambda p: by_channel(p.dy * p.x)), RMS, "unknown"),
    fault("dscale with z²", changed(rms_norm, scale=lambda p: by_channel(p.dy * p.z**2)), RMS, "unknown"),
    fault(
        "dscale times the scale",
        changed(rms_norm, scale=lambda p: by_channel(p.dz * p.z)),
        RMS,
        "unknown scaled",
        note=FACTORS,
    ),
    fault("dscale averaged over the batch", broken(rms_norm, scale=lambda d: d / 5), RMS, "scaled"),
    fault(
        "dscale without the last sample",
        changed(rms_norm, scale=lambda p: by_channel((p.dy * p.z)[:-1])),
        RMS,
        "partial",
    ),
    fault("no dscale", broken(rms_norm, scale=jnp.zeros_like), RMS, "zero"),
    fault("dscale not summed", changed(rms_norm, scale=lambda p: p.dy * p.z), RMS, "structure"),
    fault("dx through float16", broken(rms_norm, x=through(jnp.float16)), RMS, "precision"),
    fault("root held constant", changed(rms_norm, x=root_held_constant), RMS, "second-order", why="second order"),
]

FAULTS = LAYER_NORM + GROUP_NORM + INSTANCE_NORM + RMS_NORM
