"""What is kept on disk of a network or of a run's state: orbax checkpoints, each with a digest of all that is in it."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcnn.extras import needed_for
from jaxcnn.training.host import on_host, sha256_of
from jaxcnn.training.optimizer import evaluated_params
from jaxcnn.training.samples import DataError
from jaxcnn.training.step import TrainState


def save(path: str | Path, params: dict[str, Any], state: dict[str, Any] | None = None) -> None:
    """Writes a network's params and state as an orbax checkpoint, nested dicts of arrays that orbax alone can read.

    Args:
      path: a folder, which must not exist yet.

    Raises:
      FileExistsError: the folder exists. TypeError: a TrainState in place of its params.
      ModuleNotFoundError: orbax-checkpoint is not installed; the extra "train" brings it.

    >>> import tempfile
    >>> import numpy as np
    >>> path = Path(tempfile.mkdtemp()) / "network"
    >>> save(path, {"dense": {"weights": np.ones((2, 3))}})
    >>> load(path)[0]["dense"]["weights"].shape
    (2, 3)
    """
    if isinstance(params, TrainState):
        raise TypeError("save: got a TrainState, required its parts: save(path, state.params, state.state)")
    path = Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"save: {path} exists; give a new path")
    tree = {"params": on_host(params), "state": on_host(state or {})}
    orbax().save(path, tree, custom_metadata=signed(tree, {}))


def load(path: str | Path, *, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The (params, state) that `save` wrote, or those that a run has come to: of the epoch that is chosen on its
    validation images, so far where it has not ended; without these of its newest whole checkpoint. Where the run has
    `--average` the params are the averaged ones.

    `network.forward(params, state, images)[0]` are then the network's outputs; a run's images were standardised with
    the pixel_mean and pixel_deviation in its config.json, one a channel. Where a run's newest checkpoint is damaged,
    the one before it is taken, with a warning.

    Args:
      path: a folder. seed: which one's network, of a run of several seeds.

    Raises:
      FileNotFoundError: no such folder. DataError: it holds no network of `save` and no run, or not as it was written.
      ValueError: no seed given for a run of several, or one that the run does not have.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"load: {path}: no such folder")
    folders = checkpoints(path) or [path]
    for folder in folders:
        try:
            tree, record = read(folder)
            network = evaluated_params(tree["params"], tree.get("opt_state")), tree["state"]
            if "chosen" in tree:
                network = tree["chosen"]["params"], tree["chosen"]["state"]
            return _of_seed(path, network, record.get("seeds", []), seed)
        except (Damaged, KeyError):
            if folder is not folders[-1]:
                warnings.warn(f"load: {folder} is damaged; the checkpoint before it is taken", stacklevel=2)
    if (path / "config.json").exists():
        raise DataError(f"load: {path}: {'no checkpoint is whole' if folders != [path] else 'no checkpoint in it'}")
    raise DataError(f"load: {path} is neither a complete network of jaxcnn.save nor a run folder")


def _of_seed(path: Path, network: Any, seeds: list[int], seed: int | None) -> Any:
    """That seed's part of a network; the whole where there is but one."""
    if seed is None and len(seeds) <= 1:
        return network
    if seed not in seeds:
        has = f"the seeds {', '.join(map(str, seeds))}" if seeds else "one network and no seeds"
        raise ValueError(f"load: seed: got {seed!r}, but {path} has {has}")
    return jax.tree.map(lambda leaf: leaf[seeds.index(seed)], network) if len(seeds) > 1 else network


def params_sha256(params: Any) -> str:
    """A digest of all parameters: their names, dtypes, shapes and bytes, in the order of the names."""
    return sha256_of(params).hexdigest()


class Damaged(Exception):
    """A checkpoint that is not what was written; the message says what is wrong with it."""


class Checkpoint(NamedTuple):
    tree: Any  # of NumPy arrays
    record: dict[str, Any]  # what JSON can hold, written beside the arrays


def read(path: Path, like: Any = None) -> Checkpoint:
    """The checkpoint in a folder, of the structure of `like`; as nested dicts when None. Every bit is as it was
    written: orbax guards the layout of the arrays, and not all of their bytes, so these are compared with the digest.

    Raises:
      Damaged: it cannot be read, or is not what was written.
    """
    try:
        with by_itself():
            tree = orbax().load(path, like)
            record = dict(orbax().metadata(path).custom_metadata)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # of any kind, and its words may quote whole arrays
        raise Damaged("cannot be read") from error
    if record.get("sha256") != digest(tree, record):
        raise Damaged("its digest is another than that of what it holds")
    return Checkpoint(tree, record)


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, the newest first; those that were cut short have no number for a name."""
    folder = run / "checkpoints"
    steps = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def signed(tree: Any, record: dict[str, Any]) -> dict[str, Any]:
    """The record, with the digest of tree and record."""
    return {**record, "sha256": digest(tree, record)}


def digest(tree: Any, record: dict[str, Any]) -> str:
    """Of each array its name, dtype, shape and bytes, in the order of the names, and of the record.

    A NamedTuple's field and a dict's key of one name are the same, since orbax gives back the one as the other.
    """
    sha256 = sha256_of(tree)
    rest = {name: value for name, value in record.items() if name != "sha256"}
    sha256.update(json.dumps(rest, sort_keys=True).encode())
    return sha256.hexdigest()


def orbax() -> Any:
    with needed_for("saving and loading"):
        from orbax.checkpoint import v1
    return v1


def by_itself() -> contextlib.AbstractContextManager[Any]:
    """Within it orbax reads and writes for this process alone; of several it would wait for all."""
    if not jax.distributed.is_initialized():
        return contextlib.nullcontext()
    alone = orbax().options.MultiprocessingOptions(**_alone())
    return orbax().Context(multiprocessing_options=alone)


def _alone() -> dict[str, Any]:
    """orbax' options for that."""
    if not jax.distributed.is_initialized():
        return {}
    process = jax.process_index()
    return {"primary_host": process, "active_processes": {process}, "barrier_sync_key_prefix": f"process_{process}"}


# orbax's v1 has no way for one process of several to write: its saves compare the path among all of them. So this is
# the manager within v1's Checkpointer, whose checkpoints v1 reads.
def manager(folder: Path, kept: int) -> Any:
    """Writes the checkpoints in a folder, by this process alone, and keeps so many."""
    import orbax.checkpoint as v0

    options = v0.CheckpointManagerOptions(
        preservation_policy=v0.checkpoint_managers.LatestN(kept),
        cleanup_tmp_directories=True,
        create=False,  # it would wait for the other processes
        multiprocessing_options=v0.options.MultiprocessingOptions(**_alone()),
    )
    return v0.CheckpointManager(folder, options=options)


def written(tree: Any) -> Any:
    """As `manager` takes it."""
    import orbax.checkpoint as v0

    return v0.args.Composite(state=v0.args.PyTreeSave(tree))
