"""The optimizers and schedules of the command line, against what their papers say."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.training.config import OPTIMIZERS, SCHEDULES, Config
from jaxcnn.training.optimizer import evaluated_params, make_optimizer, make_schedule

STEPS = 10


@pytest.fixture
def params(rng):
    shapes = {"conv": {"filters": (6, 3, 3, 2), "bias": 6}, "dense": {"weights": (5, 8), "bias": 8}}
    return draw(rng, {layer: {name: np.empty(s) for name, s in one.items()} for layer, one in shapes.items()})


def draw(rng, like):
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), like)


def gradients_of(rng, params):
    return [draw(rng, params) for _ in range(STEPS)]


def after(optimizer, params, gradients):
    """The parameters after a step for each of the gradients."""
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def made(**changes):
    return make_optimizer(Config(**changes).complete(), STEPS)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_default_is_adamw_along_a_cosine_to_the_bit(rng, params):
    gradients = gradients_of(rng, params)
    mask = {"conv": {"filters": True, "bias": False}, "dense": {"weights": True, "bias": False}}
    plain = optax.adamw(optax.cosine_decay_schedule(8e-3, STEPS), weight_decay=0.3, mask=mask)
    assert_equal(after(made(), params, gradients), after(plain, params, gradients))


def test_adam_is_without_decay_unless_it_is_given(rng, params):
    gradients = gradients_of(rng, params)
    plain = after(optax.adam(optax.cosine_decay_schedule(8e-3, STEPS)), params, gradients)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        after(made(optimizer="adam"), params, gradients),
        plain,
    )
    given = after(made(optimizer="adam", weight_decay=0.3), params, gradients)
    assert_equal(given, after(made(), params, gradients))


def test_sgd_by_its_formula(rng, params):
    """Sutskever et al.'s (2013) momentum, the decay beside it."""
    gradients = gradients_of(rng, params)
    changes = {"learning_rate": 0.1, "weight_decay": 0.2, "momentum": 0.8, "schedule": "constant", "warmup": 0.3}
    found = after(made(optimizer="sgd", **changes), params, gradients)

    def by_hand(p, *gradients):
        decay, velocity = 0.2 if p.ndim > 1 else 0.0, 0.0
        for step, g in enumerate(gradients):
            rate = 0.1 * min((step + 1) / 4, 1)
            velocity = 0.8 * velocity + g
            p = p - rate * (g + 0.8 * velocity + decay * p)
        return p

    expected = jax.tree.map(by_hand, params, *gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_momentum_by_default():
    assert [Config(optimizer=name).complete().momentum for name in OPTIMIZERS] == [None, None, 0.9, None]


@pytest.mark.parametrize(("layer", "name"), [("conv", "filters"), ("dense", "weights")])
def test_muon_makes_the_update_of_weights_and_filters_orthogonal(rng, params, layer, name):
    """Its singular values, those of a filter's as (h w C)×n, lie about 1, times what makes it as large as AdamW's."""
    optimizer = made(optimizer="muon", learning_rate=1.0, weight_decay=0.0, schedule="constant")
    updates, _ = optimizer.update(draw(rng, params), optimizer.init(params), params)
    update = np.asarray(updates[layer][name])
    matrix = update.reshape(len(update), -1)
    values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * math.sqrt(max(matrix.shape)))
    assert 0.6 < values.min() <= values.max() < 1.3
    # AdamW's, whose first step is the gradient's sign, has 1; a rate made for it does here too.
    assert 0.1 < np.sqrt((update**2).mean()) < 0.3


def test_muon_decays_as_adamw_does(params):
    """Where the gradient is 0 there is nothing but the decay."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    for name in ("muon", "adamw"):
        optimizer = made(optimizer=name, learning_rate=0.5, weight_decay=0.1, schedule="constant")
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        expected = jax.tree.map(lambda p: -0.05 * p * (p.ndim > 1), params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


def test_clipping_is_by_the_norm_of_all(rng, params):
    """A longer gradient is scaled down to the norm, a shorter one is as it was."""
    gradient = draw(rng, params)
    norm = float(np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradient))))
    changes = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "weight_decay": 0.0, "schedule": "constant"}
    for clip, factor in ((norm / 4, 0.25), (norm * 4, 1.0)):
        optimizer = made(clip=clip, **changes)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        expected = jax.tree.map(lambda g, factor=factor: -factor * g, gradient)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_layers_stay_and_the_rest_is_trained_as_if_alone(rng, params, optimizer):
    """Neither decayed nor counted for the clipping."""
    gradients, changes = gradients_of(rng, params), {"optimizer": optimizer, "clip": 0.1}
    found = after(made(freeze=["conv", "dense/bias"], **changes), params, gradients)
    its_gradients = [{"weights": g["dense"]["weights"]} for g in gradients]
    alone = after(made(**changes), {"weights": params["dense"]["weights"]}, its_gradients)
    assert_equal(found, params | {"dense": params["dense"] | alone})


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_is_debiased_and_changes_no_update(rng, params, decay):
    gradients, each = gradients_of(rng, params), []
    plain, averaging = made(), made(average=decay, freeze=["conv"])
    state, now = averaging.init(params), params
    for gradient in gradients:
        updates, state = averaging.update(gradient, state, now)
        now = optax.apply_updates(now, updates)
        each.append(now)
    assert_equal(now["dense"], after(plain, params, gradients)["dense"])
    found = evaluated_params(now, state)
    weights = decay ** np.arange(STEPS)[::-1]
    expected = jax.tree.map(lambda *p: np.average(np.float64(p), axis=0, weights=weights), *each)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected)
    assert_equal(found["conv"], params["conv"])
    assert evaluated_params(now, plain.init(params)) is now


def rates(steps=100, **changes):
    schedule = make_schedule(Config(learning_rate=2.0, **changes).complete(), steps)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps)))


def test_warmup_is_linear_and_then_the_schedule_begins():
    rising = 2.0 * np.arange(1, 11) / 11
    cosine = 1 + np.cos(np.pi * np.arange(90) / 90)
    np.testing.assert_allclose(rates(warmup=0.1), np.concatenate([rising, cosine]), atol=1e-6)
    constant = np.concatenate([rising, np.full(90, 2.0)])
    np.testing.assert_allclose(rates(warmup=0.1, schedule="constant"), constant, rtol=1e-6)
    np.testing.assert_allclose(rates(), 1 + np.cos(np.pi * np.arange(100) / 100), atol=1e-6)
    np.testing.assert_array_equal(rates(schedule="constant"), 2.0)


@pytest.mark.parametrize("top", [30, 75])
def test_one_cycle_rises_and_falls(top):
    changes = {} if top == 30 else {"warmup": top / 100}
    up, down = ((1 - np.cos(np.pi * np.arange(steps) / steps)) / 2 for steps in (top, 100 - top))
    expected = np.concatenate([0.08 + (2 - 0.08) * up, 2 - (2 - 0.08 / 1e4) * down])
    np.testing.assert_allclose(rates(schedule="one-cycle", **changes), expected, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 3, 49])
def test_every_rate_is_positive(schedule, warmup, steps):
    """However few steps there are: a rate of 0 is a step lost, and NaN all of them."""
    found = rates(steps, schedule=schedule, warmup=warmup)
    assert np.isfinite(found).all()
    assert (found > 0).all()
    assert (found <= 2).all()
