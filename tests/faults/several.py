"""Processes that train together on this machine, over gloo: start them, wait for their ends with a limit."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from processes import Ended, start

LIMIT = 120  # seconds, then all are killed: a test fails and leaves nothing behind


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def training(
    count: int, *arguments: str | Path, by_process: dict[int, tuple[str, ...]] | None = None
) -> Iterator[list]:
    """`jaxcnn train` in so many processes, of which some may have arguments of their own."""
    address = f"localhost:{free_port()}"
    place = [("--coordinator", address, "--processes", str(count), "--process-id", str(i)) for i in range(count)]
    started = [start("train", *place[i], *arguments, *(by_process or {}).get(i, ())) for i in range(count)]
    try:
        yield started
    finally:
        kill_all(started)


def kill_all(started: list[subprocess.Popen[str]]) -> None:
    for process in started:
        process.kill()  # nothing where it has ended
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def ends(started: list[subprocess.Popen[str]], limit: float = LIMIT) -> list[Ended]:
    """How each one ends; TimeoutExpired where one does not within the limit."""
    deadline = time.monotonic() + limit
    found = []
    try:
        for process in started:
            out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            found.append(Ended(process.returncode, out, err))
    finally:
        kill_all(started)
    return found


def wait_for_checkpoint(run: Path, step: int, started: list[subprocess.Popen[str]]) -> int:
    """Until the run has one of that step or a later one; the newest."""
    deadline = time.monotonic() + LIMIT
    while True:
        newest = max([-1, *(int(path.name) for path in run.glob("checkpoints/*") if path.name.isdecimal())])
        if newest >= step:
            return newest
        assert all(process.poll() is None for process in started), [process.communicate() for process in started]
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)
