"""Gradient reversal: features that shall tell the classes and not whether an image is a digit or an inverted one."""

from __future__ import annotations

import functools
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
from jaxcnn.layers import from_rule
from jaxcnn.layers.layer import Identity, by_mode
from jaxcnn.training.samples import Samples

sys.path.append(str(Path(__file__).parents[1]))
import common

RATES = (0.01, 0.03)  # sgd's with momentum 0.9, Ganin's optimizer
SEEDS, EPOCHS, CLASSES = range(100, 110), 20, 10  # seeds that no trial has seen
STRENGTHS = (-1.0, 0.0, 0.03, 0.1, 0.3)


def reverse_forward(x, strength):
    """x itself; `strength`, a number, is λ."""
    return x, strength


# Not the gradient of y = x, and meant so: what is above learns to lower the loss, what is below to raise it, λ times as
# much. The strength does not change y.
def reverse_backward(strength, dy):
    return -strength * dy, jnp.zeros_like(strength)


reverse = jaxcnn.Rule(reverse_forward, reverse_backward, "reverse")


def classes_forward(logits):
    """Of the logits of both heads, (N, CLASSES + 2), those of the classes."""
    return logits[:, :CLASSES], ()


# dlogits = dy for the classes, 0 for the domains.
def classes_backward(residuals, dy):
    return (jnp.pad(dy, ((0, 0), (0, 2))),)


classes = jaxcnn.Rule(classes_forward, classes_backward, "classes")


def both_forward(logits, labels):
    """The cross-entropy of the class, 0 where a row of labels has none, plus that of the domain; both (N, CLASSES + 2).

    The mean over the batch, of the digits and of the inverted digits in it.
    """
    parts = [
        jaxcnn.softmax_cross_entropy.forward(*(a[:, part] for a in (logits, labels)))
        for part in (slice(CLASSES), slice(CLASSES, None))
    ]
    return sum(value for value, _ in parts), [residuals for _, residuals in parts]


# A sum: each part gets dy; side by side again.
def both_backward(residuals, dy):
    rule = jaxcnn.softmax_cross_entropy
    parts = [rule.backward(saved, dy, **rule.static()) for saved in residuals]
    return tuple(jnp.concatenate(pair, -1) for pair in zip(*parts, strict=True))


both = jaxcnn.Rule(both_forward, both_backward, "both")


def network() -> jaxcnn.Layer:
    """Features, and two heads on them; outside of training the head of the classes alone."""
    features = jaxcnn.sequential(
        *(Conv2D(8, 3), ReLU(), MaxPool(2)), *(Conv2D(16, 3), ReLU(), MaxPool(2)), *(Flatten(), Dense(32), ReLU()),
        name="features",
    )  # fmt: skip
    reversal = from_rule(reverse, "reverse", state={"strength": lambda key, shape: jnp.zeros(())})
    domain = jaxcnn.sequential(reversal, Dense(32), ReLU(), Dense(2))
    heads = jaxcnn.parallel(Dense(CLASSES), domain, join="concatenate", names=("class", "domain"), name="heads")
    return jaxcnn.sequential(features, heads, by_mode(Identity(), from_rule(classes, "classes")))


# --- data -----------------------------------------------------------------------------------------------------------


def two_domains(split: common.Split, labelled: bool) -> common.Split:
    """Of each seed's images the first half as they are, with their classes, and the other half inverted, with none, or
    with theirs if `labelled`. Validation and test are the digits as they are.
    """
    images, labels = split.train
    half = labels.shape[1] // 2
    inverted = np.arange(labels.shape[1]) >= half
    known = np.ones_like(inverted) if labelled else ~inverted
    one_hot = np.eye(CLASSES, dtype=np.float32)[labels] * known[:, None]
    domains = np.broadcast_to(np.eye(2, dtype=np.float32)[inverted.astype(int)], (*labels.shape, 2))
    mixed = np.where(inverted[:, None, None, None], -images, images)
    return split._replace(train=Samples(mixed, np.concatenate([one_hot, domains], -1)))


def negated(samples: Samples) -> Samples:
    return samples._replace(images=-samples.images)


# --- what is looked at ----------------------------------------------------------------------------------------------


def outputs_of(network: jaxcnn.Layer, states: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features, whether the domain's head calls it inverted) of each state and its own images."""
    features, inverted = _outputs(network, states.params, states.state, images)
    return np.nan_to_num(features, posinf=0, neginf=0), np.asarray(inverted)  # a run that diverged knows nothing


@functools.partial(jax.jit, static_argnums=0)
def _outputs(network, params, state, images):
    def of_one(given):
        params, state, images = given
        found = network.layers[0].forward(params["features"], {}, images)[0]
        logits = network.forward(params, state, images, train=True)[0]
        return found, logits[:, CLASSES:].argmax(-1)

    return jax.lax.map(of_one, (params, state, images))


def domain_accuracies(network: jaxcnn.Layer, states: Any, train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """How well digits and inverted digits are told apart, on test images, both ways of each: by the network's own head,
    and by a logistic regression on the frozen features, fitted to those of the training images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = [outputs_of(network, states, images)[0] for images in (train, -train)]
    features, calls = zip(*(outputs_of(network, states, images) for images in (test, -test)), strict=True)
    probes = []
    for row in range(len(test)):
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        probe.fit(np.concatenate([f[row] for f in fitted]), np.repeat([0, 1], train.shape[1]))
        right = np.repeat([0, 1], test.shape[1])
        probes.append(probe.score(np.concatenate([f[row] for f in features]), right))
    return {"head": ((calls[0] == 0).mean(-1) + (calls[1] == 1).mean(-1)) / 2, "probe": np.array(probes)}


def trained_with(split: common.Split, seeds, strengths: Sequence[float], rates, epochs: int, labelled: bool):
    """(what was found of each λ: an array (strengths, seeds) of each measure; the rates chosen; accuracies by rate).

    Rate and epoch are chosen on digits alone: if not `labelled`, the classes of inverted digits are used in the test
    only.
    """
    made, variants = network(), [{"strength": s} for s in strengths]
    momentum = functools.partial(optax.sgd, momentum=0.9)
    how = {"rates": rates, "epochs": epochs, "variants": variants, "loss": both, "optimizer": momentum}
    trained = common.train(made, two_domains(split, labelled), seeds, **how)
    states = jax.tree.map(lambda leaf: leaf[trained.at_chosen], trained.best)
    train, test = (split.of(part, np.tile(np.arange(len(seeds)), len(strengths))).images for part in ("train", "test"))
    domains = domain_accuracies(made, states, train, test)
    found = {
        "digits": common.tested(made, trained, split),
        "inverted": common.tested(made, trained, split._replace(test=negated(split.test))),
        **{name: values.reshape(len(strengths), -1) for name, values in domains.items()},
    }
    return found, [rates[i] for i in trained.chosen], trained.validation.max(-1).mean(-1)


def experiment(split: common.Split, seeds: Sequence[int], strengths: Sequence[float], rates, epochs: int) -> dict:
    """Of each λ, 0 among them."""
    found, chosen, by_rate = trained_with(split, seeds, strengths, rates, epochs, labelled=False)
    zero = list(strengths).index(0.0)
    results = [
        {
            "strength": s,
            "rate": chosen[i],
            "accuracy_by_rate": by_rate[i],
            **{name: common.spread(values[i]) for name, values in found.items()},
            "minus_0": {n: common.paired(v[i], v[zero]) for n, v in found.items()} if i != zero else None,
        }
        for i, s in enumerate(strengths)
    ]
    return {"seeds": seeds, "rates": rates, "epochs": epochs, "by_strength": results}


def limit(split: common.Split, seeds: Sequence[int], rates, epochs: int) -> dict:
    """The most that there is to be had: of λ = 0 with the classes of the inverted digits."""
    found, (rate,), _ = trained_with(split, seeds, [0.0], rates, epochs, labelled=True)
    return {"rate": rate, **{name: common.spread(values[0]) for name, values in found.items()}}


# --- words and pictures ---------------------------------------------------------------------------------------------

MEASURES = {
    "digits": "class, digits",
    "inverted": "class, inverted digits",
    "head": "domain, own head",
    "probe": "domain, linear probe",
}


def table(result: dict) -> str:
    """As in experiments/README.md."""
    heading = ["λ", *MEASURES.values(), "inverted − λ = 0", "probe − λ = 0"]
    lines = [heading, ["---"] * len(heading)]
    for entry in (*result["by_strength"], *([result["labelled"]] if "labelled" in result else [])):
        name = f"{entry['strength']:g}" if "strength" in entry else "0, with their classes"
        cells = [f"{name} ({entry['rate']:g})"]
        cells += [f"{100 * entry[m]['mean']:.1f} ± {100 * entry[m]['deviation']:.1f}" for m in MEASURES]
        for measure in ("inverted", "probe"):
            minus = (entry.get("minus_0") or {}).get(measure)
            cells.append(f"{100 * minus['low']:+.1f} … {100 * minus['high']:+.1f}" if minus else "")
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(result: dict, axes: Any) -> None:
    """The four accuracies by λ."""
    entries = result["by_strength"]
    for (measure, label), color in zip(
        MEASURES.items(), ("tab:blue", "tab:orange", "tab:gray", "tab:red"), strict=True
    ):
        mean, deviation = ([100 * entry[measure][key] for entry in entries] for key in ("mean", "deviation"))
        axes.errorbar(range(len(entries)), mean, yerr=deviation, fmt="o-", color=color, label=label, capsize=3)
    axes.set_xticks(range(len(entries)), [f"{entry['strength']:g}" for entry in entries])
    axes.set(title="gradient reversal", xlabel="λ", ylabel="test accuracy, % (mean, deviation)")
    axes.legend(fontsize="x-small")
