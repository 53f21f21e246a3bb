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

PROGRAM = str(Path(__file__).parent / "pool_of_threads.py")
MANY_STEPS = """
import jax, jaxcnn, numpy as np, optax, sys
from jaxcnn.training import compiler
jax.config.update("jax_num_cpu_devices", 2)  # by somebody who has not heard of `use_cpu_cores`
if sys.argv[1:] == ["divided"]:
    compiler.takes_all_threads = lambda mesh: False
rows, network, optimizer = 16, jaxcnn.models.lenet5(), optax.sgd(0.01)
rng = np.random.default_rng(0)
images, labels = rng.standard_normal((15, 64, 28, 28, 1)).astype(np.float32), rng.integers(0, 10, (15, 64))
states = jaxcnn.init_train_states(network, optimizer, [0] * rows, (28, 28, 1))
run = jaxcnn.train_seeds(network, jaxcnn.softmax_cross_entropy, optimizer)
_, metrics = run(states, *(np.broadcast_to(array, (rows, *array.shape)) for array in (images, labels)))
losses = np.asarray(metrics["loss"])
print(int((losses != losses[:1]).any(1).sum()), "rows differ")
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


def test_other_programs_are_right_on_all_threads():
    """Of plain jax, once `use_cpu_cores` has been called."""
    assert said("-c", CORES_FIRST, PJRT_NPROC="2") == "0 of 1280 steps are wrong"


@pytest.mark.long
def test_it_is_xla_and_divided_kernels_are_the_reason():
    """Where the first line fails, XLA has mended it, and `takes_all_threads` can go."""
    assert said(PROGRAM, "640", PJRT_NPROC="2") != "0 of 1280 steps are wrong"
    assert said("-c", MANY_STEPS, "divided", PJRT_NPROC="2") != "0 rows differ"
    assert said(PROGRAM, "640", PJRT_NPROC="3") == "0 of 1280 steps are wrong"
    assert said(PROGRAM, "640", PJRT_NPROC="2", XLA_FLAGS=devices.FLAG) == "0 of 1280 steps are wrong"


@pytest.mark.parametrize(
    ("cores", "threads", "given", "n", "wanted"),
    [
        (2, None, None, 2, devices.FLAG),
        (2, None, "--xla_cpu_enable_fast_math=true", 2, f"--xla_cpu_enable_fast_math=true {devices.FLAG}"),
        (2, None, devices.FLAG, 2, devices.FLAG),
        (2, None, None, 3, devices.FLAG),  # more devices than cores: XLA makes as many threads
        (8, "2", None, 2, devices.FLAG),
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
    assert os.environ.get("XLA_FLAGS") == wanted
    assert taken == [("jax_num_cpu_devices", n)]


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
    monkeypatch.setenv("XLA_FLAGS", devices.FLAG)
    jax.jit(step)(*given)
