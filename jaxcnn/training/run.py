"""A run that is ready to start: everything checked, nothing written; and what config.json says of it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.layers import Layer, with_dtypes
from jaxcnn.training.augment import Augmentation, from_text
from jaxcnn.training.config import Config
from jaxcnn.training.data import DataSet, enlarged, is_streamed, load_data, require_same_data
from jaxcnn.training.optimizer import make_optimizer, require_layers
from jaxcnn.training.processes import several
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run_folder import RunFolder
from jaxcnn.training.samples import DataError, in_memory
from jaxcnn.training.seeds import init_train_states
from jaxcnn.training.step import TrainState, init_train_state


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


# In a short run compilation takes the time, even of programs that are only fetched from jax's cache. So what comes
# before the first step is a few programs, not one for each operation, and the rest is done by NumPy.


def _initial_state(network: Layer, optimizer, config: Config, input_shape: tuple[int, ...]) -> TrainState:
    """`init_train_state`, or of several seeds `init_train_states`, as one program."""
    if config.seeds > 1:
        return init_train_states(network, optimizer, config.all_seeds, input_shape)
    return jax.jit(lambda seed: init_train_state(network, optimizer, seed, input_shape))(np.uint32(config.seed))


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


# --- what config.json says of it ---


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
