"""For anyone's pytest."""

from __future__ import annotations

from typing import Any

import jax

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule
from jaxcnn.verification.verify import Options, verify


def assert_rule(
    rule_or_layer: Rule | Layer,
    *arrays: Any,
    options: Options | None = None,
    key: jax.Array | None = None,
    train: bool | None = None,
    **static: Any,
) -> None:
    """Passes if the hand-written backward pass is right; the arguments are those of `jaxcnn.verify`.

    Raises:
      AssertionError: it is not; the message is the verifier's report.
      TypeError, ValueError: a bad call, as of `jaxcnn.verify`.

    >>> import jaxcnn, jax.numpy as jnp
    >>> assert_rule(jaxcnn.relu, jnp.linspace(-2, 2, 5))
    """
    report = verify(rule_or_layer, *arrays, options=options, key=key, train=train, **static)
    if not report.ok:
        raise AssertionError(str(report))
