"""Who takes part, and what each has to offer."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxcnn.benchmark.problem import Network, Problem


class Contestant(NamedTuple):
    """One way to train a network. It works in a process of its own."""

    name: str
    library: str  # the package that must be installed; also what `jaxcnn bench --contestants` calls it
    module: str  # with a function prepare(problem, devices, **options) -> Prepared
    devices: int = 0  # of jax, on the CPU; 0 where the library does not use jax
    options: dict[str, Any] = {}  # noqa: RUF012  never changed

    @property
    def scan(self) -> bool:
        """Whether it does many steps in one scan."""
        return self.options.get("scan", False)

    def takes(self, network: Network) -> bool:
        return network.scan or not self.scan

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.library) is not None

    def prepare(self, problem: Problem) -> Prepared:
        return importlib.import_module(self.module).prepare(problem, self.devices, **self.options)


class Prepared(NamedTuple):
    """A contestant before its first step."""

    run: Callable[[int], Sequence[Any]]  # so many further steps, each waited for: the losses
    temporaries: Callable[[], int | None]  # bytes that a step needs besides its arguments and results
    at_once: int = 1  # steps that it does at least; `run` takes a multiple


STEPS_A_SCAN = 100  # whole turns of the batches

REFERENCE = "jax, 1 device"  # jax.value_and_grad: what the others' losses must be


def contestants(devices: int) -> list[Contestant]:
    """All there are, the reference first; `devices` is how many CPU devices share a batch where there are several."""
    here = "jaxcnn.benchmark."
    last = {"channels_last": True}
    several = f"{devices} devices"
    found = [
        Contestant(REFERENCE, "jax", here + "by_jax", 1),
        Contestant(f"jax, {several}", "jax", here + "by_jax", devices),
        Contestant(f"{REFERENCE}, scan", "jax", here + "by_jax", 1, {"scan": True}),
        Contestant(f"jax, {several}, scan", "jax", here + "by_jax", devices, {"scan": True}),
        Contestant("flax", "flax", here + "by_flax", 1),
        Contestant("equinox", "equinox", here + "by_equinox", 1),
        Contestant("torch, eager", "torch", here + "by_torch"),
        Contestant("torch, channels last", "torch", here + "by_torch", options=last),
        Contestant("torch, compiled", "torch", here + "by_torch", options={"compiled": True}),
        Contestant(
            "torch, compiled channels last",
            "torch",
            here + "by_torch",
            options={"compiled": True} | last,
        ),
        Contestant("jaxcnn", "jaxcnn", here + "by_jaxcnn", devices),
        Contestant("jaxcnn, scan", "jaxcnn", here + "by_jaxcnn", devices, {"scan": True}),
    ]
    # With one core, one device is all there is.
    return [one for one in found if devices > 1 or several not in one.name]


MATRIX_PRODUCT = Contestant("matrix product", "jax", "jaxcnn.benchmark.matrix_product", 1)


def one_by_one(step: Callable[..., Any], wait: Callable[[Any], Any], carry: Any, batches: Sequence[Any]) -> Any:
    """`Prepared.run` of a step (carry, images, labels) -> (carry, loss), batch after batch; `wait` ends each."""
    turn = itertools.cycle(batches)

    def run(count: int) -> list[Any]:
        nonlocal carry
        losses = []
        for _ in range(count):
            carry, loss = step(carry, *next(turn))
            wait((carry, loss))
            losses.append(loss)
        return losses

    return run


def in_scans(steps: Callable[..., Any], wait: Callable[[Any], Any], carry: Any, *data: Any) -> Any:
    """`Prepared.run` of (carry, *data) -> (carry, losses), STEPS_A_SCAN steps a call."""

    def run(count: int) -> list[Any]:
        nonlocal carry
        losses = []
        for _ in range(count // STEPS_A_SCAN):
            carry, several = steps(carry, *data)
            wait((carry, several))
            losses.extend(several)
        return losses

    return run


def temporary_bytes(compiled: Any, devices: int = 1) -> int | None:
    """What XLA has laid out for a compiled program on each of the devices, besides arguments and results."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes * devices
