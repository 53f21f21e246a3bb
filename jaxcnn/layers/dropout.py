"""Layers that leave values out at random, in training alone."""

from __future__ import annotations

from jaxcnn.layers.layer import Identity, Layer, by_mode, from_rule
from jaxcnn.rule import Rule
from jaxcnn.rules.dropout import dropout, require_rate


def Dropout(rate: float, *, rule: Rule = dropout, name: str = "dropout") -> Layer:
    """Dropout: in training each value is left out with probability `rate`; outside of it x goes through. No parameters.

    In training the forward pass needs a key, unless the rate is 0.

    Raises:
      ValueError: a rate outside [0, 1); in training, no key. TypeError: a rate that is no number.

    >>> import jax, jax.numpy as jnp
    >>> layer = Dropout(0.5)
    >>> layer.forward({}, {}, jnp.ones((1, 4)), train=True, key=jax.random.key(0))[0]
    Array([[0., 0., 2., 2.]], dtype=float32)
    >>> layer.forward({}, {}, jnp.ones((1, 4)))[0]
    Array([[1., 1., 1., 1.]], dtype=float32)
    """
    return _dropout("Dropout", rate, rule, name)


def SpatialDropout(rate: float, *, rule: Rule = dropout, name: str = "spatial_dropout") -> Layer:
    """Dropout of whole channels of N×H×W×C (Tompson et al. 2015): neighbouring places say much the same.

    Otherwise as `Dropout`.
    """
    return _dropout("SpatialDropout", rate, rule, name, images=True, broadcast=(1, 2))


def StochasticDepth(rate: float, *, rule: Rule = dropout, name: str = "stochastic_depth") -> Layer:
    """Dropout of whole samples of N×H×W×C (Huang et al. 2016): last in a residual block's layer, it makes the block
    the identity for some samples.

    Otherwise as `Dropout`.
    """
    return _dropout("StochasticDepth", rate, rule, name, images=True, broadcast=(1, 2, 3))


def _dropout(function: str, rate: float, rule: Rule, name: str, images: bool = False, **static) -> Layer:
    require_rate(function, rate)
    through = Identity(name=name)
    if rate == 0:
        return through
    return by_mode(from_rule(rule, name, draws=True, images=images, rate=rate, **static), through)
