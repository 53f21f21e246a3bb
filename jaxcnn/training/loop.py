"""The training loop of the command line, as a generator of what happens; it prints nothing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxcnn.layers import Layer, with_dtypes
from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.training.choice import chosen_of, initially_chosen, tested, validated
from jaxcnn.training.chunk import (
    augmentation_of,
    chunks_of,
    copied,
    in_words,
    steps_of,
    watched,
)
from jaxcnn.training.config import Config
from jaxcnn.training.data import DataSet, enlarged, is_streamed, load_data, require_same_data
from jaxcnn.training.finite import first_nonfinite
from jaxcnn.training.first_batch import differences, gradients_of_first_batch, norms
from jaxcnn.training.optimizer import make_optimizer, require_layers
from jaxcnn.training.processes import several
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run_folder import RunFolder, no_sums, steps_done
from jaxcnn.training.samples import DataError, in_memory
from jaxcnn.training.seeds import init_train_states
from jaxcnn.training.step import TrainState, all_finite, init_train_state


class GradientCheck(NamedTuple):
    """The first batch: for each parameter the largest difference between the two gradients, relative to its largest."""

    differences: dict[str, float]


class Progress(NamedTuple):
    epoch: int
    step: int
    steps: int  # of the whole run
    loss: float  # mean over the chunk, and over the seeds
    images_per_second: float


class EpochEnd(NamedTuple):
    metrics: dict[str, Any]  # the line of metrics.jsonl


class Warned(NamedTuple):
    message: str  # what the run goes on in spite of


class Diverged(Exception):
    """The loss or the gradient is no longer finite; the message says at which step, which value, and why if known."""


class Interrupted(Exception):
    """Asked to stop; the state is saved."""


class Run(NamedTuple):
    """A run that is ready to start: everything checked, nothing written."""

    config: Config
    data: tuple[DataSet, ...]  # one a seed
    network: Layer
    optimizer: optax.GradientTransformation
    state: TrainState  # of several seeds with a leading axis, theirs
    steps_an_epoch: int

    @property
    def steps(self) -> int:
        return (self.config.epochs or 0) * self.steps_an_epoch

    def each(self, values: list[Any]) -> Any:
        """What the files say of one value a seed: in a run of one seed that value, else all of them."""
        return values if self.config.seeds > 1 else values[0]

    def named(self, number: int) -> str:
        """Of which seed a message is, by its number among the seeds."""
        return f"seed {self.config.seed + number}: " if self.config.seeds > 1 else ""


def prepare(config: Config) -> Run:
    """Reads the data and makes the network. Raises DataError or ValueError for what cannot be trained."""
    config = config.complete()
    assert config.epochs is not None  # complete() saw to it
    if config.seeds > 1 and several():
        raise DataError(f"--seeds: got {config.seeds}, required 1 with several processes, which share each batch")
    data = _load(config)
    samples = len(data[0].train.labels)
    if config.batch_size > samples:
        raise DataError(f"--batch-size: got {config.batch_size}, required at most the {samples} training images")
    sharing = jax.device_count() if config.seeds == 1 else 1  # devices to a batch; several seeds have each its own
    if config.batch_size % sharing:
        raise DataError(
            f"--batch-size: got {config.batch_size}, required a multiple of the {jax.device_count()} devices; "
            "give another, or --cores 1"
        )
    steps_an_epoch = samples // config.batch_size
    network = network_of(config, data[0].classes)
    optimizer = make_optimizer(config, config.epochs * steps_an_epoch)
    size = data[0].train.images.shape[1:]
    try:
        state = _initial_state(network, optimizer, config, size)
    except ValueError as error:
        raise DataError(f"--model {config.model}: not for images of {in_words(size)}: {error}") from None
    require_layers(config, state.params)
    augmentation_of(config, data)  # so that nothing is written where it is not for these images
    augment = data[0].augment if config.augment is None else config.augment
    config = dataclasses.replace(config, augment=augment, classes=data[0].classes)
    return Run(config, data, network, optimizer, state, steps_an_epoch)


def network_of(config: Config, classes: int) -> Layer:
    network = RECIPES[config.model].network(classes)
    if config.precision == "float32":
        return network
    # Parameters, running statistics, the loss and what follows it stay in float32.
    return with_dtypes(network, computation=config.precision, output="float32")


def train(
    run: Run, folder: RunFolder, *, resume: bool, stop: Callable[[], bool]
) -> Iterator[GradientCheck | Progress | EpochEnd | Warned]:
    """Trains, writing the run folder, and yields what happens.

    The last EpochEnd has the test loss, the test accuracy and the digest of the parameters that were tested: those of
    the epoch that `best` names, without validation images of the last one; the test set is used once.
    The order of the samples is a function of (seed, epoch) and randomness one of (key, step), so a run that was stopped
    goes on from its step as if it had not been.

    Raises:
      Diverged: the loss or the gradient is NaN or infinite once more than `skip_nonfinite` allows; the state before
        that step is saved. Interrupted: `stop()` was true; the state of that step is saved.
      DataError: there is nothing to resume. StorageError: the folder is in use, or cannot be written to.
    """
    sums, chosen = no_sums(run.config.seeds), initially_chosen(run)
    state = copied(run.state)  # the step donates its state; the run's own is not ours to give away
    if resume:
        changes = changed(run, folder)
        state, chosen, sums, _, warnings = folder.resume(run.state, chosen)
        if (most := int(np.asarray(state.skipped).max())) > run.config.skip_nonfinite:
            raise DataError(
                f"--skip-nonfinite: got {run.config.skip_nonfinite}, required at least {most}, which the run has left "
                "out already"
            )
        yield from map(Warned, [*changes, *warnings])
    gradient = gradients_of_first_batch(run)
    check = GradientCheck(differences(run, gradient))
    if not resume:
        folder.create({**describe(run), "gradient_check": check.differences}, state, chosen)
    yield check
    allowed = run.config.skip_nonfinite
    steps, careful = (steps_of(run, limit) for limit in (None, allowed))
    done, chunks = steps_done(state), chunks_of(run, steps_done(state))
    start = time.perf_counter()
    while (chunk := next(chunks, None)) is not None:  # waiting for images counts as training
        epoch, batches = chunk.epoch, chunk.batches
        before = copied(state)
        state, metrics = steps(state, chunk)
        finite, ended = np.ones(batches.shape[:2], bool), []
        if not _finite((state, metrics["loss"])):  # NaN stays in one of them; the same steps again, each watched
            state, metrics, ended = watched(careful, before, chunk, allowed)
            finite = np.atleast_2d(metrics["finite"])
        seconds = time.perf_counter() - start
        count = steps_done(state) - done  # fewer than were asked for where it ended
        finite = finite[:, :count]
        losses, accuracies = (np.atleast_2d(metrics[name])[:, :count] for name in ("loss", "accuracy"))
        sums = {
            "loss": (sums["loss"] + losses.sum(1, np.float64, where=finite)).tolist(),
            "accuracy": (sums["accuracy"] + accuracies.sum(1, np.float64, where=finite)).tolist(),
            "seconds": sums["seconds"] + seconds,
            "skipped": (sums["skipped"] + (~finite).sum(1)).tolist(),
        }
        for i, skipped in enumerate(np.atleast_1d(state.skipped)):
            for number, step in enumerate(np.flatnonzero(~finite[i]), skipped - (~finite[i]).sum() + 1):
                which = f"{number} of the {allowed} that --skip-nonfinite allows"
                yield Warned(f"{run.named(i)}step {done + step + 1} is not finite; it is left out, {which}")
        done += count
        if ended:
            folder.keep(state, sums, chosen)
            folder.wait()
            raise Diverged(_why(run, state, ended[0], batches[ended[0], count], metrics, count))
        mean = float(losses.mean(where=finite)) if finite.any() else math.nan
        yield Progress(epoch, done, run.steps, mean, batches.size / seconds)
        if done % run.steps_an_epoch:
            if stop():
                folder.keep(state, sums, chosen)
                folder.wait()
                raise Interrupted(f"step {done} of {run.steps}")
            start = time.perf_counter()
            continue
        line = _epoch_line(run, epoch, done, sums) | validated(run, state)
        line["gradient_norms"] = norms(gradient[run.config.backward], state)
        if chosen is not None:
            chosen = chosen_of(run, chosen, state, [*folder.lines, line])
        if done == run.steps:
            line |= tested(run, state, chosen, [*folder.lines, line])
        folder.log(line)
        sums = no_sums(run.config.seeds)
        folder.keep(state, sums, chosen)
        yield EpochEnd(line)
        if done < run.steps and stop():
            folder.wait()
            raise Interrupted(f"step {done} of {run.steps}")
        start = time.perf_counter()
    folder.wait()


# In a short run compilation takes the time, even of programs that are only fetched from jax's cache. So what comes
# before the first step is a few programs, not one for each operation, and the rest is done by NumPy.


def _initial_state(network: Layer, optimizer, config: Config, input_shape: tuple[int, ...]) -> TrainState:
    """`init_train_state`, or of several seeds `init_train_states`, as one program."""
    if config.seeds > 1:
        return init_train_states(network, optimizer, config.all_seeds, input_shape)
    return jax.jit(lambda seed: init_train_state(network, optimizer, seed, input_shape))(np.uint32(config.seed))


_finite = jax.jit(all_finite)


def finished(run: Run, folder: RunFolder) -> dict[str, Any] | None:
    """The last line of metrics of a run that has ended, its last checkpoint whole, else None.

    A metrics.jsonl that is not as it was written is written anew.
    """
    kept = folder.newest(run.state, initially_chosen(run))
    if kept.warnings or steps_done(kept.state) < run.steps:
        return None
    folder.write_metrics(kept.lines)
    return kept.lines[-1]


def describe(run: Run) -> dict[str, Any]:
    """config.json: the configuration, the data's shapes, scaling and digest, and the versions."""
    return {
        **dataclasses.asdict(run.config),
        "training_images": list(run.data[0].train.images.shape),
        "test_images": list(run.data[0].test.images.shape),
        "pixel_mean": run.each([list(data.mean) for data in run.data]),
        "pixel_deviation": run.each([list(data.deviation) for data in run.data]),
        "data_sha256": run.each([data.sha256 for data in run.data]),
        "enlarged": run.data[0].enlarged,
        "class_names": list(run.data[0].class_names),
        "devices": [str(d) for d in jax.devices()],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("jaxcnn", "jax", "jaxlib", "optax")},
    }


def changed(run: Run, folder: RunFolder) -> list[str]:
    """What is not as it was when the run began, and may change the last bits of its result.

    Raises:
      DataError: other data, whose result would be another run's.
    """
    kept, now = folder.config(), describe(run)
    for sha256, data in zip(np.ravel(kept["data_sha256"]), run.data, strict=True):
        require_same_data(run.config.data, sha256, data)
    was, are = ({"python": d["python"], **d["versions"], "devices": d["devices"]} for d in (kept, now))
    differing = [f"{name} {was.get(name)} is now {are[name]}" for name in are if was.get(name) != are[name]]
    if not differing:
        return []
    return [f"{', '.join(differing)}: the result may differ in its last bits from that of a run without a break"]


def from_folder(folder: RunFolder) -> Config:
    """The configuration of an earlier run."""
    try:
        return config_of(folder.config())
    except (KeyError, TypeError) as error:
        raise DataError(f"--resume {folder.path}: config.json is not as jaxcnn wrote it: {error!r}") from None


def config_of(kept: dict[str, Any]) -> Config:
    """That of a config.json. Raises KeyError or TypeError for one of another version, DataError for bad values."""
    return Config(**{field.name: kept[field.name] for field in dataclasses.fields(Config)}).complete()


def new_folder(config: Config) -> Path:
    """runs/DATA-MODEL-seedN-TIME, in the current folder."""
    data = Path(config.data).name.removesuffix(".npz")
    seeds = "-".join(map(str, sorted({config.all_seeds[0], config.all_seeds[-1]})))
    return Path("runs") / f"{data}-{config.model}-seed{seeds}-{time.strftime('%Y%m%d-%H%M%S')}"


def data_of(config: Config, seed: int) -> DataSet:
    """The data of one seed, not yet scaled up."""
    assert config.validation is not None  # complete() saw to it
    how = {"folder": config.data_dir, "validation": config.validation, "classes": config.classes}
    return load_data(config.data, seed=seed, **how, image_size=config.image_size, cache=config.cache)


def _load(config: Config) -> tuple[DataSet, ...]:
    """The data of each seed; one that they have in common is kept once."""
    if config.seeds > 1 and is_streamed(config.data):
        raise DataError(f"--seeds: got {config.seeds}, required 1 for a folder of images, which stay on disk")
    kept: dict[str, DataSet] = {}
    digests = []
    for seed in config.all_seeds:
        data = data_of(config, seed)
        digests.append(data.sha256)
        if data.sha256 not in kept:
            kept[data.sha256] = enlarged(data, RECIPES[config.model].size)
            if in_memory(data.train.images):
                _require_memory(config.seeds if len(kept) > 1 else 1, kept[data.sha256])
    return tuple(kept[digest] for digest in digests)


def _require_memory(seeds: int, data: DataSet) -> None:
    """For the scaled images, of which a seed with a split of its own has its own. Raises DataError."""
    needed = seeds * sum(part.images.nbytes for part in (data.train, data.validation, data.test) if part is not None)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise DataError(
            f"--seeds: got {seeds}, each with its own {needed / seeds / 2**30:.2g} GiB of images; required at most as "
            f"many as the {memory / 2**30:.3g} GiB of this machine hold"
        )


def _epoch_line(run: Run, epoch: int, done: int, sums: dict[str, Any]) -> dict[str, Any]:
    counted = [run.steps_an_epoch - skipped for skipped in sums["skipped"]]

    def mean(name: str) -> Any:
        return run.each([a / n if n else math.nan for a, n in zip(sums[name], counted, strict=True)])

    return {
        "step": done,
        "epoch": epoch + 1,
        "train_loss": mean("loss"),
        "train_accuracy": mean("accuracy"),
        "images_per_second": run.config.seeds * run.steps_an_epoch * run.config.batch_size / sums["seconds"],
        "seconds": sums["seconds"],
        **({"skipped_steps": run.each(sums["skipped"])} if any(sums["skipped"]) else {}),
    }


def _why(run: Run, state: TrainState, number: int, chosen, metrics, i: int) -> str:
    """Of the step of a seed that is not finite, the one after `state`: which value was the first, and what may help."""
    loss, invalid = (np.atleast_2d(metrics[name])[number, i] for name in ("loss", "invalid_labels"))
    value, invalid = float(loss), int(invalid)
    what = "the gradient or the update is not finite" if math.isfinite(value) else f"the loss is {value}"
    batch = (a[chosen] for a in run.data[number].train)
    state = jax.device_get(state if run.config.seeds == 1 else jax.tree.map(lambda leaf: leaf[number], state))
    first = first_nonfinite(run.network, softmax_cross_entropy, run.optimizer, state, *batch)
    where = "the same step computed once more, layer by layer, is finite" if first is None else f"first of all {first}"
    help_ = f"{invalid} labels lie outside the classes" if invalid else "a smaller --learning-rate may help"
    return f"{run.named(number)}{what} at step {int(state.step) + 1}: {where}; {help_}; the state before it is kept"
