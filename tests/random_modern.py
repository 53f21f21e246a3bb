"""Random configurations of the layers that the source does not have; see `random_configurations`."""

from __future__ import annotations

import numpy as np

import jaxcnn


def _sizes(rng, least: int, most: int, count: int) -> tuple[int, ...]:
    return tuple(rng.integers(least, most + 1, count).tolist())


def _one_of(rng, choices):
    return choices[rng.integers(len(choices))]


def _activation(rng):
    shape = _sizes(rng, 1, 5, int(rng.integers(1, 5)))
    plain = [
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "silu",
        "softplus",
        "tanh",
        "hard_swish",
        "hard_sigmoid",
        "gelu",
        "softmax",
        "log_softmax",
        "prelu",
    ]
    name = _one_of(rng, plain)
    static = {
        "leaky_relu": {"negative_slope": float(_one_of(rng, (0.01, 0.3)))},
        "elu": {"alpha": float(_one_of(rng, (1.0, 0.5)))},
        "gelu": {"approximate": bool(rng.integers(2))},
        "softmax": {"axis": int(rng.integers(len(shape)))},
        "log_softmax": {"axis": int(rng.integers(len(shape)))},
    }.get(name, {})
    return getattr(jaxcnn, name), (shape, shape[-1:]) if name == "prelu" else (shape,), static


def _loss(rng):
    shape = _sizes(rng, 1, 5, 2)
    name = _one_of(rng, ("sigmoid_binary_cross_entropy", "sigmoid_focal_loss", "mean_squared_error", "huber_loss"))
    if name in ("mean_squared_error", "huber_loss"):
        return getattr(jaxcnn, name), (shape, shape), {}
    labels = rng.integers(0, 2, shape).astype(np.int32) if rng.integers(2) else 0.8 * rng.random(shape) + 0.1
    return getattr(jaxcnn, name), (shape, labels), {}


def _normalization(rng):
    c, groups = 2 * int(rng.integers(1, 4)), int(rng.integers(1, 3))
    shape = (*_sizes(rng, 1, 3, 1), *_sizes(rng, 1, 4, 2), c)
    rule = _one_of(
        rng, (jaxcnn.batch_norm, jaxcnn.layer_norm, jaxcnn.group_norm, jaxcnn.instance_norm, jaxcnn.rms_norm)
    )
    shapes = (shape, (c,), (c,))[: 2 if rule is jaxcnn.rms_norm else 3]
    return rule, shapes, {"groups": groups} if rule is jaxcnn.group_norm else {}


def _frozen(rng):
    n, c = _sizes(rng, 1, 5, 2)
    return jaxcnn.frozen_batch_norm, ((n, c), (c,), (c,), (c,), rng.random(c) + 0.1), {}


def _average(rng):
    n, h, w, c = (*_sizes(rng, 1, 2, 1), *_sizes(rng, 1, 6, 2), *_sizes(rng, 1, 3, 1))
    name = _one_of(rng, ("avg_pool", "global_avg_pool", "global_max_pool", "adaptive_avg_pool"))
    static = {
        "avg_pool": {
            "window": 3,
            "stride": int(rng.integers(1, 4)),
            "padding": "SAME",
            "count_padding": bool(rng.integers(2)),
        },
        "global_max_pool": {"ties": _one_of(rng, ("first", "split", "all"))},
        "adaptive_avg_pool": {"size": _sizes(rng, 1, 4, 2)},
    }.get(name, {})
    return getattr(jaxcnn, name), ((n, h, w, c),), static


def _resize(rng):
    n, h, w, c = (*_sizes(rng, 1, 2, 1), *_sizes(rng, 1, 4, 2), *_sizes(rng, 1, 3, 1))
    name = _one_of(
        rng, ("zero_pad", "reflect_pad", "space_to_depth", "depth_to_space", "upsample_nearest", "upsample_bilinear")
    )
    shape = {"space_to_depth": (n, 2 * h, 2 * w, c), "depth_to_space": (n, h, w, 4 * c)}.get(name, (n, h, w, c))
    static = {
        "zero_pad": {"padding": (_sizes(rng, 0, 2, 2), _sizes(rng, 0, 2, 2))},
        "reflect_pad": {"padding": (_sizes(rng, 0, h - 1, 2), _sizes(rng, 0, w - 1, 2))},
        "upsample_nearest": {"factor": _sizes(rng, 1, 3, 2)},
        "upsample_bilinear": {"factor": _sizes(rng, 1, 3, 2)},
    }.get(name, {})
    return getattr(jaxcnn, name), (shape,), static


def _other_convolution(rng):
    n, c, filters = (*_sizes(rng, 1, 2, 1), *_sizes(rng, 1, 3, 2))
    static = {"stride": int(rng.integers(1, 3)), "padding": _one_of(rng, ("SAME", "VALID"))}
    space = {"conv1d": 1, "conv_transpose2d": 2, "conv3d": 3}
    name = _one_of(rng, list(space))
    size, window = _sizes(rng, 3, 4, space[name]), _sizes(rng, 1, 3, space[name])
    ends = (c, *window, filters) if name == "conv_transpose2d" else (filters, *window, c)
    return getattr(jaxcnn, name), ((n, *size, c), ends, (filters,)), static


def _dropout(rng):
    shape = _sizes(rng, 1, 4, 4)
    key = rng.integers(0, 2**32, 2, dtype=np.uint32)
    return (
        jaxcnn.dropout,
        (shape, key),
        {"rate": float(_one_of(rng, (0.0, 0.3, 0.6))), "broadcast": _one_of(rng, ((), (1, 2)))},
    )


FAMILIES = {
    "activation": _activation,
    "other loss": _loss,
    "normalisation": _normalization,
    "frozen normalisation": _frozen,
    "average": _average,
    "resize": _resize,
    "other convolution": _other_convolution,
    "dropout": _dropout,
}
