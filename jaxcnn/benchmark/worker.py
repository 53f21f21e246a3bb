"""A contestant in a process of its own: the number of CPU devices is fixed for each process, and so that the libraries'
threads do not get in each other's way."""

from __future__ import annotations

import contextlib
import importlib
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.benchmark.contestant import Contestant
from jaxcnn.benchmark.problem import Network, make_problem

COMPARED = 3  # steps whose losses are compared
SETTLE, ROUND = "settle", "round"  # questions, besides Prepare


class Ready(NamedTuple):
    """What a contestant says when it has done its first steps."""

    losses: list[float]  # of the first COMPARED steps
    first_call: float  # seconds, compilation included
    temporaries: int | None  # bytes
    steps: int  # that it will do a round


class Failed(NamedTuple):
    """What it says when it cannot."""

    reason: str


class Prepare(NamedTuple):
    """A question: to get ready for this."""

    network: Network
    batch: int
    seed: int
    seconds: float  # that a round takes at least


class Worker(NamedTuple):
    """A contestant's process, and the line to it."""

    contestant: Contestant
    process: Any
    connection: Any

    def ask(self, question: Any) -> Any:
        """The answer, `Failed` where there is none."""
        self.tell(question)
        return self.answer()

    def tell(self, question: Any) -> None:
        with contextlib.suppress(OSError):  # the process has ended, which the answer will say
            self.connection.send(question)

    def answer(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(10)
            return Failed(f"the process ended with exit code {self.process.exitcode}")


@contextlib.contextmanager
def workers(contestants: Sequence[Contestant]) -> Iterator[Callable[[Contestant], Worker]]:
    """Starts a process for each. Gives a function: contestant -> its Worker, started again where it has ended."""
    started: dict[str, Worker] = {}
    folder = tempfile.mkdtemp()  # for what they compile: no later run shall find it

    def start(contestant: Contestant) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, contestant, tempfile.mkdtemp(dir=folder)), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the line
        return Worker(contestant, process, ours)

    def worker(contestant: Contestant) -> Worker:
        if not started[contestant.name].process.is_alive():
            started[contestant.name] = start(contestant)
            started[contestant.name].ask(SETTLE)
        return started[contestant.name]

    try:
        for one in contestants:
            started[one.name] = start(one)
        for one in started.values():  # all at once, before anything is timed
            one.tell(SETTLE)
        for one in started.values():
            one.answer()
        yield worker
    finally:
        for one in started.values():
            one.process.terminate()
        for one in started.values():
            one.process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _work(connection: Any, contestant: Contestant, folder: str) -> None:
    """Answers until the line ends. `folder`: for what is compiled."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to deal with
    run, steps, at_once = None, 0, 0
    while True:
        try:
            question = connection.recv()
        except EOFError:
            return
        try:
            if question == SETTLE:
                answer = _settle(contestant, folder)
            elif question == ROUND:
                answer = _round(run, steps, at_once)
            else:
                run = None  # of what it had before, the memory is free again
                run, at_once, answer = _prepare(contestant, question)
                steps = answer.steps
        except Exception as error:  # of any library, in any of its ways
            answer = Failed(f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        connection.send(answer)


def _settle(contestant: Contestant, folder: str) -> None:
    """Imports the library. Each process compiles for itself, for the CPU."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    if contestant.devices:
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", contestant.devices)
        jax.config.update("jax_enable_compilation_cache", False)
        jax.block_until_ready(jax.numpy.zeros(1) + 1)  # the first computation of all starts threads
    importlib.import_module(contestant.module)
    importlib.import_module(contestant.library)


def _prepare(contestant: Contestant, question: Prepare) -> tuple[Any, int, Ready]:
    run, temporaries, at_once = contestant.prepare(make_problem(question.network, question.batch, question.seed))
    start = time.perf_counter()
    losses = list(run(at_once))
    first_call = time.perf_counter() - start
    more = at_once * math.ceil((COMPARED - 1) / at_once)
    start = time.perf_counter()
    losses += run(more)
    took = (time.perf_counter() - start) / more
    steps = at_once * math.ceil(question.seconds / (took * at_once))
    return run, at_once, Ready([float(np.asarray(x)) for x in losses[:COMPARED]], first_call, temporaries(), steps)


def _round(run: Any, steps: int, at_once: int) -> float:
    """Seconds a step."""
    if steps > at_once:
        run(at_once)  # so that the caches hold what is this contestant's
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps
