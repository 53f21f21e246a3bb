"""Training and evaluation with every loss: the update, and what is counted of the outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn

IMAGES = np.random.default_rng(0).standard_normal((12, 3, 2, 1)).astype(np.float32)
RNG = np.random.default_rng(1)
CLASSES, DECISIONS = RNG.integers(0, 3, 12), RNG.integers(0, 2, (12, 3))
PROBABILITIES, NUMBERS = RNG.random((12, 3)).astype(np.float32), RNG.standard_normal((12, 3)).astype(np.float32)
OPTIMIZER = optax.sgd(1.0)
ORDER = 1e-5  # float32 sums in another order


def network(outputs=3):
    return jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(outputs))


def smoothed(logits, labels):
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.2))


def by_sign(logits, labels):
    return (np.asarray(logits) > 0) == (labels > 0.5)


def by_class(logits, labels):
    return np.asarray(logits).argmax(-1) == (labels.argmax(-1) if labels.ndim == 2 else labels)


# Loss, labels, the same of optax (each element's), which outputs are right.
LOSSES = {
    "smoothed": (jaxcnn.softmax_cross_entropy.partial(label_smoothing=0.2), CLASSES, smoothed, by_class),
    "soft rows": (jaxcnn.softmax_cross_entropy, PROBABILITIES, optax.softmax_cross_entropy, by_class),
    "binary": (jaxcnn.sigmoid_binary_cross_entropy, DECISIONS, optax.sigmoid_binary_cross_entropy, by_sign),
    "binary, soft": (jaxcnn.sigmoid_binary_cross_entropy, PROBABILITIES, optax.sigmoid_binary_cross_entropy, by_sign),
    "focal": (
        jaxcnn.sigmoid_focal_loss.partial(gamma=1.0), DECISIONS,
        lambda z, y: optax.sigmoid_focal_loss(z, y, gamma=1.0), by_sign,
    ),
    "squared": (jaxcnn.mean_squared_error, NUMBERS, optax.squared_error, None),
    "huber": (jaxcnn.huber_loss.partial(delta=0.5), NUMBERS, lambda x, t: optax.huber_loss(x, t, delta=0.5), None),
    "its autodiff": (jaxcnn.mean_squared_error.autodiff(), NUMBERS, optax.squared_error, None),
}  # fmt: skip


def started(outputs=3):
    return jaxcnn.init_train_state(network(outputs), OPTIMIZER, 0, IMAGES.shape[1:])


@pytest.mark.parametrize("name", LOSSES)
def test_step_and_evaluation(name):
    loss, labels, plain, right = LOSSES[name]
    params = jax.device_get(started().params)

    def cost(params):
        return plain(network().forward(params, {}, IMAGES)[0], labels).mean()

    value, gradients = jax.value_and_grad(cost)(params)
    wanted = {"loss": float(value)}
    if right is not None:
        wanted["accuracy"] = float(right(network().forward(params, {}, IMAGES)[0], labels).mean())
        assert 0 < wanted["accuracy"] < 1
    for options in ({}, {"microbatch": 3}):
        state, metrics = jaxcnn.train_step(network(), loss, OPTIMIZER, **options)(started(), IMAGES, labels)
        for p, q, g in zip(*map(jax.tree.leaves, (state.params, params, gradients)), strict=True):
            np.testing.assert_allclose(p, q - g, atol=ORDER)
        assert metrics.pop("invalid_labels", 0) == 0
        assert {k: float(v) for k, v in metrics.items()} == pytest.approx(wanted, rel=ORDER)
    got = jaxcnn.evaluate(network(), started(), IMAGES, labels, loss=loss, batch=5)
    assert got == pytest.approx(wanted | {"samples": 12}, rel=ORDER)


@pytest.mark.parametrize("loss", [jaxcnn.sigmoid_binary_cross_entropy, jaxcnn.sigmoid_focal_loss], ids=str)
def test_invalid_binary_labels_are_counted(loss):
    labels = DECISIONS.copy()
    labels[[0, 3], 1] = 255, -1
    _, metrics = jaxcnn.train_step(network(), loss, OPTIMIZER)(started(), IMAGES, labels)
    assert np.isnan(metrics["loss"])
    assert int(metrics["invalid_labels"]) == 2
    with pytest.raises(ValueError, match=f"{loss.name}: labels that are whole numbers must be 0 or 1, got 255"):
        jaxcnn.evaluate(network(), started(), IMAGES, labels, loss=loss)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_an_index_that_names_no_sample_is_an_invalid_label(dtype):
    run = jaxcnn.train_steps(network(), jaxcnn.sigmoid_binary_cross_entropy, OPTIMIZER)
    _, metrics = run(started(), IMAGES, DECISIONS.astype(dtype), jnp.array([[0, 12], [1, 2]]))
    assert np.isnan(metrics["loss"][0])
    assert int(metrics["invalid_labels"][0]) == 3


def test_a_loss_of_ones_own():
    """Of one number a sample there is no accuracy: the largest of one is always right."""
    own = jaxcnn.Rule(
        lambda x, t: (((x - t) ** 2).mean(), x - t), lambda r, dy: (2 * r * dy / r.size, -2 * r * dy / r.size), "own"
    )
    for outputs, names in ((1, {"loss"}), (3, {"loss", "accuracy", "invalid_labels"})):
        step = jaxcnn.train_step(network(outputs), own, OPTIMIZER)
        assert set(step(started(outputs), IMAGES, NUMBERS[:, :outputs])[1]) == names


def test_labels_of_another_shape_are_refused():
    """(N,) numbers do not spread over N×1 outputs; each of the two devices has 6."""
    step = jaxcnn.train_step(network(1), jaxcnn.mean_squared_error, OPTIMIZER)
    with pytest.raises(ValueError, match=r"predictions and targets must have one shape .* got \(6, 1\) and \(6,\)"):
        step(started(1), IMAGES, NUMBERS[:, 0])
