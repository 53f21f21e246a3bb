"""The training loop of the command line, as a generator of what happens; it prints nothing."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from jaxcnn.layers import Layer, with_dtypes
from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.training.augment import Augmentation, from_text
from jaxcnn.training.checkpoint import params_sha256
from jaxcnn.training.config import Config
from jaxcnn.training.data import DataSet, enlarged, load_data, require_same_data
from jaxcnn.training.evaluate import evaluate
from jaxcnn.training.finite import first_nonfinite
from jaxcnn.training.host import on_host
from jaxcnn.training.names import name_of
from jaxcnn.training.optimizer import evaluated_params, make_optimizer, require_layers
from jaxcnn.training.processes import of_all
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run_folder import NO_SUMS, Chosen, RunFolder
from jaxcnn.training.samples import DataError
from jaxcnn.training.step import BACKWARD, TrainState, all_finite, init_train_state, shuffled, train_steps

CHUNK = 100  # steps in one scan: few enough to show progress and to stop soon


class GradientCheck(NamedTuple):
    """The first batch: for each parameter the largest difference between the two gradients, relative to its largest."""

    differences: dict[str, float]


class Progress(NamedTuple):
    epoch: int
    step: int
    steps: int  # of the whole run
    loss: float  # mean over the chunk
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
    data: DataSet
    network: Layer
    optimizer: optax.GradientTransformation
    state: TrainState
    steps_an_epoch: int

    @property
    def steps(self) -> int:
        return (self.config.epochs or 0) * self.steps_an_epoch


def prepare(config: Config) -> Run:
    """Reads the data and makes the network. Raises DataError or ValueError for what cannot be trained."""
    config = config.complete()
    assert config.epochs is not None  # complete() saw to both
    assert config.validation is not None
    data = load_data(
        config.data, seed=config.seed, folder=config.data_dir, validation=config.validation, classes=config.classes
    )
    samples = len(data.train.labels)
    if config.batch_size > samples:
        raise DataError(f"--batch-size: got {config.batch_size}, required at most the {samples} training images")
    if config.batch_size % jax.device_count():
        raise DataError(
            f"--batch-size: got {config.batch_size}, required a multiple of the {jax.device_count()} devices; "
            "give another, or --cores 1"
        )
    steps_an_epoch = samples // config.batch_size
    network = RECIPES[config.model].network(data.classes)
    if config.precision != "float32":  # parameters, running statistics, the loss and what follows it stay in float32
        network = with_dtypes(network, computation=config.precision, output="float32")
    data = enlarged(data, RECIPES[config.model].size)
    optimizer = make_optimizer(config, config.epochs * steps_an_epoch)
    size = data.train.images.shape[1:]
    try:
        state = _initial_state(network, optimizer, config.seed, size)
    except ValueError as error:
        raise DataError(f"--model {config.model}: not for images of {_by(size)}: {error}") from None
    require_layers(config, state.params)
    _augmentation(config, data)  # so that nothing is written where it is not for these images
    if config.augment is None:
        config = dataclasses.replace(config, augment=data.augment)
    return Run(config, data, network, optimizer, state, steps_an_epoch)


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
    images, labels = (jnp.asarray(a) for a in run.data.train)
    loss = softmax_cross_entropy
    sums, chosen = NO_SUMS, initially_chosen(run)
    state = _copied(run.state)  # the step donates its state; the run's own is not ours to give away
    if resume:
        changes = changed(run, folder)
        state, chosen, sums, _, warnings = folder.resume(run.state, chosen)
        if state.skipped > run.config.skip_nonfinite:
            raise DataError(
                f"--skip-nonfinite: got {run.config.skip_nonfinite}, required at least {state.skipped}, which the run "
                "has left out already"
            )
        yield from map(Warned, [*changes, *warnings])
    first = _order(run, 0)[0]
    check = _gradient_check(run, *(a[first] for a in run.data.train))
    if not resume:
        folder.create(describe(run), state, chosen)
    yield check
    allowed, augment = run.config.skip_nonfinite, _augmentation(run.config, run.data)
    how = {"backward": run.config.backward, "microbatch": run.config.microbatch, "augment": augment}
    steps = train_steps(run.network, loss, run.optimizer, **how)
    images, labels = (of_all(a, steps.mesh, P()) for a in (images, labels))
    watched = train_steps(run.network, loss, run.optimizer, skip_nonfinite=allowed, **how)
    done = int(state.step)
    while done < run.steps:
        epoch, position = divmod(done, run.steps_an_epoch)
        order = _order(run, epoch)
        while position < run.steps_an_epoch:
            chosen_images = order[position : position + CHUNK]
            batches = of_all(chosen_images, steps.mesh, steps.specs["indices"])
            start = time.perf_counter()
            before = _copied(state)
            state, metrics = steps(state, images, labels, batches)
            finite = np.ones(len(batches), bool)
            if not _finite((state, metrics["loss"])):  # NaN stays in one of them; the same steps again, each watched
                state, metrics = watched(before, images, labels, batches)
                finite = jax.device_get(metrics["finite"])
            seconds = time.perf_counter() - start
            count = int(state.step) - done  # fewer than were chosen where it ended
            losses, finite = jax.device_get(metrics["loss"])[:count], finite[:count]
            mean = float(losses[finite].mean()) if finite.any() else math.nan
            sums = {
                "loss": sums["loss"] + float(losses[finite].sum()),
                "seconds": sums["seconds"] + seconds,
                "skipped": sums["skipped"] + int((~finite).sum()),
            }
            skipped = int(state.skipped)
            first_number = min(skipped, allowed) - int((~finite).sum()) + 1
            for number, i in enumerate(np.flatnonzero(~finite), first_number):
                which = f"{number} of the {allowed} that --skip-nonfinite allows"
                yield Warned(f"step {done + i + 1} is not finite; it is left out, {which}")
            position, done = position + count, done + count
            if skipped > allowed:
                # The step that ended the run is not counted: it will be tried again.
                state = state._replace(skipped=state.skipped - 1)
                folder.keep(state, sums, chosen)
                folder.wait()
                raise Diverged(_why(run, state, order[position], metrics, count))
            yield Progress(epoch, done, run.steps, mean, batches.size / seconds)
            if position < run.steps_an_epoch and stop():
                folder.keep(state, sums, chosen)
                folder.wait()
                raise Interrupted(f"step {done} of {run.steps}")
        evaluated = state._replace(params=evaluated_params(state.params, state.opt_state))
        line = _epoch_line(run, evaluated, epoch, sums)
        if chosen is not None and best([*folder.lines, line]) is line:
            chosen = on_host(Chosen(evaluated.params, evaluated.state))
        if done == run.steps:
            line |= _test(run, evaluated, chosen, [*folder.lines, line])
        folder.log(line)
        folder.keep(state, NO_SUMS, chosen)
        sums = NO_SUMS
        yield EpochEnd(line)
        if done < run.steps and stop():
            folder.wait()
            raise Interrupted(f"step {done} of {run.steps}")
    folder.wait()


# In a short run compilation takes the time, even of programs that are only fetched from jax's cache. So what comes
# before the first step is a few programs, not one for each operation, and the rest is done by NumPy.


def _initial_state(network: Layer, optimizer, seed: int, input_shape: tuple[int, ...]) -> TrainState:
    """`init_train_state` as one program."""
    return jax.jit(lambda seed: init_train_state(network, optimizer, seed, input_shape))(np.uint32(seed))


@jax.jit
def _copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


_finite = jax.jit(all_finite)


def _order(run: Run, epoch: int) -> np.ndarray:
    samples = len(run.data.train.labels)
    return np.asarray(shuffled(samples, run.config.batch_size, seed=run.config.seed, epoch=epoch))


def finished(run: Run, folder: RunFolder) -> dict[str, Any] | None:
    """The last line of metrics of a run that has ended, its last checkpoint whole, else None.

    A metrics.jsonl that is not as it was written is written anew.
    """
    kept = folder.newest(run.state, initially_chosen(run))
    if kept.warnings or int(kept.state.step) < run.steps:
        return None
    folder.write_metrics(kept.lines)
    return kept.lines[-1]


def describe(run: Run) -> dict[str, Any]:
    """config.json: the configuration, the data's shapes, scaling and digest, and the versions."""
    return {
        **dataclasses.asdict(run.config),
        "training_images": list(run.data.train.images.shape),
        "test_images": list(run.data.test.images.shape),
        "pixel_mean": list(run.data.mean),
        "pixel_deviation": list(run.data.deviation),
        "data_sha256": run.data.sha256,
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
    require_same_data(kept, run.data)
    was, are = ({"python": d["python"], **d["versions"], "devices": d["devices"]} for d in (kept, now))
    differing = [f"{name} {was.get(name)} is now {are[name]}" for name in are if was.get(name) != are[name]]
    if not differing:
        return []
    return [f"{', '.join(differing)}: the result may differ in its last bits from that of a run without a break"]


def from_folder(folder: RunFolder) -> Config:
    """The configuration of an earlier run."""
    kept = folder.config()
    try:
        return Config(**{field.name: kept[field.name] for field in dataclasses.fields(Config)}).complete()
    except (KeyError, TypeError) as error:
        raise DataError(f"--resume {folder.path}: config.json is not as jaxcnn wrote it: {error!r}") from None


def new_folder(config: Config) -> Path:
    """runs/DATA-MODEL-seedN-TIME, in the current folder."""
    data = Path(config.data).name.removesuffix(".npz")
    return Path("runs") / f"{data}-{config.model}-seed{config.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _augmentation(config: Config, data: DataSet) -> Augmentation | None:
    """The data's where the configuration has none. Raises DataError for images that are too small for it."""
    text = data.augment if config.augment is None else config.augment
    black = [-mean / deviation for mean, deviation in zip(data.mean, data.deviation, strict=True)]
    augment = from_text(text, black=black)
    size = data.train.images.shape[1:]
    try:
        if augment is not None:
            jax.eval_shape(lambda: augment(jax.random.key(0), jnp.zeros((1, *size))))
    except ValueError as error:
        raise DataError(f"--augment {text}: not for images of {_by(size)}: {error}") from None
    return augment


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))


def _gradient_check(run: Run, images, labels) -> GradientCheck:
    """The gradient of the first batch at the initial parameters, by each backward pass."""

    @jax.jit
    def by_each(state: TrainState, images, labels):
        given = (state.params, state.state, images, labels, state.key)
        return [pass_(run.network, softmax_cross_entropy, 1.0, *given)[1][0] for pass_ in BACKWARD.values()]

    by_hand, by_autodiff = map(jax.tree.leaves_with_path, jax.device_get(by_each(run.state, images, labels)))
    pairs = zip(by_hand, by_autodiff, strict=True)
    return GradientCheck({name_of(path): _relative_difference(hand, auto) for (path, hand), (_, auto) in pairs})


def _relative_difference(a, b) -> float:
    largest = float(np.abs(b).max())
    difference = float(np.abs(a - b).max())
    return difference / largest if largest else difference


def _epoch_line(run: Run, state: TrainState, epoch: int, sums: dict[str, float]) -> dict[str, Any]:
    seconds = sums["seconds"]
    line = {
        "step": int(state.step),
        "epoch": epoch + 1,
        "train_loss": sums["loss"] / counted if (counted := run.steps_an_epoch - sums["skipped"]) else math.nan,
        "images_per_second": run.steps_an_epoch * run.config.batch_size / seconds,
        "seconds": seconds,
        **({"skipped_steps": sums["skipped"]} if sums["skipped"] else {}),
    }
    if run.data.validation is not None:
        held_out = evaluate(run.network, state, *run.data.validation)
        line |= {"validation_loss": held_out["loss"], "validation_accuracy": held_out["accuracy"]}
    return line


def initially_chosen(run: Run) -> Chosen | None:
    return None if run.data.validation is None else on_host(Chosen(run.state.params, run.state.state))


def best(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch of the highest validation accuracy; of equal ones that of the lower loss, then the earlier.

    >>> epochs = [(0.8, 0.5), (0.9, 0.4), (0.9, 0.3), (0.9, 0.3), (0.7, 0.1)]
    >>> lines = [{"epoch": i, "validation_accuracy": a, "validation_loss": b} for i, (a, b) in enumerate(epochs, 1)]
    >>> best(lines)["epoch"]
    3
    """

    def rank(line: dict[str, Any]) -> tuple[float, float]:
        loss = line["validation_loss"]
        return -line["validation_accuracy"], math.inf if math.isnan(loss) else loss

    return min(lines, key=rank)


def _test(run: Run, state: TrainState, chosen: Chosen | None, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The one use of the test set: by what the run has come to."""
    epoch = {}
    if chosen is not None:
        where = jax.tree.leaves(state.params)[0].sharding  # all devices share the images
        params, net_state = jax.device_put(tuple(chosen), where)
        state, epoch = state._replace(params=params, state=net_state), {"chosen_epoch": best(lines)["epoch"]}
    test = evaluate(run.network, state, *run.data.test)
    digest = params_sha256(state.params)
    return {**epoch, "test_loss": test["loss"], "test_accuracy": test["accuracy"], "params_sha256": digest}


def _why(run: Run, state: TrainState, chosen, metrics, i: int) -> str:
    """Of the step that is not finite, the one after `state`: which value was the first, and what may help."""
    value, invalid = float(metrics["loss"][i]), int(metrics["invalid_labels"][i])
    what = "the gradient or the update is not finite" if math.isfinite(value) else f"the loss is {value}"
    batch = (a[chosen] for a in run.data.train)
    first = first_nonfinite(run.network, softmax_cross_entropy, run.optimizer, jax.device_get(state), *batch)
    where = "the same step computed once more, layer by layer, is finite" if first is None else f"first of all {first}"
    help_ = f"{invalid} labels lie outside the classes" if invalid else "a smaller --learning-rate may help"
    return f"{what} at step {int(state.step) + 1}: {where}; {help_}; the state before it is kept"
