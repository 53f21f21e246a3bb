"""Normalisation against plain formulas; the batch's statistics where the batch is divided among devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT64, assert_close, assert_same
from jax.sharding import PartitionSpec as P

import jaxcnn

pytestmark = pytest.mark.usefixtures("x64")


def standardised(x, axes, epsilon):
    return (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + epsilon)


def plain_group_norm(x, scale, shift, *, groups, epsilon=1e-6):
    n, h, w, _ = x.shape
    return standardised(x.reshape(n, h, w, groups, -1), (1, 2, 4), epsilon).reshape(x.shape) * scale + shift


PLAIN = {
    "batch_norm": (lambda x, s, b: standardised(x, (0, 1, 2), 1e-5) * s + b, {}),
    "layer_norm": (lambda x, s, b: standardised(x, -1, 1e-6) * s + b, {}),
    "instance_norm": (lambda x, s, b: standardised(x, (1, 2), 1e-6) * s + b, {}),
    "group_norm": (plain_group_norm, {"groups": 2}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_values_and_gradients(name, rng):
    plain, static = PLAIN[name]
    arrays = rng.normal(size=(3, 4, 5, 4)) + 2, rng.normal(size=4), rng.normal(size=4)
    assert_same([getattr(jaxcnn, name), plain], arrays, rng, FLOAT64, **static)


def test_rms_norm_and_frozen_batch_norm(rng):
    x, scale, shift, mean = rng.normal(size=(3, 4)), *rng.normal(size=(3, 4))
    plain = lambda x, s: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * s  # noqa: E731
    assert_same([jaxcnn.rms_norm, plain], (x, scale), rng, FLOAT64)
    plain = lambda x, s, b, m, v: (x - m) / jnp.sqrt(v + 1e-5) * s + b  # noqa: E731
    variance = rng.random(4) + 0.1
    assert_same([jaxcnn.frozen_batch_norm, plain], (x, scale, shift, mean, variance), rng, FLOAT64)


def test_statistics_are_the_whole_batchs_where_it_is_divided(rng):
    arrays = (
        jnp.asarray(rng.normal(size=(4, 3, 2, 3))),
        jnp.asarray(rng.normal(size=3)),
        jnp.asarray(rng.normal(size=3)),
    )
    dy = jnp.asarray(rng.normal(size=(4, 3, 2, 3)))

    def pulled(function):
        return lambda dy, *arrays: (function(*arrays), jax.vjp(function, *arrays)[1](dy))

    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        jaxcnn.batch_norm, mesh=mesh, in_specs=(P("batch"), P(), P()), out_specs=P("batch")
    )  # fmt: skip
    got = jax.block_until_ready(jax.jit(pulled(sharded))(dy, *arrays))
    assert_close(jax.tree.map(np.asarray, got), jax.jit(pulled(jaxcnn.batch_norm))(dy, *arrays), FLOAT64)
    halves = jnp.concatenate([jaxcnn.batch_norm(half, *arrays[1:]) for half in jnp.split(arrays[0], 2)])
    assert np.abs(halves - got[0]).max() > 0.1  # statistics of each device alone are others


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, s: jaxcnn.batch_norm(x, s[:2], s), ValueError, r"batch_norm: scale must have shape \(3,\)"),
        (lambda x, s: jaxcnn.layer_norm(x, s, s, epsilon=0), ValueError, "layer_norm: epsilon must be positive, got 0"),
        (lambda x, s: jaxcnn.group_norm(x, s, s, groups=2), ValueError, "groups must divide the 3 channels, got 2"),
        (lambda x, s: jaxcnn.instance_norm(x[0], s, s), ValueError, "instance_norm: x must be N×H×W×C, got shape"),
        (lambda x, s: jaxcnn.rms_norm(x, s.astype("float32")), TypeError, "rms_norm: dtypes must be equal, got"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 2, 2, 3)), jnp.ones(3))


def test_dropout_leaves_out_the_same_values_backward():
    x, key = jnp.ones((50, 40)), jax.random.key(3)
    y, pullback = jax.vjp(lambda x: jaxcnn.dropout(x, key, rate=0.25), x)
    assert set(np.unique(y).round(6)) == {0.0, 1.333333}
    assert abs(float((y == 0).mean()) - 0.25) < 0.03
    assert_close(pullback(x)[0], y, 0.0)
    channels = jaxcnn.dropout(jnp.ones((4, 3, 3, 8)), key, rate=0.5, broadcast=(1, 2))
    assert (np.ptp(channels, axis=(1, 2)) == 0).all()
    assert 0 < (channels == 0).mean() < 1
    with pytest.raises(ValueError, match="dropout: rate must be at least 0 and less than 1, got 1"):
        jaxcnn.dropout(x, key, rate=1)
