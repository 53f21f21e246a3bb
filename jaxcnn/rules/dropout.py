"""Dropout: some values are left out at random, the others made larger for it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.dtypes import require_equal_floats, require_number
from jaxcnn.rules.window import is_whole


class DropoutResiduals(NamedTuple):
    key: Array  # as given; the mask, which is far larger, is drawn from it again


def dropout_forward(
    x: Array, key: Array, *, rate: float, broadcast: tuple[int, ...] = ()
) -> tuple[Array, DropoutResiduals]:
    """Dropout: each value becomes 0 with probability `rate`, else x / (1 - rate), so that its expectation is x.

    What is drawn is a function of the key and of x's shape. Under `jax.vmap` over x alone, and inside `jax.shard_map`
    with one key for all devices, all of them leave out the same places: give each a key of its own there.

    Args:
      x: any shape, any floating dtype from 16 bits.
      key: a jax key.
      rate: the share that is left out, at least 0 and less than 1.
      broadcast: axes along which one draw holds. Of N×H×W×C, (1, 2) leaves out whole channels (spatial dropout),
        (1, 2, 3) whole samples (stochastic depth).

    Returns:
      An array of x's shape and dtype.

    Raises:
      ValueError: a rate outside [0, 1), an axis that x does not have, several keys. TypeError: x not floating, rate no
        number, axes that are no whole numbers, key no key.

    Source: Srivastava et al., "Dropout", JMLR 2014; whole channels: Tompson et al., CVPR 2015, section 3.2; whole
    samples: Huang et al., "Deep networks with stochastic depth", ECCV 2016.

    >>> dropout(jnp.ones((2, 4)), jax.random.key(0), rate=0.5)
    Array([[0., 0., 2., 2.],
           [0., 2., 2., 0.]], dtype=float32)
    >>> dropout(jnp.ones((2, 4)), jax.random.key(0), rate=0.5, broadcast=(0,))
    Array([[0., 0., 2., 2.],
           [0., 0., 2., 2.]], dtype=float32)
    """
    require_equal_floats("dropout", x=x)
    _check(x, key, rate, broadcast)
    return _kept(x, key, rate, broadcast), DropoutResiduals(key)


# y_i = m_i x_i / (1 - rate), where m_i is 0 or 1 and does not depend on x: dx_i = m_i dy_i / (1 - rate), with the same
# mask. Of a draw there is no derivative: the key has none.
def dropout_backward(residuals: DropoutResiduals, dy: Array, *, rate, broadcast):
    return _kept(dy, residuals.key, rate, broadcast), None


dropout = Rule(dropout_forward, dropout_backward, "dropout", batch_axes=(0, None))


def _kept(x: Array, key: Array, rate: float, broadcast: tuple[int, ...]) -> Array:
    axes = {axis % x.ndim for axis in broadcast}
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(x.shape))
    # In float32 whatever the default precision, on which the mask would depend otherwise.
    mask = jax.random.bernoulli(key, jnp.float32(1 - rate), shape)
    return jnp.where(mask, x / (1 - rate), 0)  # a product would make NaN of an infinite value that is left out


def _check(x: Array, key: Array, rate: float, broadcast: tuple[int, ...]) -> None:
    require_rate("dropout", rate)
    if not isinstance(broadcast, tuple) or not all(map(is_whole, broadcast)):
        raise TypeError(f"dropout: broadcast must be a tuple of whole numbers, got {broadcast!r}")
    if any(not -x.ndim <= axis < x.ndim for axis in broadcast):
        raise ValueError(f"dropout: broadcast must be axes of x, whose shape is {x.shape}, got {broadcast}")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != jnp.uint32:
        raise TypeError(f"dropout: key must be a jax key, got {key.dtype}{list(key.shape)}")
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"dropout: key must be one key, got shape {key.shape}")


def require_rate(function: str, rate: float) -> None:
    require_number(function, rate=rate)
    if not 0 <= rate < 1:
        raise ValueError(f"{function}: rate must be at least 0 and less than 1, got {rate!r}")
