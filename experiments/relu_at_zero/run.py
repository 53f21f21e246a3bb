"""Does it matter which value ReLU'(0) has?

    python experiments/relu_at_zero/run.py [--quick] [--out DIR]

A small network on the digits, standardised or with black as 0, in float32 and bfloat16, trained by adam and by plain
sgd with ReLU'(0) from 0 to 1: how often a ReLU is given exactly 0, whether the parameters differ, and what becomes of
the accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcnn
from jaxcnn import Conv2D, Dense, Flatten, MaxPool
from jaxcnn.layers.layer import from_rule

sys.path.append(str(Path(__file__).parents[1]))
import common

SLOPES = (0.0, 0.25, 0.5, 0.75, 1.0)
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = {"adam": (optax.adam, (0.005, 0.02)), "sgd": (optax.sgd, (0.05, 0.2))}  # and their learning rates
BLACK_IS_0 = "digits, black is 0"  # and biases start at 0: so does what a convolution makes of the background
DATA, SEEDS, EPOCHS = ("digits", BLACK_IS_0), range(10), 10
RELUS = ("relu_1", "relu_2", "relu_3")


def relu_forward(x, slope):
    """ReLU; `slope`, a number, is its derivative at 0 and nothing else."""
    return jnp.where(x <= 0, 0, x), (x, slope)


# y = x where x > 0, 0 where x < 0; at 0 any number from 0 to 1 is a subgradient. The slope does not change y.
def relu_backward(residuals, dy):
    x, slope = residuals
    return jnp.where(x > 0, dy, jnp.where(x == 0, slope.astype(dy.dtype) * dy, 0)), jnp.zeros_like(slope)


relu = jaxcnn.Rule(relu_forward, relu_backward, "relu")


def ReLU() -> jaxcnn.Layer:
    return from_rule(relu, "relu", state={"slope": lambda key, shape: jnp.zeros(())})


def network_of(dtype: str) -> jaxcnn.Layer:
    network = jaxcnn.sequential(
        Conv2D(8, 3), ReLU(), MaxPool(2), Conv2D(8, 3), ReLU(), MaxPool(2), Flatten(), Dense(32), ReLU(), Dense(10)
    )
    return network if dtype == "float32" else common.in_bfloat16(network)


def watch_of(network: jaxcnn.Layer, dtype: str, images: np.ndarray, labels: np.ndarray, rows: int):
    """What is recorded: the share of zeros among the inputs of each ReLU; the angle of the gradient to that with
    ReLU'(0) = 0; and whether the parameters differ from those that the same rate and seed have with ReLU'(0) = 0.
    """

    def of_one(state):
        inside = network if dtype == "float32" else network.layers[0]
        inputs = common.inputs_of(inside, common.cast(state, dtype), jnp.asarray(images, dtype))
        zeros = {name: (z == 0).mean() for name, z in inputs if name in RELUS}
        got = jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, state, images, labels)
        with_zero = state._replace(state=jax.tree.map(jnp.zeros_like, state.state))
        right = jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, with_zero, images, labels)
        return {"zeros": zeros, "cosine": jaxcnn.alignment(got, right)["conv2d_1/filters"].cosine}

    def of_all(states):
        leaves = [leaf.reshape(len(SLOPES), rows // len(SLOPES), -1) for leaf in jax.tree.leaves(states.params)]
        differ = jnp.stack([(leaf != leaf[:1]).any(-1) for leaf in leaves]).any(0).ravel()
        return {**jax.lax.map(of_one, states), "differ": differ}

    return jax.jit(of_all)


def one(
    data: str,
    split: common.Split,
    seeds: Sequence[int],
    dtype: str,
    optimizer: str,
    epochs: int,
    rates: Sequence[float],
) -> dict[str, Any]:
    network, variants = network_of(dtype), [{"slope": slope} for slope in SLOPES]
    part = split.validation.images[0, :200], split.validation.labels[0, :200]
    watch = watch_of(network, dtype, *part, len(SLOPES) * len(rates) * len(seeds))
    how = {"rates": rates, "epochs": epochs, "variants": variants, "optimizer": OPTIMIZERS[optimizer][0]}
    trained = common.train(network, split, seeds, **how, watch=watch)
    accuracy = common.tested(network, trained, split)
    chosen, watched = trained.chosen, trained.watched
    return {
        "data": data,
        "dtype": dtype,
        "optimizer": optimizer,
        "by_slope": [
            {
                "slope": slope,
                "rate": rates[chosen[i]],
                "test_accuracy": common.spread(accuracy[i]),
                "minus_slope_0": common.paired(accuracy[i], accuracy[0]) if i else None,
                "validation_accuracy": trained.validation[i].max(-1).mean(-1),
                "cosine_to_slope_0_by_epoch": [w["cosine"][i, chosen[i]].mean() for w in watched],
                # At one rate, the first one's: the chosen rates may differ.
                "seeds_that_differ_by_epoch": [w["differ"][i, chosen[0]].mean() for w in watched],
            }
            for i, slope in enumerate(SLOPES)
        ],
        "zeros_by_epoch": {name: [w["zeros"][name][0, chosen[0]].mean() for w in watched] for name in RELUS},
    }


def split_of(data: str, seeds: Sequence[int]) -> common.Split:
    split = common.digits(seeds)
    if data == BLACK_IS_0:
        black = split.train.images.min((1, 2, 3, 4), keepdims=True)
        split = common.Split(*(part._replace(images=part.images - black) for part in split))
    return split


def main(arguments: Sequence[str] | None = None) -> int:
    options = common.options_of(
        __file__, __doc__ or "", f"{BLACK_IS_0}, alone, adam, two seeds, one rate, one epoch", arguments
    )
    results = []
    seeds, epochs = (range(2), 1) if options.quick else (SEEDS, EPOCHS)
    for data in DATA[1:] if options.quick else DATA:
        split = split_of(data, seeds)
        for optimizer in ("adam",) if options.quick else OPTIMIZERS:
            for dtype in DTYPES:
                rates = OPTIMIZERS[optimizer][1][: 1 if options.quick else None]
                results.append(one(data, split, seeds, dtype, optimizer, epochs, rates))
                print(in_words(results[-1]), flush=True)
    rates = {optimizer: rates for optimizer, (_, rates) in OPTIMIZERS.items()}
    record = common.write(options, seeds=seeds, rates=rates, batch=32, epochs=epochs, results=results)
    results = record["results"]
    draw(results, options.out / "relu_at_zero.png")
    return 0


def what(result: dict) -> str:
    return f"{result['data']}, {result['dtype']}, {result['optimizer']}"


def in_words(result: dict) -> str:
    lines = [f"{what(result)}:"]
    for given in result["by_slope"]:
        accuracy, minus = given["test_accuracy"], given["minus_slope_0"]
        compared = f", minus 0: {100 * minus['low']:+.2f} … {100 * minus['high']:+.2f}" if minus else ""
        lines.append(
            f"    ReLU'(0) = {given['slope']:4}: {100 * accuracy['mean']:.2f} ± {100 * accuracy['deviation']:.2f} %"
            f"{compared}; parameters differ in {100 * given['seeds_that_differ_by_epoch'][-1]:.0f} % of the seeds"
        )
    for name, line in result["zeros_by_epoch"].items():
        lines.append(f"    zeros among the inputs of {name}: {line[0]:.1e} at first, {line[-1]:.1e} at the end")
    return "\n".join(lines)


def row(result: dict) -> str:
    """As in experiments/README.md: zeros by layer at first and most, accuracies, the largest difference."""
    zeros = " / ".join(f"{line[0]:.1e}" for line in result["zeros_by_epoch"].values())
    later = " / ".join(f"{max(line[1:]):.1e}" for line in result["zeros_by_epoch"].values())
    slopes = result["by_slope"]
    cells = [f"{100 * g['test_accuracy']['mean']:.2f} ± {100 * g['test_accuracy']['deviation']:.2f}" for g in slopes]
    minus = slopes[-1]["minus_slope_0"]
    cells += [f"{100 * minus['low']:+.2f} … {100 * minus['high']:+.2f}"]
    differ = f"{100 * slopes[-1]['seeds_that_differ_by_epoch'][-1]:.0f}"
    return "| " + " | ".join([what(result), zeros, later, differ, *cells]) + " |"


def draw(results: Sequence[dict], path: Path) -> None:
    """Above the test accuracy by ReLU'(0), below the share of zeros by epoch; a column for each data set and dtype."""
    columns = list(dict.fromkeys((result["data"], result["dtype"]) for result in results))
    made, axes = common.figure(2, len(columns), width=3.4)
    for (above, below), (data, dtype) in zip(axes.T, columns, strict=True):
        above.set(title=f"{data}, {dtype}", xlabel="ReLU'(0)", ylabel="test accuracy, %")
        below.set_yscale("symlog", linthresh=1e-6)
        below.set(xlabel="epoch", ylabel="share of exact zeros", ylim=(0, 1))
        for result in (r for r in results if (r["data"], r["dtype"]) == (data, dtype)):
            color, dash = {"adam": ("tab:blue", "-"), "sgd": ("tab:orange", "--")}[result["optimizer"]]
            for each in zip(*(g["test_accuracy"]["each"] for g in result["by_slope"]), strict=True):
                above.plot(SLOPES, 100 * np.array(each), dash, color=color, linewidth=0.5, alpha=0.5)
            mean = [100 * g["test_accuracy"]["mean"] for g in result["by_slope"]]
            above.plot(SLOPES, mean, f"o{dash}", color=color, label=f"{result['optimizer']}: mean; thin: each seed")
            for (name, line), marker in zip(result["zeros_by_epoch"].items(), "o^s", strict=True):
                label = f"{name}, {result['optimizer']}"
                below.plot(np.asarray(line), marker + dash, color=color, markersize=3, label=label)
        above.legend(fontsize="x-small")
        below.legend(fontsize="xx-small")
    made.savefig(path, dpi=100)


if __name__ == "__main__":
    jaxcnn.use_cpu_cores()
    sys.exit(main())
