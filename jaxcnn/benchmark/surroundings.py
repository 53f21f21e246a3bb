"""Where a result was made."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxcnn.training.devices import available_cores


def surroundings(packages: Sequence[str]) -> dict[str, Any]:
    """Versions of Python and of the packages that are installed, the platform and its CPU.

    >>> sorted(surroundings(["jax", "no-such-package"])["versions"])
    ['jax', 'python']
    """
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": available_cores(),
    }


def cpu_model() -> str:
    """Linux names the model in /proc/cpuinfo; elsewhere Python's own answer must do."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
