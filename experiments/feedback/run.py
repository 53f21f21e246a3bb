"""What becomes of the test error, and of the gradient, when the error is carried back by other weights?

    python experiments/feedback/run.py [--quick] [--out DIR]

LeNet on a part of Fashion-MNIST trained by backpropagation (BP), feedback alignment (FA), uniform, batch-wise and fixed
sign-symmetry (uSF, brSF, frSF) and direct feedback alignment (DFA), each at its own best learning rate; the angle
between the rule's gradient and the true one, by layer, over training.
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

sys.path.append(str(Path(__file__).parents[1]))
import common
from methods import METHODS, lenet

SEEDS, TRAIN, VALIDATION, EPOCHS, BATCH = range(5), 10_000, 2_000, 10, 64
WATCHED = 200  # validation images, of whose gradient the angles are taken
RATES = {  # the less feedback knows of the weights, the smaller the rates that it bears
    ("BP",): (0.01, 0.03, 0.1),
    ("uSF", "brSF", "frSF"): (0.003, 0.01, 0.03),
    ("FA", "DFA"): (0.0002, 0.0006, 0.002, 0.006),
}
LAYERS = ("conv2d_1/filters", "conv2d_2/filters", "dense_1/weights", "dense_2/weights", "dense_3/weights")

# BioTorch's test error in percent: all 60,000 training images, 100 epochs, the model chosen on the test images. Its
# README as the project's references have it, and the Benchmarks.md of its repository.
LITERATURE = {
    "README": {"BP": 8.88, "FA": 12.77, "uSF": 9.22, "brSF": 9.31, "frSF": 9.27, "DFA": 12.76},
    "Benchmarks.md": {"BP": 9.2, "FA": 13.06, "uSF": 9.69, "brSF": 10.02, "frSF": 9.61, "DFA": 12.81},
}


def optimizer_of(steps: int):
    """With BioTorch's momentum and weight decay; the rate falls to 0 along a cosine, for the run is short."""
    share = optax.cosine_decay_schedule(1.0, steps)

    def optimizer(learning_rate):
        plain = optax.sgd(learning_rate, momentum=0.9)
        return optax.chain(optax.add_decayed_weights(0.001), plain, optax.scale_by_schedule(share))

    return optimizer


def watch_of(network: jaxcnn.Layer, images: np.ndarray, labels: np.ndarray):
    """Of all rows the angle and length of the method's gradient against backpropagation's at the same parameters."""

    def of_one(state):
        def gradient_by(variant):
            by = state._replace(state=common.with_leaves(state.state, "variant", variant))
            return jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, by, images, labels)

        own = state.state["dense_1"]["variant"]
        both = jax.lax.map(gradient_by, jnp.stack([own, jnp.int32(METHODS.index("BP"))]))
        return jaxcnn.alignment(*(jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in (0, 1)))

    of_all = jax.jit(lambda states: jax.lax.map(of_one, states))
    return lambda states: of_all(jax.device_get(states))  # compiled once, wherever the states lie


def trained_by(
    methods: Sequence[str], split: common.Split, seeds: Sequence[int], epochs: int, rates
) -> dict[str, dict]:
    """What came of each method at the rate that is best by validation."""
    network = lenet()
    watch = watch_of(network, split.validation.images[0, :WATCHED], split.validation.labels[0, :WATCHED])
    steps = split.train.labels.shape[1] // BATCH * epochs
    how = {"rates": rates, "epochs": epochs, "batch": BATCH, "optimizer": optimizer_of(steps), "watch": watch}
    variants = [{"variant": METHODS.index(method)} for method in methods]
    trained = common.train(network, split, seeds, **how, variants=variants)
    accuracy = common.tested(network, trained, split)

    def of_method(i, method):
        rate = trained.chosen[i]
        best = trained.validation[i].max(-1).mean(-1)

        def by_epoch(layer, kind):
            """Mean and deviation over the seeds, at the start and after each epoch."""
            each = np.stack([getattr(watched[layer], kind)[i, rate] for watched in trained.watched])
            return {"mean": each.mean(1), "deviation": each.std(1, ddof=1)}

        return {
            "rate": rates[rate],
            "validation_error_by_rate": dict(zip(map(str, rates), 1 - best, strict=True)),
            "validation_error_by_epoch": 1 - trained.validation[i, rate].mean(0),
            "loss_by_epoch": trained.loss[i, rate].mean(0),
            "best_epoch": 1 + trained.validation[i, rate].argmax(-1),
            "test_error": common.spread(1 - accuracy[i]),
            "cosine_by_epoch": {layer: by_epoch(layer, "cosine") for layer in LAYERS},
            "length_by_epoch": {layer: by_epoch(layer, "ratio") for layer in LAYERS},
        }

    return {method: of_method(i, method) for i, method in enumerate(methods)}


def enlarged(split: common.Split) -> common.Split:
    """Of the digits' 8×8 pixels each as 3×3, in a frame of 2: LeNet's 28×28."""

    def large(images):
        images = images.repeat(3, axis=2).repeat(3, axis=3)
        return np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), constant_values=images.min())

    return common.Split(*(part._replace(images=large(part.images)) for part in split))


def main(arguments: Sequence[str] | None = None) -> int:
    quick = "the digits, enlarged, two seeds, one rate, one epoch"
    options = common.options_of(__file__, __doc__ or "", quick, arguments)
    seeds, epochs, rates = (range(2), 1, {METHODS: (0.005,)}) if options.quick else (SEEDS, EPOCHS, RATES)
    split = enlarged(common.digits(seeds)) if options.quick else common.fashion(seeds, TRAIN, VALIDATION)
    made: dict[str, dict[str, Any]] = {}
    for methods, tried in rates.items():
        made |= trained_by(methods, split, seeds, epochs, tried)
    right = made["BP"]["test_error"]["each"]
    results = [
        {"method": m, **made[m], "minus_bp": common.paired(made[m]["test_error"]["each"], right) if m != "BP" else None}
        for m in METHODS
    ]
    how = {"optimizer": "sgd, momentum 0.9, weight decay 0.001, the rate to 0 along a cosine", "batch": BATCH}
    sizes = {f"{name}_images": part.labels.shape[1] for name, part in split._asdict().items()}
    fa_minus_dfa = common.paired(*(made[m]["test_error"]["each"] for m in ("FA", "DFA")))
    record = common.write(
        options,
        seeds=seeds,
        epochs=epochs,
        **how,
        **sizes,
        fa_minus_dfa=fa_minus_dfa,
        literature=LITERATURE,
        results=results,
    )
    print(table(record["results"]))
    draw(record["results"], options.out / "feedback.png")
    return 0


def table(results: Sequence[dict]) -> str:
    """As in experiments/README.md: errors in percent beside BioTorch's, and the cosines at first and at the end."""
    heading = [
        "method",
        "rate",
        "test error, %",
        "minus BP",
        *(f"BioTorch, {name}" for name in LITERATURE),
        *(layer.split("/")[0] for layer in LAYERS[:-1]),
    ]
    lines = [heading, ["---"] * len(heading)]
    for result in results:
        error, minus = result["test_error"], result["minus_bp"]
        cosines = (result["cosine_by_epoch"][layer]["mean"] for layer in LAYERS[:-1])
        lines.append(
            [
                result["method"],
                f"{result['rate']:g}",
                f"{100 * error['mean']:.2f} ± {100 * error['deviation']:.2f}",
                f"{100 * minus['low']:+.2f} … {100 * minus['high']:+.2f}" if minus else "",
                *(f"{figures[result['method']]:.2f}" for figures in LITERATURE.values()),
                *(f"{cosine[0]:.2f} → {cosine[-1]:.2f}" for cosine in cosines),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(results: Sequence[dict], path: Path) -> None:
    """The test error by method beside the literature's; of each layer the cosine over the epochs; the losses."""
    made, axes = common.figure(2, 3, width=4.2)
    errors, *angles, losses = axes.ravel()
    for place, result in enumerate(results):
        error = result["test_error"]
        label = "here (mean, deviation, each seed)" if place == 0 else None
        errors.errorbar(
            place, 100 * error["mean"], yerr=100 * error["deviation"], fmt="o", color="tab:blue", capsize=4, label=label
        )
        errors.plot(
            [place + 0.15] * len(error["each"]), 100 * np.array(error["each"]), ".", markersize=3, color="tab:gray"
        )
        color = f"C{place}"
        for axis, layer in zip(angles, LAYERS[:-1], strict=True):
            cosine = result["cosine_by_epoch"][layer]
            mean, deviation = (np.array([np.nan if v is None else v for v in cosine[k]]) for k in ("mean", "deviation"))
            axis.plot(mean, color=color, label=result["method"])
            axis.fill_between(range(len(mean)), mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)
            axis.set(title=layer, xlabel="epoch", ylabel="cosine to the true gradient", ylim=(-0.6, 1.05))
        losses.plot(
            range(1, 1 + len(result["loss_by_epoch"])),
            result["loss_by_epoch"],
            ".-",
            color=color,
            label=result["method"],
        )
    for (name, figures), marker in zip(LITERATURE.items(), "^v", strict=True):
        values = [figures[result["method"]] for result in results]
        errors.plot(np.arange(len(results)) - 0.15, values, marker, color="tab:orange", label=f"BioTorch, {name}")
    errors.set_xticks(range(len(results)), [result["method"] for result in results])
    errors.set(ylabel="test error, %", title="LeNet, Fashion-MNIST")
    losses.set(title="training loss (the colors of all)", xlabel="epoch", yscale="log")
    for axis in (errors, losses):
        axis.legend(fontsize="x-small")
    made.savefig(path, dpi=100)


if __name__ == "__main__":
    jaxcnn.use_cpu_cores()
    sys.exit(main())
