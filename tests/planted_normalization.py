"""Planted faults of batch_norm and frozen_batch_norm, and what those of the other normalisations are made of too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import batch_norm, frozen_batch_norm, layer_norm, rms_norm

normal, _ = draws(7)  # of seed 0 are the cotangents of the verifier: dx of x is nearly 0

ROWS = (normal(5, 4), normal(4), normal(4))
IMAGES = (normal(2, 5, 3, 4), normal(4), normal(4))
CONSTANT = (ROWS[0] * [1, 0, 1, 1], *ROWS[1:])  # the second channel
FAR = (ROWS[0].astype(np.float16) + 64, *ROWS[1:])  # exact in float32
FROZEN = (*ROWS, normal(4), np.array([0.5, 0.75, 1.5, 3.0]))
SQUARE = (normal(2, 3, 3, 4), *IMAGES[1:])
FROZEN_IMAGES = (*IMAGES, *FROZEN[3:])

FACTORS = "a factor for each channel, no single one"


class Parts(NamedTuple):
    """What a backward pass is made of, all of x's shape but for the scale, (C,)."""

    dy: Any
    x: Any
    scale: Any
    dz: Any
    centred: Any  # x without its mean
    variance: Any
    inverse: Any  # 1/σ
    z: Any
    mean: Callable  # over what is normalised together, at each of its places
    epsilon: float

    def dx(self, mean=1.0, variance=1.0):
        """The right one; with other factors of the terms by which x moves the mean and the variance."""
        return self.inverse * (self.dz - mean * self.mean(self.dz) - variance * self.z * self.mean(self.dz * self.z))

    def by(self, inverse) -> Parts:
        """With another 1/σ."""
        return self._replace(inverse=inverse, z=self.centred * inverse)

    def over(self, axes, groups: int = 0) -> Parts:
        """With means over other axes, of N×H·W×groups×channels where there are groups."""
        return self._replace(mean=means(self.x, axes, groups))


def means(x, axes, groups=0):
    shape = (len(x), -1, groups, x.shape[-1] // groups) if groups else x.shape

    def mean(a):
        a = a.reshape(shape)
        return jnp.broadcast_to(a.mean(axes, keepdims=True), a.shape).reshape(x.shape)

    return mean


def parts(rule, r, dy, epsilon, groups=0) -> Parts:
    x, scale = r[:2]
    if rule is frozen_batch_norm:
        mean, centred, variance = lambda a: 0 * a, x - r.mean, jnp.broadcast_to(r.variance, x.shape)
    else:
        if rule in (batch_norm, layer_norm, rms_norm):
            mean = means(x, tuple(range(x.ndim - 1)) if rule is batch_norm else -1)
        else:
            mean = means(x, (1, 3), groups or x.shape[-1])
        centred = x if rule is rms_norm else x - mean(x)
        variance = mean(centred**2)
    inverse = lax.rsqrt(variance + epsilon)
    return Parts(dy, x, scale, dy * scale, centred, variance, inverse, centred * inverse, mean, epsilon)


def changed(rule, **formulas):
    """The rule with other formulas for some of its cotangents, functions of the parts."""

    def backward(r, dy, **static):
        p = parts(rule, r, dy, **static)
        names = ("x", "scale", "shift", "mean", "variance")
        right = zip(names, rule.backward(r, dy, **static), strict=False)
        return tuple(formulas[name](p) if name in formulas else cotangent for name, cotangent in right)

    return rule.replace(backward=backward)


def by_channel(a):
    return a.sum(tuple(range(a.ndim - 1)))


def constant(*names):
    """These residuals held constant."""
    return lambda r: r._replace(**{name: lax.stop_gradient(getattr(r, name)) for name in names})


def through(dtype):
    return lambda a: a.astype(dtype).astype(a.dtype)


def exchanged(r, dy, dx, dscale, dshift):
    return dx, dshift, dscale


def difference_of_squares(p):
    return p.by(lax.rsqrt(p.mean(p.x**2) - p.mean(p.x) ** 2 + p.epsilon)).dx()


def without_last_sample(p):
    return p._replace(mean=lambda a: jnp.broadcast_to(a[:-1].mean(0), a.shape)).dx()


def z_left_out(p):
    return p.inverse * (p.dz - p.mean(p.dz) - p.mean(p.dz * p.z))


def unbiased(p):
    return p.by(lax.rsqrt(p.variance * 5 / 4 + p.epsilon))


def no_epsilon(p):
    return p.by(p.variance**-0.5).dx()


def epsilon_outside(p):
    return p.by(1 / (jnp.sqrt(p.variance) + p.epsilon)).dx()


def another_epsilon(p):
    """1e-3, the default elsewhere."""
    return p.by(lax.rsqrt(p.variance + 1e-3))


def dscale(p):
    return by_channel(p.dy * p.z)


def mean_in_bfloat16(r):
    return r._replace(mean=through(jnp.bfloat16)(r.mean))


def dvariance(factor):
    """dv = γ Σ dy z · factor; it is -1/(2σ²)."""
    return changed(frozen_batch_norm, variance=lambda p: by_channel(p.dz * p.z * factor(p)))


def deviation_for_variance(r):
    return r._replace(variance=r.variance**2)


def as_of_the_batch(r, dy, dx, *others):
    return batch_norm.backward(batch_norm.forward(r.x, r.scale, r.scale)[1], dy, epsilon=1e-5)[0], *others


def of_five(r, dy, dx, dscale, dshift, *others):
    return dx, dscale, dy.reshape(5, 4).sum(0), *others


BATCH_NORM = [
    # Terms of dx left out, or other ones.
    fault("statistics taken for constants", changed(batch_norm, x=lambda p: p.dx(0, 0)), ROWS, "unknown"),
    fault("statistics taken for constants, images", changed(batch_norm, x=lambda p: p.dx(0, 0)), IMAGES, "unknown"),
    fault("mean taken for a constant", changed(batch_norm, x=lambda p: p.dx(mean=0)), ROWS, "unknown"),
    fault("variance taken for a constant", changed(batch_norm, x=lambda p: p.dx(variance=0)), ROWS, "unknown"),
    fault("variance's term added", changed(batch_norm, x=lambda p: p.dx(variance=-1)), ROWS, "unknown"),
    fault("variance's term twice", changed(batch_norm, x=lambda p: p.dx(variance=2)), ROWS, "unknown"),
    fault("variance's term over n - 1", changed(batch_norm, x=lambda p: p.dx(variance=5 / 4)), ROWS, "unknown"),
    fault("z left out of the variance's term", changed(batch_norm, x=z_left_out), ROWS, "unknown"),
    fault("sums for means", changed(batch_norm, x=lambda p: p.dx(5, 5)), ROWS, "unknown"),
    fault("sums over N, images", changed(batch_norm, x=lambda p: p.dx(15, 15)), IMAGES, "unknown"),
    # Statistics of other values.
    fault("means over the channels", changed(batch_norm, x=lambda p: p.over(-1).dx()), ROWS, "unknown"),
    fault("means over everything", changed(batch_norm, x=lambda p: p.over((0, 1)).dx()), ROWS, "unknown"),
    fault("means of each sample", changed(batch_norm, x=lambda p: p.over((1, 2)).dx()), IMAGES, "unknown"),
    fault("means over the samples only", changed(batch_norm, x=lambda p: p.over(0).dx()), IMAGES, "unknown"),
    fault("means without the last sample", changed(batch_norm, x=without_last_sample), ROWS, "unknown"),
    # The deviation.
    fault("unbiased variance", changed(batch_norm, x=lambda p: unbiased(p).dx()), ROWS, "unknown"),
    fault("dscale: unbiased variance", changed(batch_norm, scale=lambda p: dscale(unbiased(p))), ROWS, "scaled"),
    fault("1/σ² for 1/σ", changed(batch_norm, x=lambda p: p.dx() * p.inverse), ROWS, "unknown scaled", note=FACTORS),
    fault(
        "not divided by σ", changed(batch_norm, x=lambda p: p.dx() / p.inverse), ROWS, "unknown scaled", note=FACTORS
    ),
    fault("epsilon forgotten", changed(batch_norm, x=no_epsilon), ROWS, "unknown"),
    fault("large epsilon forgotten", changed(batch_norm, x=no_epsilon), ROWS, "unknown", epsilon=0.5),
    fault("epsilon forgotten, a constant channel", changed(batch_norm, x=no_epsilon), CONSTANT, "nan"),
    fault("epsilon added to σ", changed(batch_norm, x=epsilon_outside), ROWS, "unknown", epsilon=0.5),
    fault("another epsilon", changed(batch_norm, x=lambda p: another_epsilon(p).dx()), ROWS, "unknown"),
    # The scale and the shift.
    fault(
        "scale left out of dx",
        changed(batch_norm, x=lambda p: p._replace(dz=p.dy).dx()),
        ROWS,
        "unknown scaled",
        note=FACTORS,
    ),
    fault(
        "scale squared in dx",
        changed(batch_norm, x=lambda p: p._replace(dz=p.dz * p.scale).dx()),
        ROWS,
        "unknown scaled",
        note=FACTORS,
    ),
    fault("dscale with x for z", changed(batch_norm, scale=lambda p: by_channel(p.dy * p.x)), ROWS, "unknown"),
    fault(
        "dscale not divided by σ",
        changed(batch_norm, scale=lambda p: by_channel(p.dy * p.centred)),
        ROWS,
        "unknown scaled",
        note=FACTORS,
    ),
    fault(
        "dscale times the scale",
        changed(batch_norm, scale=lambda p: by_channel(p.dz * p.z)),
        ROWS,
        "unknown scaled",
        note=FACTORS,
    ),
    fault("dscale and dshift exchanged", after(batch_norm, exchanged), ROWS, "swapped"),
    fault("dscale without z", changed(batch_norm, scale=lambda p: by_channel(p.dy)), ROWS, "swapped"),
    fault("dscale averaged", broken(batch_norm, scale=lambda d: d / 5), ROWS, "scaled"),
    fault("dshift averaged, images", broken(batch_norm, shift=lambda d: d / 30), IMAGES, "scaled"),
    fault(
        "dshift times the scale",
        changed(batch_norm, shift=lambda p: by_channel(p.dz)),
        ROWS,
        "unknown scaled",
        note=FACTORS,
    ),
    fault("dshift left out", broken(batch_norm, shift=jnp.zeros_like), ROWS, "zero"),
    fault(
        "dscale of the first sample",
        changed(batch_norm, scale=lambda p: by_channel((p.dy * p.z)[:1])),
        IMAGES,
        "partial",
    ),
    fault(
        "dscale not summed over the places",
        changed(batch_norm, scale=lambda p: (p.dy * p.z).sum(0)),
        IMAGES,
        "structure",
    ),
    fault(
        "dscale keeps its axes",
        changed(batch_norm, scale=lambda p: (p.dy * p.z).sum(0, keepdims=True)),
        ROWS,
        "structure",
    ),
    fault("dx negated", broken(batch_norm, x=jnp.negative), IMAGES, "negated"),
    fault("dx: H and W exchanged", broken(batch_norm, x=lambda d: d.swapaxes(1, 2)), SQUARE, "transposed"),
    # Precision and second derivatives.
    fault("dx through float32", broken(batch_norm, x=through(jnp.float32)), ROWS, "precision"),
    fault("mean saved in bfloat16", broken(batch_norm, residuals=mean_in_bfloat16), ROWS, "precision"),
    fault("E[x²] - E[x]²", changed(batch_norm, x=difference_of_squares), FAR, "precision", why="float32"),
    fault(
        "variance held constant",
        broken(batch_norm, residuals=constant("variance")),
        ROWS,
        "second-order",
        why="second order",
    ),
    fault(
        "mean held constant", broken(batch_norm, residuals=constant("mean")), ROWS, "second-order", why="second order"
    ),
    fault(
        "scale held constant", broken(batch_norm, residuals=constant("scale")), ROWS, "second-order", why="second order"
    ),
]

FROZEN_BATCH_NORM = [
    fault("dx as of the batch's statistics", after(frozen_batch_norm, as_of_the_batch), FROZEN, "unknown"),
    fault("no dmean", broken(frozen_batch_norm, mean=jnp.zeros_like), FROZEN, "zero"),
    fault("no dvariance", broken(frozen_batch_norm, variance=jnp.zeros_like), FROZEN, "zero"),
    fault("dmean's sign", broken(frozen_batch_norm, mean=jnp.negative), FROZEN, "negated"),
    fault("dvariance's sign", broken(frozen_batch_norm, variance=jnp.negative), FROZEN, "negated"),
    fault("dvariance without 1/2", broken(frozen_batch_norm, variance=lambda d: 2 * d), FROZEN, "scaled"),
    fault("dvariance with 1/σ³ and z", dvariance(lambda p: p.inverse**3 / -2), FROZEN, "unknown scaled", note=FACTORS),
    fault("dvariance with 1/σ", dvariance(lambda p: p.inverse / -2), FROZEN, "unknown scaled", note=FACTORS),
    fault("derivative by σ for that by σ²", dvariance(lambda p: -p.inverse), FROZEN, "unknown scaled", note=FACTORS),
    fault(
        "dvariance without the scale",
        dvariance(lambda p: p.inverse**2 / -2 / p.scale),
        FROZEN,
        "unknown scaled",
        note=FACTORS,
    ),
    fault(
        "dmean without the scale",
        changed(frozen_batch_norm, mean=lambda p: -by_channel(p.dy * p.inverse)),
        FROZEN,
        "unknown scaled",
        note=FACTORS,
    ),
    fault(
        "dmean without 1/σ",
        changed(frozen_batch_norm, mean=lambda p: -by_channel(p.dz)),
        FROZEN,
        "unknown scaled",
        note=FACTORS,
    ),
    fault("dmean averaged", broken(frozen_batch_norm, mean=lambda d: d / 5), FROZEN, "scaled"),
    fault(
        "dmean of the first sample",
        changed(frozen_batch_norm, mean=lambda p: -by_channel((p.dz * p.inverse)[:1])),
        FROZEN,
        "partial",
    ),
    fault(
        "dmean and dvariance exchanged",
        after(frozen_batch_norm, lambda r, dy, x, a, b, m, v: (x, a, b, v, m)),
        FROZEN,
        "swapped",
    ),
    fault("dmean is dshift", after(frozen_batch_norm, lambda r, dy, x, a, b, m, v: (x, a, b, b, v)), FROZEN, "swapped"),
    fault(
        "dmean not summed over the rows",
        changed(frozen_batch_norm, mean=lambda p: -(p.dz * p.inverse).sum((0, 2))),
        FROZEN_IMAGES,
        "structure",
    ),
    fault("no cotangents of the statistics", after(frozen_batch_norm, lambda r, dy, *d: d[:3]), FROZEN, "structure"),
    fault(
        "statistics without a gradient",
        after(frozen_batch_norm, lambda r, dy, *d: (*d[:3], None, None)),
        FROZEN,
        "structure",
    ),
    fault(
        "variance taken for σ",
        broken(frozen_batch_norm, only="x", residuals=deviation_for_variance),
        FROZEN,
        "unknown scaled",
        note=FACTORS,
    ),
    fault(
        "large epsilon forgotten",
        changed(frozen_batch_norm, x=no_epsilon),
        FROZEN,
        "unknown scaled",
        note=FACTORS,
        epsilon=0.5,
    ),
    fault("dscale with x for z", changed(frozen_batch_norm, scale=lambda p: by_channel(p.dy * p.x)), FROZEN, "unknown"),
    fault("dx averaged over the samples", broken(frozen_batch_norm, x=lambda d: d / 5), FROZEN, "scaled"),
    fault(
        "variance held constant",
        broken(frozen_batch_norm, residuals=constant("variance")),
        FROZEN,
        "second-order",
        why="second order",
    ),
    fault(
        "batch size written into the code", after(frozen_batch_norm, of_five), FROZEN, "structure", why="smaller batch"
    ),
]

FAULTS = BATCH_NORM + FROZEN_BATCH_NORM
