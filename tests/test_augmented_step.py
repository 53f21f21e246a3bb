"""Augmentation in the training step: once for each device and step, before all else, by a key of its own."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import BATCH, LOSS, NETWORK, ORDER, data, mesh_of, new_state

import jaxcnn
from jaxcnn.training.step import BACKWARD

AUGMENT = jaxcnn.augment.from_text("crop=2,flip,cutout=4")
SGD = optax.sgd(0.1)


def augmented_by_hand(state, images, devices: int) -> jax.Array:
    """What the network is to see in this step: (key, step, device) decide."""
    key = jax.random.fold_in(state.key, state.step)
    shares = []
    for device, share in enumerate(jnp.split(images, devices)):
        own = key if devices == 1 else jax.random.fold_in(key, device)
        shares.append(AUGMENT(jax.random.split(own)[1], share))
    return jnp.concatenate(shares)


@pytest.mark.parametrize(
    "options", [{"mesh": 1}, {"mesh": 2}, {"mesh": 2, "microbatch": 4}, {"mesh": 1, "backward": "autodiff"}], ids=str
)
def test_a_step_is_one_on_augmented_images(options):
    devices = options["mesh"]
    options = options | {"mesh": mesh_of(devices)}
    step = jaxcnn.train_step(NETWORK, LOSS, SGD, augment=AUGMENT, **options)
    plain = jaxcnn.train_step(NETWORK, LOSS, SGD, **options)
    state, wanted = new_state(SGD), new_state(SGD)
    images, labels = (a[:BATCH] for a in data())
    seen = []
    for _ in range(3):
        seen.append(augmented_by_hand(wanted, images, devices))
        wanted, _ = plain(wanted, seen[-1], labels)
        state, _ = step(state, images, labels)
    chex.assert_trees_all_close(*jax.device_get((state.params, wanted.params)), rtol=ORDER, atol=ORDER)
    assert all((a != b).any() for a, b in zip(seen, [images, *seen], strict=False))  # another at each step


@pytest.mark.parametrize("devices", [1, 2])
def test_many_steps_are_as_single_ones(devices):
    options = {"augment": AUGMENT, "mesh": mesh_of(devices)}
    step, run = (make(NETWORK, LOSS, SGD, **options) for make in (jaxcnn.train_step, jaxcnn.train_steps))
    state, indices, losses = new_state(SGD), jaxcnn.shuffled(64, BATCH, seed=0, epoch=0), []
    for chosen in indices:
        state, metrics = step(state, *(a[chosen] for a in data()))
        losses.append(metrics["loss"])
    at_once, metrics = run(new_state(SGD), *data(), indices)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=ORDER)
    chex.assert_trees_all_close(*jax.device_get((at_once.params, state.params)), rtol=ORDER, atol=ORDER)


@pytest.mark.parametrize("backward", BACKWARD)
def test_the_networks_own_randomness_is_another(backward):
    """With one key for both, the noise that is taken away before would be what the network adds."""

    def forward(params, state, x, *, train=False, key=None):
        return NETWORK.forward(params, state, x + jax.random.normal(key, x.shape, x.dtype), train=train, key=key)

    def without_noise(key, images):
        return images - jax.random.normal(key, images.shape, images.dtype)

    network = jaxcnn.Layer("noisy", NETWORK.init, forward, NETWORK.backward)
    step = jaxcnn.train_step(network, LOSS, SGD, augment=without_noise, backward=backward, mesh=mesh_of(1))
    images, labels = (a[:BATCH] for a in data())
    _, metrics = step(new_state(SGD), images, labels)
    assert abs(metrics["loss"] - jaxcnn.evaluate(NETWORK, new_state(SGD), images, labels)["loss"]) > 1e-3


def test_evaluation_sees_the_images_as_they_are():
    """An augmentation that leaves nothing: the network learns nothing, and is judged on the images all the same."""
    nothing = jaxcnn.train_step(NETWORK, LOSS, SGD, augment=lambda key, images: 0 * images)
    state, metrics = nothing(new_state(SGD), *(a[:BATCH] for a in data()))
    blank = jaxcnn.evaluate(NETWORK, new_state(SGD), 0 * data()[0][:BATCH], data()[1][:BATCH])
    np.testing.assert_allclose(metrics["loss"], blank["loss"], rtol=1e-5)
    assert abs(jaxcnn.evaluate(NETWORK, state, *data())["loss"] - blank["loss"]) > 1e-3


@pytest.mark.parametrize("make", [jaxcnn.train_step, jaxcnn.train_steps])
def test_what_is_no_augmentation(make):
    name = make.__name__
    with pytest.raises(TypeError, match=rf"^{name}: augment must be a function of \(key, images\), got str"):
        make(NETWORK, LOSS, SGD, augment="flip")
    given = (*data(), jnp.arange(BATCH)[None]) if make is jaxcnn.train_steps else [a[:BATCH] for a in data()]
    for augment, got in (
        (lambda key, images: images[:, 1:], r"float32\[16, 7, 8, 1\]"),
        (lambda key, images: images.astype(jnp.bfloat16), r"bfloat16\[16, 8, 8, 1\]"),
        (lambda key, images: None, "None"),
    ):
        wanted = rf"^{name}: augment must return images as it gets them, float32\[16, 8, 8, 1\]; got {got}"
        with pytest.raises(TypeError, match=wanted):
            make(NETWORK, LOSS, SGD, augment=augment, mesh=mesh_of(1))(new_state(SGD), *given)
