"""What the scripts of this folder share: the run that they disturb, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
# Every process is the same program: what one has compiled serves the others.
ENVIRONMENT = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
}
# A second of training on the digits, nine checkpoints; of its eight epochs of 40 steps the third one is chosen.
TRAIN = ("train", "--epochs", "8", "--validation", "0.1", "--cores", "2")


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Result(NamedTuple):
    """What a whole run leaves, but for what depends on the machine's speed."""

    params_sha256: list[str]  # of each seed
    lines: list[dict[str, Any]]


def start(*arguments: str | Path, program: tuple[str, ...] = ("-m", "jaxcnn")) -> subprocess.Popen[str]:
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate()
    return Ended(process.returncode, out, err)


def resume(run: Path, program: tuple[str, ...] = ("-m", "jaxcnn")) -> Ended:
    return end(start("train", "--cores", "2", "--resume", run, program=program))


def result(run: Path) -> Result:
    """Of the parameters in the last checkpoint, read again, and of metrics.jsonl."""
    import jaxcnn
    from jaxcnn.training.checkpoint import params_sha256

    config = json.loads((run / "config.json").read_text())
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speed = ("seconds", "images_per_second")
    return Result(
        [params_sha256(jaxcnn.load(run, seed=seed)[0]) for seed in seeds],
        [{name: value for name, value in line.items() if name not in speed} for line in lines],
    )
