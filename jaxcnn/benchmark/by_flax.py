"""The same networks in Flax NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxcnn.benchmark.contestant import Prepared, one_by_one, temporary_bytes
from jaxcnn.benchmark.problem import CLASSES, HIDDEN, RATE, STAGES, Problem


class Small(nnx.Module):
    """Convolutions with pooling, a sigmoid layer, logits."""

    def __init__(self, filters, channels, flat, given: dict[str, Any]):
        sizes = zip((channels, *filters), filters, strict=False)
        self.convolutions = nnx.List([nnx.Conv(i, o, (3, 3), **given) for i, o in sizes])
        self.hidden = nnx.Linear(flat, HIDDEN, **given)
        self.output = nnx.Linear(HIDDEN, CLASSES, **given)

    def __call__(self, x):
        for convolution in self.convolutions:
            x = nnx.max_pool(nnx.relu(convolution(x)), (2, 2), (2, 2))
        return self.output(nnx.sigmoid(self.hidden(x.reshape(x.shape[0], -1))))


class Normalized(nnx.Module):
    """A convolution and batch normalisation."""

    def __init__(self, channels, features, size, stride, given: dict[str, Any]):
        self.convolution = nnx.Conv(channels, features, (size, size), stride, use_bias=False, **given)
        statistics = {"scale_init": given["kernel_init"], "bias_init": given["bias_init"], "rngs": given["rngs"]}
        self.norm = nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, **statistics)

    def __call__(self, x):
        return self.norm(self.convolution(x))


class Block(nnx.Module):
    def __init__(self, channels, features, stride, given: dict[str, Any]):
        self.first = Normalized(channels, features, 3, stride, given)
        self.second = Normalized(features, features, 3, 1, given)
        self.shortcut = Normalized(channels, features, 1, stride, given) if stride > 1 else None

    def __call__(self, x):
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet20(nnx.Module):
    def __init__(self, channels, given: dict[str, Any]):
        self.first = Normalized(channels, 16, 3, 1, given)
        blocks, channels = [], 16
        for features, stride in STAGES:
            for i in range(3):
                blocks.append(Block(channels, features, stride if i == 0 else 1, given))
                channels = features
        self.blocks = nnx.List(blocks)
        self.output = nnx.Linear(channels, CLASSES, **given)

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.output(x.mean((1, 2)))


def prepare(problem: Problem, devices: int) -> Prepared:
    """`nnx.jit`, its call made cheap by `nnx.cached_partial`, as Flax's guide to performance says."""
    del devices
    arrays = iter(problem.parameters)

    def next_array(key, shape, dtype, *_):
        array = next(arrays)
        if array.shape != shape:
            raise ValueError(f"benchmark: Flax asks for the shape {shape}, the given array has {array.shape}")
        return jnp.asarray(array, dtype)

    given = {"kernel_init": next_array, "bias_init": next_array, "rngs": nnx.Rngs(0)}
    network = problem.network
    if network.filters:
        flat = problem.parameters[-4].shape[0]
        model = Small(network.filters, network.input_shape[-1], flat, given)
    else:
        model = ResNet20(network.input_shape[-1], given)
    optimizer = nnx.Optimizer(model, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, images, labels):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    quick = nnx.cached_partial(step, model, optimizer)
    batches = [jax.device_put(batch) for batch in zip(problem.images, problem.labels, strict=True)]

    def temporaries():
        return temporary_bytes(step.lower(model, optimizer, *batches[0]).compile())

    # The step changes the model in place: it is what has to be waited for.
    def wait(_):
        jax.block_until_ready((nnx.state(model), nnx.state(optimizer)))

    return Prepared(one_by_one(lambda _, *data: (None, quick(*data)), wait, None, batches), temporaries)
