"""Several CPU devices that take all threads of XLA's pool compute rightly all the same; pool_of_threads.py says why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import jaxcnn
from jaxcnn.training import devices

FLAG = "--xla_disable_hlo_passes=cpu-parallel-task-assigner"
PROGRAM = str(Path(__file__).parent / "pool_of_threads.py")
MANY_STEPS = """
import jax, jaxcnn, numpy as np, optax, sys
from jaxcnn.training import compiler
jax.config.update("jax_num_cpu_devices", 2)  # by somebody who has not heard of `use_cpu_cores`
if sys.argv[1:] == ["divided"]:
    compiler.whole_kernels = dict
rows, network, optimizer = 16, jaxcnn.models.lenet5(), optax.sgd(0.01)
rng = np.random.default_rng(0)
images, labels = rng.standard_normal((15, 64, 28, 28, 1)).astype(np.float32), rng.integers(0, 10, (15, 64))
states = jaxcnn.init_train_states(network, optimizer, [0] * rows, (28, 28, 1))
run = jaxcnn.train_seeds(network, jaxcnn.softmax_cross_entropy, optimizer)
_, metrics = run(states, *(np.broadcast_to(array, (rows, *array.shape)) for array in (images, labels)))
losses = np.asarray(metrics["loss"])
print(int((losses != losses[:1]).any(1).sum()), "rows differ")
"""
TWO_AT_ONCE = """
import concurrent.futures, jax, jaxcnn, numpy as np, optax, sys
from jaxcnn.training import compiler
if sys.argv[1:] == ["divided"]:
    compiler.whole_kernels = dict
network, optimizer = jaxcnn.models.lenet5(), optax.sgd(0.01)
rng = np.random.default_rng(0)
images, labels = rng.standard_normal((64, 28, 28, 1)).astype(np.float32), rng.integers(0, 10, 64)
run = jaxcnn.train_steps(network, jaxcnn.softmax_cross_entropy, optimizer)
def losses(_):
    state = jaxcnn.init_train_state(network, optimizer, 0, (28, 28, 1))
    return np.asarray(run(state, images, labels, np.tile(np.arange(64), (250, 1)))[1]["loss"])
right = losses(0)
with concurrent.futures.ThreadPoolExecutor(2) as threads:
    print([int((one != right).sum()) for one in threads.map(losses, range(2))], "steps differ")
"""
CORES_FIRST = f"""
import jaxcnn, runpy, sys
jaxcnn.use_cpu_cores(2)
sys.argv = [{PROGRAM!r}, "640"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def said(*arguments: str, **environment: str) -> str:
    """In a process of its own: the pool is made when jax first uses a device."""
    own = {name: value for name, value in os.environ.items() if name not in (*devices.POOL, "XLA_FLAGS")}
    done = subprocess.run([sys.executable, *arguments], env=own | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_the_steps_are_right_on_all_threads():
    """Sixteen times the same seed and images, eight to a device, in one program: with kernels divided, 2 differ."""
    assert said("-c", MANY_STEPS, PJRT_NPROC="2") == "0 rows differ"


def test_two_trainings_at_once_on_one_device_are_right():
    """Each in a thread of Python, so that two programs hold the two threads: with kernels divided, 120 steps differ."""
    assert said("-c", TWO_AT_ONCE, PJRT_NPROC="2") == "[0, 0] steps differ"


def test_other_programs_are_right_on_all_threads():
    """Of plain jax, once `use_cpu_cores` has been called."""
    assert said("-c", CORES_FIRST, PJRT_NPROC="2") == "0 of 1280 steps are wrong"


@pytest.mark.long
def test_it_is_xla_and_divided_kernels_are_the_reason():
    """Where the first line fails, XLA has mended it, and `whole_kernels` can go."""
    assert said(PROGRAM, "640", PJRT_NPROC="2") != "0 of 1280 steps are wrong"
    assert said("-c", MANY_STEPS, "divided", PJRT_NPROC="2") != "0 rows differ"
    assert said("-c", TWO_AT_ONCE, "divided", PJRT_NPROC="2") != "[0, 0] steps differ"
    assert said(PROGRAM, "640", PJRT_NPROC="3") == "0 of 1280 steps are wrong"
    assert said(PROGRAM, "640", PJRT_NPROC="2", XLA_FLAGS=FLAG) == "0 of 1280 steps are wrong"


@pytest.mark.parametrize(
    ("cores", "threads", "given", "n", "wanted"),
    [
        (2, None, None, 2, FLAG),
        (2, None, "--xla_cpu_enable_fast_math=true", 2, f"--xla_cpu_enable_fast_math=true {FLAG}"),
        (2, None, FLAG, 2, FLAG),
        (2, None, None, 3, FLAG),  # more devices than cores: XLA makes as many threads
        (8, "2", None, 2, FLAG),
        (8, " 2", None, 2, FLAG),  # XLA reads it so too
        (2, "many", None, 2, FLAG),
        (2, None, "--xla_disable_hlo_passes=a,cpu-parallel-task-assigner,b", 2, "as it is"),
        (8, None, None, 2, None),
        (2, "9", None, 4, None),
        (2, None, None, 1, None),
    ],
)
def test_kernels_are_whole_where_devices_take_all_threads(monkeypatch, cores, threads, given, n, wanted):
    """And only there: elsewhere they are divided among threads that have nothing else to do."""
    taken = []
    monkeypatch.setattr(jax.config, "update", lambda *given: taken.append(given))
    monkeypatch.setattr(devices, "available_cores", lambda: cores)
    for name, value in (("PJRT_NPROC", threads), ("NPROC", None), ("XLA_FLAGS", given)):
        monkeypatch.setenv(name, value or "")
        if value is None:
            monkeypatch.delenv(name)
    assert jaxcnn.use_cpu_cores(n) == n
    assert os.environ.get("XLA_FLAGS") == (given if wanted == "as it is" else wanted)
    assert taken == [("jax_num_cpu_devices", n)]


def test_a_file_of_flags(monkeypatch, tmp_path):
    """XLA_FLAGS may name one."""
    monkeypatch.setattr(jax.config, "update", lambda *given: None)
    monkeypatch.setenv("PJRT_NPROC", "2")
    file = tmp_path / "flags"
    monkeypatch.setenv("XLA_FLAGS", str(file))
    says = f"use_cpu_cores: XLA_FLAGS names a file, {file}; add {FLAG} to what it holds"
    for held in (None, "--xla_cpu_enable_fast_math=true"):
        if held is not None:
            file.write_text(held)
        with pytest.raises(RuntimeError, match=f"^{re.escape(says)}$"):
            jaxcnn.use_cpu_cores(2)
    file.write_text(f"--xla_cpu_enable_fast_math=true\n{FLAG}\n")
    jaxcnn.use_cpu_cores(2)
    assert os.environ["XLA_FLAGS"] == str(file)


def test_passes_that_are_disabled_stay_so_in_a_step(monkeypatch):
    """The option takes the flag's place."""
    for given, wanted in ((None, ""), ("--xla_disable_hlo_passes=a,b --other --xla_disable_hlo_passes=c", "a,b,c,")):
        monkeypatch.setenv("XLA_FLAGS", given or "")
        assert devices.whole_kernels() == {"xla_disable_hlo_passes": f"{wanted}cpu-parallel-task-assigner"}


def test_a_step_in_somebodys_jitted_function_is_refused_where_it_can_be_wrong(monkeypatch):
    """Its options are theirs: jax takes options for the compiler at the top level alone."""
    monkeypatch.setenv("PJRT_NPROC", "2")
    monkeypatch.setenv("XLA_FLAGS", "")
    network, optimizer = jaxcnn.models.source(), optax.sgd(0.1)
    given = jaxcnn.init_train_state(network, optimizer, 0, (8, 8, 1)), np.zeros((4, 8, 8, 1)), np.arange(4)
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer)
    says = (
        "train_step: got 2 CPU devices that share 2 threads, inside a transformed function, where XLA's sums can be "
        "wrong; call jaxcnn.use_cpu_cores(2) at the start of the program, or the step outside of jax.jit"
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(says)}"):
        jax.jit(step)(*given)
    monkeypatch.setenv("PJRT_NPROC", "3")
    jax.jit(step)(*given)
    monkeypatch.setenv("PJRT_NPROC", "2")
    monkeypatch.setenv("XLA_FLAGS", FLAG)
    jax.jit(step)(*given)
