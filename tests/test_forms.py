"""Each form that a rule has for a CPU, and the one for other platforms, forced on this CPU: all are the definition."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT64, assert_close, assert_same, draw, plain_conv2d

import jaxcnn
from jaxcnn import conv2d, max_pool
from jaxcnn.rules import correlation, winograd
from jaxcnn.rules.platform import materialised
from jaxcnn.rules.pooling import max_pool_reference
from jaxcnn.rules.window import geometry

FORMS = ("cpu", "elsewhere")


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """The rules take this form, whatever the platform."""

    def chosen(*arrays, cpu, default):
        return (cpu if request.param == "cpu" else default)(*arrays)

    monkeypatch.setattr("jaxcnn.rules.platform.lax.platform_dependent", chosen)
    return request.param


@pytest.fixture
def used(monkeypatch):
    """The names of the functions that make the forms, as they are called."""
    names = []

    def watch(module, name):
        function = getattr(module, name)

        @functools.wraps(function)
        def noted(*args, **kwargs):
            names.append(f"{module.__name__.split('.')[-1]}.{name}")
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    watch(winograd, "convolve")
    watch(winograd, "filter_gradient")
    watch(correlation, "_correlate_by_columns")
    watch(correlation, "patches")
    watch(correlation, "_filled")
    return names


# Image, filters, what else; how a CPU makes y, dx and dw: by tiles, columns, patches, channels filled up with zeros, or
# else by the definition.
TILES, COLUMNS, PATCHES, FILLED, DEFINITION = (
    "winograd.convolve",
    "correlation._correlate_by_columns",
    "correlation.patches",
    "correlation._filled",
    None,
)
GRADIENT = "winograd.filter_gradient"
CONVOLUTIONS = {
    "tiles": ((2, 5, 8, 32), (32, 3, 3, 32), {}, (TILES, TILES, GRADIENT)),
    "tiles that stick out": ((1, 3, 7, 32), (33, 3, 3, 32), {}, (TILES, FILLED, GRADIENT)),
    "tiles of filled channels": ((2, 3, 8, 26), (33, 3, 3, 26), {}, (TILES, FILLED, GRADIENT)),
    "filled channels": ((8, 4, 5, 10), (12, 3, 3, 10), {"stride": (2, 1)}, (FILLED, FILLED, PATCHES)),
    "filled filters": ((8, 4, 5, 12), (11, 3, 3, 12), {}, (FILLED, FILLED, DEFINITION)),
    "tiles, VALID": ((1, 4, 10, 32), (32, 2, 3, 32), {"padding": "VALID"}, (TILES, TILES, GRADIENT)),
    "tiles, stride and dilation of rows": (
        (1, 7, 8, 32), (32, 2, 3, 32), {"stride": (2, 1), "dilation": (3, 1)}, (TILES, TILES, GRADIENT),
    ),
    "tiles, padding of one side": (
        (1, 2, 8, 16), (32, 1, 3, 16), {"padding": ((0, 0), (4, 0))}, (TILES, DEFINITION, PATCHES),
    ),
    "tiles of dy alone": ((2, 5, 6, 32), (16, 3, 3, 32), {"stride": 2}, (DEFINITION, TILES, PATCHES)),
    "columns": ((8, 4, 8, 3), (6, 3, 3, 3), {}, (COLUMNS, COLUMNS, DEFINITION)),
    "two columns, filter of 5": ((8, 4, 6, 8), (8, 2, 5, 8), {"padding": "VALID"}, (COLUMNS, COLUMNS, DEFINITION)),
    "an odd width": ((8, 4, 5, 3), (6, 3, 3, 3), {}, (DEFINITION, DEFINITION, DEFINITION)),
    "few images": ((2, 4, 5, 20), (6, 3, 3, 20), {}, (DEFINITION, DEFINITION, PATCHES)),
    "images and channels exchanged, dilation": ((9, 6, 7, 3), (4, 3, 2, 3), {"dilation": 2}, (None, None, DEFINITION)),
    "one pixel, stride 2": ((8, 5, 6, 3), (4, 1, 1, 3), {"stride": 2}, (DEFINITION, DEFINITION, PATCHES)),
    "groups": ((8, 4, 6, 4), (6, 3, 3, 2), {"groups": 2}, (DEFINITION, DEFINITION, PATCHES)),
}  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("what", CONVOLUTIONS)
def test_convolution(what, form, used, rng):
    image, filters, static, ways = CONVOLUTIONS[what]
    arrays = draw(rng, image, filters, filters[:1])
    assert_same([conv2d, plain_conv2d], arrays, rng, FLOAT64, **static)
    wanted = {way for way in ways if way} if form == "cpu" else set()
    if GRADIENT in wanted:
        wanted.add(PATCHES)  # of the tiles' rows
    assert set(used) == wanted


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "static",
    [{}, {"window": 3, "stride": 2}, {"window": (2, 3), "padding": "SAME"}, {"window": 3, "padding": ((1, 1), (2, 0))}],
    ids=str,
)
@pytest.mark.parametrize("ties", ["first", "split"])
def test_max_pool(static, ties, form, rng):
    assert form in FORMS
    arrays = draw(rng, (2, 7, 8, 3))  # multiples of 1/2, many of them equal
    functions = [functools.partial(f, ties=ties, **static) for f in (max_pool, max_pool_reference)]
    assert_same(functions, arrays, rng, FLOAT64)


VERIFIED = {
    "tiles": (conv2d, (2, 2, 4, 32), (32, 1, 3, 32)),
    "columns": (conv2d, (8, 2, 4, 3), (4, 2, 2, 3), (4,)),
    "pooling": (max_pool, (2, 4, 5, 2)),
}


@pytest.mark.parametrize("what", VERIFIED)
def test_the_verifier_holds(what, form, rng):
    assert form in FORMS
    rule, *shapes = VERIFIED[what]
    report = jaxcnn.verify(rule, *(rng.normal(size=shape) for shape in shapes))
    assert report.ok, report
    assert not report.gaps


def test_a_wrong_form_is_found(form, rng, monkeypatch):
    """Points of which one is wrong: forward and backward passes agree no longer."""
    wrong = winograd._B.copy()
    wrong[3, 1] *= 1.001
    monkeypatch.setattr(winograd, "_B", wrong)
    report = jaxcnn.verify(conv2d, *(rng.normal(size=shape) for shape in VERIFIED["tiles"][1:]))
    assert report.ok is (form == "elsewhere")


def test_how_exact_tiles_are_in_float32(rng, monkeypatch):
    """Largest errors of sums of 864 terms, beside the definition's and those of the usual points."""
    x, w = rng.normal(size=(4, 16, 16, 96)), rng.normal(size=(3, 3, 96, 64))
    g = geometry("conv2d", (16, 16), (3, 3), 1, 1, "SAME")
    with jax.enable_x64(True):
        right = np.asarray(correlation._by_definition(jnp.asarray(x), jnp.asarray(w), g))

    def largest_error(convolve):
        return np.abs(np.asarray(convolve(jnp.float32(x), jnp.float32(w)), np.float64) - right).max()

    by_tiles = functools.partial(winograd.convolve, g=g, correlate=correlation._by_definition)
    definition, tiles = map(largest_error, (functools.partial(correlation._by_definition, g=g), by_tiles))
    for name, matrix in zip("AGB", winograd._matrices((0.0, 1.0, -1.0, 2.0, -2.0)), strict=True):
        monkeypatch.setattr(winograd, f"_{name}", matrix)
    usual = largest_error(by_tiles)
    assert tiles < 3 * definition
    assert tiles < 0.7 * usual


@pytest.mark.parametrize("network", [jaxcnn.models.two_conv(), jaxcnn.models.resnet20()], ids=lambda n: n.name)
def test_on_a_cpu_every_convolution_is_of_the_fast_kind(network):
    """N×H×W×C with h×w×C×n, not reversed, not dilated: of any other XLA makes plain loops inside a `lax.scan`."""
    shape = (28, 28, 1) if network.name == "two_conv" else (32, 32, 3)
    optimizer = optax.sgd(0.1)
    step = jaxcnn.train_step(
        network, jaxcnn.softmax_cross_entropy, optimizer, microbatch="auto", mesh=jax.make_mesh((1,), ("batch",))
    )
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, optimizer, 0, shape))
    data = jax.ShapeDtypeStruct((32, *shape), jnp.float32), jax.ShapeDtypeStruct((32,), jnp.int32)
    text = step.trace(state, *data).lower(lowering_platforms=("cpu",)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) > 5
    kinds = {re.search(r"dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", line)[1] for line in lines}
    assert kinds == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
    for line in lines:
        for found in re.findall(r"(?:lhs_dilate|rhs_dilate) = \[(.*?)\]", line):
            assert found == "1, 1"
        assert "reverse = [true" not in line


def test_materialised_has_the_derivative_of_the_function():
    def twice(x):
        return materialised(lambda x: 2 * x * x, x)

    assert_close(jax.grad(lambda x: twice(x).sum())(jnp.array([-1.0, 3.0])), jnp.array([-4.0, 12.0]), 0)
    assert twice(jnp.zeros((0, 3))).shape == (0, 3)
    batched = jax.vmap(twice)(jnp.arange(4.0).reshape(2, 2) - 1)
    assert_close(batched, 2 * (jnp.arange(4.0).reshape(2, 2) - 1) ** 2, 0)
