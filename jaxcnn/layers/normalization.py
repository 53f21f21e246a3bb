"""Layers of normalisation, each with a scale and a shift a channel."""

from __future__ import annotations

from jax.nn import initializers

from jaxcnn.layers.basic import Initializer
from jaxcnn.layers.layer import Layer, by_mode, from_rule
from jaxcnn.rule import Rule
from jaxcnn.rules.dtypes import require_number
from jaxcnn.rules.normalization import (
    batch_norm,
    batch_statistics,
    frozen_batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)


def BatchNorm(
    *,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    scale_init: Initializer = initializers.ones,
    shift_init: Initializer = initializers.zeros,
    rule: Rule = batch_norm,
    frozen_rule: Rule = frozen_batch_norm,
    name: str = "batch_norm",
) -> Layer:
    """Batch normalisation, (N, ..., C) -> (N, ..., C).

    In training by the batch's own statistics, through which the gradient goes: `batch_norm`. Under `jax.shard_map`, so
    in a training step on several devices, they are those of the whole batch, unless `check_vma=False` is given: then,
    and under `jax.pmap`, each device's own. Outside training by the running statistics: `frozen_batch_norm`.

    Parameters: "scale" and "shift", (C,) each. State: "mean" and "variance", (C,) each, float32 or wider whatever the
    dtype of x, 0 and 1 at first. Each training pass makes

        running = momentum · running + (1 - momentum) · the batch's,

    the variance the biased one, as in Flax and Keras: it is the one the network is trained with. (PyTorch's running
    variance is n / (n - 1) times that, and its momentum is 1 minus this one.)

    Raises:
      ValueError: a momentum outside [0, 1]. TypeError: a momentum that is no number.

    >>> import jax, jax.numpy as jnp
    >>> layer = BatchNorm()
    >>> params, state, _ = layer.init(jax.random.key(0), (1,))
    >>> y, state, _ = layer.forward(params, state, jnp.array([[1.0], [3.0]]), train=True)
    >>> y.round(3).tolist(), {name: round(float(value[0]), 3) for name, value in state.items()}
    ([[-1.0], [1.0]], {'mean': 0.2, 'variance': 1.0})
    """
    require_number("BatchNorm", momentum=momentum)
    if not 0 <= momentum <= 1:
        raise ValueError(f"BatchNorm: momentum must be from 0 to 1, got {momentum}")
    momentum = float(momentum)  # a number of NumPy would widen the state

    def running(state, x):
        batch = dict(zip(("mean", "variance"), batch_statistics(x), strict=True))
        return {n: momentum * s + (1 - momentum) * batch[n].astype(s.dtype) for n, s in state.items()}

    parameters = _by_channel("BatchNorm", scale=scale_init, shift=shift_init)
    state = _by_channel("BatchNorm", mean=initializers.zeros, variance=initializers.ones)
    return by_mode(
        from_rule(rule, name, parameters, update=running, epsilon=epsilon),
        from_rule(frozen_rule, name, parameters, state=state, epsilon=epsilon),
    )


def LayerNorm(
    *,
    epsilon: float = 1e-6,
    scale_init: Initializer = initializers.ones,
    shift_init: Initializer = initializers.zeros,
    rule: Rule = layer_norm,
    name: str = "layer_norm",
) -> Layer:
    """Layer normalisation, (N, ..., C) -> (N, ..., C), each place over its channels.

    Parameters: "scale" and "shift", (C,) each.
    """
    return from_rule(rule, name, _by_channel("LayerNorm", scale=scale_init, shift=shift_init), epsilon=epsilon)


def GroupNorm(
    groups: int,
    *,
    epsilon: float = 1e-6,
    scale_init: Initializer = initializers.ones,
    shift_init: Initializer = initializers.zeros,
    rule: Rule = group_norm,
    name: str = "group_norm",
) -> Layer:
    """Group normalisation, N×H×W×C -> N×H×W×C; `groups` is that of `group_norm`.

    Parameters: "scale" and "shift", (C,) each.

    >>> import jax
    >>> GroupNorm(4).init(jax.random.key(0), (8, 8, 32))[2]
    (8, 8, 32)
    """
    parameters = _by_channel("GroupNorm", scale=scale_init, shift=shift_init)
    return from_rule(rule, name, parameters, images=True, groups=groups, epsilon=epsilon)


def InstanceNorm(
    *,
    epsilon: float = 1e-6,
    scale_init: Initializer = initializers.ones,
    shift_init: Initializer = initializers.zeros,
    rule: Rule = instance_norm,
    name: str = "instance_norm",
) -> Layer:
    """Instance normalisation, N×H×W×C -> N×H×W×C, each channel of a sample over its places.

    Parameters: "scale" and "shift", (C,) each.
    """
    parameters = _by_channel("InstanceNorm", scale=scale_init, shift=shift_init)
    return from_rule(rule, name, parameters, images=True, epsilon=epsilon)


def RMSNorm(
    *,
    epsilon: float = 1e-6,
    scale_init: Initializer = initializers.ones,
    rule: Rule = rms_norm,
    name: str = "rms_norm",
) -> Layer:
    """Root-mean-square normalisation, (N, ..., C) -> (N, ..., C). Parameters: "scale" (C,)."""
    return from_rule(rule, name, _by_channel("RMSNorm", scale=scale_init), epsilon=epsilon)


def _by_channel(function: str, **initial: Initializer) -> dict:
    """One value a channel of each."""

    def maker(initialise):
        def make(key, shape):
            if not shape:
                raise ValueError(f"{function}: input_shape must be (..., C), without N, got ()")
            return initialise(key, shape[-1:])

        return make

    return {name: maker(initialise) for name, initialise in initial.items()}
