"""Layers: rules with parameters, and networks, which are layers made of layers."""

from jaxcnn.layers.basic import Conv2D, Dense, Flatten, MaxPool, ReLU, Sigmoid
from jaxcnn.layers.compose import residual, sequential
from jaxcnn.layers.layer import Layer, differentiable, from_rule

__all__ = [
    "Conv2D",
    "Dense",
    "Flatten",
    "Layer",
    "MaxPool",
    "ReLU",
    "Sigmoid",
    "differentiable",
    "from_rule",
    "residual",
    "sequential",
]
