"""One function, two derivatives: forward mode by autodiff of the forward pass, reverse mode by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACT, FLOAT64, assert_close, random_like

import jaxcnn
from jaxcnn import Rule

pytestmark = pytest.mark.usefixtures("x64")

X = jnp.array([-1.5, 0.5, 2.0])


def cube_forward(x):
    return x**3, x


def tenfold(x, dy):
    """Ten times the right gradient: seen, it is this one that ran."""
    return (10 * 3 * x**2 * dy,)


CUBE = Rule(cube_forward, tenfold, "cube")


def test_reverse_mode_is_the_backward_pass_and_forward_mode_the_forward_pass():
    right = 3 * X**2
    assert_close(jax.jvp(CUBE, (X,), (jnp.ones_like(X),)), (X**3, right), EXACT)
    assert_close(jax.linearize(CUBE, X)[1](2 * jnp.ones_like(X)), 2 * right, EXACT)
    assert_close(jax.jacfwd(CUBE)(X), jnp.diag(right), EXACT)
    assert_close(jax.jacrev(CUBE)(X), jnp.diag(10 * right), EXACT)
    assert_close(jax.vjp(CUBE, X)[1](jnp.ones_like(X))[0], 10 * right, EXACT)


def test_second_derivatives_differentiate_what_ran_first():
    total = lambda x: CUBE(x).sum()  # noqa: E731
    assert_close(jax.hessian(total)(X), jnp.diag(60 * X), FLOAT64)  # forward over the hand-written backward pass
    assert_close(jax.jacrev(jax.jacrev(total))(X), jnp.diag(60 * X), FLOAT64)
    assert_close(jax.jacfwd(jax.jacfwd(total))(X), jnp.diag(6 * X), FLOAT64)
    assert_close(jax.jacrev(jax.jacfwd(total))(X), jnp.diag(6 * X), FLOAT64)  # backward through the plain derivative
    assert_close(jax.vmap(jax.hessian(CUBE))(X), 60 * X, FLOAT64)


def test_forward_mode_follows_the_reference():
    """What reverse mode gives at ties, forward mode gives there too."""
    x, tangent = jnp.ones((2, 2)), jnp.arange(4.0).reshape(2, 2)
    for ties, slope in (("first", 0.0), ("split", 1.5), ("all", 6.0)):
        pool = functools.partial(jaxcnn.max_pool, ties=ties)
        assert_close(jax.jvp(pool, (x,), (tangent,))[1], jnp.full((1, 1), slope), EXACT)
        assert_close(jax.vjp(pool, x)[1](jnp.ones((1, 1)))[0], jax.jacfwd(pool)(x)[0, 0], EXACT)


def test_outputs_may_be_a_tree_and_hold_integers():
    rule = Rule(
        lambda x, n: ({"power": x**n, "sign": jnp.sign(x).astype(int)}, (x, n)),
        lambda r, dy: (dy["power"] * r[1] * r[0] ** (r[1] - 1), None),
        "signed_power",
    )
    n = jnp.array(3)
    assert_close(jax.grad(lambda x: rule(x, n)["power"].sum())(X), 3 * X**2, FLOAT64)
    y, moved = jax.jvp(lambda x: rule(x, n), (X,), (jnp.ones_like(X),))
    assert_close(moved["power"], 3 * X**2, FLOAT64)
    assert moved["sign"].dtype == jax.dtypes.float0
    assert_close(y["sign"], jnp.array([-1, 1, 1]), EXACT)


def test_arrays_that_do_not_move_cost_no_derivative():
    """The tangent of the weights alone: the image stays where it is."""
    image, filters, moved = (jnp.asarray(np.random.default_rng(i).normal(size=(3, 3))) for i in range(3))
    pushed = jax.jvp(lambda filters: jaxcnn.conv2d(image, filters), (filters,), (moved,))[1]
    assert_close(pushed, jaxcnn.conv2d(image, moved), FLOAT64)
    lowered = jax.jit(jax.grad(lambda filters: jaxcnn.conv2d(image, filters).sum())).lower(filters)
    assert "convolution(" not in lowered.compile().as_text()  # of the image gradient


def test_a_gradient_without_jit_runs_the_forward_pass_once():
    calls = []

    def forward(x):
        calls.append(x)
        return x**2, x

    rule = Rule(forward, lambda x, dy: (2 * x * dy,), "square")
    assert jax.value_and_grad(rule)(3.0) == (9.0, 6.0)
    assert len(calls) == 1
    assert jax.grad(jax.grad(rule))(3.0) == 2.0


def test_a_layer_has_both_modes():
    layer = jaxcnn.sequential(jaxcnn.Conv2D(2, 3), jaxcnn.ReLU(), jaxcnn.Flatten(), jaxcnn.Dense(3))
    params, state, _ = layer.init(jax.random.key(0), (4, 4, 1))
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    tangents = random_like(np.random.default_rng(0), (params, x))
    f, plain = (lambda p, x, g=g: g(p, state, x)[0] for g in (jaxcnn.differentiable(layer), layer.plain))
    assert_close(jax.jvp(f, (params, x), tangents), jax.jvp(plain, (params, x), tangents), FLOAT64)

    def curved(f):
        return lambda p, x: jnp.sin(f(p, x)).sum()

    both = [jax.jit(jax.jacfwd(jax.grad(curved(g), argnums=1), argnums=1))(params, x) for g in (f, plain)]
    assert_close(*both, FLOAT64)


def network(conv2d, relu, dense):
    def loss(params, x):
        h = relu(conv2d(relu(conv2d(x, params[0])), params[1]))
        return dense(h.reshape(len(x), -1), params[2]).sum()

    return jax.jit(jax.value_and_grad(loss))


def by_custom_vjp(rule):
    """The rule as `jax.custom_vjp` would have it, in reverse mode alone."""
    static = rule.static()

    @jax.custom_vjp
    def function(*arrays):
        return rule.forward(*arrays, **static)[0]

    def backward(saved, dy):
        return rule.backward(saved, dy, **static)[: count[0]]

    count = [0]

    def forward(*arrays):
        count[0] = len(arrays)
        return rule.forward(*arrays, **static)

    function.defvjp(forward, backward)
    return function


def test_a_jitted_gradient_costs_what_it_costs_with_custom_vjp():
    """Operations and temporary memory: the arrays kept for forward mode are gone from a compiled reverse mode."""
    shapes = [(8, 3, 3, 1), (8, 3, 3, 8), (12 * 12 * 8, 10)]
    params, x = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes], jax.ShapeDtypeStruct((16, 12, 12, 1), "float32")
    rules = jaxcnn.conv2d, jaxcnn.relu, jaxcnn.dense
    mine, usual = (network(*r).lower(params, x).compile() for r in (rules, map(by_custom_vjp, rules)))
    assert mine.memory_analysis().temp_size_in_bytes <= usual.memory_analysis().temp_size_in_bytes
    assert mine.cost_analysis()["flops"] <= usual.cost_analysis()["flops"]
