"""The mistakes: most are of the catalogue of planted faults in tests/, some are not there or fit its sizes alone."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcnn
from jaxcnn import BatchNorm, Conv2D, Dense, Flatten, Layer, MaxPool, ReLU, Rule, residual, sequential
from jaxcnn.layers.layer import from_rule

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[2] / "tests"))
import planted_activation
import planted_convolution
import planted_dense
import planted_loss
import planted_normalization
import planted_pooling
from common import one_of
from planted_base import Fault, after, draws, fault

normal, _ = draws(0)
BATCH = 32


class Mistake(NamedTuple):
    """One way to get a backward pass wrong, in every layer of that kind."""

    name: str
    kind: str  # "conv2d", "dense", "residual", "batch_norm", "relu", "max_pool" or "loss"
    fault: Fault  # what the verifier and the others are asked about


def _from(module: ModuleType, rule: Rule, *names: str) -> list[Mistake]:
    """Those of the catalogue by their names there."""
    known = {f.name: f for f in module.FAULTS if f.right == rule}
    return [Mistake(name, rule.name, known[name]) for name in names]


# --- mistakes of our own --------------------------------------------------------------------------------------------


def averaged(r, dy, dx, dw, db):
    return dx, dw, db / len(dy)


def of_square(change):
    """A mistake that other shapes would not let pass: the right pass where the weights are not square."""

    def changed(r, dy, dx, dw, db):
        return change(r, dy, dx, dw, db) if r.w.shape[0] == r.w.shape[1] else (dx, dw, db)

    return after(jaxcnn.dense, changed)


def of_loss(gradient):
    """softmax_cross_entropy of indices with another gradient, a function of (logits, y, N)."""

    def backward(r, dy, **static):
        y = jax.nn.one_hot(r.labels, r.logits.shape[-1], dtype=r.logits.dtype)
        return gradient(r.logits, y, len(y)) * dy, None

    return jaxcnn.softmax_cross_entropy.replace(backward=backward)


def softmax_left_out(z, y, n):
    """dL/da, where dL/dz belongs."""
    return jnp.where(y > 0, -1 / (jax.nn.softmax(z) * n), 0)


def remembering(layer: Layer, batch: int = BATCH) -> Layer:
    """The same, which keeps what it was given in the training step before: the right one makes no use of it."""

    def init(key, input_shape):
        params, state, shape = layer.init(key, input_shape)
        return params, {"own": state, "previous": jnp.zeros((batch, *input_shape))}, shape

    def forward(params, state, x, *, train=False, key=None):
        y, own, residuals = layer.forward(params, state["own"], x, train=train, key=key)
        return y, {"own": own, "previous": x if train else state["previous"]}, (residuals, state["previous"])

    return Layer("conv2d", init, forward, lambda residuals, dy: layer.backward(residuals[0], dy))


def stale(layer: Layer) -> Layer:
    """Of one that remembers: its gradient of the filters made with the batch before."""

    def backward(residuals, dy):
        own, previous = residuals
        old = own._replace(saved=own.saved._replace(image=previous.astype(dy.dtype)))
        gradients, _ = layer.backward((old, previous), dy)
        return gradients, layer.backward(residuals, dy)[1]

    return dataclasses.replace(layer, backward=backward)


def overwritten(block: Layer) -> Layer:
    """A residual block whose two gradients by x overwrite each other where they should be added."""

    def backward(residuals, dy):
        gradients, dx = block.layers[0].backward(residuals.branches[0], dy)
        return {"layer": gradients}, dx

    return dataclasses.replace(block, backward=backward)


XWB = planted_dense.XWB
SQUARE = planted_dense.SQUARE
LOGITS = planted_loss.BY_INDEX
REMEMBERS = remembering(Conv2D(4, 3, bias=False), batch=2)
BLOCK = residual(Dense(5))


def _own(name: str, kind: str, changed, arrays, causes: str, right=None) -> Mistake:
    return Mistake(name, kind, fault(name, changed, arrays, causes, right=right))


OWN = [
    _own("stale input, of the step before", "conv2d", stale(REMEMBERS), [normal(2, 5, 4, 3)], "zero", REMEMBERS),
    _own("W for Wᵀ", "dense", of_square(lambda r, dy, dx, dw, db: (dy @ r.w, dw, db)), SQUARE, "transposed"),
    _own(
        "weight gradient transposed", "dense", of_square(lambda r, dy, dx, dw, db: (dx, dw.T, db)), SQUARE, "transposed"
    ),
    _own("bias gradient averaged, not summed", "dense", after(jaxcnn.dense, averaged), XWB, "scaled"),
    _own("shortcut's gradient overwritten", "residual", overwritten(BLOCK), [normal(4, 5)], "unknown partial", BLOCK),
    _own("1/N twice", "loss", of_loss(lambda z, y, n: (jax.nn.softmax(z) - y) / n**2), LOGITS, "scaled"),
    _own("softmax's derivative taken for 1", "loss", of_loss(softmax_left_out), LOGITS, "unknown"),
    _own("sigmoid for softmax", "loss", of_loss(lambda z, y, n: (jax.nn.sigmoid(z) - y) / n), LOGITS, "unknown"),
]

MISTAKES: list[Mistake] = [
    *_from(
        planted_convolution,
        jaxcnn.conv2d,
        "filter not turned",
        "filter gradient turned",
        "taps in column-major order",
        "image gradient: padding off by one",
        "image gradient has an empty frame",
        "image gradient left out",
        "image gradient negated",
        "filter gradient negated",
        "filter gradient of the first sample",
        "filter gradient: image and dy of different samples",
        "last filter left out",
    ),
    *_from(
        planted_dense,
        jaxcnn.dense,
        "bias gradient negated",
        "weight gradient of the first sample",
        "weights frozen",
        "no gradient for the layer below",
    ),
    *_from(
        planted_normalization,
        jaxcnn.batch_norm,
        "statistics taken for constants",
        "mean taken for a constant",
        "variance taken for a constant",
        "not divided by σ",
        "scale left out of dx",
        "dscale and dshift exchanged",
    ),
    *_from(
        planted_activation,
        jaxcnn.relu,
        "mask y >= 0 passes everything",
        "mask of dy",
        "guided backpropagation",
        "mask inverted",
        "dy clipped to ±1",
    ),
    *_from(
        planted_pooling,
        jaxcnn.max_pool,
        "all ties get the gradient",
        "the whole window gets the gradient",
        "average pooling's gradient",
        "row and column of the winner exchanged",
        "winners of sample 0 for all samples",
    ),
    *[m._replace(kind="loss") for m in _from(
        planted_loss, jaxcnn.softmax_cross_entropy, "1/N missing", "a for a - y", "labels counted from one"
    )],
    *OWN,
]  # fmt: skip


# --- the network that makes them ------------------------------------------------------------------------------------


def network_of(mistakes: Sequence[Mistake], channels: int = 8) -> Layer:
    """Right as variant 0 and with the mistakes as 1, 2, …, each in every layer of its kind.

    Two convolutions, each with batch normalisation, ReLU and pooling, a dense layer, one within a residual block, and
    one for the logits.
    """

    def made(kind, constructor):
        right = constructor(None)
        return one_of(right, {i: constructor(m.fault.rule) for i, m in enumerate(mistakes, 1) if m.kind == kind})

    def chosen(constructor):
        return lambda rule: constructor() if rule is None else constructor(rule=rule)

    def convolution(changed):
        """A rule changed, or what the input was: the one mistake that is not in a rule."""
        if isinstance(changed, Layer):
            return stale(convolution(None))
        rule = jaxcnn.conv2d if changed is None else changed
        return remembering(Conv2D(channels, 3, bias=False, rule=rule))

    def stage():
        normalized, rectified, pooled = (
            made(kind, chosen(layer))
            for kind, layer in (("batch_norm", BatchNorm), ("relu", ReLU), ("max_pool", MaxPool))
        )
        return made("conv2d", convolution), normalized, rectified, pooled

    def dense(features):
        return made("dense", lambda rule: Dense(features, rule=jaxcnn.dense if rule is None else rule))

    rectified, width = made("relu", chosen(ReLU)), 4 * channels

    def block(changed):
        right = residual(sequential(dense(width), rectified))
        return right if changed is None else overwritten(right)

    return sequential(
        *stage(), *stage(), Flatten(), dense(width), rectified, made("residual", block), dense(10),
        made("loss", before_loss), name="network",
    )  # fmt: skip


def before_loss(changed: Rule | None) -> Layer:
    """The logits as they are; backward what the changed loss would have given in place of the right one."""

    def forward(logits):
        return logits, logits

    # The right gradient (a - y)/N is negative at the label alone, or zero there and elsewhere, a being 1 at the label:
    # so the label can be told from it.
    def backward(logits, dy):
        if changed is None:
            return (dy,)
        lowest = dy == dy.min(-1, keepdims=True)
        labels = jnp.where(lowest, logits, -jnp.inf).argmax(-1)
        _, residuals = changed.forward(logits, labels, **changed.static())
        return changed.backward(residuals, jnp.ones((), logits.dtype), **changed.static())[:1]

    return from_rule(Rule(forward, backward, "before_loss", batch_axes=(0,)), "before_loss")


def sample_of(batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images and labels, for tests."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 8, 8, 1)).astype(np.float32), rng.integers(0, 10, batch)
