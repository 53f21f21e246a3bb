"""How long it takes until something happens: of the import, and of `jaxcnn train` until its first step."""

import os
import statistics
import subprocess
import sys
import time

import pytest

ROUNDS = 5
CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def seconds_to_import(module: str) -> float:
    """Of a core's time, which other programs do not lengthen, and without the interpreter's start."""
    code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_import_costs_hardly_more_than_jax():
    for module in ("jax", "jaxcnn"):
        seconds_to_import(module)  # from now on their files are in memory, and compiled
    times = [[seconds_to_import(module) for module in ("jax", "jaxcnn")] for _ in range(ROUNDS)]
    jax, jaxcnn = map(statistics.median, zip(*times, strict=True))
    assert jaxcnn - jax <= 0.2


def test_help_reads_no_heavy_package():
    heavy = {"matplotlib", "orbax", "sklearn", "PIL", "rich.console"}
    code = f"import sys, jaxcnn.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def environment(**given: str) -> dict[str, str]:
    """Without the settings of the cache that the tests run with."""
    return {name: value for name, value in os.environ.items() if name not in CACHE} | given


def seconds_to_first_epoch(folder, env) -> float:
    """From the start of the process; the first epoch, of 44 steps, is the first thing it says of a step."""
    command = [sys.executable, "-u", "-m", "jaxcnn", "train", "--epochs", "2", "--out", str(folder)]
    start = time.perf_counter()
    with subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        seconds = next(time.perf_counter() - start for line in process.stdout if line.startswith("epoch"))
        process.stdout.read()
    assert process.returncode == 0
    return seconds


def test_train_keeps_its_compiled_programs_in_the_users_cache(tmp_path):
    env = environment(XDG_CACHE_HOME=str(tmp_path / "caches"))
    seconds_to_first_epoch(tmp_path / "first", env)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "caches" / "jaxcnn").glob("*-cache")}
    assert 5 < len(kept) < 30  # a few programs: each costs time even from the cache
    seconds_to_first_epoch(tmp_path / "second", env)
    assert kept.keys() == {path.name for path in (tmp_path / "caches" / "jaxcnn").glob("*-cache")}


def test_train_keeps_them_where_jax_is_told_to(tmp_path):
    env = environment(XDG_CACHE_HOME=str(tmp_path / "caches"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    seconds_to_first_epoch(tmp_path / "run", env)
    assert len(list((tmp_path / "mine").iterdir())) > 5
    assert not (tmp_path / "caches").exists()


def test_train_does_without_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "file").touch()
    seconds_to_first_epoch(tmp_path / "run", environment(XDG_CACHE_HOME=str(tmp_path / "file")))


@pytest.mark.long
def test_train_is_soon_at_its_first_step_when_its_programs_are_kept(tmp_path):
    """Long because it needs a machine that does nothing else."""
    env = environment(XDG_CACHE_HOME=str(tmp_path / "caches"))
    times = [seconds_to_first_epoch(tmp_path / str(i), env) for i in range(ROUNDS + 1)]
    assert statistics.median(times[1:]) < 3
