"""The networks as a whole: run backward by hand against autodiff, their parameters counted, state and keys."""

import jax
import jax.numpy as jnp
import optax
import pytest
from conftest import FLOAT64, NETWORK, assert_close, random_like

import jaxcnn
from jaxcnn import models

KEY = jax.random.key(0)

# Parameters for 32×32×3 and 10 classes, worked out by hand from the papers' tables:
# filters n·h·w·C, 2 a channel for each normalisation, 1 for LayerScale, dense layers in·out + out (if there is a bias).
COUNTS = {
    "vgg": sum(o * 9 * i + 2 * o for i, o in ((3, 32), (32, 64), (64, 64), (64, 64))) + 64 * 10 + 10,
    "all_conv": sum(o * k * k * i + o for i, o, k in (
        (3, 96, 3), (96, 96, 3), (96, 96, 3), (96, 192, 3), (192, 192, 3), (192, 192, 3), (192, 192, 3), (192, 192, 1),
        (192, 10, 1),
    )),
    "resnet20": 272_474,  # Idelbayev's count for option A, 269,722, and 16·32 + 32·64 + 2·(32 + 64) of two shortcuts
    "resnet9": 6_573_120,  # Page's
    "mobilenet_v2": sum((
        16 * 27 + 32 + (16 * 9 + 32 + 16 * 16 + 32),
        sum(6 * c * c + 12 * c + 9 * 6 * c + 12 * c + 6 * c * o + 2 * o for c, o in (
            (16, 32), (32, 32), (32, 64), (64, 64), (64, 64), (64, 128), (128, 128),
        )),
        128 * 512 + 1024 + 5130,
    )),
    "convnext": sum((
        40 * 2 * 2 * 3 + 40 + 2 * 40,
        sum(2 * (c * 49 + c + 2 * c + (c * 4 * c + 4 * c) + (4 * c * c + c) + c) for c in (40, 80, 160)),
        sum(2 * c + 2 * c * 4 * c + 2 * c for c in (40, 80)),
        2 * 160 + 1610,
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_parameters(name):
    network = getattr(models, name)()
    params = jax.eval_shape(lambda key: network.init(key, (32, 32, 3))[0], KEY)
    assert sum(p.size for p in jax.tree.leaves(params)) == COUNTS[name]
    assert f"{COUNTS[name]:,}" in (getattr(models, name).__doc__ or "")


# Each with its true layers, narrow, on small images: what takes long is compiling. Of two channels, or of the three
# values of a last feature map of 1×1, normalisation leaves little but signs, and gradients that cancel.
NARROW = {
    "vgg": (models.vgg(3, width=2), (16, 16, 1)),
    "resnet9": (models.resnet9(3, width=2), (8, 8, 1)),
    "resnet20": (models.resnet20(3, width=2), (8, 8, 1)),
    "all_conv": (models.all_conv(3, width=2), (12, 12, 1)),
    "mobilenet_v2": (models.mobilenet_v2(3, width=4), (16, 16, 1)),
    "convnext": (models.convnext(3, width=6, drop=0.5), (8, 8, 1)),
}


def in_both_modes():
    for name in NARROW:
        for train in (True, False):
            light = name == "resnet9" and train
            yield pytest.param(name, train, marks=() if light else pytest.mark.long)


@pytest.mark.parametrize(("name", "train"), list(in_both_modes()))
def test_every_parameter_of_the_networks(x64, rng, name, train):
    """In training with the statistics of the batch and with random numbers; outside of it without either."""
    network, input_shape = NARROW[name]
    params, state = jax.jit(lambda key: network.init(key, input_shape)[:2])(KEY)
    params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape), params)  # shifts of 0 would hide much
    state = jax.tree.map(lambda s: s + 0.1 * rng.random(size=s.shape), state)
    x, labels = jnp.asarray(rng.normal(size=(3, *input_shape))), jnp.array([2, 0, 1])

    def plain(params, x):
        logits, new_state, _ = network.forward(params, state, x, train=train, key=KEY)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new_state

    @jax.jit
    def by_hand_and_autodiff(params, x):
        logits, new_state, residuals = network.forward(params, state, x, train=train, key=KEY)
        loss, saved = jaxcnn.softmax_cross_entropy.forward(logits, labels)
        dlogits, _ = jaxcnn.softmax_cross_entropy.backward(saved, jnp.ones(()), label_smoothing=0.0)
        by_hand = (loss, new_state), network.backward(residuals, dlogits)
        return by_hand, jax.value_and_grad(plain, (0, 1), has_aux=True)(params, x)

    assert_close(*map(without_noise, by_hand_and_autodiff(params, x)), NETWORK)


def without_noise(tree):
    """A shift that goes through a convolution into the next batch normalisation is taken off there again: its gradient
    is 0 but for rounding. What is that small beside the largest gradient counts as 0, an array at a time.
    """
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
    return jax.tree.map(lambda leaf: leaf * (jnp.abs(leaf).max() > FLOAT64 * largest), tree)


STAGES = {
    "vgg": (4, 4, 64), "all_conv": (6, 6, 10), "resnet20": (8, 8, 64), "resnet9": (4, 4, 512),
    "mobilenet_v2": (4, 4, 512), "convnext": (4, 4, 160),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_last_feature_map_is_the_published_one(name):
    """Of 32×32 images: how often they are halved."""
    layers = getattr(models, name)().layers
    end = next(i for i, layer in enumerate(layers) if layer.name.startswith("global_"))
    trunk = jaxcnn.sequential(*layers[:end])

    def forward(key, x):
        params, state, _ = trunk.init(key, x.shape[1:])
        return trunk.forward(params, state, x)[0]

    assert jax.eval_shape(forward, KEY, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)).shape == (2, *STAGES[name])


def test_resnet20_is_the_papers(x64, rng):
    """Its first two stages' block in plain jax: projection on the way around, the activation behind the sum."""
    block = models.resnet20(3, width=2).layers[6]
    params, _, shape = block.init(KEY, (4, 4, 2))
    assert shape == (2, 2, 4)
    x = jnp.asarray(rng.normal(size=(3, 4, 4, 2)))
    params = random_like(rng, params)

    def convolved(p, x, stride, number=""):
        filters, norm = p[f"conv2d{number}"]["filters"], p[f"batch_norm{number}"]
        z = jax.lax.conv_general_dilated(
            x, filters, (stride, stride), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC")
        )
        return norm["scale"] * (z - z.mean((0, 1, 2))) / jnp.sqrt(z.var((0, 1, 2)) + 1e-5) + norm["shift"]

    inner, around = params["residual"]["layer"], params["residual"]["shortcut"]
    a = jnp.maximum(convolved(inner, x, 2, "_1"), 0)
    wanted = jnp.maximum(convolved(inner, a, 1, "_2") + convolved(around, x, 2), 0)
    state = block.init(KEY, (4, 4, 2))[1]
    assert_close(block.forward(params, state, x, train=True)[0], wanted, NETWORK)


@pytest.mark.parametrize("name", ["all_conv", "convnext"])
def test_networks_that_draw_say_so(name):
    network, shape = NARROW[name]

    def forward(key, x):
        params, state, _ = network.init(key, shape)
        return network.forward(params, state, x, train=True)[0]

    with pytest.raises(ValueError, match="got no key; training needs one"):
        jax.eval_shape(forward, KEY, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
