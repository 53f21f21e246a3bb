"""Convolution and pooling in random configurations on random values, against `jax.vjp`: not one may be wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT64, assert_close, plain_conv2d, plain_max_pool, random_like
from random_configurations import VALUES, random_convolution, random_pooling

from jaxcnn import conv2d, max_pool, rotate180

pytestmark = pytest.mark.usefixtures("x64")

# Every configuration is compiled (about half a second), and then tried on each kind of values.
CONVOLUTIONS, POOLINGS = 45, 60


def distinct(draw_one, count, seed):
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        found[draw_one(rng)] = None
    return list(found)


CONFIGURATIONS = [
    *((conv2d, plain_conv2d, *c) for c in distinct(random_convolution, CONVOLUTIONS, 0)),
    *((max_pool, plain_max_pool, *c) for c in distinct(random_pooling, POOLINGS, 1)),
]


def values(shapes, seed):
    """The arrays of each kind for a configuration, and a generator for their cotangents."""
    for kind, make in enumerate(VALUES.values()):
        rng = np.random.default_rng((seed, kind))
        yield tuple(make(rng, shape) for shape in shapes), rng


def check(rule, plain, shapes, static, seed):
    both = [functools.partial(f, **dict(static)) for f in (rule, plain)]

    @jax.jit
    def run(arrays, dy):
        return [(y, pullback(dy)) for y, pullback in (jax.vjp(f, *arrays) for f in both)]

    for arrays, rng in values(shapes, seed):
        dy = random_like(rng, jax.eval_shape(both[1], *map(jnp.asarray, arrays)))
        assert_close(*run(arrays, dy), FLOAT64)


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_configuration(number):
    check(*CONFIGURATIONS[number], seed=number)


def test_there_are_500_different_ones():
    tried = {
        (rule.name, shapes, static, *(a.tobytes() for a in arrays))
        for number, (rule, _, shapes, static) in enumerate(CONFIGURATIONS)
        for arrays, _ in values(shapes, number)
    }
    assert len(tried) >= 500
    assert len({c[0].name + str(c[2:]) for c in CONFIGURATIONS}) == CONVOLUTIONS + POOLINGS
    statics = [dict(c[3]) for c in CONFIGURATIONS]
    for name, least in {"stride": 9, "dilation": 4, "groups": 3, "window": 12, "ties": 3, "padding": 20}.items():
        assert len({str(s[name]) for s in statics if name in s}) >= least, name


# Backward passes that are wrong, each in one thing: the comparison must see every one of them.
MUTANTS = {
    "filter not turned": (
        conv2d, lambda r, dy, **s: conv2d.backward(r._replace(filters=rotate180(r.filters)), dy, **s),
    ),
    "cotangent ignored": (conv2d, lambda r, dy, **s: conv2d.backward(r, jnp.ones_like(dy), **s)),
    "filter gradient turned": (
        conv2d, lambda r, dy, **s: (lambda dx, dw, db: (dx, rotate180(dw), db))(*conv2d.backward(r, dy, **s)),
    ),
    "mean for the bias": (
        conv2d, lambda r, dy, **s: (lambda dx, dw, db: (dx, dw, db / dy.size))(*conv2d.backward(r, dy, **s)),
    ),
    "one digit too few": (
        conv2d, lambda r, dy, **s: (lambda dx, *rest: (dx * (1 + 1e-10), *rest))(*conv2d.backward(r, dy, **s)),
    ),
    "first for all": (max_pool, lambda r, dy, **s: max_pool.backward(r, dy, **s | {"ties": "first"})),
    "all for first": (max_pool, lambda r, dy, **s: max_pool.backward(r, dy, **s | {"ties": "all"})),
    "pooling's cotangent ignored": (max_pool, lambda r, dy, **s: max_pool.backward(r, jnp.ones_like(dy), **s)),
    "dx at the edge": (max_pool, lambda r, dy, **s: tuple(d.at[0].set(0) for d in max_pool.backward(r, dy, **s))),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_backward_is_seen(mutant):
    rule, backward = MUTANTS[mutant]
    configurations = [(i, c) for i, c in enumerate(CONFIGURATIONS) if c[0] is rule and len(c[2]) != 2]

    def wrong():
        for number, (_, plain, shapes, static) in configurations:
            check(rule.replace(backward=backward), plain, shapes, static, number)

    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        wrong()
