"""Planted faults of small rules, such as users write."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from planted_base import after, broken, draws, fault, small

normal, whole = draws(0)


ROWS = (normal(4, 5),)
IMAGES, ZEROS = (normal(2, 4, 6, 3),), (whole(4, 5),)
PAIR = (normal(4, 5), normal(4, 5))


# --- right rules ----------------------------------------------------------------------------------------------------

product = small(lambda a, b: (a * b, (a, b)), lambda r, dy: (dy * r[1], dy * r[0]), name="product", batch_axes=(0, 0))

scale = small(
    lambda x, s: (x * s, (x, s)),
    lambda r, dy: (dy * r[1], (dy * r[0]).sum(0)),
    name="scale",
    batch_axes=(0, None),
)

reversal = small(
    lambda x, weight: (x, weight),
    lambda weight, dy: (-weight * dy, jnp.zeros_like(weight)),
    name="gradient_reversal",
    reference=lambda x, weight: lax.stop_gradient(x + weight * x) - lax.stop_gradient(weight) * x,
    batch_axes=(0, None),
)

centre = small(
    lambda x: (x - x.mean(-1, keepdims=True), ()),
    lambda r, dy: (dy - dy.mean(-1, keepdims=True),),
    name="centre",
    batch_axes=(0,),
)


def _standardise_forward(x):
    z, deviation = standardised(x)
    return z, (z, deviation)


def standardised(x):
    deviation = jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return (x - x.mean(-1, keepdims=True)) / deviation, deviation


def _standardise_backward(r, dy):
    z, deviation = r
    return ((dy - dy.mean(-1, keepdims=True) - z * (dy * z).mean(-1, keepdims=True)) / deviation,)


standardise = small(_standardise_forward, _standardise_backward, name="standardise", batch_axes=(0,))

leaky_relu = small(
    lambda x: (jnp.where(x > 0, x, 0.1 * x), x),
    lambda x, dy: (jnp.where(x > 0, dy, 0.1 * dy),),
    name="leaky_relu",
    batch_axes=(0,),
)

magnitude = small(
    lambda x: (jnp.where(x > 0, x, jnp.where(x < 0, -x, 0)), x),  # `jnp.abs` has derivative 1 at 0
    lambda x, dy: (dy * jnp.sign(x),),
    name="magnitude",
    batch_axes=(0,),
)

swish = small(
    lambda x: (x * jax.nn.sigmoid(x), x),
    lambda x, dy: (dy * jax.nn.sigmoid(x) * (1 + x * (1 - jax.nn.sigmoid(x))),),
    name="swish",
    batch_axes=(0,),
)

tanh = small(lambda x: (jnp.tanh(x), jnp.tanh(x)), lambda y, dy: (dy * (1 - y * y),), name="tanh", batch_axes=(0,))

softmax = small(
    lambda x: (jax.nn.softmax(x), jax.nn.softmax(x)),
    lambda a, dy: (a * (dy - (a * dy).sum(-1, keepdims=True)),),
    name="softmax",
    batch_axes=(0,),
)

squared_error = small(
    lambda x, target: (((x - target) ** 2).mean(), x - target),
    lambda d, dy: (2 * d * dy / d.size, -2 * d * dy / d.size),
    name="squared_error",
    batch_axes=(0, 0),
)


def _length(x):
    """√Σx², with derivative 0 at 0."""
    square = (x * x).sum(-1, keepdims=True)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


length = small(
    lambda x: (_length(x), x),
    lambda x, dy: (jnp.where(_length(x) > 0, dy * x / jnp.where(_length(x) > 0, _length(x), 1), 0),),
    name="length",
    batch_axes=(0,),
)

mirror = small(lambda x: (x[:, :, ::-1], ()), lambda r, dy: (dy[:, :, ::-1],), name="mirror", batch_axes=(0,))
turn = small(lambda x: (x[:, ::-1, ::-1], ()), lambda r, dy: (dy[:, ::-1, ::-1],), name="turn", batch_axes=(0,))
shift = small(lambda x: (jnp.roll(x, 1, 2), ()), lambda r, dy: (jnp.roll(dy, -1, 2),), name="shift", batch_axes=(0,))
permute = small(
    lambda x: (x.transpose(0, 2, 3, 1), ()),
    lambda r, dy: (dy.transpose(0, 3, 1, 2),),
    name="permute",
    batch_axes=(0,),
)
largest = small(
    lambda a, b: (jnp.where(a >= b, a, b), (a, b)),
    lambda r, dy: (jnp.where(r[0] >= r[1], dy, 0), jnp.where(r[0] >= r[1], 0, dy)),
    name="largest",
    batch_axes=(0, 0),
)
join = small(
    lambda a, b: (jnp.concatenate([a, b], 1), ()),
    lambda r, dy: tuple(jnp.split(dy, 2, 1)),
    name="join",
    batch_axes=(0, 0),
)
embedding = small(
    lambda table, index: (table[index], (table, index)),
    lambda r, dy: (jnp.zeros_like(r[0]).at[r[1]].add(dy), None),
    name="embedding",
    batch_axes=(None, 0),
)


def _windows(x):
    return x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3])


def _spread(dy):
    return jnp.repeat(jnp.repeat(dy, 2, 1), 2, 2)


average_pool = small(
    lambda x: (_windows(x).mean((2, 4)), ()), lambda r, dy: (_spread(dy) / 4,), name="average_pool", batch_axes=(0,)
)

# --- small rules ----------------------------------------------------------------------------------------------------

FAULTS = [
    fault("factors exchanged", after(product, lambda r, dy, da, db: (db, da)), PAIR, "swapped"),
    fault(
        "product: stale factor",
        broken(product, residuals=lambda r: lax.stop_gradient(r)),
        PAIR,
        "second-order",
        why="second order",
    ),
    fault(
        "scale: of the first sample",
        after(scale, lambda r, dy, dx, ds: (dx, (dy * r[0])[0])),
        (normal(4, 5), normal(5)),
        "partial",
    ),
    fault("scale: averaged", after(scale, lambda r, dy, dx, ds: (dx, ds / 4)), (normal(4, 5), normal(5)), "scaled"),
    fault(
        "scale: not summed", after(scale, lambda r, dy, dx, ds: (dx, dy * r[0])), (normal(4, 5), normal(5)), "structure"
    ),
    fault("reversal without its sign", broken(reversal, x=jnp.negative), (normal(4, 5), np.array(0.25)), "negated"),
    fault(
        "reversal without its weight",
        after(reversal, lambda r, dy, dx, dw: (-dy, dw)),
        (normal(4, 5), np.array(0.25)),
        "scaled",
    ),
    fault("statistics taken for constants: centre", after(centre, lambda r, dy, dx: (dy,)), ROWS, "unknown"),
    fault(
        "statistics taken for constants: standardise",
        after(standardise, lambda r, dy, dx: (dy / r[1],)),
        ROWS,
        "unknown",
    ),
    fault(
        "variance taken for a constant",
        after(standardise, lambda r, dy, dx: ((dy - dy.mean(-1, keepdims=True)) / r[1],)),
        ROWS,
        "unknown",
    ),
    fault("not divided by the deviation", after(standardise, lambda r, dy, dx: (dx * r[1],)), ROWS, "unknown"),
    fault(
        "statistics of the batch",
        after(standardise, lambda r, dy, dx: ((dy - dy.mean(0) - r[0] * (dy * r[0]).mean(0)) / r[1],)),
        ROWS,
        "unknown",
    ),
    fault(
        "deviation held constant",
        broken(standardise, residuals=lambda r: (r[0], lax.stop_gradient(r[1]))),
        ROWS,
        "second-order",
        why="second order",
    ),
    fault(
        "leaky ReLU: slope left out",
        leaky_relu.replace(backward=lambda x, dy: (jnp.where(x > 0, dy, 0),)),
        ROWS,
        "unknown",
    ),
    fault(
        "leaky ReLU: slopes exchanged",
        leaky_relu.replace(backward=lambda x, dy: (jnp.where(x < 0, dy, 0.1 * dy),)),
        ROWS,
        "unknown negated",
        note="the right gradient at -x",
    ),
    fault(
        "leaky ReLU: slope 1 at 0",
        leaky_relu.replace(backward=lambda x, dy: (jnp.where(x >= 0, dy, 0.1 * dy),)),
        ZEROS,
        "kink",
        note="between the one-sided differences, but not what the forward pass says",
    ),
    fault(
        "magnitude: derivative 1 at 0",
        magnitude.replace(backward=lambda x, dy: (jnp.where(x >= 0, dy, -dy),)),
        ZEROS,
        "kink",
    ),
    fault("magnitude: x / |x|", magnitude.replace(backward=lambda x, dy: (dy * x / jnp.abs(x),)), ZEROS, "nan"),
    fault(
        "swish: half of the product rule",
        swish.replace(backward=lambda x, dy: (dy * jax.nn.sigmoid(x),)),
        ROWS,
        "unknown",
    ),
    fault("tanh: 1 - y", tanh.replace(backward=lambda y, dy: (dy * (1 - y),)), ROWS, "unknown"),
    fault("tanh: y held constant", broken(tanh, residuals=lax.stop_gradient), ROWS, "second-order", why="second order"),
    fault("softmax: the diagonal alone", softmax.replace(backward=lambda a, dy: (dy * a * (1 - a),)), ROWS, "unknown"),
    fault("squared error: 2 missing", broken(squared_error, dy=lambda d: d / 2), PAIR, "scaled"),
    fault("squared error: mean over the samples only", broken(squared_error, dy=lambda d: d * 5), PAIR, "scaled"),
    fault("squared error: target's sign", broken(squared_error, target=jnp.negative), PAIR, "negated"),
    fault(
        "length: 0/0",
        length.replace(backward=lambda x, dy: (dy * x / _length(x),)),
        (np.concatenate([normal(3, 5), np.zeros((1, 5))]),),
        "nan",
    ),
    fault("mirror: not mirrored back", after(mirror, lambda r, dy, dx: (dy,)), IMAGES, "flipped"),
    fault("turn: not turned back", after(turn, lambda r, dy, dx: (dy,)), IMAGES, "rotated"),
    fault("shift: in the same direction", after(shift, lambda r, dy, dx: (jnp.roll(dy, 1, 2),)), IMAGES, "shifted"),
    fault("shift: not shifted back", after(shift, lambda r, dy, dx: (dy,)), IMAGES, "shifted"),
    fault(
        "permute: the same for the inverse",
        after(permute, lambda r, dy, dx: (dy.transpose(0, 2, 3, 1),)),
        (normal(2, 3, 3, 3),),
        "transposed",
    ),
    fault(
        "largest: both get ties",
        largest.replace(backward=lambda r, dy: (jnp.where(r[0] >= r[1], dy, 0), jnp.where(r[0] <= r[1], dy, 0))),
        (whole(4, 5), whole(4, 5)),
        "ties kink",
        note="a tie of two arguments is a kink of each",
    ),
    fault("join: parts exchanged", after(join, lambda r, dy, da, db: (db, da)), PAIR, "swapped"),
    fault(
        "embedding: repeated rows overwritten",
        after(embedding, lambda r, dy, dt, di: (jnp.zeros_like(r[0]).at[r[1]].set(dy), None)),
        (normal(4, 3), np.array([1, 3, 1, 0, 1], np.int32)),
        "partial unknown",
        note="the samples but the last with this index are left out",
    ),
    fault("average pooling: 1/4 missing", broken(average_pool, x=lambda d: 4 * d), IMAGES, "scaled"),
]
