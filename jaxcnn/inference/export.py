"""A trained network as StableHLO: a program with its parameters in it, which needs jax to run and nothing of ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxcnn.inference.classifier import Classifier

PLATFORMS = ("cpu", "cuda", "tpu")


def exported(classifier: Classifier, *, batch: int | None = None) -> bytes:
    """The classifier, images N×H×W×C in float32 -> probabilities (N, classes), for CPU, CUDA and TPU.

        run = jax.export.deserialize(bytearray(...)).call

    gives the function back, in a process that need not have this package; `jax.export` says for how long: six months
    of jax's versions at least. `jax.export.deserialize(...).mlir_module()` is the StableHLO itself.

    Args:
      batch: N; any number of images when None.

    Raises:
      ValueError: a batch less than 1. ModuleNotFoundError: flatbuffers is not installed; the extra "train" brings it.
    """
    if batch is not None and batch < 1:
        raise ValueError(f"exported: batch must be at least 1, got {batch}")
    count = jax.export.symbolic_shape("N")[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((count, *classifier.size), jnp.float32)
    program = jax.export.export(jax.jit(classifier), platforms=PLATFORMS)(images)
    return bytes(program.serialize())
