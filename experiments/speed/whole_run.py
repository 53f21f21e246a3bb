"""How long until a network has learned Fashion-MNIST, from the start of the process: jaxcnn beside PyTorch?

    python experiments/speed/whole_run.py [--quick] [--out DIR] [--data DIR]

Both programs train two_conv to 90 % test accuracy with the same optimiser, batch and schedule, and read the same files
(Debian's package dataset-fashion-mnist). The number of epochs and the learning rate were chosen on the last 10,000
training images (`fashion_jaxcnn.py --validate`); the test images are looked at once, at the end of a run.
Exit status 0 if every run reaches 90 % and jaxcnn needs at most 2/3 of PyTorch's time, 1 otherwise.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from jaxcnn.benchmark.surroundings import surroundings
from jaxcnn.training.data import PACKAGED

sys.path.append(str(Path(__file__).parents[1]))
from command_line import parsed, parser_of

HERE = Path(__file__).parent
PROGRAMS = {"jaxcnn": HERE / "fashion_jaxcnn.py", "PyTorch": HERE / "fashion_torch.py"}
SEEDS, EPOCHS, BATCH, RATE = (0, 1, 2), 3, 128, 2e-3
ACCURACY, BAR = 0.9, 2 / 3


class Ran(NamedTuple):
    program: str
    seed: int
    accuracy: float
    seconds: float  # from the start of the process to the line with the accuracy


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__ or "", "one seed, one epoch: no 90 %% to be expected", "whole_run.json")
    parser.add_argument("--data", type=Path, default=PACKAGED, metavar="DIR", help="Fashion-MNIST's four files")
    options = parsed(parser, __file__, arguments)
    if not options.data.is_dir():
        parser.error(f"--data: {options.data}: no such folder; install Debian's package dataset-fashion-mnist")
    seeds, epochs = (SEEDS[:1], 1) if options.quick else (SEEDS, EPOCHS)

    runs = [run(program, options.data, seed, epochs) for seed in seeds for program in PROGRAMS]
    ratio = median(runs, "jaxcnn") / median(runs, "PyTorch")
    reached = all(r.accuracy >= ACCURACY for r in runs)
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table(runs))
    print(f"jaxcnn / PyTorch {ratio:.2f}, required {BAR:.2f}; every run {ACCURACY:.0%}: {'yes' if reached else 'no'}")
    record = {
        "command": options.command,
        **surroundings(["jaxcnn", "jax", "jaxlib", "optax", "torch", "numpy"]),
        "network": "two_conv",
        "optimizer": f"Adam, learning rate falling from {RATE} to 0 along a line",
        "batch": BATCH,
        "epochs": epochs,
        "runs": [r._asdict() for r in runs],
        "median_seconds": {program: median(runs, program) for program in PROGRAMS},
        "ratio": ratio,
        "required": {"accuracy": ACCURACY, "ratio": BAR},
        "passed": reached and ratio <= BAR,
    }
    (options.out / "whole_run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if record["passed"] else 1


def run(program: str, data: Path, seed: int, epochs: int) -> Ran:
    """One program in a process of its own. Raises RuntimeError where it fails."""
    given = {"--seed": seed, "--epochs": epochs, "--batch": BATCH, "--rate": RATE}
    command = [sys.executable, str(PROGRAMS[program]), str(data), *(str(a) for pair in given.items() for a in pair)]
    start = time.perf_counter()
    said = []
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"accuracy ([\d.]+)", line):
                ran = Ran(program, seed, float(found[1]), time.perf_counter() - start)
                print(f"{program}, seed {seed}: {ran.accuracy:.2%} in {ran.seconds:.1f} s", flush=True)
                return ran
    raise RuntimeError(f"{program}: ended without an accuracy: {''.join(said)[-2000:]}")


def median(runs: Sequence[Ran], program: str) -> float:
    return statistics.median(r.seconds for r in runs if r.program == program)


def table(runs: Sequence[Ran]) -> Table:
    shown: Any = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("", "median seconds", "of", "test accuracy"):
        shown.add_column(heading, justify="right" if heading else "left")
    for program in PROGRAMS:
        mine = [r for r in runs if r.program == program]
        seconds = ", ".join(f"{r.seconds:.1f}" for r in mine)
        accuracies = ", ".join(f"{r.accuracy:.2%}" for r in mine)
        shown.add_row(program, f"{median(runs, program):.1f}", seconds, accuracies)
    return shown


if __name__ == "__main__":
    sys.exit(main())
