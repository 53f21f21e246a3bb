"""`jaxcnn predict` and `jaxcnn export`: their arguments, and what they print."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxcnn.files import require_writable

if TYPE_CHECKING:
    from jaxcnn.inference.classifier import Classifier

_SEED = tyro.conf.arg(metavar="INT", help_behavior_hint="")
_FILE = tyro.conf.arg(metavar="FILE", help_behavior_hint="")


@dataclasses.dataclass(frozen=True)
class Predict:
    """Say what is on images, with probabilities: PNG, JPEG or .npy.

    jaxcnn predict runs/digits a.png b.png
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """The folder that jaxcnn train wrote."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE ...", help_behavior_hint="")]
    """Pictures of the size of the run's images; .npy of one image or of many, as uint8 or as the data's floats."""
    top: int = 3
    """How many classes to show."""
    resize: bool = False
    """Of a picture of another size take the middle in the shape of the run's images, scaled."""
    seed: Annotated[int | None, _SEED] = None
    """Which one's network, of a run of several seeds."""
    json: Annotated[Path | None, _FILE] = None
    """Write the probabilities of all classes to this file."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a trained network as StableHLO, to be run by jax without this package on CPU, CUDA and TPU.

    jaxcnn export runs/digits --out digits.stablehlo
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
    """The folder that jaxcnn train wrote."""
    out: Annotated[Path | None, _FILE] = None
    """The file to write (RUN/network.stablehlo)."""
    batch_size: Annotated[int | None, _SEED] = None
    """Images in a call (any number)."""
    seed: Annotated[int | None, _SEED] = None
    """Which one's network, of a run of several seeds."""


def predict(arguments: Predict) -> int:
    """Predicts; returns the exit status."""
    import jax
    import numpy as np

    from jaxcnn.inference.images import read_images

    if arguments.top < 1:
        raise ValueError(f"--top: got {arguments.top}, required at least 1")
    if not arguments.images:
        raise ValueError("predict: got no IMAGE, required at least one file: jaxcnn predict RUN IMAGE ...")
    if arguments.json in arguments.images:
        raise ValueError(f"--json: got {arguments.json}, which is one of the images; give another file")
    network = _classifier(arguments.run, arguments.seed)
    files = {path: read_images(path, network.size, resize=arguments.resize) for path in arguments.images}
    for path, images in files.items():
        if network.unit and images.dtype.kind == "f" and (images.min() < 0 or images.max() > 1):
            got = f"from {images.min():g} to {images.max():g}"
            raise ValueError(f"{path}: got floats {got}, required from 0 to 1, as the run's images were, or bytes")
    require_writable("--json", arguments.json)
    run = jax.jit(network)
    results = []
    for path, images in files.items():
        each = np.concatenate([run(image[None]) for image in images])  # one program, whatever the files hold
        for i, probabilities in enumerate(each):
            name = f"{path}[{i}]" if len(each) > 1 else str(path)
            order = np.argsort(-probabilities, kind="stable")
            said = (f"{network.names[k]} {probabilities[k]:.2%}" for k in order[: arguments.top])
            print(f"{name}: {', '.join(said)}")
            of_each = dict(zip(network.names, probabilities.tolist(), strict=True))
            results.append({"image": name, "probabilities": of_each})
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def export(arguments: Export) -> int:
    """Exports; returns the exit status."""
    from jaxcnn.inference.export import PLATFORMS, exported

    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise ValueError(f"--batch-size: got {arguments.batch_size}, required at least 1")
    network = _classifier(arguments.run, arguments.seed)
    file = arguments.out or arguments.run / "network.stablehlo"
    require_writable("--out", file)
    program = exported(network, batch=arguments.batch_size)
    file.write_bytes(program)
    size = "×".join(map(str, ("N" if arguments.batch_size is None else arguments.batch_size, *network.size)))
    print(f"{file}: {len(program):,} bytes for {', '.join(PLATFORMS)}; in Python, with jax and flatbuffers alone:")
    print("  import jax.export")
    print(f"  run = jax.export.deserialize(bytearray(open({str(file)!r}, 'rb').read())).call")
    print(f"  run(images)  # {size}, float32 from 0 to 1 -> probabilities of {', '.join(network.names)}")
    return 0


def _classifier(run: Path, seed: int | None) -> Classifier:
    """That of a run; what `load` warns of is said in a line on standard error."""
    from jaxcnn.inference.classifier import classifier
    from jaxcnn.training.run_folder import read_config

    config = read_config(run)
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    has = f"{run} has the {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"
    if seed is None and len(seeds) > 1:
        raise ValueError(f"{has}; choose one by --seed")
    if seed is not None and seed not in seeds:
        raise ValueError(f"--seed: got {seed}, but {has}")
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax' words on checkpoints that are being written
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = classifier(run, seed=seed)
    for warning in caught:
        print(f"jaxcnn: warning: {warning.message}", file=sys.stderr)
    return network
