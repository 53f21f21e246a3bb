"""Damages what a training run has left, resumes it, and looks at how that ends.

    python tests/faults/damages.py

Each run ends as the uninterrupted one to the bit, parameters and metrics, with a warning wherever what was damaged
mattered, or with one clear line that says what is wrong; exit status 1 if any did otherwise. `--flips` more bits are
flipped, each in a random place of a random file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
from processes import Ended, Result, result

import jaxcnn

EPOCHS, STOPPED = 8, 6  # of the run, and when it was left, at step 240; the third one is chosen


class Folders(NamedTuple):
    """Runs on the digits; each stopped after six epochs of eight, so the newest checkpoint is of step 240."""

    run: Path  # this is damaged, a copy at a time
    twin: Path  # the same configuration, another run
    seed: Path  # another seed
    model: Path  # another network
    ended: Path  # `run` without a break


Damage = Callable[[Path, Folders], object]


def newest(run: Path, back: int = 0) -> Path:
    return sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name))[-1 - back]


def flip(path: Path, where: float, bit: int = 3) -> None:
    """One bit, at that fraction of the file."""
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)


def truncate(path: Path, to: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(to * len(data))])


def put(source: Path, target: Path) -> None:
    """In the place of the target, if there is one."""
    if target.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def every_checkpoint(run: Path, change: Callable[[Path], object]) -> None:
    for path in list((run / "checkpoints").iterdir()):
        change(path)


def largest(checkpoint: Path) -> Path:
    """The file that holds most of the arrays."""
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def empty(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def lose_half(checkpoint: Path) -> None:
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file())[::2]:
        path.unlink()


def change_json(file: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def change_record(run: Path, change: Callable[[dict], object]) -> None:
    change_json(newest(run) / "_CHECKPOINT_METADATA", lambda metadata: change(metadata["custom_metadata"]))


def change_line(run: Path, number: int, line: str) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[number] = line
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def files_of_the_newest(run: Path) -> dict[str, Damage]:
    """Each file of the newest checkpoint, one for each name where orbax draws the names."""
    damages: dict[str, Damage] = {}
    checkpoint = newest(run)
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        relative = path.relative_to(checkpoint)

        def of(run: Path, relative: Path = relative) -> Path:
            return newest(run) / relative

        damages |= {
            f"{relative}: a bit near its beginning": lambda run, _, of=of: flip(of(run), 0.1),
            f"{relative}: a bit in its middle": lambda run, _, of=of: flip(of(run), 0.5, 6),
            f"{relative}: a bit near its end": lambda run, _, of=of: flip(of(run), 0.95, 0),
            f"{relative}: half of it": lambda run, _, of=of: truncate(of(run), 0.5),
            f"{relative}: empty": lambda run, _, of=of: truncate(of(run), 0),
            f"{relative}: missing": lambda run, _, of=of: of(run).unlink(),
        }
    return damages


def put_newest(run: Path, other: Path, name: str | None = None) -> None:
    target = run / "checkpoints" / (name or newest(run).name)
    put(newest(other), target)


DAMAGES: dict[str, Damage] = {
    "the newest checkpoint missing": lambda run, _: shutil.rmtree(newest(run)),
    "the two newest missing": lambda run, _: [shutil.rmtree(newest(run)) for _ in range(2)],
    "all checkpoints missing": lambda run, _: every_checkpoint(run, shutil.rmtree),
    "the newest empty": lambda run, _: empty(newest(run)),
    "the newest without every other file": lambda run, _: lose_half(newest(run)),
    "all empty": lambda run, _: every_checkpoint(run, empty),
    "a bit in the two newest": lambda run, _: [flip(largest(newest(run, back)), 0.5) for back in (0, 1)],
    "a bit in all": lambda run, _: every_checkpoint(run, lambda path: flip(largest(path), 0.5)),
    "a bit in the one before": lambda run, _: flip(largest(newest(run, 1)), 0.5),
    "the one before empty": lambda run, _: empty(newest(run, 1)),
    "a file in the place of the newest": lambda run, _: [shutil.rmtree(p := newest(run)), p.touch()],
    "a twin's newest": lambda run, other: put_newest(run, other.twin),
    "another seed's newest": lambda run, other: put_newest(run, other.seed),
    "another model's newest": lambda run, other: put_newest(run, other.model),
    "a twin's, of a later step": lambda run, other: put_newest(run, other.twin, "280"),
    "all of a twin's": lambda run, other: put(other.twin / "checkpoints", run / "checkpoints"),
    "all of another seed's": lambda run, other: put(other.seed / "checkpoints", run / "checkpoints"),
    "all of another model's": lambda run, other: put(other.model / "checkpoints", run / "checkpoints"),
    "an older one under the newest's name": lambda run, _: put(newest(run, 1), newest(run)),
    "the newest under a later name": lambda run, _: newest(run).rename(run / "checkpoints" / "280"),
    "another seed's arrays, own record": lambda run, other: put(newest(other.seed) / "state", newest(run) / "state"),
    "older arrays, own record": lambda run, _: put(newest(run, 1) / "state", newest(run) / "state"),
    "older record, own arrays": lambda run, _: put(
        newest(run, 1) / "_CHECKPOINT_METADATA", newest(run) / "_CHECKPOINT_METADATA"
    ),
    "an older file of arrays": lambda run, _: put(largest(newest(run, 1)), largest(newest(run))),
    "a record without digest": lambda run, _: change_record(run, lambda record: record.pop("sha256")),
    "a record of other sums": lambda run, _: change_record(run, lambda record: record["sums"].update(loss=1.0)),
    "a record of fewer lines": lambda run, _: change_record(run, lambda record: record["lines"].pop()),
    "no record": lambda run, _: change_record(run, dict.clear),
    "a save that was cut short": lambda run, _: put(
        newest(run), run / "checkpoints" / "280.orbax-checkpoint-tmp"
    ),
    "config.json: a bit at its beginning": lambda run, _: flip(run / "config.json", 0),
    "config.json: a bit in a number": lambda run, _: change_json(
        run / "config.json", lambda config: config.update(seed=1)
    ),
    "config.json: another rate": lambda run, _: change_json(
        run / "config.json", lambda config: config.update(learning_rate=0.009)
    ),
    "config.json: more epochs": lambda run, _: change_json(run / "config.json", lambda config: config.update(epochs=9)),
    "config.json: a bit in its middle": lambda run, _: flip(run / "config.json", 0.5),
    "config.json: half of it": lambda run, _: truncate(run / "config.json", 0.5),
    "config.json: empty": lambda run, _: truncate(run / "config.json", 0),
    "config.json: missing": lambda run, _: (run / "config.json").unlink(),
    "config.json: a list": lambda run, _: (run / "config.json").write_text("[]"),
    "config.json: a twin's": lambda run, other: put(other.twin / "config.json", run / "config.json"),
    "config.json: another seed's": lambda run, other: put(other.seed / "config.json", run / "config.json"),
    "metrics.jsonl: a bit": lambda run, _: flip(run / "metrics.jsonl", 0.4),
    "metrics.jsonl: half of it": lambda run, _: truncate(run / "metrics.jsonl", 0.5),
    "metrics.jsonl: empty": lambda run, _: truncate(run / "metrics.jsonl", 0),
    "metrics.jsonl: missing": lambda run, _: (run / "metrics.jsonl").unlink(),
    "metrics.jsonl: no text": lambda run, _: (run / "metrics.jsonl").write_bytes(b"\xff\x00"),
    "metrics.jsonl: a line changed": lambda run, _: change_line(run, 1, '{"step": 80, "epoch": 2, "train_loss": 0.1}'),
    "metrics.jsonl: a twin's": lambda run, other: put(other.twin / "metrics.jsonl", run / "metrics.jsonl"),
    "lock: nonsense": lambda run, _: (run / "lock").write_bytes(b"\xff"),
    "lock: missing": lambda run, _: (run / "lock").unlink(),
}  # fmt: skip
# Of a run that has ended: resuming must not take it for whole.
OF_THE_ENDED: dict[str, Damage] = {
    "ended: a bit in the newest": lambda run, _: flip(largest(newest(run)), 0.5),
    "ended: the newest missing": lambda run, _: shutil.rmtree(newest(run)),
    "ended: the last line missing": lambda run, _: change_line(run, -1, ""),
    "ended: another digest in the last line": lambda run, _: change_line(run, -1, '{"params_sha256": "0"}'),
    "ended: metrics.jsonl missing": lambda run, _: (run / "metrics.jsonl").unlink(),
}


def command(*arguments: str | Path) -> Ended:
    """The command line, in this process, which has its devices already."""
    from jaxcnn import cli

    out, err = io.StringIO(), io.StringIO()
    in_use = mock.patch("jaxcnn.training.devices.use_cpu_cores", lambda n: n)
    with in_use, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(["train", "--cores", str(jax.device_count()), *map(str, arguments)])
    return Ended(status, out.getvalue(), err.getvalue())


def make(folder: Path, stopped: int, epochs: int, **changes: object) -> Path:
    """A run on the digits, left after so many of its epochs."""
    from jaxcnn.training import loop
    from jaxcnn.training.config import Config
    from jaxcnn.training.run import prepare
    from jaxcnn.training.run_folder import RunFolder

    run = prepare(Config(epochs=epochs, validation=0.1, **changes))  # pyright: ignore[reportArgumentType]
    with RunFolder(folder) as kept:
        for event in loop.train(run, kept, resume=False, stop=lambda: False):
            if isinstance(event, loop.EpochEnd) and event.metrics["epoch"] == stopped:
                break
    return folder


def judged(ended: Ended, run: Path, wanted: Result) -> str:
    """In what way it ended; raises AssertionError where it must not end so."""
    if ended.status == 2:
        assert ended.err.startswith("jaxcnn: --resume "), ended
        assert ended.err.count("\n") == 1, ended
        return "a clear error"
    assert ended.status == 0, ended
    assert result(run) == wanted, ended
    aside = list(run.glob("damaged-*"))
    warned = ended.err.startswith("jaxcnn: warning: ") and all(
        line.startswith("jaxcnn: warning: ") for line in ended.err.splitlines()
    )
    assert warned or (not aside and not ended.err), ended
    if aside:
        return "an earlier checkpoint, with a warning"
    return "with a warning" if warned else "as if nothing were damaged"


def damages(
    folder: Path, flips: int, seed: int, only: int | None = None, seeds: int = 1
) -> tuple[dict[str, str], list[str]]:
    """(how each damage ended, what went wrong), of runs of so many seeds; of `only` so many damages, chosen evenly."""
    folders = Folders(
        make(folder / "run", STOPPED, EPOCHS, seeds=seeds),
        make(folder / "twin", STOPPED, EPOCHS, seeds=seeds),
        make(folder / "seed", STOPPED, EPOCHS, seeds=seeds, seed=1),
        make(folder / "model", STOPPED, EPOCHS, seeds=seeds, model="two_conv"),
        folder / "ended",
    )
    shutil.copytree(folders.run, folders.ended)
    assert (ended := command("--resume", folders.ended)).status == 0, ended
    wanted, rng = result(folders.ended), random.Random(seed)
    assert np.min(wanted.lines[-1]["chosen_epoch"]) < STOPPED  # so that it is kept over the break
    todo = {**files_of_the_newest(folders.run), **DAMAGES, **OF_THE_ENDED}
    kinds = [path.relative_to(newest(folders.run)) for path in newest(folders.run).rglob("*") if path.is_file()]
    for _ in range(flips):
        relative, where, bit = rng.choice(kinds), rng.random(), rng.randrange(8)
        todo[f"{relative}: bit {bit} at {where:.4f}"] = functools.partial(_flip_newest, relative, where, bit)
    chosen = list(todo) if only is None else list(todo)[:: max(1, len(todo) // only)][:only]
    ends, wrong = {}, []
    for name in chosen:
        copy = folder / "copy"
        shutil.copytree(folders.ended if name in OF_THE_ENDED else folders.run, copy)
        todo[name](copy, folders)
        try:
            ends[name] = judged(command("--resume", copy), copy, wanted)
        except Exception as error:
            ends[name] = "WRONG"
            wrong.append(f"{name}: {error!r}")
        shutil.rmtree(copy)
    return ends, wrong


def _flip_newest(relative: Path, where: float, bit: int, run: Path, _: Folders) -> None:
    flip(newest(run) / relative, where, bit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="of each run (%(default)s)")
    arguments = parser.parse_args()
    jaxcnn.use_cpu_cores(2)
    with tempfile.TemporaryDirectory() as folder:
        ends, wrong = damages(Path(folder), arguments.flips, arguments.seed, None, arguments.seeds)
    for name, how in ends.items():
        print(f"{how:40} {name}")
    for how, count in collections.Counter(ends.values()).most_common():
        print(f"{count:4} ended {how}" if how != "WRONG" else f"{count:4} WRONG")
    print(*wrong, sep="\n")
    print(f"{len(ends)} damages; {len(wrong)} of them ended wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
