"""A whole training on Fashion-MNIST by jaxcnn, from the start of the process to the test accuracy; whole_run.py."""

import argparse
import gzip
import time
from pathlib import Path

import jax
import numpy as np
import optax

import jaxcnn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--validate", action="store_true", help="on the last 10,000 training images, not on the test's")
    options = parser.parse_args()

    start = time.perf_counter()
    jaxcnn.use_cpu_cores()
    (images, labels), held_out = read(options.data, options.validate)
    steps = len(images) // options.batch
    network = jaxcnn.models.two_conv()
    optimizer = optax.adam(optax.linear_schedule(options.rate, 0.0, options.epochs * steps))
    run = jaxcnn.train_steps(network, jaxcnn.softmax_cross_entropy, optimizer, microbatch="auto")
    state = jaxcnn.init_train_state(network, optimizer, options.seed, images.shape[1:])
    images, labels = jax.device_put((images, labels), jax.NamedSharding(run.mesh, jax.P()))
    for epoch in range(options.epochs):
        order = jaxcnn.shuffled(len(images), options.batch, seed=options.seed, epoch=epoch)
        state, metrics = run(state, images, labels, order)
        print(f"epoch {epoch + 1}: loss {metrics['loss'].mean():.4f}, {time.perf_counter() - start:.1f} s", flush=True)
    print(f"accuracy {jaxcnn.evaluate(network, state, *held_out)['accuracy']:.4f}", flush=True)


def read(folder: Path, validate: bool) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """What to train on and what to judge by, N×28×28×1 standardised by the training images' mean and deviation."""
    kinds = ("images", "labels")
    (images, labels), test = (tuple(idx(folder, split, kind) for kind in kinds) for split in ("train", "t10k"))
    if validate:
        (images, labels), test = (images[:50_000], labels[:50_000]), (images[50_000:], labels[50_000:])
    mean, deviation = np.float32(images.mean()), np.float32(images.std())
    parts = ((images, labels), test)
    return tuple(((pixels.astype(np.float32) - mean) / deviation, label.astype(np.int32)) for pixels, label in parts)


def idx(folder: Path, split: str, kind: str) -> np.ndarray:
    """The values of an idx file behind its header."""
    offset, axes = {"images": (16, "idx3"), "labels": (8, "idx1")}[kind]
    with gzip.open(folder / f"{split}-{kind}-{axes}-ubyte.gz") as file:
        values = np.frombuffer(file.read(), np.uint8, offset=offset)
    return values.reshape(-1, 28, 28, 1) if kind == "images" else values


if __name__ == "__main__":
    main()
