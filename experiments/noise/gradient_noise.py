"""Gaussian noise on the gradient of all parameters: how much of it training bears, and whether it helps."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from changed import changed
from jax.flatten_util import ravel_pytree
from jax.nn import initializers

import jaxcnn
from jaxcnn import Dense, Flatten, ReLU

sys.path.append(str(Path(__file__).parents[1]))
import common

SHALLOW, POOR, HE = "one hidden layer", "20 hidden layers, poor start", "20 hidden layers, He's start"
SEEDS = {SHALLOW: range(10), POOR: range(100, 105), HE: range(100, 105)}  # of the latter no trial has seen any
RATES = {SHALLOW: (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), POOR: (0.03, 0.1), HE: (0.01, 0.03)}  # sgd's, with no momentum
EPOCHS = {SHALLOW: 15, POOR: 100, HE: 30}
LONGEST = {SHALLOW: float("inf"), POOR: 10.0, HE: 10.0}  # a longer gradient is shortened to it
ANNEALED = [{"eta": eta, "gamma": 0.55, "relative": 0.0} for eta in (0.01, 0.3, 1.0)]
NONE, CONSTANT = {"eta": 0.0, "gamma": 0.0, "relative": 0.0}, [{**a, "gamma": 0.0} for a in ANNEALED]
RELATIVE = [{**NONE, "relative": r} for r in (1.0, 3.0, 10.0, 30.0)]
VARIANTS = {SHALLOW: (NONE, *ANNEALED, *CONSTANT, *RELATIVE), POOR: (NONE, *ANNEALED), HE: (NONE, *ANNEALED[:2])}


def add_noise(key: jax.Array, gradients: Any, settings: Mapping[str, Any]) -> Any:
    """With Gaussian noise on all parameters alike: of the variance eta / (1 + step)^gamma, or, if `relative` is not 0,
    so large that the expected square of its length is that of relative × the gradient's. Of a gradient longer than
    `longest` only the direction is kept, before the noise.
    """
    vector, again = ravel_pytree(gradients)
    length = jnp.linalg.norm(vector)
    vector = jnp.where(length > settings["longest"], vector * (settings["longest"] / length), vector)
    variance = settings["eta"] / (1 + settings["step"]) ** settings["gamma"]
    variance = variance + settings["relative"] ** 2 * (vector**2).mean()
    return again(vector + jnp.sqrt(variance) * jax.random.normal(key, vector.shape))


def network(name: str) -> jaxcnn.Layer:
    """Dense layers of 50 with ReLU. The poor start has Gaussian weights of deviation 0.1. He's (2015), with which a
    gradient keeps its length, are twice as large: next to nothing of it is left 20 layers further down.
    """
    weights = {SHALLOW: initializers.glorot_uniform(), POOR: initializers.normal(0.1), HE: initializers.he_normal()}
    depth, first = 1 if name == SHALLOW else 20, weights[name]
    hidden = [layer for _ in range(depth) for layer in (Dense(50, weights_init=first), ReLU())]
    inside = jaxcnn.sequential(Flatten(), *hidden, Dense(10, weights_init=first))
    return changed(inside, add_noise, {**NONE, "longest": LONGEST[name]})


def experiment(name: str, split: common.Split, seeds: Sequence[int], variants, rates, epochs: int) -> dict:
    """Of no noise, then of each variant."""
    made = network(name)
    how = {"rates": rates, "epochs": epochs, "variants": variants, "optimizer": optax.sgd}
    trained = common.train(made, split, seeds, **how)
    accuracy, chosen = common.tested(made, trained, split), trained.chosen
    results = [
        {
            **variant,
            "rate": rates[chosen[i]],
            "accuracy_by_rate": trained.validation[i].max(-1).mean(-1),
            "loss_by_epoch": trained.loss[i, chosen[i]].mean(0),
            "test_accuracy": common.spread(accuracy[i]),
            "minus_none": common.paired(accuracy[i], accuracy[0]) if i else None,
        }
        for i, variant in enumerate(variants)
    ]
    return {"network": name, "seeds": seeds, "rates": rates, "epochs": epochs, "by_noise": results}


def whole(name: str) -> dict:
    """With all variants, rates and epochs."""
    seeds = SEEDS[name]
    return experiment(name, common.digits(seeds), seeds, VARIANTS[name], RATES[name], EPOCHS[name])


def named(result: Mapping[str, Any]) -> str:
    """The noise in words."""
    if result["relative"]:
        return f"{result['relative']:g} × length"
    if not result["eta"]:
        return "none"
    return f"σ² = {result['eta']:g}" + (f" / (1 + t)^{result['gamma']:g}" if result["gamma"] else "")


def table(results: Sequence[dict]) -> str:
    """As in experiments/README.md."""
    heading = ["network", "noise", "test accuracy, %", "lowest, highest seed", "− none"]
    lines = [heading, ["---"] * len(heading)]
    for result in results:
        for entry in result["by_noise"]:
            accuracy, minus = entry["test_accuracy"], entry["minus_none"]
            each = 100 * np.array(accuracy["each"])
            cells = [result["network"], named(entry)]
            cells += [f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['deviation']:.2f} ({entry['rate']:g})"]
            cells += [f"{each.min():.1f}, {each.max():.1f}"]
            cells += [f"{100 * minus['low']:+.2f} … {100 * minus['high']:+.2f}" if minus else ""]
            lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(results: Sequence[dict], axes: Sequence[Any]) -> None:
    """A row for each noise, each seed a point; a panel for each network."""
    for panel, result in zip(axes, results, strict=False):
        entries = result["by_noise"]
        for place, entry in enumerate(entries):
            accuracy = entry["test_accuracy"]
            each = 100 * np.array(accuracy["each"])
            panel.plot(each, [place] * len(each), ".", color="tab:gray")
            panel.plot(100 * accuracy["mean"], place, "o", color="tab:blue")
        panel.set_yticks(range(len(entries)), [named(entry) for entry in entries], fontsize="x-small")
        panel.invert_yaxis()
        panel.set(title=f"noise, {result['network']}", xlabel="test accuracy, % (blue: mean; gray: seeds)")
