"""Steps whose loss or gradient is not finite: left out of the training, or its end; and which value was the first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT32, assert_close

import jaxcnn
from jaxcnn.training.checkpoint import digest
from jaxcnn.training.finite import first_nonfinite
from jaxcnn.training.host import on_host

LOSS = jaxcnn.softmax_cross_entropy
NETWORK = jaxcnn.sequential(
    jaxcnn.Conv2D(2, 3, bias=False),  # a bias there would have rounding for a gradient, which Adam makes large
    jaxcnn.BatchNorm(),
    jaxcnn.residual(jaxcnn.sequential(jaxcnn.Conv2D(2, 3), jaxcnn.ReLU())),
    jaxcnn.ReLU(),
    jaxcnn.Flatten(),
    jaxcnn.Dense(3),
)
OPTIMIZER = optax.adam(0.01)


def initial():
    return jaxcnn.init_train_state(NETWORK, OPTIMIZER, 0, (4, 4, 1))


def batches(rng, count, bad=()):
    """(images, labels, indices): the batches of four in their order, a NaN in one image of each bad one."""
    images = rng.normal(size=(4 * count, 4, 4, 1)).astype(np.float32)
    for i in bad:
        images[4 * i + 2, 1, 1] = np.nan
    return images, rng.integers(0, 3, 4 * count), np.arange(4 * count).reshape(count, 4)


def steps(limit):
    return jaxcnn.train_steps(NETWORK, LOSS, OPTIMIZER, skip_nonfinite=limit)


def same(got, wanted) -> bool:
    return digest(on_host(got), {}) == digest(on_host(wanted), {})


def test_a_step_that_is_left_out_changes_nothing_but_the_count(rng):
    """Neither the parameters, nor the optimizer's state, nor the running statistics."""
    images, labels, indices = batches(rng, 5, bad=[1, 3])
    state, metrics = steps(2)(initial(), images, labels, indices)
    assert (int(state.step), int(state.skipped)) == (5, 2)
    np.testing.assert_array_equal(metrics["finite"], [True, False, True, False, True])
    wanted, _ = steps(0)(initial(), images, labels, indices[[0, 2, 4]])  # no random layer: the step's number is nothing
    assert same(state._replace(step=wanted.step, skipped=wanted.skipped), wanted)


def test_after_too_many_the_state_is_the_last_good_one(rng):
    images, labels, indices = batches(rng, 6, bad=[1, 3])
    state, _ = steps(1)(initial(), images, labels, indices)
    assert (int(state.step), int(state.skipped)) == (3, 2)
    wanted, _ = steps(1)(initial(), images, labels, indices[:3])
    assert same(state._replace(skipped=wanted.skipped), wanted)


def test_where_all_is_finite_nothing_differs(rng):
    data = batches(rng, 3)
    watched, metrics = steps(0)(initial(), *data)
    plain, others = steps(None)(initial(), *data)
    assert_close(watched.params, plain.params, FLOAT32)  # two programs, which may round otherwise
    assert metrics.keys() - others.keys() == {"finite"}


@pytest.mark.parametrize(
    ("large", "says"),
    [
        (np.nan, "the gradient of the network's output [0, 0] is nan"),
        (np.inf, "the gradient of the network's output [0, 0] is "),
        (1e25, "the new opt_state/0/nu/batch_norm/scale [0] is inf"),
    ],
)
def test_a_gradient_that_is_not_finite_with_a_loss_that_is(rng, large, says):
    """Also one that overflows when Adam squares it, which would end that parameter's training without a word."""
    rule = LOSS.replace(backward=lambda r, dy, **static: (LOSS.backward(r, dy, **static)[0] * large, None))
    step = jaxcnn.train_step(NETWORK, rule, OPTIMIZER, skip_nonfinite=0)
    images, labels, _ = batches(rng, 1)
    state, metrics = step(initial(), images, labels)
    assert np.isfinite(metrics["loss"])
    assert not metrics["finite"]
    assert same(state._replace(skipped=initial().skipped), initial())
    first = first_nonfinite(NETWORK, rule, OPTIMIZER, initial(), images, labels)
    assert first is not None
    assert first.startswith(says)


def test_an_update_that_is_not_finite(rng):
    """The gradient is, but not what a rate makes of it: the parameters stay finite."""
    optimizer = optax.sgd(np.inf)
    images, labels, _ = batches(rng, 1)
    state = jaxcnn.init_train_state(NETWORK, optimizer, 0, (4, 4, 1))
    first = first_nonfinite(NETWORK, LOSS, optimizer, state, images, labels)
    assert first is not None
    assert first.startswith("the new params/")
    state, metrics = jaxcnn.train_step(NETWORK, LOSS, optimizer, skip_nonfinite=0)(state, images, labels)
    assert not metrics["finite"]
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))


def spoiled(layer, *, output=False, gradient=None):
    """The layer with an infinity in its output, or NaN in a gradient."""

    def forward(*given, **how):
        y, state, residuals = layer.forward(*given, **how)
        return (y.at[1, 2].set(jnp.inf) if output else y), state, residuals

    def backward(residuals, dy):
        dparams, dx = layer.backward(residuals, dy)
        if gradient == "input":
            return dparams, dx.at[3].set(jnp.nan)
        return {n: d.at[0].set(jnp.nan) if n == gradient else d for n, d in dparams.items()}, dx

    return jaxcnn.Layer(layer.name, layer.init, forward, backward, layer.rule)


def network(inner, last):
    return jaxcnn.sequential(
        jaxcnn.Conv2D(2, 3), jaxcnn.residual(jaxcnn.sequential(inner, jaxcnn.ReLU())), jaxcnn.Flatten(), last
    )


INNER, LAST = jaxcnn.Conv2D(2, 3), jaxcnn.Dense(3)
FIRST = {
    "the output of residual/layer/conv2d [1, 2, 0, 0] is inf": network(spoiled(INNER, output=True), LAST),
    "the output of dense [1, 2] is inf": network(INNER, spoiled(LAST, output=True)),
    "the gradient of dense/weights [0, 0] is nan": network(INNER, spoiled(LAST, gradient="weights")),
    "the gradient of the input of dense [3, 0] is nan": network(INNER, spoiled(LAST, gradient="input")),
    "the gradient of residual/layer/conv2d/bias [0] is nan": network(spoiled(INNER, gradient="bias"), LAST),
    None: network(INNER, LAST),
}


@pytest.mark.parametrize(("says", "made"), FIRST.items(), ids=map(str, FIRST))
def test_the_first_value_that_is_not_finite(rng, says, made):
    state = jaxcnn.init_train_state(made, OPTIMIZER, 0, (4, 4, 1))
    images, labels, _ = batches(rng, 1)
    assert first_nonfinite(made, LOSS, OPTIMIZER, state, images, labels) == says


def test_parameters_and_images_come_first(rng):
    made = FIRST[None]
    state = jaxcnn.init_train_state(made, OPTIMIZER, 0, (4, 4, 1))
    images, labels, _ = batches(rng, 1, bad=[0])
    assert first_nonfinite(made, LOSS, OPTIMIZER, state, images, labels) == "the image [2, 1, 1, 0] is nan"
    params = state.params | {"dense": jax.tree.map(lambda p: p.at[1].set(-jnp.inf), state.params["dense"])}
    says = "the parameter dense/bias [1] is -inf"
    assert first_nonfinite(made, LOSS, OPTIMIZER, state._replace(params=params), images, labels) == says
