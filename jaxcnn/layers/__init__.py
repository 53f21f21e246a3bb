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
from jaxcnn.layers.compose import parallel, residual, sequential
from jaxcnn.layers.convolution import Conv1D, Conv3D
from jaxcnn.layers.dropout import Dropout, SpatialDropout, StochasticDepth
from jaxcnn.layers.dtypes import with_dtypes
from jaxcnn.layers.layer import Identity, Layer, by_mode, differentiable, from_rule
from jaxcnn.layers.normalization import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from jaxcnn.layers.pooling import AdaptiveAvgPool, AvgPool, GlobalAvgPool, GlobalMaxPool
from jaxcnn.layers.resize import ConvTranspose2D, DepthToSpace, ReflectPad, SpaceToDepth, Upsample, ZeroPad
from jaxcnn.layers.scaling import LayerScale, SqueezeExcitation

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "AdaptiveAvgPool",
    "AvgPool",
    "BatchNorm",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose2D",
    "Dense",
    "DepthToSpace",
    "Dropout",
    "Flatten",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "LayerScale",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool",
    "PReLU",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "ReflectPad",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SpaceToDepth",
    "SpatialDropout",
    "SqueezeExcitation",
    "StochasticDepth",
    "Tanh",
    "Upsample",
    "ZeroPad",
    "by_mode",
    "differentiable",
    "from_rule",
    "parallel",
    "residual",
    "sequential",
    "with_dtypes",
]
