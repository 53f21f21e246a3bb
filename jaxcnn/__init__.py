"""Convolutional networks in JAX with the backward pass written by hand, proved against autodiff."""

from typing import TYPE_CHECKING, Any

from jaxcnn import models
from jaxcnn.layers import (
    ELU,
    GELU,
    SELU,
    AdaptiveAvgPool,
    AvgPool,
    BatchNorm,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose2D,
    Dense,
    DepthToSpace,
    Dropout,
    Flatten,
    GlobalAvgPool,
    GlobalMaxPool,
    GroupNorm,
    HardSigmoid,
    HardSwish,
    Identity,
    InstanceNorm,
    Layer,
    LayerNorm,
    LayerScale,
    LeakyReLU,
    LogSoftmax,
    MaxPool,
    PReLU,
    ReflectPad,
    ReLU,
    ReLU6,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    SpaceToDepth,
    SpatialDropout,
    SqueezeExcitation,
    StochasticDepth,
    Tanh,
    Upsample,
    ZeroPad,
    differentiable,
    parallel,
    residual,
    sequential,
    with_dtypes,
)
from jaxcnn.layers.explain import explain
from jaxcnn.layers.summary import summary
from jaxcnn.rule import Rule, Static
from jaxcnn.rules.activation import relu, sigmoid
from jaxcnn.rules.average_pooling import adaptive_avg_pool, avg_pool, global_avg_pool, global_max_pool
from jaxcnn.rules.binary_loss import sigmoid_binary_cross_entropy, sigmoid_focal_loss
from jaxcnn.rules.convolution import conv2d, rotate180
from jaxcnn.rules.convolution_1d_3d import conv1d, conv3d
from jaxcnn.rules.dense import backproplayer, dense
from jaxcnn.rules.dropout import dropout
from jaxcnn.rules.join import add, concatenate, scale_channels
from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.rules.normalization import batch_norm, frozen_batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from jaxcnn.rules.piecewise_activation import elu, hard_sigmoid, hard_swish, leaky_relu, prelu, relu6, selu
from jaxcnn.rules.pooling import g_maxpool, max_pool
from jaxcnn.rules.regression_loss import huber_loss, mean_squared_error
from jaxcnn.rules.resize import (
    depth_to_space,
    reflect_pad,
    space_to_depth,
    upsample_bilinear,
    upsample_nearest,
    zero_pad,
)
from jaxcnn.rules.shape import flatten, unflatten
from jaxcnn.rules.smooth_activation import gelu, silu, softplus, tanh
from jaxcnn.rules.softmax import log_softmax, softmax
from jaxcnn.rules.transposed import conv_transpose2d
from jaxcnn.version import __version__

if TYPE_CHECKING:
    from jaxcnn.inference.classifier import classifier
    from jaxcnn.inference.export import exported
    from jaxcnn.report.report_page import report_page
    from jaxcnn.training import augment
    from jaxcnn.training.checkpoint import load, save
    from jaxcnn.training.devices import use_cpu_cores
    from jaxcnn.training.evaluate import evaluate
    from jaxcnn.training.gradients import alignment, gradients
    from jaxcnn.training.per_sample import per_sample_gradients
    from jaxcnn.training.seeds import init_train_states, train_seeds
    from jaxcnn.training.step import TrainState, init_train_state, shuffled, train_step, train_steps
    from jaxcnn.verification.report import Finding, Report
    from jaxcnn.verification.verify import Options, verify

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
    "Finding",
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
    "Options",
    "PReLU",
    "RMSNorm",
    "ReLU",
    "ReLU6",
    "ReflectPad",
    "Report",
    "Rule",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SpaceToDepth",
    "SpatialDropout",
    "SqueezeExcitation",
    "Static",
    "StochasticDepth",
    "Tanh",
    "TrainState",
    "Upsample",
    "ZeroPad",
    "__version__",
    "adaptive_avg_pool",
    "add",
    "alignment",
    "augment",
    "avg_pool",
    "backproplayer",
    "batch_norm",
    "classifier",
    "concatenate",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose2d",
    "dense",
    "depth_to_space",
    "differentiable",
    "dropout",
    "elu",
    "evaluate",
    "explain",
    "exported",
    "flatten",
    "frozen_batch_norm",
    "g_maxpool",
    "gelu",
    "global_avg_pool",
    "global_max_pool",
    "gradients",
    "group_norm",
    "hard_sigmoid",
    "hard_swish",
    "huber_loss",
    "init_train_state",
    "init_train_states",
    "instance_norm",
    "layer_norm",
    "leaky_relu",
    "load",
    "log_softmax",
    "max_pool",
    "mean_squared_error",
    "models",
    "parallel",
    "per_sample_gradients",
    "prelu",
    "reflect_pad",
    "relu",
    "relu6",
    "report_page",
    "residual",
    "rms_norm",
    "rotate180",
    "save",
    "scale_channels",
    "selu",
    "sequential",
    "shuffled",
    "sigmoid",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "silu",
    "softmax",
    "softmax_cross_entropy",
    "softplus",
    "space_to_depth",
    "summary",
    "tanh",
    "train_seeds",
    "train_step",
    "train_steps",
    "unflatten",
    "upsample_bilinear",
    "upsample_nearest",
    "use_cpu_cores",
    "verify",
    "with_dtypes",
    "zero_pad",
]

# Looked up when first used, so that `import jaxcnn` loads no optax.
_LAZY = {
    "Finding": "jaxcnn.verification.report",
    "Options": "jaxcnn.verification.verify",
    "Report": "jaxcnn.verification.report",
    "TrainState": "jaxcnn.training.step",
    "alignment": "jaxcnn.training.gradients",
    "classifier": "jaxcnn.inference.classifier",
    "evaluate": "jaxcnn.training.evaluate",
    "exported": "jaxcnn.inference.export",
    "gradients": "jaxcnn.training.gradients",
    "init_train_state": "jaxcnn.training.step",
    "init_train_states": "jaxcnn.training.seeds",
    "load": "jaxcnn.training.checkpoint",
    "per_sample_gradients": "jaxcnn.training.per_sample",
    "report_page": "jaxcnn.report.report_page",
    "save": "jaxcnn.training.checkpoint",
    "shuffled": "jaxcnn.training.step",
    "train_seeds": "jaxcnn.training.seeds",
    "train_step": "jaxcnn.training.step",
    "train_steps": "jaxcnn.training.step",
    "use_cpu_cores": "jaxcnn.training.devices",
    "verify": "jaxcnn.verification.verify",
}

_MODULES = {"augment": "jaxcnn.training.augment", "testing": "jaxcnn.testing"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name not in _LAZY:
        raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
