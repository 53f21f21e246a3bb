"""For the tests of the experiments: their folder, what its README says, and each one's run.py and result.json."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "experiments"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


@contextmanager
def imported(*names: str) -> Iterator[None]:
    """They import what they share from the folder above, and what is in their own: `names` are forgotten at the end."""
    own = ["common", *(path.stem for name in names for path in (FOLDER / name).glob("*.py"))]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.syspath_prepend(FOLDER / name)
        patch.syspath_prepend(FOLDER)
        for name in own:
            patch.delitem(sys.modules, name, raising=False)
        yield
        for name in own:
            sys.modules.pop(name, None)


def experiment(name: str) -> ModuleType:
    """Its run.py; under a name of its own, for there are many."""
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", FOLDER / name / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result_of(name: str) -> dict:
    return json.loads((FOLDER / name / "result.json").read_text(encoding="utf-8"))
