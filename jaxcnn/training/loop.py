"""The training loop of the command line, as a generator of what happens; it prints nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.training.choice import chosen_of, initially_chosen, tested, validated
from jaxcnn.training.chunk import chunks_of, copied, steps_of, watched
from jaxcnn.training.finite import first_nonfinite
from jaxcnn.training.first_batch import differences, gradients_of_first_batch, norms
from jaxcnn.training.run import Run, changed, describe
from jaxcnn.training.run_folder import RunFolder, no_sums, steps_done
from jaxcnn.training.samples import DataError
from jaxcnn.training.step import TrainState, all_finite


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
