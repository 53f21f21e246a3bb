"""Which value of a training step was the first that is not finite: the step once more, by hand, layer by layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule, Static
from jaxcnn.training.names import name_of
from jaxcnn.training.step import TrainState


def first_nonfinite(
    network: Layer, loss: Rule, optimizer: optax.GradientTransformation, state: TrainState, images: Any, labels: Any
) -> str | None:
    """What the step from `state` meets first that is NaN or infinite, in words; None where all is finite.

    In the order of the computation: the parameters, the images, the output of each layer, the loss, then from the last
    layer to the first the gradients of its parameters and of its input, then what the optimizer makes of them. The
    whole batch passes at once, on one device; with more devices or micro-batches random layers draw otherwise.

    Args:
      state: before the step. images: N×H×W×C, labels: (N, ...), those of the step.

    >>> import jaxcnn, optax
    >>> network = jaxcnn.models.source()
    >>> optimizer = optax.sgd(0.1)
    >>> state = jaxcnn.init_train_state(network, optimizer, 0, (8, 8, 1))
    >>> images = np.zeros((2, 8, 8, 1), np.float32)
    >>> images[1, 3, 5, 0] = np.inf
    >>> first_nonfinite(network, jaxcnn.softmax_cross_entropy, optimizer, state, images, np.zeros(2, int))
    'the image [1, 3, 5, 0] is inf'
    """
    found: list[str] = []
    params, net_state, key = state.params, state.state, jax.random.fold_in(state.key, state.step)
    for path, leaf in jax.tree.leaves_with_path(params):
        _note(found, f"the parameter {name_of(path)}", leaf)
    _note(found, "the image", images)
    watched = _watched(network, network.name, [], found)
    images, labels = jnp.asarray(images), jnp.asarray(labels)
    with np.errstate(all="ignore"):
        logits, new_state, residuals = watched.forward(params, net_state, images, train=True, key=key)
        # Inside jit an invalid label makes the loss NaN, as in the step; outside it raises.
        value, saved = jax.jit(lambda logits, labels: loss.forward(logits, labels, **loss.static()))(logits, labels)
        _note(found, "the loss", value)
        if not found:
            dlogits, *_ = loss.backward(saved, jnp.ones_like(value), **loss.static())
            _note(found, "the gradient of the network's output", dlogits)
            gradients, _ = watched.backward(residuals, dlogits)
            updates, opt_state = optimizer.update(gradients, state.opt_state, params)
            new = {"opt_state": opt_state, "params": optax.apply_updates(params, updates), "state": new_state}
            for path, leaf in jax.tree.leaves_with_path(new):
                _note(found, f"the new {name_of(path)}", leaf)
    return found[0] if found else None


def _watched(layer: Layer, name: str, around: list[tuple[str, dict]], found: list[str]) -> Layer:
    """The layer, which notes what is not finite as it comes; of one made of layers, within each of these.

    `around`: for each layer under way its path among the parameters, which begins below the network, and its own.
    """
    made = layer
    if layer.rebuild is not None:
        names = [part.name for part in layer.layers]
        numbered = [n if names.count(n) == 1 else f"{n}_{names[: i + 1].count(n)}" for i, n in enumerate(names)]
        parts = zip(layer.layers, numbered, strict=True)
        made = layer.rebuild(*(_watched(part, n, around, found) for part, n in parts))

    def forward(params, state, x, *, train=False, key=None):
        path = name
        if around:
            outer, theirs = around[-1]
            by_parameters = [n for n, p in theirs.items() if p is params]
            path = "/".join(filter(None, (outer, *(by_parameters or [name])[:1])))
        around.append((path if around else "", params))
        y, new_state, residuals = made.forward(params, state, x, train=train, key=key)
        around.pop()
        _note(found, f"the output of {path}", y)
        return y, new_state, (Static(path), residuals)

    def backward(residuals, dy):
        path, saved = residuals[0].value, residuals[1]
        dparams, dx = made.backward(saved, dy)
        for leaf_path, leaf in jax.tree.leaves_with_path(dparams):
            _note(found, f"the gradient of {path}/{name_of(leaf_path)}", leaf)
        _note(found, f"the gradient of the input of {path}", dx)
        return dparams, dx

    return dataclasses.replace(made, forward=forward, backward=backward)


def _note(found: list[str], what: str, array: Any) -> None:
    """The first element that is not finite, if there is one."""
    values = np.asarray(array)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return
    bad = ~np.isfinite(values.astype(np.float64))
    if bad.any():
        place = tuple(map(int, np.argwhere(bad)[0]))
        found.append(f"{what} {list(place) if place else ''}".rstrip() + f" is {values[place]}")
