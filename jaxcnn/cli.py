"""The command line: arguments -> the functions of the library. Only it and its commands, `cli_*.py`, print."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxcnn.cli_bench import Bench, bench
from jaxcnn.cli_report import Report, report
from jaxcnn.cli_train import Train, train
from jaxcnn.cli_verify import Verify, verify
from jaxcnn.version import __version__


@dataclasses.dataclass(frozen=True)
class Summarize:
    """Show the layers of a network: shapes, parameters, operations, memory, and what each backward pass computes."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")]
    """A network of jaxcnn.models: source, lenet5, ..."""
    input: Annotated[str, tyro.conf.arg(metavar="HxWxC", help_behavior_hint="")]
    """The size of one image: 32x32x3."""
    batch_size: int = 1
    """Images."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 a check failed or the run diverged, 2 bad arguments
    or data, 130 and 143 after an interrupt.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(__version__)
        return 0
    try:
        match _parse(arguments):
            case Train() as command:
                return train(command, _named(arguments))
            case Verify() as command:
                return verify(command)
            case Bench() as command:
                return bench(command)
            case Summarize() as command:
                return _summarize(command)
            case Report() as command:
                return report(command)
    except SystemExit as end:  # --help, and what _parse refuses
        return int(end.code or 0)
    except BrokenPipeError:  # the reader has seen enough
        os._exit(141)
    except (ValueError, OSError) as error:  # of the arguments or the data; anything else is a fault of ours
        return _complain(" ".join(str(error).split()))
    except KeyboardInterrupt:
        return 130


def _complain(message: str) -> int:
    print(f"jaxcnn: {message}", file=sys.stderr)
    return 2


def _parse(arguments: Sequence[str]) -> Train | Verify | Bench | Summarize | Report:
    """Raises SystemExit, with one line on standard error for what is wrong."""
    commands = (
        Annotated[Train, tyro.conf.subcommand("train", prefix_name=False)]
        | Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)]
        | Annotated[Bench, tyro.conf.subcommand("bench", prefix_name=False)]
        | Annotated[Summarize, tyro.conf.subcommand("summary", prefix_name=False)]
        | Annotated[Report, tyro.conf.subcommand("report", prefix_name=False)]
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                commands,  # pyright: ignore[reportArgumentType]
                prog="jaxcnn",
                description="Convolutional networks with the backward pass written by hand.",
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if end.code:
            _complain(_one_line(said.getvalue()))
        raise


def _named(arguments: Sequence[str]) -> set[str]:
    """The options among the arguments, as the fields of their commands are called."""
    options = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    return {option[2:].replace("-", "_") for option in options}


def _one_line(box: str) -> str:
    """tyro's framed paragraphs as a sentence: the first one, and the option that may have been meant."""
    rule = r"(?m)^(?:╭.*|╰.*|[│ ]*[─-]{3,}[│ ]*)$"  # where standard output is no UTF-8, the frame is of spaces and -
    _, first, *more = (" ".join(part.replace("│", " ").split()) for part in re.split(rule, box))
    meant = re.findall(r"--[\w-]+", more[0]) if "meant" in more[0] else []
    hint = f"did you mean {meant[0]}? " if meant else ""
    first = _of_a_number(first.split(" Got errors:")[0].rstrip("."))
    return f"{first}; {hint}see jaxcnn --help"


def _of_a_number(said: str) -> str:
    """What tyro says of a value that is no number, as the library says it; else what it says."""
    parts = re.fullmatch(r"Error parsing (--[\w-]+): ([^']*)'(.*)'\]?", said)
    if parts is None:
        return said
    option, why, values = parts.groups()
    required = "whole numbers" if "[INT" in why else "a whole number" if "INT" in why or "int()" in why else "a number"
    got = values.replace("', '", " ")
    return f"{option}: got {got}, required {required}"


def _summarize(arguments: Summarize) -> int:
    import difflib
    import inspect

    from jaxcnn import models, summary

    name, functions = arguments.model, inspect.getmembers(models, inspect.isfunction)
    names = [n for n, f in functions if f.__module__ == models.__name__ and not n.startswith("_")]
    if name not in names:
        meant = difflib.get_close_matches(name, names, 1, 0.5)
        hint = f"did you mean {meant[0]}? " if meant else ""
        raise ValueError(f"summary: got the model {name}; {hint}the models are {', '.join(names)}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", arguments.input):
        raise ValueError(f"--input: got {arguments.input!r}, required the size of one image as 32x32x3")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, required at least 1")
    shape = tuple(map(int, arguments.input.split("x")))
    try:
        print(summary(getattr(models, name)(), shape, arguments.batch_size))
    except (TypeError, ValueError) as error:  # what a layer says of a shape that it does not take
        raise ValueError(f"--input {arguments.input}: not for {name}: {error}") from error
    return 0
