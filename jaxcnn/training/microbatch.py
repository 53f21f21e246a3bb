"""How many images pass through the network at a time, and the sum over all parts."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.layers import Layer
from jaxcnn.rule import equally_varying
from jaxcnn.rules.window import is_whole

AUTO = "auto"
SAVED = 2 * 2**20  # bytes of residuals: as much as stays in a core's cache between the two passes, measured
FEW = 8  # images: of fewer, matrix products are too small


def check(function: str, microbatch: Any) -> None:
    """Raises TypeError or ValueError for what is no number of images, "auto" or None."""
    if microbatch is None or (isinstance(microbatch, str) and microbatch == AUTO):
        return
    if not is_whole(microbatch):
        raise TypeError(f'{function}: microbatch must be a whole number, "auto" or None, got {microbatch!r}')
    if int(microbatch) < 1:
        raise ValueError(f"{function}: microbatch must be at least 1, got {microbatch}")


def automatic(network: Layer, params: Any, state: Any, images: Any, key: Any) -> int:
    """How many of a device's images pass at a time so that their residuals stay in the cache.

    As many as that allows, or so few less, down to half, that the parts are equal. All images where a layer looks at
    samples together, or does not say that it does not.
    """
    batch = images.shape[0]
    if not independent(network) or batch <= FEW:
        return batch
    one, two = (_saved_bytes(network, params, state, images, key, samples) for samples in (1, 2))
    most = min(batch, max(FEW, SAVED // max(two - one, 1)))
    equal = [size for size in range(max(FEW, most // 2), most + 1) if batch % size == 0]
    return max(equal, default=most)


def sum_over_parts(part, size, net_state, images, labels, key):
    """`part` for each micro-batch in turn: the memory of one, the sum of all.

    All pass in a scan; where the images do not divide into parts of this size, a smaller one passes before it.
    """
    count, rest = divmod(images.shape[0], size)

    def add(carry, item):
        net_state, sums = carry
        i, images, labels = item
        net_state, more = part(net_state, images, labels, jax.random.fold_in(key, i))
        return (net_state, jax.tree.map(jnp.add, sums, more)), None

    shapes = jax.eval_shape(part, net_state, images[:size], labels[:size], key)[1]
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    zeros, _ = equally_varying((zeros, images))
    carry = net_state, zeros
    if rest:  # first: the scan needs its sums, so that XLA does not keep the memory of both at once
        carry, _ = add(carry, (count, images[:rest], labels[:rest]))
    cut = [a[rest:].reshape(count, size, *a.shape[1:]) for a in (images, labels)]
    return lax.scan(add, carry, (jnp.arange(count), *cut))[0]


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
