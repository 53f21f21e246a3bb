"""Which mistakes in a backward pass still train, how far, and which would a loss curve never show?

    python experiments/famous_mistakes/run.py [--quick] [--out DIR]

A small network with batch normalisation and a residual block is trained on the digits with each of the mistakes in all
of its layers, by sgd and by adam, each at its own best learning rate; beside that what the verifier and other gradient
checkers say of the same mistake. The right network is trained from other initial parameters too: it is what mistakes
are compared with, and shows how often such a comparison is wrong.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from mistakes import BATCH, MISTAKES, Mistake, network_of

import jaxcnn

sys.path.append(str(Path(__file__).parents[1]))
import common
from planted_peers import PEERS as ALL_PEERS

SEEDS, EPOCHS = range(5), 8
SETS = 10  # of other initial parameters, with which the right network is trained again
OPTIMIZERS = {"sgd": (optax.sgd, (0.003, 0.03, 0.3)), "adam": (optax.adam, (0.001, 0.005, 0.025))}
PEERS = {name: ALL_PEERS[name] for name in ("check_grads", "chex", "torch gradcheck")}
# A few of each outcome, for --quick.
QUICK = ("filter not turned", "bias gradient negated", "1/N missing", "statistics taken for constants")


# --- training with a mistake ----------------------------------------------------------------------------------------


class Right(NamedTuple):
    """The right network at its chosen rate, from several sets of initial parameters and orders of the images."""

    accuracy: np.ndarray  # (sets, seeds), of the test images; a seed is a split, the same in all sets
    loss: np.ndarray  # (sets, seeds, epochs)

    def without(self, number: int) -> Right:
        return Right(*(np.delete(array, number, 0) for array in self))

    def beside(self, accuracy: np.ndarray, loss: np.ndarray) -> dict[str, Any]:
        """What is said of a network of which these, (seeds,) and (seeds, epochs), are known."""
        return {
            "test_accuracy": common.spread(accuracy),
            "minus_right": common.paired(accuracy, self.accuracy.mean(0)),
            "loss_by_epoch": loss.mean(0),
            "loss_within_right_runs": within(loss.mean(0), self.loss.reshape(-1, loss.shape[-1])),
        }


def trained_with(
    mistakes: Sequence[Mistake], optimizer: str, split: common.Split, seeds, rates, epochs: int, sets: int
):
    """(The right network's runs; of it, then of each mistake, what came at the rate that is best by validation.)"""
    network = network_of(mistakes)
    make = OPTIMIZERS[optimizer][0]
    variants = [{"variant": i} for i in range(1 + len(mistakes))]
    watch = alignment_of(network, split.train.images[0, :BATCH], split.train.labels[0, :BATCH])
    trained = common.train(
        network, split, seeds, rates=rates, epochs=epochs, batch=BATCH, variants=variants, optimizer=make, watch=watch
    )
    accuracy, chosen = common.tested(network, trained, split), trained.chosen
    again = right_again(optimizer, rates[chosen[0]], split, seeds, epochs, sets)
    first = Right(accuracy[:1], trained.loss[:1, chosen[0]])
    right = Right(*(np.concatenate(pair) for pair in zip(first, again, strict=True)))
    results = []
    for i, rate in enumerate(chosen):
        start, end = ({name: mean_of(w, i, rate) for name, w in trained.watched[e].items()} for e in (0, -1))
        results.append(
            {
                "optimizer": optimizer,
                "rate": rates[rate],
                "accuracy_by_rate": dict(zip(map(str, rates), trained.validation[i].max(-1).mean(-1), strict=True)),
                **right.beside(accuracy[i], trained.loss[i, rate]),
                "alignment_at_first": start,
                "alignment_at_the_end": end,
            }
        )
    return right, results


def right_again(optimizer: str, rate: float, split: common.Split, seeds, epochs: int, sets: int) -> Right:
    """With so many other sets of initial parameters and orders; the splits are those of `seeds`."""
    network = network_of([])
    fresh = [100 * number + seed for number in range(1, 1 + sets) for seed in seeds]
    which = np.tile(np.arange(len(seeds)), sets)
    split = common.Split(*(split.of(part, which) for part in split._fields))
    how = {"rates": (rate,), "epochs": epochs, "optimizer": OPTIMIZERS[optimizer][0]}
    trained = common.train(network, split, fresh, batch=BATCH, **how)
    accuracy = common.tested(network, trained, split)
    return Right(accuracy.reshape(sets, len(seeds)), trained.loss.reshape(sets, len(seeds), epochs))


def each_right(right: Right) -> list[dict[str, Any]]:
    """Of each what would be said of it beside the others, were it a mistake. What is not hidden is a false alarm."""
    return [right.without(i).beside(right.accuracy[i], right.loss[i]) for i in range(len(right.accuracy))]


def alignment_of(network: jaxcnn.Layer, images: np.ndarray, labels: np.ndarray):
    """Of all rows the angle and length of the gradient against the right one at the same parameters."""

    def of_one(state):
        got = jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, state, images, labels)
        right = state._replace(state=common.with_leaves(state.state, "variant", 0))
        return jaxcnn.alignment(got, jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, right, images, labels))

    return jax.jit(lambda states: jax.lax.map(of_one, states))


def mean_of(alignment: Any, variant: int, rate: int) -> dict[str, float | None]:
    """Over the seeds; a gradient of zero has no angle, which is told as None."""

    def finite(value):
        return float(value) if math.isfinite(value) else None

    return {name: finite(getattr(alignment, name)[variant, rate].mean()) for name in ("cosine", "ratio")}


def within(curve: np.ndarray, right: np.ndarray) -> bool:
    """Whether a curve lies, in every epoch, between the lowest and the highest of the right network's runs."""
    return bool(((curve >= right.min(0)) & (curve <= right.max(0))).all())


# --- asking the checkers --------------------------------------------------------------------------------------------


def asked(mistake: Mistake) -> dict[str, Any]:
    """What `jaxcnn.verify` says of it, and what the peers do."""
    given = mistake.fault
    report = jaxcnn.verify(given.rule, *given.arrays, **given.static)
    finding = None if report.ok else report.findings[0]
    return {
        "verifier": "missed" if finding is None else finding.cause,
        "message": "" if finding is None else finding.message,
        "peers": {name: peer(given) for name, peer in PEERS.items()},
    }


# --- the whole ------------------------------------------------------------------------------------------------------


def outcome(result: dict) -> str:
    """In a word: what a mistake does to the test accuracy, as far as these seeds can tell."""
    minus = result["minus_right"]
    if result["test_accuracy"]["mean"] < 0.5:
        return "fails"
    return "worse" if minus["high"] < 0 else "better" if minus["low"] > 0 else "no difference"


def hidden(result: dict) -> bool:
    """Whether neither the loss curve nor the accuracy tells the network from the right one."""
    return result["loss_within_right_runs"] and outcome(result) == "no difference"


def main(arguments: Sequence[str] | None = None) -> int:
    options = common.options_of(
        __file__, __doc__ or "", "four mistakes, sgd, two seeds, one rate, one epoch", arguments
    )
    mistakes = [m for m in MISTAKES if m.name in QUICK] if options.quick else MISTAKES
    seeds, epochs = (range(2), 1) if options.quick else (SEEDS, EPOCHS)
    split = common.digits(seeds)
    by_optimizer, again = {}, {}
    rates_of = {optimizer: rates for optimizer, (_, rates) in OPTIMIZERS.items()}
    rates_of = {"sgd": rates_of["sgd"][1:2]} if options.quick else rates_of
    for optimizer, rates in rates_of.items():
        how = rates, epochs, 2 if options.quick else SETS
        sets, by_optimizer[optimizer] = trained_with(mistakes, optimizer, split, seeds, *how)
        again[optimizer] = each_right(sets)
        print(f"{optimizer}: trained", flush=True)
    right = {optimizer: results[0] for optimizer, results in by_optimizer.items()}
    entries = [
        {
            "mistake": mistake.name,
            "layer": mistake.kind,
            **asked(mistake),
            "training": {
                optimizer: {**results[i], "outcome": outcome(results[i]), "hidden": hidden(results[i])}
                for optimizer, results in by_optimizer.items()
            },
        }
        for i, mistake in enumerate(mistakes, 1)
    ]
    how = {"seeds": list(seeds), "epochs": epochs, "batch": BATCH}
    how["other_sets"] = 2 if options.quick else SETS
    how["rates"] = rates_of
    again = {o: [{**r, "outcome": outcome(r), "hidden": hidden(r)} for r in results] for o, results in again.items()}
    numbers = counts(entries, again)
    record = common.write(options, **how, right=right, right_sets=again, counts=numbers, mistakes=entries)
    print(table(record["right"], record["mistakes"]))
    for name, count in record["counts"].items():
        print(f"{name}: {count}")
    draw(record["right"], record["mistakes"], options.out / "famous_mistakes.png")
    return 0


def counts(entries: Sequence[dict], again: dict[str, list[dict]]) -> dict[str, Any]:
    """Of all mistakes, and of the right network trained again."""
    trainings = [entry["training"] for entry in entries]
    optimizers = trainings[0].keys()
    outcomes = ("fails", "worse", "no difference", "better")
    return {
        "mistakes": len(entries),
        "found by the verifier": sum(entry["verifier"] != "missed" for entry in entries),
        **{f"found by {peer}": found([entry["peers"][peer] for entry in entries]) for peer in PEERS},
        **{o: {name: sum(t[o]["outcome"] == name for t in trainings) for name in outcomes} for o in optimizers},
        **{f"hidden, {o}": sum(t[o]["hidden"] for t in trainings) for o in optimizers},
        "hidden with every optimizer": sum(all(t[o]["hidden"] for o in optimizers) for t in trainings),
        "right sets": {o: len(a) for o, a in again.items()},
        **{f"right, {o}": {name: sum(r["outcome"] == name for r in a) for name in outcomes} for o, a in again.items()},
        **{f"right, hidden, {o}": sum(r["hidden"] for r in a) for o, a in again.items()},
    }


def found(said: Sequence[str]) -> int | str:
    """By how many of the entries; what a peer that is not installed says instead."""
    return said[0] if set(said) == {said[0]} and said[0].startswith("n/a") else said.count("found")


def table(right: dict[str, dict], entries: Sequence[dict]) -> str:
    """As in experiments/README.md: the mistakes, the least harmful first."""
    optimizers = list(right)
    heading = ["mistake", "layer", "verifier", *optimizers, "cosine", "length"]
    lines = [heading, ["---"] * len(heading)]
    cells = [accuracy(right[o]) for o in optimizers]
    lines.append(["none", "", "", *cells, "1.00", "1.0"])
    for entry in sorted(entries, key=lambda e: -sum(r["test_accuracy"]["mean"] for r in e["training"].values())):
        lines.append(row(entry))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def row(entry: dict) -> list[str]:
    start = next(iter(entry["training"].values()))["alignment_at_first"]
    cosines = [a["cosine"] for a in start.values() if a["cosine"] is not None]
    ratios = [a["ratio"] for a in start.values() if a["ratio"] is not None]
    off = max(ratios, key=lambda ratio: abs(math.log(ratio)) if ratio else math.inf)
    marks = (accuracy(r) + (" ◦" if r["hidden"] else "") for r in entry["training"].values())
    return [entry["mistake"], entry["layer"], entry["verifier"], *marks, f"{min(cosines):.2f}", f"{off:.2g}"]


def accuracy(result: dict) -> str:
    a = result["test_accuracy"]
    return f"{100 * a['mean']:.1f} ± {100 * a['deviation']:.1f} ({result['rate']:g})"


def draw(right: dict[str, dict], entries: Sequence[dict], path: Path) -> None:
    """Left, for each optimizer, the difference of the test accuracy; right, the loss curves, hidden ones in color."""
    made, axes = common.figure(2, 2, width=6.5, height=max(3.0, 0.16 * len(entries)))
    order = sorted(entries, key=lambda e: sum(r["test_accuracy"]["mean"] for r in e["training"].values()))
    for (left, curves), optimizer in zip(axes, right, strict=False):
        for place, entry in enumerate(order):
            result = entry["training"][optimizer]
            d = {k: 100 * v for k, v in result["minus_right"].items()}
            color = {"worse": "tab:orange", "fails": "tab:red"}.get(result["outcome"], "tab:blue")
            error = [[d["mean"] - d["low"]], [d["high"] - d["mean"]]]
            left.errorbar(d["mean"], place, xerr=error, fmt="o", markersize=3, color=color)
        for name, color in (("worse", "tab:orange"), ("fails", "tab:red"), ("neither", "tab:blue")):
            left.plot([], [], "o", markersize=3, color=color, label=name)
        left.legend(fontsize="x-small", loc="lower right")
        left.axvline(0, color="black", linewidth=0.8)
        left.set_yticks(range(len(order)), [e["mistake"] for e in order], fontsize=5)
        left.set_xscale("symlog", linthresh=2)
        left.set(title=optimizer, xlabel="test accuracy minus the right network's, points (95 % interval)")
        for entry in order:
            result = entry["training"][optimizer]
            style = {"color": "tab:blue", "alpha": 0.9} if result["hidden"] else {"color": "tab:gray", "alpha": 0.4}
            losses = result["loss_by_epoch"]
            curves.plot(range(1, 1 + len(losses)), losses, ".-", linewidth=0.8, markersize=2, **style)
        loss = right[optimizer]["loss_by_epoch"]
        curves.plot(range(1, 1 + len(loss)), loss, color="black", label="right")
        curves.plot([], [], color="tab:blue", label="hidden mistakes")
        curves.plot([], [], color="tab:gray", label="other mistakes")
        curves.set(yscale="log", ylim=(0.02, 20), xlabel="epoch", ylabel="training loss", title=optimizer)
        curves.legend(fontsize="x-small")
    for unused in axes[len(right) :].ravel():
        unused.set_axis_off()
    made.savefig(path, dpi=110)


if __name__ == "__main__":
    jaxcnn.use_cpu_cores()
    sys.exit(main())
