"""Runs that are killed, damaged, out of space: they end as the undisturbed one, to the bit, or with a clear word.

The full counts are those of the scripts in `tests/faults/`; here they are in short, and in full behind `long`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from damages import damages, make
from kills import kills
from processes import ENVIRONMENT, TRAIN, end, result, resume, start

from jaxcnn.training import loop
from jaxcnn.training.config import Config
from jaxcnn.training.run import prepare
from jaxcnn.training.run_folder import RunFolder

LONG = [pytest.mark.long, pytest.mark.timeout(7200)]


@pytest.mark.parametrize(
    ("count", "seeds"), [(3, 1), pytest.param(100, 1, marks=LONG), pytest.param(30, 3, marks=LONG)]
)
def test_kills(tmp_path, count, seeds):
    places, wrong = kills(count, 0, tmp_path, seeds)
    assert wrong == []
    assert places.total() == count
    assert places["inside a save"] > 0


@pytest.mark.parametrize(
    ("only", "seeds"), [(8, 1), pytest.param(None, 1, marks=LONG), pytest.param(None, 3, marks=LONG)]
)
def test_damages(tmp_path, only, seeds):
    ends, wrong = damages(tmp_path, 20, 0, only, seeds)
    assert wrong == []
    assert len(ends) == only or (only is None and len(ends) >= 60)
    assert len(set(ends.values())) >= 3  # not all of one kind, as if nothing had been done


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """(a run after three epochs of eight, the same without a break)."""
    folder = tmp_path_factory.mktemp("runs")
    run, whole = folder / "run", folder / "whole"
    make(run, 3, 8)
    shutil.copytree(run, whole)
    assert resume(whole).status == 0
    return run, result(whole)


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own: (its folder, a function that gives it other options)."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> str:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, text=True).stderr.strip()

    if not shutil.which("mount"):
        pytest.skip("there is no mount here")
    if refused := mount("size=8m"):
        pytest.skip(f"no file system can be mounted here: {refused}")

    def remount(options: str) -> None:
        assert mount(f"remount,{options}") == ""

    yield folder, remount
    subprocess.run(["umount", str(folder)], check=True)


SPACE = r"No space left on device, a checkpoint takes 3\.03 MiB and [\d.]+ are free"


def test_a_full_disk(disk, begun):
    """Room for a few checkpoints. A new run says so and keeps what it has; with more room it goes on."""
    folder, remount = disk
    run = folder / "run"
    ended = end(start(*TRAIN, "--out", run))
    assert ended.status == 1
    assert re.fullmatch(
        rf"jaxcnn: {run} cannot be written to: {SPACE}; the checkpoint of step \d+ is whole\n", ended.err
    )
    remount("size=40m")
    assert resume(run).status == 0
    assert result(run) == begun[1]


def test_a_disk_too_small_to_begin(disk):
    folder, remount = disk
    remount("size=64k")
    ended = end(start(*TRAIN, "--out", folder / "run"))
    says = rf"jaxcnn: {folder / 'run'} cannot be written to: {SPACE}; no checkpoint was written yet\n"
    assert ended.status == 1
    assert re.fullmatch(says, ended.err), ended.err
    assert not (folder / "run" / "config.json").exists()


# The space is there when looked for, and gone when orbax writes. In a process of its own: orbax then leaves threads
# behind whose errors would reach any later test.
BLIND = """
import sys
from jaxcnn.training import run_folder
run_folder._require_space = lambda *_: None
from jaxcnn.__main__ import main
sys.exit(main())
"""


def test_a_disk_that_fills_while_a_checkpoint_is_written(disk, begun):
    folder, remount = disk
    run = folder / "run"
    shutil.copytree(begun[0], run)
    remount("size=7m")
    ended = resume(run, program=("-c", BLIND))
    says = f"jaxcnn: {run} cannot be written to: No space left on device; the checkpoint of step 120 is whole"
    assert ended.status == 1
    assert says in ended.err.splitlines()  # among what orbax's threads say
    like = prepare(Config(epochs=8, validation=0.1))
    kept = RunFolder(run).newest(like.state, loop.initially_chosen(like))
    assert (int(kept.state.step), kept.warnings) == (120, [])
    remount("size=40m")
    assert resume(run).status == 0
    assert result(run) == begun[1]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_cannot_be_written_to(disk, begun):
    folder, remount = disk
    run = folder / "run"
    shutil.copytree(begun[0], run)
    remount("ro")
    before = contents(run)
    ended = resume(run)
    says = f"jaxcnn: {run} cannot be written to: Read-only file system; the checkpoint of step 120 is whole\n"
    assert (ended.status, ended.err) == (1, says)
    assert contents(run) == before


def test_a_run_folder_in_use(begun):
    run, _ = begun
    before = contents(run)
    with (run / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = resume(run)
    holder = (run / "lock").read_text().strip()
    assert holder.startswith(f"process {os.getpid()} on ")  # which made the run
    says = f"jaxcnn: {run} is in use by {holder}; wait for its end, or give another folder\n"
    assert (ended.status, ended.err) == (1, says)
    assert contents(run) == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_at_once(number, status):
    """The first one is remembered, for the end of the step."""
    program = (
        "import os; from jaxcnn.cli_train import _Signals\n"
        "with _Signals() as signals:\n"
        f"    os.kill(os.getpid(), {int(number)}); print(signals.received, flush=True)\n"
        f"    os.kill(os.getpid(), {int(number)}); print('still here', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, f"{int(number)}\n"), done.stderr
