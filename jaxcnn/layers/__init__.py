"""Layers: rules with parameters, and networks, which are layers made of layers."""

from jaxcnn.layers.activation import (
    ELU,
    GELU,
    SELU,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    LogSoftmax,
    PReLU,
    ReLU6,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from jaxcnn.layers.basic import Conv2D, Dense, Flatten, MaxPool, ReLU, Sigmoid
from jaxcnn.layers.compose import residual, sequential
from jaxcnn.layers.convolution import Conv1D, Conv3D
from jaxcnn.layers.layer import Layer, differentiable, from_rule
from jaxcnn.layers.pooling import AdaptiveAvgPool, AvgPool, GlobalAvgPool, GlobalMaxPool
from jaxcnn.layers.resize import ConvTranspose2D, DepthToSpace, ReflectPad, SpaceToDepth, Upsample, ZeroPad

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "AdaptiveAvgPool",
    "AvgPool",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose2D",
    "Dense",
    "DepthToSpace",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Layer",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool",
    "PReLU",
    "ReLU",
    "ReLU6",
    "ReflectPad",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SpaceToDepth",
    "Tanh",
    "Upsample",
    "ZeroPad",
    "differentiable",
    "from_rule",
    "residual",
    "sequential",
]
