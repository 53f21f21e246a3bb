"""Weights of 1 to 8 bits in both passes, the gradient passed to the float32 ones as if they were not quantised."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxcnn
from jaxcnn import Conv2D, Dense, Flatten, MaxPool, ReLU

sys.path.append(str(Path(__file__).parents[1]))
import common

RATES = (0.003, 0.01, 0.03)  # adam's
SEEDS, EPOCHS, BITS = range(10), 10, (1, 2, 4, 8)


def quantise_forward(w, bits, through):
    """w on 2^bits levels, the middles of as many equal parts of the range from -max|w| to max|w|; itself if bits is 0.
    Of one bit they are ±mean|w|, the nearest two in the least squares (Rastegari et al. 2016).

    `bits` and `through`, numbers, are data. `through` does not change the value.
    """
    top = jnp.where(bits == 1, 2 * jnp.abs(w).mean(), jnp.abs(w).max())
    step = 2 * top / 2**bits
    level = jnp.floor(w / jnp.where(step > 0, step, 1)) + 0.5
    highest = (2**bits - 1) / 2
    return jnp.where(bits > 0, jnp.clip(level, -highest, highest) * step, w), through


# y is constant between the jumps, so its derivative is 0 wherever it has one (through = 0), and nothing would be
# learned. Straight through, dy passes as if y were w (through = 1).
def quantise_backward(through, dy):
    return through * dy, jnp.zeros_like(through), jnp.zeros_like(through)


quantise = jaxcnn.Rule(quantise_forward, quantise_backward, "quantise")


class QuantisedResiduals(NamedTuple):
    saved: Any  # the layer's own, at the quantised weights
    rules: dict[str, Any]  # quantise's, by parameter


def quantised(layer: jaxcnn.Layer) -> jaxcnn.Layer:
    """The layer with quantised parameters, the bias excepted; how is in its state."""

    def init(key, input_shape):
        params, state, shape = layer.init(key, input_shape)
        return params, {"layer": state, "bits": jnp.zeros(()), "through": jnp.ones(())}, shape

    def forward(params, state, x, *, train=False, key=None):
        made = {n: quantise.forward(w, state["bits"], state["through"]) for n, w in params.items() if n != "bias"}
        low = {**params, **{name: value for name, (value, _) in made.items()}}
        y, new_state, saved = layer.forward(low, state["layer"], x, train=train, key=key)
        return y, {**state, "layer": new_state}, QuantisedResiduals(saved, {name: r for name, (_, r) in made.items()})

    def backward(residuals, dy):
        dparams, dx = layer.backward(residuals.saved, dy)
        return dparams | {n: quantise.backward(r, dparams[n])[0] for n, r in residuals.rules.items()}, dx

    return jaxcnn.Layer(layer.name, init, forward, backward)


def network(stages: int = 2) -> jaxcnn.Layer:
    """A dense layer behind so many convolutions, all quantised."""

    def stage():
        return quantised(Conv2D(8, 3)), ReLU(), MaxPool(2)

    return jaxcnn.sequential(*(layer for _ in range(stages) for layer in stage()), Flatten(), quantised(Dense(10)))


def experiment(
    made: jaxcnn.Layer, split: common.Split, seeds: Sequence[int], bits: Sequence[int], rates, epochs: int
) -> dict:
    """Of float32, of each number of bits straight through, and of float32's networks quantised after training; with the
    true gradient of the fewest bits alone.
    """
    variants = [{"bits": b, "through": t} for b, t in ((0, 1), *((b, 1) for b in bits), (min(bits), 0))]
    trained = common.train(made, split, seeds, rates=rates, epochs=epochs, variants=variants)
    accuracy, chosen = common.tested(made, trained, split), trained.chosen
    states = jax.tree.map(lambda leaf: leaf[trained.at_chosen[: len(seeds)]], trained.best)
    test = split.of("test", range(len(seeds)))

    def after(b):
        fewer = states._replace(state=common.with_leaves(states.state, "bits", [b] * len(seeds)))
        return common.accuracies_of(made, fewer, test)

    def told(i):
        return {
            "rate": rates[chosen[i]],
            "accuracy_by_rate": trained.validation[i].max(-1).mean(-1),
            "test_accuracy": common.spread(accuracy[i]),
            "minus_float32": common.paired(accuracy[i], accuracy[0]) if i else None,
        }

    by_bits = []
    for i, b in enumerate(bits, 1):
        late = after(b)
        by_bits.append(
            {
                "bits": b,
                "straight_through": told(i),
                "after_training": {
                    "test_accuracy": common.spread(late),
                    "minus_float32": common.paired(late, accuracy[0]),
                },
                "straight_through_minus_after": common.paired(accuracy[i], late),
            }
        )
    never = {"bits": min(bits), **told(len(bits) + 1)}
    return {"rates": rates, "epochs": epochs, "float32": told(0), "true_gradient": never, "by_bits": by_bits}


WAYS = {"straight_through": "straight through", "after_training": "after training"}


def table(result: dict) -> str:
    """As in experiments/README.md."""
    heading = ["bits", *WAYS.values(), "straight through − float32", "straight through − after"]
    lines = [heading, ["---"] * len(heading)]
    lines.append(["32", _accuracy(result["float32"]), "", "", ""])
    for entry in result["by_bits"]:
        differences = entry["straight_through"]["minus_float32"], entry["straight_through_minus_after"]
        intervals = [f"{100 * d['low']:+.2f} … {100 * d['high']:+.2f}" for d in differences]
        lines.append([str(entry["bits"]), *(_accuracy(entry[way]) for way in WAYS), *intervals])
    never = result["true_gradient"]
    lines.append([f"{never['bits']}, true gradient", _accuracy(never), "", "", ""])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _accuracy(told: dict) -> str:
    accuracy, rate = told["test_accuracy"], f" ({told['rate']:g})" if "rate" in told else ""
    return f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['deviation']:.2f}{rate}"


def draw(result: dict, axes: Any) -> None:
    """The test accuracy by the number of bits."""
    for (way, label), color in zip(WAYS.items(), ("tab:blue", "tab:orange"), strict=True):
        accuracy = [entry[way]["test_accuracy"] for entry in result["by_bits"]]
        mean, deviation = ([100 * a[key] for a in accuracy] for key in ("mean", "deviation"))
        places = range(len(accuracy))
        axes.errorbar(places, mean, yerr=deviation, fmt="o-", color=color, label=label, capsize=3, markersize=4)
    axes.axhline(100 * result["float32"]["test_accuracy"]["mean"], color="black", linewidth=0.8, label="float32")
    axes.set_xticks(range(len(result["by_bits"])), [str(entry["bits"]) for entry in result["by_bits"]])
    axes.set(title="quantised weights", xlabel="bits of a weight", ylabel="test accuracy, % (mean, deviation)")
    axes.legend(fontsize="x-small")
