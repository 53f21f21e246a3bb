"""max_pool against the source's example, examples by hand and `jax.vjp` of plain formulations; g_maxpool."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, assert_close, assert_same, draw, plain_max_pool
from jax import lax

from jaxcnn import g_maxpool, global_max_pool, max_pool

pytestmark = pytest.mark.usefixtures("x64")

TIES = ("first", "split", "all")
INF, NAN = np.inf, np.nan

# The source's worked example: Z^l, a^l, g^l.
Z = np.array([[1.0, 2, 3, 4], [8, 7, 5, 6], [9, 11, 12, 10], [10, 7, 13, 9]])
A = np.array([[8.0, 6], [11, 13]])
G = np.array([[0.0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]])


def gradient(x, dy, **static):
    return jax.vjp(functools.partial(max_pool, **static), jnp.asarray(x))[1](jnp.asarray(dy, jnp.asarray(x).dtype))[0]


def in_every_rank(a):
    """An H×W example as H×W, as H×W×C and as N×H×W×C, the others being its multiples (a maximum stays one)."""
    channels = np.stack([a, 2 * a, 5 * a], -1)
    return a, channels, np.stack([channels, 3 * channels])


@pytest.mark.parametrize("rank", [0, 1, 2], ids=["H×W", "H×W×C", "N×H×W×C"])
@pytest.mark.parametrize("ties", TIES)
def test_the_sources_example(ties, rank):
    z, a, ones = in_every_rank(Z)[rank], in_every_rank(A)[rank], np.ones_like(in_every_rank(Z)[rank])
    g = ones * (G if rank == 0 else G[..., None])
    assert_close(max_pool(z, ties=ties), a, EXACT)
    assert_close(g_maxpool(z, a), g, EXACT)
    dy = in_every_rank(np.array([[2.0, -3], [5, 7]]))[rank]
    axes = (1, 2) if rank == 2 else (0, 1)
    assert_close(gradient(z, dy, ties=ties), g * dy.repeat(2, axes[0]).repeat(2, axes[1]), EXACT)


# x, the windows, dy, then dx by "first", by "split" and by "all": worked out by hand.
BY_HAND = {
    "ties": ([[1, 1], [1, 0]], {}, [[6]], [[6, 0], [0, 0]], [[2, 2], [2, 0]], [[6, 6], [6, 0]]),
    "row-major": ([[0, 1], [1, 0]], {}, [[4]], [[0, 4], [0, 0]], [[0, 2], [2, 0]], [[0, 4], [4, 0]]),
    "overlap": ([[2, 2, 2]], {"window": (1, 2), "stride": 1}, [[3, 5]], [[3, 5, 0]], [[1.5, 4, 2.5]], [[3, 8, 5]]),
    "one winner of two windows": ([[1, 2, 0]], {"window": (1, 2), "stride": 1}, [[3, 5]], *[[[0, 8, 0]]] * 3),
    "all equal": (np.zeros((2, 2)), {}, [[4]], [[4, 0], [0, 0]], [[1, 1], [1, 1]], [[4, 4], [4, 4]]),
    "gaps": ([[1, 1, 9, 1, 1]], {"window": (1, 2), "stride": (1, 3)}, [[2, 6]],
             [[2, 0, 0, 6, 0]], [[1, 1, 0, 3, 3]], [[2, 2, 0, 6, 6]]),
    "odd size": ([[1, 2, 5], [3, 3, 5], [9, 9, 9]], {}, [[4]],
                 [[0, 0, 0], [4, 0, 0], [0] * 3], [[0, 0, 0], [2, 2, 0], [0] * 3], [[0, 0, 0], [4, 4, 0], [0] * 3]),
    "negative beside padding": ([[-2, -1, -3]], {"window": (1, 2), "padding": "SAME"}, [[4, 6]], *[[[0, 4, 6]]] * 3),
    "-inf beside padding": ([[-INF, -INF]], {"window": (1, 2), "stride": 1, "padding": ((0, 0), (1, 1))},
                            [[1, 2, 4]], [[3, 4]], [[2, 5]], [[3, 6]]),
    "-inf": (np.full((2, 2), -INF), {}, [[4]], [[4, 0], [0, 0]], [[1, 1], [1, 1]], [[4, 4], [4, 4]]),
    "inf": ([[0, INF], [INF, -INF]], {}, [[4]], [[0, 4], [0, 0]], [[0, 2], [2, 0]], [[0, 4], [4, 0]]),
    "NaN wins": ([[INF, NAN], [NAN, 1]], {}, [[4]], [[0, 4], [0, 0]], [[0, 2], [2, 0]], [[0, 4], [4, 0]]),
    "NaN beside padding": ([[NAN, 1, 2]], {"window": (1, 2), "padding": "SAME"}, [[4, 6]], *[[[4, 0, 6]]] * 3),
}  # fmt: skip


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("example", BY_HAND)
def test_by_hand(example, ties):
    x, static, dy, *wanted = BY_HAND[example]
    dx = gradient(np.array(x, float), dy, ties=ties, **static)
    assert_close(dx, np.array(wanted[TIES.index(ties)], float), EXACT)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([[NAN, INF], [1, 2]], NAN),
        ([[1, INF], [NAN, NAN]], NAN),
        ([[1, INF], [INF, -INF]], INF),
        ([[-INF, -5], [-9, -7]], -5),
        ([[-INF, -INF], [-INF, -INF]], -INF),
    ],
)
@pytest.mark.parametrize("ties", TIES)
def test_values_that_are_not_finite(x, y, ties):
    for function in (max_pool, max_pool.plain):  # a reference is equal to its forward in value
        assert_close(function(jnp.array(x, float), ties=ties), np.array([[y]], float), EXACT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("function", "shape", "window"),
    [
        *((pool, (1, 24, 24, 16), (w, w)) for pool in (max_pool, max_pool.plain) for w in (2, 3, 4)),
        *((pool, (3, 20, 20, 5), (20, 20)) for pool in (global_max_pool, global_max_pool.plain)),
    ],
    ids=str,
)
def test_no_nan_is_lost(function, shape, window, dtype, rng):
    """XLA's maximum over an axis loses them on a CPU, in some layouts and dtypes."""
    batch, height, width, channels = shape
    x = rng.normal(size=shape).astype(dtype)
    x[0, 1, 1, 0] = x[-1, -1, -1, -1] = NAN
    windows = x.reshape(batch, height // window[0], window[0], width // window[1], window[1], channels)
    wanted = windows.max((2, 4))
    if height > window[0]:
        function = functools.partial(function, window=window)
    for form in (function, jax.jit(function)):
        got = np.asarray(form(x))
        np.testing.assert_array_equal(got.reshape(wanted.shape), wanted)
        assert np.isnan(got).sum() == 2


@pytest.mark.parametrize("shape", [(0, 4, 4, 2), (2, 4, 4, 0), (4, 4, 0)])
def test_no_images_or_no_channels(shape):
    y, pullback = jax.vjp(max_pool, np.zeros(shape))
    assert y.shape == tuple(2 if n == 4 else n for n in shape)
    assert pullback(y)[0].shape == shape


# The shape and the windows.
CONFIGURATIONS = [
    ((6, 4), {}),
    ((7, 5), {}),
    ((7, 5), {"padding": "SAME"}),
    ((5, 6, 3), {"window": 3}),
    ((5, 7, 3), {"window": 3, "stride": 2, "padding": "SAME"}),
    ((2, 5, 4, 3), {"window": (2, 3), "stride": 1}),
    ((2, 6, 5, 3), {"window": 3, "stride": (1, 2), "padding": ((1, 1), (2, 0))}),
    ((2, 6, 5, 1), {"window": (3, 1), "stride": 2, "padding": ((2, 2), (0, 0))}),
    ((2, 7, 7, 2), {"window": 2, "stride": 3}),
    ((2, 4, 4, 2), {"window": 4}),
    ((2, 3, 3, 2), {"window": 1}),
    ((1, 1, 1, 1), {"window": 3, "padding": "SAME"}),
    ((2, 3, 2, 2), {"window": (4, 5), "padding": "SAME", "stride": 1}),
]


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(("shape", "static"), CONFIGURATIONS)
def test_values_and_gradients(shape, static, ties, rng):
    """On values with many ties; the rule's own reference agrees as well."""
    arrays = draw(rng, shape)
    assert_same([max_pool, max_pool.plain, plain_max_pool], arrays, rng, FLOAT64, ties=ties, **static)


@pytest.mark.parametrize("static", [{}, {"window": 3, "stride": 1, "padding": "SAME"}])
def test_first_is_the_convention_of_xla(static, rng):
    def reduce_window(x, window=2, stride=2, padding="VALID"):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, stride, stride, 1), padding)

    assert_same([max_pool, reduce_window], draw(rng, (3, 6, 6, 4)), rng, FLOAT64, **static)


@pytest.mark.parametrize("ties", TIES)
def test_float32(ties, rng):
    arrays = draw(rng, (3, 6, 6, 4), dtype=np.float32)
    assert_same([max_pool, plain_max_pool], arrays, rng, FLOAT32, window=3, stride=2, ties=ties)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (2, 6, 4, 3), (5, 7), (2, 3, 5, 1)])
def test_all_is_the_sources_mask_times_dy(shape, rng):
    (x,) = draw(rng, shape)
    y = max_pool(x)
    dy = rng.normal(size=y.shape)
    rows = 1 if x.ndim == 4 else 0
    # The source's two repeats; a last odd row or column belongs to no window.
    repeated = dy.repeat(2, rows + 1).repeat(2, rows)
    repeated = np.pad(repeated, [(0, s - r) for s, r in zip(shape, repeated.shape, strict=True)])
    assert_close(gradient(x, dy, ties="all"), g_maxpool(x, y) * repeated, EXACT)
    upper = np.repeat(np.repeat(np.asarray(y), 2, rows + 1), 2, rows)  # and its comparison, where every window fits
    if upper.shape == x.shape:
        assert_close(g_maxpool(x, y), (upper == x) * 1.0, EXACT)


def test_mask_at_values_that_are_not_finite():
    z = np.array([[NAN, 1, INF, INF], [NAN, 2, 0, -INF]])
    assert_close(g_maxpool(z, max_pool(z)), np.array([[1.0, 0, 1, 1], [1, 0, 0, 0]]), EXACT)


def pool(shape=(4, 4), dtype=np.float64, **static):
    return lambda: max_pool(np.zeros(shape, dtype), **static)


def mask(z_l, a_mp, dtype=np.float64):
    return lambda: g_maxpool(np.zeros(z_l), np.zeros(a_mp, dtype))


ERRORS = [
    (pool((4,)), ValueError, "max_pool: x must be H×W, H×W×C or N×H×W×C, got shape (4,)"),
    (pool((1, 1, 4, 4, 1)), ValueError, "max_pool: x must be H×W, H×W×C or N×H×W×C, got shape (1, 1, 4, 4, 1)"),
    (pool(dtype=np.int32), TypeError, "max_pool: x must be floating point, got int32"),
    (pool(ties="last"), ValueError, "max_pool: ties must be one of first, split, all, got 'last'"),
    (pool(window=0), ValueError, "max_pool: window must be at least 1, got 0"),
    (pool(window=2.0), TypeError, "max_pool: window must be a whole number or a pair of them, got 2.0"),
    (pool(window=True), TypeError, "max_pool: window must be a whole number or a pair of them, got True"),
    (pool(stride=(1, 0)), ValueError, "max_pool: stride must be at least 1, got (1, 0)"),
    (pool(stride="1"), TypeError, "max_pool: stride must be a whole number or a pair of them, got '1'"),
    (pool(window=5), ValueError,
     "max_pool: the window spans 5×5, the padded image is 4×4; the window must fit into it"),
    (pool(padding="FULL"), ValueError, "max_pool: padding must be \"SAME\", \"VALID\" or two pairs, got 'FULL'"),
    (pool(padding=(0, 1)), TypeError,
     'max_pool: padding must be "SAME", "VALID" or ((top, bottom), (left, right)) in whole numbers, got (0, 1)'),
    (pool(padding=((0, -1), (0, 0))), ValueError,
     "max_pool: padding must not be negative, got ((0, -1), (0, 0))"),
    (pool(padding=((0, 0), (0, 2))), ValueError,
     "max_pool: padding must be less than the window, got (0, 2) for a window of 2"),
    (mask((4,), (2,)), ValueError, "g_maxpool: z_l must be H×W, H×W×C or N×H×W×C, got shape (4,)"),
    (mask((4, 4), (2, 1)), ValueError, "g_maxpool: a_mp must have shape (2, 2) for z_l (4, 4), got (2, 1)"),
    (mask((5, 4, 3), (3, 2, 3)), ValueError,
     "g_maxpool: a_mp must have shape (2, 2, 3) for z_l (5, 4, 3), got (3, 2, 3)"),
    (mask((4, 4), (2, 2), np.float32), TypeError, "g_maxpool: dtypes must be equal, got z_l float64, a_mp float32"),
    (mask((4, 4), (2, 2), np.int64), TypeError, "g_maxpool: a_mp must be floating point, got int64"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_shares_of_more_ties_than_the_dtype_counts_to(dtype):
    """bfloat16 cannot count beyond 256, float16 not beyond 2048."""
    shares = jax.grad(lambda x: max_pool(x, window=20, ties="split").sum())(jnp.ones((20, 20), dtype))
    np.testing.assert_allclose(np.asarray(shares, float), 1 / 400, rtol=0.01)


@pytest.mark.parametrize("options", [{"window": 2}, {"window": 3, "stride": 2, "padding": "SAME"}])
def test_gradient_under_vmap_inside_shard_map(options):
    """As of a model that sees one image at a time, with the images divided among the devices."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 6, 2)), jnp.float32)

    def loss(pool, x):
        return (jax.vmap(lambda one: pool(one, **options))(x) ** 2).sum()

    by_hand = jax.shard_map(
        jax.grad(lambda x: loss(max_pool, x)), mesh=mesh, in_specs=jax.P("batch"), out_specs=jax.P("batch")
    )(x)
    np.testing.assert_allclose(by_hand, jax.grad(lambda x: loss(max_pool.autodiff(), x))(x), rtol=1e-6)
