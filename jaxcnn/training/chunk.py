"""A chunk of steps in one call: of one seed or of several, and once more where a value of it was not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.training.augment import Augmentation, from_text
from jaxcnn.training.config import Config
from jaxcnn.training.data import DataSet
from jaxcnn.training.devices import all_devices, place
from jaxcnn.training.processes import of_all
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run_folder import steps_done
from jaxcnn.training.samples import DataError
from jaxcnn.training.seeds import seeds_step
from jaxcnn.training.step import TrainState, shuffled, train_steps

if TYPE_CHECKING:
    from jaxcnn.training.loop import Run

CHUNK = 100  # steps in one scan, a tenth for the larger networks: few enough to show progress and to stop in seconds
GATHERED = 2**28  # bytes of the images of one scan, where they are brought for it


def order_of(run: Run, epoch: int) -> np.ndarray:
    """(seeds, steps, batch) indices into the training images of each seed."""
    samples, batch = len(run.data[0].train.labels), run.config.batch_size
    return np.stack([shuffled(samples, batch, seed=seed, epoch=epoch) for seed in run.config.all_seeds])


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
    if run.config.seeds == 1:
        return most
    images = run.data[0].train.images
    return max(1, min(most, GATHERED // (run.config.seeds * run.config.batch_size * images[0].nbytes)))


def steps_of(run: Run, data: tuple[Any, ...] | None, skip_nonfinite: int | None) -> Callable[..., Any]:
    """(state, batches (seeds, steps, batch) of indices) -> (state, metrics): one seed shares its batches among the
    devices, several are shared among them.
    """
    config, augment = run.config, augmentation_of(run.config, run.data)
    how = {"backward": config.backward, "microbatch": config.microbatch, "skip_nonfinite": skip_nonfinite}
    given = run.network, softmax_cross_entropy, run.optimizer
    if data is not None:
        one = train_steps(*given, augment=augment(0), **how)
        return lambda state, batches: one(state, *data, of_all(batches[0], one.mesh, one.specs["indices"]))
    several = seeds_step(*given, augment, **how)

    def gathered(state, batches):
        pairs = [(own.train, chosen) for own, chosen in zip(run.data, batches, strict=True)]
        images = np.stack([train.images[chosen] for train, chosen in pairs])
        return several(state, images, np.stack([train.labels[chosen] for train, chosen in pairs]))

    return gathered


@jax.jit
def copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def watched(steps: Callable[..., Any], before: TrainState, batches: np.ndarray, allowed: int) -> Any:
    """(state, metrics, the seeds that met a step too many), the state of all seeds that before the first such step."""
    kept = copied(before)
    state, metrics = steps(before, batches)
    reached = np.atleast_1d(state.step)
    count = int(reached.min()) - steps_done(kept)
    ended = np.flatnonzero(reached == reached.min()).tolist() if count < batches.shape[1] else []
    if (reached > reached.min()).any():
        state, _ = steps(kept, batches[:, :count])
    # The step that ends the run is not counted: it will be tried again.
    return state._replace(skipped=jnp.minimum(state.skipped, allowed)), jax.device_get(metrics), ended


def augmentation_of(config: Config, data: tuple[DataSet, ...]) -> Callable[[Any], Augmentation | None]:
    """Of each seed by its number, the data's where the configuration has none. Raises DataError for images that are too
    small for it.
    """
    text = data[0].augment if config.augment is None else config.augment
    black = np.array([-np.divide(one.mean, one.deviation) for one in data], np.float32)

    def augmentation(number):
        return from_text(text, black=black[0] if len(data) == 1 else jnp.asarray(black)[number])

    augment, size = augmentation(0), data[0].train.images.shape[1:]
    try:
        if augment is not None:
            jax.eval_shape(lambda: augment(jax.random.key(0), jnp.zeros((1, *size))))
    except ValueError as error:
        raise DataError(f"--augment {text}: not for images of {in_words(size)}: {error}") from None
    return augmentation


def in_words(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
