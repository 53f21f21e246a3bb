"""How far is the gradient by hand from the true one, how far autodiff's, and how far do they lead training apart?

    python experiments/manual_vs_autodiff/run.py [--quick] [--out DIR]

For every rule and for whole networks the error against float64, in float32 and bfloat16. Then 200 steps of training by
hand beside 200 by autodiff, and for comparison beside autodiff with the samples of each batch in another order, which
changes nothing but the order of the sums.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxcnn
from jaxcnn import Conv2D, Dense, Flatten, MaxPool, ReLU, Sigmoid
from jaxcnn.verification import cases
from jaxcnn.verification.options import Options

sys.path.append(str(Path(__file__).parents[1]))
import common

DTYPES = ("float32", "bfloat16")
NETWORKS = {
    "source": (jaxcnn.models.source(), (8, 8, 1)),
    "lenet5": (jaxcnn.models.lenet5(), (28, 28, 1)),
    "vgg": (jaxcnn.models.vgg(width=8), (8, 8, 1)),
    "resnet20": (jaxcnn.models.resnet20(width=4), (8, 8, 1)),
}
SEEDS, STEPS, BATCH, RATE = range(5), 200, 32, 0.1


# --- one gradient ---------------------------------------------------------------------------------------------------


def of_rules(quick: bool) -> list[dict[str, Any]]:
    """Of each rule its worst argument in its worst case, in units in the last place of the largest element."""
    rules = [case for case in cases.short_cases() if isinstance(case.subject, jaxcnn.Rule)]
    options = Options(dtypes=DTYPES, finite_differences=False, transforms=False, second_order=False)
    worst: dict[str, dict[str, Any]] = {}
    for case in rules[:4] if quick else rules:
        for row in case.verify(options).rows:
            if row.check in DTYPES and row.ulps is not None and row.autodiff_ulps is not None:
                given = worst.setdefault(case.subject.name, {})
                by_hand, autodiff = given.get(row.check, (0.0, 0.0))
                given[row.check] = max(by_hand, row.ulps), max(autodiff, row.autodiff_ulps)
    return [
        {"rule": rule, **{dtype: dict(zip(("by_hand", "autodiff"), u, strict=True)) for dtype, u in given.items()}}
        for rule, given in worst.items()
    ]


def of_network(name: str, dtype: str, seeds: Sequence[int]) -> dict[str, Any]:
    """The whole gradient of the loss on random images: ulps of the worst parameter, and the relative error in norm."""
    network, shape = NETWORKS[name]
    found: dict[str, list[tuple[float, float]]] = {"manual": [], "autodiff": []}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        state = jaxcnn.init_train_state(network, optax.sgd(RATE), seed, shape)
        images = jnp.asarray(rng.standard_normal((BATCH, *shape)), dtype)
        labels, state = rng.integers(0, 10, BATCH), common.cast(state, dtype)
        low = {backward: jax.device_get(gradient(network, backward)(state, images, labels)) for backward in found}
        with jax.enable_x64(True):
            exact = jax.device_get(gradient(network, "autodiff")(*_wide((state, images)), labels))
        for backward, got in low.items():
            found[backward].append(errors(got, exact, dtype))
    return {
        "network": name,
        "dtype": dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),  # pyright: ignore[reportPossiblyUnbound]
        **{
            {"manual": "by_hand"}.get(backward, backward): {
                "ulps": common.spread([ulps for ulps, _ in each]),
                "relative": common.spread([relative for _, relative in each]),
            }
            for backward, each in found.items()
        },
    }


@functools.cache
def gradient(network: jaxcnn.Layer, backward: str):
    return jax.jit(lambda *given: jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, *given, backward=backward))


def _wide(tree: Any) -> Any:
    """Floats in float64, the rest as it is; under x64."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree
    )


def errors(got: Any, exact: Any, dtype: str) -> tuple[float, float]:
    """(ulps of the worst array, each in units of its own largest element; the error over the norm, all together)"""
    pairs = [(np.asarray(g, np.float64), e) for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True)]
    ulps = []
    for g, e in pairs:
        unit = float(jnp.finfo(dtype).eps) * 2.0 ** math.floor(math.log2(np.abs(e).max()))
        ulps.append(np.abs(g - e).max() / unit)
    error, norm = (
        np.sqrt(sum((a**2).sum() for a in arrays)) for arrays in ([g - e for g, e in pairs], [e for _, e in pairs])
    )
    return float(max(ulps)), float(error / norm)


# --- 200 steps ------------------------------------------------------------------------------------------------------

# What is compared with a run by autodiff: (backward, whether the samples of each batch come in another order).
RUNS = {
    "by hand": ("manual", False),
    "autodiff, other order": ("autodiff", True),
    "autodiff again": ("autodiff", False),
}


def small() -> jaxcnn.Layer:
    return jaxcnn.sequential(Conv2D(8, 3), ReLU(), MaxPool(2), Flatten(), Dense(32), Sigmoid(), Dense(10))


def trajectory(dtype: str, split: common.Split, seeds: Sequence[int], steps: int, backward: str, other: bool):
    """(the parameters after each step, (steps, seeds, parameters) in float64; validation predictions at the end)"""
    network = common.in_bfloat16(small()) if dtype == "bfloat16" else small()
    optimizer, wide = optax.sgd(RATE, momentum=0.9), np.float64 if dtype == "float64" else np.float32
    with jax.enable_x64(False):  # the same random numbers for all
        states = jaxcnn.init_train_states(network, optimizer, seeds, split.train.images.shape[2:])
        orders = [np.stack([_batch(split, seed, step) for seed in seeds])[:, None] for step in range(steps)]
    states = jax.tree.map(lambda leaf: leaf.astype(wide) if leaf.dtype == np.float32 else leaf, states)
    run = jaxcnn.train_seeds(network, jaxcnn.softmax_cross_entropy, optimizer, backward=backward)
    which, lines = np.arange(len(seeds)), []
    for order in orders:
        chosen = which[:, None, None], order[..., ::-1] if other else order
        states, _ = run(states, split.train.images[chosen].astype(wide), split.train.labels[chosen])
        leaves = [np.asarray(leaf, np.float64).reshape(len(seeds), -1) for leaf in jax.tree.leaves(states.params)]
        lines.append(np.concatenate(leaves, -1))
    forward = jax.jit(lambda state, x: network.forward(state.params, state.state, x)[0].argmax(-1))
    each = (jax.tree.map(lambda leaf: leaf[i], states) for i in which)  # noqa: B023
    return np.stack(lines), np.stack([forward(s, x) for s, x in zip(each, split.validation.images, strict=True)])


def _batch(split: common.Split, seed: int, step: int) -> np.ndarray:
    samples = split.train.labels.shape[1]
    epoch, place = divmod(step, samples // BATCH)
    return np.asarray(jaxcnn.shuffled(samples, BATCH, seed=seed, epoch=epoch))[place]


def apart(dtype: str, split: common.Split, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """How far each run is from that by autodiff, and each of all from the run in float64."""
    autodiff, said = trajectory(dtype, split, seeds, steps, "autodiff", False)
    with jax.enable_x64(True):
        exact, _ = trajectory("float64", split, seeds, steps, "autodiff", False)

    def distance(a, b):
        return np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)

    compared, to_float64 = {}, {"autodiff": distance(autodiff, exact)}
    for name, (backward, other) in RUNS.items():
        run, says = trajectory(dtype, split, seeds, steps, backward, other)
        lines, differ = distance(run, autodiff), (run != autodiff).any(-1)
        to_float64[name] = distance(run, exact)
        compared[name] = {
            # 0 where the two are the same to the end
            "first_step_that_differs": [int(d.argmax()) + 1 if d.any() else 0 for d in differ.T],
            "distance_at_the_end": common.spread(lines[-1]),
            "distance_by_step": lines.mean(-1),
            "predictions_that_differ": common.spread((says != said).mean(-1)),
        }
    ends = {name: common.spread(lines[-1]) for name, lines in to_float64.items()}
    return {"dtype": dtype, "to_autodiff": compared, "to_float64_at_the_end": ends}


def main(arguments: Sequence[str] | None = None) -> int:
    quick = "four cases of rules, one small network, two seeds, 5 steps"
    options = common.options_of(__file__, __doc__ or "", quick, arguments)
    seeds, steps = (range(2), 5) if options.quick else (SEEDS, STEPS)
    rules = of_rules(options.quick)
    names = ("source",) if options.quick else NETWORKS
    networks = [of_network(name, dtype, seeds) for name in names for dtype in DTYPES]
    split = common.digits(seeds)
    training = [apart(dtype, split, seeds, steps) for dtype in DTYPES]
    how = {"seeds": list(seeds), "steps": steps, "batch": BATCH, "optimizer": f"sgd, rate {RATE}, momentum 0.9"}
    record = common.write(options, **how, rules=rules, networks=networks, training=training)
    found = record["rules"], record["networks"], record["training"]
    print(in_words(*found))
    draw(*found, options.out / "manual_vs_autodiff.png")
    return 0


def in_words(rules: Sequence[dict], networks: Sequence[dict], training: Sequence[dict]) -> str:
    lines = []
    for dtype in DTYPES:
        pairs = [(r[dtype]["by_hand"], r[dtype]["autodiff"]) for r in rules if dtype in r]
        nearer, farther = (sum(sign * h < sign * a for h, a in pairs) for sign in (1, -1))
        by_hand, autodiff = ((np.median(u), max(u)) for u in zip(*pairs, strict=True))
        lines.append(
            f"{len(pairs)} rules, {dtype}: median {by_hand[0]:.2g} ulp by hand, {autodiff[0]:.2g} by autodiff; largest"
            f" {by_hand[1]:.2g} and {autodiff[1]:.2g}; by hand nearer to float64 in {nearer}, farther in {farther}"
        )
    for n in networks:
        cells = (
            f"{n[way]['relative']['mean']:.2e} ± {n[way]['relative']['deviation']:.1e}"
            for way in ("by_hand", "autodiff")
        )
        lines.append(f"{n['network']}, {n['dtype']}: relative error {' by hand, '.join(cells)} by autodiff")
    for t in training:
        for name, line in t["to_autodiff"].items():
            d, p = line["distance_at_the_end"], line["predictions_that_differ"]
            lines.append(
                f"{t['dtype']}, {name}: differs from step {line['first_step_that_differs']}, distance at the end"
                f" {d['mean']:.2e} ± {d['deviation']:.1e}, predictions that differ {100 * p['mean']:.2f} %"
            )
        ends = ", ".join(f"{n} {e['mean']:.2e} ± {e['deviation']:.1e}" for n, e in t["to_float64_at_the_end"].items())
        lines.append(f"{t['dtype']}, distance to the run in float64: {ends}")
    return "\n".join(lines)


def draw(rules: Sequence[dict], networks: Sequence[dict], training: Sequence[dict], path: Path) -> None:
    """The rules' errors against each other, the networks' beside each other, the trajectories' distances by step."""
    made, ((first, second, third),) = common.figure(1, 3, height=4)
    for dtype, color in zip(DTYPES, ("tab:blue", "tab:orange"), strict=True):
        pairs = np.array([(r[dtype]["autodiff"], r[dtype]["by_hand"]) for r in rules if dtype in r])
        first.scatter(*np.maximum(pairs, 0.05).T, s=12, alpha=0.7, color=color, label=dtype)
    ends = [0.05, max(2.0, *first.get_xlim(), *first.get_ylim())]
    first.plot(ends, ends, color="black", linewidth=0.8)
    first.set(xscale="log", yscale="log", xlabel="autodiff, ulp", ylabel="by hand, ulp", title="each rule")
    first.legend(fontsize="x-small")
    for i, (way, color) in enumerate((("by_hand", "tab:green"), ("autodiff", "tab:blue"))):
        height = [n[way]["relative"]["mean"] for n in networks]
        error = [n[way]["relative"]["deviation"] for n in networks]
        label = way.replace("_", " ")
        second.bar(np.arange(len(networks)) + 0.4 * i - 0.2, height, 0.4, yerr=error, color=color, label=label)
    names = [f"{n['network']}\n{n['dtype']}" for n in networks]
    second.set_xticks(range(len(networks)), names, fontsize="xx-small", rotation=45)
    second.set(yscale="log", ylabel="relative error of the gradient", title="whole networks")
    second.legend(fontsize="x-small")
    for t in training:
        for (name, line), color in zip(t["to_autodiff"].items(), ("tab:green", "tab:red", "tab:gray"), strict=True):
            by_step = np.asarray(line["distance_by_step"])
            dash = "-" if t["dtype"] == "float32" else "--"
            label = f"{t['dtype']}, {name}" if by_step.any() else f"{t['dtype']}, {name}: the same bits"
            third.plot(np.arange(1, len(by_step) + 1), by_step, dash, color=color, label=label)
    third.set(yscale="log", xlabel="step", ylabel="distance to the run by autodiff", title="training")
    third.legend(fontsize="xx-small")
    made.savefig(path, dpi=110)


if __name__ == "__main__":
    jaxcnn.use_cpu_cores()
    sys.exit(main())
