"""Pooling by the mean, padding, resizing and transposed convolution against independent formulations."""

import jax
import jax.numpy as jnp
import pytest
from conftest import FLOAT64, assert_close, assert_same
from jax import lax

import jaxcnn

pytestmark = pytest.mark.usefixtures("x64")


def resized(method):
    return lambda x, *, factor: jax.image.resize(x, (2, x.shape[1] * factor, x.shape[2] * factor, 3), method)


def by_loops(x, *, size):
    """PyTorch's windows, one by one."""
    (n, h, w, c), out = x.shape, []
    for i in range(size):
        rows = slice(i * h // size, -(-(i + 1) * h // size))
        out += [x[:, rows, j * w // size : -(-(j + 1) * w // size)].mean((1, 2)) for j in range(size)]
    return jnp.stack(out, 1).reshape(n, size, size, c)


def windows_mean(x, *, window, stride, padding, count_padding):
    pads = lax.padtype_to_pads(x.shape, (1, window, window, 1), (1, stride, stride, 1), padding)
    total, count = (
        lax.reduce_window(a, 0.0, lax.add, (1, window, window, 1), (1, stride, stride, 1), pads)
        for a in (x, jnp.ones_like(x))
    )
    return total / (window**2 if count_padding else count)


X = (2, 5, 4, 3)
PLAIN = {
    "upsample_nearest": (resized("nearest"), X, {"factor": 3}),
    "upsample_bilinear": (resized("bilinear"), X, {"factor": 2}),
    "zero_pad": (lambda x, *, padding: jnp.pad(x, ((0, 0), *padding, (0, 0))), X, {"padding": ((1, 0), (2, 3))}),
    "reflect_pad": (
        lambda x, *, padding: jnp.pad(x, ((0, 0), *padding, (0, 0)), mode="reflect"), X, {"padding": ((1, 0), (2, 3))},
    ),
    "global_avg_pool": (lambda x: x.mean((1, 2)), X, {}),
    "global_max_pool": (lambda x: x.max((1, 2)), X, {}),
    "adaptive_avg_pool": (by_loops, X, {"size": 3}),
    "avg_pool": (windows_mean, X, {"window": 3, "stride": 2, "padding": "SAME", "count_padding": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_values_and_gradients(name, rng):
    plain, shape, static = PLAIN[name]
    assert_same([getattr(jaxcnn, name), plain], (rng.normal(size=shape),), rng, FLOAT64, **static)


def test_padding_counts_where_it_is_asked_for(rng):
    x, static = rng.normal(size=X), {"window": 3, "stride": 2, "padding": "SAME", "count_padding": True}
    assert_same([jaxcnn.avg_pool, windows_mean], (x,), rng, FLOAT64, **static)


def test_depth_and_space_are_inverse_and_blocks_are_row_major(rng):
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    blocks = jaxcnn.space_to_depth(x)
    assert blocks[0, 0, 0].tolist() == [0, 1, 4, 5]
    assert_close(jaxcnn.depth_to_space(blocks), x, 0.0)


@pytest.mark.parametrize(
    "static", [{"stride": 2}, {"padding": "VALID", "dilation": 2}, {"padding": ((0, 1), (2, 0)), "stride": (1, 3)}]
)
def test_conv_transpose2d_is_the_adjoint_of_conv2d(static, rng):
    filters, b = rng.normal(size=(4, 3, 2, 3)), rng.normal(size=(2, 5, 4, 4))
    y = jaxcnn.conv_transpose2d(b, filters, **static)
    a = jnp.asarray(rng.normal(size=y.shape))
    convolved = jaxcnn.conv2d(a, filters, **static)
    assert convolved.shape == b.shape
    assert_close((convolved * b).sum(), (a * y).sum(), FLOAT64)


def test_conv_transpose2d_is_laxs(rng):
    filters, x = rng.normal(size=(4, 3, 3, 3)), rng.normal(size=(2, 5, 4, 4))

    def plain(x, filters):
        turned = jnp.flip(filters, (1, 2)).transpose(1, 2, 0, 3)
        return lax.conv_general_dilated(
            x, turned, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    valid = lambda x, filters: jaxcnn.conv_transpose2d(x, filters, stride=2, padding="VALID")  # noqa: E731
    assert_same([valid, plain], (x, filters), rng, FLOAT64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: jaxcnn.avg_pool(x, count_padding=1), TypeError, "avg_pool: count_padding must be True or"),
        (lambda x: jaxcnn.global_avg_pool(x[0, 0]), ValueError, "global_avg_pool: x must be H×W×C or N"),
        (lambda x: jaxcnn.conv_transpose2d(x, jnp.ones((2, 3, 3, 1))), ValueError, "got 2 filters for 3 channels"),
        (lambda x: jaxcnn.adaptive_avg_pool(x, size=0), ValueError, "adaptive_avg_pool: size must be at least 1"),
        (lambda x: jaxcnn.Upsample(2, "cubic"), ValueError, "cubic"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 4, 4, 3)))
