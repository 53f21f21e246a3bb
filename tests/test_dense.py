"""dense against `jax.vjp` of the plain product; the source's backproplayer against whole chains."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, assert_close, assert_same, draw

import jaxcnn
from jaxcnn import backproplayer, dense, sigmoid, softmax_cross_entropy

pytestmark = pytest.mark.usefixtures("x64")


def plain_dense(x, w, b=None):
    y = jnp.einsum("...i,io->...o", x, w)
    return y if b is None else y + b


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, FLOAT32), (np.float64, FLOAT64)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("x", [(4, 3), (1, 3), (3,), (2, 4, 3), (2, 1, 4, 3)])
def test_values_and_gradients(x, with_bias, dtype, tolerance, rng):
    arrays = draw(rng, x, (3, 5), *([(5,)] if with_bias else []), dtype=dtype)
    assert_same([dense, plain_dense], arrays, rng, tolerance)


@pytest.mark.parametrize("shapes", [((4, 1), (1, 1), (1,)), ((0, 3), (3, 2), (2,)), ((4, 3), (3, 0), (0,)),
                                    ((4, 0), (0, 2), (2,))])  # fmt: skip
def test_sizes_of_one_and_none(shapes, rng):
    assert_same([dense, plain_dense], draw(rng, *shapes), rng, FLOAT64)


def test_backproplayer_is_the_sources(rng):
    """Its three lines, in numpy."""
    a_l, da_lp1, g_l, W_l = draw(rng, (4, 3), (4, 5), (4, 2), (2, 5))
    da_l = np.dot(da_lp1, W_l.T) * g_l
    wanted = da_l, np.dot(a_l.T, da_l), np.sum(da_l, axis=0, keepdims=True)
    assert_close(backproplayer(a_l, da_lp1, g_l, W_l), wanted, FLOAT64)


def test_backproplayer_of_one_layer(rng):
    """For the layer z = a V + b, a' = sigmoid(z) below a layer with weights W: dz, dV and db are autodiff's."""
    a, V, b, W, delta = draw(rng, (4, 3), (3, 2), (2,), (2, 5), (4, 5))

    def above(V, b, shift):  # the next layer's pre-activation; shift is added to z, so its gradient is dL/dz
        return (1 / (1 + jnp.exp(-(a @ V + b + shift)))) @ W

    dV, db, dz = jax.vjp(above, V, b, jnp.zeros((4, 2)))[1](delta)
    y = sigmoid(a @ V + b)
    assert_close(backproplayer(a, delta, y * (1 - y), W), (dz, dV, db[None]), FLOAT64)


def test_a_chain_of_backproplayer_is_the_backward_pass_of_sequential(rng):
    """Three sigmoid layers and softmax with cross-entropy, backward by the source's function alone."""
    N, classes = 4, 3
    layers = [layer for width in (6, 5, 7) for layer in (jaxcnn.Dense(width), jaxcnn.Sigmoid())]
    network = jaxcnn.sequential(*layers, jaxcnn.Dense(classes))
    params, state, _ = network.init(jax.random.key(0), (8,))
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    x, labels = rng.normal(size=(N, 8)), np.array([0, 2, 1, 2])

    logits, _, residuals = network.forward(params, state, x)
    loss, saved = softmax_cross_entropy.forward(logits, jnp.asarray(labels))
    dy = jnp.ones_like(loss)  # the loss is what is differentiated
    dlogits, _ = softmax_cross_entropy.backward(saved, dy, label_smoothing=0.0)
    dparams, _ = network.backward(residuals, dlogits)

    W = [params[f"dense_{i}"]["weights"] for i in (1, 2, 3, 4)]
    a = [x]
    for i in range(3):
        a.append(1 / (1 + np.exp(-(a[-1] @ W[i] + params[f"dense_{i + 1}"]["bias"]))))
    softmax = np.exp(a[3] @ W[3] + params["dense_4"]["bias"])
    softmax /= softmax.sum(1, keepdims=True)
    delta = (softmax - np.eye(classes)[labels]) / N
    g, above = 1.0, jnp.eye(classes)
    for i in reversed(range(4)):
        delta, dW, db = backproplayer(a[i], delta, g, above)
        assert_close({"weights": dW, "bias": db[0]}, dparams[f"dense_{i + 1}"], FLOAT64)
        g, above = a[i] * (1 - a[i]), W[i]


def zeros(*shapes, dtype=np.float64):
    return [np.zeros(shape, dtype) for shape in shapes]


def layer(a_l=(4, 3), da_lp1=(4, 5), g_l=(4, 2), W_l=(2, 5)):
    return lambda: backproplayer(*zeros(a_l, da_lp1, g_l, W_l))


ERRORS = [
    (lambda: dense(*zeros((4, 3), (3,))), ValueError, "dense: w must be (in, out), got shape (3,)"),
    (lambda: dense(*zeros((4, 2), (3, 5))), ValueError, "dense: x must be (..., 3) for w (3, 5), got shape (4, 2)"),
    (lambda: dense(*zeros((), (3, 5))), ValueError, "dense: x must be (..., 3) for w (3, 5), got shape ()"),
    (lambda: dense(*zeros((4, 3), (3, 5), (4,))), ValueError,
     "dense: b must have shape (5,), one value an output, got (4,)"),
    (lambda: dense(*zeros((4, 3), (3, 5), dtype=int)), TypeError, "dense: x must be floating point, got int64"),
    (lambda: dense(np.zeros((4, 3), np.float32), np.zeros((3, 5))), TypeError,
     "dense: dtypes must be equal, got x float32, w float64"),
    (layer(a_l=(4,)), ValueError, "backproplayer: a_l must have two axes, got shape (4,)"),
    (layer(da_lp1=(4, 5, 1)), ValueError, "backproplayer: da_lp1 must have two axes, got shape (4, 5, 1)"),
    (layer(W_l=()), ValueError, "backproplayer: W_l must have two axes, got shape ()"),
    (layer(a_l=(3, 3)), ValueError, "backproplayer: a_l has 3 samples, da_lp1 has 4; they must agree"),
    (layer(W_l=(5, 2)), ValueError, "backproplayer: W_l must be (out, 5) for da_lp1 (4, 5), got shape (5, 2)"),
    (layer(g_l=(4, 3)), ValueError, "backproplayer: g_l must be a number or have shape (4, 2), got (4, 3)"),
    (layer(g_l=(2,)), ValueError, "backproplayer: g_l must be a number or have shape (4, 2), got (2,)"),
    (lambda: backproplayer(np.zeros((4, 3), int), *zeros((4, 5), (4, 2), (2, 5))), TypeError,
     "backproplayer: a_l must be floating point, got int64"),
    (lambda: backproplayer(np.zeros((4, 3), np.float32), *zeros((4, 5), (4, 2), (2, 5))), TypeError,
     "backproplayer: dtypes must be equal, got a_l float32, da_lp1 float64, W_l float64"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message


def test_a_number_for_g_l(rng):
    arrays = draw(rng, (4, 3), (4, 5), (2, 5))
    number = functools.partial(backproplayer, arrays[0], arrays[1])
    assert_close(number(1, arrays[2]), number(np.ones((4, 2)), arrays[2]), EXACT)
