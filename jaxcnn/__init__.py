"""Convolutional networks in JAX with the backward pass written by hand, proved against autodiff."""

from typing import TYPE_CHECKING, Any

from jaxcnn import models
from jaxcnn.layers import (
    Conv2D,
    Dense,
    Flatten,
    Layer,
    MaxPool,
    ReLU,
    Sigmoid,
    differentiable,
    residual,
    sequential,
)
from jaxcnn.rule import Rule, Static
from jaxcnn.rules.activation import relu, sigmoid
from jaxcnn.rules.convolution import conv2d, rotate180
from jaxcnn.rules.dense import backproplayer, dense
from jaxcnn.rules.loss import softmax_cross_entropy
from jaxcnn.rules.pooling import g_maxpool, max_pool
from jaxcnn.rules.shape import flatten, unflatten
from jaxcnn.version import __version__

if TYPE_CHECKING:
    from jaxcnn.training.checkpoint import load, save
    from jaxcnn.training.devices import use_cpu_cores
    from jaxcnn.training.evaluate import evaluate
    from jaxcnn.training.per_sample import per_sample_gradients
    from jaxcnn.training.step import TrainState, init_train_state, shuffled, train_step, train_steps
    from jaxcnn.verification.report import Finding, Report
    from jaxcnn.verification.verify import Options, verify

__all__ = [
    "Conv2D",
    "Dense",
    "Finding",
    "Flatten",
    "Layer",
    "MaxPool",
    "Options",
    "ReLU",
    "Report",
    "Rule",
    "Sigmoid",
    "Static",
    "TrainState",
    "__version__",
    "backproplayer",
    "conv2d",
    "dense",
    "differentiable",
    "evaluate",
    "flatten",
    "g_maxpool",
    "init_train_state",
    "load",
    "max_pool",
    "models",
    "per_sample_gradients",
    "relu",
    "residual",
    "rotate180",
    "save",
    "sequential",
    "shuffled",
    "sigmoid",
    "softmax_cross_entropy",
    "train_step",
    "train_steps",
    "unflatten",
    "use_cpu_cores",
    "verify",
]

# Looked up when first used, so that `import jaxcnn` loads no optax.
_LAZY = {
    "Finding": "jaxcnn.verification.report",
    "Options": "jaxcnn.verification.verify",
    "Report": "jaxcnn.verification.report",
    "TrainState": "jaxcnn.training.step",
    "evaluate": "jaxcnn.training.evaluate",
    "init_train_state": "jaxcnn.training.step",
    "load": "jaxcnn.training.checkpoint",
    "per_sample_gradients": "jaxcnn.training.per_sample",
    "save": "jaxcnn.training.checkpoint",
    "shuffled": "jaxcnn.training.step",
    "train_step": "jaxcnn.training.step",
    "train_steps": "jaxcnn.training.step",
    "use_cpu_cores": "jaxcnn.training.devices",
    "verify": "jaxcnn.verification.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
