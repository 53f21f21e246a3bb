"""Errata of part 2, backward propagation: the softmax layer and the sigmoid layer below it.

The symbols are those of `part2_theory`; here too all layers are as wide as there are samples.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from erratum import Array, Case, Erratum, Three, erratum, run_printed
from part2_theory import BACKPROPLAYER, hidden_layer, printed_backproplayer

from jaxcnn import backproplayer, softmax_cross_entropy

ERRATA: list[Erratum] = []
enter = functools.partial(erratum, ERRATA)

SOFTMAX_CALL = "da_Lm1, dW_L, db_L = backproplayer(softmax(a_Lm1,W_L,b_L), delta, 1, W_L):"


class Softmax(NamedTuple):
    """The last layer, under the mean of the cross-entropy."""

    a: Array  # (N, in): a^(L-1)
    W: Array  # (in, classes)
    b: Array  # (classes,)
    y: Array  # (N, classes), one-hot

    @property
    def z(self) -> Array:
        return self.a @ self.W + self.b

    @property
    def delta(self) -> Array:
        """(a - y) / N."""
        return np.asarray(jax.vjp(lambda z: softmax_cross_entropy(z, self.y), self.z)[1](np.float64(1))[0])

    def loss(self, W, b) -> jax.Array:
        """The plain forward pass."""
        return cross_entropy(jax.nn.softmax(self.a @ W + b), self.y)


def softmax_layer(case: Case) -> Softmax:
    rng, width = case.rng(), 2 + case.size
    y = np.eye(width)[rng.integers(width, size=width)]
    return Softmax(rng.normal(size=(width, width)), rng.normal(size=(width, width)), rng.normal(size=width), y)


def cross_entropy(a, y) -> jax.Array:
    return -jnp.mean(jnp.sum(y * jnp.log(a), axis=-1))


def printed_call(top: Softmax, line: str = SOFTMAX_CALL) -> tuple[Array, Array]:
    """(dW_L, db_L) of the source's call for softmax, (in, classes) and (classes,) if it were right."""
    names = run_printed(BACKPROPLAYER, 98) | {
        "softmax": lambda a, W, b: np.asarray(jax.nn.softmax(a @ W + b)),
        "a_Lm1": top.a, "W_L": top.W, "b_L": top.b, "delta": top.delta,
    }  # fmt: skip
    names = run_printed(line, 115, **names)
    return names["dW_L"], names["db_L"][0]


def corrected_call(top: Softmax) -> tuple[jax.Array, jax.Array]:
    _, dW_L, db_L = backproplayer(top.a, top.delta, 1, jnp.eye(len(top.b)))
    return dW_L, db_L[0]


@enter(
    "Backward Softmax", "line 107", "error",
    "`g_softmax = ∂a/∂Z = 1`", "`∂a_i/∂Z_j = a_i ([i = j] - a_j)`; only `δ = ∂L/∂Z` as a whole is simple",
)  # fmt: skip
def softmax_derivative(case: Case) -> Three:
    z = softmax_layer(case).z
    a, c = np.asarray(jax.nn.softmax(z)), case.rng().normal(size=z.shape)
    return (
        lambda: c * 1,
        lambda: a * (c - np.sum(c * a, axis=-1, keepdims=True)),
        lambda: jax.vjp(lambda z: jnp.exp(z) / jnp.exp(z).sum(-1, keepdims=True), z)[1](c)[0],
    )


@enter(
    "Backward Softmax", "line 109", "imprecise",
    "`∂L/∂a^L = δ (∂a_softmax/∂Z) = δ`", "`∂L/∂z^L = δ`; by a^L itself it is `-y / (N a^L)`",
)  # fmt: skip
def softmax_gradient_by_output(case: Case) -> Three:
    top = softmax_layer(case)
    a = np.asarray(jax.nn.softmax(top.z))
    return lambda: top.delta, lambda: -top.y / a / len(a), lambda: jax.grad(cross_entropy)(a, top.y)


@enter(
    "Backward Softmax", "line 109", "imprecise",
    "`δ`, which the text nowhere defines, read as `a - y`", "`(a - y) / N` where the loss is the mean over N samples",
)  # fmt: skip
def softmax_mean(case: Case) -> Three:
    top = softmax_layer(case)
    return (
        lambda: np.asarray(jax.nn.softmax(top.z)) - top.y,
        lambda: top.delta,
        lambda: jax.grad(lambda z: cross_entropy(jax.nn.softmax(z), top.y))(top.z),
    )


@enter(
    "Backward Softmax", "line 111", "imprecise",
    "`∂L/∂W^(L-1) = δ a^(L-1)`, against line 121", "`∂L/∂W^L`; `∂L/∂W^(L-1)` is what line 121 gives",
)  # fmt: skip
def softmax_weights_index(case: Case) -> Three:
    net, hand, auto, _ = hidden_layer(case)
    L = net.L
    return lambda: net.a[L - 1].T @ hand.dz[L], lambda: hand.dW[L - 1], lambda: auto.dW[L - 1]


@enter(
    "Backward Softmax", "line 115", "error",
    "`da_Lm1, dW_L, db_L = backproplayer(...):`", "no colon at the end", raises="SyntaxError",
)  # fmt: skip
def softmax_call_colon(case: Case) -> Three:
    top = softmax_layer(case)
    return lambda: printed_call(top)[0], lambda: corrected_call(top)[0], lambda: jax.grad(top.loss)(top.W, top.b)


@enter(
    "Backward Softmax", "line 115", "error",
    "`backproplayer(softmax(a_Lm1,W_L,b_L), ...)`", "`backproplayer(a_Lm1, ...)`: the layer's input, not its output",
)  # fmt: skip
def softmax_call_input(case: Case) -> Three:
    top = softmax_layer(case)
    return (
        lambda: printed_call(top, SOFTMAX_CALL.rstrip(":"))[0],
        lambda: corrected_call(top)[0],
        lambda: jax.grad(top.loss)(top.W, top.b),
    )


@enter(
    "Backward Softmax", "line 115", "error",
    "`backproplayer(..., delta, 1, W_L)`: `delta` goes through `W_L` before `dW_L` and `db_L` are made of it",
    "`backproplayer(..., delta, 1, np.eye(classes))`: no layer lies above the last",
)  # fmt: skip
def softmax_call_weights(case: Case) -> Three:
    top = softmax_layer(case)
    return (  # db_L, since it does not depend on the first argument, the call's other error
        lambda: printed_call(top, SOFTMAX_CALL.rstrip(":"))[1],
        lambda: corrected_call(top)[1],
        lambda: jax.grad(top.loss, 1)(top.W, top.b),
    )


@enter(
    "Backward Softmax", "line 115", "imprecise",
    "`da_Lm1` = δ (W^L)ᵀ, for `da_lp1` of the next call",
    "the next call wants `delta`: it multiplies by `W_L.T` itself, then by `g_l`",
)  # fmt: skip
def softmax_call_returns(case: Case) -> Three:
    net, hand, auto, _ = hidden_layer(case)
    L = net.L
    d_Lm1 = hand.dz[L] @ net.W[L].T * 1  # what the call for the last layer returns, for any first argument
    return (
        lambda: printed_backproplayer(net.a[L - 2], d_Lm1, net.g[L - 1], net.W[L])[0],
        lambda: backproplayer(net.a[L - 2], hand.dz[L], net.g[L - 1], net.W[L])[0],
        lambda: auto.dz[L - 1],
    )


@enter(
    "Backward Sigmoid", "line 120", "error",
    "`∂L/∂a^L g^(L-1) W^L = δ g^(L-1)`", "`(δ (W^L)ᵀ) ⊙ g^(L-1)`: the second form drops W",
)  # fmt: skip
def sigmoid_weights_dropped(case: Case) -> Three:
    net, hand, auto, _ = hidden_layer(case)
    L = net.L
    return lambda: hand.dz[L] * net.g[L - 1], lambda: hand.dz[L - 1], lambda: auto.dz[L - 1]
