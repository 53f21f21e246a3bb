"""The table of cases: every rule and layer of the library, at every rank, at the places where such code goes wrong.

Each file holds the cases of one family: `short`, every rule and layer once at every rank; `more`, the rest.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from jaxcnn.verification.cases import (
    activation,
    convolution,
    layers,
    loss,
    models,
    normalization,
    pooling,
    resize,
    source,
)
from jaxcnn.verification.cases.case import Case
from jaxcnn.verification.compilation import QUICK
from jaxcnn.verification.report import Report

FAMILIES = (source, convolution, pooling, resize, normalization, activation, loss, layers, models)


def short_cases() -> list[Case]:
    return [case for family in FAMILIES for case in family.short()]


def full_cases() -> list[Case]:
    return short_cases() + [case for family in FAMILIES for case in family.more()]


EACH = 8  # cases at least for each process: it takes seconds to start


def verify_all(full: bool, processes: int) -> Iterator[tuple[Case, Report]]:
    """Each case with its report, in order. Compiling takes the time, on one core for each process."""
    cases = full_cases() if full else short_cases()
    processes = min(processes, len(cases) // EACH)
    if processes < 2:
        yield from ((case, case.verify()) for case in cases)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _compile_quickly) as pool:
        yield from zip(cases, pool.map(partial(_verify_one, full), range(len(cases))), strict=True)


def _compile_quickly() -> None:
    """In a process of our own: what runs without jit, op by op, compiles as quickly as the programs do."""
    flags = {f"--{name}={str(value).lower()}" for name, value in QUICK.items()}
    os.environ["XLA_FLAGS"] = " ".join([*sorted(flags), os.environ.get("XLA_FLAGS", "")])


def _verify_one(full: bool, number: int) -> Report:
    """By its number: a case itself, made of functions, cannot be sent to another process."""
    return (full_cases() if full else short_cases())[number].verify()
