"""Layers that scale channels: by a trained factor, or by one that the image itself decides on."""

from __future__ import annotations

from jax.nn import initializers

from jaxcnn.layers.basic import Dense, ReLU, Sigmoid
from jaxcnn.layers.compose import parallel, sequential
from jaxcnn.layers.layer import Identity, Layer, from_rule, positive
from jaxcnn.layers.pooling import GlobalAvgPool
from jaxcnn.rule import Rule
from jaxcnn.rules.join import scale_channels


def LayerScale(initial: float = 1e-6, *, rule: Rule = scale_channels, name: str = "layer_scale") -> Layer:
    """A trained factor for each channel, (N, ..., C) -> (N, ..., C) (Touvron et al. 2021).

    Last in a residual block's layer; with small initial factors a deep network starts near the identity.

    Parameters: "scale" (C,), `initial` at first.

    >>> import jax
    >>> LayerScale(0.5).init(jax.random.key(0), (8, 8, 2))[0]
    {'scale': Array([0.5, 0.5], dtype=float32)}
    """

    def scale(key, shape):
        if not shape:
            raise ValueError("LayerScale: input_shape must be (..., C), without N, got ()")
        return initializers.constant(initial)(key, shape[-1:])

    return from_rule(rule, name, {"scale": scale})


def SqueezeExcitation(
    channels: int, reduction: int = 16, *, rule: Rule = scale_channels, name: str = "squeeze_excitation"
) -> Layer:
    """Each channel of each sample times a factor in (0, 1), which the means of all its channels decide on:

        x · sigmoid(W₂ relu(W₁ mean(x) + b₁) + b₂).

    Parameters: "gate", of two dense layers: "squeeze" of channels / reduction units, at least one, and "excite".

    Args:
      channels: of N×H×W×C, the C. reduction: how many times fewer the hidden units are.

    Raises:
      ValueError, TypeError: numbers that are not whole and positive; at init, another C.

    Source: Hu et al., "Squeeze-and-excitation networks", CVPR 2018, section 3.

    >>> import jax
    >>> params, _, shape = SqueezeExcitation(32, 8).init(jax.random.key(0), (6, 6, 32))
    >>> shape, params["gate"]["squeeze"]["weights"].shape
    ((6, 6, 32), (32, 4))
    """
    channels, reduction = (
        positive("SqueezeExcitation", n, v) for n, v in (("channels", channels), ("reduction", reduction))
    )
    gate = sequential(
        GlobalAvgPool(),
        Dense(max(channels // reduction, 1), name="squeeze"), ReLU(),
        Dense(channels, name="excite"), Sigmoid(),
    )  # fmt: skip
    # A product, whose two factors both depend on x: dx is the sum of what goes through each.
    return parallel(Identity(), gate, join=rule, names=("x", "gate"), name=name)
