"""`jaxcnn bench`: its arguments, and what it prints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxcnn.files import require_writable
from jaxcnn.tables import lean_table

if TYPE_CHECKING:
    from rich.table import Table

    from jaxcnn.benchmark.result import Result, Row, Settings

_FILE = tyro.conf.arg(metavar="FILE", help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time training steps of jaxcnn, plain jax, Flax NNX, Equinox and PyTorch on this machine's CPU, side by side.

    jaxcnn bench --networks two_conv --batches 32
    """

    networks: tuple[Literal["two_conv", "source", "resnet20"], ...] = ("two_conv", "source", "resnet20")
    """Of jaxcnn.models: two_conv at 28×28×1 and 32×32×3, source at 8×8×1, resnet20 at 32×32×3."""
    batches: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="INT ...", help_behavior_hint="")] = None
    """Images a step (32 128 512; with --quick 32)."""
    contestants: tuple[Literal["jaxcnn", "flax", "equinox", "torch"], ...] = ("jaxcnn", "flax", "equinox", "torch")
    """Libraries beside jax, which always takes part: the others' losses are compared with its own."""
    rounds: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    """Turns of each contestant (7; with --quick 2)."""
    quick: bool = False
    """A small run of short turns, to see whether everything works."""
    json: Annotated[Path | None, _FILE] = None
    """Write the result to this file."""
    figure: Annotated[Path | None, _FILE] = None
    """Draw the result into this file: .pdf, .png or .svg."""


def bench(arguments: Bench) -> int:
    """Times; returns the exit status."""
    from jaxcnn.benchmark.result import as_json

    settings = settings_of(arguments)
    if arguments.figure is not None:
        if arguments.figure.suffix not in (".pdf", ".png", ".svg"):
            raise ValueError(f"--figure: got {arguments.figure}, required a name that ends in .pdf, .png or .svg")
        from jaxcnn.benchmark.figure import draw  # now: matplotlib may be missing
    if arguments.json is not None and arguments.json == arguments.figure:
        raise ValueError(f"--figure: got {arguments.figure}, which --json writes to; give it a file of its own")
    require_writable("--json", arguments.json)
    require_writable("--figure", arguments.figure)
    results = measure(settings)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(as_json(settings, results), indent=1) + "\n")
    if arguments.figure is not None:
        draw(results, arguments.figure)
    return 0


def settings_of(arguments: Bench) -> Settings:
    """Raises ValueError for arguments that do not make sense."""
    from jaxcnn.benchmark.contestant import contestants
    from jaxcnn.benchmark.problem import NETWORKS
    from jaxcnn.benchmark.result import Settings
    from jaxcnn.training.devices import available_cores

    batches = (32,) if arguments.quick else (32, 128, 512)
    batches = batches if arguments.batches is None else arguments.batches
    rounds = 2 if arguments.quick else 7
    rounds = rounds if arguments.rounds is None else arguments.rounds
    for option, given in (("networks", arguments.networks), ("batches", batches)):
        if not given:
            raise ValueError(f"--{option}: got none, required at least one")
    for option, number in (("batches", min(batches)), ("rounds", rounds)):
        if number < 1:
            raise ValueError(f"--{option}: got {number}, required at least 1")
    devices = max(n for n in range(1, available_cores() + 1) if all(batch % n == 0 for batch in batches))
    return Settings(
        tuple(network for network in NETWORKS if network.model in arguments.networks),
        batches,
        tuple(one for one in contestants(devices) if one.library in ("jax", *arguments.contestants)),
        rounds,
        seconds=0.02 if arguments.quick else 0.3,
        seed=0,
    )


def measure(settings: Settings) -> list[Result]:
    """Times, and prints a table of each network and batch as soon as it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from jaxcnn.benchmark import run

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a file is as wide as the table
        console.width = 120
    results: list[Result] = []
    columns = [BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")]
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=run.turns(settings))
        for event in run.run(settings):
            if isinstance(event, run.Turn):
                bar.update(task, advance=1, description=f"{_title(event.network, event.batch)}: {event.what}")
            else:
                results.append(event)
                console.print(_table(event))
    console.print(NOTES)
    return results


NOTES = """\
A step: forward, backward, plain gradient descent, in float32; all from the same parameters, images and labels, which \
lie on the device in the layout that each library likes. jax: jax.value_and_grad. Flax, Equinox: jitted, on one device.
ms: of a step, the median over the rounds; from – to: the fastest and the slowest round.
over jax, over PyTorch: how many times as fast as its fastest row; a scan over jax's fastest scan.
of product: the step's operations a second, relative to those of a 2048×2048 matrix product in the same rounds.
MiB: what XLA lays out besides arguments and results, on all devices. PyTorch allocates as it goes: no such figure.
first call: seconds, compilation and the first step or scan."""


def _title(network: Any, batch: int) -> str:
    return f"{network.model}, {'×'.join(map(str, network.input_shape))}, batch {batch}"


def _table(result: Result) -> Table:
    work = f"{result.operations / 1e9:.3g} GFLOP a step, matrix product {result.rate / 1e9:.0f} GFLOP/s"
    table = lean_table(f"{_title(result.network, result.batch)}: {work}")
    table.add_column("")
    for heading in ("ms", "from – to", "over jax", "over PyTorch", "of product", "MiB", "first call"):
        table.add_column(heading, justify="right", min_width=len(max(heading.split(), key=len)))
    reasons: dict[str, list[str]] = {}
    for row in result.rows:
        if row.refused is None:
            table.add_row(row.contestant, *_cells(result, row))
        else:
            table.add_row(row.contestant, "-")
            reasons.setdefault(row.refused, []).append(row.contestant)
    if reasons:
        table.caption = "\n".join(f"{'; '.join(names)}: {reason}" for reason, names in reasons.items())
    return table


def _cells(result: Result, row: Row) -> list[str]:
    fastest, slowest = (_milliseconds(x) for x in (min(row.seconds), max(row.seconds)))
    ratios = (result.over(row, "jax"), result.over(row, "torch"))
    return [
        _milliseconds(row.median),
        f"{fastest} – {slowest}",
        *("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        f"{result.share(row):.1%}",
        "-" if row.temporaries is None else f"{row.temporaries / 2**20:.1f}",
        f"{row.first_call:.1f}",
    ]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"
