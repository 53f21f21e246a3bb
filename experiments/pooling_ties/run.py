"""How often do the maxima of pooling tie, and does it matter who gets the gradient there?

    python experiments/pooling_ties/run.py [--quick] [--out DIR]

A small network on the digits, on the digits in black and white, and on a part of Fashion-MNIST, in float32 and
bfloat16, trained by adam and by plain sgd with the gradient of a tied maximum given to the first, shared, or given to
each in full (the source's rule).
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
from jaxcnn import Conv2D, Dense, Flatten, MaxPool, ReLU
from jaxcnn.rules.pooling import TIES

sys.path.append(str(Path(__file__).parents[1]))
import common

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = {  # and their learning rates
    "adam": (optax.adam, (0.003, 0.01, 0.03)),
    "sgd": (optax.sgd, (0.03, 0.1, 0.3)),
}
SEEDS = {"digits": range(10), "digits in black and white": range(10), "Fashion-MNIST": range(5)}
EPOCHS = {"digits": 15, "digits in black and white": 15, "Fashion-MNIST": 5}


def network_of(dtype: str, pooled_first: bool = False) -> jaxcnn.Layer:
    """Two convolutions, each pooled behind its ReLU or before it, and a dense layer. Its state says which convention
    for ties is at work.
    """
    first, *others = (MaxPool(2, ties=ties) for ties in TIES)
    pool = common.one_of(first, dict(enumerate(others, 1)))

    def stage():
        return Conv2D(8, 3), *((pool, ReLU()) if pooled_first else (ReLU(), pool))

    network = jaxcnn.sequential(*stage(), *stage(), Flatten(), Dense(10))
    return network if dtype == "float32" else common.in_bfloat16(network)


def ties_of(z: jax.Array) -> dict[str, jax.Array]:
    """Of the 2×2 windows of a convolution's output the share in which the maximum ties.

    "before": of z itself. "after": of ReLU(z), the windows of zeros included. "above zero": of ReLU(z), the maximum
    being positive, so that the ReLU in front lets the gradient through.
    """
    n, h, w, c = z.shape
    windows = z[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    windows = windows.reshape(-1, 4)

    def tied(a):
        return (a == a.max(-1, keepdims=True)).sum(-1) > 1

    after = tied(jnp.maximum(windows, 0))
    shares = {"before": tied(windows), "after": after, "above zero": after & (windows.max(-1) > 0)}
    return {name: share.mean() for name, share in shares.items()}


def watch_of(network: jaxcnn.Layer, dtype: str, images: np.ndarray, labels: np.ndarray):
    """What is recorded of all rows: ties by layer, and the angle of the gradient to that of ties="first"."""

    def of_one(state):
        # ReLU's input is the convolution's output.
        inside = network if dtype == "float32" else network.layers[0]
        inputs = common.inputs_of(inside, common.cast(state, dtype), jnp.asarray(images, dtype))
        ties = {name.replace("relu", "conv2d"): ties_of(z) for name, z in inputs if name.startswith("relu")}
        got = jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, state, images, labels)
        first = state._replace(state=jax.tree.map(jnp.zeros_like, state.state))
        right = jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, first, images, labels)
        near = jaxcnn.alignment(got, right)
        return {"ties": ties, "alignment": {n: near[n] for n in ("conv2d_1/filters", "conv2d_2/filters")}}

    return jax.jit(lambda states: jax.lax.map(of_one, states))


def one(
    data: str,
    split: common.Split,
    seeds: Sequence[int],
    dtype: str,
    optimizer: str,
    epochs: int,
    rates: Sequence[float],
) -> dict[str, Any]:
    """Trains with each of the three conventions; what is recorded of it."""
    network = network_of(dtype)
    watch = watch_of(network, dtype, split.validation.images[0, :200], split.validation.labels[0, :200])
    variants = [{"variant": i} for i in range(len(TIES))]
    how = {"rates": rates, "epochs": epochs, "variants": variants, "optimizer": OPTIMIZERS[optimizer][0]}
    trained = common.train(network, split, seeds, **how, watch=watch)
    accuracy = common.tested(network, trained, split)
    numbers = range(len(TIES))

    def over_epochs(number: int, *path: Any) -> np.ndarray:
        """Of one convention at its chosen rate: the mean over the seeds, epoch by epoch."""
        lines = []
        for watched in trained.watched:
            for key in path:
                watched = watched[key]
            lines.append(watched[number, trained.chosen[number]].mean())
        return np.array(lines)

    ties = {
        layer: {kind: over_epochs(0, "ties", layer, kind) for kind in ("before", "after", "above zero")}
        for layer in ("conv2d_1", "conv2d_2")
    }
    return {
        "data": data,
        "dtype": dtype,
        "optimizer": optimizer,
        "seeds": list(seeds),
        "test_accuracy": {
            TIES[i]: {"rate": trained.rates[trained.chosen[i]], **common.spread(accuracy[i])} for i in numbers
        },
        "minus_first": {TIES[i]: common.paired(accuracy[i], accuracy[0]) for i in (1, 2)},
        "validation_accuracy": {TIES[i]: trained.validation[i].max(-1).mean(-1) for i in numbers},
        "ties_by_epoch": ties,
        "alignment_with_first": {
            TIES[i]: {
                layer: {
                    "cosine": over_epochs(i, "alignment", layer, 0),
                    "ratio": over_epochs(i, "alignment", layer, 1),
                }
                for layer in ("conv2d_1/filters", "conv2d_2/filters")
            }
            for i in (1, 2)
        },
    }


def commute(split: common.Split, seeds: Sequence[int]) -> bool:
    """Whether ReLU before pooling and behind it train to the same bits, in float32 and with each convention."""
    variants = [{"variant": i} for i in range(len(TIES))]
    how = {"rates": OPTIMIZERS["adam"][1][1:2], "epochs": 1, "variants": variants}
    ends = [common.train(network_of("float32", first), split, seeds, **how).best.params for first in (False, True)]
    return all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, ends), strict=True))


def black_and_white(split: common.Split) -> common.Split:
    return common.Split(*(part._replace(images=np.where(part.images > 0, 1, -1).astype(np.float32)) for part in split))


def split_of(data: str, seeds: Sequence[int]) -> common.Split:
    if data == "Fashion-MNIST":
        return common.fashion(seeds, train=1500, validation=1000)
    split = common.digits(seeds)
    return split if data == "digits" else black_and_white(split)


def main(arguments: Sequence[str] | None = None) -> int:
    quick = "the digits in black and white in float32 alone, adam, two seeds, one rate, one epoch"
    options = common.options_of(__file__, __doc__ or "", quick, arguments)
    results, seeds_of, epochs, dtypes = [], SEEDS, EPOCHS, DTYPES
    rates = {optimizer: rates for optimizer, (_, rates) in OPTIMIZERS.items()}
    if options.quick:
        name = "digits in black and white"
        seeds_of, epochs, dtypes, rates = {name: range(2)}, {name: 1}, DTYPES[:1], {"adam": rates["adam"][1:2]}
    splits = {data: split_of(data, seeds) for data, seeds in seeds_of.items()}
    for data, split in splits.items():
        for optimizer in rates:
            for dtype in dtypes:
                results.append(one(data, split, seeds_of[data], dtype, optimizer, epochs[data], rates[optimizer]))
                print(in_words(results[-1]), flush=True)
    same = commute(split_of("digits", range(2)), range(2))
    print(f"ReLU before pooling and behind it: {'the same bits' if same else 'NOT the same'}")
    how = {"rates": rates, "batch": 32, "epochs": epochs}
    record = common.write(options, **how, relu_and_pooling_commute=same, results=results)
    draw(record["results"], options.out / "pooling_ties.png")
    return 0


def what(result: dict) -> str:
    return f"{result['data']}, {result['dtype']}, {result['optimizer']}"


def in_words(result: dict) -> str:
    accuracy = ", ".join(
        f"{ties} {100 * a['mean']:.2f} ± {100 * a['deviation']:.2f}" for ties, a in result["test_accuracy"].items()
    )
    last = {layer: {k: 100 * v[-1] for k, v in kinds.items()} for layer, kinds in result["ties_by_epoch"].items()}
    ties = "; ".join(f"{layer} " + ", ".join(f"{k} {v:.2f}" for k, v in kinds.items()) for layer, kinds in last.items())
    minus = {ties: {k: 100 * v for k, v in result["minus_first"][ties].items()} for ties in ("split", "all")}
    intervals = ", ".join(f"{ties} - first {m['low']:+.2f} … {m['high']:+.2f}" for ties, m in minus.items())
    near = {ties: result["alignment_with_first"][ties]["conv2d_1/filters"] for ties in ("split", "all")}
    angle = ", ".join(f"{ties} {n['cosine'][-1]:.3f}, length {n['ratio'][-1]:.3f}" for ties, n in near.items())
    return (
        f"{what(result)}: {accuracy} % ({intervals})\n"
        f"    windows that tie at the end, %: {ties}\n"
        f"    cosine to the gradient of first, filters of conv2d_1: {angle}"
    )


def row(result: dict) -> str:
    """As in experiments/README.md: the ties at the end, accuracies, and the angle between the gradients."""
    layers = result["ties_by_epoch"].values()
    ties = [" / ".join(f"{100 * layer[kind][-1]:.2g}" for layer in layers) for kind in ("after", "above zero")]
    accuracies = (result["test_accuracy"][ties] for ties in TIES)
    cells = [f"{100 * a['mean']:.2f} ± {100 * a['deviation']:.2f}" for a in accuracies]
    minus = result["minus_first"]["all"]
    near = result["alignment_with_first"]["all"]["conv2d_1/filters"]
    cells += [f"{100 * minus['low']:+.2f} … {100 * minus['high']:+.2f}"]
    cells += [f"{near['cosine'][-1]:.3f}, {near['ratio'][-1]:.2f}"]
    return "| " + " | ".join([what(result), *ties, *cells]) + " |"


def draw(results: Sequence[dict], path: Path) -> None:
    """Of each data set: the share of tied windows by epoch (trained by adam), how far the conventions' gradients are
    apart, and what becomes of the accuracy.
    """
    datasets = list(dict.fromkeys(result["data"] for result in results))
    made, axes = common.figure(3, len(datasets), height=3.6)
    for (ties, angle, difference), data in zip(axes.T, datasets, strict=True):
        own = [result for result in results if result["data"] == data]
        for result in own:
            dash = "-" if result["dtype"] == "float32" else "--"
            alone = result["optimizer"] == "adam"
            for layer, color in (("conv2d_1", "tab:blue"), ("conv2d_2", "tab:orange")) if alone else ():
                for kind, marker in (("after", "o"), ("above zero", "^")):
                    label = f"{layer}, {result['dtype']}, {'all' if kind == 'after' else kind}"
                    line = 100 * np.asarray(result["ties_by_epoch"][layer][kind])
                    ties.plot(line, dash, marker=marker, markersize=3, color=color, label=label)
            for name, color in (("split", "tab:green"), ("all", "tab:red")):
                line = result["alignment_with_first"][name]["conv2d_1/filters"]["cosine"]
                label = f"{name}, {result['dtype']}, {result['optimizer']}"
                angle.plot(line, dash, alpha=1.0 if alone else 0.5, color=color, label=label)
        ties.set(title=data, ylabel="windows that tie behind the ReLU, %")
        angle.set(xlabel="epoch", ylabel="cosine to the gradient of first, conv2d_1")
        for place, result in enumerate(own):
            for i, (name, color) in enumerate((("split", "tab:green"), ("all", "tab:red"))):
                d = {k: 100 * v for k, v in result["minus_first"][name].items()}
                error = [[d["mean"] - d["low"]], [d["high"] - d["mean"]]]
                label = f"{name} - first" if place == 0 else None
                where = place + 0.2 * i - 0.1
                difference.errorbar(d["mean"], where, xerr=error, fmt="o", color=color, label=label, capsize=3)
        difference.axvline(0, color="black", linewidth=0.8)
        difference.set_yticks(range(len(own)), [f"{r['dtype']}\n{r['optimizer']}" for r in own], fontsize="x-small")
        difference.set_xlabel("test accuracy, points (mean, 95 % interval)")
    for axis in axes[:, -1]:  # beside the last column, for all
        axis.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    made.savefig(path, dpi=100)


if __name__ == "__main__":
    jaxcnn.use_cpu_cores()
    sys.exit(main())
