"""The binary losses against optax, against plain formulas in the probabilities, and where logits are extreme."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT32, FLOAT64, assert_close, assert_same, draw

from jaxcnn import sigmoid_binary_cross_entropy, sigmoid_focal_loss

pytestmark = pytest.mark.usefixtures("x64")

NAN = np.nan
RULES = {"sigmoid_binary_cross_entropy": sigmoid_binary_cross_entropy, "sigmoid_focal_loss": sigmoid_focal_loss}


def of_optax(name, **static):
    return lambda logits, labels: getattr(optax, name)(logits, labels, **static).mean()


def in_probabilities(z, y, *, alpha=None, gamma=0.0):
    """As the papers have it: for a label of 0 or 1 by cases, for one between them the mean of m and of α."""
    p = 1 / (1 + jnp.exp(-z))
    w = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return (w * (y * (1 - p) + (1 - y) * p) ** gamma * -(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))).mean()


LABELS = {
    "integers": lambda rng, shape: rng.integers(2, size=shape),
    "truth values": lambda rng, shape: rng.random(shape) < 0.5,
    "soft": lambda rng, shape: rng.random(shape),
}
FOCAL = [{}, {"gamma": 0}, {"alpha": 0.25}, {"alpha": 0.9, "gamma": 0.5}, {"gamma": 3.7}, {"alpha": 0, "gamma": 1}]


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [((), np.float64, FLOAT64), ((7,), np.float64, FLOAT64), ((2, 3, 4), np.float64, FLOAT64),
     ((5, 4), np.float32, FLOAT32)],
)  # fmt: skip
@pytest.mark.parametrize("kind", LABELS)
def test_cross_entropy_against_optax(kind, shape, dtype, tolerance, rng):
    logits = draw(rng, shape, dtype=dtype)[0] + dtype(0.25)
    labels = np.asarray(LABELS[kind](rng, shape))
    labels = labels.astype(dtype) if kind == "soft" else labels
    plain = of_optax("sigmoid_binary_cross_entropy")
    assert_same([sigmoid_binary_cross_entropy, plain], (logits, labels), rng, tolerance)


@pytest.mark.parametrize("static", FOCAL, ids=str)
@pytest.mark.parametrize("kind", LABELS)
def test_focal_loss_against_optax(kind, static, rng):
    """Of floating labels of exactly 0 and 1 optax's gradient is wrong: see the next test."""
    arrays = *draw(rng, (5, 4)), LABELS[kind](rng, (5, 4))
    rule = functools.partial(sigmoid_focal_loss, **static)
    assert_same([rule, of_optax("sigmoid_focal_loss", **static)], arrays, rng, FLOAT64)


@pytest.mark.parametrize("static", FOCAL, ids=str)
def test_focal_loss_of_floating_labels_against_probabilities(static, rng):
    """Zeros and ones among them: the derivative by the label there is what it is close by."""
    labels = np.array([[0, 1, 0.3, 1], [0.9, 0, 1, 0]])
    plain = functools.partial(in_probabilities, **{"gamma": 2.0, **static})
    assert_same([functools.partial(sigmoid_focal_loss, **static), plain], (*draw(rng, (2, 4)), labels), rng, FLOAT64)


def test_any_floating_label_goes_on_in_a_straight_line(rng):
    arrays = draw(rng, (5, 4), (5, 4))
    assert_same([sigmoid_binary_cross_entropy, in_probabilities], arrays, rng, FLOAT64)


def test_focal_loss_without_gamma_and_alpha_is_the_cross_entropy(rng):
    arrays = *draw(rng, (5, 4)), rng.random((5, 4))
    assert_same(
        [functools.partial(sigmoid_focal_loss, gamma=0.0), sigmoid_binary_cross_entropy.plain], arrays, rng, FLOAT64
    )
    assert_close(sigmoid_focal_loss(*arrays, gamma=0.0, alpha=0.5) * 2, sigmoid_binary_cross_entropy(*arrays), FLOAT64)


# Logit, label, gamma: loss, gradient by the logit, gradient by the label.
EXTREME = [
    (1e4, 1, None, 0, 0, -1e4),
    (1e4, 0, None, 1e4, 1, -1e4),
    (-1e4, 1, None, 1e4, -1, 1e4),
    (-1e4, 0, None, 0, 0, 1e4),
    (1e4, 0.25, None, 7.5e3, 0.75, -1e4),
    *((1e4, 1, gamma, 0, 0, 0) for gamma in (0.5, 1, 1.5, 2)),
    *((-1e4, 0, gamma, 0, 0, 0) for gamma in (0.5, 1, 1.5, 2)),
    *((1e4, 0, gamma, 1e4, 1, -1e4 * (1 + gamma)) for gamma in (0.0, 0.5, 1, 1.5, 2)),
    *((-1e4, 1, gamma, 1e4, -1, 1e4 * (1 + gamma)) for gamma in (0.0, 0.5, 1, 1.5, 2)),
    (1e4, 1, 0.0, 0, 0, -1e4),
    (1e4, 0.25, 2, 0.75**2 * 7.5e3, 0.75**3, -1e4 * 3 * 0.75**2),
    (NAN, 1, None, NAN, NAN, NAN),
    (NAN, 1, 0.5, NAN, NAN, NAN),
]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float32, np.float64])
def test_extreme_logits(dtype):
    """And every second derivative is finite."""
    for z, y, gamma, loss, dz, dy in EXTREME:
        rule = sigmoid_binary_cross_entropy if gamma is None else functools.partial(sigmoid_focal_loss, gamma=gamma)
        arrays = jnp.array([z], dtype), jnp.array([y], dtype)
        wanted = jnp.asarray(loss, dtype), (jnp.array([dz], dtype), jnp.array([dy], dtype))
        tolerance = {jnp.bfloat16: 2**-7, np.float32: FLOAT32}.get(dtype, FLOAT64)
        assert_close(jax.value_and_grad(rule, (0, 1))(*arrays), wanted, tolerance)
        if np.isfinite(z):
            curved = jax.jacrev(jax.grad(rule, (0, 1)), (0, 1))(*arrays)
            assert all(np.isfinite(np.asarray(h, float)).all() for h in jax.tree.leaves(curved)), (z, y, gamma)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
def test_small_losses_keep_their_digits(label, gamma):
    """Element by element, for logits from -100 to 100; x^γ is exact to γ log x machine epsilons."""
    z = np.linspace(-100, 100, 41)
    rule = functools.partial(sigmoid_focal_loss, gamma=gamma)
    each = jax.vmap(jax.value_and_grad(rule, (0, 1)), (0, None))
    (value, (dz, dy)), (exact, (exact_dz, exact_dy)) = (
        each(z.astype(d), np.asarray(label, d)) for d in (np.float32, np.float64)
    )
    for got, wanted in ((value, exact), (dz, exact_dz), (dy, exact_dy)):
        np.testing.assert_allclose(got, wanted, rtol=1e-4 if gamma else 1e-6, atol=1e-36)


@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 1.0, 1.5, 2.0])
def test_second_derivatives_in_float32(gamma):
    """Also where the probability of the wrong answer is tiny. Terms of size 1 cancel: some machine epsilons."""
    rule = sigmoid_binary_cross_entropy if gamma is None else functools.partial(sigmoid_focal_loss, gamma=gamma)
    curved = jax.vmap(jax.hessian(rule), (0, None))
    z = np.linspace(-100, 100, 41)
    for label in (0, 1):
        got, wanted = (curved(z.astype(d), np.asarray(label)) for d in (np.float32, np.float64))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=5e-7)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype", [np.int32, np.uint8])
def test_a_whole_number_that_is_no_label(rule, dtype, rng):
    """An error where its value is known; under jit NaN in the loss and in its element, and nowhere else."""
    logits, labels = *draw(rng, (3,)), np.array([0, 255, 1]).astype(dtype)
    for call in (rule, jax.grad(rule)):
        with pytest.raises(ValueError, match=rf"{rule.name}: labels that are whole numbers must be 0 or 1, got 255"):
            call(logits, labels)
    loss, gradient = jax.jit(jax.value_and_grad(rule))(logits, labels)
    right = jax.grad(rule)(logits, np.array([0, 1, 1]))
    assert np.isnan(loss)
    assert_close(gradient, right.at[1].set(NAN), FLOAT64)


def test_a_negative_probability_has_no_power():
    """A soft label of 2 makes m = q - p + ... negative: NaN, not a power of something else."""
    loss, gradients = jax.value_and_grad(sigmoid_focal_loss, (0, 1))(np.array([3.0]), np.array([2.0]))
    assert np.isnan([loss, gradients[0][0], gradients[1][0]]).all()


def test_a_large_batch_in_float16(rng):
    """10⁵ elements: their number is infinite in float16."""
    labels = rng.random(100_000) < 0.5
    for rule in RULES.values():
        dz = jax.grad(lambda z, rule=rule: 1000.0 * rule(z, labels))(np.zeros(labels.size, np.float16))
        exact = jax.grad(lambda z, rule=rule: 1000.0 * rule(z, labels))(np.zeros(labels.size))
        np.testing.assert_allclose(dz, exact, rtol=2**-10)


def call(rule, logits=(3,), labels=(3,), dtypes=(np.float64, np.int32), **static):
    return lambda: rule(np.zeros(logits, dtypes[0]), np.zeros(labels, dtypes[1]), **static)


focal = functools.partial(call, sigmoid_focal_loss)
SHAPES = "logits and labels must have one shape and not be empty, got"
ERRORS = [
    *(
        (rule, call(rule, logits, labels), ValueError, f"{SHAPES} {logits} and {labels}")
        for rule in RULES.values() for logits, labels in (((3, 1), (3,)), ((0,), (0,)), ((3,), (1,)))
    ),
    *((rule, call(rule, dtypes=(int, int)), TypeError, "logits must be floating point, got int64")
      for rule in RULES.values()),
    *((rule, call(rule, dtypes=(float, np.float32)), TypeError,
       "dtypes must be equal, got logits float64, labels float32") for rule in RULES.values()),
    *((sigmoid_focal_loss, focal(gamma=g), ValueError, f"gamma must be finite and at least 0, got {g}")
      for g in (-0.5, np.inf, NAN)),
    *((sigmoid_focal_loss, focal(alpha=a), ValueError, f"alpha must be from 0 to 1, got {a}") for a in (-0.5, 1.5)),
    (sigmoid_focal_loss, focal(gamma="2"), TypeError, "gamma must be a number, got '2'"),
    (sigmoid_focal_loss, focal(gamma=None), TypeError, "gamma must be a number, got None"),
    (sigmoid_focal_loss, focal(alpha=True), TypeError, "alpha must be a number, got True"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "call", "kind", "message"), ERRORS)
def test_errors(rule, call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == f"{rule.name}: {message}"
