"""Layers that pool: by the mean, over the whole image, to a given size."""

from __future__ import annotations

from jaxcnn.layers.layer import Layer, from_rule
from jaxcnn.rule import Rule
from jaxcnn.rules.average_pooling import adaptive_avg_pool, avg_pool, global_avg_pool, global_max_pool


def AvgPool(
    window: int | tuple[int, int] = 2,
    *,
    stride: int | tuple[int, int] | None = None,
    padding: str | tuple = "VALID",
    count_padding: bool = False,
    rule: Rule = avg_pool,
    name: str = "avg_pool",
) -> Layer:
    """Average pooling; the arguments are those of `avg_pool`. No parameters."""
    return from_rule(
        rule, name, images=True, window=window, stride=stride, padding=padding, count_padding=count_padding
    )


def GlobalAvgPool(*, rule: Rule = global_avg_pool, name: str = "global_avg_pool") -> Layer:
    """The mean of each channel, N×H×W×C -> N×C. No parameters.

    >>> import jax
    >>> GlobalAvgPool().init(jax.random.key(0), (7, 7, 64))[2]
    (64,)
    """
    return from_rule(rule, name, images=True)


def GlobalMaxPool(*, ties: str = "first", rule: Rule = global_max_pool, name: str = "global_max_pool") -> Layer:
    """The maximum of each channel, N×H×W×C -> N×C; `ties` is that of `global_max_pool`. No parameters."""
    return from_rule(rule, name, images=True, ties=ties)


def AdaptiveAvgPool(
    size: int | tuple[int, int], *, rule: Rule = adaptive_avg_pool, name: str = "adaptive_avg_pool"
) -> Layer:
    """Average pooling to images of a given size, a number or (rows, columns). No parameters.

    >>> import jax
    >>> AdaptiveAvgPool(6).init(jax.random.key(0), (13, 9, 64))[2]
    (6, 6, 64)
    """
    return from_rule(rule, name, images=True, size=size)
