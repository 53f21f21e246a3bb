"""Planted faults of avg_pool, global_avg_pool, global_max_pool and adaptive_avg_pool."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault

from jaxcnn import adaptive_avg_pool, avg_pool, global_avg_pool, global_max_pool, max_pool
from jaxcnn.rules.resize import combine
from jaxcnn.rules.window import geometry, untap

normal, whole = draws(2)

IMAGES = (normal(2, 6, 4, 3),)
ODD = (normal(2, 5, 4, 3),)
SQUARE = (normal(2, 4, 4, 3),)
WIDE = (normal(2, 7, 6, 2),)
TIED = (whole(2, 4, 4, 3),)
PARTLY_TIED = (np.where(np.arange(3) < 2, TIED[0], SQUARE[0]),)
ZEROS = (np.maximum(whole(2, 2, 2, 3), 0) * np.array([0, 1, 1]),)
OVERLAP = {"window": 3, "stride": 1}
SAME = {"window": 3, "stride": 1, "padding": "SAME"}


def through(dtype):
    return lambda a: a.astype(dtype).astype(a.dtype)


def spread(dy):
    """Of windows of 2×2."""
    return jnp.repeat(jnp.repeat(dy, 2, 1), 2, 2)


def inner(d):
    return jnp.zeros_like(d).at[:, 1:-1, 1:-1].set(d[:, 1:-1, 1:-1])


# --- avg_pool -------------------------------------------------------------------------------------------------------


def tap_by_tap(combined):
    """dx made of the parts that each place of the window gives, all divided by the window's size."""

    def backward(r, dy, *, window, stride, padding, count_padding):
        size = r.shape.value[1:3]
        g = geometry("avg_pool", size, (window, window), window if stride is None else stride, 1, padding)
        return (combined([untap(dy / window**2, place, g) for place in g.taps]),)

    return avg_pool.replace(backward=backward)


def overwritten(parts):
    """`dx[window] = dy`, where `+=` is meant."""
    dx = parts[-1]
    for part in parts[-2::-1]:
        dx = jnp.where(part != 0, part, dx)
    return dx


def of_the_maximum(r, dy, dx):
    x = jnp.asarray(IMAGES[0], dy.dtype)
    return max_pool.backward(max_pool.forward(x)[1], dy, window=2, stride=None, padding="VALID", ties="first")


def rest_included(r, dy, dx):
    """The last row, which no window sees, gets what the one before it gets."""
    return (dx.at[:, -1].set(dx[:, -2]),)


def stride_forgotten(r, dy, dx):
    """As if windows of 3 in steps of 2 lay side by side."""
    return (jnp.repeat(jnp.repeat(dy, 3, 1), 3, 2)[:, :5, :5] / 9,)


AVG_POOL = [
    fault("not divided", broken(avg_pool, x=lambda d: 4 * d), IMAGES, "scaled"),
    fault("divided twice", broken(avg_pool, x=lambda d: d / 4), IMAGES, "scaled"),
    fault("divided by the side of the window", broken(avg_pool, x=lambda d: 3 * d), IMAGES, "scaled", **OVERLAP),
    fault("divided by the number of windows", broken(avg_pool, x=lambda d: d * 4 / 6), IMAGES, "scaled"),
    fault("divided by the samples", broken(avg_pool, x=lambda d: d / 2), IMAGES, "scaled"),
    fault("negated", broken(avg_pool, x=jnp.negative), IMAGES, "negated"),
    fault("zeros at the edge counted", broken(avg_pool, static={"count_padding": True}), IMAGES, "border", **SAME),
    fault(
        "zeros at the edge not counted",
        broken(avg_pool, static={"count_padding": False}),
        IMAGES,
        "border",
        count_padding=True,
        **SAME,
    ),
    fault(
        "zeros at the edge counted, inner places",
        broken(avg_pool, static={"count_padding": True}),
        WIDE,
        "border",
        **SAME,
    ),
    fault(
        "zeros at the edge counted, stride 2",
        broken(avg_pool, static={"count_padding": True}),
        ODD,
        "border",
        padding="SAME",
    ),
    fault(
        "overlapping windows overwrite one another",
        tap_by_tap(overwritten),
        IMAGES,
        "unknown partial",
        note="some windows are left out, which are neither samples nor channels",
        **OVERLAP,
    ),
    fault("first place of the window only", tap_by_tap(lambda parts: 4 * parts[0]), IMAGES, "unknown"),
    fault("one place of the window left out", tap_by_tap(lambda parts: sum(parts[:-1])), IMAGES, "unknown", **OVERLAP),
    fault("diagonal of the window only", tap_by_tap(lambda parts: parts[0] + parts[3]), IMAGES, "unknown"),
    fault("the maximum's gradient", after(avg_pool, of_the_maximum), IMAGES, "unknown"),
    fault(
        "the stride forgotten", after(avg_pool, stride_forgotten), (normal(2, 5, 5, 3),), "unknown", window=3, stride=2
    ),
    fault(
        "rows and columns of the window exchanged",
        broken(avg_pool, static={"window": (3, 1)}),
        IMAGES,
        "unknown transposed",
        note="the window, which is no array",
        window=(1, 3),
        stride=1,
        padding="SAME",
    ),
    fault("H and W exchanged", broken(avg_pool, x=lambda d: d.swapaxes(1, 2)), SQUARE, "transposed"),
    fault(
        "padding mirrored",
        broken(avg_pool, static={"padding": ((1, 0), (1, 0))}),
        IMAGES,
        "shifted",
        window=2,
        stride=1,
        padding=((0, 1), (0, 1)),
        count_padding=True,
    ),
    fault(
        "one row too low",
        broken(avg_pool, x=lambda d: jnp.pad(d, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]),
        IMAGES,
        "shifted",
        **OVERLAP,
    ),
    fault(
        "last row missing",
        broken(avg_pool, x=lambda d: d.at[:, -1].set(0)),
        ODD,
        "border",
        padding="SAME",
        note="the windows that are not full are left out",
    ),
    fault("the rest that no window sees", after(avg_pool, rest_included), ODD, "border"),
    fault("the rest cut off", broken(avg_pool, x=lambda d: d[:, :4]), ODD, "structure"),
    fault(
        "padding not cut off",
        broken(avg_pool, x=lambda d: jnp.pad(d, ((0, 0), (1, 1), (1, 1), (0, 0)))),
        IMAGES,
        "structure",
        **SAME,
    ),
    fault("first sample only", broken(avg_pool, x=lambda d: d.at[1:].set(0)), IMAGES, "partial"),
    fault("first channel for all", broken(avg_pool, x=lambda d: d[..., :1] + 0 * d), IMAGES, "partial"),
    fault("1/n without dy", broken(avg_pool, dy=jnp.ones_like), IMAGES, "not-linear"),
    fault("through bfloat16", broken(avg_pool, x=through(jnp.bfloat16)), IMAGES, "precision"),
]


# --- global_avg_pool ------------------------------------------------------------------------------------------------


def channels_first(r, dy, dx):
    places = dx.shape[1] * dx.shape[2]
    return (jnp.repeat(dy / places, places).reshape(dx.shape),)


def two_samples(r, dy, dx):
    return (dx.reshape(2, 6, 4, 3),)


GLOBAL_AVG_POOL = [
    fault("not divided", broken(global_avg_pool, x=lambda d: 24 * d), IMAGES, "scaled"),
    fault("divided by H only", broken(global_avg_pool, x=lambda d: 4 * d), IMAGES, "scaled"),
    fault("divided by N too", broken(global_avg_pool, x=lambda d: d / 2), IMAGES, "scaled"),
    fault("divided by C too", broken(global_avg_pool, x=lambda d: d / 3), IMAGES, "scaled"),
    fault("negated", broken(global_avg_pool, x=jnp.negative), IMAGES, "negated"),
    fault(
        "first place only",
        broken(global_avg_pool, x=lambda d: jnp.zeros_like(d).at[:, 0, 0].set(24 * d[:, 0, 0])),
        IMAGES,
        "unknown",
    ),
    fault("empty frame", broken(global_avg_pool, x=inner), IMAGES, "border"),
    fault("channels before the places", after(global_avg_pool, channels_first), IMAGES, "transposed"),
    fault("places not repeated", broken(global_avg_pool, x=lambda d: d[:, :1, :1]), IMAGES, "structure"),
    fault("dy of the first sample for all", broken(global_avg_pool, x=lambda d: d[:1] + 0 * d), IMAGES, "partial"),
    fault(
        "dy of the first channel for all", broken(global_avg_pool, x=lambda d: d[..., :1] + 0 * d), IMAGES, "partial"
    ),
    fault(
        "channels averaged", broken(global_avg_pool, x=lambda d: d.mean(-1, keepdims=True) + 0 * d), IMAGES, "unknown"
    ),
    fault("samples averaged", broken(global_avg_pool, x=lambda d: d.mean(0, keepdims=True) + 0 * d), IMAGES, "unknown"),
    fault("1/n without dy", broken(global_avg_pool, dy=jnp.ones_like), IMAGES, "not-linear"),
    fault(
        "batch size written into the code",
        after(global_avg_pool, two_samples),
        IMAGES,
        "structure",
        why="smaller batch",
    ),
    fault("through float16", broken(global_avg_pool, x=through(jnp.float16)), IMAGES, "precision"),
]


# --- global_max_pool ------------------------------------------------------------------------------------------------


def by_winners(change):
    """dx of other winners: `change` of the mask of all maxima, N×H·W×C."""

    def backward(r, dy, *, ties):
        x = r.x.reshape(len(r.x), -1, r.x.shape[-1])
        shares = change((x == r.y[:, None]).astype(dy.dtype))
        return ((shares * dy[:, None]).reshape(r.x.shape),)

    return global_max_pool.replace(backward=backward)


def first(won):
    return won * (jnp.cumsum(won, 1) == 1)


def last(won):
    return won * (jnp.cumsum(won[:, ::-1], 1)[:, ::-1] == 1)


def untied(won):
    return won * (won.sum(1, keepdims=True) == 1)


def column_first(won):
    return turned(first(turned(won)))


def turned(won):
    """Rows and columns of 4×4 places exchanged."""
    n, _, c = won.shape
    return won.reshape(n, 4, 4, c).swapaxes(1, 2).reshape(won.shape)


def moved(won):
    """Places counted from 1."""
    return jnp.pad(first(won), ((0, 0), (1, 0), (0, 0)))[:, :-1]


def by_quotient(r, dy, dx):
    return (jnp.where(dx != 0, dy[:, None, None] * (r.x / r.y[:, None, None]), 0 * (r.x / r.y[:, None, None])),)


GLOBAL_MAX_POOL = [
    fault("all ties get the gradient", broken(global_max_pool, static={"ties": "all"}), TIED, "ties"),
    fault("ties share the gradient", broken(global_max_pool, static={"ties": "split"}), TIED, "ties"),
    fault("the last tie gets the gradient", by_winners(last), TIED, "ties"),
    fault("the first tie in column-major order gets the gradient", by_winners(column_first), TIED, "ties"),
    fault("no tie gets the gradient", by_winners(untied), PARTLY_TIED, "ties"),
    fault("no tie gets the gradient, all tie", by_winners(untied), TIED, "ties zero", note="nothing gets it"),
    fault("split: all get it", broken(global_max_pool, static={"ties": "all"}), TIED, "ties", ties="split"),
    fault("split: the first gets it", broken(global_max_pool, static={"ties": "first"}), TIED, "ties", ties="split"),
    fault("split: divided by H·W", broken(global_max_pool, x=lambda d: d / 16), SQUARE, "scaled", ties="split"),
    fault(
        "split: shared among the whole sample's maxima",
        by_winners(lambda won: won / won.sum((1, 2), keepdims=True)),
        SQUARE,
        "scaled",
        note="by 1/3 where none ties",
        ties="split",
    ),
    fault("all: the first gets it", broken(global_max_pool, static={"ties": "first"}), TIED, "ties", ties="all"),
    fault("all: equal shares", broken(global_max_pool, static={"ties": "split"}), TIED, "ties", ties="all"),
    fault("all: negated", broken(global_max_pool, x=jnp.negative), TIED, "negated", ties="all"),
    fault("the whole image gets the gradient", by_winners(jnp.ones_like), SQUARE, "unknown"),
    fault("the mean's gradient", by_winners(lambda won: jnp.ones_like(won) / 16), SQUARE, "unknown"),
    fault("winners of channel 0 for all channels", by_winners(lambda won: won[..., :1] + 0 * won), SQUARE, "partial"),
    fault("winners of sample 0 for all samples", by_winners(lambda won: won[:1] + 0 * won), SQUARE, "partial"),
    fault("rows and columns of the places exchanged", by_winners(turned), SQUARE, "transposed"),
    fault("places counted from 1", by_winners(moved), SQUARE, "shifted"),
    fault("the mask alone", broken(global_max_pool, dy=jnp.ones_like), SQUARE, "not-linear"),
    fault("dy squared", broken(global_max_pool, x=lambda d: d * d), SQUARE, "not-linear"),
    fault("mask as quotient", after(global_max_pool, by_quotient), ZEROS, "nan", note="0/0 in images of zeros"),
    fault("dx of N×H·W×C", broken(global_max_pool, x=lambda d: d.reshape(2, 16, 3)), SQUARE, "structure"),
    fault(
        "dy held constant", broken(global_max_pool, dy=lax.stop_gradient), SQUARE, "second-order", why="second order"
    ),
]


# --- adaptive_avg_pool ----------------------------------------------------------------------------------------------


def by_matrices(matrix):
    """dx = Aᵀ dy B with other means, `matrix(old, new)`."""

    def backward(r, dy, *, size):
        rows, columns = (matrix(old, new) for old, new in zip(r.shape.value[1:3], dy.shape[1:3], strict=True))
        return (combine(dy, 1, rows.T, columns.T),)

    return adaptive_avg_pool.replace(backward=backward)


def windows(old, new):
    """Which values each window covers, and how many."""
    start, end = np.arange(new) * old // new, -(-np.arange(1, new + 1) * old // new)
    covered = (np.arange(old) >= start[:, None]) & (np.arange(old) < end[:, None])
    return covered.astype(float), (end - start)[:, None]


def not_divided(old, new):
    return windows(old, new)[0]


def of_one_length(old, new):
    return windows(old, new)[0] * new / old


def of_the_longest(old, new):
    covered, length = windows(old, new)
    return covered / length.max()


def last_window_only(old, new):
    covered, length = windows(old, new)
    return covered * (np.cumsum(covered[::-1], 0)[::-1] == 1) / length


def side_by_side(old, new):
    """Windows that end before floor(i·H / n): they overlap nowhere."""
    bounds = np.arange(new + 1) * old // new
    covered = (np.arange(old) >= bounds[:-1, None]) & (np.arange(old) < bounds[1:, None])
    return covered / np.diff(bounds)[:, None]


def each_a_mean(old, new):
    """Each value gets the mean of its windows' dy."""
    covered, _ = windows(old, new)
    return covered / covered.sum(0)


UNEVEN = (normal(2, 6, 5, 3),)
EVEN = (normal(2, 4, 4, 3),)
ADAPTIVE_AVG_POOL = [
    fault("not divided, windows of one size", by_matrices(not_divided), EVEN, "scaled", size=2),
    fault("not divided", by_matrices(not_divided), UNEVEN, "unknown", size=3),
    fault("divided by H / n", by_matrices(of_one_length), UNEVEN, "unknown", size=3),
    fault("divided by the longest window", by_matrices(of_the_longest), UNEVEN, "unknown", size=3),
    fault("divided by the number of windows", by_matrices(each_a_mean), UNEVEN, "unknown", size=3),
    fault(
        "overlapping windows overwrite one another",
        by_matrices(last_window_only),
        UNEVEN,
        "unknown partial",
        note="some windows are left out, which are neither samples nor channels",
        size=3,
    ),
    fault("windows without their overlap", by_matrices(side_by_side), UNEVEN, "unknown", size=3),
    fault("negated", broken(adaptive_avg_pool, x=jnp.negative), UNEVEN, "negated", size=3),
    fault("H and W exchanged", broken(adaptive_avg_pool, x=lambda d: d.swapaxes(1, 2)), EVEN, "transposed", size=3),
    fault("first sample only", broken(adaptive_avg_pool, x=lambda d: d.at[1:].set(0)), UNEVEN, "partial", size=3),
    fault(
        "last column left out", broken(adaptive_avg_pool, x=lambda d: d.at[:, :, -1].set(0)), UNEVEN, "border", size=3
    ),
    fault("dx of dy's shape", broken(adaptive_avg_pool, x=lambda d: d[:, :3, :3]), UNEVEN, "structure", size=3),
]

FAULTS = AVG_POOL + GLOBAL_AVG_POOL + GLOBAL_MAX_POOL + ADAPTIVE_AVG_POOL
