"""The table rule × transformation of jax: value and gradients after it, against the plain function after it.

`python tests/transformations.py [--json FILE]` prints the whole table; tests/test_transformations.py asserts it.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from conftest import CASES, FLOAT64, QUICK, Case, assert_close, draw, is_float
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def vmapped(f, first, others):
    """f over three versions of its arrays: the batch on the axis named for the first and for the others, or not."""

    def batched(*arrays):
        axes = [(first if i == 0 else others) if is_float(a) else None for i, a in enumerate(arrays)]
        stacks = [a if x is None else jnp.stack([a, 2 * a, -a[::-1]], x) for a, x in zip(arrays, axes, strict=True)]
        return jax.vmap(f, axes, -1)(*stacks)

    return batched


def scanned(f):
    """f three times in a loop whose carry goes into its first array, the rest being the same each time."""

    def loop(x, *arrays):
        def body(carry, scale):
            y = f(x * carry, *arrays)
            return carry + jnp.sin(y).mean() * scale, y

        return lax.scan(body, jnp.ones((), x.dtype), jnp.array([1.0, 2.0, -1.0], x.dtype))

    return loop


def derived(f):
    """The gradient of a curved function of f with respect to all floating arrays: its gradient is the second one."""

    def gradient(*arrays):
        numbers = tuple(i for i, a in enumerate(arrays) if is_float(a))
        return jax.grad(lambda *arrays: jnp.sin(f(*arrays)).sum(), numbers)(*arrays)

    return gradient


def of_floats(f, arrays):
    """f as a function of its floating arrays alone, these, and a tangent for each."""
    numbers = [i for i, a in enumerate(arrays) if is_float(a)]
    floats = tuple(arrays[i] for i in numbers)

    def function(*some):
        given = dict(zip(numbers, some, strict=True))
        return f(*(given.get(i, a) for i, a in enumerate(arrays)))

    return function, floats, tuple(jnp.cos(3 * a + 1) for a in floats)


def pushed(f, jvp=jax.jvp):
    """The derivative in one direction; the gradient of that runs the backward pass only where the arrays are held."""

    def derivative(*arrays):
        function, floats, tangents = of_floats(f, arrays)
        return [jvp(function, at, tangents)[1] for at in (floats, lax.stop_gradient(floats))]

    return derivative


def by_linearize(function, arrays, tangents):
    y, push = jax.linearize(function, *arrays)
    return y, push(*tangents)


def pushed_gradient(f):
    """The second derivative in one direction, forward over reverse."""

    def derivative(*arrays):
        function, floats, tangents = of_floats(f, arrays)
        gradient = jax.grad(lambda *some: jnp.sin(function(*some)).sum(), tuple(range(len(floats))))
        return jax.jvp(gradient, floats, tangents)[1]

    return derivative


def jacobian(transformation):
    """Of a curved number, by the transformation, with respect to every floating array."""

    def transformed(f):
        def derivative(*arrays):
            function, floats, _ = of_floats(f, arrays)
            curved = lambda *some: jnp.sin(function(*some)).sum()  # noqa: E731
            return transformation(curved, argnums=tuple(range(len(floats))))(*floats)

        return derivative

    return transformed


TRANSFORMATIONS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: vmapped(f, 0, 0),
    "vmap of the input alone, last axis": lambda f: vmapped(f, -1, None),
    "vmap of the weights alone": lambda f: vmapped(f, None, 1),
    "checkpoint": jax.checkpoint,
    "scan": scanned,
    "grad": derived,
    "vmap of grad": lambda f: vmapped(lambda *arrays: derived(f)(*arrays)[0], 0, None),
    "jit of scan of checkpoint": lambda f: jax.jit(scanned(jax.checkpoint(f))),
    "jvp": pushed,
    "vmap of jvp": lambda f: vmapped(pushed(f), 0, None),
    "linearize": lambda f: pushed(f, by_linearize),
    "jvp of grad": pushed_gradient,
    "jacfwd": jacobian(jax.jacfwd),
    "jacrev": jacobian(jax.jacrev),
    "hessian": jacobian(jax.hessian),
}
# The samples divided among two devices, the weights on both; the gradients taken on either side of it.
SHARDED = ("shard_map of the gradient", "gradient of shard_map")
ALL = (*TRANSFORMATIONS, *SHARDED)


def applies(case: Case, name: str) -> bool:
    if "weights" in name:
        return len(case.shapes) > 1 and isinstance(case.shapes[1], tuple)
    return name not in SHARDED or any(axis is not None for axis in case.rule.batch_axes or ())


def failures(case: Case, names: Iterable[str] = ALL) -> dict[str, str]:
    """The transformations after which the rule's value or gradients, in float64 and for random cotangents, are not
    those of the plain function after the same one, with what is wrong.

    Compiling takes the time: one program does all of them, one more all that need two devices.
    """
    names = [name for name in names if applies(case, name)]
    groups = [
        ([n for n in names if n == "eager"], lambda program: program),
        ([n for n in names if n in SHARDED], _compiled),
        ([n for n in names if n not in SHARDED and n != "eager"], _compiled),
    ]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        arrays = tuple(map(jnp.asarray, draw(rng, *case.shapes)))
        noise = jnp.asarray(rng.normal(size=1 << 17))
        wrong = {}
        for group, run in groups:
            wrong |= _failures(case, group, run, arrays, noise) if group else {}
    return wrong


def _compiled(program: Callable) -> Callable:
    return lambda *given: jax.block_until_ready(jax.jit(program, compiler_options=QUICK)(*given))


def _failures(case: Case, names: list[str], run: Callable, arrays: tuple, noise: jax.Array) -> dict[str, str]:
    wrong = {}

    def program(arrays, noise):
        return {name: _both(case, name, arrays, noise) for name in names}

    try:
        results = run(program)(arrays, noise)
    except Exception as error:  # whatever a wrong rule raises belongs into the table
        if len(names) == 1:
            return {names[0]: " ".join(f"{type(error).__name__}: {error}".split())}
        for name in names:
            wrong |= _failures(case, [name], run, arrays, noise)
        return wrong
    for name, (got, wanted) in results.items():
        try:
            assert_close(got, wanted, FLOAT64)
        except AssertionError as error:
            wrong[name] = " ".join(str(error).split())
    return wrong


def _both(case: Case, name: str, arrays: tuple, noise: jax.Array) -> tuple[Any, Any]:
    """Value and gradients by hand, and those of the plain function."""
    by_hand, plain = (functools.partial(f, **case.static) for f in (case.rule, case.rule.plain))
    if name not in SHARDED:
        transformed = TRANSFORMATIONS[name]
        return tuple(_value_and_gradients(transformed(f), arrays, noise) for f in (by_hand, plain))
    wanted = _value_and_gradients(plain, arrays, noise)
    return _sharded(name, by_hand, case, arrays, wanted[0], noise), wanted


def _value_and_gradients(f: Callable, arrays: tuple, noise: jax.Array) -> tuple[Any, list]:
    y, pullback = jax.vjp(f, *arrays)
    return y, _floats(pullback(_cotangents(y, noise)))


def _floats(gradients: Iterable) -> list:
    return [g for g in gradients if g.dtype != jax.dtypes.float0]


def _cotangents(y: Any, noise: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten(y)
    assert all(i + leaf.size <= noise.size for i, leaf in enumerate(leaves))
    parts = [noise[i : i + leaf.size].reshape(leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, parts)


def _sharded(name: str, f: Callable, case: Case, arrays: tuple, y: Any, noise: jax.Array) -> tuple[Any, list]:
    specs = tuple(P() if axis is None else P("batch") for axis in case.rule.batch_axes[: len(arrays)])
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu"))
    shard_map = functools.partial(jax.shard_map, mesh=mesh)
    is_loss = y.ndim == 0
    y_spec = P() if is_loss else P("batch")

    def local(*arrays):  # a loss is the mean over the samples of all devices
        return lax.pmean(f(*arrays), "batch") if is_loss else f(*arrays)

    def pull(function, arrays, dy):
        y, pullback = jax.vjp(function, *arrays)
        return y, _floats(pullback(dy))

    if name == "gradient of shard_map":
        run = functools.partial(pull, shard_map(local, in_specs=specs, out_specs=y_spec))
    else:
        out_specs = y_spec, [s for s, a in zip(specs, arrays, strict=True) if is_float(a)]
        run = shard_map(functools.partial(pull, local), in_specs=(specs, y_spec), out_specs=out_specs)
    return run(arrays, _cotangents(y, noise))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to this file")
    arguments = parser.parse_args()
    width = max(map(len, CASES))
    print(" " * width, *(f"{i:>3}" for i in range(1, len(ALL) + 1)))
    table = {}
    for name, case in CASES.items():
        wrong = failures(case)
        table[name] = {t: wrong.get(t, "ok") if applies(case, t) else None for t in ALL}
        words = {"ok": " ok", None: "  -"}
        print(name.ljust(width), *(words.get(outcome, "NOT") for outcome in table[name].values()), flush=True)
    print(*(f"{i:>3} {t}" for i, t in enumerate(ALL, 1)), sep="\n")
    wrong = [(n, t, text) for n, row in table.items() for t, text in row.items() if text not in ("ok", None)]
    print(*(f"{name}, {t}: {text}" for name, t, text in wrong), sep="\n")
    applied = sum(text is not None for row in table.values() for text in row.values())
    print(f"{applied} pairs of {len(table)} cases and {len(ALL)} transformations, {len(wrong)} not right")
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
