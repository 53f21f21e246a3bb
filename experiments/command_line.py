"""The options that every experiment has: `--quick` and `--out`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path


def parser_of(doc: str, quick: str, files: str) -> argparse.ArgumentParser:
    """`quick` says how small a run `--quick` makes, `files` what is written."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=quick)
    where = f"for {files}; by default the experiment's own folder, with --quick a temporary one"
    parser.add_argument("--out", type=Path, metavar="DIR", help=where)
    return parser


def parsed(parser: argparse.ArgumentParser, script: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    """With `command`, which stands in the record. A folder that takes no file is an error before anything is run."""
    options = parser.parse_args(arguments)
    if options.out is None and options.quick:  # the committed record is of the whole run
        options.out = Path(tempfile.mkdtemp(prefix="jaxcnn-quick-"))
        print(f"--quick without --out: what is written goes to {options.out}")
    options.out = options.out or Path(script).parent
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.out):
            pass
    except OSError as error:
        parser.error(f"--out: nothing can be written to {options.out}: {error.strerror}")
    folder, name = Path(script).parts[-2:]
    options.command = f"python experiments/{folder}/{name}" + (" --quick" if options.quick else "")
    return options
