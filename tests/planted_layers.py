"""Planted faults of layers and networks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from planted_base import after, broken, draws, fault

import jaxcnn
from jaxcnn import conv2d, dense, relu

normal, _ = draws(0)

ROWS, PICTURES = (normal(4, 5),), (normal(2, 5, 4, 3),)


def network(convolution=conv2d, matrix=dense, activation=relu):
    return jaxcnn.sequential(
        jaxcnn.Conv2D(4, 3, rule=convolution),
        jaxcnn.ReLU(rule=activation),
        jaxcnn.Flatten(),
        jaxcnn.Dense(3, rule=matrix),
    )


def in_layer(layer, change):
    """The layer, its right cotangents changed: change(dparams, dx) is what its backward pass returns."""
    return dataclasses.replace(layer, backward=lambda residuals, dy: change(*layer.backward(residuals, dy)))


def of_layer(name, layer, causes, right, arrays=PICTURES, note=""):
    return fault(name, layer, arrays, causes, right=right, note=note)


BRANCH, BOTH = jaxcnn.residual(jaxcnn.Conv2D(3, 3)), jaxcnn.residual(jaxcnn.Conv2D(4, 3), jaxcnn.Conv2D(4, 1))
CONVOLUTION, TWINS = jaxcnn.Conv2D(4, 3), jaxcnn.sequential(jaxcnn.Dense(5), jaxcnn.Sigmoid(), jaxcnn.Dense(5))
NETWORK = network()


def forgetful(residuals, dy):
    """The residual block without the way around."""
    dparams, dx = BRANCH.layers[0].backward(residuals.branches[0], dy)
    return {"layer": dparams}, dx


def unactivated(residuals, dy):
    """The chain of TWINS without the sigmoid's link."""
    first, _, last = residuals
    d2, dy = TWINS.layers[2].backward(last, dy)
    d1, dx = TWINS.layers[0].backward(first, dy)
    return {"dense_1": d1, "dense_2": d2}, dx


FAULTS = [
    of_layer("network: bias gradient averaged", network(broken(conv2d, bias=lambda d: d / 40)), "scaled", NETWORK),
    of_layer("network: weight gradient negated", network(matrix=broken(dense, w=jnp.negative)), "negated", NETWORK),
    of_layer(
        "network: ReLU passes everything", network(activation=after(relu, lambda r, dy, dx: (dy,))), "unknown", NETWORK
    ),
    of_layer(
        "network: filter gradient turned",
        network(broken(conv2d, filters=lambda d: d[:, ::-1, ::-1])),
        "rotated",
        NETWORK,
    ),
    of_layer(
        "network: filters frozen",
        in_layer(NETWORK, lambda dp, dx: ({**dp, "conv2d": jax.tree.map(jnp.zeros_like, dp["conv2d"])}, dx)),
        "zero",
        NETWORK,
    ),
    of_layer(
        "network: a layer's gradients missing",
        in_layer(NETWORK, lambda dp, dx: ({"dense": dp["dense"]}, dx)),
        "structure",
        NETWORK,
    ),
    of_layer("network: (dx, dparams)", in_layer(NETWORK, lambda dp, dx: (dx, dp)), "structure", NETWORK),
    of_layer(
        "twins: gradients of the two layers exchanged",
        in_layer(TWINS, lambda dp, dx: ({"dense_1": dp["dense_2"], "dense_2": dp["dense_1"]}, dx)),
        "swapped",
        TWINS,
        ROWS,
    ),
    of_layer(
        "twins: activation forgotten in the chain",
        dataclasses.replace(TWINS, backward=unactivated),
        "unknown",
        TWINS,
        ROWS,
    ),
    of_layer(
        "residual: shortcut forgotten",
        dataclasses.replace(BRANCH, backward=forgetful),
        "unknown partial",
        BRANCH,
        note="a term of a sum is missing, no sample and no channel",
    ),
    of_layer(
        "residual: shortcut's own gradient zero",
        in_layer(BOTH, lambda dp, dx: ({**dp, "shortcut": jax.tree.map(jnp.zeros_like, dp["shortcut"])}, dx)),
        "zero",
        BOTH,
    ),
    of_layer(
        "convolution: wrong name",
        in_layer(CONVOLUTION, lambda dp, dx: ({"weights": dp["filters"], "bias": dp["bias"]}, dx)),
        "structure",
        CONVOLUTION,
    ),
]
