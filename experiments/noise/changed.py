"""A combinator of layers: the forward pass stays, what the backward pass gives is changed at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxcnn

Change = Callable[[jax.Array, Any, Mapping[str, jax.Array]], Any]  # (key, gradients, settings) -> gradients


class ChangedResiduals(NamedTuple):
    saved: Any  # the layer's own
    key: Any  # of this step and layer; None outside of training, where no backward pass runs
    settings: dict[str, jax.Array]


def changed(
    layer: jaxcnn.Layer, change: Change, settings: Mapping[str, Any], *, arriving: bool = False
) -> jaxcnn.Layer:
    """The layer, with the gradients of its parameters changed by `change`, and the dy that it is given if `arriving`.

    Randomness is a function of the key that the step gives the layer: a run can be repeated.

    Args:
      settings: numbers kept in the layer's state, () arrays there, so that one compiled program serves all of them.
        Among them `change` also finds "step", how many steps of training went before.
    """
    numbers = {name: jnp.result_type(value) for name, value in settings.items()}

    def init(key, input_shape):
        params, state, shape = layer.init(key, input_shape)
        kept = {name: jnp.asarray(settings[name], dtype) for name, dtype in numbers.items()}
        return params, {"layer": state, "step": jnp.zeros((), jnp.int32), **kept}, shape

    def forward(params, state, x, *, train=False, key=None):
        own, inner = (None, None) if key is None else jax.random.split(key)
        y, new_state, saved = layer.forward(params, state["layer"], x, train=train, key=inner)
        counted = {**state, "layer": new_state, "step": state["step"] + int(train)}
        return y, counted, ChangedResiduals(saved, own, {name: state[name] for name in ("step", *numbers)})

    def backward(residuals, dy):
        saved, key, settings = residuals
        at_dy, at_parameters = jax.random.split(key)
        dparams, dx = layer.backward(saved, change(at_dy, dy, settings) if arriving else dy)
        return change(at_parameters, dparams, settings), dx

    return jaxcnn.Layer(layer.name, init, forward, backward)
