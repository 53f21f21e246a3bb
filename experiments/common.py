"""What the experiments share: arguments, data by seed, training of many seeds and rates at once, record, figure."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from command_line import parsed, parser_of
from scipy import stats

import jaxcnn
from jaxcnn.benchmark.surroundings import surroundings
from jaxcnn.training.data import PACKAGED, load_data
from jaxcnn.training.samples import Samples

PACKAGES = ("jaxcnn", "jax", "jaxlib", "numpy", "optax", "scikit-learn", "scipy", "chex", "torch")
AT_ONCE = 500  # images of a forward pass that is only evaluated


# --- arguments and record -------------------------------------------------------------------------------------------


def options_of(script: str, doc: str, quick: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """`--quick`, which makes a run as small as `quick` says, and `--out`; the time begins."""
    options = parsed(parser_of(doc, quick, "result.json and the figure"), script, arguments)
    options.start = time.perf_counter()
    return options


def write(options: argparse.Namespace, **record: Any) -> dict[str, Any]:
    """Writes result.json, how it was made and what came out, and returns it."""
    device = jax.devices()[0]
    whole = {
        "command": options.command,
        **surroundings(PACKAGES),
        "device": f"{jax.device_count()} × {device.platform} ({device.device_kind})",
        "seconds": round(time.perf_counter() - options.start, 1),
        "cpu_seconds": round(time.process_time(), 1),  # of all cores together; a pause does not count
        **_plain(record),
    }
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
    (options.out / "result.json").write_text(text + "\n", encoding="utf-8")
    return whole


def _plain(value: Any) -> Any:
    """As JSON has it: numbers to five digits, those that are not finite as None."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, float | np.floating):
        return float(f"{value:.5g}") if np.isfinite(value) else None
    if isinstance(value, list | tuple | range | np.ndarray):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def spread(values: Any) -> dict[str, Any]:
    """Mean and sample deviation over the seeds, and each."""
    values = np.asarray(values, np.float64)
    return {"mean": values.mean(), "deviation": values.std(ddof=1) if len(values) > 1 else 0.0, "each": values}


def paired(values: Any, others: Any) -> dict[str, float]:
    """The mean difference, seed by seed, and the 95 % interval of it by Student's t."""
    difference = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    half = stats.t.ppf(0.975, max(len(difference) - 1, 1)) * error
    return {"mean": difference.mean(), "low": difference.mean() - half, "high": difference.mean() + half}


# --- data -----------------------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Of several seeds, each with its own training and validation images; (seeds, images, …)."""

    train: Samples
    validation: Samples
    test: Samples

    def of(self, part: str, seeds: Sequence[int] | np.ndarray) -> Samples:
        """Of these, by their numbers among the seeds."""
        return Samples(*(array[np.asarray(seeds)] for array in getattr(self, part)))


def digits(seeds: Sequence[int]) -> Split:
    """scikit-learn's digits: of each seed a split of its own, 1149 images to train, 288 to choose by, 360 to test."""
    return _stacked([load_data("digits", seed=seed, validation=0.2) for seed in seeds])


def fashion(seeds: Sequence[int], train: int, validation: int) -> Split:
    """Fashion-MNIST: of each seed so many of the 60,000 images to train and to choose by; its 10,000 to test."""
    if not PACKAGED.is_dir():
        sys.exit(f"{PACKAGED}: no such folder; install Debian's package dataset-fashion-mnist")
    data = load_data("fashion-mnist", seed=0, validation=0.2)
    assert data.validation is not None
    parts = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        own = [
            rng.permutation(len(p.labels))[:count] for p, count in ((data.train, train), (data.validation, validation))
        ]
        chosen = [Samples(p.images[i], p.labels[i]) for p, i in zip((data.train, data.validation), own, strict=True)]
        parts.append(data._replace(train=chosen[0], validation=chosen[1]))
    return _stacked(parts)


def _stacked(parts: Sequence[Any]) -> Split:
    def stacked(name):
        each = [getattr(part, name) for part in parts]
        if all(one is each[0] for one in each):  # the same test images for all, without copies
            return Samples(*(np.broadcast_to(array, (len(each), *array.shape)) for array in each[0]))
        return Samples(*map(np.stack, zip(*each, strict=True)))

    return Split(*map(stacked, Split._fields))


# --- layers that behave in several ways -----------------------------------------------------------------------------


def one_of(right: jaxcnn.Layer, changed: Mapping[int, jaxcnn.Layer], *, name: str | None = None) -> jaxcnn.Layer:
    """The layer `right`, with the backward pass of `changed[v]` where the "variant" in its state is such a v.

    All have one forward pass; that of `right` runs. So one compiled program trains all variants: the number is data.
    """
    branches = [right, *changed.values()]
    table = np.zeros(max(changed, default=0) + 1, np.int32)
    table[[*changed]] = np.arange(1, len(branches))

    def init(key, input_shape):
        params, state, shape = right.init(key, input_shape)
        return params, {"right": state, "variant": jnp.zeros((), jnp.int32)}, shape

    def forward(params, state, x, *, train=False, key=None):
        y, new_state, residuals = right.forward(params, state["right"], x, train=train, key=key)
        return y, {"right": new_state, "variant": state["variant"]}, (residuals, state["variant"])

    def backward(residuals, dy):
        saved, variant = residuals
        number = jnp.asarray(table).at[variant].get(mode="fill", fill_value=0)
        return jax.lax.switch(number, [branch.backward for branch in branches], saved, dy)

    return jaxcnn.Layer(name or right.name, init, forward, backward)


def inputs_of(network: jaxcnn.Layer, state: Any, images: Any) -> list[tuple[str, jax.Array]]:
    """Each layer of a `sequential`, by the name it has there, and what it is given of these images."""
    names = [layer.name for layer in network.layers]
    numbered = [f"{n}_{names[: i + 1].count(n)}" if names.count(n) > 1 else n for i, n in enumerate(names)]
    inputs, x = [], jnp.asarray(images)
    for name, layer in zip(numbered, network.layers, strict=True):
        inputs.append((name, x))
        x = layer.forward(state.params.get(name, {}), state.state.get(name, {}), x)[0]
    return inputs


def in_bfloat16(network: jaxcnn.Layer) -> jaxcnn.Layer:
    """Both passes in bfloat16; parameters, loss and updates in float32."""
    return jaxcnn.with_dtypes(network, computation="bfloat16", output="float32")


def cast(state: Any, dtype: str) -> Any:
    """With its parameters in that dtype, as a network `in_bfloat16` computes with them."""
    return state._replace(params=jax.tree.map(lambda leaf: leaf.astype(dtype), state.params))


# --- training -------------------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """Of every variant, rate and seed."""

    rates: tuple[float, ...]
    loss: np.ndarray  # (variants, rates, seeds, epochs): the mean over an epoch's batches
    validation: np.ndarray  # (variants, rates, seeds, epochs): accuracy
    best: Any  # states after the epoch of the highest validation accuracy, each array (variants · rates · seeds, …)
    watched: list[Any]  # what `watch` returned, each array (variants, rates, seeds, …): at the start, after each epoch

    @property
    def chosen(self) -> np.ndarray:
        """Of each variant the number of the rate whose validation accuracy, of each seed in its best epoch, is the
        highest on average.
        """
        return self.validation.max(-1).mean(-1).argmax(-1)

    @property
    def at_chosen(self) -> np.ndarray:
        """(variants · seeds,): the rows of each variant at its chosen rate."""
        variants, rates, seeds, _ = self.loss.shape
        first = (np.arange(variants) * rates + self.chosen) * seeds
        return (first[:, None] + np.arange(seeds)).ravel()


def train(
    network: jaxcnn.Layer,
    split: Split,
    seeds: Sequence[int],
    *,
    rates: Sequence[float],
    epochs: int,
    batch: int = 32,
    variants: Sequence[Mapping[str, float]] = ({},),
    optimizer: Callable[..., optax.GradientTransformation] = optax.adam,
    loss: jaxcnn.Rule = jaxcnn.softmax_cross_entropy,
    watch: Callable[[Any], Any] | None = None,
) -> Trained:
    """Trains each variant of a network at each learning rate with each seed, all in one program.

    A seed has the same initial parameters, images and order for every variant and rate, so that variants are compared
    seed by seed. The epoch is chosen on the validation images.

    Args:
      variants: what sets each apart: numbers in the layers' state, by their names there.
      watch: a function of the states of all rows, for what is to be recorded.
    """
    shape = len(variants), len(rates), len(seeds)
    of_variant, of_rate, of_seed = (axis.ravel() for axis in np.indices(shape))
    made = optax.inject_hyperparams(optimizer)(learning_rate=1.0)
    states = jaxcnn.init_train_states(network, made, seeds, split.train.images.shape[2:])
    states = jax.tree.map(lambda leaf: leaf[of_seed], states)
    rate = jnp.asarray(rates, jnp.float32)[of_rate]
    states.opt_state.hyperparams["learning_rate"] = rate  # pyright: ignore[reportAttributeAccessIssue]
    for name in variants[0]:
        values = np.array([variant[name] for variant in variants])[of_variant]
        states = states._replace(state=with_leaves(states.state, name, values))
    run = jaxcnn.train_seeds(network, loss, made)

    held_out, samples = split.of("validation", of_seed), split.train.labels.shape[1]
    best, highest, losses, accuracies = None, np.full(len(of_seed), -1.0), [], []

    def recorded():
        if watch is None:
            return []
        return [jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), jax.device_get(watch(states)))]

    watched = recorded()
    for epoch in range(epochs):
        order = np.stack([jaxcnn.shuffled(samples, batch, seed=seed, epoch=epoch) for seed in seeds])
        batches = (array[np.arange(len(seeds))[:, None, None], order][of_seed] for array in split.train)
        states, metrics = run(states, *batches)
        accuracy = accuracies_of(network, states, held_out)
        best = _where(accuracy > highest, states, states if best is None else best)
        highest = np.maximum(highest, accuracy)
        losses.append(np.asarray(metrics["loss"]).mean(-1))
        accuracies.append(accuracy)
        watched += recorded()
    loss_curves, validation = (np.stack(lines, -1).reshape(*shape, epochs) for lines in (losses, accuracies))
    return Trained(tuple(rates), loss_curves, validation, best, watched)


def with_leaves(state: dict, name: str, value: Any) -> dict:
    """The layers' state with this value for whatever they keep under that name."""
    found = []

    def changed(path, leaf):
        if getattr(path[-1], "key", None) != name:
            return leaf
        found.append(path)
        return jnp.asarray(value, leaf.dtype)

    state = jax.tree.map_with_path(changed, state)
    assert found, f"no layer keeps {name}"
    return state


@jax.jit
def _where(better, new, old):
    """The new state of the rows that are better, the old one of the others."""

    def chosen(new, old):
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(chosen, new, old)


def accuracies_of(network: jaxcnn.Layer, states: Any, samples: Samples) -> np.ndarray:
    """The accuracy of each row on its own images."""
    right = 0
    for start in range(0, samples.labels.shape[1], AT_ONCE):
        images, labels = (array[:, start : start + AT_ONCE] for array in samples)
        right = right + np.asarray(_right(network, states.params, states.state, images, labels))
    return right / samples.labels.shape[1]


@functools.partial(jax.jit, static_argnums=0)
def _right(network, params, state, images, labels):
    def of_one(given):
        params, state, images, labels = given
        return (network.forward(params, state, images)[0].argmax(-1) == labels).sum()

    return jax.lax.map(of_one, (params, state, images, labels))


def tested(network: jaxcnn.Layer, trained: Trained, split: Split) -> np.ndarray:
    """The one use of the test images, (variants, seeds): the accuracy at the chosen rate, after the best epoch."""
    variants, _, seeds, _ = trained.loss.shape
    states = jax.tree.map(lambda leaf: leaf[trained.at_chosen], trained.best)
    samples = split.of("test", np.tile(np.arange(seeds), variants))
    return accuracies_of(network, states, samples).reshape(variants, seeds)


# --- figure ---------------------------------------------------------------------------------------------------------


def figure(rows: int = 1, columns: int = 1, *, width: float = 4.5, height: float = 3.4) -> tuple[Any, np.ndarray]:
    """(a matplotlib Figure, its rows × columns axes), with no window."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False)
    for one in axes.ravel():
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.3)
    return made, axes
