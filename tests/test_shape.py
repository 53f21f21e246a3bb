"""flatten and unflatten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACT, assert_close, assert_same, draw

from jaxcnn import flatten, unflatten

SHAPES = [
    ((3, 4), (1, 12)),
    ((3, 4, 2), (1, 24)),
    ((5, 3, 4, 2), (5, 24)),
    ((1, 1, 1, 1), (1, 1)),
    ((0, 2, 2, 1), (0, 4)),
]


@pytest.mark.parametrize(("shape", "rows"), SHAPES)
def test_flatten(shape, rows, x64, rng):
    assert_same([flatten, lambda x: jnp.reshape(x, rows)], draw(rng, shape), rng, EXACT)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.uint8])
def test_flatten_takes_any_dtype(dtype):
    x = np.arange(12).reshape(2, 3, 2, 1).astype(dtype)
    assert_close(flatten(x), x.reshape(2, 6), EXACT)


def test_flatten_of_integers_has_no_gradient():
    y, pullback = jax.vjp(flatten, np.arange(6).reshape(2, 3))
    assert pullback(np.zeros(y.shape, jax.dtypes.float0))[0].dtype == jax.dtypes.float0


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_unflatten_is_the_inverse(dtype):
    x = np.arange(120).reshape(5, 3, 4, 2).astype(dtype)
    assert_close(unflatten(flatten(x), 5, 3, 4, 2), x, EXACT)
    assert_close(flatten(unflatten(x.reshape(5, 24), 5, 3, 4, 2)), x.reshape(5, 24), EXACT)
    assert_close(unflatten(x.ravel(), 5, 3, 4, 2), x, EXACT)


@pytest.mark.parametrize("shape", [(), (4,), (1, 1, 2, 2, 1)])
def test_errors_of_flatten(shape):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared
        flatten(np.zeros(shape))
    assert str(caught.value) == f"flatten: x must be H×W, H×W×C or N×H×W×C, got shape {shape}"


def test_errors_of_unflatten():
    with pytest.raises(ValueError, match=r"unflatten: a must hold N·H·W·C = 2·2·2·2 = 16 values, got shape \(2, 6\)"):
        unflatten(np.zeros((2, 6)), 2, 2, 2, 2)
