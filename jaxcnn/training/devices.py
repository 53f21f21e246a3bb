"""Which devices a step runs on."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxcnn.rules.window import is_whole

BATCH = "batch"  # the one mesh axis: the samples of a batch
POOL = ("PJRT_NPROC", "NPROC")  # of the environment: the number of threads, the first one that is there
DISABLED = "xla_disable_hlo_passes"  # a flag and an option of XLA's compiler
DIVIDES = "cpu-parallel-task-assigner"  # its pass that divides large elementwise kernels among threads
TURN = threading.RLock()  # who holds it may execute on several CPU devices: the process has one pool of threads for all


def use_cpu_cores(n: int | None = None) -> int:
    """Makes one CPU device of each core, so that a step shares its batch among them. Returns how many.

    XLA runs most convolutions on one thread; with a device a core all cores work. Where the devices take all threads
    of XLA's pool, no elementwise kernel of any program is divided among threads any more, or convolutions can come out
    wrong (`whole_kernels`): for that XLA_FLAGS gets one more flag in this process' environment, which XLA reads once,
    when it first compiles.

    Args:
      n: how many; all the cores this process may use when None.

    Raises:
      TypeError: n no whole number. ValueError: n less than 1. RuntimeError: jax has used a device already, and then the
      number is fixed; or XLA_FLAGS names a file that lacks the flag.

    >>> use_cpu_cores()  # doctest: +SKIP
    2
    """
    n = available_cores() if n is None else n
    if not is_whole(n):
        raise TypeError(f"use_cpu_cores: n must be a whole number or None, got {n!r}")
    n = int(n)  # jax takes none of NumPy's
    if n < 1:
        raise ValueError(f"use_cpu_cores: n must be at least 1, got {n}")
    try:
        jax.config.update("jax_num_cpu_devices", n)
    except RuntimeError:
        raise RuntimeError(
            "use_cpu_cores: jax has used a device already; call it at the start of the program"
        ) from None
    if n > 1 and n >= pool_threads() and not kernels_are_whole():
        flags, one = os.environ.get("XLA_FLAGS", "").strip(), f"--{DISABLED}={DIVIDES}"
        if flags and not flags.startswith("-"):
            raise RuntimeError(f"use_cpu_cores: XLA_FLAGS names a file, {flags}; add {one} to what it holds")
        os.environ["XLA_FLAGS"] = f"{flags} {one}".strip()
    return n


def pool_threads() -> int:
    """How many threads XLA gives the CPU devices of this process, by its environment and its cores."""
    for name in POOL:
        with contextlib.suppress(KeyError, ValueError):
            return int(os.environ[name])
    return available_cores()


def kernels_are_whole() -> bool:
    """Whether the environment tells XLA to divide no kernel among threads."""
    return DIVIDES in _disabled_passes()


def whole_kernels() -> dict[str, str]:
    """The options for XLA's compiler by which no kernel is divided among threads; what XLA_FLAGS disables stays so.

    Plain jax can be wrong by a tenth and more, without a word, in its larger convolutions after some hundred steps in
    one program, where the programs that run at once, one for each CPU device, are as many as the threads of XLA's pool
    (jax 0.10.2; tests/pool_of_threads.py). XLA divides a large elementwise kernel among the threads, and who comes too
    late for a share leaves a task behind that does nothing. A program holds its thread until it ends; where all threads
    are held nobody takes these tasks, until the queues are full. A task is then run where it is given, in the middle of
    another, for which Eigen's products of matrices, and so its convolutions, are not made. With no kernel divided no
    step was ever wrong, and on 2 cores none was slower.
    """
    return {DISABLED: ",".join(dict.fromkeys([*_disabled_passes(), DIVIDES]))}


def _disabled_passes() -> list[str]:
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # a file that holds them; where it is missing XLA ends the process
        flags = Path(flags).read_text(encoding="utf-8") if Path(flags).is_file() else ""
    given = (flag.removeprefix(f"--{DISABLED}=") for flag in flags.split() if flag.startswith(f"--{DISABLED}="))
    return [name for names in given for name in names.split(",")]


def available_cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_compiled_programs() -> None:
    """From now on jax keeps each program that it compiles, for the next process that needs it.

    In the folder of JAX_COMPILATION_CACHE_DIR where that is set, else in the user's cache folder; in none where that
    cannot be written to.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        try:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcnn"
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # no home
            return
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # Also those that were compiled quickly: a short run has dozens of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def all_devices() -> Mesh:
    """All devices, of all processes, on one axis."""
    return jax.make_mesh((jax.device_count(),), (BATCH,), axis_types=(AxisType.Auto,))


def require_one_axis(function: str, mesh: Any) -> None:
    """Raises TypeError or ValueError for what is no mesh, or one whose axes a step does not know what to do with."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise TypeError(f"{function}: mesh must be a jax.sharding.Mesh, as jax.make_mesh makes, got {mesh!r}")
    if len(mesh.axis_names) != 1:
        raise ValueError(f"{function}: mesh must have one axis, the batch; got axes {mesh.axis_names}")


def require_whole_kernels(function: str, mesh: Any) -> None:
    """Raises RuntimeError where a step inside somebody's jitted function, whose options are theirs, can be wrong."""
    devices = len(mesh.local_devices) if must_not_overlap(mesh) else 1
    if devices > 1 and devices >= pool_threads() and not kernels_are_whole():
        raise RuntimeError(
            f"{function}: got {devices} CPU devices that share {pool_threads()} threads, inside a transformed "
            f"function, where XLA's sums can be wrong; call jaxcnn.use_cpu_cores({devices}) at the start of the "
            "program, or the step outside of jax.jit"
        )


def place(tree: Any, mesh: Any, spec: PartitionSpec) -> Any:
    """The arrays on the mesh; those that are there already are not copied.

    Where the mesh is of several processes each of them gives the whole array, or one that lies on it already.
    """
    there = NamedSharding(mesh, spec)

    def move(array):  # `device_put` takes 15 µs to find that there is nothing to do
        if getattr(array, "sharding", None) == there or is_global(array):
            return array
        if there.is_fully_addressable:
            return jax.device_put(array, there)
        return jax.make_array_from_callback(np.shape(array), there, lambda index: array[index])

    return jax.tree.map(move, tree)


def is_global(array: Any) -> bool:
    """Whether it lies on devices of other processes too."""
    return isinstance(array, jax.Array) and not isinstance(array, Tracer) and not array.is_fully_addressable


def must_not_overlap(mesh: Any) -> bool:
    """Whether executions on the mesh have to follow one another strictly.

    CPU devices of one process share a pool of threads: of two executions under way at once, one can wait in a
    collective for a thread that the other holds, and both wait for ever. So who executes there holds `TURN`, and waits
    for the result before letting go. A program of your own with a collective in it does not know of `TURN`: wait for
    its result before the next step, or make the step's data with it (the step waits for them).
    """
    return mesh.size > 1 and is_cpu(mesh)


def is_cpu(mesh: Any) -> bool:
    """Whether it is a mesh of CPU devices of this machine, not an abstract one."""
    return isinstance(mesh, Mesh) and np.ravel(mesh.devices)[0].platform == "cpu"


FEW_BYTES = 2**18  # larger arrays are summed by themselves


def sum_over_devices(tree, axis):
    """`lax.psum`, of all small arrays at once: the devices meet once for each sum, which takes longer than the sum."""
    leaves, structure = jax.tree.flatten(tree)
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.dtype if leaf.size * leaf.dtype.itemsize <= FEW_BYTES else i, []).append(i)
    for together in groups.values():
        joined = lax.psum(jnp.concatenate([leaves[i].ravel() for i in together]), axis)
        ends = np.cumsum([leaves[i].size for i in together])[:-1]
        for i, part in zip(together, jnp.split(joined, ends), strict=True):
            leaves[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, leaves)


def agreed_over_devices(leaf, axis):
    """What all devices keep of the state that each has made: of floats the mean, else the largest."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(lax.pmax(jax.random.key_data(leaf), axis), impl=jax.random.key_impl(leaf))
    return lax.pmean(leaf, axis) if jnp.issubdtype(leaf.dtype, jnp.inexact) else lax.pmax(leaf, axis)
