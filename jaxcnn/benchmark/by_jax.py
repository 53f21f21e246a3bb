"""The same networks in plain jax: `lax`'s convolution and pooling, `jax.value_and_grad`, `jax.jit`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcnn.benchmark.contestant import STEPS_A_SCAN, Prepared, in_scans, one_by_one, temporary_bytes
from jaxcnn.benchmark.problem import RATE, STAGES, Network, Problem, weights


def convolution(x, filters, stride=1):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, filters, (stride, stride), "SAME", dimension_numbers=dimensions)


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def small(params, statistics, x):
    """Convolutions with pooling, a sigmoid layer, logits. -> (logits, statistics)"""
    *convolutions, w1, b1, w2, b2 = params
    for filters, bias in zip(convolutions[::2], convolutions[1::2], strict=True):
        x = max_pool(jax.nn.relu(convolution(x, filters) + bias))
    x = jax.nn.sigmoid(x.reshape(x.shape[0], -1) @ w1 + b1)
    return x @ w2 + b2, statistics


def resnet20(params, statistics, x):
    """-> (logits, the running statistics)"""
    params, before, after = iter(params), iter(statistics), []

    def normalized(x, stride=1):
        x = convolution(x, next(params), stride)
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        after.append([0.9 * old + 0.1 * new for old, new in zip(next(before), (mean, variance), strict=True)])
        return (x - mean) * lax.rsqrt(variance + 1e-5) * next(params) + next(params)

    x = jax.nn.relu(normalized(x))
    for _, first_stride in STAGES:
        for stride in (first_stride, 1, 1):
            y = normalized(jax.nn.relu(normalized(x, stride)))
            x = jax.nn.relu(y + (x if stride == 1 else normalized(x, stride)))
    return x.mean((1, 2)) @ next(params) + next(params), after


def forward(network: Network):
    return small if network.filters else resnet20


def first_statistics(problem: Problem) -> list[list[np.ndarray]]:
    """Mean and variance of each batch normalisation before the first step."""
    layers = [w for w in weights(problem.network) if w.vectors == 2]
    return [[np.zeros(w.shape[-1], np.float32), np.ones(w.shape[-1], np.float32)] for w in layers]


def prepare(
    problem: Problem, devices: int, *, scan: bool = False, compiler_options: dict[str, str] | None = None
) -> Prepared:
    """The batch is divided among the devices by its sharding alone."""
    logits_of = forward(problem.network)

    def loss(params, statistics, images, labels):
        logits, statistics = logits_of(params, statistics, images)
        right = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -right.mean(), statistics

    def step(carry, images, labels):
        params, statistics = carry
        (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(params, statistics, images, labels)
        return (jax.tree.map(lambda p, g: p - RATE * g, params, gradients), statistics), value

    def many(carry, images, labels, indices):
        return lax.scan(lambda carry, chosen: step(carry, images[chosen], labels[chosen]), carry, indices)

    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))

    def put(tree, *spec):
        return jax.device_put(tree, NamedSharding(mesh, P(*spec)))

    carry = put((problem.parameters, first_statistics(problem)))
    jitted = jax.jit(many if scan else step, donate_argnums=0, compiler_options=compiler_options)
    if scan:
        images, labels = (put(a.reshape(-1, *a.shape[2:])) for a in (problem.images, problem.labels))
        indices = np.arange(STEPS_A_SCAN * problem.labels.shape[1]) % len(labels)
        data = (images, labels, put(indices.reshape(STEPS_A_SCAN, -1), None, "batch"))
        run = in_scans(jitted, jax.block_until_ready, carry, *data)
    else:
        batches = [put(batch, "batch") for batch in zip(problem.images, problem.labels, strict=True)]
        data = batches[0]
        run = one_by_one(jitted, jax.block_until_ready, carry, batches)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), (carry, *data))

    def temporaries():
        return temporary_bytes(jitted.lower(*shapes).compile(), devices)

    return Prepared(run, temporaries, STEPS_A_SCAN if scan else 1)
