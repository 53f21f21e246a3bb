"""A user's own rule, named on the command line: path/to/module.py:my_rule, and arrays for it."""

from __future__ import annotations

import ast
import importlib.util
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule

LARGEST = 10**7  # elements of an array: several dozens of them are held at once, and each is looked at


def load_target(target: str) -> Rule | Layer:
    """The rule or layer NAME of the file PATH, for "PATH:NAME". The file is run, its folder importable, as by Python.

    Raises:
      ValueError: not of that form, no such file, no such name in it, something that is no Rule and no Layer; a file
        that cannot be run.
    """
    path, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f"verify: got {target!r}, required path/to/module.py:name")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"verify: {path}: no such file; required path/to/module.py:name")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"verify: {path} is no Python file; required path/to/module.py:name")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"verify: {path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        there = [n for n, value in vars(module).items() if isinstance(value, Rule | Layer)]
        raise ValueError(f"verify: {path} has no {name}; rules and layers in it: {', '.join(there) or 'none'}")
    value = getattr(module, name)
    if not isinstance(value, Rule | Layer):
        raise ValueError(f"verify: {name} of {path} is a {type(value).__name__}, required a jaxcnn.Rule or a Layer")
    return value


def make_array(shape: str, seed: int) -> np.ndarray:
    """Random values of a shape written as 2x8x8x3, or "scalar"; with :N behind it whole numbers from 0 to N - 1.

    Raises:
      ValueError: another form.

    >>> make_array("2x3", 0).shape, make_array("scalar", 0).shape, make_array("4:10", 0).dtype
    ((2, 3), (), dtype('int32'))
    """
    form = re.fullmatch(r"(scalar|\d+(?:x\d+)*)(?::(\d+))?", shape)
    if form is None or form[2] == "0":
        raise ValueError(f"--shapes: got {shape!r}, required sizes as 2x8x8x3, or scalar, :N behind it for indices")
    sizes = () if form[1] == "scalar" else tuple(map(int, form[1].split("x")))
    if math.prod(sizes) > LARGEST:
        raise ValueError(f"--shapes: got {shape!r}, {math.prod(sizes):,} elements; at most {LARGEST:,} can be verified")
    generator = np.random.default_rng(seed)
    if form[2]:
        return generator.integers(0, int(form[2]), sizes).astype(np.int32)
    return np.asarray(generator.standard_normal(sizes), np.float32)


def make_static(given: str) -> tuple[str, Any]:
    """A static argument written as name=value, the value as in Python; a bare word is a string.

    >>> make_static("stride=(2, 1)"), make_static("padding=SAME")
    (('stride', (2, 1)), ('padding', 'SAME'))
    """
    name, equals, value = given.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--static: got {given!r}, required name=value")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
