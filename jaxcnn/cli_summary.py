"""`jaxcnn summary` and `jaxcnn explain`: their arguments, and what they print."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxcnn.files import require_writable

if TYPE_CHECKING:
    from jaxcnn.layers import Layer

_MODEL = tyro.conf.arg(metavar="MODEL", help_behavior_hint="")
_SIZE = tyro.conf.arg(metavar="HxWxC", help_behavior_hint="")
_FILE = tyro.conf.arg(metavar="FILE", help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Summarize:
    """Show the layers of a network: shapes, parameters, operations, memory, and what each backward pass computes.

    jaxcnn summary lenet5 --input 28x28x1 --batch-size 32
    """

    model: Annotated[str, tyro.conf.Positional, _MODEL]
    """A network of jaxcnn.models: source, lenet5, ..."""
    input: Annotated[str, _SIZE]
    """The size of one image: 32x32x3."""
    batch_size: int = 1
    """Images."""


@dataclasses.dataclass(frozen=True)
class Explain:
    """Explain the backward pass of a network, from the loss to the first layer: shapes, formulas, what was saved, code.

    jaxcnn explain source --input 8x8x1 --html source.html
    """

    model: Annotated[str, tyro.conf.Positional, _MODEL]
    """A network of jaxcnn.models: source, lenet5, ..."""
    input: Annotated[str, _SIZE]
    """The size of one image: 32x32x3."""
    batch_size: int = 1
    """Images."""
    html: Annotated[Path | None, _FILE] = None
    """Write it as a page to this file, with the code, in place of printing it."""


def summarize(arguments: Summarize) -> int:
    """Prints the summary; returns the exit status."""
    from jaxcnn import summary

    network, shape = _network("summary", arguments), _shape(arguments)
    try:
        print(summary(network, shape, arguments.batch_size))
    except (TypeError, ValueError) as error:  # what a layer says of a shape that it does not take
        raise ValueError(f"--input {arguments.input}: not for {arguments.model}: {error}") from error
    return 0


def explain(arguments: Explain) -> int:
    """Prints the explanation, or writes the page; returns the exit status."""
    import jaxcnn

    network, shape = _network("explain", arguments), _shape(arguments)
    try:
        explanation = jaxcnn.explain(network, shape, arguments.batch_size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--input {arguments.input}: not for {arguments.model}: {error}") from error
    if arguments.html is None:
        print(explanation)
        return 0
    require_writable("--html", arguments.html)
    arguments.html.write_text(explanation.html(), encoding="utf-8")
    print(f"{arguments.html}: {len(explanation.steps)} steps")
    return 0


def _network(command: str, arguments: Summarize | Explain) -> Layer:
    import difflib
    import inspect

    from jaxcnn import models

    name, functions = arguments.model, inspect.getmembers(models, inspect.isfunction)
    names = [n for n, f in functions if f.__module__ == models.__name__ and not n.startswith("_")]
    if name not in names:
        meant = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean {meant[0]}? " if meant else ""
        raise ValueError(f"{command}: got the model {name}; {hint}the models are {', '.join(names)}")
    return getattr(models, name)()


def _shape(arguments: Summarize | Explain) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", arguments.input):
        raise ValueError(f"--input: got {arguments.input!r}, required the size of one image as 32x32x3")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, required at least 1")
    return tuple(map(int, arguments.input.split("x")))
