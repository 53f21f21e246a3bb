"""The optimizers of the command line, put together of optax's."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from jaxcnn.training.config import Config
from jaxcnn.training.names import name_of
from jaxcnn.training.samples import DataError


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """What a complete configuration asks for, for a run of so many steps.

    Weight decay is decoupled: the learning rate times it is taken off weights and filters, whatever the gradient.

    >>> import jax.numpy as jnp
    >>> optimizer = make_optimizer(Config(optimizer="sgd", learning_rate=0.5, weight_decay=0.0).complete(), 10)
    >>> bias = jnp.ones(2)
    >>> updates, _ = optimizer.update(bias, optimizer.init(bias), bias)  # 0.5 (1 + 0.9), by Nesterov's momentum
    >>> updates.tolist()
    [-0.949999988079071, -0.949999988079071]
    """
    made = _by_name(config, make_schedule(config, steps))
    if config.clip is not None:
        made = optax.chain(optax.clip_by_global_norm(config.clip), made)
    if config.freeze:
        # Around all of it: what is frozen is not decayed, and its gradient does not count for the clipping.
        parts: dict[Any, Any] = {"trained": made, "frozen": optax.set_to_zero()}
        made = optax.partition(parts, lambda params: _labels(params, config.freeze))
    return made if config.average is None else optax.chain(made, average(config.average))


class Average(NamedTuple):
    count: jax.Array  # () int32: steps
    averaged_params: Any


def average(decay: float) -> optax.GradientTransformation:
    """Keeps the exponential average of the parameters after each step; the last of a chain, it changes no update.

    Debiased: the average after n steps is that of these n alone, with weights 1, decay, decay², … from the last one
    back. `optax.ema` is one of updates, and its weights in float32 add up to 1 only to 2e-4 for a decay of 0.9999.

    >>> import jax.numpy as jnp
    >>> optimizer = optax.chain(optax.sgd(1.0), average(0.5))
    >>> params, state = jnp.zeros(1), optimizer.init(jnp.zeros(1))
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(-jnp.ones(1), state, params)
    ...     params = params + updates
    >>> evaluated_params(params, state).tolist()  # (2 + 1/2) / (1 + 1/2)
    [1.6666667461395264]
    """

    def init(params: Any) -> Average:
        return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Average]:
        count, log = state.count + 1, math.log(decay)
        share = math.expm1(log) / jnp.expm1(count * log)  # (1 - decay) / (1 - decayⁿ), of the newest
        new = optax.apply_updates(params, updates)
        # In this form what does not change, a layer that is frozen, is its own average to the bit.
        mean = jax.tree.map(lambda mean, p: mean + share * (p - mean), state.averaged_params, new)
        return updates, Average(count, mean)

    return optax.GradientTransformation(init, update)


def evaluated_params(params: Any, opt_state: Any) -> Any:
    """The averaged parameters where the optimizer keeps them, else the parameters; of nested dicts too."""
    return optax.tree.get(opt_state, "averaged_params", params)


def require_layers(config: Config, params: Any) -> None:
    """Raises DataError unless each name that is to be frozen is one of the parameters', and some are left."""
    paths = [name_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    for name in config.freeze:
        if not any(_is_in(path, name) for path in paths):
            raise DataError(f"--freeze: got {name!r}, required layers of {config.model}: {', '.join(params)}")
    if config.freeze and all(any(_is_in(path, name) for name in config.freeze) for path in paths):
        raise DataError(f"--freeze: got {' '.join(config.freeze)}, all layers; required at least one to be trained")


def make_schedule(config: Config, steps: int) -> optax.Schedule:
    """The learning rate of each step, counted from 0; `learning_rate` is the largest.

    >>> schedule = make_schedule(Config(learning_rate=1.0, schedule="constant", warmup=0.3).complete(), 10)
    >>> [float(schedule(step)) for step in (0, 1, 2, 3, 9)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    assert config.learning_rate is not None  # complete() saw to both
    assert config.warmup is not None
    rate, rising = config.learning_rate, int(config.warmup * steps)
    if config.schedule == "one-cycle":
        return optax.cosine_onecycle_schedule(steps, rate, config.warmup)
    constant, rest = config.schedule == "constant", steps - rising
    after = optax.constant_schedule(rate) if constant else optax.cosine_decay_schedule(rate, rest)
    if not rising:
        return after
    # From the first step on it is more than 0, which would be a step lost.
    return optax.join_schedules([optax.linear_schedule(rate / (rising + 1), rate, rising), after], [rising])


def _by_name(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    assert config.weight_decay is not None
    if config.optimizer == "muon":
        # Its updates have the size of AdamW's, so that AdamW's rate and decay do (Liu et al., 2025). The decay is for
        # what muon itself takes, weights and filters; adam's part has none.
        return optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
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


def _labels(params: Any, freeze: list[str]) -> Any:
    def label(path, _):
        return "frozen" if any(_is_in(name_of(path), name) for name in freeze) else "trained"

    return jax.tree.map_with_path(label, params)


def _is_in(path: str, name: str) -> bool:
    """Whether a parameter is the one of that name, or lies in the layer of that name."""
    return f"{path}/".startswith(f"{name}/")


def _decayed(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)  # biases and scales are not


def _as_matrices(params: Any) -> Any:
    """For muon, which by itself takes matrices alone and leaves filters n×h×w×C to adam: these as (h w C)×n."""

    def matrix(p):
        if p.ndim < 2:
            return None
        return MuonDimensionNumbers(0, 1) if p.ndim == 2 else MuonDimensionNumbers(tuple(range(1, p.ndim)), 0)

    return jax.tree.map(matrix, params)
