"""What all tests share: jax's settings, tolerances, random arrays, comparison, plain formulations and the cases."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn

CACHE = Path(__file__).parents[1] / ".jax_cache" / os.environ.get("PYTEST_XDIST_WORKER", "main")

# Before jax's first use of a device. Two CPU devices serve the shard_map tests. The tests compile hundreds of
# programs: each of pytest-xdist's processes keeps its own between runs, however quickly they compiled.
jaxcnn.use_cpu_cores(2)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Tolerances are relative to the largest element of the reference: a sum of n terms of either sign is exact to about
# √n machine epsilons of its largest terms, however small the sum itself comes out.
EXACT = 0.0  # values that are only moved, compared or counted
FLOAT64 = 1e-12  # epsilon 2e-16, sums of up to 10⁴ terms
FLOAT32 = 1e-5  # epsilon 1e-7, sums of up to 10³ terms
NETWORK = 1e-10  # float64 through the layers of a network, each of which adds its error

# For small programs that run once: XLA's CPU compiler takes a third of the time, and the arithmetic is the same.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@pytest.fixture
def x64():
    """The test computes in float64; the setting belongs to this thread and leaves jit's caches alone."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def draw(rng: np.random.Generator, *shapes: Any, dtype: Any = np.float64) -> tuple[np.ndarray, ...]:
    """For each shape a random array of multiples of 1/2: distinct enough, with exact zeros and ties.

    What is no shape, an array or None, is handed on, floating arrays in the dtype.
    """

    def one(shape):
        if isinstance(shape, tuple):
            return (rng.normal(size=shape) * 3).round().astype(dtype) / 2
        return shape.astype(dtype) if isinstance(shape, np.ndarray) and shape.dtype.kind == "f" else shape

    return tuple(map(one, shapes))


def is_float(array: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(array).dtype, jnp.floating)


def random_like(rng: np.random.Generator, tree: Any) -> Any:
    """Random cotangents: all ones would hide a missing flip, swapped axes or a wrong place."""
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), tree)


def values_and_gradients(functions, arrays: tuple, rng: np.random.Generator, jit: bool = True) -> list:
    """For each function its output and its gradients with respect to all arrays, for one random cotangent.

    All in one compiled program, since the tests spend their time compiling.
    """
    arrays = jax.tree.map(jnp.asarray, arrays)
    dy = random_like(rng, jax.eval_shape(functions[-1], *arrays))

    def run(arrays, dy):
        results = [(y, pullback(dy)) for y, pullback in (jax.vjp(f, *arrays) for f in functions)]
        return [(y, tuple(None if g is None or g.dtype == jax.dtypes.float0 else g for g in gs)) for y, gs in results]

    return (jax.jit(run, compiler_options=QUICK) if jit else run)(arrays, dy)


def assert_close(got: Any, wanted: Any, tolerance: float) -> None:
    """Equal trees, shapes and dtypes; each element within `tolerance` times the largest one of its array."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, g), w in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        name = jax.tree_util.keystr(path)
        g, w = jnp.asarray(g), jnp.asarray(w)
        assert (g.shape, g.dtype) == (w.shape, w.dtype), name
        # float64 holds every float16, bfloat16 and float32; numpy compares NaN and infinity as equal to themselves.
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        largest = np.abs(w[np.isfinite(w)]).max(initial=0.0) or 1.0
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * largest, err_msg=name)


def assert_same(functions, arrays, rng, tolerance, **static) -> None:
    """Output and gradients of all functions are those of `jax.vjp` of the last one, a plain function."""
    *results, wanted = values_and_gradients([functools.partial(f, **static) for f in functions], arrays, rng)
    for got in results:
        assert_close(got, wanted, tolerance)


def plain_conv2d(image, filters, bias=None, *, stride=1, padding="SAME", dilation=1, groups=1):
    """lax's convolution, of every rank, by itself."""
    images = image[..., None] if image.ndim == 2 else image
    weights = filters[..., None] if filters.ndim == 2 else filters
    y = lax.conv_general_dilated(
        images[None] if images.ndim == 3 else images,
        weights[None] if weights.ndim == 3 else weights,
        (stride, stride) if isinstance(stride, int) else stride,
        padding,
        rhs_dilation=(dilation, dilation) if isinstance(dilation, int) else dilation,
        dimension_numbers=("NHWC", "OHWI", "NHWC"),
        feature_group_count=groups,
    )
    y = y if image.ndim == 4 else y[0]
    y = y if filters.ndim == 4 else y[..., 0]
    return y if bias is None else y + bias


def plain_max_pool(x, *, window=2, stride=None, padding="VALID", ties="first"):
    """All windows gathered by index, then the maximum of each; differentiable by `jax.vjp` under each convention."""
    images = x[..., None] if x.ndim == 2 else x
    images = images[None] if images.ndim == 3 else images
    window = (window, window) if isinstance(window, int) else window
    stride = window if stride is None else (stride, stride) if isinstance(stride, int) else stride
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], window, stride, padding)
    images = jnp.pad(images, ((0, 0), *padding, (0, 0)), constant_values=-jnp.inf)
    rows, columns = (
        np.arange(0, size - w + 1, s)[:, None] + np.arange(w)
        for size, w, s in zip(images.shape[1:3], window, stride, strict=True)
    )
    windows = images[:, rows[:, None, :, None], columns[None, :, None, :]]  # N×Ho×Wo×h×w×C
    windows = windows.reshape(*windows.shape[:3], -1, windows.shape[-1])
    largest = windows.max(3)  # its derivative shares equally
    if ties == "first":
        largest = jnp.take_along_axis(windows, windows.argmax(3)[:, :, :, None], 3)[:, :, :, 0]
    if ties == "all":  # the derivative of the sum, the value of the maximum
        total = jnp.where(windows == largest[:, :, :, None], windows, 0).sum(3)
        largest = total - lax.stop_gradient(total - largest)
    y = largest if x.ndim == 4 else largest[0]
    return y[..., 0] if x.ndim == 2 else y


class Case(NamedTuple):
    """A rule with arrays that it takes: shapes to be drawn, or an array as it is. Images are a batch."""

    rule: jaxcnn.Rule
    shapes: tuple[Any, ...]
    static: dict[str, Any] = {}  # noqa: RUF012  never changed


CASES = {
    "conv2d": Case(jaxcnn.conv2d, ((4, 5, 4, 3), (2, 3, 2, 3), (2,))),
    "conv2d without bias": Case(jaxcnn.conv2d, ((2, 5, 5, 2), (4, 3, 3, 1)), {"stride": 2, "groups": 2}),
    "conv1d": Case(jaxcnn.conv1d, ((4, 7, 3), (2, 3, 3), (2,)), {"stride": 2}),
    "conv3d": Case(jaxcnn.conv3d, ((4, 3, 2, 4, 2), (3, 2, 1, 3, 2), (3,))),
    "max_pool first": Case(jaxcnn.max_pool, ((4, 5, 4, 2),), {"ties": "first"}),
    "max_pool split": Case(jaxcnn.max_pool, ((2, 5, 4, 2),), {"ties": "split", "window": 3, "stride": 1}),
    "max_pool all": Case(jaxcnn.max_pool, ((2, 5, 4, 2),), {"ties": "all"}),
    "relu": Case(jaxcnn.relu, ((4, 3, 2),)),
    "sigmoid": Case(jaxcnn.sigmoid, ((4, 3, 2),)),
    "relu6": Case(jaxcnn.relu6, ((4, 3, 2),)),
    "leaky_relu": Case(jaxcnn.leaky_relu, ((4, 3, 2),), {"negative_slope": 0.3}),
    "prelu": Case(jaxcnn.prelu, ((4, 3, 2), (2,))),
    "elu": Case(jaxcnn.elu, ((4, 3, 2),), {"alpha": 0.7}),
    "selu": Case(jaxcnn.selu, ((4, 3, 2),)),
    "hard_sigmoid": Case(jaxcnn.hard_sigmoid, ((4, 3, 2),)),
    "hard_swish": Case(jaxcnn.hard_swish, ((4, 3, 2),)),
    "tanh": Case(jaxcnn.tanh, ((4, 3, 2),)),
    "softplus": Case(jaxcnn.softplus, ((4, 3, 2),)),
    "silu": Case(jaxcnn.silu, ((4, 3, 2),)),
    "gelu": Case(jaxcnn.gelu, ((4, 3, 2),)),
    "gelu exact": Case(jaxcnn.gelu, ((4, 3, 2),), {"approximate": False}),
    "softmax": Case(jaxcnn.softmax, ((4, 3, 2),), {"axis": 1}),
    "log_softmax": Case(jaxcnn.log_softmax, ((4, 3, 2),)),
    "flatten": Case(jaxcnn.flatten, ((4, 3, 2, 2),)),
    "dense": Case(jaxcnn.dense, ((4, 3), (3, 5), (5,))),
    "dense without bias": Case(jaxcnn.dense, ((4, 3), (3, 5))),
    "cross-entropy of indices": Case(jaxcnn.softmax_cross_entropy, ((4, 3), np.array([2, 0, 1, 1], np.int32))),
    "cross-entropy of rows": Case(jaxcnn.softmax_cross_entropy, ((4, 3), (4, 3))),
    "avg_pool": Case(jaxcnn.avg_pool, ((4, 5, 4, 2),), {"window": 3, "stride": 2, "padding": "SAME"}),
    "global_avg_pool": Case(jaxcnn.global_avg_pool, ((4, 3, 4, 2),)),
    "global_max_pool": Case(jaxcnn.global_max_pool, ((4, 3, 4, 2),), {"ties": "split"}),
    "adaptive_avg_pool": Case(jaxcnn.adaptive_avg_pool, ((4, 5, 4, 2),), {"size": 3}),
    "zero_pad": Case(jaxcnn.zero_pad, ((4, 3, 2, 2),), {"padding": 1}),
    "reflect_pad": Case(jaxcnn.reflect_pad, ((4, 3, 4, 2),), {"padding": ((1, 2), (0, 3))}),
    "space_to_depth": Case(jaxcnn.space_to_depth, ((4, 4, 2, 3),)),
    "depth_to_space": Case(jaxcnn.depth_to_space, ((4, 2, 2, 8),)),
    "upsample_nearest": Case(jaxcnn.upsample_nearest, ((4, 3, 2, 2),)),
    "upsample_bilinear": Case(jaxcnn.upsample_bilinear, ((4, 3, 2, 2),)),
    "conv_transpose2d": Case(jaxcnn.conv_transpose2d, ((4, 3, 2, 3), (3, 3, 3, 2), (2,)), {"stride": 2}),
    "batch_norm": Case(jaxcnn.batch_norm, ((4, 3, 2, 3), (3,), (3,))),
    # The variance may be drawn negative; epsilon makes it positive.
    "frozen_batch_norm": Case(jaxcnn.frozen_batch_norm, ((4, 3, 2, 3), (3,), (3,), (3,), (3,)), {"epsilon": 30.0}),
    "layer_norm": Case(jaxcnn.layer_norm, ((4, 3), (3,), (3,)), {"epsilon": 0.1}),
    "group_norm": Case(jaxcnn.group_norm, ((4, 3, 2, 4), (4,), (4,)), {"groups": 2, "epsilon": 0.1}),
    "instance_norm": Case(jaxcnn.instance_norm, ((4, 3, 2, 3), (3,), (3,)), {"epsilon": 0.1}),
    "rms_norm": Case(jaxcnn.rms_norm, ((4, 3), (3,)), {"epsilon": 0.1}),
    "add": Case(jaxcnn.add, ((4, 3), (4, 3), (4, 3))),
    "concatenate": Case(jaxcnn.concatenate, ((4, 3, 2), (4, 3, 1))),
    "scale_channels": Case(jaxcnn.scale_channels, ((4, 3, 2), (2,))),
    # One mask for all samples, which may then be divided among devices.
    "dropout": Case(jaxcnn.dropout, ((4, 5), np.array([1, 2], np.uint32)), {"rate": 0.4, "broadcast": (0,)}),
    "smoothed cross-entropy": Case(jaxcnn.softmax_cross_entropy, ((4, 3), (4, 3)), {"label_smoothing": 0.2}),
    "binary cross-entropy": Case(jaxcnn.sigmoid_binary_cross_entropy, ((4, 3), (4, 3))),
    # Small logits and labels: with 2 and -1 times these the probability of the wrong answer is still positive.
    "focal loss": Case(
        jaxcnn.sigmoid_focal_loss,
        (np.linspace(-0.9, 1, 12).reshape(4, 3), np.linspace(0, 0.1, 12).reshape(4, 3)),
        {"alpha": 0.3, "gamma": 1.5},
    ),
    "mean_squared_error": Case(jaxcnn.mean_squared_error, ((4, 3), (4, 3))),
    "huber_loss": Case(jaxcnn.huber_loss, ((4, 3), (4, 3))),
}
