"""The report from Python."""

from __future__ import annotations

from pathlib import Path

from jaxcnn.report.network import shown
from jaxcnn.report.page import report
from jaxcnn.report.record import read_records


def report_page(*runs: str | Path) -> str:
    """The HTML page of `jaxcnn report`: what runs have come to, side by side.

    Args:
      runs: folders that `jaxcnn train` wrote, finished or not.

    Raises:
      ValueError: no run. DataError: no such folder, no run in it, a config.json that is not as it was written, one
      folder twice. ModuleNotFoundError: matplotlib is not installed; the extra "plot" brings it.

    >>> report_page("runs/none")
    Traceback (most recent call last):
    jaxcnn.training.samples.DataError: runs/none: no such folder; give a run folder, as jaxcnn train names it at its end
    """
    if not runs:
        raise ValueError("report_page: got no run, required at least one run folder")
    records = read_records([Path(run) for run in runs])
    return report(records, [shown(record) for record in records])
