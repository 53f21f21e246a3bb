"""Planted faults of dense and flatten."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import dense, flatten

normal, _ = draws(0)

XWB = (normal(4, 3), normal(3, 5), normal(5))
SQUARE = (normal(4, 4), normal(4, 4), normal(4))  # every array but the bias has one shape
MANY = (np.abs(normal(2000, 1)), normal(1, 2), normal(2))

_BITS = {"bfloat16": (8, 7), "float16": (5, 10), "float32": (8, 23), "float64": (11, 52)}


def of_dense(change):
    """dense, its right cotangents changed: change(dx, dw, db) is what the backward pass returns."""
    return after(dense, lambda r, dy, *right: change(*right))


def raising(r, dy):
    raise ZeroDivisionError("in the backward pass")


def one_by_one(terms):
    """A sum over the first axis, each step rounded to the terms' own precision."""

    def step(total, term):
        return lax.reduce_precision(total + term, *_BITS[str(terms.dtype)]), None  # XLA would keep more digits

    return lax.scan(step, jnp.zeros_like(terms[0]), terms)[0]


DENSE = [
    fault("W for Wᵀ", after(dense, lambda r, dy, dx, dw, db: (dy @ r.w, dw, db)), SQUARE, "transposed"),
    fault("weight gradient transposed", of_dense(lambda dx, dw, db: (dx, dw.T, db)), SQUARE, "transposed"),
    fault("weight gradient transposed, other shape", of_dense(lambda dx, dw, db: (dx, dw.T, db)), XWB, "structure"),
    fault("dx and dw exchanged", of_dense(lambda dx, dw, db: (dw, dx, db)), SQUARE, "swapped"),
    fault("bias gradient averaged", broken(dense, b=lambda d: d / 4), XWB, "scaled"),
    fault("weight gradient averaged", broken(dense, w=lambda d: d / 4), XWB, "scaled"),
    fault("weight gradient times N", broken(dense, w=lambda d: d * 4), XWB, "scaled"),
    fault("weight gradient a millionth too small", broken(dense, w=lambda d: d * (1 - 1e-6)), XWB, "scaled"),
    fault("bias gradient negated", broken(dense, b=jnp.negative), XWB, "negated"),
    fault("all negated", broken(dense, dy=jnp.negative), XWB, "negated", note="ascent for descent"),
    fault("weights frozen", broken(dense, w=jnp.zeros_like), XWB, "zero"),
    fault("no gradient for the layer below", broken(dense, x=jnp.zeros_like), XWB, "zero"),
    fault("weight gradient of the first sample", broken(dense, only="w", dy=lambda d: d.at[1:].set(0)), XWB, "partial"),
    fault("last sample left out", broken(dense, only="w b", dy=lambda d: d.at[-1].set(0)), XWB, "partial"),
    fault(
        "x and dy of different samples",
        broken(dense, only="w", residuals=lambda r: r._replace(x=r.x[jnp.array([2, 0, 3, 1])])),
        XWB,
        "partial",
    ),
    fault("input gradient of shuffled samples", broken(dense, x=lambda d: d[jnp.array([2, 0, 3, 1])]), XWB, "partial"),
    fault("last output left out", broken(dense, only="w", dy=lambda d: d.at[:, -1].set(0)), XWB, "partial"),
    fault("outputs in reversed order", broken(dense, w=lambda d: d[:, ::-1]), XWB, "flipped"),
    fault(
        "bias gradient with a factor a",
        after(dense, lambda r, dy, dx, dw, db: (dx, dw, (r.x.sum(1, keepdims=True) * dy).sum(0))),
        XWB,
        "unknown",
        note="as the source prints it",
    ),
    fault(
        "weight decay in the backward pass",
        after(dense, lambda r, dy, dx, dw, db: (dx, dw + 1e-4 * r.w, db)),
        XWB,
        "not-linear",
        note="an added constant",
    ),
    fault(
        "gradient clipped to norm 1",
        broken(dense, w=lambda d: d / jnp.maximum(1, jnp.sqrt((d * d).sum()))),
        XWB,
        "not-linear",
    ),
    fault("too few cotangents", of_dense(lambda dx, dw, db: (dx, dw)), XWB, "structure"),
    fault("too many cotangents", of_dense(lambda dx, dw, db: (dx, dw, db, db)), XWB, "structure"),
    fault("a list", of_dense(lambda dx, dw, db: [dx, dw, db]), XWB, "structure"),
    fault("a dictionary", of_dense(lambda dx, dw, db: {"x": dx, "w": dw, "b": db}), XWB, "structure"),
    fault("no tuple", of_dense(lambda dx, dw, db: dx), XWB, "structure"),
    fault("None for the bias", of_dense(lambda dx, dw, db: (dx, dw, None)), XWB, "structure"),
    fault("a number for the bias", of_dense(lambda dx, dw, db: (dx, dw, db.sum())), XWB, "structure"),
    fault("one axis too many", of_dense(lambda dx, dw, db: (dx, dw, db[None])), XWB, "structure"),
    fault("float16 returned", of_dense(lambda dx, dw, db: (dx.astype(jnp.float16), dw, db)), XWB, "structure"),
    fault("raises", dense.replace(backward=raising), XWB, "structure"),
    fault("wrong signature", dense.replace(backward=lambda r: (r.x, r.w, None)), XWB, "structure"),
    fault(
        "weight gradient through bfloat16",
        broken(dense, w=lambda d: d.astype(jnp.bfloat16).astype(d.dtype)),
        XWB,
        "precision",
    ),
    fault(
        "weight gradient summed one by one",
        after(dense, lambda r, dy, dx, dw, db: (dx, one_by_one(r.x[:, :, None] * dy[:, None]), db)),
        MANY,
        "precision",
        why="bfloat16",
        note="2,000 steps of bfloat16",
    ),
    fault(
        "weights held constant",
        broken(dense, residuals=lambda r: r._replace(w=lax.stop_gradient(r.w))),
        XWB,
        "second-order",
        why="second order",
    ),
    fault(
        "dy held constant in dw", broken(dense, only="w", dy=lax.stop_gradient), XWB, "second-order", why="second order"
    ),
    fault(
        "batch size written into the code",
        broken(dense, dy=lambda d: d.reshape(4, 5)),
        XWB,
        "structure",
        why="smaller batch",
    ),
]


CUBOID, SLAB = (normal(2, 3, 3, 2),), (normal(3, 2, 4, 3),)


def in_order(*axes):
    """Rows read in another order of H, W and C than they were written in."""

    def backward(r, dy):
        n, *rest = r.shape.value
        turned = dy.reshape(n, *(rest[a] for a in axes))
        return (jnp.moveaxis(turned, (1, 2, 3), [1 + a for a in axes]),)

    return flatten.replace(backward=backward)


FLATTEN = [
    fault("columns first", in_order(1, 0, 2), CUBOID, "transposed"),
    fault("columns first, oblong image", in_order(1, 0, 2), SLAB, "transposed"),
    fault("channels first", in_order(2, 0, 1), SLAB, "transposed", note="a row read as C×H×W"),
    fault("samples last", flatten.replace(backward=lambda r, dy: (dy.T.reshape(r.shape.value),)), SLAB, "transposed"),
    fault(
        "rows from the end",
        broken(flatten, dy=lambda d: d[:, ::-1]),
        SLAB,
        "flipped unknown",
        note="H, W and C all reversed",
    ),
    fault("image upside down", broken(flatten, x=lambda d: d[:, ::-1]), SLAB, "flipped"),
    fault("image mirrored", broken(flatten, x=lambda d: d[:, :, ::-1]), SLAB, "flipped"),
    fault("image turned", broken(flatten, x=lambda d: d[:, ::-1, ::-1]), SLAB, "rotated"),
    fault("one column off", broken(flatten, x=lambda d: jnp.roll(d, 1, 2)), SLAB, "shifted"),
    fault("samples in another order", broken(flatten, x=lambda d: d[jnp.array([1, 0, 2])]), SLAB, "partial"),
    fault("rows not turned back into images", flatten.replace(backward=lambda r, dy: (dy,)), SLAB, "structure"),
    fault("negated", broken(flatten, x=jnp.negative), SLAB, "negated"),
    fault("averaged", broken(flatten, x=lambda d: d / 3), SLAB, "scaled"),
    fault("last channel left out", broken(flatten, x=lambda d: d.at[..., -1].set(0)), SLAB, "partial"),
    fault("through float32", broken(flatten, x=lambda d: d.astype(jnp.float32).astype(d.dtype)), SLAB, "precision"),
]

FAULTS = DENSE + FLATTEN
