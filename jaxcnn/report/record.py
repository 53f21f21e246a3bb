"""What a run folder says of its run: config.json and metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.training.checkpoint import checkpoints
from jaxcnn.training.config import Config
from jaxcnn.training.run import config_of
from jaxcnn.training.run_folder import read_config
from jaxcnn.training.samples import DataError

MEASURES = tuple(f"{part}_{name}" for part in ("train", "validation", "test") for name in ("loss", "accuracy"))


class Record(NamedTuple):
    """A run as its folder tells it, finished or not."""

    name: str  # on the page
    path: Path
    config: dict[str, Any]  # config.json
    options: Config
    lines: list[dict[str, Any]]  # of metrics.jsonl, one an epoch
    ended: int  # epochs, as metrics.jsonl or the newest checkpoint has it
    notes: list[str]  # what is missing or not as it was written

    @property
    def finished(self) -> bool:
        return bool(self.lines) and "test_accuracy" in self.lines[-1]

    @property
    def lost(self) -> bool:
        """Whether metrics.jsonl has not all the epochs that have ended."""
        return len(self.lines) < self.ended

    @property
    def epochs(self) -> list[int]:
        return [line["epoch"] for line in self.lines]

    @property
    def state(self) -> str:
        """In words, how far it has come."""
        return "finished" if self.finished else f"{self.ended} of {self.options.epochs} epochs"

    def values(self, measure: str) -> np.ndarray:
        """(epochs, seeds) float64, NaN where an epoch has none."""
        missing = [np.nan] * self.options.seeds
        return np.array([np.atleast_1d(line.get(measure, missing)) for line in self.lines], float).reshape(
            len(self.lines), self.options.seeds
        )

    def last(self, measure: str) -> np.ndarray:
        """(seeds,) of the last epoch; NaN where it has none."""
        found = self.values(measure)
        return found[-1] if len(found) else np.full(self.options.seeds, np.nan)


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Of each folder; the names are those of the folders, or the paths where two are called alike.

    Raises:
      DataError: no such folder, no run in it, a config.json that is not as it was written, one folder twice.
    """
    resolved = [path.resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise DataError(f"{paths[i]}: given twice; give each run once")
    names = [path.name for path in resolved]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [_read(name, path) for name, path in zip(names, paths, strict=True)]


def _read(name: str, path: Path) -> Record:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give a run folder, as jaxcnn train names it at its end")
    config = read_config(path)
    try:
        config["gradient_check"]
        options = config_of(config)
    except KeyError as error:
        raise DataError(f"{path}: config.json is not one of this version of jaxcnn: it has no {error}") from None
    newest = max((int(folder.name) for folder in checkpoints(path)), default=0)  # first: a run under way writes both
    lines, notes = _lines(path / "metrics.jsonl", options.seeds)
    ended = max(len(lines), newest // (config["training_images"][0] // options.batch_size))
    missing = "there are no curves, no gradient norms and no times"
    if not ended:
        notes = [*notes, f"No epoch has ended yet: {missing}."]
    elif len(lines) < ended:
        has = f"metrics.jsonl has {len(lines)} of the {ended} epochs that have ended{'' if lines else ': ' + missing}."
        notes = [*notes, f"{has} jaxcnn train --resume {path} writes it anew, and goes on if there is more to do."]
    return Record(name, path, config, options, lines, ended, notes)


def _lines(file: Path, seeds: int) -> tuple[list[dict[str, Any]], list[str]]:
    """(the lines, a note for each that is not as it was written)"""
    try:
        written = file.read_bytes().splitlines()
    except FileNotFoundError:
        return [], []
    lines, notes = [], []
    for number, text in enumerate(written, 1):
        try:
            line = json.loads(text)
        except ValueError:  # no JSON, or no text
            line = None
        if _is_line(line, seeds):
            lines.append(line)
        else:
            notes.append(f"metrics.jsonl: line {number} is not as it was written, and is left out.")
    return lines, notes


def _is_line(line: Any, seeds: int) -> bool:
    """Whether it has what the page takes from it, as the training loop writes it."""
    if not isinstance(line, dict) or not isinstance(line.get("gradient_norms"), dict):
        return False
    measured = [line.get(name) for name in MEASURES if name in line or name.startswith("train")]
    each: list[Any] = measured if seeds > 1 else [[value] for value in measured]
    if not all(isinstance(values, list) and len(values) == seeds for values in each):
        return False
    single = [line.get(name) for name in ("epoch", "step", "seconds", "images_per_second")]
    numbers = [*single, *line["gradient_norms"].values(), *(value for values in each for value in values)]
    return all(isinstance(value, int | float) for value in numbers)
