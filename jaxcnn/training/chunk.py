"""A chunk of steps in one call: of one seed or of several, and once more where a value of it was not finite."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.training.devices import all_devices, place
from jaxcnn.training.processes import of_all
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run import Run, augmentation_of
from jaxcnn.training.run_folder import steps_done
from jaxcnn.training.samples import in_memory
from jaxcnn.training.seeds import seeds_step
from jaxcnn.training.step import Step, TrainState, by_each_device, one_step, shuffled, train_steps
from jaxcnn.training.streamed import standardised

T = TypeVar("T")
U = TypeVar("U")

CHUNK = 100  # steps in one scan, a tenth for the larger networks: few enough to show progress and to stop in seconds
GATHERED = 2**28  # bytes of the images of one scan, where they are brought for it
READ = 2**25  # the same where they are read from disk: of one scan while the one before runs


class Chunk(NamedTuple):
    """Some steps of one epoch, which run in one call."""

    epoch: int
    batches: np.ndarray  # (seeds, steps, batch) indices into the training images of each seed
    data: tuple[Any, ...] | None  # on the devices: all images and labels, or the bytes and labels of these steps


def order_of(run: Run, epoch: int) -> np.ndarray:
    """(seeds, steps, batch) indices into the training images of each seed."""
    samples, batch = len(run.data[0].train.labels), run.config.batch_size
    return np.stack([shuffled(samples, batch, seed=seed, epoch=epoch) for seed in run.config.all_seeds])


def chunks_of(run: Run, done: int) -> Generator[Chunk]:
    """All that are left after so many steps. Images on disk are read, and brought to the devices, a chunk ahead."""
    if in_memory(run.data[0].train.images):
        data = on_devices(run)
        return (Chunk(*one, data) for one in _planned(run, done))
    return _ahead(functools.partial(_read, run), _planned(run, done))


def on_devices(run: Run) -> tuple[Any, ...] | None:
    """The training images and labels of one seed; of several each chunk brings its own, or they would take the memory
    of as many data sets.
    """
    if run.config.seeds > 1:
        return None
    data = tuple(map(jnp.asarray, run.data[0].train))
    return place(data, all_devices(), P()) if jax.device_count() > 1 else data


def steps_at_once(run: Run) -> int:
    most = CHUNK if RECIPES[run.config.model].size < 32 else CHUNK // 10
    images = run.data[0].train.images
    if not in_memory(images):
        return max(1, min(most, READ // (run.config.batch_size * math.prod(images.shape[1:]))))
    if run.config.seeds == 1:
        return most
    return max(1, min(most, GATHERED // (run.config.seeds * run.config.batch_size * images[0].nbytes)))


def steps_of(run: Run, skip_nonfinite: int | None) -> Callable[..., Any]:
    """(state, chunk) -> (state, metrics): one seed shares its batches among the devices, several are shared among
    them.
    """
    config, augment = run.config, augmentation_of(run.config, run.data)
    how = {"backward": config.backward, "microbatch": config.microbatch, "skip_nonfinite": skip_nonfinite}
    given = run.network, softmax_cross_entropy, run.optimizer
    if config.seeds > 1:
        several = seeds_step(*given, augment, **how)

        def gathered(state, chunk):
            pairs = [(own.train, chosen) for own, chosen in zip(run.data, chunk.batches, strict=True)]
            images = np.stack([train.images[chosen] for train, chosen in pairs])
            return several(state, images, np.stack([train.labels[chosen] for train, chosen in pairs]))

        return gathered
    if in_memory(run.data[0].train.images):
        one = train_steps(*given, augment=augment(0), **how)
        return lambda state, chunk: one(state, *chunk.data, of_all(chunk.batches[0], one.mesh, one.specs["indices"]))
    streamed, table = _streamed_steps(*given, augment(0), **how), run.data[0].train.images.table

    def brought(state, chunk):
        count = chunk.batches.shape[1]  # fewer than were read where they run once more
        data = (a if len(a) == count else a[:count] for a in chunk.data)
        return streamed(state, *data, of_all(table, streamed.mesh, P()))

    return brought


def _planned(run: Run, done: int) -> Iterator[tuple[int, np.ndarray]]:
    """The epoch and the batches of each chunk; none reaches into the next epoch."""
    most = steps_at_once(run)
    while done < run.steps:
        epoch, position = divmod(done, run.steps_an_epoch)
        order = order_of(run, epoch)
        for start in range(position, run.steps_an_epoch, most):
            yield epoch, order[:, start : start + most]
        done = (epoch + 1) * run.steps_an_epoch


def _read(run: Run, planned: tuple[int, np.ndarray]) -> Chunk:
    """With the bytes of its images, steps×N×H×W×C, of which each process reads its devices' share, and labels."""
    (epoch, batches), (images, labels) = planned, run.data[0].train
    mesh, indices = all_devices(), batches[0]
    shares = NamedSharding(mesh, P(None, mesh.axis_names)).addressable_devices_indices_map(indices.shape)
    own = np.unique(np.concatenate([np.arange(indices.shape[1])[share[1]] for share in shares.values() if share]))
    pixels = images.pixels(indices[:, own])
    if len(own) < indices.shape[1]:
        whole = np.zeros((*indices.shape, *pixels.shape[2:]), np.uint8)  # of the others' share nothing is used
        whole[:, own] = pixels
        pixels = whole
    data = pixels, labels[indices]
    placed = place(data, mesh, P(None, mesh.axis_names)) if mesh.size > 1 else jax.device_put(data)
    return Chunk(epoch, batches, placed)


def _ahead(function: Callable[[T], U], values: Iterable[T]) -> Generator[U]:
    """function(value) for each value, the next one by another thread while this one is in use."""
    with ThreadPoolExecutor(1, "jaxcnn-ahead") as thread:
        now = None
        for value in values:
            following = thread.submit(function, value)
            if now is not None:
                yield now.result()
            now = following
        if now is not None:
            yield now.result()


def _streamed_steps(network, loss, optimizer, augment, *, backward, microbatch, skip_nonfinite) -> Step:
    """`train_steps` of (state, images steps×N×H×W×C uint8, labels, table), which are taken in their order."""
    mesh = all_devices()
    one = one_step("train_steps", network, loss, optimizer, backward, microbatch, augment, skip_nonfinite, mesh)

    def many(state, images, labels, table):
        return lax.scan(
            lambda state, batch: one(state, standardised(batch[0], table), batch[1]), state, (images, labels)
        )

    share = P(None, mesh.axis_names)
    specs = {"images": share, "labels": share, "table": P()}
    return Step("train_steps", by_each_device(many, mesh, specs), mesh, specs, in_pieces=False)


@jax.jit
def copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def watched(steps: Callable[..., Any], before: TrainState, chunk: Chunk, allowed: int) -> Any:
    """(state, metrics, the seeds that met a step too many), the state of all seeds that before the first such step."""
    kept = copied(before)
    state, metrics = steps(before, chunk)
    reached = np.atleast_1d(state.step)
    count = int(reached.min()) - steps_done(kept)
    ended = np.flatnonzero(reached == reached.min()).tolist() if count < chunk.batches.shape[1] else []
    if (reached > reached.min()).any():
        state, _ = steps(kept, chunk._replace(batches=chunk.batches[:, :count]))
    # The step that ends the run is not counted: it will be tried again.
    return state._replace(skipped=jnp.minimum(state.skipped, allowed)), jax.device_get(metrics), ended
