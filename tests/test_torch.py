"""The same weights, images and cotangents given to PyTorch: the same outputs and the same gradients.

A peer computes with PyTorch's own function for the rule, in the rule's layout: the axes are moved inside of it, so that
every gradient can be compared as it is. To add a rule, add a line to PEERS.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT64, assert_close

import jaxcnn

try:
    import torch
    from torch.nn import functional as F
except ImportError:
    torch = F = None

needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed: pip install torch==2.13.0")

RULES = {n: rule for n in jaxcnn.__all__ if isinstance(rule := getattr(jaxcnn, n), jaxcnn.Rule)}
# Rules that PyTorch has no function for, and why.
WITHOUT = {
    "dropout": "each library draws its mask by a generator of its own",
    "sigmoid_focal_loss": "it is torchvision's, not PyTorch's",
}


class Peer(NamedTuple):
    rule: jaxcnn.Rule
    torch: Callable[..., Any]  # of tensors in the rule's layout
    arrays: tuple[Any, ...]  # shapes, of normal values; arrays as they are
    static: dict[str, Any] = {}  # noqa: RUF012  never changed
    constant: tuple[int, ...] = ()  # arrays to which PyTorch gives no gradient
    tolerance: float = FLOAT64


def images(function):
    """The function of N×C×H×W, as one of N×H×W×C."""
    return lambda x, *others: function(x.movedim(-1, 1), *others).movedim(1, -1)


def convolution(name, **settings):
    """PyTorch's convolution by filters n×h×w×C."""
    return images(lambda x, w, *b: getattr(F, name)(x, w.movedim(-1, 1), *b, **settings))


def unshuffled(x, block):
    """PyTorch numbers the channels (c, row, column), jaxcnn as TensorFlow (row, column, c)."""
    y = F.pixel_unshuffle(x.movedim(-1, 1), block).unflatten(1, (-1, block**2))
    return y.transpose(1, 2).flatten(1, 2).movedim(1, -1)


def shuffled(x, block):
    y = x.movedim(-1, 1).unflatten(1, (block**2, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(y, block).movedim(1, -1)


def draws(seed=0):
    return np.random.default_rng(seed)


TIED = draws().integers(-2, 3, (2, 6, 5, 3)).astype(float)
KINKS = np.concatenate([np.arange(-5.0, 8.0), draws().normal(size=20) * 4]).reshape(3, 11)  # -3, 0, 3, 6 among them
CLASSES = draws().integers(0, 5, 6).astype(np.int32)
SOFT = draws().dirichlet(np.ones(5), 6)
IMAGES, SCALE = (2, 4, 5, 4), (4,)
PAIRS = ((1, 1), (2, 2))

PEERS = {
    # Convolution. PyTorch pads both sides alike.
    "conv1d": Peer(
        jaxcnn.conv1d,
        convolution("conv1d", stride=2, padding=2, dilation=2, groups=2),
        ((2, 9, 4), (6, 3, 2), (6,)),
        {"stride": 2, "padding": ((2, 2),), "dilation": 2, "groups": 2},
    ),
    "conv2d": Peer(jaxcnn.conv2d, convolution("conv2d", padding="same"), ((2, 6, 5, 3), (4, 3, 5, 3), (4,))),
    "conv2d, no bias": Peer(jaxcnn.conv2d, convolution("conv2d", padding="same"), ((2, 6, 5, 3), (4, 3, 3, 3))),
    "conv2d, everything": Peer(
        jaxcnn.conv2d,
        convolution("conv2d", stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        ((2, 7, 6, 4), (6, 3, 2, 2), (6,)),
        {"stride": (2, 1), "padding": PAIRS, "dilation": (1, 2), "groups": 2},
    ),
    "conv2d, depthwise": Peer(
        jaxcnn.conv2d, convolution("conv2d", groups=3), ((2, 6, 5, 3), (3, 3, 3, 1)), {"groups": 3, "padding": "VALID"}
    ),
    "conv3d": Peer(
        jaxcnn.conv3d,
        convolution("conv3d", stride=(1, 2, 1), padding=(1, 0, 2), dilation=(2, 1, 1), groups=2),
        ((2, 4, 5, 3, 2), (4, 2, 3, 2, 1), (4,)),
        {"stride": (1, 2, 1), "padding": ((1, 1), (0, 0), (2, 2)), "dilation": (2, 1, 1), "groups": 2},
    ),
    "conv_transpose2d": Peer(
        jaxcnn.conv_transpose2d,
        convolution("conv_transpose2d", stride=2, padding=1),
        ((2, 4, 3, 3), (3, 4, 4, 2), (2,)),
        {"stride": 2},
    ),
    "conv_transpose2d, dilation": Peer(
        jaxcnn.conv_transpose2d,
        convolution("conv_transpose2d", stride=(1, 3), dilation=(2, 1)),
        ((2, 4, 3, 3), (3, 3, 2, 2), (2,)),
        {"stride": (1, 3), "dilation": (2, 1), "padding": "VALID"},
    ),
    # Pooling.
    "max_pool, ties": Peer(jaxcnn.max_pool, images(lambda x: F.max_pool2d(x, 2)), (TIED,)),
    "max_pool, overlapping": Peer(
        jaxcnn.max_pool, images(lambda x: F.max_pool2d(x, 3, 1)), (TIED,), {"window": 3, "stride": 1}
    ),
    "max_pool, padded": Peer(
        jaxcnn.max_pool,
        images(lambda x: F.max_pool2d(x, 3, 2, 1)),
        (-np.abs(TIED) - 1,),
        {"window": 3, "stride": 2, "padding": ((1, 1), (1, 1))},
    ),
    "avg_pool": Peer(
        jaxcnn.avg_pool,
        images(lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)),
        ((2, 6, 5, 3),),
        {"window": 3, "stride": 2, "padding": ((1, 1), (1, 1))},
    ),
    "avg_pool, padding counted": Peer(
        jaxcnn.avg_pool,
        images(lambda x: F.avg_pool2d(x, (3, 2), (2, 1), 1)),
        ((2, 6, 5, 3),),
        {"window": (3, 2), "stride": (2, 1), "padding": ((1, 1), (1, 1)), "count_padding": True},
    ),
    "global_avg_pool": Peer(
        jaxcnn.global_avg_pool, lambda x: F.adaptive_avg_pool2d(x.movedim(-1, 1), 1).flatten(1), ((2, 6, 5, 3),)
    ),
    "global_max_pool": Peer(
        jaxcnn.global_max_pool, lambda x: F.adaptive_max_pool2d(x.movedim(-1, 1), 1).flatten(1), (TIED,)
    ),
    "global_max_pool, split": Peer(jaxcnn.global_max_pool, lambda x: x.amax((1, 2)), (TIED,), {"ties": "split"}),
    "adaptive_avg_pool": Peer(
        jaxcnn.adaptive_avg_pool,
        images(lambda x: F.adaptive_avg_pool2d(x, (4, 7))),
        ((2, 6, 5, 3),),
        {"size": (4, 7)},
    ),
    # Activations, at their kinks as well.
    "relu": Peer(jaxcnn.relu, lambda x: F.relu(x), (KINKS,)),
    "relu6": Peer(jaxcnn.relu6, lambda x: F.relu6(x), (KINKS,)),
    "leaky_relu": Peer(jaxcnn.leaky_relu, lambda x: F.leaky_relu(x, 0.3), (KINKS,), {"negative_slope": 0.3}),
    "prelu": Peer(jaxcnn.prelu, images(lambda x, slope: F.prelu(x, slope)), (TIED, (3,))),
    "elu": Peer(jaxcnn.elu, lambda x: F.elu(x, 0.7), (KINKS,), {"alpha": 0.7}),
    "selu": Peer(jaxcnn.selu, lambda x: F.selu(x), (KINKS,)),
    # PyTorch's slope is 1/6 rounded to float32, in float64 too.
    "hard_sigmoid": Peer(jaxcnn.hard_sigmoid, lambda x: F.hardsigmoid(x), (KINKS,), tolerance=2.0**-25),
    "hard_swish": Peer(jaxcnn.hard_swish, lambda x: F.hardswish(x), (KINKS,)),
    "sigmoid": Peer(jaxcnn.sigmoid, lambda x: F.sigmoid(x), (KINKS,)),
    "tanh": Peer(jaxcnn.tanh, lambda x: F.tanh(x), (KINKS,)),
    "softplus": Peer(jaxcnn.softplus, lambda x: F.softplus(x), (KINKS,)),
    "silu": Peer(jaxcnn.silu, lambda x: F.silu(x), (KINKS,)),
    "gelu": Peer(jaxcnn.gelu, lambda x: F.gelu(x, approximate="tanh"), (KINKS,)),
    "gelu, exact": Peer(jaxcnn.gelu, lambda x: F.gelu(x), (KINKS,), {"approximate": False}),
    "softmax": Peer(jaxcnn.softmax, lambda x: F.softmax(x, 1), (IMAGES,), {"axis": 1}),
    "log_softmax": Peer(jaxcnn.log_softmax, lambda x: F.log_softmax(x, -1), (IMAGES,)),
    # Normalisation.
    "batch_norm": Peer(
        jaxcnn.batch_norm,
        images(lambda x, s, b: F.batch_norm(x, None, None, s, b, training=True, eps=1e-3)),
        (IMAGES, SCALE, SCALE),
        {"epsilon": 1e-3},
    ),
    "frozen_batch_norm": Peer(
        jaxcnn.frozen_batch_norm,
        images(lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b)),
        (IMAGES, SCALE, SCALE, SCALE, draws().random(4) + 0.1),
        constant=(3, 4),
    ),
    "layer_norm": Peer(
        jaxcnn.layer_norm, lambda x, s, b: F.layer_norm(x, SCALE, s, b, eps=1e-6), (IMAGES, SCALE, SCALE)
    ),
    "group_norm": Peer(
        jaxcnn.group_norm,
        images(lambda x, s, b: F.group_norm(x, 2, s, b, eps=1e-6)),
        (IMAGES, SCALE, SCALE),
        {"groups": 2},
    ),
    "instance_norm": Peer(
        jaxcnn.instance_norm,
        images(lambda x, s, b: F.instance_norm(x, weight=s, bias=b, eps=1e-6)),
        (IMAGES, SCALE, SCALE),
    ),
    "rms_norm": Peer(jaxcnn.rms_norm, lambda x, s: F.rms_norm(x, SCALE, s, eps=1e-6), (IMAGES, SCALE)),
    # Layers without places, and losses.
    "dense": Peer(jaxcnn.dense, lambda x, w, b: F.linear(x, w.T, b), ((6, 4), (4, 5), (5,))),
    "flatten": Peer(jaxcnn.flatten, lambda x: x.flatten(1), (IMAGES,)),
    "cross-entropy of indices": Peer(
        jaxcnn.softmax_cross_entropy, lambda z, y: F.cross_entropy(z, y.long()), ((6, 5), CLASSES)
    ),
    "cross-entropy of soft labels": Peer(
        jaxcnn.softmax_cross_entropy, lambda z, y: F.cross_entropy(z, y), ((6, 5), SOFT)
    ),
    "smoothed cross-entropy": Peer(
        jaxcnn.softmax_cross_entropy,
        lambda z, y: F.cross_entropy(z, y.long(), label_smoothing=0.2),
        ((6, 5), CLASSES),
        {"label_smoothing": 0.2},
    ),
    "binary cross-entropy": Peer(
        jaxcnn.sigmoid_binary_cross_entropy, lambda z, y: F.binary_cross_entropy_with_logits(z, y), ((6, 5), SOFT)
    ),
    "mean_squared_error": Peer(jaxcnn.mean_squared_error, lambda x, t: F.mse_loss(x, t), (IMAGES, IMAGES)),
    "huber_loss": Peer(jaxcnn.huber_loss, lambda x, t: F.huber_loss(x, t, delta=0.6), (IMAGES, IMAGES), {"delta": 0.6}),
    # Branches.
    "add": Peer(jaxcnn.add, lambda *xs: torch.stack(xs).sum(0), (IMAGES, IMAGES, IMAGES)),
    "concatenate": Peer(jaxcnn.concatenate, lambda *xs: torch.cat(xs, -1), ((2, 4, 5, 3), IMAGES)),
    "scale_channels": Peer(jaxcnn.scale_channels, lambda x, s: x * s[:, None, None], (IMAGES, (2, 4))),
    # Other sizes.
    "zero_pad": Peer(
        jaxcnn.zero_pad, images(lambda x: F.pad(x, (0, 3, 1, 2))), (IMAGES,), {"padding": ((1, 2), (0, 3))}
    ),
    "reflect_pad": Peer(
        jaxcnn.reflect_pad,
        images(lambda x: F.pad(x, (0, 4, 3, 2), mode="reflect")),
        (IMAGES,),
        {"padding": ((3, 2), (0, 4))},
    ),
    "space_to_depth": Peer(jaxcnn.space_to_depth, lambda x: unshuffled(x, 2), ((2, 4, 6, 3),)),
    "depth_to_space": Peer(jaxcnn.depth_to_space, lambda x: shuffled(x, 2), ((2, 2, 3, 12),)),
    "upsample_nearest": Peer(
        jaxcnn.upsample_nearest, images(lambda x: F.interpolate(x, scale_factor=3)), (IMAGES,), {"factor": 3}
    ),
    "upsample_bilinear": Peer(
        jaxcnn.upsample_bilinear,
        images(lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bilinear", align_corners=False)),
        (IMAGES,),
        {"factor": (2, 3)},
    ),
}


def both(peer: Peer, rule: jaxcnn.Rule) -> tuple[Any, Any]:
    """(output, gradients) by jaxcnn and by PyTorch, in float64, of the same arrays and the same random cotangent."""
    rng = draws(1)
    arrays = [rng.normal(size=a) if isinstance(a, tuple) else a for a in peer.arrays]
    differentiable = [a.dtype == np.float64 and i not in peer.constant for i, a in enumerate(arrays)]
    tensors = [torch.tensor(a, requires_grad=d) for a, d in zip(arrays, differentiable, strict=True)]
    output = peer.torch(*tensors)
    dy = rng.normal(size=tuple(output.shape))
    wanted = torch.autograd.grad(output, [t for t in tensors if t.requires_grad], torch.tensor(dy))

    @jax.jit
    def run(arrays, dy):
        y, pullback = jax.vjp(functools.partial(rule, **peer.static), *arrays)
        return y, [gradient for gradient, d in zip(pullback(dy), differentiable, strict=True) if d]

    got = run([jnp.asarray(a) for a in arrays], jnp.asarray(dy))
    return got, (output.detach().numpy(), [g.numpy() for g in wanted])


@needs_torch
@pytest.mark.parametrize("name", PEERS)
def test_outputs_and_gradients_are_those_of_pytorch(name, x64):
    got, wanted = both(PEERS[name], PEERS[name].rule)
    assert_close(got, wanted, PEERS[name].tolerance)


@needs_torch
@pytest.mark.parametrize("name", ["max_pool, ties", "conv2d, everything", "avg_pool"])
def test_another_convention_is_seen(name, x64):
    """At the same arrays: equal shares at ties, padding off by one, padding counted."""
    peer = PEERS[name]
    other = {
        "max_pool": {"ties": "split"}, "conv2d": {"padding": ((2, 0), (2, 2))}, "avg_pool": {"count_padding": True}
    }[peer.rule.name]  # fmt: skip
    wrong = peer.rule.replace(backward=lambda r, dy, **static: peer.rule.backward(r, dy, **(static | other)))
    (y, gradients), (wanted, right) = both(peer, wrong)
    assert_close(y, wanted, FLOAT64)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(gradients, right, FLOAT64)


def test_every_rule_has_a_counterpart_or_a_reason():
    """Whether PyTorch is installed or not."""
    compared = {peer.rule.name for peer in PEERS.values()}
    assert compared | set(WITHOUT) == set(RULES)
    assert not compared & set(WITHOUT)
