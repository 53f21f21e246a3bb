"""Backward passes that carry the error back by other weights than the forward pass has, one layer for all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxcnn
from jaxcnn import Dense, Layer, conv2d, dense, sequential

METHODS = ("BP", "FA", "uSF", "brSF", "frSF", "DFA")  # by the "variant" in a layer's state


def feedback_weights(variant: Any, weights: Any, fixed: Any, drawn: Callable[[], Any]) -> Any:
    """The weights B in whose place backpropagation has W, a tree like `weights`.

    With M the fixed random weights, s their root mean square and M' others, drawn for this batch:

        BP: W      FA: M      uSF: s·sign(W)      brSF: |M'|·sign(W)      frSF: |M|·sign(W)

    Liao et al. have s = 1; BioTorch takes the deviation of the initial weights, against exploding gradients. DFA has no
    such weights.
    """

    def with_signs(magnitudes):
        return jax.tree.map(lambda m, w: jnp.abs(m) * jnp.sign(w), magnitudes, weights)

    def mean_sizes():
        return jax.tree.map(lambda m: jnp.full_like(m, jnp.sqrt((m**2).mean())), fixed)

    by_method = {
        "BP": lambda: weights,
        "FA": lambda: fixed,
        "uSF": lambda: with_signs(mean_sizes()),
        "brSF": lambda: with_signs(drawn()),
        "frSF": lambda: with_signs(fixed),
        "DFA": lambda: weights,
    }
    return jax.lax.switch(variant, [by_method[method] for method in METHODS])


class FeedbackResiduals(NamedTuple):
    saved: Any  # the layer's own, had B been its weights
    direct: jax.Array  # outputs × in
    variant: jax.Array
    error: Any = None  # the cotangent of the network's output, where `telling_the_error` has put it


def with_feedback(layer: Layer, outputs: int) -> Layer:
    """A convolution or a dense layer whose dx, and nothing else, is made as one of METHODS says.

    State: "variant", the number of the method, () int32; "fixed", random weights of the distribution that the
    parameters start from; "direct", of a dense layer's from x to the network's outputs, transposed. In training the
    forward pass needs a key, of which brSF draws; outside of it that takes the fixed weights.
    """

    def init(key, input_shape):
        own, other, direct = jax.random.split(key, 3)
        params, _, shape = layer.init(own, input_shape)
        straight = Dense(outputs).init(direct, (math.prod(input_shape),))[0]["weights"]
        fixed = layer.init(other, input_shape)[0]
        return params, {"fixed": fixed, "direct": straight.T, "variant": jnp.zeros((), jnp.int32)}, shape

    def forward(params, state, x, *, train=False, key=None):
        if train and key is None:
            raise ValueError(
                f"{layer.name}: got no key; training needs one: forward(params, state, x, train=True, key=key)"
            )

        def drawn():
            return layer.init(key, x.shape[1:])[0] if train else state["fixed"]

        instead = feedback_weights(state["variant"], params, state["fixed"], drawn)
        saved = layer.forward(instead, {}, x)[2]  # this output is not used, and not computed under jit
        y = layer.forward(params, {}, x)[0]
        return y, state, FeedbackResiduals(saved, state["direct"], state["variant"])

    # y = x W + b:   dL/dx = dL/dy Wᵀ, with B for W here.   dL/dW = xᵀ dL/dy and dL/db know nothing of W.
    # Direct: dL/dx = e D, with e the cotangent of the network's output.
    def backward(residuals, dy):
        def chained():
            return layer.backward(residuals.saved, dy)

        def direct():
            like = jax.eval_shape(chained)[1]
            return (residuals.error @ residuals.direct).reshape(like.shape).astype(like.dtype)

        if residuals.error is None:
            return chained()
        is_direct = residuals.variant == METHODS.index("DFA")
        return chained()[0], jax.lax.cond(is_direct, direct, lambda: chained()[1])

    def reference(params, state, x, *, train=False, key=None):
        return layer.plain(params, {}, x)[0], state

    return Layer(layer.name, init, forward, backward, reference=reference)


def telling_the_error(network: Layer) -> Layer:
    """A `sequential`, of whose backward pass each layer with feedback is told the cotangent of the output."""

    def backward(residuals, dy):
        told = (r._replace(error=dy) if isinstance(r, FeedbackResiduals) else r for r in residuals)
        return network.backward(tuple(told), dy)

    return dataclasses.replace(network, backward=backward, rebuild=None)


def lenet(outputs: int = 10) -> Layer:
    """`jaxcnn.models.lenet5` with all of METHODS. Of its first layer the dx is not used: that has no feedback."""
    first, *others = jaxcnn.models.lenet5(outputs).layers
    changed = (with_feedback(one, outputs) if one.rule in (conv2d, dense) else one for one in others)
    return telling_the_error(sequential(first, *changed, name="lenet5"))
