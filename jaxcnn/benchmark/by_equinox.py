"""The same networks in Equinox: modules of one image C×H×W, under `jax.vmap`."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.benchmark.contestant import Prepared, one_by_one, temporary_bytes
from jaxcnn.benchmark.problem import CLASSES, HIDDEN, RATE, STAGES, Problem, channels_first

KEY = jax.random.key  # of initial parameters, all of which are replaced


class Small(eqx.Module):
    """Convolutions with pooling, a sigmoid layer, logits."""

    convolutions: list[eqx.nn.Conv2d]
    hidden: eqx.nn.Linear
    output: eqx.nn.Linear

    def __init__(self, filters, channels, flat):
        sizes = zip((channels, *filters), filters, strict=False)
        self.convolutions = [eqx.nn.Conv2d(i, o, 3, padding="SAME", key=KEY(0)) for i, o in sizes]
        self.hidden = eqx.nn.Linear(flat, HIDDEN, key=KEY(0))
        self.output = eqx.nn.Linear(HIDDEN, CLASSES, key=KEY(0))

    def __call__(self, x, state):
        for convolution in self.convolutions:
            x = eqx.nn.MaxPool2d(2, 2)(jax.nn.relu(convolution(x)))
        return self.output(jax.nn.sigmoid(self.hidden(x.ravel()))), state


class Normalized(eqx.Module):
    """A convolution and batch normalisation."""

    convolution: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm

    def __init__(self, channels, features, size, stride):
        settings = {"padding": "SAME", "use_bias": False, "key": KEY(0)}
        self.convolution = eqx.nn.Conv2d(channels, features, size, stride, **settings)
        self.norm = eqx.nn.BatchNorm(features, "batch", momentum=0.9, mode="batch")

    def __call__(self, x, state):
        return self.norm(self.convolution(x), state)


class Block(eqx.Module):
    first: Normalized
    second: Normalized
    shortcut: Normalized | None

    def __init__(self, channels, features, stride):
        self.first = Normalized(channels, features, 3, stride)
        self.second = Normalized(features, features, 3, 1)
        self.shortcut = Normalized(channels, features, 1, stride) if stride > 1 else None

    def __call__(self, x, state):
        y, state = self.first(x, state)
        y, state = self.second(jax.nn.relu(y), state)
        if self.shortcut is not None:
            x, state = self.shortcut(x, state)
        return jax.nn.relu(y + x), state


class ResNet20(eqx.Module):
    first: Normalized
    blocks: list[Block]
    output: eqx.nn.Linear

    def __init__(self, channels):
        self.first = Normalized(channels, 16, 3, 1)
        self.blocks, channels = [], 16
        for features, stride in STAGES:
            for i in range(3):
                self.blocks.append(Block(channels, features, stride if i == 0 else 1))
                channels = features
        self.output = eqx.nn.Linear(channels, CLASSES, key=KEY(0))

    def __call__(self, x, state):
        x, state = self.first(x, state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.output(x.mean((1, 2))), state


def prepare(problem: Problem, devices: int) -> Prepared:
    del devices
    network, arrays = problem.network, channels_first(problem)
    channels = network.input_shape[-1]
    if network.filters:
        flat = problem.parameters[-4].shape[0]
        model, state = eqx.nn.make_with_state(Small)(network.filters, channels, flat)
    else:
        model, state = eqx.nn.make_with_state(ResNet20)(channels)
    model = _filled(model, arrays)
    optimizer = optax.sgd(RATE)
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    def loss(model, state, images, labels):
        batched = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        logits, state = batched(images, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state

    @eqx.filter_jit
    def step(carry, images, labels):
        model, state, opt_state = carry
        (value, state), gradients = eqx.filter_value_and_grad(loss, has_aux=True)(model, state, images, labels)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (eqx.apply_updates(model, updates), state, opt_state), value

    carry = (model, state, opt_state)
    images = np.ascontiguousarray(problem.images.transpose(0, 1, 4, 2, 3))
    batches = [jax.device_put(batch) for batch in zip(images, problem.labels, strict=True)]

    def temporaries():
        return temporary_bytes(step.lower(carry, *batches[0]).compile().compiled)

    return Prepared(one_by_one(step, jax.block_until_ready, carry, batches), temporaries)


def _filled(model, arrays):
    """The model with the arrays as its parameters, which are its floating leaves in the order of the forward pass."""
    params, static = eqx.partition(model, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(params)
    values = []
    for leaf, array in zip(leaves, arrays, strict=True):
        if leaf.shape != array.shape and leaf.shape != (*array.shape, 1, 1):  # a convolution's bias is n×1×1
            raise ValueError(f"benchmark: Equinox has the shape {leaf.shape}, the given array {array.shape}")
        values.append(jnp.asarray(array).reshape(leaf.shape))
    return eqx.combine(jax.tree.unflatten(structure, values), static)
