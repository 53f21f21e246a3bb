"""What a training step refuses, and how it says so."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jaxcnn

NETWORK, LOSS, OPTIMIZER = jaxcnn.models.source(), jaxcnn.softmax_cross_entropy, optax.sgd(0.1)
IMAGES, LABELS = np.zeros((16, 8, 8, 1), np.float32), np.zeros(16, int)
MESH = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))


def started():
    return jaxcnn.init_train_state(NETWORK, OPTIMIZER, 0, (8, 8, 1))


@pytest.mark.parametrize("make", [jaxcnn.train_step, jaxcnn.train_steps])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backward": "magic"}, ValueError, "backward must be one of manual, autodiff, got 'magic'"),
        ({"microbatch": 0}, ValueError, "microbatch must be at least 1, got 0"),
        ({"microbatch": 2.0}, TypeError, 'microbatch must be a whole number, "auto" or None, got 2.0'),
        ({"microbatch": True}, TypeError, 'microbatch must be a whole number, "auto" or None, got True'),
        ({"microbatch": "all"}, TypeError, "microbatch must be a whole number, \"auto\" or None, got 'all'"),
        ({"microbatch": np.array([1, 2])}, TypeError, r"microbatch must be a whole .* None, got array\(\[1, 2\]\)"),
        ({"skip_nonfinite": -1}, ValueError, "skip_nonfinite must be at least 0, got -1"),
        ({"skip_nonfinite": 1.5}, TypeError, "skip_nonfinite must be a whole number or None, got 1.5"),
        ({"skip_nonfinite": False}, TypeError, "skip_nonfinite must be a whole number or None, got False"),
        ({"network": jaxcnn.conv2d}, TypeError, "network must be a jaxcnn.Layer, got Rule"),
        ({"mesh": [0, 1]}, TypeError, r"mesh must be a jax.sharding.Mesh, as jax.make_mesh makes, got \[0, 1\]"),
        (
            {"mesh": jax.make_mesh((2, 1), ("a", "b"), axis_types=(AxisType.Auto,) * 2)},
            ValueError,
            r"mesh must have one axis, the batch; got axes \('a', 'b'\)",
        ),
    ],
)
def test_making_a_step_refuses(make, options, error, message):
    with pytest.raises(error, match=f"^{make.__name__}: {message}"):
        make(**{"network": NETWORK, "loss": LOSS, "optimizer": OPTIMIZER, **options})


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((IMAGES,), TypeError, "takes a state and images, labels, got 1 arrays"),
        (
            (IMAGES[:15], LABELS[:15]),
            ValueError,
            "a batch of 15 does not divide by 2 devices; take a multiple of 2, or",
        ),
        ((1.0, 2), ValueError, r"images must have the batch on axis 0, got shape \(\)"),
        ((IMAGES, 2), ValueError, r"labels must have the batch on axis 0, got shape \(\)"),
        ((None, LABELS), TypeError, "images must be an array, got NoneType"),
        ((IMAGES, None), TypeError, "labels must be an array, got NoneType"),
        ((IMAGES, ["yes", "no"]), TypeError, "labels must be an array, got list"),
        ((IMAGES, [2**40] * 16), TypeError, "labels must be an array, got list"),
        ((IMAGES, np.full(16, 2**40)), ValueError, "labels holds values that int32 cannot, got 1099511627776 … "),
        ((IMAGES, LABELS[:8]), ValueError, "images and labels must be as many, got 16 and 8"),
        (([[1, 2], [3]], LABELS), TypeError, "images must be an array, got list"),
    ],
)
def test_a_step_refuses(data, error, message):
    step = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, mesh=MESH)
    with pytest.raises(error, match=f"^train_step: {message}"):
        step(started(), *data)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((IMAGES, LABELS), TypeError, "takes a state and images, labels, indices, got 2 arrays"),
        ((IMAGES, LABELS, np.zeros((3, 15), int)), ValueError, "a batch of 15 does not divide by 2 devices"),
        ((1.0, LABELS, np.zeros((3, 4), int)), ValueError, r"images must have the samples on axis 0, got shape \(\)"),
        ((IMAGES, LABELS, np.arange(4)), ValueError, r"indices must have the batch on axis 1, got shape \(4,\)"),
        ((IMAGES[:8], LABELS, np.zeros((3, 4), int)), ValueError, "images and labels must be as many, got 8 and 16"),
        (
            (IMAGES, LABELS, np.full((3, 4), 2**32)),
            ValueError,
            "indices holds values that int32 cannot, got 4294967296",
        ),
        (
            (IMAGES, LABELS, np.zeros((3, 4), np.float32)),
            TypeError,
            r"indices must be whole numbers, \(steps, batch\), got float32 of 2 axes",
        ),
        (
            (IMAGES, LABELS, jnp.zeros((3, 4, 2), jnp.int32)),
            TypeError,
            r"indices must be whole numbers, \(steps, batch\), got int32 of 3 axes",
        ),
    ],
)
def test_steps_in_a_scan_refuse(data, error, message):
    run = jaxcnn.train_steps(NETWORK, LOSS, OPTIMIZER, mesh=MESH)
    with pytest.raises(error, match=f"^train_steps: {message}"):
        run(started(), *data)


def test_of_no_images_the_loss_speaks():
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: logits must be .* not empty, got shape"):
        jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, mesh=MESH)(started(), IMAGES[:0], LABELS[:0])


def test_small_whole_numbers_choose_among_many_images():
    """300 is none of int8's."""
    images, labels = np.zeros((300, 8, 8, 1), np.float32), np.arange(300) % 10
    run = jaxcnn.train_steps(NETWORK, LOSS, OPTIMIZER, mesh=MESH)
    losses = [run(started(), images, labels, np.arange(8).reshape(2, 4).astype(dtype))[1]["loss"] for dtype in "bi"]
    np.testing.assert_array_equal(*losses)


def test_a_step_of_an_abstract_mesh_is_not_called():
    step = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, mesh=MESH.abstract_mesh)
    with pytest.raises(TypeError, match=r"^train_step: of an abstract mesh: it can be traced and lowered, and not be"):
        step(started(), IMAGES, LABELS)


@pytest.mark.parametrize("name", ["train_step", "train_steps", "gradients"])
def test_states_of_several_seeds_are_not_one(name):
    states = jaxcnn.init_train_states(NETWORK, OPTIMIZER, range(3), (8, 8, 1))
    calls = {
        "train_step": lambda: jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, mesh=MESH)(states, IMAGES, LABELS),
        "train_steps": lambda: jaxcnn.train_steps(NETWORK, LOSS, OPTIMIZER, mesh=MESH)(
            states, IMAGES, LABELS, np.arange(8).reshape(2, 4)
        ),
        "gradients": lambda: jaxcnn.gradients(NETWORK, LOSS, states, IMAGES, LABELS),
    }
    says = "state must be of one seed, got states of 3; take one of them, jax.tree.map(lambda leaf: leaf[0], states)"
    with pytest.raises(ValueError, match=f"^{name}: {re.escape(says)}"):
        calls[name]()
