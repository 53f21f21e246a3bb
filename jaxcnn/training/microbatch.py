"""How many images pass through the network at a time."""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxcnn.layers import Layer
from jaxcnn.rules.window import is_whole

AUTO = "auto"
SAVED = 2 * 2**20  # bytes of residuals: as much as stays in a core's cache between the two passes, measured
FEW = 8  # images: of fewer, matrix products are too small


def check(function: str, microbatch: Any) -> None:
    """Raises TypeError or ValueError for what is no number of images, "auto" or None."""
    if microbatch is None or microbatch == AUTO:
        return
    if not is_whole(microbatch):
        raise TypeError(f'{function}: microbatch must be a whole number, "auto" or None, got {microbatch!r}')
    if microbatch < 1:
        raise ValueError(f"{function}: microbatch must be at least 1, got {microbatch}")


def parts(function: str, batch: int, microbatch: int | None) -> int:
    """How many micro-batches a device's images make. Raises ValueError where they do not divide."""
    if microbatch is None or microbatch >= batch:
        return 1
    if batch % microbatch:
        raise ValueError(f"{function}: a device's {batch} images do not divide into micro-batches of {microbatch}")
    return batch // microbatch


def automatic(network: Layer, params: Any, state: Any, images: Any, key: Any) -> int:
    """The largest part of a device's images whose residuals stay in the cache, a divisor of their number.

    All of them where a layer looks at samples together, or does not say that it does not.
    """
    batch = images.shape[0]
    if not independent(network) or batch <= FEW:
        return batch
    one, two = (_saved_bytes(network, params, state, images, key, samples) for samples in (1, 2))
    divisors = [d for d in range(FEW, batch + 1) if batch % d == 0]
    return max([d for d in divisors if d * (two - one) <= SAVED], default=min(divisors))


def independent(layer: Layer) -> bool:
    """Whether each sample passes through the layer by itself, as far as its rules declare it (`Rule.batch_axes`)."""
    if layer.layers:
        return all(map(independent, layer.layers))
    return layer.rule is not None and (layer.rule.batch_axes or (None,))[0] is not None


def _saved_bytes(network: Layer, params: Any, state: Any, images: Any, key: Any, samples: int) -> int:
    """Of what the forward pass keeps of so many images; an array that several layers keep counts once."""

    def residuals(params, state, images, key):
        return network.forward(params, state, images, train=True, key=key)[2]

    some = jax.ShapeDtypeStruct((samples, *images.shape[1:]), images.dtype)
    kept = {id(v): v.aval for v in jax.make_jaxpr(residuals)(params, state, some, key).jaxpr.outvars}
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in kept.values())
