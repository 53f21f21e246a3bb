"""Steps called without waiting never get stuck, whatever the library's other calls between them; no_deadlock.py."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

PREVENTED = ("alone", "with_evaluation", "two_kinds", "two_threads", "of_sharded_data")
LIMIT = 240  # seconds: XLA itself ends a process that is stuck for 40


def run(scenario: str, steps: int) -> subprocess.CompletedProcess:
    """In a process of its own: the number of devices is fixed when jax first uses one."""
    command = [sys.executable, str(Path(__file__).parent / "no_deadlock.py"), scenario, str(steps)]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)


def assert_ends(scenario: str, steps: int) -> None:
    done = run(scenario, steps)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{scenario}: {steps} steps\n"


@pytest.mark.parametrize("scenario", PREVENTED)
def test_steps_called_without_waiting_end(scenario):
    assert_ends(scenario, 200)


@pytest.mark.long
@pytest.mark.timeout(20 * LIMIT)
@pytest.mark.parametrize("scenario", PREVENTED)
def test_twenty_long_runs_end(scenario):
    for _ in range(20):
        assert_ends(scenario, 1000)


@pytest.mark.long
@pytest.mark.timeout(3 * LIMIT)
def test_what_is_prevented_does_get_stuck():
    """Without the step's wait: the runs above mean something. One of three is enough, chance has a part in it."""
    ended = [run("overlapping", 1000) for _ in range(3)]
    assert any(done.returncode == -signal.SIGABRT and "rendezvous" in done.stderr for done in ended), ended
