"""mean_squared_error and huber_loss against optax, at the corners of the one and at the limits of float16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, assert_close, assert_same, draw

from jaxcnn import huber_loss, mean_squared_error

pytestmark = pytest.mark.usefixtures("x64")

INF, NAN = np.inf, np.nan
RULES = {"mean_squared_error": mean_squared_error, "huber_loss": huber_loss}


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [((), np.float64, FLOAT64), ((7,), np.float64, FLOAT64), ((2, 3, 4), np.float64, FLOAT64),
     ((5, 4), np.float32, FLOAT32)],
)  # fmt: skip
def test_against_optax(shape, dtype, tolerance, rng):
    """Multiples of 1/2, so that errors of 0 and of just delta are among them; optax's l2_loss has a factor of 1/2."""
    arrays = draw(rng, shape, shape, dtype=dtype)
    assert_same([mean_squared_error, lambda x, t: optax.squared_error(x, t).mean()], arrays, rng, tolerance)
    assert_same([mean_squared_error, lambda x, t: 2 * optax.l2_loss(x, t).mean()], arrays, rng, tolerance)
    for delta in (0.5, 1, 2.25):
        plain = lambda x, t, delta=delta: optax.huber_loss(x, t, delta=delta).mean()  # noqa: E731
        assert_same([functools.partial(huber_loss, delta=delta), plain], arrays, rng, tolerance)


def test_huber_loss_is_a_half_of_the_squared_error_within_delta(rng):
    arrays = draw(rng, (5, 4), (5, 4))
    got, wanted = (jax.value_and_grad(f, (0, 1))(*arrays) for f in (huber_loss.partial(delta=99), mean_squared_error))
    assert_close(got, jax.tree.map(lambda a: a / 2, wanted), FLOAT64)


# Error, loss, gradient and second derivative, with delta 1.5.
HUBER = [
    (0, 0, 0, 1),
    (-0.5, 0.125, -0.5, 1),
    (1.5, 1.125, 1.5, 1),  # the corner of the derivative: the second one is the square's
    (-1.5, 1.125, -1.5, 1),
    (1.75, 1.5, 1.5, 0),
    (-3, 3.375, -1.5, 0),
    (1e4, 14998.875, 1.5, 0),
    (-1e30, 1.5e30, -1.5, 0),
    (INF, INF, 1.5, 0),
    (NAN, NAN, NAN, None),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("side", [0, 1])
def test_huber_loss_inside_outside_and_at_delta(side, dtype):
    rule = huber_loss.partial(delta=1.5)
    for error, loss, gradient, curvature in HUBER:
        arrays = [np.zeros((), dtype), np.zeros((), dtype)]
        arrays[side] = np.asarray(error, dtype)
        wanted = np.asarray(loss, dtype), np.asarray(gradient, dtype)
        assert_close(jax.value_and_grad(rule, side)(*arrays), wanted, FLOAT32)
        if curvature is not None:
            assert_close(jax.grad(jax.grad(rule, side), side)(*arrays), np.asarray(curvature, dtype), EXACT)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_low_precision(dtype):
    """The squares of 300 and their sum do not fit into float16, their mean does; nor does the number of elements."""
    errors = jnp.asarray(np.r_[300.0, np.zeros(99_999)], dtype)
    zeros = jnp.zeros_like(errors)
    loss, gradients = jax.value_and_grad(mean_squared_error, (0, 1))(errors, zeros)
    share = np.zeros(errors.size)
    share[0] = 2 * float(errors[0]) / errors.size
    assert_close(loss, jnp.asarray(float(errors[0]) ** 2 / errors.size, dtype), EXACT)
    assert_close(gradients, (jnp.asarray(share, dtype), jnp.asarray(-share, dtype)), EXACT)
    loss, gradients = jax.value_and_grad(huber_loss.partial(delta=250.0), (0, 1))(errors, zeros)
    share[0] = 250 / errors.size
    assert_close(loss, jnp.asarray(250 * (float(errors[0]) - 125) / errors.size, dtype), EXACT)
    assert_close(gradients, (jnp.asarray(share, dtype), jnp.asarray(-share, dtype)), EXACT)


def call(rule, predictions=(3,), targets=(3,), dtypes=(np.float64, np.float64), **static):
    return lambda: rule(np.zeros(predictions, dtypes[0]), np.zeros(targets, dtypes[1]), **static)


SHAPES = "predictions and targets must have one shape and not be empty, got"
ERRORS = [
    *(
        (rule, call(rule, x, t), ValueError, f"{SHAPES} {x} and {t}")
        for rule in RULES.values() for x, t in (((3, 1), (3,)), ((0,), (0,)), ((3,), ()))
    ),
    *((rule, call(rule, dtypes=(float, int)), TypeError, "targets must be floating point, got int64")
      for rule in RULES.values()),
    *((rule, call(rule, dtypes=(float, np.float32)), TypeError,
       "dtypes must be equal, got predictions float64, targets float32") for rule in RULES.values()),
    *((huber_loss, call(huber_loss, delta=d), ValueError, f"delta must be positive, got {d}") for d in (0, -1.0, NAN)),
    (huber_loss, call(huber_loss, delta="1"), TypeError, "delta must be a number, got '1'"),
    (huber_loss, call(huber_loss, delta=True), TypeError, "delta must be a number, got True"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "call", "kind", "message"), ERRORS)
def test_errors(rule, call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == f"{rule.name}: {message}"
