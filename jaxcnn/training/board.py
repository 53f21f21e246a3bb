"""What happens in a run, for TensorBoard to show."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from jaxcnn.extras import needed_for
from jaxcnn.training.loop import EpochEnd, Progress


class Board:
    """Event files in RUN/tensorboard, beside those of the run's earlier parts; a context, which ends when all is
    written.

    Raises:
      ModuleNotFoundError: tensorboardX is not installed; the extra "tensorboard" brings it.
    """

    def __init__(self, run: Path, seeds: range):
        with needed_for("the event files of TensorBoard"):
            import tensorboardX  # noqa: F401 - asked for now, not after the first steps
        self._folder, self._seeds, self._writer = run / "tensorboard", seeds, None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def show(self, event: Any) -> None:
        """One of the events that `loop.train` yields."""
        match event:
            case Progress():
                self._scalar("step/loss", event.loss, event.step)
            case EpochEnd(line):
                for name, value in line.items():
                    if name not in ("step", "epoch"):
                        self._write(f"epoch/{name}", value, line["step"])
                if self._writer is not None:
                    self._writer.flush()

    def _write(self, name: str, value: Any, step: int) -> None:
        """A number; of several seeds a list of them; of several layers a dict. Words and digests are no curves."""
        if isinstance(value, dict):
            for key, inner in value.items():
                self._write(f"{name}/{key}", inner, step)
        elif isinstance(value, list) and len(value) == len(self._seeds):
            for seed, inner in zip(self._seeds, value, strict=True):
                self._write(f"{name}/seed_{seed}", inner, step)
        elif isinstance(value, int | float):
            self._scalar(name, value, step)

    def _scalar(self, name: str, value: float, step: int) -> None:
        if self._writer is None:
            import tensorboardX

            # What an interrupted run had shown of later steps, which are done again, is no longer shown. A file is
            # named after the second in which it is begun, and one of that second would be overwritten.
            self._writer = tensorboardX.SummaryWriter(str(self._folder), purge_step=step, filename_suffix=f".{step}")
        self._writer.add_scalar(name, value, step)
