"""Errata of part 2, backward propagation: the theory, and the layer's backward pass.

What the corrections mean by their symbols: the rows of a^(l-1) are the N samples, the weights W^l are (in, out), and

    z^l = a^(l-1) W^l + b^l,    a^l = f(z^l),    g^l = f'(z^l),    δ^l = ∂L/∂z^l    (the text writes ∂L/∂a^l for it).

All layers here are as wide as there are samples, so that every printed product can be computed: the error then shows
in its values, not merely in shapes that do not fit.
"""

# ruff: noqa: E741 (l is the layer, as in the formulas)

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from erratum import Array, Case, Erratum, Three, erratum, run_printed

from jaxcnn import backproplayer, dense, sigmoid

ERRATA: list[Erratum] = []
enter = functools.partial(erratum, ERRATA)

BACKPROPLAYER = """\
def backproplayer(a_l, da_lp1, g_l, W_l):
    da_l = np.dot(da_lp1 , W_l.T) * g_l
    dW_l = np.dot(a_l.T , da_l)
    db_l = np.sum(da_l, axis=0, keepdims=True)
    return da_l, dW_l, db_l
"""


class Chain(NamedTuple):
    """L sigmoid layers under the loss Σ c ⊙ a^L. Lists are indexed by the layer; index 0 is the input's."""

    W: list[Array]  # (in, out)
    b: list[Array]  # (out,)
    a: list[Array]  # (N, width)
    g: list[Array]  # (N, width): a (1 - a)
    c: Array  # (N, width): ∂L/∂a^L

    @property
    def L(self) -> int:
        return len(self.W) - 1


class Gradients(NamedTuple):
    """By the layer, like a Chain's lists."""

    dW: list[Array]
    db: list[Array]
    dz: list[Array]  # δ
    da: list[Array]


def chain(case: Case, layers: int = 4) -> Chain:
    rng, width = case.rng(), 2 + case.size
    W: list[Array] = [rng.normal(size=(width, width)) for _ in range(layers + 1)]
    b: list[Array] = [rng.normal(size=width) for _ in range(layers + 1)]
    a: list[Array] = [rng.normal(size=(width, width))]
    for l in range(1, layers + 1):
        a.append(np.asarray(sigmoid(dense(a[l - 1], W[l], b[l]))))
    return Chain(W, b, a, [x * (1 - x) for x in a], rng.normal(size=(width, width)))


def by_autodiff(net: Chain) -> Gradients:
    """`jax.grad` of the plain forward pass; zeros added to each z and each a give the gradients by z and by a."""

    def loss(W, b, z0, a0):
        a = net.a[0] + a0[0]
        for l in range(1, net.L + 1):
            a = 1 / (1 + jnp.exp(-(a @ W[l] + b[l] + z0[l]))) + a0[l]
        return jnp.sum(net.c * a)

    zeros = [np.zeros_like(a) for a in net.a]
    return Gradients(*jax.grad(loss, (0, 1, 2, 3))(net.W, net.b, zeros, zeros))


def by_hand(net: Chain) -> Gradients:
    """The corrected backward pass: `backproplayer` from the last layer to the first."""
    lists: list[list[Array]] = [[None] * (net.L + 2) for _ in range(4)]
    dW, db, dz, da = lists
    dz[net.L + 1], above = net.c, jnp.eye(len(net.c))  # nothing above the last layer: the identity
    for l in range(net.L, 0, -1):
        da[l] = dz[l + 1] @ above.T
        dz[l], dW[l], row = backproplayer(net.a[l - 1], dz[l + 1], net.g[l], above)
        db[l], above = row[0], net.W[l]
    return Gradients(dW, db, dz, da)


def printed_backproplayer(a_l, da_lp1, g_l, W_l):
    """The source's function as it stands there, in NumPy."""
    arrays = map(np.asarray, (a_l, da_lp1, g_l, W_l))
    return run_printed(BACKPROPLAYER, 98)["backproplayer"](*arrays)


@functools.cache  # many errata ask for the same
def hidden_layer(case: Case) -> tuple[Chain, Gradients, Gradients, int]:
    """The chain, its gradients by hand and by autodiff, and the l of the formulas: a layer between others."""
    net = chain(case)
    return net, by_hand(net), by_autodiff(net), 2


# The chain of line 89 holds in neither of the text's two notations. If W^l leads out of layer l (line 87), Z^(L-1) is
# the first that depends on W^(L-2), and the expansion goes one layer too far. If W^l leads into layer l (lines 120 to
# 127), the expansion is right, but its factors are ∂Z^L/∂a^(L-1) = W^L, ∂Z^(L-1)/∂a^(L-2) = W^(L-1), and a^(L-3).


@enter(
    "Backprop Theory", "line 89", "error",
    "`∂L/∂W^(L-2) = ∂L/∂a^L g^L W^(L-1) g^(L-1) W^(L-2) g^(L-2) a^(L-2)`, with W^l out of layer l as in line 87",
    "`∂L/∂a^L g^L W^(L-1) g^(L-1) a^(L-2)`: one layer less",
)  # fmt: skip
def chain_with_weights_out_of_layer(case: Case) -> Three:
    net, hand, auto, _ = hidden_layer(case)
    L, W, g = net.L, net.W[1:], net.g  # W[l] now leads out of layer l

    def printed():
        d = (net.c * g[L]) @ W[L - 1].T * g[L - 1] @ W[L - 2].T * g[L - 2]
        return net.a[L - 2].T @ d

    return printed, lambda: hand.dW[L - 1], lambda: auto.dW[L - 1]


@enter(
    "Backprop Theory", "line 89", "error",
    "the same, with W^l into layer l as in lines 120–127",
    "`∂L/∂a^L g^L W^L g^(L-1) W^(L-1) g^(L-2) a^(L-3)`: other indices",
)  # fmt: skip
def chain_with_weights_into_layer(case: Case) -> Three:
    net, hand, auto, _ = hidden_layer(case)
    L, W, g = net.L, net.W, net.g

    def printed():
        d = (net.c * g[L]) @ W[L - 1].T * g[L - 1] @ W[L - 2].T * g[L - 2]
        return net.a[L - 2].T @ d

    return printed, lambda: hand.dW[L - 2], lambda: auto.dW[L - 2]


@enter(
    "Backprop Theory", "lines 89, 120, 126", "imprecise",
    "`∂L/∂a^l = ∂L/∂a^(l+1) g^l W`, taken at its word",
    "`∂L/∂a^l = ∂L/∂a^(l+1) g^(l+1) W`; as printed it holds for `∂L/∂z`",
)  # fmt: skip
def gradient_by_activation(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return (
        lambda: (hand.da[l + 1] @ net.W[l + 1].T) * net.g[l],
        lambda: jax.vjp(lambda a: sigmoid(dense(a, net.W[l + 1], net.b[l + 1])), net.a[l])[1](hand.da[l + 1])[0],
        lambda: auto.da[l],
    )


@enter(
    "Backprop Theory", "lines 89, 121, 127", "imprecise",
    "`∂L/∂W^l = ∂L/∂a^l a^(l-1)`, taken at its word", "`∂L/∂a^l g^l a^(l-1)`; as printed it holds for `∂L/∂z`",
)  # fmt: skip
def weight_gradient_by_activation(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return (
        lambda: net.a[l - 1].T @ hand.da[l],
        lambda: jax.vjp(lambda W: sigmoid(dense(net.a[l - 1], W, net.b[l])), net.W[l])[1](hand.da[l])[0],
        lambda: auto.dW[l],
    )


@enter(
    "Backprop Theory", "line 89", "imprecise",
    "`∂L/∂a^l = ∂L/∂a^(l+1) g^l W^l`, against line 126",
    "`W^(l+1)`; `W^l` only where W^l leads out of layer l",
)  # fmt: skip
def recurrence_weights(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return lambda: (hand.dz[l + 1] @ net.W[l].T) * net.g[l], lambda: hand.dz[l], lambda: auto.dz[l]


@enter(
    "Backprop Theory", "line 89", "error",
    "`∂L/∂W^l = ∂L/∂a^l a^L`", "`∂L/∂a^l a^(l-1)`: the layer's input, not the network's output",
)  # fmt: skip
def weight_gradient_input(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return lambda: net.a[net.L].T @ hand.dz[l], lambda: hand.dW[l], lambda: auto.dW[l]


@enter(
    "Backprop Theory", "line 89", "error",
    "`∂L/∂b^l = ∂L/∂a^l a^L`", "`∂L/∂b^l = Σ ∂L/∂z^l` over the samples: no factor a, as the code has it",
)  # fmt: skip
def bias_gradient(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return lambda: np.sum(hand.dz[l] * net.a[net.L], axis=0), lambda: hand.db[l], lambda: auto.db[l]


@enter(
    "Backprop Theory", "lines 89, 120, 126", "imprecise",
    "`∂L/∂a^(l+1) g^l W^(l+1)`, multiplied in this order",
    "`(∂L/∂z^(l+1) (W^(l+1))ᵀ) ⊙ g^l`: W transposed, g after it and by elements",
)  # fmt: skip
def recurrence_transposed(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return lambda: (hand.dz[l + 1] * net.g[l]) @ net.W[l + 1], lambda: hand.dz[l], lambda: auto.dz[l]


@enter(
    "Backprop Theory", "lines 89, 111, 121, 127", "imprecise",
    "`∂L/∂a^l a^(l-1)`, multiplied in this order", "`(a^(l-1))ᵀ ∂L/∂z^l`, as the code has it",
)  # fmt: skip
def weight_gradient_transposed(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return lambda: hand.dz[l] @ net.a[l - 1], lambda: hand.dW[l], lambda: auto.dW[l]


@enter(
    "Summary", "line 93", "imprecise",
    "for `∂L/∂a^l` and then `∂L/∂w^l` calculate `g^(l+1)`", "`g^l`, as the formulas and the code have it",
)  # fmt: skip
def summary_index(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return (
        lambda: printed_backproplayer(net.a[l - 1], hand.dz[l + 1], net.g[l + 1], net.W[l + 1])[1],
        lambda: backproplayer(net.a[l - 1], hand.dz[l + 1], net.g[l], net.W[l + 1])[1],
        lambda: auto.dW[l],
    )


@enter(
    "Backprop Layer", "lines 98, 100", "error",
    "`dW_l = np.dot(a_l.T, da_l)` with `a_l` = a^l", "`a_l` must be a^(l-1), the layer's input",
)  # fmt: skip
def backproplayer_input(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return (
        lambda: printed_backproplayer(net.a[l], hand.dz[l + 1], net.g[l], net.W[l + 1])[1],
        lambda: backproplayer(net.a[l - 1], hand.dz[l + 1], net.g[l], net.W[l + 1])[1],
        lambda: auto.dW[l],
    )


@enter(
    "Backprop Layer", "lines 98, 99", "error",
    "`da_l = np.dot(da_lp1, W_l.T) * g_l` with the `W_l` that `dW_l` is the gradient of",
    "`W_l` must be the weights of the layer above, W^(l+1)",
)  # fmt: skip
def backproplayer_weights(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return (
        lambda: printed_backproplayer(net.a[l - 1], hand.dz[l + 1], net.g[l], net.W[l])[0],
        lambda: backproplayer(net.a[l - 1], hand.dz[l + 1], net.g[l], net.W[l + 1])[0],
        lambda: auto.dz[l],
    )


@enter(
    "Backprop Layer", "lines 93, 99", "imprecise",
    "`da_l` is the derivative by the activation", "it is `∂L/∂z^l`; `∂L/∂a^l` is `np.dot(da_lp1, W_l.T)` without `g_l`",
)  # fmt: skip
def backproplayer_returns_delta(case: Case) -> Three:
    net, hand, auto, l = hidden_layer(case)
    return (
        lambda: printed_backproplayer(net.a[l - 1], hand.dz[l + 1], net.g[l], net.W[l + 1])[0],
        lambda: jax.vjp(lambda a: dense(a, net.W[l + 1]), net.a[l])[1](hand.dz[l + 1])[0],
        lambda: auto.da[l],
    )
