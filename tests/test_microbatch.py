"""How many images pass at a time: chosen by what stays in the cache, never with another gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT64, assert_close

import jaxcnn
from jaxcnn import models
from jaxcnn.training.microbatch import FEW, SAVED, automatic, independent

KEY = jax.random.key(0)


def abstract(network, shape, batch):
    params, state = jax.eval_shape(lambda key: network.init(key, shape)[:2], KEY)
    return params, state, jax.ShapeDtypeStruct((batch, *shape), jnp.float32)


def chosen(network, shape, batch):
    params, state, images = abstract(network, shape, batch)
    return automatic(network, params, state, images, KEY)


def saved_bytes(network, shape, batch):
    """Of the residuals that the batch makes, by the summary, which counts them in its own way."""
    one, two = (jaxcnn.summary(network, shape, n).saved_bytes for n in (batch, 2 * batch))
    return two - one


@pytest.mark.parametrize("batch", [16, 64, 96, 100, 127, 509, 512])
@pytest.mark.parametrize(("network", "shape"), [(models.two_conv(), (28, 28, 1)), (models.source(), (8, 8, 1))])
def test_as_many_as_stay_in_the_cache_or_equal_parts_of_at_least_half_of_that(network, shape, batch):
    size = chosen(network, shape, batch)
    most = min(batch, SAVED // saved_bytes(network, shape, 1))
    equal = [n for n in range(max(FEW, most // 2), most + 1) if batch % n == 0]
    assert size == (equal[-1] if equal else most)
    assert saved_bytes(network, shape, size) <= SAVED


def test_never_less_than_what_makes_a_product_worth_while():
    assert chosen(models.all_conv(), (32, 32, 3), 64) == FEW
    assert chosen(models.all_conv(), (32, 32, 3), 61) == FEW
    assert chosen(models.two_conv(), (28, 28, 1), 4) == 4


def test_layers_that_look_at_samples_together_take_the_whole_batch():
    assert not independent(models.resnet20())
    assert chosen(models.resnet20(), (32, 32, 3), 64) == 64
    assert independent(models.convnext())
    assert independent(jaxcnn.residual(jaxcnn.Conv2D(3, 3)))
    undeclared = jaxcnn.layers.from_rule(jaxcnn.relu.replace(batch_axes=None), "mine")
    assert not independent(jaxcnn.sequential(jaxcnn.Conv2D(4, 3), undeclared))


def mesh_of(devices):
    return jax.make_mesh(
        (devices,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("share", [32, 31])
def test_the_gradient_does_not_depend_on_it(devices, share, monkeypatch):
    """Plain gradient descent: the parameters after two steps tell the gradients. 31 is prime: some images are left
    over, and each of them counts as much as the others."""
    monkeypatch.setattr("jaxcnn.training.microbatch.SAVED", 500_000)  # 9 images
    network, optimizer = models.source(), optax.sgd(0.5)
    rng = np.random.default_rng(0)
    batch = share * devices
    images, labels = jnp.asarray(rng.normal(size=(batch, 8, 8, 1))), jnp.asarray(rng.integers(0, 10, batch))
    results = []
    for microbatch in (None, "auto", 4, 30):
        state = jaxcnn.init_train_state(network, optimizer, 0, (8, 8, 1))
        state = state._replace(params=jax.tree.map(lambda p: p.astype(jnp.float64), state.params))
        step = jaxcnn.train_step(
            network, jaxcnn.softmax_cross_entropy, optimizer, microbatch=microbatch, mesh=mesh_of(devices)
        )
        loops = step.lower(state, images, labels).as_text().count("stablehlo.while")
        assert loops == (0 if microbatch is None else 1)
        for _ in range(2):
            state, metrics = step(state, images, labels)
        results.append((state.params, metrics))
    for result in results[1:]:
        assert_close(result, results[0], FLOAT64)


def test_what_is_left_over_takes_no_memory_of_its_own():
    """127 images of a device, a prime number, beside 128; the whole batch would take ten times as much."""
    network, optimizer = models.two_conv(), optax.sgd(0.1)
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, optimizer, 0, (28, 28, 1)))
    step = jaxcnn.train_step(network, jaxcnn.softmax_cross_entropy, optimizer, microbatch="auto", mesh=mesh_of(2))

    def temporaries(batch):
        data = jax.ShapeDtypeStruct((batch, 28, 28, 1), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
        return step.lower(state, *data).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(254) <= 1.25 * temporaries(256)


def test_no_loop_elsewhere_than_on_a_cpu():
    network, optimizer = models.two_conv(), optax.sgd(0.1)
    step = jaxcnn.train_step(
        network, jaxcnn.softmax_cross_entropy, optimizer, microbatch="auto", mesh=jax.make_mesh((1,), ("batch",))
    )
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, optimizer, 0, (28, 28, 1)))
    data = jax.ShapeDtypeStruct((64, 28, 28, 1), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.int32)
    loops = {
        platform: step.trace(state, *data).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")
        for platform in ("cpu", "cuda", "tpu")
    }
    assert loops == {"cpu": 1, "cuda": 0, "tpu": 0}
