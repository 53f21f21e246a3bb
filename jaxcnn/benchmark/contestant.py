"""Who takes part, and what each has to offer."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxcnn.benchmark.problem import BATCHES, Network, Problem


class Contestant(NamedTuple):
    """One way to train a network. It works in a process of its own."""

    name: str
    library: str  # the package that must be installed; also what `jaxcnn bench --contestants` calls it
    module: str  # with a function prepare(problem, devices, **options) -> Prepared
    devices: int | None  # jax's CPU devices; None where the library is not jax
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


STEPS_A_SCAN = 100

REFERENCE = "jax, 1 device"


def contestants(devices: int) -> list[Contestant]:
    """All there are; `devices` is how many CPU devices share a batch where there are several."""
    here = "jaxcnn.benchmark."
    several = f"{devices} devices"
    found = [
        Contestant("jaxcnn", "jaxcnn", here + "by_jaxcnn", devices),
        Contestant(REFERENCE, "jax", here + "by_jax", 1),
        Contestant(f"jax, {several}", "jax", here + "by_jax", devices),
        Contestant("jaxcnn, scan", "jaxcnn", here + "by_jaxcnn", devices, {"scan": True}),
        Contestant("jax, 1 device, scan", "jax", here + "by_jax", 1, {"scan": True}),
        Contestant(f"jax, {several}, scan", "jax", here + "by_jax", devices, {"scan": True}),
        Contestant("flax", "flax", here + "by_flax", 1),
        Contestant("equinox", "equinox", here + "by_equinox", 1),
        Contestant("torch, eager", "torch", here + "by_torch", None),
        Contestant("torch, channels last", "torch", here + "by_torch", None, {"channels_last": True}),
        Contestant("torch, compiled", "torch", here + "by_torch", None, {"compiled": True}),
        Contestant(
            "torch, compiled, channels last",
            "torch", here + "by_torch", None, {"compiled": True, "channels_last": True},
        ),
    ]  # fmt: skip
    return list({one.name: one for one in found}.values())  # with one core, one device is all there is


MATRIX_PRODUCT = Contestant("matrix product", "jax", "jaxcnn.benchmark.matrix_product", 1)


def one_by_one(step: Callable[..., Any], wait: Callable[[Any], Any], carry: Any, batches: Sequence[Any]) -> Any:
    """`Prepared.run` of a step (carry, images, labels) -> (carry, loss), batch after batch; `wait` ends each."""

    def run(count: int) -> list[Any]:
        nonlocal carry
        losses = []
        for i in range(count):
            carry, loss = step(carry, *batches[i % BATCHES])
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
