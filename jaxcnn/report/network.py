"""What the network of a run shows: its filters, and its answers to the test images."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcnn.layers import Layer
from jaxcnn.layers.summary import summary
from jaxcnn.report.record import Record
from jaxcnn.training.checkpoint import load, params_sha256
from jaxcnn.training.data import enlarged, require_same_data
from jaxcnn.training.names import name_of
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run import data_of, network_of
from jaxcnn.training.samples import DataError, in_parts

BATCH = 250  # images that pass through the network at a time
MISTAKES = 24  # that are shown


class Answers(NamedTuple):
    """To the test images."""

    labels: np.ndarray  # (M,)
    probabilities: np.ndarray  # M×classes
    names: tuple[str, ...]  # of the classes
    images: dict[int, np.ndarray]  # H×W×C, pixels from 0 to 1, of the first mistakes, by their places

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(1)

    def confusion(self) -> np.ndarray:
        """(label, prediction): how many images."""
        classes = self.probabilities.shape[1]
        return np.bincount(classes * self.labels + self.predicted, minlength=classes**2).reshape(classes, classes)

    def mistakes(self) -> np.ndarray:
        """The places of the wrong ones, the most certain first."""
        return _mistakes(self.labels, self.probabilities)


class Shown(NamedTuple):
    """Of several seeds the first one's."""

    layers: list[str]  # that have parameters, in the order of the forward pass
    parameters: int
    filters: dict[str, np.ndarray]  # by layer: n×h×h×C; empty where there is no whole checkpoint
    answers: Answers | None  # None where the run is not finished, its network or its data missing
    notes: list[str]


def shown(record: Record) -> Shown:
    """Reads the newest whole checkpoint, and of a finished run the data, whose digest must be the run's."""
    config, options = record.config, record.options
    network = network_of(options, len(config["class_names"]))
    rows = summary(network, tuple(config["training_images"][1:])).rows
    layers = ["/".join(row.path[1:]) for row in rows if row.parameters]
    parameters, notes = sum(row.parameters for row in rows), []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            params, state = load(record.path, seed=options.seed)
    except DataError as error:
        notes.append(f"No network: {error}. Filters, confusion matrix and mistakes are left out.")
        return Shown(layers, parameters, {}, None, notes)
    notes += [str(warning.message) for warning in caught]
    named = {name_of(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(params)}
    found = {name.rpartition("/")[0]: leaf for name, leaf in named.items() if leaf.ndim == 4}
    filters = {layer: found[layer] for layer in layers if layer in found}
    if record.lost:
        return Shown(layers, parameters, filters, None, notes)  # how the test ended is not known
    if not record.finished:
        notes.append("The test images are for the end of the run: no confusion matrix and no mistakes before.")
        return Shown(layers, parameters, filters, None, notes)
    if params_sha256(params) != np.atleast_1d(record.lines[-1].get("params_sha256", ""))[0]:
        notes.append("The network in the newest whole checkpoint is not the one that was tested at the end.")
    try:
        answers = _answers(record, network, params, state)
    except (DataError, OSError) as error:
        answers = None
        moved = "Where they have only moved, --data says where to."
        notes.append(f"The test images are not there: {error}. Confusion matrix and mistakes are left out. {moved}")
    return Shown(layers, parameters, filters, answers, notes)


def _answers(record: Record, network: Layer, params: Any, state: Any) -> Answers:
    options = record.options
    data = data_of(options, options.seed)
    require_same_data(options.data, str(np.atleast_1d(record.config["data_sha256"])[0]), data)
    images, labels = enlarged(data, RECIPES[options.model].size).test
    mean, deviation = (np.asarray(values, np.float32) for values in (data.mean, data.deviation))

    @jax.jit
    def probabilities(params, state, images):
        return jax.nn.softmax(network.forward(params, state, images)[0])

    low, high, each = np.inf, -np.inf, []
    for part, shown in zip(in_parts(images, BATCH), in_parts(data.test.images, BATCH), strict=True):
        each.append(np.asarray(probabilities(params, state, part)))
        pixels = shown * deviation + mean
        low, high = min(low, float(pixels.min())), max(high, float(pixels.max()))
    all_probabilities = np.concatenate(each)
    wrong = _mistakes(labels, all_probabilities)[:MISTAKES]
    pixels = _from_0_to_1(data.test.images[wrong] * deviation + mean, low, high)
    names = tuple(record.config["class_names"])
    return Answers(labels, all_probabilities, names, dict(zip(wrong.tolist(), pixels, strict=True)))


def _mistakes(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    return wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")]


def _from_0_to_1(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Pixels that were bytes, or in that range, as they are; of others the range of all is brought there."""
    if low < -1e-3 or high > 1 + 1e-3:
        pixels = (pixels - low) / (high - low)
    return pixels.clip(0, 1)
