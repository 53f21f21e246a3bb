"""`jaxcnn report`: its arguments, and what it prints."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from jaxcnn.report.record import Record


@dataclasses.dataclass(frozen=True)
class Report:
    """Show what runs have come to, side by side, on one HTML page: curves, gradients, mistakes, filters, timing.

    jaxcnn report runs/first runs/second --out both.html
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders of jaxcnn train, finished or not."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """The page (RUN/report.html; of several runs report.html). A file that is not such a page stays."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """Where the data of a run are now, if they have moved: the file, or the folder."""


def report(arguments: Report) -> int:
    """Writes the page; returns the exit status."""
    if not arguments.runs:
        raise ValueError("report: got no run, required at least one run folder")
    from jaxcnn.report.page import report as page  # now: matplotlib may be missing
    from jaxcnn.report.record import read_records

    records = read_records(arguments.runs)
    if arguments.data is not None:
        records = [_with_data(records, arguments.data)]
    out = arguments.out or (arguments.runs[0] / "report.html" if len(records) == 1 else Path("report.html"))
    _require_own(out)
    from jaxcnn.report.network import shown
    from jaxcnn.training.devices import keep_compiled_programs

    keep_compiled_programs()
    written = page(records, [shown(record) for record in records])
    temporary = out.with_name(f"{out.name}.part")
    try:
        temporary.write_text(written, "utf-8")
        temporary.replace(out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"--out: {out} cannot be written: {error.strerror}") from None
    print(f"{out}: {', '.join(f'{record.name} ({record.state})' for record in records)}")
    return 0


def _with_data(records: list[Record], path: Path) -> Record:
    """A run whose data are there now."""
    from jaxcnn.training.data import DIGITS, NAMES

    if len(records) > 1:
        raise ValueError(f"--data: got {path} for {len(records)} runs, required one run")
    (record,) = records
    if record.options.data == DIGITS:
        raise ValueError(f"--data: got {path}, but {record.path} is of the digits, which come with scikit-learn")
    if not path.exists():
        raise ValueError(f"--data: got {path}, required the file or folder of the run's data; there is none")
    moved = "data_dir" if record.options.data in NAMES else "data"
    return record._replace(options=dataclasses.replace(record.options, **{moved: str(path.absolute())}))


def _require_own(out: Path) -> None:
    """Raises ValueError for a place where no page can be written, or where there is another file."""
    from jaxcnn.report.html import MARK

    if out.is_dir() or not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out: got {out}, required a file in a folder that is there and can be written to")
    try:
        begins = out.read_bytes()[: len(MARK)] if out.exists() else MARK.encode()
    except OSError as error:
        raise ValueError(f"--out: got {out}, which cannot be read: {error.strerror}") from None
    if begins != MARK.encode():
        raise ValueError(f"--out: got {out}, a file that jaxcnn report has not written; give another, or remove it")
