"""The optimizers of the command line, put together of optax's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

if TYPE_CHECKING:
    from jaxcnn.training.config import Config

OPTIMIZERS = ("adamw", "adam", "sgd", "muon")
SCHEDULES = ("cosine", "constant", "one-cycle")


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """What a complete configuration asks for, for a run of so many steps.

    Weight decay is decoupled: the learning rate times it is taken off weights and filters, whatever the gradient.

    >>> from jaxcnn.training.config import Config
    >>> import jax.numpy as jnp
    >>> optimizer = make_optimizer(Config(optimizer="sgd", learning_rate=0.5, weight_decay=0.0).complete(), 10)
    >>> bias = jnp.ones(2)
    >>> updates, _ = optimizer.update(bias, optimizer.init(bias), bias)  # 0.5 (1 + 0.9), by Nesterov's momentum
    >>> updates.tolist()
    [-0.949999988079071, -0.949999988079071]
    """
    made = _by_name(config, make_schedule(config, steps))
    return made if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), made)


def make_schedule(config: Config, steps: int) -> optax.Schedule:
    """The learning rate of each step, counted from 0; `learning_rate` is the largest.

    >>> from jaxcnn.training.config import Config
    >>> schedule = make_schedule(Config(learning_rate=1.0, schedule="constant", warmup=0.3).complete(), 10)
    >>> [float(schedule(step)) for step in (0, 1, 2, 3, 9)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    assert config.learning_rate is not None  # complete() saw to both
    assert config.warmup is not None
    rate, rising = config.learning_rate, min(int(config.warmup * steps), steps - 1)
    if config.schedule == "one-cycle":
        # The half keeps the fraction's product from being rounded to the step before; there is always one that rises.
        return optax.cosine_onecycle_schedule(steps, rate, (max(rising, 1) + 0.5) / steps)
    constant, rest = config.schedule == "constant", steps - rising
    after = optax.constant_schedule(rate) if constant else optax.cosine_decay_schedule(rate, rest)
    if not rising:
        return after
    # From the first step on it is more than 0, which would be a step lost.
    return optax.join_schedules([optax.linear_schedule(rate / (rising + 1), rate, rising), after], [rising])


def _by_name(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    assert config.weight_decay is not None
    if config.optimizer == "muon":
        # Its updates have the size of AdamW's, so that AdamW's rate and decay do (Liu et al., 2025).
        return optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            weight_decay_mask=_decayed,
            muon_weight_dimension_numbers=_as_matrices,
            consistent_rms=0.2,
        )
    if config.optimizer == "sgd":
        assert config.momentum is not None
        return optax.chain(
            optax.trace(config.momentum, nesterov=True),
            optax.add_decayed_weights(config.weight_decay, _decayed),
            optax.scale_by_learning_rate(schedule),
        )
    return optax.adamw(schedule, weight_decay=config.weight_decay, mask=_decayed)


def _decayed(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)  # biases and scales are not


def _as_matrices(params: Any) -> Any:
    """For muon, which by itself takes matrices alone and leaves filters n×h×w×C to adam: these as (h w C)×n."""

    def matrix(p):
        if p.ndim < 2:
            return None
        return MuonDimensionNumbers(0, 1) if p.ndim == 2 else MuonDimensionNumbers(tuple(range(1, p.ndim)), 0)

    return jax.tree.map(matrix, params)
