"""What the arrays of a tree are called: in errors, in tables, in digests."""

from __future__ import annotations

from typing import Any

import jax


def name_of(path: Any) -> str:
    """
    >>> [name_of(path) for path, _ in jax.tree.leaves_with_path({"dense_1": {"bias": 0.0, "weights": 0.0}})]
    ['dense_1/bias', 'dense_1/weights']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")
