"""Planted faults of zero_pad, reflect_pad, space_to_depth and depth_to_space."""

from __future__ import annotations

import jax.numpy as jnp
from planted_base import after, broken, draws, fault

from jaxcnn import depth_to_space, reflect_pad, space_to_depth, zero_pad

normal, _ = draws(3)

IMAGES, SQUARE = (normal(2, 6, 5, 3),), (normal(2, 4, 4, 3),)
ONE, TWO, UNEVEN = {"padding": 1}, {"padding": 2}, {"padding": ((2, 0), (1, 2))}


# --- zero_pad -------------------------------------------------------------------------------------------------------


def cropped(top, left):
    """dy from another row and column on."""
    return after(zero_pad, lambda r, dy, dx: (dy[:, top : top + dx.shape[1], left : left + dx.shape[2]],))


def inner(d):
    return jnp.zeros_like(d).at[:, 1:-1, 1:-1].set(d[:, 1:-1, 1:-1])


def with_the_edge(r, dy, dx):
    """What came to the added places goes to the edge, as if it had been repeated (padding 1)."""
    dx = dx.at[:, 0].add(dy[:, 0, 1:-1]).at[:, -1].add(dy[:, -1, 1:-1])
    return (dx.at[:, :, 0].add(dy[:, 1:-1, 0]).at[:, :, -1].add(dy[:, 1:-1, -1]),)


def as_wrapped(r, dy, dx):
    """What came to the added rows goes to the other side, as if the image had been continued periodically."""
    return (dx.at[:, -1].add(dy[:, 0, 1:-1]).at[:, 0].add(dy[:, -1, 1:-1]),)


def as_reflected(r, dy, dx):
    return reflect_pad.backward(r, dy, padding=1)


ZERO_PAD = [
    fault("cropped from the wrong side", cropped(0, 2), IMAGES, "shifted", **UNEVEN),
    fault("cropped in the middle", cropped(1, 1), IMAGES, "shifted", **UNEVEN),
    fault("not moved back", cropped(0, 0), IMAGES, "shifted", **ONE),
    fault("moved back twice", cropped(2, 2), IMAGES, "shifted", **ONE),
    fault("columns cropped by the rows' padding", cropped(2, 2), IMAGES, "shifted", padding=((2, 0), (1, 1))),
    fault("not cropped", after(zero_pad, lambda r, dy, dx: (dy,)), IMAGES, "structure", **ONE),
    fault("cropped on one side", after(zero_pad, lambda r, dy, dx: (dy[:, 1:, 1:],)), IMAGES, "structure", **ONE),
    fault("cropped twice", broken(zero_pad, x=lambda d: d[:, 1:-1, 1:-1]), IMAGES, "structure", **ONE),
    fault("empty frame", broken(zero_pad, x=inner), IMAGES, "border", **ONE),
    fault("the edge gets what the zeros got", after(zero_pad, with_the_edge), IMAGES, "border", **ONE),
    fault("as padded periodically", after(zero_pad, as_wrapped), IMAGES, "border", **ONE),
    fault("as padded by reflection", after(zero_pad, as_reflected), IMAGES, "border", **ONE),
    fault("H and W exchanged", broken(zero_pad, x=lambda d: d.swapaxes(1, 2)), SQUARE, "transposed", **ONE),
    fault("first channel only", broken(zero_pad, x=lambda d: d.at[..., 1:].set(0)), IMAGES, "partial", **ONE),
    fault("turned", broken(zero_pad, x=lambda d: d[:, ::-1, ::-1]), IMAGES, "rotated", **ONE),
    fault("no gradient", broken(zero_pad, x=jnp.zeros_like), IMAGES, "zero", **ONE),
]


# --- reflect_pad ----------------------------------------------------------------------------------------------------


def centre(dy, p):
    return dy[:, p:-p, p:-p]


def folded(dy, axis, p, change=lambda mirrored: mirrored, start=1, sides=2):
    """The mirrored p rows of an axis at both ends, turned round, added to what they mirror, from `start` on."""
    dy = jnp.moveaxis(dy, axis, 0)
    dx = dy[p:-p].at[start : start + p].add(change(dy[:p][::-1]))
    end = len(dx) - start
    if sides == 2:
        dx = dx.at[end - p : end].add(change(dy[-p:][::-1]))
    return jnp.moveaxis(dx, 0, axis)


def in_both_axes(p, **how):
    return after(reflect_pad, lambda r, dy, dx: (folded(folded(dy, 1, p, **how), 2, p, **how),))


def without_corners(r, dy, dx):
    """Rows and columns folded of the cropped dy each."""
    middle = centre(dy, 1)
    return (folded(dy[:, :, 1:-1], 1, 1) + folded(dy[:, 1:-1], 2, 1) - middle,)


def replaced(r, dy, dx):
    """`dx[mirrored] = dy`, where `+=` is meant."""
    return (centre(dy, 1).at[:, 1].set(dy[:, 0, 1:-1]).at[:, -2].set(dy[:, -1, 1:-1]),)


def not_turned_round(r, dy, dx):
    return (folded(folded(dy, 1, 2, lambda m: m[::-1]), 2, 2, lambda m: m[::-1]),)


def averaged(dx):
    """Each place the mean of the dy that it gets (padding 1)."""
    count = jnp.ones(dx.shape[1:3]).at[jnp.array([1, -2])].add(1)
    count = count.at[:, jnp.array([1, -2])].multiply(2)
    return (dx / count[..., None]).astype(dx.dtype)


def sides_exchanged(r, dy, dx):
    return reflect_pad.backward(r, dy, padding=((0, 2), (2, 1)))


REFLECT_PAD = [
    fault("mirrored part lost", after(reflect_pad, lambda r, dy, dx: (centre(dy, 1),)), IMAGES, "border", **ONE),
    fault(
        "two mirrored rows lost",
        after(reflect_pad, lambda r, dy, dx: (centre(dy, 2),)),
        (normal(2, 7, 7, 3),),
        "border",
        **TWO,
    ),
    fault("edge counted twice", in_both_axes(1, start=0), IMAGES, "border", note="symmetric, not reflected", **ONE),
    fault("mirrored one place too far in", in_both_axes(1, start=2), (normal(2, 7, 7, 3),), "border", **ONE),
    fault("corners lost", after(reflect_pad, without_corners), IMAGES, "border", **ONE),
    fault("one side only", in_both_axes(1, sides=1), IMAGES, "border", **ONE),
    fault("rows only", after(reflect_pad, lambda r, dy, dx: (folded(dy, 1, 1)[:, :, 1:-1],)), IMAGES, "border", **ONE),
    fault("mirrored part subtracted", in_both_axes(1, change=jnp.negative), IMAGES, "border", **ONE),
    fault("mirrored part overwrites", after(reflect_pad, replaced), IMAGES, "border", **ONE),
    fault("not turned round", after(reflect_pad, not_turned_round), (normal(2, 7, 7, 3),), "border", **TWO),
    fault("averaged", broken(reflect_pad, x=averaged), IMAGES, "border", note="where places are read twice", **ONE),
    fault(
        "sides exchanged",
        after(reflect_pad, sides_exchanged),
        IMAGES,
        "shifted border unknown",
        note="the mirrored parts are others too, as are most of the places",
        **UNEVEN,
    ),
    fault("not cropped", after(reflect_pad, lambda r, dy, dx: (dy,)), IMAGES, "structure", **ONE),
    fault("negated", broken(reflect_pad, x=jnp.negative), IMAGES, "negated", **ONE),
    fault("first sample only", broken(reflect_pad, x=lambda d: d.at[1:].set(0)), IMAGES, "partial", **ONE),
]


# --- space_to_depth and depth_to_space ------------------------------------------------------------------------------


def dealt_out(order, places=(0, 1, 3, 2, 4, 5)):
    """dx of space_to_depth with its axes N×H×W×(i, j, C) read in another order, and laid out in another."""

    def backward(r, dy, dx):
        n, height, width, depth = dy.shape
        sizes = {"i": 2, "j": 2, "c": depth // 4}
        d = dy.reshape(n, height, width, *(sizes[axis] for axis in order))
        d = d.transpose(0, 1, 2, *(3 + order.index(axis) for axis in "ijc"))
        return (d.transpose(places).reshape(dx.shape),)

    return after(space_to_depth, backward)


def gathered(order, places=(0, 1, 3, 2, 4, 5)):
    """dx of depth_to_space, its channels (i, j, C) written in another order; `places` as it should be (0, 1, 3, 2)."""

    def backward(r, dy, dx):
        n, height, width, c = dy.shape
        d = dy.reshape(n, height // 2, 2, width // 2, 2, c).transpose(places)
        return (d.transpose(0, 1, 2, *(3 + "ijc".index(axis) for axis in order)).reshape(dx.shape),)

    return after(depth_to_space, backward)


def first_of_block(dx):
    return jnp.zeros_like(dx).at[:, ::2, ::2].set(dx[:, ::2, ::2])


def block_mean(dx):
    n, height, width, c = dx.shape
    mean = dx.reshape(n, height // 2, 2, width // 2, 2, c).mean((2, 4))
    return jnp.repeat(jnp.repeat(mean, 2, 1), 2, 2)


BLOCKS, DEEP = (normal(2, 4, 6, 3),), (normal(2, 2, 3, 12),)
CHANNELS = "seen from outside, the channels are in another order"

SPACE_TO_DEPTH = [
    fault("blocks in column-major order", dealt_out("jic"), BLOCKS, "transposed"),
    fault("channels before the block's places", dealt_out("cij"), BLOCKS, "transposed"),
    fault("axes not exchanged", dealt_out("ijc", (0, 1, 2, 3, 4, 5)), BLOCKS, "transposed"),
    fault("H and W exchanged", broken(space_to_depth, x=lambda d: d.swapaxes(1, 2)), SQUARE, "transposed"),
    fault(
        "forward again",
        after(space_to_depth, lambda r, dy, dx: (space_to_depth(dy),)),
        (normal(2, 4, 4, 3),),
        "structure",
    ),
    fault("divided by the block", broken(space_to_depth, x=lambda d: d / 4), BLOCKS, "scaled"),
    fault(
        "first pixel of the block only",
        broken(space_to_depth, x=first_of_block),
        BLOCKS,
        "unknown partial",
        note="pixels are left out, which are neither samples nor channels",
    ),
    fault("mean of the block", broken(space_to_depth, x=block_mean), BLOCKS, "unknown"),
    fault("first channel only", broken(space_to_depth, x=lambda d: d.at[..., 1:].set(0)), BLOCKS, "partial"),
    fault(
        "blocks of 2×2 for 1×4",
        after(space_to_depth, lambda r, dy, dx: (depth_to_space(dy),)),
        (normal(2, 4, 8, 3),),
        "structure",
        block=(1, 4),
    ),
]

DEPTH_TO_SPACE = [
    fault("blocks in column-major order", gathered("jic"), DEEP, "transposed partial", note=CHANNELS),
    fault("channels before the block's places", gathered("cij"), DEEP, "transposed partial", note=CHANNELS),
    fault("axes not exchanged", gathered("ijc", (0, 1, 2, 3, 4, 5)), DEEP, "transposed"),
    fault(
        "forward again",
        after(depth_to_space, lambda r, dy, dx: (depth_to_space(dy),)),
        (normal(2, 2, 3, 16),),
        "structure",
    ),
    fault("times the block", broken(depth_to_space, x=lambda d: d * 4), DEEP, "scaled"),
    fault(
        "H and W exchanged", broken(depth_to_space, x=lambda d: d.swapaxes(1, 2)), (normal(2, 3, 3, 12),), "transposed"
    ),
    fault(
        "channels of the first pixel only", broken(depth_to_space, x=lambda d: d.at[..., 3:].set(0)), DEEP, "partial"
    ),
    fault(
        "samples reversed",
        broken(depth_to_space, x=lambda d: d[::-1]),
        DEEP,
        "partial flipped",
        note="the samples in the wrong order, which is also a flip of their axis",
    ),
    fault("negated", broken(depth_to_space, x=jnp.negative), DEEP, "negated"),
]

FAULTS = ZERO_PAD + REFLECT_PAD + SPACE_TO_DEPTH + DEPTH_TO_SPACE
