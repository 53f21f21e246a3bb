"""Planted faults of layers with modes (batch normalisation, dropout) and of layers made of branches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from planted_base import after, broken, draws
from planted_layers import in_layer, of_layer

import jaxcnn
from jaxcnn import batch_norm, dropout, layer_norm, scale_channels

normal, _ = draws(0)

PICTURES, ROWS = (normal(3, 4, 2, 4),), (normal(4, 5),)
SAMPLES = (normal(8, 1, 2, 4),)  # enough that some are left out and some are not
NORMALIZED = jaxcnn.BatchNorm()
DROPPED = jaxcnn.Dropout(0.4)
SPATIAL = jaxcnn.SpatialDropout(0.4)
SHORTENED = jaxcnn.residual(jaxcnn.sequential(jaxcnn.Dense(4), jaxcnn.StochasticDepth(0.5)))
PROJECTED = jaxcnn.residual(jaxcnn.Conv2D(3, 3), jaxcnn.Conv2D(3, 1))
SUM = jaxcnn.parallel(jaxcnn.Dense(3), jaxcnn.Dense(3))
BESIDE = jaxcnn.parallel(jaxcnn.Dense(3), jaxcnn.Dense(3), join="concatenate")
UNEQUAL = jaxcnn.parallel(jaxcnn.Dense(4), jaxcnn.Dense(2), join="concatenate")
GATED = jaxcnn.SqueezeExcitation(4, 2)
SCALED, LAYERED = jaxcnn.LayerScale(), jaxcnn.LayerNorm()


def normalised(dx):
    """Batch normalisation's backward pass with another dx(z, dz, mean), all divided by the deviation afterwards."""

    def backward(r, dy, *, epsilon):
        inverse = lax.rsqrt(r.variance + epsilon)
        z, axes = (r.x - r.mean) * inverse, tuple(range(r.x.ndim - 1))
        mean = lambda a: a.mean(axes, keepdims=True)  # noqa: E731
        return dx(z, dy * r.scale, mean) * inverse, (dy * z).sum(axes), dy.sum(axes)

    return jaxcnn.BatchNorm(rule=batch_norm.replace(backward=backward))


def by_running_statistics(r, dy, *, epsilon):
    """As if the statistics were the state's first ones."""
    other = r._replace(mean=jnp.zeros_like(r.mean), variance=jnp.ones_like(r.variance))
    return batch_norm.backward(other, dy, epsilon=epsilon)


def deep(rule):
    return jaxcnn.sequential(jaxcnn.Dense(4, bias=False), jaxcnn.BatchNorm(rule=rule), jaxcnn.Dense(2))


DEEP = deep(batch_norm)


def another_mask(r, dy, **static):
    return dropout.backward(r._replace(key=jax.random.fold_in(r.key, 1)), dy, **static)


def passed(layer, residuals, cotangents, kept=slice(None)):
    """The chain of parallel; `kept`: the branches whose dx are added up."""
    names = [f"dense_{i + 1}" for i in range(len(layer.layers))]
    parts = [b.backward(s, d) for b, s, d in zip(layer.layers, residuals.branches, cotangents, strict=True)]
    return {n: dparams for n, (dparams, _) in zip(names, parts, strict=True)}, sum(dx for _, dx in parts[kept])


def first_dx_only(residuals, dy):
    return passed(SUM, residuals, (dy, dy), slice(1))


def without_the_way_around(residuals, dy):
    parts = [b.backward(s, dy) for b, s in zip(PROJECTED.layers, residuals.branches, strict=True)]
    return dict(zip(("layer", "shortcut"), (p for p, _ in parts), strict=True)), parts[0][1]


def always_deep(residuals, dy):
    """Stochastic depth's mask forgotten: samples that went around the layer train it."""
    dense, _ = residuals.branches[0]
    dparams, dx = SHORTENED.layers[0].layers[0].backward(dense, dy)
    return {"layer": {"dense": dparams}}, dx + dy


def ungated(residuals, dy):
    """dx = s dy: the factor taken for a constant where x is concerned."""
    dx, dscale = scale_channels.backward(residuals.joined, dy)
    dparams, _ = GATED.layers[1].backward(residuals.branches[1], dscale)
    return {"gate": dparams}, dx


FAULTS = [
    of_layer(
        "batch norm: statistics taken for constants",
        normalised(lambda z, dz, mean: dz),
        "unknown",
        NORMALIZED,
        PICTURES,
    ),
    of_layer(
        "batch norm: no gradient through the mean",
        normalised(lambda z, dz, mean: dz - z * mean(dz * z)),
        "unknown",
        NORMALIZED,
        PICTURES,
    ),
    of_layer(
        "batch norm: no gradient through the variance",
        normalised(lambda z, dz, mean: dz - mean(dz)),
        "unknown",
        NORMALIZED,
        PICTURES,
    ),
    of_layer(
        "batch norm: running statistics in the backward pass",
        jaxcnn.BatchNorm(rule=batch_norm.replace(backward=by_running_statistics)),
        "unknown",
        NORMALIZED,
        PICTURES,
    ),
    of_layer(
        "batch norm: scale and shift exchanged",
        jaxcnn.BatchNorm(rule=after(batch_norm, lambda r, dy, dx, dscale, dshift: (dx, dshift, dscale))),
        "swapped",
        NORMALIZED,
        PICTURES,
    ),
    of_layer(
        "batch norm: scale's gradient by x as it came",
        jaxcnn.BatchNorm(rule=after(batch_norm, lambda r, dy, dx, _, dshift: (dx, (dy * r.x).sum((0, 1, 2)), dshift))),
        "unknown",
        NORMALIZED,
        PICTURES,
    ),
    of_layer(
        "batch norm: statistics taken for constants, in a network",
        deep(normalised(lambda z, dz, mean: dz).rule),
        "unknown",
        DEEP,
        ROWS,
    ),
    of_layer(
        "layer norm: statistics of the first place for all",
        jaxcnn.LayerNorm(
            rule=broken(layer_norm, residuals=lambda r: r._replace(variance=r.variance[:, :1, :1] + 0 * r.variance))
        ),
        "unknown",
        LAYERED,
        PICTURES,
    ),
    of_layer(
        "dropout: another mask backward",
        jaxcnn.Dropout(0.4, rule=dropout.replace(backward=another_mask)),
        "unknown",
        DROPPED,
        PICTURES,
    ),
    of_layer(
        "dropout: what is kept is not made larger",
        jaxcnn.Dropout(0.4, rule=after(dropout, lambda r, dy, dx, _: (dx * 0.6, None))),
        "scaled",
        DROPPED,
        PICTURES,
    ),
    of_layer(
        "dropout: mask forgotten",
        jaxcnn.Dropout(0.4, rule=after(dropout, lambda r, dy, dx, _: (dy, None))),
        "unknown",
        DROPPED,
        PICTURES,
    ),
    of_layer(
        "spatial dropout: a mask for each value",
        jaxcnn.SpatialDropout(0.4, rule=broken(dropout, static={"broadcast": ()})),
        "unknown",
        SPATIAL,
        PICTURES,
    ),
    of_layer(
        "stochastic depth: samples that went around train the layer",
        dataclasses.replace(SHORTENED, backward=always_deep),
        "unknown",
        SHORTENED,
        SAMPLES,
    ),
    of_layer(
        "residual: the projection's dx forgotten",
        dataclasses.replace(PROJECTED, backward=without_the_way_around),
        "unknown",
        PROJECTED,
        PICTURES,
    ),
    of_layer(
        "parallel: the first branch's dx alone",
        dataclasses.replace(SUM, backward=first_dx_only),
        "unknown",
        SUM,
        ROWS,
    ),
    of_layer(
        "parallel: dy shared out among the branches",
        dataclasses.replace(SUM, backward=lambda r, dy: passed(SUM, r, (dy / 2, dy / 2))),
        "scaled",
        SUM,
        ROWS,
    ),
    of_layer(
        "parallel: gradients of the branches exchanged",
        in_layer(BESIDE, lambda dp, dx: ({"dense_1": dp["dense_2"], "dense_2": dp["dense_1"]}, dx)),
        "swapped",
        BESIDE,
        ROWS,
    ),
    of_layer(
        "concatenate: channels handed out in the wrong order",
        dataclasses.replace(BESIDE, backward=lambda r, dy: passed(BESIDE, r, (dy[:, 3:], dy[:, :3]))),
        "swapped",
        BESIDE,
        ROWS,
    ),
    of_layer(
        "concatenate: channels dealt out one by one",
        dataclasses.replace(BESIDE, backward=lambda r, dy: passed(BESIDE, r, (dy[:, ::2], dy[:, 1::2]))),
        "partial unknown",
        BESIDE,
        ROWS,
        note="some channels are dealt to their own branch",
    ),
    of_layer(
        "concatenate: equal shares for unequal branches",
        dataclasses.replace(UNEQUAL, backward=lambda r, dy: passed(UNEQUAL, r, (dy[:, :3], dy[:, 3:]))),
        "structure",
        UNEQUAL,
        ROWS,
    ),
    of_layer(
        "squeeze-excitation: no gradient through the factor",
        dataclasses.replace(GATED, backward=ungated),
        "unknown",
        GATED,
        PICTURES,
    ),
    of_layer(
        "squeeze-excitation: the gate trained by the mean over the places",
        jaxcnn.SqueezeExcitation(4, 2, rule=after(scale_channels, lambda r, dy, dx, dscale: (dx, dscale / 8))),
        "scaled",
        GATED,
        PICTURES,
    ),
    of_layer(
        "squeeze-excitation: dx without the factor",
        jaxcnn.SqueezeExcitation(4, 2, rule=after(scale_channels, lambda r, dy, dx, dscale: (dy, dscale))),
        "unknown",
        GATED,
        PICTURES,
    ),
    of_layer(
        "layer scale: the gradient of one sample",
        jaxcnn.LayerScale(rule=after(scale_channels, lambda r, dy, dx, _: (dx, (r.x[0] * dy[0]).sum((0, 1))))),
        "partial",
        SCALED,
        PICTURES,
    ),
    of_layer(
        "layer scale: dx unscaled",
        jaxcnn.LayerScale(rule=after(scale_channels, lambda r, dy, dx, dscale: (dy, dscale))),
        "unknown",
        SCALED,
        PICTURES,
    ),
]
