"""Arrays of a tree on the host: as NumPy, back on the device, and a digest of them."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.training.names import name_of


def sha256_of(tree: Any) -> Any:
    """A hash of all arrays: their names, dtypes, shapes and bytes, in the order of the names."""
    named = [(name_of(path), np.asarray(leaf)) for path, leaf in jax.tree.leaves_with_path(tree)]
    sha256 = hashlib.sha256()
    for name, array in sorted(named, key=lambda pair: pair[0]):
        sha256.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha256.update(array.tobytes())
    return sha256


def on_host(tree: Any) -> Any:
    """Copies, as NumPy: on a CPU a view would change when the step donates its state. Keys as their data; of what
    several processes hold this one's copy.
    """

    def copy(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = leaf.addressable_data(0)
        return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)

    return jax.tree.map(copy, tree)


def on_device(like: Any, tree: Any) -> Any:
    """What `on_host` made, back: keys where `like` has keys."""

    def back(leaf, kept):
        return jax.random.wrap_key_data(jnp.asarray(kept)) if _is_key(leaf) else jnp.asarray(kept)

    return jax.tree.map(back, like, tree)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
