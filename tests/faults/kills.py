"""Kills training runs at random moments with SIGKILL, resumes them, and compares their end with an uninterrupted run's.

    python tests/faults/kills.py --kills 100

Each run is killed and resumed until it ends; then another one is begun, until there were as many kills as asked for. A
third of the moments lie anywhere in a process, from its start; a third after its training began; a third inside a save:
as soon as orbax's temporary folder is seen, and up to 20 ms later. Exit status 1 if any run ends otherwise than the
uninterrupted one, to the bit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import random
import subprocess
import tempfile
import time
from pathlib import Path

from processes import TRAIN, end, result, resume, start

MOMENTS = ("anywhere", "in training", "in a save")


def kill(process: subprocess.Popen[str], run: Path, moment: str, lasts: float, rng: random.Random) -> str | None:
    """Kills it at a random moment. Returns where that was, by what it has left; None if it ended before.

    lasts: seconds of an uninterrupted process, of which training takes the last third.
    """
    before = names(run)  # with what a save left that was killed earlier
    began = saved(before)

    def saving() -> bool:
        return any(not name.isdecimal() and before.get(name) != which for name, which in names(run).items())

    if moment == "anywhere":
        wait(process, rng.uniform(0, lasts))
    else:
        while process.poll() is None and saved(names(run)) == began and not saving():
            time.sleep(0.001)
        if moment == "in training":
            wait(process, rng.uniform(0, lasts / 3))
        else:
            for _ in range(rng.randrange(8)):  # one of the next saves
                while process.poll() is None and saving():
                    time.sleep(0.0005)
                while process.poll() is None and not saving():
                    time.sleep(0.0005)
            wait(process, rng.uniform(0, 0.02))
    process.kill()
    ended = end(process)
    if ended.status != -9:
        assert ended.status == 0, ended
        return None
    if saving():
        return "inside a save"
    if not (run / "config.json").exists():
        return "before there was a run"
    return "between saves" if saved(names(run)) != began else "on resuming, before its first save"


def wait(process: subprocess.Popen[str], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


def names(run: Path) -> dict[str, tuple[int, int]]:
    """What is in checkpoints/, and which it is: one that was removed and made again is another."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for path in (run / "checkpoints").iterdir():
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                found[path.name] = path.stat().st_ino, path.stat().st_mtime_ns
    return found


def saved(found: dict[str, tuple[int, int]]) -> set[str]:
    return set(filter(str.isdecimal, found))


def kills(count: int, seed: int, folder: Path, seeds: int = 1) -> tuple[collections.Counter[str], list[str]]:
    """(how many kills there were at which place, what went wrong), of runs of so many seeds."""
    train = (*TRAIN, "--seeds", str(seeds), "--out")
    rng, places, wrong = random.Random(seed), collections.Counter(), []
    for name in ("first", "whole"):  # the first one compiles
        begun = time.monotonic()
        ended = end(start(*train, folder / name))
        assert ended.status == 0, ended
    lasts, wanted = time.monotonic() - begun, result(folder / "whole")
    for number in itertools.count():
        if places.total() >= count:
            return places, wrong
        run = folder / str(number)
        process = start(*train, run)
        while place := kill(process, run, MOMENTS[places.total() % 3], lasts, rng):
            places[place] += 1
            if places.total() >= count or not (run / "config.json").exists():
                break
            process = start("train", "--cores", "2", "--resume", run)
        ended = resume(run)
        if not (run / "config.json").exists():
            if ended.status != 2 or f"--resume {run}: no run there: config.json: No such file" not in ended.err:
                wrong.append(f"{run}: {ended}")
        elif ended.status or (got := result(run)) != wanted:
            wrong.append(f"{run}: {ended}; {got if not ended.status else 'no result'}, wanted {wanted}")
    raise AssertionError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="of each run (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places, wrong = kills(arguments.kills, arguments.seed, Path(folder), arguments.seeds)
    for place, count in places.most_common():
        print(f"{count:4} {place}")
    print(*wrong, sep="\n")
    print(f"{places.total()} kills; {len(wrong)} runs ended otherwise than the uninterrupted one")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
