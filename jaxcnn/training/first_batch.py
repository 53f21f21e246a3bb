"""The gradient of one fixed batch, the first one: compared with autodiff's at the start, its length told each epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.training.chunk import order_of
from jaxcnn.training.gradients import gradients
from jaxcnn.training.host import on_device, on_host
from jaxcnn.training.names import name_of
from jaxcnn.training.run import Run
from jaxcnn.training.step import BACKWARD, TrainState

Gradient = Callable[[TrainState], list[tuple[str, np.ndarray]]]  # by name; of several seeds at the first one's state


def gradients_of_first_batch(run: Run) -> dict[str, Gradient]:
    """For each backward pass the gradient of the first batch, of several seeds the first one's, as a function of the
    state; its images are not augmented.

    Each is one program, of one device, whichever devices the state is on, and compiled when it is first called.
    """
    batch = tuple(a[order_of(run, 0)[0, 0]] for a in run.data[0].train)
    like = _without_optimizer(run.state)

    def by(backward: str) -> Gradient:
        @jax.jit
        def program(kept: Any, images, labels):
            state = on_device(like, kept)  # in here: outside it would be a program for each shape
            first = state if run.config.seeds == 1 else jax.tree.map(lambda leaf: leaf[0], state)
            return gradients(run.network, softmax_cross_entropy, first, images, labels, backward=backward)

        def gradient(state: TrainState) -> list[tuple[str, np.ndarray]]:
            found = jax.device_get(program(on_host(_without_optimizer(state)), *batch))
            return [(name_of(path), leaf) for path, leaf in jax.tree.leaves_with_path(found)]

        return gradient

    return {backward: by(backward) for backward in BACKWARD}


def differences(run: Run, gradient: dict[str, Gradient]) -> dict[str, float]:
    """At the initial parameters: for each the largest difference of the hand-written gradient from autodiff's, relative
    to its largest element."""
    by_hand, by_autodiff = (gradient[backward](run.state) for backward in ("manual", "autodiff"))
    pairs = zip(by_hand, by_autodiff, strict=True)
    return {name: _relative_difference(hand, auto) for (name, hand), (_, auto) in pairs}


def norms(gradient: Gradient, state: TrainState) -> dict[str, float]:
    """Of each layer the Euclidean length of its parameters' gradient, all together."""
    squares: dict[str, float] = {}
    for name, leaf in gradient(state):
        layer, _, _ = name.rpartition("/")
        squares[layer] = squares.get(layer, 0.0) + float(np.square(leaf, dtype=np.float64).sum())
    return {layer: float(np.sqrt(square)) for layer, square in squares.items()}


def _without_optimizer(state: TrainState) -> TrainState:
    return state._replace(opt_state=())


def _relative_difference(a: np.ndarray, b: np.ndarray) -> float:
    largest = float(np.abs(b).max())
    difference = float(np.abs(a - b).max())
    return difference / largest if largest else difference
