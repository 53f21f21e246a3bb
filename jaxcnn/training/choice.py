"""What a run has come to: each epoch judged on the validation images, the best one chosen, and that one tested."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxcnn.training.checkpoint import params_sha256
from jaxcnn.training.devices import all_devices, place
from jaxcnn.training.evaluate import evaluate
from jaxcnn.training.host import on_device, on_host
from jaxcnn.training.optimizer import evaluated_params
from jaxcnn.training.run import Run
from jaxcnn.training.run_folder import Chosen
from jaxcnn.training.step import TrainState

Line = dict[str, Any]  # of metrics.jsonl


def evaluated(state: TrainState) -> Chosen:
    """The network that is judged: the averaged parameters where the optimizer keeps them."""
    return Chosen(evaluated_params(state.params, state.opt_state), state.state)


def initially_chosen(run: Run) -> Chosen | None:
    """None where there are no validation images."""
    return None if run.data[0].validation is None else on_host(Chosen(run.state.params, run.state.state))


def validated(run: Run, state: TrainState) -> Line:
    """What the line of an epoch says of the validation images; nothing where there are none."""
    parts = [data.validation for data in run.data if data.validation is not None]
    if not parts:
        return {}
    pairs = zip(_of_each(run, state), parts, strict=True)
    scores = [evaluate(run.network, network, *part) for network, part in pairs]
    return {f"validation_{name}": run.each([score[name] for score in scores]) for name in ("loss", "accuracy")}


def best(lines: list[Line], number: int = 0) -> int:
    """The epoch of the highest validation accuracy; of equal ones that of the lower loss, then the earlier.

    Args:
      number: of the seed among the run's seeds.

    >>> epochs = [(0.8, 0.5), (0.9, 0.4), (0.9, 0.3), (0.9, 0.3), (0.7, 0.1)]
    >>> lines = [{"epoch": i, "validation_accuracy": a, "validation_loss": b} for i, (a, b) in enumerate(epochs, 1)]
    >>> best(lines)
    3
    """

    def rank(line: Line) -> tuple[float, float]:
        loss, accuracy = (float(np.ravel(line[f"validation_{name}"])[number]) for name in ("loss", "accuracy"))
        return -accuracy, math.inf if math.isnan(loss) else loss

    return min(lines, key=rank)["epoch"]


def chosen_of(run: Run, chosen: Chosen, state: TrainState, lines: list[Line]) -> Chosen:
    """What is chosen after the epoch of the last line: of each seed the network as it is now, or was before."""
    better = [number for number in range(run.config.seeds) if best(lines, number) == lines[-1]["epoch"]]
    if not better:
        return chosen
    now = on_host(evaluated(state))
    if len(better) == run.config.seeds:
        return now

    def put(before, now):
        after = before.copy()
        after[better] = now[better]
        return after

    return jax.tree.map(put, chosen, now)


def tested(run: Run, state: TrainState, chosen: Chosen | None, lines: list[Line]) -> Line:
    """The one use of the test images: by what the run has come to, of which the digest is."""
    epochs = {} if chosen is None else {"chosen_epoch": run.each([best(lines, i) for i in range(run.config.seeds)])}
    scores, digests = [], []
    for network, data in zip(_of_each(run, state, chosen), run.data, strict=True):
        scores.append(evaluate(run.network, network, *data.test))
        digests.append(params_sha256(network.params))
    figures = {f"test_{name}": run.each([score[name] for score in scores]) for name in ("loss", "accuracy")}
    return {**epochs, **figures, "params_sha256": run.each(digests)}


def _of_each(run: Run, state: TrainState, chosen: Chosen | None = None) -> Iterator[TrainState]:
    """The state of each seed, its network what was chosen or else what it is now, on all devices."""
    now = evaluated(state)
    if run.config.seeds == 1:
        each = [now if chosen is None else on_device(now, chosen)]
    else:  # by way of the host: on the device a slice of each array is a program of its own
        host = on_host(now) if chosen is None else chosen
        each = (on_device(now, jax.tree.map(lambda leaf: leaf[i], host)) for i in range(run.config.seeds))  # noqa: B023
    for network in each:
        params, net_state = place(network, all_devices(), P()) if jax.device_count() > 1 else network
        yield state._replace(params=params, state=net_state)
