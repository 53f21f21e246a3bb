"""Activations: values and gradients, also where they are extreme or not defined."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, assert_close, assert_same, draw
from scipy import special

import jaxcnn
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


# --- the others: values are jax.nn's, derivatives are compared with other formulas in NumPy ---------------------------

LAMBDA, ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def leaky_slope(x, negative_slope=0.01):
    return np.where(x > 0, 1, negative_slope)


def elu_slope(x, alpha=1.0):
    return np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0)))


def gelu_slope(x, approximate=True):
    if not approximate:
        return special.ndtr(x) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    u, du = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), math.sqrt(2 / math.pi) * (1 + 0.134145 * x**2)
    return special.expit(2 * u) + x * du / (1 + np.cosh(2 * u))


# Each with the value that was chosen at the kinks.
SLOPES = {
    "relu6": lambda x: np.where((x > 0) & (x < 6), 1, 0),
    "leaky_relu": leaky_slope,
    "elu": elu_slope,
    "selu": lambda x: LAMBDA * elu_slope(x, ALPHA),
    "hard_sigmoid": lambda x: np.where(np.abs(x) < 3, 1 / 6, 0),
    "hard_swish": lambda x: np.select([x <= -3, x < 3], [0 * x, (2 * x + 3) / 6], 1),
    "tanh": lambda x: 1 / np.cosh(x) ** 2,
    "softplus": special.expit,
    "silu": lambda x: special.expit(x) + x / (2 + 2 * np.cosh(x)),
    "gelu": gelu_slope,
}
CHOICES = [
    *((name, {}) for name in SLOPES),
    ("leaky_relu", {"negative_slope": 0.0}),
    ("leaky_relu", {"negative_slope": 1.5}),
    ("elu", {"alpha": 0.0}),
    ("elu", {"alpha": 2.5}),
    ("gelu", {"approximate": False}),
]
POINTS = np.concatenate([np.linspace(-9, 9, 37), np.random.default_rng(5).normal(size=27) * 4])  # 0, ±3, 6 among them


def together(name, static, x, dy):
    """The output and dx."""
    rule = functools.partial(getattr(jaxcnn, name), **static)
    return jax.jit(lambda x, dy: (rule(x), jax.vjp(rule, x)[1](dy)[0]))(jnp.asarray(x), jnp.asarray(dy, x.dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("name", "static"), CHOICES)
def test_values_and_slopes(name, static, dtype, rng):
    """In the lower precisions within two units in the last place of the largest: y is rounded, and dx made of it; of
    silu and gelu, which compute in float32, dx is rounded once."""
    x = jnp.asarray(POINTS, dtype)
    exact = np.asarray(x, np.float64)
    dy = jnp.asarray(rng.normal(size=x.shape), dtype)
    y, dx = together(name, static, x, dy)
    assert y.dtype == dx.dtype == x.dtype
    tolerance = {"float64": FLOAT64, "float32": FLOAT32}.get(dtype, 2 * float(jnp.finfo(dtype).eps))
    assert_close(np.asarray(y, np.float64), getattr(jax.nn, name)(exact, **static), tolerance)
    tolerance /= 3 if name in ("silu", "gelu") and x.dtype.itemsize == 2 else 1
    assert_close(np.asarray(dx, np.float64), SLOPES[name](exact, **static) * np.asarray(dy, np.float64), tolerance)


EXTREMES = [-INF, -1e4, 1e4, INF, NAN]
AT_EXTREMES = {  # outputs, slopes
    "relu6": ([0, 0, 6, 6, NAN], [0, 0, 0, 0, 1]),
    "leaky_relu": ([-INF, -100, 1e4, INF, NAN], [0.01, 0.01, 1, 1, 1]),
    "elu": ([-1, -1, 1e4, INF, NAN], [0, 0, 1, 1, 1]),
    "selu": ([-LAMBDA * ALPHA, -LAMBDA * ALPHA, LAMBDA * 1e4, INF, NAN], [0, 0, LAMBDA, LAMBDA, LAMBDA]),
    "hard_sigmoid": ([0, 0, 1, 1, NAN], [0, 0, 0, 0, 1 / 6]),
    "hard_swish": ([0, 0, 1e4, INF, NAN], [0, 0, 1, 1, NAN]),
    "tanh": ([-1, -1, 1, 1, NAN], [0, 0, 0, 0, NAN]),
    "softplus": ([0, 0, 1e4, INF, NAN], [0, 0, 1, 1, NAN]),
    "silu": ([NAN, 0, 1e4, INF, NAN], [NAN, 0, 1, NAN, NAN]),
    "gelu": ([NAN, 0, 1e4, INF, NAN], [0, 0, 1, 1, NAN]),
}


@pytest.mark.parametrize(("name", "static"), [*((n, {}) for n in AT_EXTREMES), ("gelu", {"approximate": False})])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_extreme_values(name, static, dtype):
    y, dx = together(name, static, jnp.asarray(EXTREMES, dtype), np.ones(5))
    for got, wanted in zip((y, dx), AT_EXTREMES[name], strict=True):
        # float32 and float64 hold these numbers; in the others they are rounded. np.testing takes NaN to equal NaN.
        np.testing.assert_allclose(
            np.asarray(got, np.float64), wanted, rtol=max(1e-6, float(jnp.finfo(dtype).eps)), atol=1e-300
        )


@pytest.mark.parametrize(
    ("name", "static"), [*((n, {}) for n in ("relu", "sigmoid", *AT_EXTREMES)), ("gelu", {"approximate": False})]
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_forward_mode_at_extreme_values(name, static, dtype):
    """By the plain forward pass, in which 0 · inf may occur where the backward pass has none."""
    rule = getattr(jaxcnn, name).partial(**static)
    large = [s * min(v, float(jnp.finfo(dtype).max)) for s in (-1, 1) for v in (100, 1e20, 1e30)]
    x = jnp.asarray(np.array([*EXTREMES, -40, 40, *large]), dtype)

    @jax.jit
    def both(x, one):
        return (rule.plain(x), jax.jvp(rule, (x,), (one,))[1]), (rule(x), jax.vjp(rule, x)[1](one)[0])

    for by_plain, wanted in zip(*both(x, jnp.ones_like(x)), strict=True):
        np.testing.assert_allclose(
            np.asarray(by_plain, np.float64),
            np.asarray(wanted, np.float64),
            rtol=float(jnp.finfo(dtype).eps),
            atol=1e-30,
        )


def test_the_slope_of_gelus_approximation_is_not_that_of_the_exact_one():
    slopes = [gelu_slope(POINTS, approximate=a) for a in (True, False)]
    assert np.abs(slopes[0] - slopes[1]).max() > 1e-4  # else the tests above could not tell them apart


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 5, 4, 3)])
@pytest.mark.parametrize("channels", [True, False])
def test_prelu(shape, channels, rng):
    """Against sums written out; slopes of either sign, and 0."""
    (x,) = draw(rng, shape)
    slope = np.resize([0.25, -0.5, 0.0, 2.0], shape[-1]) if channels else np.float64(-0.5)
    dy = rng.normal(size=shape)
    y, pullback = jax.vjp(jaxcnn.prelu, jnp.asarray(x), jnp.asarray(slope))
    assert_close(y, np.maximum(x, 0) + slope * np.minimum(x, 0), EXACT)
    dx, dslope = pullback(jnp.asarray(dy))
    assert_close(dx, np.where(x > 0, 1, slope) * dy, EXACT)
    each = [(np.minimum(x, 0) * dy)[..., c].sum() for c in range(shape[-1])]
    assert_close(dslope, np.array(each) if channels else np.sum(each), FLOAT64)


@pytest.mark.parametrize("rule", [jaxcnn.prelu, jaxcnn.prelu.autodiff()], ids=["by hand", "autodiff"])
def test_prelu_of_extreme_values(rule):
    """Autodiff of the plain forward pass, too, multiplies no infinity by 0."""
    dx, dslope = jax.vjp(rule, jnp.array([-INF, -1e4, 0.0, 1e4, INF, NAN]), jnp.full(6, 0.25))[1](jnp.ones(6))
    assert_close(dx, np.array([0.25, 0.25, 0.25, 1, 1, 1]), EXACT)
    assert_close(dslope, np.array([-INF, -1e4, 0, 0, 0, 0]), EXACT)


def test_prelus_slope_gradient_is_summed_in_float32():
    """In bfloat16 (1 + 2⁻⁷)² is 1 + 2⁻⁶, and these 512 products of either sign cancel; 256 · 2⁻¹⁴ is left."""
    ones = jnp.ones(256, jnp.bfloat16)
    x = -jnp.concatenate([ones + 2**-7, ones + 2**-6])
    dy = jnp.concatenate([ones + 2**-7, -ones])
    dslope = jax.vjp(jaxcnn.prelu, x, jnp.ones((), jnp.bfloat16))[1](dy)[1]
    assert_close(dslope, jnp.asarray(-(2.0**-6), jnp.bfloat16), EXACT)


def test_tanhs_slope_keeps_its_digits():
    """Of the rounded y it is exact to some units in the last place, of 1 - y · y to one of 1."""
    y, pullback = jax.vjp(jaxcnn.tanh, jnp.linspace(-8, 8, 33, dtype=jnp.float32))
    wanted = 1 - np.asarray(y, np.float64) ** 2
    np.testing.assert_allclose(pullback(jnp.ones_like(y))[0], wanted, rtol=4 * np.finfo(np.float32).eps)


def jacobian(name, rows):
    """For each row the matrix dy_i/dx_k, from the definition."""
    a = np.exp(rows) / np.exp(rows).sum(-1, keepdims=True)
    one = np.eye(rows.shape[-1])
    if name == "softmax":
        return a[:, :, None] * (one - a[:, None, :])
    return one - a[:, None, :]


@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), (0, 1, 2)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, axis, rng):
    x, dy = rng.normal(size=(2, 4, 3)) * 3, rng.normal(size=(2, 4, 3))
    y, dx = together(name, {"axis": axis}, x, dy)
    assert_close(y, getattr(special, name)(x, axis), FLOAT64)
    axes = axis if isinstance(axis, tuple) else (axis,)
    kept = [a for a in range(3) if a not in [b % 3 for b in axes]]
    order = [*kept, *(b % 3 for b in axes)]
    rows, moved = (a.transpose(order) for a in (x, dy))
    size = math.prod(x.shape[b] for b in axes)
    wanted = np.einsum("rik,ri->rk", jacobian(name, rows.reshape(-1, size)), moved.reshape(-1, size))
    assert_close(dx, wanted.reshape(rows.shape).transpose(np.argsort(order)), FLOAT64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_softmax_of_extreme_values(dtype):
    x = jnp.asarray([[1e4, -1e4, 1e4], [-INF, 0, 0], [0, NAN, 0], [-INF, -INF, -INF]], dtype)
    dy = jnp.asarray([[2, 3, 4], [5, 6, 8], [1, 1, 1], [1, 1, 1]], dtype)
    y, dx = together("softmax", {}, x, dy)
    nans = [[NAN] * 3] * 2
    assert_close(y, jnp.asarray([[0.5, 0, 0.5], [0, 0.5, 0.5], *nans], dtype), EXACT)
    assert_close(dx, jnp.asarray([[-0.5, 0, 0.5], [0, -0.5, 0.5], *nans], dtype), EXACT)
    y, dx = together("log_softmax", {}, x, dy)
    eps, half = float(jnp.finfo(dtype).eps), math.log(0.5)
    assert_close(y[0, 1], jnp.asarray(-2e4 + half, dtype), eps)
    assert_close(y[1], jnp.asarray([-INF, half, half], dtype), eps)
    assert_close(dx, jnp.asarray([[-2.5, 3, -0.5], [5, -3.5, -1.5], *nans], dtype), 2 * eps)


def test_layers_hand_their_arguments_on():
    x = jnp.asarray(POINTS[:60].reshape(3, 4, 5))
    for layer, shapes, wanted in (
        (jaxcnn.LeakyReLU(0.2), {}, jaxcnn.leaky_relu(x, negative_slope=0.2)),
        (jaxcnn.ELU(2.0), {}, jaxcnn.elu(x, alpha=2.0)),
        (jaxcnn.GELU(approximate=False), {}, jaxcnn.gelu(x, approximate=False)),
        (jaxcnn.Softmax(axis=1), {}, jaxcnn.softmax(x, axis=1)),
        (jaxcnn.LogSoftmax(axis=(1, 2)), {}, jaxcnn.log_softmax(x, axis=(1, 2))),
        (jaxcnn.PReLU(), {"slope": (5,)}, jaxcnn.prelu(x, jnp.full(5, 0.25))),
        (jaxcnn.PReLU(shared=True), {"slope": ()}, jaxcnn.prelu(x, jnp.array(0.25))),
    ):
        params, state, shape = layer.init(jax.random.key(0), (4, 5))
        assert jax.tree.map(jnp.shape, params) == shapes
        assert shape == (4, 5)
        assert_close(layer.forward(params, state, x)[0], wanted, EXACT)
    with pytest.raises(ValueError, match=r"PReLU: input_shape must be \(..., C\), without N, got \(\)"):
        jaxcnn.PReLU().init(jax.random.key(0), ())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: jaxcnn.leaky_relu(x, negative_slope=-0.1), ValueError,
         "leaky_relu: negative_slope must be at least 0 and finite, got -0.1"),
        (lambda x: jaxcnn.leaky_relu(x, negative_slope="a"), TypeError,
         "leaky_relu: negative_slope must be a number, got 'a'"),
        (lambda x: jaxcnn.elu(x, alpha=math.nan), ValueError, "elu: alpha must be at least 0 and finite, got nan"),
        (lambda x: jaxcnn.elu(x, alpha=True), TypeError, "elu: alpha must be a number, got True"),
        (lambda x: jaxcnn.gelu(x, approximate="tanh"), TypeError,
         "gelu: approximate must be True or False, got 'tanh'"),
        (lambda x: jaxcnn.prelu(x, x[0, :2]), ValueError,
         "prelu: slope must be a scalar or of shape (3,), one a channel, got (2,)"),
        (lambda x: jaxcnn.prelu(x, x[0].astype("float32")), TypeError,
         "prelu: dtypes must be equal, got x float64, slope float32"),
        (lambda x: jaxcnn.softmax(x, axis=2), ValueError,
         "softmax: axis must name different axes of x, whose shape is (2, 3), got 2"),
        (lambda x: jaxcnn.softmax(x, axis=(0, -2)), ValueError,
         "softmax: axis must name different axes of x, whose shape is (2, 3), got (0, -2)"),
        (lambda x: jaxcnn.log_softmax(x[0, 0]), ValueError,
         "log_softmax: axis must name different axes of x, whose shape is (), got -1"),
        (lambda x: jaxcnn.log_softmax(x, axis=None), TypeError,
         "log_softmax: axis must be a whole number or a tuple of them, got None"),
    ],
)  # fmt: skip
def test_errors_of_arguments(call, error, message):
    with pytest.raises(error) as caught:
        call(jnp.ones((2, 3)))
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["relu", "sigmoid", *SLOPES, "softmax", "log_softmax"])
@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_errors(name, dtype):
    with pytest.raises(TypeError) as caught:
        getattr(jaxcnn, name)(np.zeros(3, dtype))
    assert str(caught.value) == f"{name}: x must be floating point, got {np.dtype(dtype)}"
