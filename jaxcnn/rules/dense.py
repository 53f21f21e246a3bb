"""The dense layer, and the source's backward pass of a whole layer of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats
from jaxcnn.rules.platform import by_platform, materialised


class DenseResiduals(NamedTuple):
    x: Array  # as given, for dw
    w: Array  # as given, for dx


def dense_forward(x: Array, w: Array, b: Array | None = None) -> tuple[Array, DenseResiduals]:
    """The product x w + b.

    Args:
      x: (N, in), or with any leading axes (..., in), floating.
      w: (in, out), of x's dtype.
      b: (out,), of x's dtype, or None.

    Returns:
      (..., out), of x's dtype.

    Raises:
      ValueError: shapes that do not fit. TypeError: dtypes that are not floating or not equal.

    Source: the course text, part 2 "Backprop Theory", z = a W + b.

    >>> dense(jnp.ones((2, 3)), jnp.ones((3, 4)), jnp.zeros(4))
    Array([[3., 3., 3., 3.],
           [3., 3., 3., 3.]], dtype=float32)
    """
    if w.ndim != 2:
        raise ValueError(f"dense: w must be (in, out), got shape {w.shape}")
    if x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"dense: x must be (..., {w.shape[0]}) for w {w.shape}, got shape {x.shape}")
    if b is not None and b.shape != w.shape[1:]:
        raise ValueError(f"dense: b must have shape {w.shape[1:]}, one value an output, got {b.shape}")
    require_equal_floats("dense", x=x, w=w, b=b)
    y = x @ w
    return (y if b is None else y + b), DenseResiduals(x, w)


# z_j = Σ_i a_i W_ij + b_j.   dL/da_i = Σ_j dL/dz_j W_ij: dy times W transposed.   dL/dW_ij = a_i dL/dz_j, summed over
# the samples: a transposed times dy.   dL/db_j = dL/dz_j · 1, summed over the samples (the source prints a factor a).
def dense_backward(residuals: DenseResiduals, dy: Array):
    x, w = residuals
    samples = math.prod(x.shape[:-1])
    rows, dys = x.reshape(samples, x.shape[-1]), dy.reshape(samples, dy.shape[-1])
    return dy @ w.T, by_platform(_sum_on_cpu, _sum, rows, dys), dys.sum(0)


def _sum(rows: Array, dys: Array) -> Array:
    return rows.T @ dys


def _sum_on_cpu(rows: Array, dys: Array) -> Array:
    """The rows turned in memory first: a product that turns them itself goes to the slower of XLA's two libraries."""
    return materialised(jnp.transpose, rows) @ dys


dense = Rule(dense_forward, dense_backward, "dense", batch_axes=(0, None, None))


# Let layer l turn a^(l-1) into z^l = a^(l-1) V + b and a^l = f(z^l), and the layer above make z^(l+1) = a^l W + ... .
# With δ = dL/dz:   δ^l = dL/da^l · f'(z^l) = (δ^(l+1) Wᵀ) · g^l,   dL/dV = a^(l-1)ᵀ δ^l,   dL/db = Σ_samples δ^l.
# So of the source's names a_l is a^(l-1), the input of the layer, W_l are the weights *above* it, and da_l is δ^l.
def backproplayer(a_l: Array, da_lp1: Array, g_l: Array | float, W_l: Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The source's backward pass of one dense layer with an activation.

    The arguments belong to different layers than their index says (`experiments/source_errata`): for the layer with
    input a_in, weights V, pre-activation z and output f(z), call `backproplayer(a_in, δ_above, f'(z), W_above)`.
    The last layer has nothing above it: give its δ (a - y for softmax with cross-entropy), g_l = 1 and the identity.

    Args:
      a_l: (N, in): the layer's input.
      da_lp1: (N, above): dL/dz of the layer above.
      g_l: (N, out) or a number: the derivative of this layer's activation, at its own pre-activation.
      W_l: (out, above): the weights of the layer above.

    Returns:
      da_l (N, out): dL/dz of this layer. dW_l (in, out): dL/d of its weights. db_l (1, out): dL/d of its bias.

    Raises:
      ValueError: shapes that do not fit. TypeError: dtypes that are not floating or not equal.

    Source: the course text, part 2 "Backprop Layer".

    >>> a_in, delta_above, W_above = jnp.ones((2, 3)), jnp.ones((2, 5)), jnp.ones((4, 5))
    >>> [d.shape for d in backproplayer(a_in, delta_above, 1.0, W_above)]
    [(2, 4), (3, 4), (1, 4)]
    """
    a_l, da_lp1, W_l = map(jnp.asarray, (a_l, da_lp1, W_l))
    for name, array in (("a_l", a_l), ("da_lp1", da_lp1), ("W_l", W_l)):
        if array.ndim != 2:
            raise ValueError(f"backproplayer: {name} must have two axes, got shape {array.shape}")
    require_equal_floats("backproplayer", a_l=a_l, da_lp1=da_lp1, W_l=W_l)
    g_l = jnp.asarray(g_l, a_l.dtype)
    if a_l.shape[0] != da_lp1.shape[0]:
        raise ValueError(
            f"backproplayer: a_l has {a_l.shape[0]} samples, da_lp1 has {da_lp1.shape[0]}; they must agree"
        )
    if W_l.shape[1] != da_lp1.shape[1]:
        raise ValueError(
            f"backproplayer: W_l must be (out, {da_lp1.shape[1]}) for da_lp1 {da_lp1.shape}, got shape {W_l.shape}"
        )
    if g_l.shape not in ((), (a_l.shape[0], W_l.shape[0])):
        needed = (a_l.shape[0], W_l.shape[0])
        raise ValueError(f"backproplayer: g_l must be a number or have shape {needed}, got {g_l.shape}")
    da_l = (da_lp1 @ W_l.T) * g_l
    dW_l = a_l.T @ da_l
    db_l = da_l.sum(axis=0, keepdims=True)
    return da_l, dW_l, db_l
