"""The run folder of several processes: on process 0's file system."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.training.host import on_device, on_host
from jaxcnn.training.processes import Agreed, from_first, is_first, require_same, several
from jaxcnn.training.run_folder import Chosen, Kept, RunFolder, StorageError
from jaxcnn.training.samples import DataError
from jaxcnn.training.step import TrainState


def run_folder(path: str | Path) -> RunFolder:
    """The run folder; of several processes process 0's."""
    return FirstsFolder(path) if several() else RunFolder(path)


class FirstsFolder(RunFolder):
    """A run folder that process 0 alone reads and writes. What comes of it all processes are told, errors included.

    So each of them calls the same methods in the same order.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        self._there = RunFolder(path)

    def __exit__(self, *_: Any) -> None:
        self._there.__exit__()

    def require_new(self) -> None:
        _told(self._there.require_new)

    def create(self, config: dict[str, Any], state: TrainState, chosen: Chosen | None = None) -> None:
        _told(lambda: self._there.create(config, state, chosen))

    def resume(self, like: TrainState, chosen: Chosen | None = None) -> Kept:
        kept = _kept(lambda: self._there.resume(like, chosen), like, chosen)
        self.lines = kept.lines
        return kept

    def newest(self, like: TrainState, chosen: Chosen | None = None) -> Kept:
        return _kept(lambda: self._there.newest(like, chosen), like, chosen)

    def keep(self, state: TrainState, sums: dict[str, float], chosen: Chosen | None = None) -> None:
        require_same(f"the state of step {state.step}", (state, chosen))
        _told(lambda: self._there.keep(state, sums, chosen))

    def wait(self) -> None:
        _told(self._there.wait)

    def log(self, metrics: dict[str, Any]) -> None:
        self.lines = [*self.lines, metrics]
        _told(lambda: self._there.log(metrics))

    def write_metrics(self, lines: list[dict[str, Any]]) -> bool:
        return _told(lambda: self._there.write_metrics(lines))

    def config(self) -> dict[str, Any]:
        return _told(self._there.config)


ERRORS = {"DataError": Agreed, "StorageError": StorageError}


def _told(function: Callable[[], Any]) -> Any:
    """What the function gives on process 0, which alone calls it; JSON has to be able to hold it."""
    answer = {}
    if is_first():
        try:
            answer = {"value": function()}
        except (DataError, StorageError) as error:
            answer = {"error": "StorageError" if isinstance(error, StorageError) else "DataError", "text": str(error)}
    answer = json.loads(from_first(json.dumps(answer).encode()))
    if "error" in answer:
        raise ERRORS[answer["error"]](answer["text"])
    return answer["value"]


def _kept(function: Callable[[], Kept], like: TrainState, chosen: Chosen | None) -> Kept:
    arrays = on_host(like), chosen

    def words() -> Any:
        nonlocal arrays
        state, best, *rest = function()
        arrays = on_host(state), best
        return rest

    rest = _told(words)
    leaves, structure = jax.tree.flatten(arrays)
    content = from_first(b"".join(leaf.tobytes() for leaf in leaves))
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [
        np.frombuffer(content[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    state, best = jax.tree.unflatten(structure, parts)
    return Kept(on_device(like, state), best, *rest)
