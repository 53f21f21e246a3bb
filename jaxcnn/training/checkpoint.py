"""What is kept on disk: a network's parameters, and the folder of a run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.training.idx import DataError
from jaxcnn.training.step import TrainState


def save(path: str | Path, params: dict[str, Any], state: dict[str, Any] | None = None) -> None:
    """Writes a network's params and state as an orbax checkpoint, nested dicts of arrays that orbax alone can read.

    Args:
      path: a folder, which must not exist yet.

    Raises:
      FileExistsError: the folder exists. TypeError: a TrainState in place of its params.
      ModuleNotFoundError: orbax-checkpoint is not installed; the extra "train" brings it.

    >>> import tempfile
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
    _orbax().save(path, {"params": _on_host(params), "state": _on_host(state or {})})


def load(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The (params, state) that `save` wrote, or those of a run folder's newest checkpoint.

    `network.forward(params, state, images)[0]` are then the network's outputs; a run's images were standardised with
    the pixel_mean and pixel_deviation in its config.json, one a channel.

    Raises:
      FileNotFoundError: no such folder. DataError: it holds no network of `save` and no run.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"load: {path}: no such folder")
    try:
        if (path / "checkpoints").is_dir():
            with _orbax().training.Checkpointer(path / "checkpoints") as checkpoints:
                tree = checkpoints.load(checkpoints.latest.step)["state"]
        else:
            tree = _orbax().load(path)
        return tree["params"], tree["state"]
    except ModuleNotFoundError:
        raise
    except Exception:
        raise DataError(f"load: {path} is neither a complete network of jaxcnn.save nor a run folder") from None


def params_sha256(params: Any) -> str:
    """A digest of all parameters: their names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class RunFolder:
    """config.json, metrics.jsonl and checkpoints/ of one run; a context, which ends when all is written.

    The first checkpoint, of step 0, is written before config.json: a folder that has its config can be resumed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self._checkpoints: Any = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._checkpoints is not None:
            self._checkpoints.close()

    def require_new(self) -> None:
        """Raises DataError where a new run would meet files, or could not be written."""
        nearest = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise DataError(f"--out {self.path}: {nearest} is no folder that can be written to; give another")
        if nearest == self.path and any(self.path.iterdir()):
            raise DataError(f"--out {self.path}: holds files already; give a new folder, or --resume it")

    def create(self, config: dict[str, Any], state: TrainState) -> None:
        """A new run: its first checkpoint, then its configuration. Raises DataError as `require_new`."""
        self.require_new()
        _orbax()  # a package that is missing leaves no folder behind
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--out {self.path}: cannot be made: {error.strerror}") from None
        self._open()
        self.keep(state, {})
        self._checkpoints.wait()
        temporary = self.path / "config.json.part"
        temporary.write_text(json.dumps(config, indent=2) + "\n")
        temporary.rename(self.path / "config.json")

    def resume(self, like: TrainState) -> tuple[TrainState, dict[str, float]]:
        """The newest state, and what was kept beside it; lines of metrics after it are dropped."""
        self._open()
        newest = self._checkpoints.latest
        if newest is None:
            raise DataError(f"--resume {self.path}: no checkpoint in checkpoints/; start the run anew")
        template = {"state": _on_host(like), "sums": {"loss": 0.0, "seconds": 0.0}}
        try:
            kept = self._checkpoints.load(newest.step, template)
        except Exception:  # orbax's own words may quote whole arrays
            broken = self.path / "checkpoints" / str(newest.step)
            raise DataError(
                f"--resume {self.path}: checkpoint cannot be read; remove {broken} to go on from an earlier one"
            ) from None
        state = jax.tree.map(_like, like, kept["state"])
        lines = [m for m in self.metrics() if m["step"] <= newest.step]
        (self.path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
        return state, kept["sums"]

    def keep(self, state: TrainState, sums: dict[str, float]) -> None:
        """Writes a checkpoint beside the training; `sums` are the current epoch's so far."""
        sums = {"loss": 0.0, "seconds": 0.0} | sums
        self._checkpoints.wait()  # for the one before, or this one would be left out
        self._checkpoints.save_async(int(state.step), {"state": _on_host(state), "sums": sums})

    def log(self, metrics: dict[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def config(self) -> dict[str, Any]:
        """Raises DataError where there is no run."""
        try:
            return json.loads((self.path / "config.json").read_text())
        except OSError as error:
            raise DataError(f"--resume {self.path}: no run there: config.json: {error.strerror}") from None
        except ValueError as error:
            raise DataError(f"--resume {self.path}: config.json is damaged: {error}") from None

    def metrics(self) -> list[dict[str, Any]]:
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        try:
            return [json.loads(line) for line in lines if line.endswith("\n")]  # a last one cut short was never whole
        except ValueError as error:
            raise DataError(f"--resume {self.path}: metrics.jsonl is damaged: {error}") from None

    def has_checkpoint(self, step: int) -> bool:
        return (self.path / "checkpoints" / str(step)).is_dir()

    def _open(self) -> None:
        folder: Any = self.path / "checkpoints"
        self._checkpoints = _orbax().training.Checkpointer(folder, cleanup_tmp_directories=True)


def _on_host(tree: Any) -> Any:
    """Copies, as NumPy: on a CPU a view would change when the step donates its state."""

    def copy(leaf):
        return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)

    return jax.tree.map(copy, tree)


def _like(leaf: jax.Array, kept: np.ndarray) -> jax.Array:
    return jax.random.wrap_key_data(jnp.asarray(kept)) if _is_key(leaf) else jnp.asarray(kept)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _orbax() -> Any:
    try:
        from orbax.checkpoint import v1
    except ModuleNotFoundError as error:
        hint = 'saving and loading need orbax-checkpoint; install it with: pip install "jaxcnn[train]"'
        raise ModuleNotFoundError(hint, name=error.name) from None
    return v1
