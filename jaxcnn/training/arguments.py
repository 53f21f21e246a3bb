"""What a training step is given, checked: errors name the function, the argument, what it got and what it takes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule, as_array
from jaxcnn.rules.window import is_whole


def require_parts(function: str, network, loss, optimizer, augment, skip_nonfinite, backward, passes) -> None:
    """Raises TypeError or ValueError for what no step can be made of; `passes` are the backward passes by name."""
    if not isinstance(network, Layer):
        raise TypeError(f"{function}: network must be a jaxcnn.Layer, got {type(network).__name__}")
    if backward not in passes:
        raise ValueError(f"{function}: backward must be one of {', '.join(passes)}, got {backward!r}")
    if not isinstance(loss, Rule):
        raise TypeError(f"{function}: loss must be a jaxcnn.Rule of (logits, labels), got {type(loss).__name__}")
    if not hasattr(optimizer, "update"):
        raise TypeError(f"{function}: optimizer must be an optax optimizer, made by a call as optax.adam(1e-3)")
    if not (augment is None or callable(augment)):
        raise TypeError(f"{function}: augment must be a function of (key, images), got {type(augment).__name__}")
    if skip_nonfinite is not None and not is_whole(skip_nonfinite):
        raise TypeError(f"{function}: skip_nonfinite must be a whole number or None, got {skip_nonfinite!r}")
    if skip_nonfinite is not None and skip_nonfinite < 0:
        raise ValueError(f"{function}: skip_nonfinite must be at least 0, got {skip_nonfinite}")


def require_one_seed(function: str, state: Any) -> None:
    """Raises ValueError for what `train_seeds` takes and returns."""
    if shape := np.shape(state.step):
        raise ValueError(
            f"{function}: state must be of one seed, got states of {shape[0]}; take one of them, "
            "jax.tree.map(lambda leaf: leaf[0], states)"
        )


def as_arrays(
    function: str, specs: dict[str, PartitionSpec], devices: int, data: tuple[Any, ...]
) -> tuple[jax.Array, ...]:
    """The data as arrays, each with the axis that the devices share, which divides by their number.

    Raises:
      TypeError: no arrays, or another number of them. ValueError: axes missing, a batch that does not divide, images
        and labels of different number, integers that int32 cannot hold.
    """
    if len(data) != len(specs):
        raise TypeError(f"{function}: takes a state and {', '.join(specs)}, got {len(data)} arrays")
    arrays = {}
    for (argument, spec), value in zip(specs.items(), data, strict=True):
        array = as_array(function, argument, value)
        if array is None:
            raise TypeError(f"{function}: {argument} must be an array, got NoneType")
        axis = max(0, len(spec) - 1)  # the sharded axis is the spec's last
        if array.ndim <= axis:
            what = f"the {'batch' if len(spec) else 'samples'} on axis {axis}"
            raise ValueError(f"{function}: {argument} must have {what}, got shape {array.shape}")
        if len(spec) and array.shape[axis] % devices:
            raise ValueError(
                f"{function}: a batch of {array.shape[axis]} does not divide by {devices} devices; take a multiple of "
                f"{devices}, or a mesh of fewer devices"
            )
        arrays[argument] = array
    images, labels = len(arrays["images"]), len(arrays["labels"])
    if images != labels:
        raise ValueError(f"{function}: images and labels must be as many, got {images} and {labels}")
    return tuple(arrays.values())
