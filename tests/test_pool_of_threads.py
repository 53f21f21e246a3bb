"""Several CPU devices leave a thread of XLA's pool free, or the steps refuse them; pool_of_threads.py says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxcnn
from jaxcnn.training import devices

TESTS = Path(__file__).parent
MANY_STEPS = """
import jax, jaxcnn, numpy as np, optax, sys
if sys.argv[1] == "rightly":
    jaxcnn.use_cpu_cores(2)
else:
    jax.config.update("jax_num_cpu_devices", 2)
    from jaxcnn.training import seeds
    seeds.require_threads = lambda *_: None
rows, network, optimizer = 16, jaxcnn.models.lenet5(), optax.sgd(0.01)
rng = np.random.default_rng(0)
images, labels = rng.standard_normal((15, 64, 28, 28, 1)).astype(np.float32), rng.integers(0, 10, (15, 64))
states = jaxcnn.init_train_states(network, optimizer, [0] * rows, (28, 28, 1))
run = jaxcnn.train_seeds(network, jaxcnn.softmax_cross_entropy, optimizer)
_, metrics = run(states, *(np.broadcast_to(array, (rows, *array.shape)) for array in (images, labels)))
losses = np.asarray(metrics["loss"])
print(int((losses != losses[:1]).any(1).sum()), "rows differ")
"""


def said(*arguments: str, **environment: str) -> str:
    """In a process of its own: the pool is made when jax first uses a device."""
    own = {name: value for name, value in os.environ.items() if name not in devices.POOL} | environment
    done = subprocess.run([sys.executable, *arguments], env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_the_same_rows_end_the_same():
    """Sixteen times the same seed and images, eight to a device, in one program: where no thread is free, 2 differ."""
    assert said("-c", MANY_STEPS, "rightly", PJRT_NPROC="2") == "0 rows differ"


@pytest.mark.long
def test_it_is_xla_and_a_free_thread_is_what_it_takes():
    """Where the first line fails, XLA has mended it, and `require_threads` can go."""
    program = str(TESTS / "pool_of_threads.py")
    assert said(program, "640", PJRT_NPROC="2") != "0 of 1280 steps are wrong"
    assert said("-c", MANY_STEPS, "wrongly", PJRT_NPROC="2") != "0 rows differ"
    assert said(program, "640", PJRT_NPROC="3") == "0 of 1280 steps are wrong"


def test_a_thread_more_than_devices(monkeypatch):
    """Set where it is needed, and only there."""
    taken = []
    monkeypatch.setattr(jax.config, "update", lambda *given: taken.append(given))
    for cores, given, n, wanted in ((2, None, 2, "3"), (2, "1", 2, "3"), (8, None, 2, None), (2, "9", 4, "9")):
        monkeypatch.setattr(devices, "available_cores", lambda cores=cores: cores)
        for name in devices.POOL:
            monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv("PJRT_NPROC", given)
        assert jaxcnn.use_cpu_cores(n) == n
        assert os.environ.get("PJRT_NPROC") == wanted
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    assert jaxcnn.use_cpu_cores(1) == 1
    assert "PJRT_NPROC" not in os.environ
    assert taken[-1] == ("jax_num_cpu_devices", 1)


@pytest.mark.parametrize("name", ["train_step", "train_steps", "train_seeds"])
def test_devices_that_take_all_threads_are_refused(monkeypatch, name):
    import optax

    monkeypatch.setenv("PJRT_NPROC", "2")
    says = (
        rf"^{name}: got 2 CPU devices that share 2 threads, required more threads than devices, or XLA's sums can be "
        r"wrong; call jaxcnn\.use_cpu_cores\(2\) at the start of the program, or start it with PJRT_NPROC=3 in its "
        r"environment$"
    )
    given = jaxcnn.models.source(), jaxcnn.softmax_cross_entropy, optax.sgd(0.1)
    with pytest.raises(RuntimeError, match=says):
        getattr(jaxcnn, name)(*given)
    alone = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    getattr(jaxcnn, name)(*given, mesh=alone)  # the other thread is free
