"""`jaxcnn train`: its arguments, and what it prints."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxcnn.tables import lean_table

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.training.board import Board
    from jaxcnn.training.run import Run

_WHOLE = tyro.conf.arg(metavar="INT", help_behavior_hint="")
_NUMBER = tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")
_FOLDER = tyro.conf.arg(metavar="DIR", help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a network, every gradient by hand.

    jaxcnn train --out runs/first

    jaxcnn train --data fashion-mnist --model two_conv --epochs 3

    jaxcnn train --resume runs/first
    """

    data: Annotated[str, tyro.conf.arg(metavar="digits|fashion-mnist|PATH")] = "digits"
    """scikit-learn's digits; Fashion-MNIST; a folder of idx files (MNIST's format, gzipped or not); a folder of
    CIFAR-10's binary version; an .npz file with Keras' or MedMNIST's names; or PNG and JPEG files, in a folder a
    class."""
    data_dir: Annotated[Path | None, _FOLDER] = None
    """Where Fashion-MNIST's four files are (the folder of Debian's package dataset-fashion-mnist)."""
    model: Literal[
        "source", "lenet5", "two_conv", "vgg", "all_conv", "resnet20", "resnet9", "mobilenet_v2", "convnext"
    ] = "source"
    """The source's network, two more small ones, or a larger one for 32×32, to which the digits are scaled up."""
    backward: Literal["manual", "autodiff"] = "manual"
    """The hand-written backward passes, or jax.grad's for comparison."""
    epochs: Annotated[int | None, _WHOLE] = None
    """Passes over the training images (40 for digits, for larger networks fewer; else 5)."""
    batch_size: int = 32
    """Images a step."""
    learning_rate: Annotated[float | None, _NUMBER] = None
    """The schedule's largest; the default is made for adamw and muon (0.008 for digits, for larger networks less; else
    0.001)."""
    weight_decay: Annotated[float | None, _NUMBER] = None
    """Fraction of weights and filters, not of biases and scales, that a step takes off, times the learning rate (0.3
    for digits, for larger networks less; else 0.01; for adam 0)."""
    optimizer: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """adamw; adam, which is adamw without weight decay unless it is given; sgd with Nesterov's momentum; muon for
    weights and filters, adam for the rest."""
    momentum: Annotated[float | None, _NUMBER] = None
    """Of sgd (0.9)."""
    schedule: Literal["cosine", "constant", "one-cycle"] = "cosine"
    """The learning rate: falling to 0 along a cosine; constant; rising from a 25th along a cosine, then falling to
    almost 0."""
    warmup: Annotated[float | None, _NUMBER] = None
    """Fraction of all steps in which the learning rate rises, linearly but in one-cycle (0; in one-cycle 0.3)."""
    clip: Annotated[float | None, _NUMBER] = None
    """Largest norm of the whole gradient; a longer one is scaled down to it (none)."""
    average: Annotated[float | None, _NUMBER] = None
    """Decay of an exponential average of the parameters over the steps, which is what is evaluated (none)."""
    freeze: Annotated[list[str], tyro.conf.arg(metavar="NAME [NAME ...]", help_behavior_hint="")] = dataclasses.field(
        default_factory=list
    )
    """Layers whose parameters stay as they are initially, by the names in the table of gradients: conv2d,
    dense_1/bias."""
    seed: int = 0
    """Of the split, the initial parameters and the order of the images."""
    seeds: int = 1
    """How many seeds, from --seed on, to train side by side, for a mean and its deviation."""
    validation: Annotated[float | None, _NUMBER] = None
    """Fraction of the training images that is set aside, and on which the epoch is chosen (0.1; for digits 0: the last
    epoch)."""
    augment: Annotated[str | None, tyro.conf.arg(metavar="none|crop=INT,flip,cutout=INT", help_behavior_hint="")] = None
    """Random changes of the training images, in this order: cut out of the image padded by INT pixels, mirrored left
    to right, a square of INT pixels hidden (crop=2,flip for fashion-mnist; crop=4,flip for CIFAR-10; else none)."""
    classes: int = 10
    """Number of classes in a folder of idx files or an .npz file."""
    image_size: Annotated[str | None, tyro.conf.arg(metavar="INT|INTxINT", help_behavior_hint="")] = None
    """Rows and columns that the images of a folder are scaled to, their middle in that shape (the size of all)."""
    cache: Annotated[Path | None, _FOLDER] = None
    """Where to keep the images of a folder decoded, or find them; else they are decoded in each epoch."""
    cores: Annotated[int | None, _WHOLE] = None
    """CPU cores to use (all, or as many as divide the batch; of several processes each 1); each becomes a device with
    its share of the batch, or of several seeds."""
    microbatch: Annotated[str, tyro.conf.arg(metavar="auto|INT")] = "auto"
    """Images of one core that pass through the network at a time; auto: as many as stay in its cache."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network's two passes are computed in; parameters, loss and updates are float32."""
    skip_nonfinite: int = 0
    """Steps of the whole run to leave out if their loss or gradient is NaN or infinite; one more ends the run."""
    out: Annotated[Path | None, _FOLDER] = None
    """The run folder, new or empty (runs/DATA-MODEL-seedN-TIME)."""
    tensorboard: bool = False
    """Write the curves for TensorBoard too, to tensorboard/ in the run folder (needs the extra "tensorboard")."""
    resume: Annotated[Path | None, _FOLDER] = None
    """An earlier run folder, to go on with; its configuration holds, but for --skip-nonfinite and --cache."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Where process 0 of several that train together is reached by the others; the port is any free one. Under Slurm,
    Open MPI, Kubernetes and on TPU pods this and the next two options are found."""
    processes: Annotated[int | None, _WHOLE] = None
    """How many they are."""
    process_id: Annotated[int | None, _WHOLE] = None
    """Which one this is, from 0. Process 0 writes the run folder and prints."""


def train(arguments: Train, named: set[str]) -> int:
    """Trains; returns the exit status. named: the options that were given, as the fields are called."""
    from jaxcnn.training.processes import place_of, together

    if arguments.cores is not None and arguments.cores < 1:
        raise ValueError(f"--cores: got {arguments.cores}, required at least 1")
    here = place_of(arguments.coordinator, arguments.processes, arguments.process_id)
    with _quiet_orbax(), together(here, arguments.coordinator):
        return _train(arguments, named, "jaxcnn: " if here is None else f"jaxcnn: {here}: ")


def _train(arguments: Train, named: set[str], name: str) -> int:
    """name: what errors begin with."""
    from rich.console import Console

    from jaxcnn.training.board import Board
    from jaxcnn.training.config import CHANGEABLE, Config
    from jaxcnn.training.data import NAMES, is_streamed
    from jaxcnn.training.devices import available_cores, keep_compiled_programs, use_cpu_cores
    from jaxcnn.training.first_folder import run_folder
    from jaxcnn.training.loop import Diverged, Interrupted, finished
    from jaxcnn.training.processes import agreed, is_first, require_equal_devices, require_same_words, several
    from jaxcnn.training.run import describe, from_folder, new_folder, prepare
    from jaxcnn.training.run_folder import StorageError

    resume = arguments.resume is not None
    if several():  # how many cores is fixed with the first word between them
        use_cpu_cores(1 if arguments.cores is None else arguments.cores)
        keep_compiled_programs()
        require_equal_devices()
        require_same_words({"--resume": resume})
    # A path may hold brackets.
    console = Console(highlight=False, markup=False, soft_wrap=True, quiet=not is_first())
    given = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(Config)}
    if arguments.data not in NAMES:  # so that the run can be resumed from any folder
        given["data"] = str(Path(arguments.data).absolute())
    for option in ("data_dir", "cache"):
        if given[option] is not None:
            given[option] = str(given[option].absolute())
    if arguments.microbatch.isdecimal():
        given["microbatch"] = int(arguments.microbatch)
    config = Config(**given)
    if not resume:
        agreed(config.complete)  # before a folder is named after it
    folder = run_folder(arguments.resume or arguments.out or new_folder(config))
    if resume:
        kept = from_folder(folder)
        agreed(lambda: _refuse_changes(named, given, kept))
        changed = {name: given[name] for name in CHANGEABLE if name in named}
        if "data" in changed:
            changed["data_dir"] = given["data_dir"]
        config = dataclasses.replace(kept, **changed)
    else:
        folder.require_new()
    board = Board(folder.path, config.all_seeds) if arguments.tensorboard else None
    if not several():
        cores = arguments.cores
        if cores is None:  # a default must do on any machine
            cores = max(n for n in range(1, available_cores() + 1) if config.batch_size % n == 0)
            if config.seeds > 1:
                cores = min(available_cores(), config.seeds)
        use_cpu_cores(cores)
        keep_compiled_programs()
    if is_streamed(config.data):
        console.print(f"reading all images in {config.data} once, for their mean, deviation and digest")
    run = agreed(lambda: prepare(config))
    require_same_words(describe(run), but=("data", "data_dir", "cache"))  # paths may differ, the data's digest may not
    if resume and (last := finished(run, folder)) is not None:
        console.print(f"{folder.path} is finished: test accuracy {_mean(last['test_accuracy']):.2%}")
        return 0
    with _Signals() as signals:
        try:
            with folder:
                last = _show(run, folder, resume, signals, console, board if is_first() else None)
        except Interrupted as stopped:
            console.print(f"Interrupted at {stopped}; go on with: jaxcnn train --resume {folder.path}")
            return 128 + signals.agreed
        except Diverged as diverged:
            print(f"{name}{diverged}", file=sys.stderr)
            return 1
        except StorageError as error:
            print(f"{name}{error}", file=sys.stderr)
            return 1
    if is_first():
        if "chosen_epoch" in last and config.seeds == 1:
            console.print(f"epoch {last['chosen_epoch']}, of the highest validation accuracy, is kept and was tested")
        console.print(_table_of_seeds(run, last) if config.seeds > 1 else _table(run, last))
    console.print(f"run folder: {folder.path}")
    return 0


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without the traces that it leaves of errors, on logs and from its threads, which are told in a line besides."""
    for name in ("root", "absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def but_for_closed_loops(unraisable: Any) -> None:  # what reads or writes say that end after another has failed
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = but_for_closed_loops
    try:
        yield
    finally:
        sys.unraisablehook = before


def _refuse_changes(named: set[str], given: dict[str, Any], kept: Any) -> None:
    from jaxcnn.training.config import CHANGEABLE

    *may, last = (f"--{name.replace('_', '-')}" for name in ("cores", *CHANGEABLE))
    if "out" in named:
        raise ValueError("--out: not with --resume, which goes on in the run's own folder")
    for name in sorted(named & set(given) - set(CHANGEABLE)):
        if given[name] != getattr(kept, name):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option}: got {given[name]}, but the run to resume has {getattr(kept, name)}; leave it out, only "
                f"{', '.join(may)} and {last} may change"
            )


def _show(
    run: Run, folder: Any, resume: bool, signals: _Signals, console: Console, board: Board | None
) -> dict[str, Any]:
    """Trains and shows it; returns the last line of metrics."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from jaxcnn.training import loop

    config = run.config
    count = sum(p.size for p in _leaves(run.state.params))
    several = f", each of the seeds {config.seed} … {config.all_seeds[-1]}" if config.seeds > 1 else ""
    console.print(
        f"{config.model} on {config.data}: {count // config.seeds:,} parameters, "
        f"{len(run.data[0].train.labels):,} training images, {_counted(config.epochs, 'epoch')} of "
        f"{_counted(run.steps_an_epoch, 'step')}, "
        f"batch {config.batch_size}, backward {config.backward}{several}"
    )
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} images/s"),
    ]
    last: dict[str, Any] = {}
    every = max(1, (config.epochs or 1) // 10)
    shown = board or contextlib.nullcontext()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar, shown:
        task = bar.add_task("training", total=run.steps, loss=float("nan"), rate=0.0, visible=False)
        for event in loop.train(run, folder, resume=resume, stop=signals.stop):
            if board is not None:
                board.show(event)
            match event:
                case loop.GradientCheck(differences):
                    console.print(_gradient_table(differences))
                case loop.Warned(message) if not console.quiet:
                    print(f"jaxcnn: warning: {message}", file=sys.stderr)
                case loop.Progress():
                    bar.update(task, completed=event.step, loss=event.loss, rate=event.images_per_second, visible=True)
                case loop.EpochEnd(last):
                    if last["epoch"] % every == 0 or last["epoch"] == config.epochs:
                        console.print(_epoch_text(last))
    return last


def _gradient_table(differences: dict[str, float]) -> Any:
    table = lean_table("first batch: hand-written gradient against autodiff's")
    table.add_column("parameter")
    table.add_column("largest difference, relative", justify="right")
    for name, difference in differences.items():
        table.add_row(name, f"{difference:.1e}")
    return table


def _counted(number: int | None, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _epoch_text(line: dict[str, Any]) -> str:
    accuracy = (
        f"  validation accuracy {_mean(line['validation_accuracy']):.2%}" if "validation_accuracy" in line else ""
    )
    rate = f"{line['images_per_second']:,.0f} images/s"
    return f"epoch {line['epoch']:>3}  train loss {_mean(line['train_loss']):.4f}{accuracy}  {rate}"


def _mean(values: float | list[float]) -> float:
    """Of one value or of one for each seed."""
    return statistics.fmean(values) if isinstance(values, list) else values


def _table(run: Run, last: dict[str, Any]) -> Any:
    """The network beside the nearest neighbour in the same training images, where these are in memory."""
    from sklearn.neighbors import KNeighborsClassifier

    from jaxcnn.training.samples import in_memory

    (images, labels), (test_images, test_labels) = run.data[0].train, run.data[0].test
    accuracies = {run.config.model: last["test_accuracy"]}
    if in_memory(images):
        neighbour = KNeighborsClassifier(1, algorithm="brute").fit(images.reshape(len(images), -1), labels)
        accuracies["1-nearest-neighbour"] = neighbour.score(test_images.reshape(len(test_images), -1), test_labels)
    table = lean_table(f"{len(test_labels):,} test images")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("wrong", justify="right")
    for name, accuracy in accuracies.items():
        table.add_row(name, f"{accuracy:.2%}", str(round((1 - accuracy) * len(test_labels))))
    return table


def _table_of_seeds(run: Run, last: dict[str, Any]) -> Any:
    """What each seed ends with; the deviation is that of a sample, of n seeds with n - 1."""
    import numpy as np

    table = lean_table(f"{len(run.data[0].test.labels):,} test images")
    columns = [run.config.all_seeds, last["test_accuracy"], last["test_loss"]]
    chosen = [last["chosen_epoch"]] if "chosen_epoch" in last else []
    for name in ("seed", "accuracy", "loss", *(["epoch"] * len(chosen))):
        table.add_column(name, justify="right")
    for seed, accuracy, loss, *epoch in zip(*columns, *chosen, strict=True):
        table.add_row(str(seed), f"{accuracy:.2%}", f"{loss:.4f}", *map(str, epoch))
    means, deviations = np.mean(columns[1:], 1), np.std(columns[1:], 1, ddof=1)
    table.add_section()
    table.add_row("mean", f"{means[0]:.2%}", f"{means[1]:.4f}")
    table.add_row("deviation", f"{deviations[0]:.2%}", f"{deviations[1]:.4f}")
    return table


class _Signals:
    """Within it, SIGINT and SIGTERM are remembered, so that the step ends and the state is saved; a second one ends
    the program at once.
    """

    def __init__(self) -> None:
        self.received = 0
        self.agreed = 0  # which one the run ends for; another process may have received it

    def __enter__(self) -> _Signals:
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self) -> bool:
        """Whether a signal was received, by any of the processes, each of which asks this at the same steps."""
        from jaxcnn.training.processes import largest

        self.agreed = largest(self.received)
        return self.agreed != 0

    def _receive(self, number: int, frame: Any) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)
