"""What a network is made of, layer by layer: shapes, parameters, work, memory, and what its backward passes compute."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxcnn.layers.layer import Layer, positive, require_layers, sizes
from jaxcnn.layers.operations import operations


class Row(NamedTuple):
    """One layer. What the layers it is made of have is in their rows and not in its own, so that columns add up."""

    path: tuple[str, ...]  # the names of the layers around it and its own, as among the parameters
    output_shape: tuple[int, ...]  # N included
    parameters: int
    operations: int
    saved_bytes: int
    rule: str  # whose backward pass it runs; "" where nothing is written above that
    derivation: str  # the comment above that backward pass


class Summary(NamedTuple):
    """The rows, the network itself first and each layer before those that it is made of; the totals."""

    rows: tuple[Row, ...]
    parameters: int
    operations: int
    saved_bytes: int  # an array that several layers keep counts once

    def __str__(self) -> str:
        lines = [("layer", "output", "parameters", "operations", "saved bytes", "backward")]
        for row in self.rows:
            name = "  " * (len(row.path) - 1) + row.path[-1]
            lines.append((name, "×".join(map(str, row.output_shape)), *_numbers(row), row.rule or "-"))
        lines.append(("total", "", *_numbers(self), ""))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = ["  ".join(_aligned(cell, w, i) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
                 for line in lines]  # fmt: skip
        table.insert(-1, "-" * max(map(len, table)))
        written = dict.fromkeys((row.rule, row.derivation) for row in self.rows if row.rule)
        passes = [f"\n{rule}\n{textwrap.indent(derivation, '  ')}" for rule, derivation in written]
        return "\n".join([*table, *passes])


def _numbers(row: Row | Summary) -> tuple[str, str, str]:
    return f"{row.parameters:,}", f"{row.operations:,}", f"{row.saved_bytes:,}"


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if 2 <= column <= 4 else cell.ljust(width)


def summary(layer: Layer, input_shape: Sequence[int], batch: int = 1) -> Summary:
    """A table of the layers of a network in training; `print` shows it. Nothing is computed: shapes alone are followed.

    Operations are those of the forward pass, by the formulas of `jaxcnn.layers.operations`: matrix products and
    convolutions exactly, a multiplication and an addition for each term, the rest as one for each element. Saved bytes
    are those of the residuals, what the forward pass keeps for the backward pass; parameters, which are there anyway,
    do not count, and in the total an array that several layers keep counts once. What a backward pass computes is the
    derivation that its author wrote above it, in the symbols of the source; "-" where there is none.

    Args:
      layer: any, a network for example; one that is made of layers is looked into where it has `Layer.rebuild`.
      input_shape: without N.
      batch: N.

    Raises:
      ValueError, TypeError: a shape or a batch of other than positive whole numbers, something that is no Layer; what
        the layers raise of a shape that does not fit.

    >>> from jaxcnn import Dense, ReLU, sequential
    >>> table = summary(sequential(Dense(3), ReLU()), (5,), batch=2)
    >>> [(row.path[-1], row.output_shape, row.parameters, row.operations) for row in table.rows]
    [('sequential', (2, 3), 0, 0), ('dense', (2, 3), 18, 66), ('relu', (2, 3), 0, 12)]
    >>> table.rows[2].derivation
    'y = x where x > 0, so g = dy/dx = 1 there; y = 0 elsewhere, so g = 0.'
    """
    return followed("summary", layer, input_shape, batch, _summary)


@dataclasses.dataclass
class Call:
    """A layer's forward pass, while all of them are traced together: one array is one object, whoever holds it."""

    path: tuple[str, ...]
    layer: Layer
    params: Any
    input: Any
    operations: int
    inner: list[Call] = dataclasses.field(default_factory=list)
    output: Any = None
    residuals: Any = None

    @property
    def backward(self) -> Callable[..., Any]:
        """The function that was written: the rule's where it has one."""
        return self.layer.backward if self.layer.rule is None else self.layer.rule.backward


T = TypeVar("T")


def followed(what: str, layer: Layer, input_shape: Sequence[int], batch: int, then: Callable[[list[Call]], T]) -> T:
    """What `then` makes of the calls of all layers in one forward pass of training, the network's own first.

    Nothing is computed: shapes alone are followed. what: who asks, for errors.
    """
    require_layers(what, [layer])
    shape = sizes(what, input_shape)
    x = jax.ShapeDtypeStruct((positive(what, "batch", batch), *shape), jnp.result_type(float))
    found = []

    def run(x):
        key = jax.random.key(0)
        params, state, _ = layer.init(key, shape)
        calls: list[Call] = []
        _watched(layer, calls, []).forward(params, state, x, train=True, key=key)
        found.append(then(calls))

    jax.eval_shape(run, x)
    return found[0]


def _watched(layer: Layer, calls: list[Call], around: list[Call]) -> Layer:
    """The layer, which notes each call of it and of the layers that it is made of. `around`: the calls under way."""
    made = layer
    if layer.rebuild is not None:
        made = layer.rebuild(*(_watched(part, calls, around) for part in layer.layers))

    def forward(params, state, x, *, train=False, key=None):
        passes = functools.partial(layer.forward, train=train)
        count = operations(jax.make_jaxpr(lambda *given: passes(*given[:3], key=given[3]))(params, state, x, key))
        call = Call(_path(layer, params, around), layer, params, x, count)
        calls.append(call)
        if around:
            around[-1].inner.append(call)
        around.append(call)
        call.output, new_state, call.residuals = made.forward(params, state, x, train=train, key=key)
        around.pop()
        return call.output, new_state, call.residuals

    return dataclasses.replace(made, forward=forward)


def _path(layer: Layer, params: Any, around: list[Call]) -> tuple[str, ...]:
    """By the name that its parameters have among those of the layer around it; by its own where it has none."""
    if not around:
        return (layer.name,)
    outer = around[-1]
    names = [n for n, p in outer.params.items() if p is params]
    return *outer.path, *(names or [layer.name])[:1]


def _summary(calls: list[Call]) -> Summary:
    parameters = {id(p) for p in jax.tree.leaves(calls[0].params)}

    def kept(call: Call) -> dict[int, int]:
        """The bytes of each array among the residuals."""
        leaves = {id(r): r for r in jax.tree.leaves(call.residuals) if id(r) not in parameters}
        return {i: math.prod(r.shape) * r.dtype.itemsize for i, r in leaves.items()}

    def row(call: Call) -> Row:
        theirs = set().union(*map(kept, call.inner))
        derivation = derivation_of(call.backward)
        return Row(
            call.path,
            call.output.shape,
            _size(call.params) - sum(_size(c.params) for c in call.inner),
            call.operations - sum(c.operations for c in call.inner),
            sum(size for i, size in kept(call).items() if i not in theirs),
            title_of(call.layer) if derivation else "",
            derivation,
        )

    network = calls[0]
    rows, saved = tuple(map(row, calls)), sum(kept(network).values())
    return Summary(rows, _size(network.params), network.operations, saved)


def _size(params: Any) -> int:
    return sum(p.size for p in jax.tree.leaves(params))


def title_of(layer: Layer) -> str:
    """Of the rule, or of the function that makes the layer, whose backward pass is written inside of it."""
    return layer.rule.name if layer.rule is not None else layer.backward.__qualname__.split(".")[0]


def derivation_of(backward: Callable[..., Any]) -> str:
    """The comment directly above a function, "" where there is none or no source is at hand."""
    lines = (inspect.getcomments(inspect.unwrap(backward)) or "").splitlines()
    return "\n".join(line.removeprefix("#").removeprefix(" ").rstrip() for line in lines)
