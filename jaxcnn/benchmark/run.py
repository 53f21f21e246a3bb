"""The run: one configuration after the other, and in each the contestants in turn, round after round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxcnn.benchmark.contestant import MATRIX_PRODUCT, REFERENCE, Contestant
from jaxcnn.benchmark.matrix_product import OPERATIONS
from jaxcnn.benchmark.problem import Network, operations
from jaxcnn.benchmark.result import TOLERANCE, Result, Row, Settings, difference
from jaxcnn.benchmark.worker import ROUND, Failed, Prepare, Ready, Worker, workers

PAUSE = 0.05  # seconds after each turn: idle threads of some libraries spin for a while before they sleep


class Turn(NamedTuple):
    """A contestant is about to work."""

    network: Network
    batch: int
    what: str


def turns(settings: Settings) -> int:
    """How many there will be, of those that are installed."""
    there = [one for one in settings.contestants if one.is_installed()]
    taking = sum(1 + sum(one.takes(network) for one in there) for network in settings.networks)
    return taking * len(settings.batches) * (1 + settings.rounds)


def run(settings: Settings) -> Iterator[Turn | Result]:
    """Times every contestant with every network and batch; the turns as they come, a `Result` for each configuration.

    Only one contestant works at a time. One whose first losses are not the reference's is refused, and so is one that
    fails.

    Raises:
      ValueError: the first contestant is not the reference, `jax.value_and_grad` on one device.
      RuntimeError: the reference failed.
    """
    names = [one.name for one in settings.contestants]
    if names[:1] != [REFERENCE]:
        raise ValueError(f"run: the first contestant must be {REFERENCE!r}, got {names}")
    with workers([MATRIX_PRODUCT, *filter(Contestant.is_installed, settings.contestants)]) as worker:
        for network in settings.networks:
            for batch in settings.batches:
                question = Prepare(network, batch, settings.seed, settings.seconds)
                contestants = [one for one in settings.contestants if one.takes(network)]
                yield from _configuration(question, contestants, worker, settings.rounds)


def _configuration(
    question: Prepare, contestants: Sequence[Contestant], worker: Callable[[Contestant], Worker], rounds: int
) -> Iterator[Turn | Result]:
    network, batch = question.network, question.batch
    rows: dict[str, Row] = {}
    taking_part: dict[str, Worker] = {}
    for one in [MATRIX_PRODUCT, *contestants]:
        rows[one.name] = row = Row(one.name, one.library, one.scan)
        if not one.is_installed():
            rows[one.name] = row._replace(refused=f"{one.library} is not installed")
            continue
        yield Turn(network, batch, f"{one.name}: first steps")
        its = worker(one)
        ready = its.ask(question)
        time.sleep(PAUSE)
        if one is MATRIX_PRODUCT:
            taking_part[one.name] = its
            continue
        rows[one.name] = row = _admitted(row, ready, rows[REFERENCE].losses)
        if row.refused is None:
            taking_part[one.name] = its
        elif one.name == REFERENCE:
            raise RuntimeError(f"benchmark: {REFERENCE}: {row.refused}")
    for number in range(rounds):
        for name, its in list(taking_part.items()):
            yield Turn(network, batch, f"{name}: round {number + 1} of {rounds}")
            took = its.ask(ROUND)
            time.sleep(PAUSE)
            if isinstance(took, Failed):
                rows[name] = rows[name]._replace(refused=took.reason, seconds=())
                del taking_part[name]
            else:
                rows[name] = rows[name]._replace(seconds=(*rows[name].seconds, took))
    product = rows.pop(MATRIX_PRODUCT.name)
    if not product.seconds:
        raise RuntimeError(f"benchmark: {MATRIX_PRODUCT.name}: {product.refused}")
    rate = OPERATIONS / statistics.median(product.seconds)
    yield Result(network, batch, operations(network, batch), rate, tuple(rows.values()))


def _admitted(row: Row, ready: Ready | Failed, reference: tuple[float, ...]) -> Row:
    """The row of a contestant that has done its first steps, refused where the losses are not the reference's."""
    if isinstance(ready, Failed):
        return row._replace(refused=ready.reason)
    losses = tuple(ready.losses)
    apart = difference(losses, reference or losses)
    row = row._replace(
        steps=ready.steps, first_call=ready.first_call, temporaries=ready.temporaries, losses=losses, difference=apart
    )
    if apart <= TOLERANCE:
        return row
    got, wanted = (", ".join(f"{x:.6g}" for x in xs) for xs in (losses, reference))
    return row._replace(refused=f"another network: the first losses are {got}; the reference's {wanted}")
