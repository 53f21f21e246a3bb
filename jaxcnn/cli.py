"""The command line: arguments -> the functions of the library. Only it and its commands, `cli_*.py`, print."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Union

import tyro

from jaxcnn.cli_bench import Bench, bench
from jaxcnn.cli_inference import Export, Predict, export, predict
from jaxcnn.cli_report import Report, report
from jaxcnn.cli_summary import Explain, Summarize, explain, summarize
from jaxcnn.cli_train import Train, train
from jaxcnn.cli_verify import Verify, verify
from jaxcnn.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 a check failed or the run diverged, 2 bad arguments
    or data, 130 and 143 after an interrupt.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if list(arguments) == ["--version"]:
        print(__version__)
        return 0
    if "--tyro-print-completion" in arguments:
        return _completion(arguments)
    try:
        command = _parse(arguments)
        run = dict(COMMANDS.values())[type(command)]
        return run(command, _named(arguments)) if run is train else run(command)
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


COMMANDS: dict[str, tuple[type, Callable[..., int]]] = {
    "train": (Train, train),
    "report": (Report, report),
    "predict": (Predict, predict),
    "export": (Export, export),
    "verify": (Verify, verify),
    "explain": (Explain, explain),
    "summary": (Summarize, summarize),
    "bench": (Bench, bench),
}


def _completion(arguments: Sequence[str]) -> int:
    """tyro's script for a shell, each description in one line; for paths the shell's own completion besides."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = _status(arguments)
    lines = (
        line.replace("\\n", " ") if line.startswith("COMPLETION_SPEC") else line
        for line in said.getvalue().splitlines()
    )
    print("\n".join(lines).replace("complete -F ", "complete -o default -F "))
    return status


def _status(arguments: Sequence[str]) -> int:
    """Of what tyro does itself."""
    try:
        _parse(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _parse(arguments: Sequence[str]) -> Any:
    """Raises SystemExit, with one line on standard error for what is wrong."""
    commands = Union[  # noqa: UP007 - made of a table
        tuple(Annotated[made, tyro.conf.subcommand(name, prefix_name=False)] for name, (made, _) in COMMANDS.items())
    ]
    first = arguments[0] if arguments else ""
    if first not in COMMANDS and re.match(r"\w", first):
        meant = difflib.get_close_matches(first, COMMANDS, 1)
        hint = f"did you mean {meant[0]}? " if meant else ""
        raise ValueError(f"got the command {first}; {hint}the commands are {', '.join(COMMANDS)}")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                commands,  # pyright: ignore[reportArgumentType, reportCallIssue]
                prog="jaxcnn",
                description="Convolutional networks with the backward pass written by hand.",
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
                compact_help=True,
            )
    except SystemExit as end:
        if end.code:
            _complain(_one_line(said.getvalue(), f"jaxcnn {first}" if first in COMMANDS else "jaxcnn"))
        raise


def _named(arguments: Sequence[str]) -> set[str]:
    """The options among the arguments, as the fields of their commands are called."""
    options = (argument.partition("=")[0] for argument in arguments if argument.startswith("--"))
    return {option[2:].replace("-", "_") for option in options}


def _one_line(box: str, command: str) -> str:
    """tyro's framed paragraphs as a sentence: the first one, the option that may have been meant, and whose help."""
    rule = r"(?m)^(?:╭.*|╰.*|[│ ]*[─-]{3,}[│ ]*)$"  # where standard output is no UTF-8, the frame is of spaces and -
    _, first, *more = (" ".join(part.replace("│", " ").split()) for part in re.split(rule, box))
    meant = re.findall(r"--[\w-]+", more[0]) if "meant" in more[0] else []
    hint = f"did you mean {meant[0]}? " if meant else ""
    if (choice := re.search(r"invalid choice '(.*?)'.*\((.*)\)", first)) and (
        near := difflib.get_close_matches(choice[1], re.findall(r"'(.*?)'", choice[2]), 1)
    ):
        hint = f"did you mean {near[0]}? "
    first = _of_a_number(first.split(" Got errors:")[0].rstrip("."))
    return f"{first}; {hint}see {command} --help"


def _of_a_number(said: str) -> str:
    """What tyro says of a value that is no number, as the library says it; else what it says."""
    parts = re.fullmatch(r"Error parsing (--[\w-]+): ([^']*)'(.*)'\]?", said)
    if parts is None:
        return said
    option, why, values = parts.groups()
    required = "whole numbers" if "[INT" in why else "a whole number" if "INT" in why or "int()" in why else "a number"
    got = values.replace("', '", " ")
    return f"{option}: got {got}, required {required}"
