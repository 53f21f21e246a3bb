"""relu and sigmoid: values and gradients, also where they are extreme or not defined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, assert_close, assert_same, draw
from scipy import special

from jaxcnn import relu, sigmoid

pytestmark = pytest.mark.usefixtures("x64")

INF, NAN = np.inf, np.nan


def pulled(rule, x, dy):
    return jax.vjp(rule, jnp.asarray(x))[1](jnp.asarray(dy, x.dtype))[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relu_point_by_point(dtype):
    """The derivative at 0 is 0; NaN goes through; -inf is blocked, not made NaN."""
    x = np.array([-INF, -2, -1e-30, -0.0, 0, 1e-30, 3, INF, NAN], dtype)
    assert_close(relu(x), np.array([0, 0, 0, 0, 0, 1e-30, 3, INF, NAN], dtype), EXACT)
    dy = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23], dtype)
    assert_close(pulled(relu, x, dy), np.array([0, 0, 0, 0, 0, 13, 17, 19, 23], dtype), EXACT)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 5, 4, 3)])
def test_relu_is_the_sources(shape, rng):
    """`(img>0)*img`, and its derivative where x is not 0 (there, too, it is 0)."""
    assert_same([relu, lambda x: (x > 0) * x], draw(rng, shape), rng, FLOAT64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, FLOAT32), (np.float64, FLOAT64)])
@pytest.mark.parametrize("shape", [(), (5,), (2, 5, 4, 3)])
def test_sigmoid(shape, dtype, tolerance, rng):
    x = np.asarray(rng.normal(size=shape) * 4, dtype)
    assert_close(sigmoid(x), np.asarray(special.expit(x)), tolerance)
    assert_same([sigmoid, lambda x: 1 / (1 + jnp.exp(-x))], (x,), rng, tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_of_extreme_values(dtype):
    x = np.array([-INF, -1e4, 0, 1e4, INF, NAN], dtype)
    assert_close(sigmoid(x), np.array([0, 0, 0.5, 1, 1, NAN], dtype), EXACT)
    assert_close(pulled(sigmoid, x, [3, 5, 8, 7, 11, 13]), np.array([0, 0, 2, 0, 0, NAN], dtype), EXACT)


@pytest.mark.parametrize("rule", [relu, sigmoid])
@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_errors(rule, dtype):
    with pytest.raises(TypeError) as caught:
        rule(np.zeros(3, dtype))
    assert str(caught.value) == f"{rule.name}: x must be floating point, got {np.dtype(dtype)}"
