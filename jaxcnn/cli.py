"""The command line: arguments -> the functions of the library. The only place that prints."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxcnn.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.training.loop import Run

_WHOLE = tyro.conf.arg(metavar="INT", help_behavior_hint="")
_NUMBER = tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")
_FOLDER = tyro.conf.arg(metavar="DIR", help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network, every gradient by hand."""

    data: Annotated[str, tyro.conf.arg(metavar="digits|DIR")] = "digits"
    """scikit-learn's digits, or a folder of idx files (MNIST's format, gzipped or not)."""
    model: Literal["source", "lenet5", "two_conv", "all_conv", "resnet20", "resnet9", "mobilenet_v2", "convnext"] = (
        "source"
    )
    """The source's network, two more small ones, or a larger one for 32×32, to which the digits are scaled up."""
    backward: Literal["manual", "autodiff"] = "manual"
    """The hand-written backward passes, or jax.grad's for comparison."""
    epochs: Annotated[int | None, _WHOLE] = None
    """Passes over the training images (40 for digits, for larger networks fewer; else 5)."""
    batch_size: int = 32
    """Images a step."""
    learning_rate: Annotated[float | None, _NUMBER] = None
    """Of AdamW at the start; it falls to 0 along a cosine (0.008 for digits, for larger networks
    less; else 0.001)."""
    weight_decay: Annotated[float | None, _NUMBER] = None
    """Of AdamW, for weights and filters (0.3 for digits, for larger networks less; else
    0.01)."""
    seed: int = 0
    """Of the split, the initial parameters and the order of the images."""
    validation: float = 0.0
    """Fraction of the training images to set aside and report on after each epoch."""
    classes: int = 10
    """Number of classes in a folder of idx files."""
    cores: Annotated[int | None, _WHOLE] = None
    """CPU cores to use (all, or as many as divide the batch); each becomes a device with its share of the batch."""
    out: Annotated[Path | None, _FOLDER] = None
    """The run folder, new or empty (runs/DATA-MODEL-seedN-TIME)."""
    resume: Annotated[Path | None, _FOLDER] = None
    """An earlier run folder, to go on with; its configuration holds."""


@dataclasses.dataclass(frozen=True)
class Verify:
    """Verify hand-written backward passes: those of the library, or one of your own."""

    target: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[FILE.py:NAME]")] = None
    """A jaxcnn.Rule or Layer of your own; all of the library's when not given."""
    shapes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SHAPE ...")] = ()
    """Its arrays, drawn at random: 2x8x8x3 3x3x3x4; scalar; 8:10 for 8 whole numbers below 10."""
    static: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Its static arguments: stride=2 padding=VALID."""
    full: bool = False
    """All cases: odd and even sizes, strides, groups, ties, single pixels (minutes)."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the result to this file."""


@dataclasses.dataclass(frozen=True)
class Summarize:
    """Show the layers of a network: shapes, parameters, operations, memory, and what each backward pass computes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")]
    """A network of jaxcnn.models: source, lenet5, ..."""
    input: Annotated[str, tyro.conf.arg(metavar="HxWxC", help_behavior_hint="")]
    """The size of one image: 32x32x3."""
    batch_size: int = 1
    """Images."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 a check failed or the run diverged, 2 bad arguments
    or data, 130 and 143 after an interrupt.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(__version__)
        return 0
    try:
        match _parse(arguments):
            case Train() as command:
                return _train(command)
            case Verify() as command:
                return _verify(command)
            case Summarize() as command:
                return _summarize(command)
    except SystemExit as end:  # --help, and what _parse refuses
        return int(end.code or 0)
    except BrokenPipeError:  # the reader has seen enough
        os._exit(141)
    except (ValueError, OSError) as error:  # of the arguments or the data; anything else is a fault of ours
        return _complain(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return 130


def _complain(message: str, status: int = 2) -> int:
    print(f"jaxcnn: {message}", file=sys.stderr)
    return status


def _parse(arguments: Sequence[str]) -> Train | Verify | Summarize:
    """Raises SystemExit, with one line on standard error for what is wrong."""
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)]
        | Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)]
        | Annotated[Summarize, tyro.conf.subcommand("summary", prefix_name=False)]
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                commands,  # pyright: ignore[reportArgumentType]
                prog="jaxcnn",
                description="Convolutional networks with the backward pass written by hand.",
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if end.code:
            _complain(_one_line(said.getvalue()))
        raise


def _one_line(box: str) -> str:
    """tyro's framed paragraphs as a sentence: the first one, and the option that may have been meant."""
    rule = r"(?m)^(?:╭.*|╰.*|[│ ]*[─-]{3,}[│ ]*)$"  # where standard output is no UTF-8, the frame is of spaces and -
    _, first, *more = (" ".join(part.replace("│", " ").split()) for part in re.split(rule, box))
    meant = re.findall(r"--[\w-]+", more[0]) if "meant" in more[0] else []
    hint = f"did you mean {meant[0]}? " if meant else ""
    first = first.split(" Got errors:")[0].rstrip(".")
    return f"{first}; {hint}see jaxcnn --help"


def _train(arguments: Train) -> int:
    from rich.console import Console

    from jaxcnn.training.checkpoint import RunFolder
    from jaxcnn.training.devices import available_cores, keep_compiled_programs, use_cpu_cores
    from jaxcnn.training.loop import Config, Diverged, Interrupted, finished, from_folder, new_folder, prepare

    console = Console(highlight=False, markup=False, soft_wrap=True)  # a path may hold brackets
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Config)}
    if arguments.data != "digits":  # so that the run can be resumed from any folder
        given["data"] = str(Path(arguments.data).absolute())
    config = Config(**given)
    if arguments.resume is not None:
        config = from_folder(RunFolder(arguments.resume))
        _refuse_changes(arguments, given, config)
    folder = RunFolder(arguments.resume or arguments.out or new_folder(config))
    if arguments.resume is None:
        folder.require_new()
    cores = arguments.cores
    if cores is None:  # a default must do on any machine
        cores = max(n for n in range(1, available_cores() + 1) if config.batch_size % n == 0)
    use_cpu_cores(cores)
    keep_compiled_programs()
    run = prepare(config)
    if arguments.resume is not None and (last := finished(run, folder)) is not None:
        console.print(f"{folder.path} is finished: test accuracy {last['test_accuracy']:.2%}")
        return 0
    with _Signals() as signals, folder:
        try:
            last = _show(run, folder, arguments.resume is not None, signals, console)
        except Interrupted as stopped:
            console.print(f"Interrupted at {stopped}; go on with: jaxcnn train --resume {folder.path}")
            return 128 + signals.received
        except Diverged as diverged:
            return _complain(str(diverged), 1)
    _close(run, last, console)
    console.print(f"run folder: {folder.path}")
    return 0


def _refuse_changes(arguments: Train, given: dict[str, Any], kept: Any) -> None:
    default = Train()
    if arguments.out is not None:
        raise ValueError("--out: not with --resume, which goes on in the run's own folder")
    for name, value in given.items():
        if value != getattr(default, name) and value != getattr(kept, name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option}: got {value}, but the run to resume has {getattr(kept, name)}; leave it out")


def _show(run: Run, folder: Any, resume: bool, signals: _Signals, console: Console) -> dict[str, Any]:
    """Trains and shows it; returns the last line of metrics."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from jaxcnn.training import loop

    config = run.config
    count = sum(p.size for p in _leaves(run.state.params))
    console.print(
        f"{config.model} on {config.data}: {count:,} parameters, {len(run.data.train.labels):,} training images, "
        f"{config.epochs} epochs of {run.steps_an_epoch} steps, batch {config.batch_size}, backward {config.backward}"
    )
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} images/s"),
    ]
    last: dict[str, Any] = {}
    every = max(1, (config.epochs or 1) // 10)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=run.steps, loss=float("nan"), rate=0.0, visible=False)
        for event in loop.train(run, folder, resume=resume, stop=lambda: signals.received != 0):
            match event:
                case loop.GradientCheck(differences):
                    console.print(_gradient_table(differences))
                case loop.Progress():
                    bar.update(task, completed=event.step, loss=event.loss, rate=event.images_per_second, visible=True)
                case loop.EpochEnd(last):
                    if last["epoch"] % every == 0 or last["epoch"] == config.epochs:
                        console.print(_epoch_text(last))
    return last


def _gradient_table(differences: dict[str, float]) -> Any:
    from rich.table import Table

    table = Table(title="first batch: hand-written gradient against autodiff's")
    table.add_column("parameter")
    table.add_column("largest difference, relative", justify="right")
    for name, difference in differences.items():
        table.add_row(name, f"{difference:.1e}")
    return table


def _epoch_text(line: dict[str, Any]) -> str:
    held_out = f"  validation accuracy {line['validation_accuracy']:.2%}" if "validation_accuracy" in line else ""
    rate = f"{line['images_per_second']:,.0f} images/s"
    return f"epoch {line['epoch']:>3}  train loss {line['train_loss']:.4f}{held_out}  {rate}"


def _close(run: Run, last: dict[str, Any], console: Console) -> None:
    """The closing table: the network beside the nearest neighbour in the same training images."""
    from rich.table import Table
    from sklearn.neighbors import KNeighborsClassifier

    (images, labels), (test_images, test_labels) = run.data.train, run.data.test
    neighbour = KNeighborsClassifier(1, algorithm="brute").fit(images.reshape(len(images), -1), labels)
    nearest = neighbour.score(test_images.reshape(len(test_images), -1), test_labels)
    table = Table(title=f"{len(test_labels):,} test images")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("wrong", justify="right")
    for name, accuracy in ((run.config.model, last["test_accuracy"]), ("1-nearest-neighbour", nearest)):
        table.add_row(name, f"{accuracy:.2%}", str(round((1 - accuracy) * len(test_labels))))
    console.print(table)


class _Signals:
    """Within it, SIGINT and SIGTERM are remembered, so that the step ends and the state is saved; a second one ends
    the program at once.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> _Signals:
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number


def _summarize(arguments: Summarize) -> int:
    import difflib
    import inspect

    from jaxcnn import models, summary

    name, functions = arguments.model, inspect.getmembers(models, inspect.isfunction)
    names = [n for n, f in functions if f.__module__ == models.__name__ and not n.startswith("_")]
    if name not in names:
        meant = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean {meant[0]}? " if meant else ""
        raise ValueError(f"summary: got the model {name}; {hint}the models are {', '.join(names)}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", arguments.input):
        raise ValueError(f"--input: got {arguments.input!r}, required the size of one image as 32x32x3")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, required at least 1")
    shape = tuple(map(int, arguments.input.split("x")))
    try:
        print(summary(getattr(models, name)(), shape, arguments.batch_size))
    except (TypeError, ValueError) as error:  # what a layer says of a shape that it does not take
        raise ValueError(f"--input {arguments.input}: not for {name}: {error}") from error
    return 0


def _verify(arguments: Verify) -> int:
    if arguments.json is not None:
        arguments.json.touch()  # what cannot be written is said now, not after minutes
    if arguments.target is not None:
        return _verify_target(arguments, arguments.target)
    if arguments.shapes or arguments.static:
        raise ValueError("verify: --shapes and --static are for a rule of your own; give it as path/to/module.py:name")
    from rich.console import Console
    from rich.table import Table

    from jaxcnn.training.devices import available_cores
    from jaxcnn.verification import cases
    from jaxcnn.verification.options import Options

    console = Console(highlight=False, markup=False)
    count = len(cases.full_cases() if arguments.full else cases.short_cases())
    checks = ("float64", *Options().dtypes)
    table = Table(title="hand-written backward passes: largest error relative to the largest element")
    for heading in ("rule or layer", "case", *checks, ""):
        table.add_column(heading, justify="right" if heading in checks else "left")
    reports = []
    start = time.perf_counter()
    for case, report in _tracked(cases.verify_all(arguments.full, available_cores()), count, console):
        reports.append((case.what, case.static, report))
        largest = (report.largest(check) for check in checks)
        errors = ("-" if math.isnan(error) else f"{error:.1e}" for error in largest)
        table.add_row(report.name, case.what, *errors, "ok" if report.ok else "FAILED")
    console.print(table)
    for _, _, report in reports:
        if not report.ok:
            console.print(str(report))
    failed = sum(not report.ok for _, _, report in reports)
    largest = max(report.largest("float64") for _, _, report in reports)
    console.print(
        f"{len(reports)} cases, {failed} failed; largest float64 error {largest:.1e} of the largest element; "
        f"{time.perf_counter() - start:.0f} s"
    )
    _write_json(arguments.json, reports)
    return 1 if failed else 0


def _verify_target(arguments: Verify, target: str) -> int:
    from jaxcnn.verification.target import load_target, make_array, make_static
    from jaxcnn.verification.verify import verify

    if arguments.full:
        raise ValueError("--full: is for the library's own rules; a rule of your own is always verified whole")
    rule = load_target(target)
    if not arguments.shapes:
        raise ValueError(
            f"--shapes: got none, required a shape for each array of {rule.name}: --shapes 2x8x8x3 3x3x3x4"
        )
    static = dict(map(make_static, arguments.static))
    try:
        report = verify(rule, *(make_array(s, seed) for seed, s in enumerate(arguments.shapes)), **static)
    except TypeError as error:  # arguments that do not fit the rule
        raise ValueError(str(error)) from error
    print(report)
    _write_json(arguments.json, [(" ".join(arguments.shapes), static, report)])
    return 0 if report.ok else 1


def _write_json(file: Path | None, reports: Sequence[tuple[str, dict[str, Any], Any]]) -> None:
    if file is None:
        return
    results = []
    for what, static, report in reports:
        rows = [row._asdict() | {"relative": row.relative, "ok": row.ok} for row in report.rows]
        findings = [
            finding._asdict() | {"worst": finding.worst and finding.worst._asdict(), "errors": None}
            for finding in report.findings
        ]
        entry = {"name": report.name, "case": what, "static": repr(static), "ok": report.ok}
        results.append({**entry, "rows": rows, "findings": findings, "notes": report.notes})
    summary = {"cases": len(reports), "failed": sum(not report.ok for _, _, report in reports)}
    summary["largest_float64_error"] = max(report.largest("float64") for _, _, report in reports)
    file.write_text(json.dumps({**summary, "results": results}, indent=1) + "\n")


def _tracked(items: Iterator[Any], count: int, console: Console) -> Iterator[Any]:
    from rich.progress import track

    hidden = not console.is_terminal
    return iter(track(items, "verifying", total=count, console=console, transient=True, disable=hidden))


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)
