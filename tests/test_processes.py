"""Several processes on this machine, over gloo: as one process, and none waits for ever for one that is lost.

Four processes, and what takes long, are behind `long`. Each process has a limit of its own (several.py).
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import several_steps
from jax.sharding import AxisType
from processes import ENVIRONMENT, end, result, start
from several import ends, free_port, training, wait_for_checkpoint

import jaxcnn
from jaxcnn.training import processes
from jaxcnn.training.first_folder import FirstsFolder
from jaxcnn.training.processes import Place, place_of
from jaxcnn.training.run_folder import no_sums

# adamw divides by the root of small squares, and differences of rounding grow over the steps.
RUN = ("--epochs", "8", "--optimizer", "sgd", "--learning-rate", "0.01", "--validation", "0.1", "--average", "0.9")
EPOCH = 40  # steps
FOUR = pytest.param(4, marks=pytest.mark.long)
LOST = "start all processes again, with --resume where there is a run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(how many processes) -> the folder of their run without a break."""
    made = {}

    def run(count: int) -> Path:
        if count not in made:
            made[count] = tmp_path_factory.mktemp("whole") / str(count)
            with training(count, *RUN, "--out", made[count]) as started:
                ended = ends(started)
            assert [e.status for e in ended] == [0] * count, ended
            for process, (_, out, err) in enumerate(ended):
                said = [line for line in out.splitlines() if not line.startswith("[Gloo]")]
                assert bool(said) == (process == 0)
                assert err == ""
        return made[count]

    return run


@pytest.mark.parametrize("count", [2, FOUR])
def test_the_run_is_that_of_one_process(whole, tmp_path, count):
    assert end(start("train", *RUN, "--cores", "1", "--out", tmp_path / "one")).status == 0
    alone, together = (result(run).lines for run in (tmp_path / "one", whole(count)))
    assert len(alone) == 8
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(b["train_loss"], a["train_loss"], rtol=1e-5)
    np.testing.assert_allclose(b["test_loss"], a["test_loss"], rtol=1e-5)
    assert b["test_accuracy"] == a["test_accuracy"]
    assert len(json.loads((whole(count) / "config.json").read_text())["devices"]) == count


def on_one_device() -> dict:
    mesh = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    return several_steps.train(0, 1, 0, mesh)


def python(count: int, seed: int) -> list:
    address = f"localhost:{free_port()}"
    program = str(Path(several_steps.__file__))
    return ends([start(address, count, i, seed, program=(program,)) for i in range(count)])


@pytest.mark.parametrize("count", [2, FOUR])
def test_every_step_from_python_is_that_of_one_process(count):
    """With batch normalisation. The steps' losses, the evaluation, and the parameters on every process."""
    ended = python(count, 0)
    assert [e.status for e in ended] == [0] * count, ended
    got = [json.loads(e.out.splitlines()[-1]) for e in ended]
    assert all(process == got[0] for process in got)
    wanted = on_one_device()
    np.testing.assert_allclose(got[0]["losses"], wanted["losses"], rtol=1e-5)
    np.testing.assert_allclose(got[0]["loss"], wanted["loss"], rtol=1e-5)
    assert (got[0]["accuracy"], got[0]["samples"]) == (wanted["accuracy"], 23)


SURROUNDINGS = """
import sys
sys.path.append({folder!r})
import jax, numpy as np, optax, jaxcnn, several_steps
process = int(sys.argv[1])
{initialize}
network, optimizer = several_steps.network(), optax.sgd(0.1, momentum=0.9)
state = jaxcnn.init_train_state(network, optimizer, 0, several_steps.SHAPE)
own_shares = [[np.split(array, 2)[process] for array in batch] for batch in several_steps.batches()]
{rest}
print(float(metrics["loss"]))
"""


def test_the_snippet_of_the_readme(tmp_path):
    """Run as printed but for the address and the process' number; the last step's loss is that of one process."""
    folder = Path(__file__).parent
    readme = (folder.parent / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```py\n(jax\.distributed.*?)```", readme, re.DOTALL)
    initialize, rest = snippet.split("\n", 1)
    for printed, here in (("10.0.0.1:8476", f"localhost:{free_port()}"), ("process_id=0", "process_id=process")):
        assert printed in initialize
        initialize = initialize.replace(printed, here)
    program = tmp_path / "snippet.py"
    program.write_text(SURROUNDINGS.format(folder=str(folder), initialize=initialize, rest=rest), encoding="utf-8")
    ended = ends([start(str(process), program=(str(program),)) for process in range(2)])
    assert [e.status for e in ended] == [0, 0], ended
    losses = [float(e.out.splitlines()[-1]) for e in ended]
    np.testing.assert_allclose(losses, on_one_device()["losses"][-1], rtol=1e-5)


def test_states_that_differ_are_refused():
    for _, _, err in python(2, 1):
        assert "train_step: the state is another on process 1 than on process 0; it must be the same on all" in err


def interrupted(run: Path, count: int, process: int, number: int, arguments) -> tuple[list, float]:
    """(how the others end, the seconds it took), when one process gets the signal in the middle."""
    with training(count, *arguments) as started:
        steps = [int(path.name) for path in run.glob("checkpoints/*") if path.name.isdecimal()]
        newest = wait_for_checkpoint(run, max([0, *steps]) + EPOCH, started)
        assert newest < 8 * EPOCH, "it has ended"
        began = time.monotonic()
        started[process].send_signal(number)
        others = [p for i, p in enumerate(started) if number == signal.SIGTERM or i != process]
        return ends(others), time.monotonic() - began


@pytest.mark.parametrize(
    ("count", "lost", "number"),
    [
        (2, 1, signal.SIGKILL),
        *(pytest.param(2, 0, s, marks=pytest.mark.long) for s in (signal.SIGKILL, signal.SIGSTOP)),
        *(pytest.param(4, 2, s, marks=pytest.mark.long) for s in (signal.SIGKILL, signal.SIGSTOP)),
    ],
)
def test_stopped_and_killed_and_resumed(whole, tmp_path, count, lost, number):
    """A signal to one process is for all; one that is lost ends the others; resumed, the end is the same to the bit."""
    run = tmp_path / "run"
    ended, _ = interrupted(run, count, 1, signal.SIGTERM, (*RUN, "--out", run))
    assert [e.status for e in ended] == [143] * count, ended
    assert "Interrupted at step" in ended[0].out
    assert ended[1].err == ""
    ended, seconds = interrupted(run, count, lost, number, ("--resume", run))
    assert seconds < 30
    for status, _, err in ended:
        assert status != 0
        last = err.splitlines()[-1]
        assert last.startswith("jaxcnn: process ")
        assert LOST in last
    with training(count, "--resume", run) as started:
        ended = ends(started)
    assert [e.status for e in ended] == [0] * count, ended
    assert result(run) == result(whole(count))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--seed", "3"), "process 1: seed is 3, on process 0 0; it must be the same on all"),
        (("--batch-size", "33"), "process 1: --batch-size: got 33, required a multiple of the 2 devices; give another"),
        (("--seeds", "2"), "process 1: --seeds: got 2, required 1 with several processes, which share each batch"),
        (("--cores", "2"), "--cores: the processes have 1, 2 devices; required the same number on all"),
    ],
    ids=["another configuration", "refused by one", "several seeds", "more devices"],
)
def test_what_differs_is_refused_by_all(tmp_path, arguments, says):
    with training(2, *RUN, "--out", tmp_path / "run", by_process={1: arguments}) as started:
        for status, _, err in ends(started):
            assert status == 2
            assert err.startswith(f"jaxcnn: {says}"), err
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_loss_that_is_not_finite_ends_all_alike(tmp_path):
    with training(2, *RUN, "--learning-rate", "1e30", "--out", tmp_path / "run") as started:
        ended = ends(started)
    assert [e.status for e in ended] == [1, 1], ended
    said = [e.err.removeprefix(f"jaxcnn: process {i} of 2: ") for i, e in enumerate(ended)]
    assert said[0] == said[1]
    assert " at step 2: first of all " in said[0]


def test_others_that_do_not_come(tmp_path):
    program = (
        "from jaxcnn.training.processes import Place, together\n"
        f"with together(Place(1, 2), 'localhost:{free_port()}', meeting=2): pass"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - began < 40
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("jaxcnn: process 1 of 2: not all processes came to localhost:")
    assert "within 2 s; start one for each --process-id from 0 to 1" in done.stderr


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        ended = end(start("train", "--coordinator", address, "--processes", "2", "--process-id", "0"))
    says = f"jaxcnn: --coordinator: got port {address[10:]}, which process 0 cannot listen on: Address already in use\n"
    assert (ended.status, ended.err) == (2, says)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            jax.errors.JaxRuntimeError("FAILED_PRECONDITION: Gloo AllReduce failed"),
            "another process, or the connection",
        ),
        (jax.errors.JaxRuntimeError("UNAVAILABLE: no heartbeat"), "another process, or the connection to it, was lost"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_what_is_said_of_an_error(error, says):
    assert processes._reason(error).startswith(says)


def test_states_that_drift_apart_are_not_kept(monkeypatch, tmp_path):
    """Of two processes that no longer agree neither writes."""
    state = jaxcnn.init_train_state(several_steps.network(), optax.sgd(0.1), 0, (8, 8, 1))
    folder = FirstsFolder(tmp_path)
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "_gathered", lambda text: [text, "another"])
    with pytest.raises(
        processes.Agreed, match=r"^the state of step 0 is another on process 1 than on process 0; it must"
    ):
        folder.keep(state, no_sums(1))


def test_an_array_of_one_process_alone_is_refused():
    with pytest.raises(
        ValueError, match=r"^train_step: its devices are those of several processes, and an array of one"
    ):
        processes.require_shared("train_step", None, (np.zeros(4),))


def test_last_words():
    """Of a process that jax aborts."""
    program = (
        "import os; from jaxcnn.training import processes\n"
        "processes.jax.distributed.initialize = lambda *_, **__: os.abort()\n"
        "with processes.together(processes.Place(1, 2), 'localhost:1'): pass"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGABRT
    says = f"jaxcnn: process 1 of 2: ended; it was killed, another one was lost, or two have one --process-id; {LOST}\n"
    assert done.stderr == says


def test_where_there_is_nothing_of_a_cluster_a_process_is_alone(monkeypatch):
    assert place_of(None, None, None) is None
    assert place_of("localhost:1234", 1, 0) is None
    assert place_of("localhost:1234", 3, 2) == Place(2, 3)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")  # any pod, a notebook's say
    assert place_of(None, None, None) is None
    assert processes.agreed(lambda: 5) == 5
    assert processes.largest(3) == 3
    assert processes.is_first()


SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def test_a_cluster_is_found(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert place_of(None, None, None) == Place(1, 2)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert place_of(None, None, None) is None
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    with pytest.raises(ValueError, match=r"^Open MPI has started several processes, but jax does not find .* give"):
        place_of(None, None, None)
    monkeypatch.setenv("OMPI_MCA_orte_hnp_uri", "4096.0;tcp://127.0.0.1:34911")
    assert place_of(None, None, None) == Place(3, 4)


@pytest.mark.long
def test_processes_that_slurm_started(tmp_path, whole):
    """By its environment: two tasks of one step."""
    slurm = SLURM | {"SLURM_JOB_ID": str(os.getpid())}
    started = []
    for task in ("0", "1"):
        command = [sys.executable, "-m", "jaxcnn", "train", *RUN, "--out", str(tmp_path / "run")]
        environment = ENVIRONMENT | slurm | {"SLURM_PROCID": task, "SLURM_LOCALID": task}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    ended = ends(started)
    assert [e.status for e in ended] == [0, 0], ended
    assert result(tmp_path / "run") == result(whole(2))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("h:1", None, None), "--coordinator: got without --processes and --process-id; give all three, or none"),
        (("h:1", 2, None), "--coordinator and --processes: got without --process-id; give all three, or none"),
        ((None, 2, 0), "--processes and --process-id: got without --coordinator; give all three, or none"),
        (("h", 2, 0), "--coordinator: got 'h', required HOST:PORT, where process 0 runs"),
        (("h:p", 2, 0), "--coordinator: got 'h:p', required HOST:PORT"),
        (("h:70000", 2, 0), "--coordinator: got 'h:70000', required HOST:PORT"),
        (("h:1", 0, 0), "--processes: got 0, required at least 1"),
        (("h:1", 2, 2), "--process-id: got 2, required from 0 to 1"),
        (("h:1", 2, -1), "--process-id: got -1, required from 0 to 1"),
    ],
)
def test_refused_places(given, says):
    with pytest.raises(ValueError, match=r"^--") as refused:
        place_of(*given)
    assert str(refused.value).startswith(says)


EIGHT = """
import jax, jaxcnn, json, sys
jaxcnn.use_cpu_cores(8)
sys.path.insert(0, "tests")
import several_steps
print(json.dumps(several_steps.train(0, 1, 0)), jax.device_count())
"""


def test_a_mesh_of_eight_devices_is_as_one():
    """Batch normalisation, whose statistics are those of the whole batch, included."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", EIGHT], env=ENVIRONMENT, cwd=root, capture_output=True, text=True)
    got, devices = done.stdout.rsplit(maxsplit=1)
    got = json.loads(got)
    wanted = on_one_device()
    assert devices == "8"
    np.testing.assert_allclose(got["losses"], wanted["losses"], rtol=1e-5)
    np.testing.assert_allclose(got["loss"], wanted["loss"], rtol=1e-5)
    assert got["accuracy"] == wanted["accuracy"]
