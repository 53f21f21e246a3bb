"""softmax_cross_entropy against optax, against delta = a - y, and where logits or labels are extreme."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, assert_close, assert_same, draw

from jaxcnn import softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("x64")

INF, NAN = np.inf, np.nan


def of_rows(logits, labels, *, label_smoothing=0.0):
    if label_smoothing:
        labels = optax.smooth_labels(labels.astype(logits.dtype), label_smoothing)
    return optax.softmax_cross_entropy(logits, labels).mean()


def of_indices(logits, labels, *, label_smoothing=0.0):
    if label_smoothing:
        return of_rows(logits, jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing=label_smoothing)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


LABELS = {
    "indices": lambda labels, eye, noise: labels,
    "one-hot": lambda labels, eye, noise: eye[labels],
    "one-hot of integers": lambda labels, eye, noise: eye[labels].astype(int),
    "soft": lambda labels, eye, noise: (eye[labels] + noise) / (1 + noise.sum(-1, keepdims=True)),
    "rows of any sum": lambda labels, eye, noise: eye[labels] * 3 - noise,
}


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [((7,), np.float64, FLOAT64), ((1, 4), np.float64, FLOAT64), ((5, 1), np.float64, FLOAT64),
     ((2, 3, 4), np.float64, FLOAT64), ((5, 4), np.float32, FLOAT32)],
)  # fmt: skip
@pytest.mark.parametrize("kind", LABELS)
def test_against_optax(kind, shape, dtype, tolerance, rng):
    (logits,) = draw(rng, shape, dtype=dtype)
    noise = np.asarray(rng.random(shape), dtype)
    labels = LABELS[kind](rng.integers(shape[-1], size=shape[:-1]), np.eye(shape[-1], dtype=dtype), noise)
    plain = of_indices if kind == "indices" else of_rows
    assert_same([softmax_cross_entropy, plain], (logits, labels), rng, tolerance)


@pytest.mark.parametrize("smoothing", [0, 0.1, 0.75])
@pytest.mark.parametrize("kind", LABELS)
def test_smoothing_against_optax(kind, smoothing, rng):
    (logits,) = draw(rng, (5, 4))
    labels = LABELS[kind](rng.integers(4, size=5), np.eye(4), rng.random((5, 4)))
    plain = of_indices if kind == "indices" else of_rows
    assert_same([softmax_cross_entropy, plain], (logits, labels), rng, FLOAT64, label_smoothing=smoothing)


def test_the_gradient_of_smoothed_labels(rng):
    """a - y' over N, where y' gives each of K = 4 classes s/K, and the label's own 1 - s besides."""
    logits, labels = *draw(rng, (5, 4)), np.array([0, 3, 1, 1, 2])
    a = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    smoothed = np.where(np.arange(4) == labels[:, None], 0.625, 0.125)
    gradient = jax.grad(softmax_cross_entropy.partial(label_smoothing=0.5))
    assert_close(gradient(logits, labels), (a - smoothed) / 5, FLOAT64)
    assert_close(gradient(logits, np.eye(4)[labels]), (a - smoothed) / 5, FLOAT64)


def test_the_gradient_is_the_sources_delta(rng):
    """δ = a - y, over N: the loss is the mean."""
    logits, labels = *draw(rng, (5, 4)), np.array([0, 3, 1, 1, 2])
    a = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert_close(jax.grad(softmax_cross_entropy)(logits, labels), (a - np.eye(4)[labels]) / 5, FLOAT64)


def test_gradient_of_the_labels_also_where_they_are_zero(rng):
    logits, labels = *draw(rng, (5, 4)), np.eye(4)[[0, 3, 1, 1, 2]]
    log_a = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert_close(jax.grad(softmax_cross_entropy, 1)(logits, labels), -log_a / 5, FLOAT64)


# Logits, label, loss, gradient.
EXTREME = [
    ([1e4, -1e4], 0, 0, [0, 0]),
    ([1e4, -1e4], 1, 2e4, [1, -1]),
    ([-1e4, -1e4], 0, np.log(2), [-0.5, 0.5]),
    ([0, -INF], 0, 0, [0, 0]),
    ([-INF, 3, 3], 2, np.log(2), [0, 0.5, -0.5]),
    ([0, -INF], 1, INF, [1, -1]),
    ([0, NAN], 0, NAN, [NAN, NAN]),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("logits", "label", "loss", "gradient"), EXTREME)
@pytest.mark.parametrize("as_row", [False, True])
def test_extreme_logits(logits, label, loss, gradient, as_row, dtype):
    logits, tolerance = np.array([logits], dtype), FLOAT32 if dtype == np.float32 else FLOAT64
    labels = np.eye(logits.size, dtype=dtype)[[label]] if as_row else np.array([label])
    got = jax.value_and_grad(softmax_cross_entropy)(logits, labels)
    assert_close(got, (np.asarray(loss, dtype), np.array([gradient], dtype)), tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("as_row", [False, True])
def test_extreme_logits_smoothed(as_row, dtype):
    """A class of probability 0 costs infinitely much; the gradient stays a - y'."""
    value_and_grad = jax.value_and_grad(softmax_cross_entropy.partial(label_smoothing=0.2))
    labels = np.array([[1, 0]], dtype) if as_row else np.array([0])
    for logits, loss, gradient in (([1e4, -1e4], 2e3, [0.1, -0.1]), ([0, -INF], INF, [0.1, -0.1])):
        wanted = np.asarray(loss, dtype), np.array([gradient], dtype)
        assert_close(value_and_grad(np.array([logits], dtype), labels), wanted, FLOAT32)


@pytest.mark.parametrize("as_row", [False, True])
def test_a_large_batch_in_float16(as_row):
    """10⁵ samples: their number is infinite in float16."""
    logits, labels = np.zeros((100_000, 2), np.float16), np.zeros(100_000, int)
    labels = np.eye(2, dtype=np.float16)[labels] if as_row else labels
    gradient = jax.grad(lambda logits: 1000.0 * softmax_cross_entropy(logits, labels))(logits)
    np.testing.assert_allclose(gradient, np.broadcast_to([-5e-3, 5e-3], logits.shape), rtol=2**-10)


@pytest.mark.parametrize("label", [-1, 3, 1000, -(2**31)])
def test_a_label_outside_the_classes(label, rng):
    """An error where its value is known; under jit NaN in the loss and in its row, and nowhere else."""
    logits, labels = *draw(rng, (3, 3)), np.array([2, label, 0])
    for call in (softmax_cross_entropy, jax.grad(softmax_cross_entropy)):
        with pytest.raises(ValueError, match=rf"softmax_cross_entropy: labels must be in 0 … 2, got {label}\b"):
            call(logits, labels)
    loss, gradient = jax.jit(jax.value_and_grad(softmax_cross_entropy))(logits, labels)
    a = np.asarray(jax.nn.softmax(logits))
    assert np.isnan(loss)
    assert_close(gradient, np.stack([a[0] - [0, 0, 1], [NAN] * 3, a[2] - [1, 0, 0]]) / 3, FLOAT64)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32])
def test_more_classes_than_the_labels_dtype_counts(dtype, rng):
    """The number of classes must not overflow in the labels' narrow dtype."""
    (logits,) = draw(rng, (2, 300))
    got, wanted = (
        jax.jit(jax.value_and_grad(softmax_cross_entropy))(logits, np.array([5, 127], d)) for d in (dtype, np.int64)
    )
    assert np.isfinite(wanted[0])
    assert_close(got, wanted, EXACT)


def loss(logits, labels, dtypes=(np.float64, np.float64), **static):
    return lambda: softmax_cross_entropy(np.zeros(logits, dtypes[0]), np.zeros(labels, dtypes[1]), **static)


def smoothed(label_smoothing):
    return loss((2, 3), (2, 3), label_smoothing=label_smoothing)


ERRORS = [
    (loss((), ()), ValueError, "logits must be (N, classes) and not empty, got shape ()"),
    (loss((0, 3), (0, 3)), ValueError, "logits must be (N, classes) and not empty, got shape (0, 3)"),
    (loss((2, 0), (2,)), ValueError, "logits must be (N, classes) and not empty, got shape (2, 0)"),
    (loss((2, 3), (3,)), ValueError, "labels must be indices (2,) or rows (2, 3), got shape (3,)"),
    (loss((2, 3), (2, 1)), ValueError, "labels must be indices (2,) or rows (2, 3), got shape (2, 1)"),
    (loss((2, 3), (2,)), TypeError, "labels that are class indices must be whole numbers, got float64"),
    (loss((2, 3), (2,), (float, bool)), TypeError, "labels that are class indices must be whole numbers, got bool"),
    (loss((2, 3), (2, 3), (int, int)), TypeError, "logits must be floating point, got int64"),
    (smoothed(1.0), ValueError, "label_smoothing must be at least 0 and less than 1, got 1.0"),
    (smoothed(-0.1), ValueError, "label_smoothing must be at least 0 and less than 1, got -0.1"),
    (smoothed(NAN), ValueError, "label_smoothing must be at least 0 and less than 1, got nan"),
    (smoothed("0.1"), TypeError, "label_smoothing must be a number, got '0.1'"),
    (smoothed(True), TypeError, "label_smoothing must be a number, got True"),
    (loss((2, 3), (2, 3), (float, np.float32)), TypeError, "dtypes must be equal, got logits float64, labels float32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == f"softmax_cross_entropy: {message}"


def test_no_class_wins_by_a_shift(rng):
    """Softmax does not change when all logits of a sample do, so each row of the gradient sums to zero."""
    logits, labels = *draw(rng, (4, 5)), np.array([0, 1, 2, 4])
    shift = jnp.array([[1e3], [-1e3], [7.0], [0.0]])
    both = [jax.value_and_grad(softmax_cross_entropy)(z, labels) for z in (logits + shift, logits)]
    assert_close(both[0], both[1], FLOAT64)
    assert_close(both[1][1].sum(1), np.zeros(4), FLOAT64)
    assert_close(softmax_cross_entropy(np.zeros((2, 5)), np.array([0, 4])), np.asarray(np.log(5)), FLOAT64)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32])
def test_one_hot_rows_of_any_kind(dtype, x64, rng):
    (logits,) = draw(rng, (4, 3))
    rows = np.eye(3)[[2, 0, 1, 1]]
    got, wanted = (jax.value_and_grad(softmax_cross_entropy)(logits, r) for r in (rows.astype(dtype), rows))
    assert_close(got, wanted, EXACT)


def test_indices_beyond_int32_are_refused_not_wrapped():
    refused = pytest.raises(ValueError, match="softmax_cross_entropy: labels holds values that int32 cannot")
    with jax.enable_x64(False), refused:
        softmax_cross_entropy(np.zeros((2, 3), np.float32), np.array([2**32 + 1, 0]))


def test_unsigned_64_bit_indices(x64):
    logits = np.arange(6.0).reshape(2, 3)
    got, wanted = (jax.value_and_grad(softmax_cross_entropy)(logits, np.array([1, 0], d)) for d in (np.uint64, int))
    assert_close(got, wanted, EXACT)
