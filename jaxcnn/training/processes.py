"""Several processes that train together: how they meet, agree, and end when one of them is lost.

jax starts a service in process 0, the coordinator, which the others report to. A process that is not heard of for
`HEARTBEAT` seconds ends them all; on CPUs a lost connection does so at once, by an error of gloo, the collectives.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxcnn.training.devices import is_global, place
from jaxcnn.training.host import on_host, sha256_of
from jaxcnn.training.samples import DataError

HEARTBEAT = 20  # seconds without a word, after which a process counts as lost
MEETING = 120  # seconds in which all must have come
TEXT = 1024  # bytes of an error that the others are told
GO_ON = "; start all processes again, with --resume where there is a run"

T = TypeVar("T")


class Agreed(DataError):
    """An error of one process or of all, which each of them raises."""


class Place(NamedTuple):
    """Which one of how many processes this is."""

    process: int
    processes: int

    def __str__(self) -> str:
        return f"process {self.process} of {self.processes}"


def place_of(coordinator: str | None, processes: int | None, process_id: int | None) -> Place | None:
    """By the three options, or without them by what has started the processes; None where there is one alone.

    Raises:
      ValueError: some of the options without the others, or out of bounds; Open MPI without what jax needs of it.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    missing = [option for option, value in given.items() if value is None]
    if len(missing) == 3:
        return _place_in_cluster()
    if coordinator is None or processes is None or process_id is None:
        named = [option for option in given if option not in missing]
        raise ValueError(f"{' and '.join(named)}: got without {' and '.join(missing)}; give all three, or none")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator: got {coordinator!r}, required HOST:PORT, where process 0 runs")
    if processes < 1:
        raise ValueError(f"--processes: got {processes}, required at least 1")
    if not 0 <= process_id < processes:
        raise ValueError(
            f"--process-id: got {process_id}, required from 0 to {processes - 1}, one less than --processes"
        )
    return Place(process_id, processes) if processes > 1 else None


def _place_in_cluster() -> Place | None:
    from jax._src.clusters import ClusterEnv  # jax has no public name for what `initialize` looks for

    for cluster in ClusterEnv._cluster_types:
        # Any pod of Kubernetes looks like a cluster; the processes of one job have an index.
        single = cluster.__name__ == "K8sCluster" and "JOB_COMPLETION_INDEX" not in os.environ
        if not (single or cluster.opt_in_only_method) and cluster.is_env_present():
            count = cluster.get_process_count()
            return Place(cluster.get_process_id(), count) if count > 1 else None
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:  # Open MPI 5 no longer says where it runs
        raise ValueError(
            "Open MPI has started several processes, but jax does not find their coordinator; give --coordinator "
            "HOST:PORT --processes $OMPI_COMM_WORLD_SIZE --process-id $OMPI_COMM_WORLD_RANK"
        )
    return None


@contextlib.contextmanager
def together(here: Place | None, coordinator: str | None, *, meeting: float = MEETING) -> Iterator[None]:
    """All processes meet at its beginning and at its end. Nothing where there is one alone.

    An `Agreed` error passes through, on all alike. With any other, and where another process is lost, this process ends
    at once with a line on standard error: waiting for the others might never end.
    """
    if here is None:
        yield
        return
    if here.process == 0 and coordinator is not None:
        _require_free(coordinator)
    last_words = _LastWords(
        f"jaxcnn: {here}: ended; it was killed, another one was lost, or two have one --process-id{GO_ON}"
    )
    came = threading.Timer(meeting, last_words.end, [f"jaxcnn: {here}: {_not_met(here, coordinator, meeting)}", 1])
    came.daemon = True
    try:
        came.start()
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
        jax.distributed.initialize(
            coordinator,
            num_processes=here.processes if coordinator else None,
            process_id=here.process if coordinator else None,
            initialization_timeout=int(meeting) + 60,  # past this jax ends the process in its own way
            heartbeat_timeout_seconds=HEARTBEAT,
        )
        came.cancel()
        yield
        jax.distributed.shutdown()
    except Agreed:
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        came.cancel()
        last_words.end(f"jaxcnn: {here}: {_reason(error)}", 130 if isinstance(error, KeyboardInterrupt) else 1)
    finally:
        last_words.forget()


def _require_free(coordinator: str) -> None:
    """Raises ValueError where the port is another program's: jax' service would end the process."""
    port = coordinator.rpartition(":")[2]
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("", int(port)))
        except OSError as error:
            raise ValueError(
                f"--coordinator: got port {port}, which process 0 cannot listen on: {error.strerror}"
            ) from None


def _not_met(here: Place, coordinator: str | None, meeting: float) -> str:
    where = coordinator or "the coordinator that jax found"
    return (
        f"not all processes came to {where} within {meeting:g} s; start one for each --process-id from 0 to "
        f"{here.processes - 1}, and see that all can reach the host and port of process 0"
    )


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")  # of this process alone, as too little memory
    of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if "Gloo" in text or (of_jax and not text.startswith(own)):
        return f"another process, or the connection to it, was lost{GO_ON} ({text[:200]})"
    if not (of_jax or isinstance(error, ValueError | OSError)):
        traceback.print_exception(error)
    return text or type(error).__name__


class _LastWords:
    """A line on standard error for when this process ends without a chance to say why.

    jax ends a process that has lost the others from a thread of its own, by abort. So a shell waits for the end of this
    process and says the line, unless it was told to forget it.
    """

    def __init__(self, line: str) -> None:
        script = """trap '' INT TERM; read -r forget || printf '%s\\n' "$0" >&2"""
        self._shell = subprocess.Popen(["sh", "-c", script, line], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def forget(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # it has ended, or was told before
            self._shell.communicate(b"forget\n")

    def end(self, line: str, status: int) -> None:
        """Ends the process with another line."""
        sys.stdout.flush()
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
        self.forget()
        os._exit(status)


def several() -> bool:
    """Whether this process is one of several, which have met."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes and prints: the only one, or process 0."""
    return not several() or jax.process_index() == 0


def require_equal_devices() -> None:
    """Raises Agreed where one process has more devices than another, with which jax's collectives cannot do."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        each = ", ".join(str(counts[process]) for process in sorted(counts))
        raise Agreed(f"--cores: the processes have {each} devices; required the same number on all")


def of_all(array: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """On a mesh of several processes the array, the whole of which each of them has; else as it is."""
    return place(array, mesh, spec) if mesh.is_multi_process else array


def agreed(function: Callable[[], T]) -> T:
    """What the function gives, which each process calls for itself and without a word to the others.

    Raises:
      Agreed: it failed on one of them. Of a process that is alone the error itself passes.
    """
    if not several():
        return function()
    value, said = None, ""
    try:
        value = function()
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
    texts = _gathered(said)
    if not any(texts):
        return value  # pyright: ignore[reportReturnType]
    if len(set(texts)) == 1:
        raise Agreed(said)
    raise Agreed("; ".join(f"process {i}: {text}" for i, text in enumerate(texts) if text))


def largest(number: int) -> int:
    """Of the processes' numbers."""
    if not several():
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).max())


def require_same(what: str, tree: Any) -> None:
    """Raises Agreed where a process holds other arrays than process 0."""
    if not several():
        return
    digests = _gathered(sha256_of(on_host(tree)).hexdigest())
    if differing := [i for i, digest in enumerate(digests) if digest != digests[0]]:
        raise Agreed(f"{what} is another on process {differing[0]} than on process 0; it must be the same on all")


def require_same_words(words: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    """Of what JSON can hold, some names left out. Raises Agreed where a process has others than process 0."""
    if not several():
        return
    first = json.loads(from_first(json.dumps(words).encode()))

    def compare() -> None:
        for name, value in json.loads(json.dumps(words)).items():
            if name not in but and value != first.get(name):
                raise ValueError(f"{name} is {value}, on process 0 {first.get(name)}; it must be the same on all")

    agreed(compare)


def require_shared(name: str, state: Any, data: tuple[Any, ...]) -> None:
    """What a step over several processes is given.

    Raises:
      ValueError: data of one process alone, which may be the whole or its share; Agreed: states that differ.
    """
    if not all(map(is_global, data)):
        raise ValueError(
            f"{name}: its devices are those of several processes, and an array of one alone does not say whether it is "
            "the whole or a share; make one of each process' share by jax.make_array_from_process_local_data(sharding, "
            f"share), where the arrays' shardings are those that {name} returned as .shardings"
        )
    if not all(map(is_global, jax.tree.leaves(state))):  # the first step
        require_same(f"{name}: the state", state)


def from_first(content: bytes) -> bytes:
    """Those of process 0; of the others' nothing is used."""
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(content)).astype(np.int32)))
    padded = np.zeros(1 << max(size - 1, TEXT - 1).bit_length(), np.uint8)  # few sizes, each a program
    if is_first():
        padded[:size] = np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes()


def _gathered(text: str) -> list[str]:
    """Each process' text."""
    from jax.experimental import multihost_utils

    content = text.encode()[:TEXT]
    padded = np.frombuffer(content.ljust(TEXT, b"\0"), np.uint8)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(padded)]
