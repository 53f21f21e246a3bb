"""Layers: what init makes, networks run backward by hand against autodiff, exchanged rules, errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, NETWORK, assert_close, random_like
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxcnn
from jaxcnn import (
    Conv2D,
    Dense,
    Flatten,
    LayerScale,
    MaxPool,
    ReLU,
    Sigmoid,
    SqueezeExcitation,
    conv2d,
    differentiable,
    models,
    parallel,
    residual,
    sequential,
)  # fmt: skip
from jaxcnn.layers import Layer

pytestmark = pytest.mark.usefixtures("x64")

KEY = jax.random.key(0)

# The layer, the shape that goes in, the parameters' shapes, the shape that comes out.
LAYERS = {
    "Conv2D": (Conv2D(5, 3), (6, 4, 2), {"filters": (5, 3, 3, 2), "bias": (5,)}, (6, 4, 5)),
    "Conv2D, all its arguments": (
        Conv2D(4, (3, 2), stride=(2, 1), padding="VALID", dilation=(1, 2), groups=2, bias=False),
        (6, 5, 6), {"filters": (4, 3, 2, 3)}, (2, 3, 4),
    ),
    "Conv2D, padding by pairs": (
        Conv2D(2, 3, padding=[[1, 0], [2, 2]]), (4, 4, 1), {"filters": (2, 3, 3, 1), "bias": (2,)}, (3, 6, 2),
    ),
    "MaxPool": (MaxPool(), (7, 4, 2), {}, (3, 2, 2)),
    "MaxPool, all its arguments": (MaxPool((3, 2), stride=1, padding="SAME", ties="split"), (5, 4, 2), {}, (5, 4, 2)),
    "ReLU": (ReLU(), (3, 4, 2), {}, (3, 4, 2)),
    "Sigmoid": (Sigmoid(), (7,), {}, (7,)),
    "Flatten": (Flatten(), (3, 4, 2), {}, (24,)),
    "Dense": (Dense(3), (5,), {"weights": (5, 3), "bias": (3,)}, (3,)),
    "Dense without bias": (Dense(3, bias=False), (5,), {"weights": (5, 3)}, (3,)),
    "LayerNorm": (jaxcnn.LayerNorm(epsilon=0.1), (3, 4), {"scale": (4,), "shift": (4,)}, (3, 4)),
    "GroupNorm": (jaxcnn.GroupNorm(2, epsilon=0.1), (3, 2, 4), {"scale": (4,), "shift": (4,)}, (3, 2, 4)),
    "InstanceNorm": (jaxcnn.InstanceNorm(epsilon=0.1), (3, 2, 4), {"scale": (4,), "shift": (4,)}, (3, 2, 4)),
    "RMSNorm": (jaxcnn.RMSNorm(epsilon=0.1), (3, 4), {"scale": (4,)}, (3, 4)),
    "Identity": (jaxcnn.Identity(), (3, 4), {}, (3, 4)),
    "sequential": (
        sequential(Conv2D(3, 3), ReLU(), Conv2D(2, 3, bias=False), MaxPool(), Flatten(), Dense(4), ReLU()), (6, 4, 1),
        {"conv2d_1": {"filters": (3, 3, 3, 1), "bias": (3,)}, "conv2d_2": {"filters": (2, 3, 3, 3)},
         "dense": {"weights": (12, 4), "bias": (4,)}}, (4,),
    ),
    "sequential in sequential": (
        sequential(sequential(Dense(3), name="inner"), Dense(2, bias=False)), (4,),
        {"inner": {"dense": {"weights": (4, 3), "bias": (3,)}}, "dense": {"weights": (3, 2)}}, (2,),
    ),
    "parallel": (
        parallel(Conv2D(2, 3), Conv2D(2, 1, bias=False), Sigmoid()), (3, 4, 2),
        {"conv2d_1": {"filters": (2, 3, 3, 2), "bias": (2,)}, "conv2d_2": {"filters": (2, 1, 1, 2)}}, (3, 4, 2),
    ),
    "parallel, concatenated": (
        parallel(Dense(3, bias=False), Sigmoid(), Dense(1, bias=False), join="concatenate"), (4,),
        {"dense_1": {"weights": (4, 3)}, "dense_2": {"weights": (4, 1)}}, (8,),
    ),
    "parallel, scaled": (
        parallel(Dense(3, bias=False), Dense(3, bias=False), join=jaxcnn.scale_channels), (4,),
        {"dense_1": {"weights": (4, 3)}, "dense_2": {"weights": (4, 3)}}, (3,),
    ),
    "SqueezeExcitation": (
        SqueezeExcitation(4, 2), (3, 2, 4),
        {"gate": {"squeeze": {"weights": (4, 2), "bias": (2,)}, "excite": {"weights": (2, 4), "bias": (4,)}}},
        (3, 2, 4),
    ),
    "LayerScale": (LayerScale(), (3, 4), {"scale": (4,)}, (3, 4)),
    "residual": (residual(Conv2D(2, 3)), (4, 4, 2), {"layer": {"filters": (2, 3, 3, 2), "bias": (2,)}}, (4, 4, 2)),
    "residual of nothing to train": (residual(Sigmoid()), (4,), {}, (4,)),
    "residual with a shortcut": (
        residual(sequential(Conv2D(3, 3, stride=2), Sigmoid()), Conv2D(3, 1, stride=2, bias=False)), (5, 4, 2),
        {"layer": {"conv2d": {"filters": (3, 3, 3, 2), "bias": (3,)}}, "shortcut": {"filters": (3, 1, 1, 2)}},
        (3, 2, 3),
    ),
}  # fmt: skip


def started(layer, input_shape, rng, images=2):
    """Parameters, all of them random (a bias of zeros would hide much), state and an input."""
    params, state, output_shape = layer.init(KEY, input_shape)
    return random_like(rng, params), state, jnp.asarray(rng.normal(size=(images, *input_shape))), output_shape


def by_hand(layer, params, state, x, dy):
    """Two compiled passes, so the residuals cross from one to the other."""
    y, _, residuals = jax.jit(layer.forward)(params, state, x)
    return y, jax.jit(layer.backward)(residuals, dy)


def by_autodiff(layer, params, state, x, dy):
    """Of the plain forward, which knows nothing of the backward passes."""

    @jax.jit
    def run(params, x, dy):
        y, pullback = jax.vjp(lambda params, x: layer.forward(params, state, x)[0], params, x)
        return y, pullback(dy)

    return run(params, x, dy)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, rng):
    layer, input_shape, shapes, output_shape = LAYERS[name]
    params, state, x, got_shape = started(layer, list(input_shape), rng)
    assert got_shape == output_shape
    assert jax.tree.map(jnp.shape, params) == shapes
    dy = jnp.asarray(rng.normal(size=(2, *output_shape)))
    got = by_hand(layer, params, state, x, dy)
    assert_close(got, by_autodiff(layer, params, state, x, dy), FLOAT64)
    assert_close(jax.jit(layer.plain)(params, state, x)[0], got[0], FLOAT64)


@pytest.mark.parametrize(
    ("model", "input_shape"),
    [(models.source, (8, 8, 1)), (models.source, (9, 11, 2)), (models.lenet5, (28, 28, 1)),
     (models.two_conv, (28, 28, 1))],
)  # fmt: skip
def test_every_parameter_of_the_networks(model, input_shape, rng):
    network = model(classes=7)
    params, state, output_shape = network.init(KEY, input_shape)
    assert output_shape == (7,)
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float64")}
    x, labels = jnp.asarray(rng.random((3, *input_shape))), np.array([0, 6, 3])

    def plain(params, x):
        return optax.softmax_cross_entropy_with_integer_labels(network.forward(params, state, x)[0], labels).mean()

    logits, _, residuals = jax.jit(network.forward)(params, state, x)
    loss, saved = jaxcnn.softmax_cross_entropy.forward(logits, jnp.asarray(labels))
    dlogits, _ = jaxcnn.softmax_cross_entropy.backward(saved, jnp.ones(()), label_smoothing=0.0)  # dL/dL
    wanted = jax.jit(jax.value_and_grad(plain, (0, 1)))(params, x)
    assert_close((loss, jax.jit(network.backward)(residuals, dlogits)), wanted, NETWORK)


def test_source_is_the_sources_chain(rng):
    """The network of the course text, written out in plain jax."""
    network = models.source()
    params, state, x, _ = started(network, (8, 8, 1), rng)
    filters, bias = params["conv2d"]["filters"], params["conv2d"]["bias"]
    z = lax.conv_general_dilated(x, filters, (1, 1), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC")) + bias
    a = jnp.maximum(z, 0).reshape(2, 4, 2, 4, 2, -1).max((2, 4)).reshape(2, -1)
    a = 1 / (1 + jnp.exp(-(a @ params["dense_1"]["weights"] + params["dense_1"]["bias"])))
    wanted = a @ params["dense_2"]["weights"] + params["dense_2"]["bias"]
    assert_close(network.forward(params, state, x)[0], wanted, FLOAT64)


def test_initial_values():
    """He et al. for filters, Glorot and Bengio for dense weights, zeros for both biases; a key each."""
    filters = Conv2D(64, (3, 5)).init(KEY, (8, 8, 16))[0]["filters"]
    weights = Dense(300).init(KEY, (200,))[0]["weights"]
    assert np.std(filters) == pytest.approx(np.sqrt(2 / (3 * 5 * 16)), rel=0.02)  # of 15360 values
    assert np.abs(weights).max() == pytest.approx(np.sqrt(6 / (200 + 300)), rel=0.001)  # of 60000 uniform values
    assert not Dense(3).init(KEY, (2,))[0]["bias"].any()
    one, other = (sequential(Dense(4), Dense(4)).init(KEY, (4,))[0][n]["weights"] for n in ("dense_1", "dense_2"))
    assert not np.allclose(one, other)
    given = Conv2D(2, 1, filters_init=jax.nn.initializers.ones, bias_init=jax.nn.initializers.ones)
    assert all((p == 1).all() for p in jax.tree.leaves(given.init(KEY, (2, 2, 1))[0]))


@pytest.mark.parametrize(
    ("names", "wanted"),
    [("a b", "a b"), ("a a b a", "a_1 a_2 b a_3"), ("a a_1", "a a_1"), ("a a b b", "a_1 a_2 b_1 b_2")],
)
def test_names_of_layers(names, wanted):
    network = sequential(*(Dense(2, name=name) for name in names.split()))
    assert list(network.init(KEY, (2,))[0]) == wanted.split()


def test_a_network_can_be_walked():
    network = sequential(Conv2D(2, 3), residual(Conv2D(2, 3), Conv2D(2, 1)), name="net")

    def rules(layer):
        return [layer.rule] if layer.rule else [r for inner in layer.layers for r in rules(inner)]

    assert rules(network) == [conv2d] * 3
    assert repr(network) == "Layer(net)"
    with pytest.raises(AttributeError, match="cannot assign"):
        network.name = "other"  # pyright: ignore


def counting(name):
    """A layer that counts its calls in the state, and adds noise from its key while training."""

    def forward(params, state, x, *, train=False, key=None):
        y = x + jax.random.normal(key, x.shape) if train else x
        return y, {"calls": state["calls"] + 1}, None

    return Layer(name, lambda key, shape: ({}, {"calls": jnp.zeros(())}, shape), forward, lambda saved, dy: ({}, dy))


@pytest.mark.parametrize("combine", [sequential, residual, parallel])
def test_state_and_keys_reach_every_layer(combine):
    layer = combine(counting("a"), counting("b"))
    params, state, _ = layer.init(KEY, (3,))
    x = jnp.zeros((2, 3))
    y, new_state = differentiable(layer)(params, state, x, train=True, key=KEY)
    assert [s["calls"] for s in new_state.values()] == [1, 1]
    assert [s["calls"] for s in state.values()] == [0, 0]
    assert_close(layer.plain(params, state, x, train=True, key=KEY), (y, new_state), EXACT)
    assert np.std(y) > 0
    noises = [y - 2 * jax.random.normal(jax.random.fold_in(KEY, i), x.shape) for i in (0, 1)]
    assert all(np.abs(n).max() > 0.1 for n in noises)  # not twice the same noise
    assert_close(layer.forward(params, state, x)[0], x, EXACT)  # no key is needed outside training


def small():
    return sequential(Conv2D(3, 3), ReLU(), MaxPool(), residual(Conv2D(3, 3)), Flatten(), Dense(4))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint])
def test_differentiable(wrap, rng):
    """Gradients of parameters and input; the new state comes along and has none."""
    network = small()
    params, state, x, _ = started(network, (4, 4, 2), rng)
    f, dy = differentiable(network), jnp.asarray(rng.normal(size=(2, 4)))
    loss = wrap(lambda params, x: (lambda y, new_state: (jnp.vdot(y, dy), new_state))(*f(params, state, x)))
    (value, new_state), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
    y, wanted = by_autodiff(network, params, state, x, dy)
    assert new_state == state == {}
    assert_close((value, gradients), (jnp.vdot(y, dy), wanted), FLOAT64)
    assert_close(f(params, state, np.asarray(x))[0], y, FLOAT64)


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_differentiable_in_shard_map(place, rng):
    network = small()
    params, state, x, _ = started(network, (4, 4, 2), rng, images=4)
    dy = jnp.asarray(rng.normal(size=(4, 4)))
    f = differentiable(network)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu"))

    def loss(params, x, dy):
        return lax.psum(jnp.vdot(f(params, state, x)[0], dy), "batch")

    specs = (P(), P("batch"), P("batch"))
    if place == "inside":
        run = jax.shard_map(jax.grad(loss, (0, 1)), mesh=mesh, in_specs=specs, out_specs=specs[:2])
    else:
        run = jax.grad(jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P()), (0, 1))
    # Two executions with collectives under way at once can wait for each other for ever.
    got = jax.block_until_ready(jax.jit(run)(params, x, dy))
    assert_close(got, by_autodiff(network, params, state, x, dy)[1], FLOAT64)


def tripled(residuals, dy, which, **static):
    """conv2d's backward pass with one wrong gradient: dx (0), dw (1) or db (2)."""
    return tuple(3 * d if i == which else d for i, d in enumerate(conv2d.backward(residuals, dy, **static)))


@pytest.mark.parametrize(
    ("which", "changed"),
    [(0, ["['first']['bias']", "['first']['filters']"]), (1, ["['second']['filters']"]), (2, ["['second']['bias']"])],
)
def test_an_exchanged_rule_changes_what_it_must_and_nothing_else(which, changed, rng):
    """Of three layers the middle one gets a wrong backward pass: `differentiable` sees it, plain autodiff does not."""

    def network(rule):
        return sequential(
            Conv2D(3, 3, name="first"), Conv2D(2, 3, rule=rule, name="second"), Flatten(), Dense(4, name="third")
        )

    right = network(conv2d)
    wrong = network(conv2d.replace(backward=functools.partial(tripled, which=which)))
    params, state, x, _ = started(right, (4, 4, 1), rng)
    dy = jnp.asarray(rng.normal(size=(2, 4)))
    wanted, _ = by_autodiff(right, params, state, x, dy)[1]
    hand, _ = by_hand(wrong, params, state, x, dy)[1]
    seen = jax.jit(jax.grad(lambda p: jnp.vdot(differentiable(wrong)(p, state, x)[0], dy)))(params)
    unseen, _ = by_autodiff(wrong, params, state, x, dy)[1]
    assert_close(unseen, wanted, FLOAT64)
    for got in (hand, seen):
        for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
            assert_close(g, 3 * w if jax.tree_util.keystr(path) in changed else w, FLOAT64)


def test_autodiff_rules_make_the_reference_network(rng):
    """Every layer may take the rule made by autodiff; `differentiable` then gives what the written one gives."""
    conv, pool, dense = (r.autodiff() for r in (conv2d, jaxcnn.max_pool, jaxcnn.dense))
    network = sequential(Conv2D(3, 3, rule=conv), MaxPool(ties="split", rule=pool), Flatten(), Dense(2, rule=dense))
    written = sequential(Conv2D(3, 3), MaxPool(ties="split"), Flatten(), Dense(2))
    params, state, x, _ = started(network, (4, 4, 1), rng)
    dy = jnp.asarray(rng.normal(size=(2, 2)))
    assert_close(by_hand(written, params, state, x, dy), by_hand(network, params, state, x, dy), FLOAT64)


def init(layer, *input_shape):
    return lambda: layer.init(KEY, input_shape)


ERRORS = [
    (lambda: sequential(), ValueError, "sequential: got no layer, at least one is required"),
    (lambda: sequential(ReLU(), ReLU), TypeError,
     "sequential: takes Layers, got ReLU; layers are made by calls: ReLU()"),
    (lambda: sequential(jaxcnn.relu), TypeError,
     "sequential: takes Layers, got relu; jaxcnn.layers.from_rule makes a layer of a rule"),
    (lambda: sequential(3), TypeError, "sequential: takes Layers, got int"),
    (lambda: sequential([ReLU()]), TypeError,
     "sequential: takes Layers, got list; give them one by one: sequential(*layers)"),
    (lambda: residual([ReLU()]), TypeError, "residual: takes Layers, got list"),
    (lambda: residual(ReLU(), "x"), TypeError, "residual: takes Layers, got str"),
    (lambda: differentiable(3), TypeError, "differentiable: takes Layers, got int"),
    (lambda: sequential(*(Dense(2, name=n) for n in ("a", "a", "a_1"))), ValueError,
     "sequential: layer names must stay distinct when numbered, got a_1, a_2, a_1"),
    (init(residual(Conv2D(3, 3)), 4, 4, 2), ValueError,
     "residual: the branches give layer (4, 4, 3), shortcut (4, 4, 2), which do not fit together: add: shapes must"),
    (init(residual(Dense(3), Dense(1)), 4), ValueError,
     "residual: the branches give layer (3,), shortcut (1,), which do not fit together"),
    (lambda: parallel(), ValueError, "parallel: got no layer, at least one is required"),
    (lambda: parallel(ReLU(), ReLU(), names=["one"]), ValueError,
     "parallel: names must be 2, one for each layer, got ['one']"),
    (lambda: parallel(ReLU), TypeError, "parallel: takes Layers, got ReLU"),
    (lambda: parallel(ReLU(), join="product"), ValueError,
     "parallel: join must be one of sum, concatenate, or a Rule; got 'product'"),
    (init(parallel(Conv2D(2, 3), MaxPool(2), join="concatenate"), 4, 4, 2), ValueError,
     "parallel: the branches give conv2d (4, 4, 2), max_pool (2, 2, 2), which do not fit together: concatenate: "),
    (init(SqueezeExcitation(3), 4, 4, 2), ValueError, "squeeze_excitation: the branches give x (4, 4, 2), gate (3,)"),
    (lambda: SqueezeExcitation(0), ValueError, "SqueezeExcitation: channels must be at least 1, got 0"),
    (init(LayerScale()), ValueError, "LayerScale: input_shape must"),
    (init(Conv2D(3, 3), 4, 4), ValueError, "conv2d: input_shape must be (H, W, C), without N, got (4, 4)"),
    (init(Conv2D(3, 3), 2, 4, 4, 1), ValueError, "conv2d: input_shape must be (H, W, C), without N, got (2, 4, 4, 1)"),
    (init(Conv2D(4, 3, groups=2), 4, 4, 3), ValueError,
     "conv2d: groups must divide the 3 channels and the 4 filters, got 2"),
    (lambda: Conv2D(4, 3, groups=0), ValueError, "Conv2D: groups must be at least 1, got 0"),
    (lambda: Conv2D(4, 3, groups="a"), TypeError, "Conv2D: groups must be a whole number, got 'a'"),
    (init(Conv2D(4, 5, padding="VALID"), 4, 4, 3), ValueError,
     "conv2d: the window spans 5×5, the padded image is 4×4; the window must fit into it"),
    (init(MaxPool(5), 4, 4, 3), ValueError,
     "max_pool: the window spans 5×5, the padded image is 4×4; the window must fit into it"),
    (init(sequential(Conv2D(2, 3), MaxPool(ties="last")), 4, 4, 1), ValueError,
     "max_pool: ties must be one of first, split, all, got 'last'"),
    (lambda: Conv2D(0, 3), ValueError, "Conv2D: features must be at least 1, got 0"),
    (lambda: Conv2D(2.0, 3), TypeError, "Conv2D: features must be a whole number"),
    (lambda: Conv2D(2, (3, 0)), ValueError, "Conv2D: size must be at least 1, got (3, 0)"),
    (lambda: Conv2D(2, "3"), TypeError, "Conv2D: size must be a whole number or a pair of them, got '3'"),
    (lambda: Dense(-1), ValueError, "Dense: features must be at least 1, got -1"),
    (lambda: Dense((3, 4)), TypeError, "Dense: features must be a whole number, got (3, 4)"),
    (init(Flatten(), 5), ValueError, "flatten: input_shape must be (H, W, C), without N, got (5,)"),
    (init(MaxPool(2), 4, 6), ValueError, "max_pool: input_shape must be (H, W, C), without N, got (4, 6)"),
    (lambda: MaxPool(2).forward({}, {}, jnp.ones((2, 4, 6))), ValueError,
     "max_pool: x must be N×H×W×C, got shape (2, 4, 6)"),
    (init(Dense(3)), ValueError, "Dense: input_shape must"),
    (init(Dense(3), -5), ValueError, "dense: input_shape must be at least 1, got -5"),
    (init(sequential(ReLU()), 2.5), TypeError, "sequential: input_shape must be a whole number, got 2.5"),
    (init(jaxcnn.Identity(), 0), ValueError, "identity: input_shape must be at least 1, got 0"),
    (lambda: sequential(Dense(3)).init(KEY, 5), TypeError,
     "sequential: input_shape must be the sizes without N, as (28, 28, 1), got 5"),
    (lambda: parallel(ReLU(), ReLU(), ReLU(), join=jaxcnn.scale_channels), TypeError,
     "parallel: join must be a rule of 3 arrays, one for each layer, got scale_channels(x: "),
    (lambda: Dense(3).forward({}, {}, jnp.ones((2, 3))), ValueError,
     "dense: params must have weights, bias, got nothing"),
    (lambda: Dense(3).forward({"bias": jnp.ones(3), "filters": jnp.ones(3)}, {}, jnp.ones((2, 3))), ValueError,
     "dense: params must have weights, bias, got bias, filters"),
    (lambda: jaxcnn.BatchNorm().forward(*jaxcnn.BatchNorm().init(KEY, (3,))[:1], {}, jnp.ones((2, 3))), ValueError,
     "batch_norm: state must have mean, variance, got nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(message)


def _layer_with(change):
    """Dense(4), the gradients of its backward pass changed."""
    layer = Dense(4)

    def backward(residuals, dy):
        dparams, dx = layer.backward(residuals, dy)
        return change(dparams), dx

    return dataclasses.replace(layer, backward=backward)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"bias": d["bias"].astype(jnp.float16)}, r"bias is float16\[4\], its array is float64\[4\]"),
        (lambda d: d | {"bias": d["bias"][None]}, r"bias is float64\[1, 4\], its array is float64\[4\]"),
        (lambda d: {"weights": d["weights"]}, r"dense: backward must return \(dparams, dx\) of structure"),
    ],
)
def test_differentiable_checks_the_gradients(change, message):
    layer = _layer_with(change)
    params, state, _ = layer.init(jax.random.key(0), (3,))
    with pytest.raises(TypeError, match=message):
        jax.grad(lambda p: differentiable(layer)(p, state, jnp.ones((2, 3)))[0].sum())(params)


def test_second_derivative_of_differentiable_is_by_hand(x64):
    """At ties the convention of the rule holds in the second derivative too."""
    x = jnp.asarray(np.random.default_rng(0).integers(-1, 2, (1, 4, 4, 1)), jnp.float64)
    network = sequential(MaxPool(3, stride=1, ties="all"), Flatten())
    by_layer = lambda x: (differentiable(network)({}, {}, x)[0] ** 3).sum()  # noqa: E731
    by_rule = lambda x: (jaxcnn.max_pool(x, window=3, stride=1, ties="all") ** 3).sum()  # noqa: E731
    got, right = (jax.grad(lambda x, f=f: (jax.grad(f)(x) ** 2).sum())(x) for f in (by_layer, by_rule))
    assert_close(got, right, FLOAT64)
    assert float(abs(right).max()) > 0


def test_differentiable_takes_a_constant_gradient_under_shard_map():
    constant = jaxcnn.dense.replace(backward=lambda r, dy: (dy @ r.w.T, r.x.T @ dy, jnp.zeros(dy.shape[-1])))
    layer = Dense(4, rule=constant)
    params, state, _ = layer.init(jax.random.key(0), (3,))
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))

    def gradient(params, x):
        return jax.grad(lambda p: differentiable(layer)(p, state, x)[0].sum())(params)

    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P())
    x = jnp.arange(12.0).reshape(4, 3)
    assert_close(jax.block_until_ready(jax.jit(sharded)(params, x)), gradient(params, x), FLOAT32)


def test_each_layer_draws_by_a_key_of_its_own():
    def noise(name):
        def forward(params, state, x, *, train=False, key=None):
            return x + jax.random.normal(key, x.shape), state, ()

        return jaxcnn.Layer(name, lambda key, shape: ({}, {}, shape), forward, lambda r, dy: ({}, dy))

    x = jnp.zeros((1, 1000))
    for network in (sequential(noise("a"), noise("b")), residual(noise("a"), noise("b"))):
        y = network.forward({}, {}, x, key=jax.random.key(0))[0]
        # The sum of two independent normals has variance 2, of one normal added twice 4.
        assert 1.6 < float(y.var()) < 2.4
