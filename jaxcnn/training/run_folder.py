"""The folder of a run: its configuration, its metrics, its checkpoints, and the lock of who works on it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from jaxcnn.training import checkpoint
from jaxcnn.training.checkpoint import Damaged, checkpoints, manager, orbax, signed, written
from jaxcnn.training.host import on_device, on_host
from jaxcnn.training.samples import DataError
from jaxcnn.training.step import TrainState

KEPT = 3  # checkpoints: where the newest is damaged there are two more; older ones are removed


def no_sums(seeds: int) -> dict[str, Any]:
    """Of an epoch that has not begun: for each seed its losses, accuracies and steps left out; the time of all."""
    return {"loss": [0.0] * seeds, "accuracy": [0.0] * seeds, "seconds": 0.0, "skipped": [0] * seeds}


class StorageError(Exception):
    """The run folder is in use, or cannot be written to; what it holds is as it was."""


class Chosen(NamedTuple):
    """What the network was after the epoch that is chosen so far; before the first one, what it is initially."""

    params: Any
    state: Any


class Kept(NamedTuple):
    """The newest whole checkpoint."""

    state: TrainState
    chosen: Chosen | None  # None where there are no validation images to choose on
    sums: dict[str, Any]  # the current epoch's so far
    lines: list[dict[str, Any]]  # of metrics.jsonl, up to it
    warnings: list[str]  # for each newer one what is wrong with it; on resuming also what was written anew


class RunFolder:
    """config.json, metrics.jsonl, checkpoints/ and lock of one run; a context, which ends when all is written.

    The first checkpoint, of step 0, is written before config.json: a folder that has its config can be resumed.
    Each checkpoint holds a digest of all that is in it, and the run's id; so one that was damaged, or is another run's,
    is never taken. It holds the lines of metrics too: metrics.jsonl is for reading, and is written anew on resuming.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).absolute()
        self._checkpoints: Any = None
        self._lock: IO[str] | None = None
        self._identity: dict[str, Any] = {}
        self.lines: list[dict[str, Any]] = []  # of metrics.jsonl

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            if self._checkpoints is not None:
                with self._writing():
                    self._checkpoints.close()
        finally:
            self._checkpoints = None
            if self._lock is not None:
                self._lock.close()

    def require_new(self) -> None:
        """Raises DataError where a new run would meet files, or could not be written."""
        nearest = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise DataError(f"--out {self.path}: {nearest} is no folder that can be written to; give another")
        if nearest == self.path and any(path.name != "lock" for path in self.path.iterdir()):
            raise DataError(f"--out {self.path}: holds files already; give a new folder, or --resume it")

    def create(self, config: dict[str, Any], state: TrainState, chosen: Chosen | None = None) -> None:
        """A new run: its first checkpoint, then its configuration.

        Raises:
          DataError: as `require_new`. StorageError: it is in use, or cannot be written.
        """
        self.require_new()
        orbax()  # a package that is missing leaves no folder behind
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--out {self.path}: cannot be made: {error.strerror}") from None
        self._take()
        self.require_new()  # another process may have begun one meanwhile
        config = {**config, "run": secrets.token_hex(16)}
        self._identity = _identity(config)
        self._open()
        self.keep(state, no_sums(np.size(state.step)), chosen)
        self.wait()
        with self._writing():
            _replace(self.path / "config.json", json.dumps({**config, "sha256": _of_config(config)}, indent=2) + "\n")

    def resume(self, like: TrainState, chosen: Chosen | None = None) -> Kept:
        """The newest whole checkpoint; what is newer is set aside, and the metrics are as they were then.

        Raises:
          DataError: no checkpoint is whole. StorageError: the folder is in use, or cannot be written.
        """
        self._take()
        kept = self.newest(like, chosen)
        self._identity, self.lines = _identity(self.config()), kept.lines
        with self._writing():
            for newer in checkpoints(self.path)[: len(kept.warnings)]:
                aside = self.path / f"damaged-{newer.name}"
                shutil.rmtree(aside, ignore_errors=True)
                newer.rename(aside)
            rewritten = self.write_metrics(kept.lines)
        self._open()
        step = steps_done(kept.state)
        warnings = [f"{warning}; going on from the one of step {step}" for warning in kept.warnings]
        if rewritten:
            warnings.append(f"metrics.jsonl is not that of step {step}: written anew, and what was later is done again")
        return kept._replace(warnings=warnings)

    def newest(self, like: TrainState, chosen: Chosen | None = None) -> Kept:
        """The newest whole checkpoint; changes nothing. Raises DataError where there is none.

        like, chosen: of the structure of what was kept.
        """
        identity, damaged = _identity(self.config()), []
        template = _tree(like, chosen)
        folders = checkpoints(self.path)
        for folder in folders:
            try:
                tree, record = checkpoint.read(folder, template)
                if {name: record.get(name) for name in identity} != identity:
                    raise Damaged("is another run's, or config.json is")
                best, state = tree.pop("chosen", None), TrainState(**tree)
                if (step := steps_done(state)) != int(folder.name):
                    raise Damaged(f"is that of step {step}")
                return Kept(on_device(like, state), best, record["sums"], record["lines"], damaged)
            except Damaged as error:
                damaged.append(f"{folder}: {error}")
        if checkpoints(self.path) != folders:  # a run under way has removed and written some meanwhile
            return self.newest(like, chosen)
        found = f"no checkpoint is whole: {'; '.join(damaged)}" if damaged else "no checkpoint in checkpoints/"
        raise DataError(f"--resume {self.path}: {found}; start the run anew")

    def keep(self, state: TrainState, sums: dict[str, Any], chosen: Chosen | None = None) -> None:
        """Writes a checkpoint beside the training, unless that step has one; `sums` are the current epoch's so far.

        Raises:
          StorageError: this one or the one before cannot be written.
        """
        self.wait()  # for the one before, or this one would be left out
        if (self.path / "checkpoints" / str(steps_done(state))).exists():
            return
        tree = _tree(state, chosen)
        with self._writing():
            _require_space(self.path, sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        record = signed(tree, {**self._identity, "sums": sums, "lines": self.lines})
        with self._writing():
            self._checkpoints.save(steps_done(state), args=written(tree), custom_metadata=record)

    def wait(self) -> None:
        """Until the checkpoint is written. Raises StorageError where it cannot be."""
        with self._writing():
            self._checkpoints.wait_until_finished()

    def log(self, metrics: dict[str, Any]) -> None:
        """One more line of metrics.jsonl."""
        self.lines = [*self.lines, metrics]
        with self._writing(), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def write_metrics(self, lines: list[dict[str, Any]]) -> bool:
        """metrics.jsonl of these lines; whether it was not so already."""
        file, text = self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines)
        same = (file.read_bytes() if file.exists() else b"") == text.encode()
        if not same:
            _replace(file, text)
        return not same

    def config(self) -> dict[str, Any]:
        """Raises DataError where there is no run, or not its config."""
        try:
            return read_config(self.path)
        except DataError as error:
            raise DataError(f"--resume {error}") from None

    def _open(self) -> None:
        with self._writing():
            folder = self.path / "checkpoints"
            folder.mkdir(exist_ok=True)
            self._checkpoints = manager(folder, KEPT)

    def _take(self) -> None:
        """Takes the lock, which the kernel gives back when this process ends, however it ends."""
        with self._writing():
            self._lock = (self.path / "lock").open("a+")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.seek(0)
                holder = self._lock.read().strip() or "another process"
                self._lock.close()
                raise StorageError(
                    f"{self.path} is in use by {holder}; wait for its end, or give another folder"
                ) from None
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._lock.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What goes wrong in it is a StorageError."""
        try:
            yield
        except (StorageError, ModuleNotFoundError):
            raise
        except Exception as error:  # orbax gives the system's errors as ValueError, with the number in the text
            whole = next((path.name for path in checkpoints(self.path)), None)
            last = "no checkpoint was written yet" if whole is None else f"the checkpoint of step {whole} is whole"
            raise StorageError(f"{self.path} cannot be written to: {_reason(error)}; {last}") from None


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a run folder. Raises DataError where there is none, or another than was written."""
    try:
        config = json.loads((run / "config.json").read_text())
    except OSError as error:
        raise DataError(f"{run}: no run there: config.json: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{run}: config.json is damaged: {error}") from None
    if not isinstance(config, dict) or config.get("sha256") != _of_config(config):
        raise DataError(
            f"{run}: config.json is not as it was written, its digest is another; undo the change, or start a run of "
            "the changed configuration"
        )
    return config


def steps_done(state: TrainState) -> int:
    """All seeds are at the same one."""
    return int(np.asarray(state.step).max())  # `np.max` of an array of jax's would compile a program


def _tree(state: TrainState, chosen: Chosen | None) -> dict[str, Any]:
    """What a checkpoint holds: the fields of the state, and what is chosen."""
    return on_host(state._asdict() if chosen is None else {**state._asdict(), "chosen": chosen})


def _require_space(path: Path, size: int) -> None:
    """Where orbax runs out of space it leaves more than a line on standard error; most often it can be seen before."""
    needed, free = size + 2**20, shutil.disk_usage(path).free  # the arrays and what describes them
    if free < needed:
        says = (
            f"{os.strerror(errno.ENOSPC)}, a checkpoint takes {needed / 2**20:.2f} MiB and {free / 2**20:.2f} are free"
        )
        raise OSError(errno.ENOSPC, says)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    return " ".join(str(error).split())[:200]


def _of_config(config: dict[str, Any]) -> str:
    """The run's id: a digest of its configuration, a random number among it."""
    rest = {name: value for name, value in config.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """Which run a checkpoint is of, and of which seeds."""
    return {"run": _of_config(config), "seeds": [*range(config["seed"], config["seed"] + config["seeds"])]}


def _replace(file: Path, text: str) -> None:
    """The file is the old one or the new one, whole, at any moment."""
    temporary = file.with_name(f"{file.name}.part")
    temporary.write_text(text)
    temporary.replace(file)
