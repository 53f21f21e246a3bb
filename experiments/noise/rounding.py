"""Gradients rounded in every layer's backward pass: to bfloat16, to 8 bits and fewer, to nearest and stochastically."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from changed import changed

import jaxcnn
from jaxcnn import Conv2D, Dense, Flatten, MaxPool, ReLU

sys.path.append(str(Path(__file__).parents[1]))
import common

RATES = (0.01, 0.03)  # sgd's with momentum 0.9
SEEDS, EPOCHS, DRAWS, SAMPLES = range(10), 7, 64, 100


# --- rounding -------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    """Floating: `mantissa` bits behind the point, down to exponent `lowest`, subnormal numbers below it, at most
    `largest`. Fixed point: whole numbers from -`levels` to `levels` times one scale for an array, its largest over
    `levels`.
    """

    mantissa: int = 0
    lowest: int = 0
    largest: float = np.inf
    levels: int = 0


# 2^8 is a scale of the loss: a gradient is multiplied by it before it is rounded, and divided by it again. bfloat16's
# lowest exponent is -126; nothing here is as small as 2^-100, and float32's spacing there must not be subnormal.
FORMATS = {
    "float32": Format(mantissa=23, lowest=-100),
    "bfloat16": Format(mantissa=7, lowest=-100),
    "float8_e5m2": Format(mantissa=2, lowest=-14, largest=57344.0),
    "float8_e4m3fn": Format(mantissa=3, lowest=-6, largest=448.0),
    "float8_e4m3fn, loss × 2⁸": Format(mantissa=3, lowest=-14, largest=1.75),
    "fixed, 8 bits": Format(levels=127),
    "fixed, 4 bits": Format(levels=7),
    "fixed, 2 bits": Format(levels=1),
}
TABLE = [np.array(column) for column in zip(*FORMATS.values(), strict=True)]  # by the field, then the number
NUMBERS = {name: number for number, name in enumerate(FORMATS)}


def rounded(key: jax.Array, x: jax.Array, form: jax.Array, stochastic: jax.Array) -> jax.Array:
    """x in a format, by its number; a float32 array of x's shape, as are its neighbours in the format.

    To nearest, and to even between two; or stochastically, up with the probability that leaves the mean at x. What is
    larger than the largest becomes the largest.
    """
    mantissa, lowest, largest, levels = (jnp.asarray(column)[form] for column in TABLE)
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32)
    exponent = jnp.maximum((bits >> 23) - 127, lowest)  # 2^exponent <= |x|
    top = jnp.abs(x).max()
    spacing = jnp.where(levels > 0, jnp.where(top > 0, top, 1) / jnp.maximum(levels, 1), _power(exponent - mantissa))
    scaled = x / spacing
    whole = jax.lax.cond(stochastic > 0, _stochastically, lambda _, scaled: jnp.round(scaled), key, scaled)
    return jnp.where(form == NUMBERS["float32"], x, jnp.clip(whole * spacing, -largest, largest))


def _power(exponent: jax.Array) -> jax.Array:
    """2^exponent, exactly, for exponents of normal numbers."""
    return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _stochastically(key, scaled):
    below = jnp.floor(scaled)
    return below + (jax.random.uniform(key, scaled.shape) < scaled - below)


def round_all(key: jax.Array, gradients: Any, settings) -> Any:
    """Each array of a tree, with a key of its own."""
    leaves, structure = jax.tree.flatten(gradients)
    keys = jax.random.split(key, max(len(leaves), 1))
    done = [rounded(k, x, settings["format"], settings["stochastic"]) for k, x in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, done)


# --- the experiment -------------------------------------------------------------------------------------------------


def network(stages: int = 2) -> jaxcnn.Layer:
    """A dense layer behind so many convolutions. Each layer with parameters rounds the dy that it is given and the
    gradients of its parameters; sums in between are in float32. The other layers pass on what is rounded already.
    """

    def rounding(layer):
        return changed(layer, round_all, {"format": 0, "stochastic": 0}, arriving=True)

    def stage():
        return rounding(Conv2D(8, 3)), ReLU(), MaxPool(2)

    return jaxcnn.sequential(*(layer for _ in range(stages) for layer in stage()), Flatten(), rounding(Dense(10)))


def watch_of(network: jaxcnn.Layer, images: np.ndarray, labels: np.ndarray):
    """What is recorded of all rows: of the dy of each layer with parameters, without any rounding, the share of the
    elements other than 0 that the row's format makes 0, to nearest.
    """
    loss = jaxcnn.softmax_cross_entropy

    def of_one(state):
        exact = common.with_leaves(state.state, "format", NUMBERS["float32"])
        logits, _, residuals = network.forward(state.params, exact, images, train=True, key=state.key)
        value, saved = loss.forward(logits, labels)
        dy, lost = loss.backward(saved, jnp.ones_like(value), **loss.static())[0], {}
        names = [name for name, _ in common.inputs_of(network, state, images)]
        for name, layer, saved in reversed(list(zip(names, network.layers, residuals, strict=True))):
            if name in state.state:  # the layers that round, and no others, have any
                to_nearest = rounded(state.key, dy, state.state[name]["format"], jnp.array(0))
                lost[name] = ((dy != 0) & (to_nearest == 0)).sum() / jnp.maximum((dy != 0).sum(), 1)
            _, dy = layer.backward(saved, dy)
        return lost

    return jax.jit(lambda states: jax.lax.map(of_one, states))


def nearness(network: jaxcnn.Layer, states: Any, images, labels, variants, draws: int) -> dict[str, np.ndarray]:
    """Of the gradient of the first filters or weights, behind all roundings, at these states and in each variant: its
    cosine to that in float32, the distance of one draw from that, and of the mean of all draws, both over its length.

    Each (variants, states). With no bias the mean's distance is that of one over √draws.
    """

    first = min(states.params)  # by its name, conv2d_1

    def of_one(given):
        state, form, stochastic = given

        def gradient(given):
            step, form = given  # the step makes the key
            leaves = common.with_leaves(common.with_leaves(state.state, "format", form), "stochastic", stochastic)
            own = state._replace(state=leaves, step=step)
            got = jaxcnn.gradients(network, jaxcnn.softmax_cross_entropy, own, images, labels)
            return next(got[first][name].ravel() for name in ("filters", "weights") if name in got[first])

        forms = jnp.full(1 + draws, form).at[0].set(NUMBERS["float32"])
        every = jax.lax.map(gradient, (jnp.arange(1 + draws), forms))
        right, got = every[0], every[1:]
        length, lengths = jnp.linalg.norm(right), jnp.linalg.norm(got, axis=-1)
        return {
            "cosine": jnp.where(lengths > 0, got @ right / (jnp.maximum(lengths, 1e-30) * length), 0).mean(),
            "one": jnp.linalg.norm(got - right, axis=-1).mean() / length,
            "mean": jnp.linalg.norm(got.mean(0) - right) / length,
        }

    count = len(states.step)
    rows = np.tile(np.arange(count), len(variants))
    settings = (np.repeat([variant[name] for variant in variants], count) for name in ("format", "stochastic"))
    every = jax.jit(lambda *given: jax.lax.map(of_one, given))(jax.tree.map(lambda leaf: leaf[rows], states), *settings)
    return {name: np.asarray(values).reshape(len(variants), count) for name, values in every.items()}


def experiment(
    made: jaxcnn.Layer, split: common.Split, seeds: Sequence[int], names: Sequence[str], rates, epochs: int, draws: int
) -> dict:
    """Of float32, then of each other format to nearest and stochastically."""
    ways = [("float32", 0), *((name, s) for name in names if name != "float32" for s in (0, 1))]
    variants = [{"format": NUMBERS[name], "stochastic": s} for name, s in ways]
    part = split.validation.images[0, :SAMPLES], split.validation.labels[0, :SAMPLES]
    momentum = functools.partial(optax.sgd, momentum=0.9)
    how = {"rates": rates, "epochs": epochs, "variants": variants, "optimizer": momentum}
    trained = common.train(made, split, seeds, **how, watch=watch_of(made, *part))
    accuracy, chosen = common.tested(made, trained, split), trained.chosen
    # Float32's runs, after their best epoch: the same parameters for all formats.
    states = jax.tree.map(lambda leaf: leaf[trained.at_chosen[: len(seeds)]], trained.best)
    near = nearness(made, states, *part, variants, draws)
    results = [
        {
            "format": name,
            "rounding": "stochastic" if stochastic else "to nearest",
            "rate": rates[chosen[i]],
            "accuracy_by_rate": trained.validation[i].max(-1).mean(-1),
            "test_accuracy": common.spread(accuracy[i]),
            "minus_float32": common.paired(accuracy[i], accuracy[0]) if i else None,
            "gradient": {key: common.spread(values[i]) for key, values in near.items()},
            "lost_by_epoch": {
                name: [w[name][i, chosen[i]].mean() for w in trained.watched] for name in trained.watched[0]
            },
        }
        for i, (name, stochastic) in enumerate(ways)
    ]
    return {"rates": rates, "epochs": epochs, "draws": draws, "ways": results}


def table(result: dict) -> str:
    """As in experiments/README.md."""
    heading = ["format", "rounding", "test accuracy, %", "− float32", "cosine", "one", "mean", "lost"]
    lines = [heading, ["---"] * len(heading)]
    for way in result["ways"]:
        accuracy, minus, gradient = (way[key] for key in ("test_accuracy", "minus_float32", "gradient"))
        lost = " / ".join(f"{100 * line[-1]:.0f}" for line in way["lost_by_epoch"].values())
        cells = [way["format"], way["rounding"] if minus else ""]
        cells += [f"{100 * accuracy['mean']:.2f} ± {100 * accuracy['deviation']:.2f} ({way['rate']:g})"]
        cells += [f"{100 * minus['low']:+.2f} … {100 * minus['high']:+.2f}" if minus else ""]
        cells += [f"{gradient['cosine']['mean']:.4f}", *(f"{gradient[key]['mean']:.2g}" for key in ("one", "mean"))]
        lines.append([*cells, lost])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(result: dict, accuracy: Any, bias: Any, lost: Any) -> None:
    """The difference to float32 in test accuracy; how far one gradient and the mean of many are from the right one; the
    share of the cotangents that is lost.
    """
    ways = result["ways"][1:]
    names = list(dict.fromkeys(way["format"] for way in ways))
    for rounding, color, shift in (("to nearest", "tab:red", 0.15), ("stochastic", "tab:blue", -0.15)):
        chosen = [way for way in ways if way["rounding"] == rounding]
        places = [names.index(way["format"]) + shift for way in chosen]
        minus = [{key: 100 * value for key, value in way["minus_float32"].items()} for way in chosen]
        error = np.array([[m["mean"] - m["low"], m["high"] - m["mean"]] for m in minus]).T
        accuracy.errorbar([m["mean"] for m in minus], places, xerr=error, fmt="o", color=color, label=rounding)
        for key, marker in (("one", "o"), ("mean", "x")):
            values = [way["gradient"][key]["mean"] for way in chosen]
            label = f"{rounding}, " + (f"mean of {result['draws']}" if key == "mean" else "one")
            bias.plot(values, places, marker, color=color, markerfacecolor="none", label=label)
    for way in ways:
        if way["rounding"] == "to nearest":
            lost.plot(
                [100 * share for share in next(iter(way["lost_by_epoch"].values()))],
                "o-",
                markersize=3,
                label=way["format"],
            )
    lost.set(title="dy of the first layer made 0, to nearest", xlabel="epoch", ylabel="% of those that are not 0")
    lost.set_ylim(-5, 160)  # room for the names above the curves
    lost.legend(fontsize="x-small", loc="upper left", ncols=2)
    accuracy.axvline(0, color="black", linewidth=0.8)
    accuracy.set_xscale("symlog", linthresh=2)
    accuracy.set_xlim(-100, 5)
    accuracy.set(title="rounded gradients", xlabel="test accuracy − float32's, points (95 % interval)")
    bias.set(title="the first filters' gradient", xlabel="distance from float32's / its length", xscale="log")
    for axes in (accuracy, bias):
        axes.set_yticks(range(len(names)), names, fontsize="x-small")
        axes.legend(fontsize="x-small")
