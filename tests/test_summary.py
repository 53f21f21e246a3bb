"""The summary of a network: numbers against counts by hand, the layers' own and XLA's; names, derivations, errors."""

import inspect
import math
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jaxcnn
from jaxcnn import Conv2D, Dense, Flatten, MaxPool, ReLU, Rule, models, residual, sequential, summary
from jaxcnn.layers import Layer, from_rule
from jaxcnn.layers.operations import operations

IMAGES = jnp.ones((2, 8, 9, 4))
MODELS = [
    f for n, f in inspect.getmembers(models, inspect.isfunction)
    if f.__module__ == models.__name__ and not n.startswith("_")
]  # fmt: skip
CONVOLUTIONAL = sequential(Conv2D(6, 5), ReLU(), MaxPool(2), Flatten(), Dense(10))
BLOCKS = sequential(
    residual(sequential(Conv2D(4, 3), ReLU(), Conv2D(3, 3, bias=False)), name="block"),
    residual(Conv2D(5, 3, name="wide"), Conv2D(5, 1), name="block"),
    name="blocks",
)


def numbers(row):
    return row.parameters, row.operations, row.saved_bytes


def walk(layer):
    yield layer
    for inner in layer.layers:
        yield from walk(inner)


def test_numbers_are_those_counted_by_hand():
    table = summary(CONVOLUTIONAL, (28, 28, 1), batch=3)
    x, y, pooled = 3 * 28 * 28, 3 * 28 * 28 * 6, 3 * 14 * 14 * 6
    assert [numbers(row) for row in table.rows] == [
        (0, 0, 0),
        (6 * 25 + 6, y * (2 * 25 + 1), 4 * x),  # keeps the image, and its filters, which are parameters
        (0, 2 * y, 4 * y),  # a comparison and a choice; keeps its output
        (0, pooled * 4, 4 * (y + pooled)),  # keeps its input, which is that output, and its own
        (0, 0, 0),
        (1176 * 10 + 10, 30 * (2 * 1176 + 1), 4 * pooled),  # keeps a reshaped one
    ]
    assert numbers(table) == (11926, sum(row.operations for row in table.rows), 4 * (x + y + 2 * pooled))
    assert table.rows[3].output_shape == (3, 14, 14, 6)


@pytest.mark.parametrize("layer", [CONVOLUTIONAL, BLOCKS, *(f() for f in MODELS)], ids=lambda layer: layer.name)
def test_rows_add_up_and_have_the_names_of_the_parameters(layer):
    shape = (64, 64, 3)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), shape)[0])
    table = summary(layer, shape, batch=2)
    wanted = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        names = (layer.name, *(part.key for part in path[:-1]))
        wanted[names] = wanted.get(names, 0) + math.prod(leaf.shape)
    assert {row.path: row.parameters for row in table.rows if row.parameters} == wanted
    assert table.parameters == sum(wanted.values())
    assert table.operations == sum(row.operations for row in table.rows) > 0
    assert 0 < table.saved_bytes <= sum(row.saved_bytes for row in table.rows)
    assert all(row.operations >= 0 for row in table.rows)
    assert len(table.rows) == sum(1 for _ in walk(layer))


def test_saved_bytes_are_those_of_the_residuals():
    """A layer by itself: all that it keeps but its parameters."""
    params = jax.eval_shape(lambda: Dense(5, bias=False).init(jax.random.key(0), (7,))[0])
    x = jax.ShapeDtypeStruct((3, 7), jnp.float32)
    residuals = jax.eval_shape(lambda p, x: Dense(5, bias=False).forward(p, {}, x)[2], params, x)
    sizes = [math.prod(r.shape) * r.dtype.itemsize for r in jax.tree.leaves(residuals)]
    assert summary(Dense(5, bias=False), (7,), 3).saved_bytes == sum(sizes) - 4 * 7 * 5 == 4 * 3 * 7


def test_layers_inside_of_layers():
    rows = {"/".join(row.path[1:]): row for row in summary(BLOCKS, (8, 8, 3)).rows}
    assert list(rows) == [
        "", "block_1", "block_1/layer", "block_1/layer/conv2d_1", "block_1/layer/relu", "block_1/layer/conv2d_2",
        "block_1/identity", "block_2", "block_2/layer", "block_2/shortcut",
    ]  # fmt: skip
    assert rows["block_1"].output_shape == (1, 8, 8, 3)
    assert rows["block_1/layer/conv2d_1"].output_shape == (1, 8, 8, 4)
    assert rows["block_1"].operations == 8 * 8 * 3  # the addition


@pytest.mark.parametrize("layer", [BLOCKS, *(f() for f in MODELS)], ids=lambda layer: layer.name)
def test_every_layer_made_of_layers_can_be_rebuilt(layer):
    for inner in walk(layer):
        assert bool(inner.layers) == (inner.rebuild is not None), inner
        if inner.rebuild is not None:
            again = inner.rebuild(*inner.layers)
            assert (again.name, again.layers) == (inner.name, inner.layers)


def test_a_large_network_makes_no_array():
    table = summary(models.source(), (1 << 15, 1 << 15, 3), batch=1024)
    assert table.rows[1].output_shape == (1024, 1 << 15, 1 << 15, 64)
    assert table.saved_bytes > 1 << 46


def test_training_with_a_key():
    def forward(params, state, x, *, train=False, key=None):
        assert train
        return x * jax.random.uniform(key, x.shape), state, ()

    layer = Layer("noise", lambda key, shape: ({}, {}, shape), forward, lambda residuals, dy: ({}, dy))
    assert [row.path[-1] for row in summary(sequential(layer, Dense(2)), (5,)).rows] == ["sequential", "noise", "dense"]


def no_derivation_backward(residuals, dy):
    return (dy,)


# y = x, so dy/dx = 1:
#
#     dx = dy.
def commented_backward(residuals, dy, **static):
    return (dy,)


def test_the_derivation_is_the_comment_above_the_backward_pass():
    def row(backward, rule=None):
        mine = rule or Rule(lambda x: (x, ()), backward, "mine")
        return summary(from_rule(mine, "layer"), (5,)).rows[0]

    assert row(commented_backward)[-2:] == ("mine", "y = x, so dy/dx = 1:\n\n    dx = dy.")
    assert row(no_derivation_backward)[-2:] == ("", "")
    assert row(len)[-2:] == ("", "")  # there is no source
    powers = Rule(lambda x, *, power=1: (x**power, ()), commented_backward)
    assert row(None, powers.partial(power=2)).derivation == row(commented_backward).derivation
    assert row(None, jaxcnn.relu.replace(backward=no_derivation_backward)).rule == ""
    for rule in (jaxcnn.conv2d, jaxcnn.relu):
        lines, start = inspect.findsource(rule.backward)
        layer = Conv2D(2, 3) if rule is jaxcnn.conv2d else ReLU()
        written = summary(layer, (8, 8, 1)).rows[0].derivation.splitlines()
        assert [f"# {line}".rstrip() + "\n" for line in written] == lines[start - len(written) : start]


def test_text():
    plain = Rule(lambda x: (x + 1, ()), no_derivation_backward, "plain")
    network = sequential(residual(sequential(Dense(1000), name="inner")), from_rule(plain, "mine"), ReLU(), name="net")
    assert str(summary(network, (1000,), batch=2)).startswith(
        textwrap.dedent("""\
        layer         output  parameters  operations  saved bytes  backward
        net           2×1000           0           0            0  sequential
          residual    2×1000           0       2,000            0  parallel
            layer     2×1000           0           0            0  sequential
              dense   2×1000   1,001,000   4,002,000        8,000  dense
            identity  2×1000           0           0            0  -
          mine        2×1000           0       2,000            0  -
          relu        2×1000           0       4,000        8,000  relu
        ---------------------------------------------------------------------
        total                  1,001,000   4,010,000       16,000

        sequential
          dL/da^(l-1) = dL/da^l · da^l/da^(l-1): each layer turns""")
    )
    assert str(summary(network, (1000,))).endswith(f"\nrelu\n  {summary(ReLU(), (5,)).rows[0].derivation}")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: lax.dot_general(x, x, (((2, 3), (2, 3)), ((0,), (0,)))),
        lambda x: x.reshape(16, 36) @ x.reshape(36, 16),
        lambda x: jaxcnn.conv2d(x, jnp.ones((5, 3, 2, 4)), stride=2, padding="VALID"),
        lambda x: jaxcnn.conv2d(x, jnp.ones((6, 3, 3, 2)), groups=2, padding="VALID"),
        lambda x: jaxcnn.conv2d(x[..., :2], jnp.ones((6, 2, 3, 1)), groups=2, padding="VALID", dilation=2),
        lambda x: x * 2 + x[:1] / 3,
        lambda x: jnp.maximum(x, 0)[:, ::2].transpose(3, 0, 1, 2) - 1,
    ],
)
def test_operations_are_those_that_xla_counts(function):
    """Its analysis of the program as lowered, before anything is fused."""
    wanted = jax.jit(function).lower(IMAGES).cost_analysis()
    assert operations(jax.make_jaxpr(function)(IMAGES)) == wanted["flops"]


SIZE = IMAGES.size


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (lambda x: jnp.exp(x), SIZE),
        (lambda x: jnp.where(x > 0, x, 0), 2 * SIZE),
        (lambda x: x.sum(), SIZE),
        (lambda x: x.argmax(-1), SIZE),
        (lambda x: jnp.pad(x, 1)[::2].reshape(-1).astype(int), 0),
        (lambda x: jax.jit(jnp.exp)(x), SIZE),
        (lambda x: jax.checkpoint(lambda x: x + 1)(x), SIZE),
        (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"), 9 * SIZE),
        (lambda x: lax.cond(True, lambda x: x + 1, lambda x: x * x - x, x), 2 * SIZE),
        (lambda x: lax.scan(lambda c, _: (c * 2 + 1, None), x, None, 5)[0], 10 * SIZE),
        (lambda x: lax.while_loop(lambda x: True, lambda x: x * 2, x), SIZE),
        (lambda x: jaxcnn.relu(x), 2 * SIZE),
    ],
)
def test_operations_by_their_formulas(function, wanted):
    assert operations(jax.make_jaxpr(function)(IMAGES)) == wanted


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: summary(jaxcnn.relu, (3,)), TypeError, "summary: takes Layers, got relu"),
        (lambda: summary(ReLU, (3,)), TypeError, "summary: takes Layers, got ReLU; layers are made by calls: ReLU()"),
        (lambda: summary(ReLU(), 3), TypeError, "summary: input_shape must be the sizes without N, as (28, 28, 1), "
         "got 3"),
        (lambda: summary(ReLU(), (3, 0)), ValueError, "summary: input_shape must be at least 1, got 0"),
        (lambda: summary(ReLU(), (3.0,)), TypeError, "summary: input_shape must be a whole number, got 3.0"),
        (lambda: summary(ReLU(), (3,), 0), ValueError, "summary: batch must be at least 1, got 0"),
        (lambda: summary(models.lenet5(), (28, 28)), ValueError, "conv2d: input_shape must be (H, W, C), without N, "
         "got (28, 28)"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
