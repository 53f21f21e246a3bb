"""The same training as fashion_jaxcnn.py by PyTorch: what is idiomatic there and fast on a CPU; whole_run.py."""

import argparse
import gzip
import os
import time
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--validate", action="store_true", help="on the last 10,000 training images, not on the test's")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    options = parser.parse_args()

    start = time.perf_counter()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(options.seed)
    (images, labels), (test_images, test_labels) = read(options.data, options.validate)
    steps = len(images) // options.batch
    model = two_conv().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.Adam(model.parameters(), lr=options.rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.epochs * steps)
    apply = torch.compile(model) if options.compile else model
    for epoch in range(options.epochs):
        total = torch.zeros(())
        for chosen in torch.randperm(len(images))[: steps * options.batch].split(options.batch):
            optimizer.zero_grad()
            loss = F.cross_entropy(apply(images.index_select(0, chosen)), labels.index_select(0, chosen))
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {time.perf_counter() - start:.1f} s", flush=True)
    with torch.inference_mode():
        right = sum(
            int((apply(x).argmax(1) == y).sum())
            for x, y in zip(test_images.split(1000), test_labels.split(1000), strict=True)
        )
    print(f"accuracy {right / len(test_labels):.4f}", flush=True)


def two_conv() -> nn.Sequential:
    """`jaxcnn.models.two_conv` with its initial distributions."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(3136, 128), nn.Sigmoid(), nn.Linear(128, 10),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def read(folder: Path, validate: bool) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """What to train on and what to judge by, N×1×28×28 standardised by the training images' mean and deviation."""
    kinds = ("images", "labels")
    (images, labels), test = (tuple(idx(folder, split, kind) for kind in kinds) for split in ("train", "t10k"))
    if validate:
        (images, labels), test = (images[:50_000], labels[:50_000]), (images[50_000:], labels[50_000:])
    mean, deviation = images.mean(dtype=torch.float32), images.to(torch.float32).std()
    parts = ((images, labels), test)
    return tuple(((pixels.to(torch.float32) - mean) / deviation, label.long()) for pixels, label in parts)


def idx(folder: Path, split: str, kind: str) -> torch.Tensor:
    """The values of an idx file behind its header."""
    offset, axes = {"images": (16, "idx3"), "labels": (8, "idx1")}[kind]
    with gzip.open(folder / f"{split}-{kind}-{axes}-ubyte.gz") as file:
        values = torch.from_numpy(np.frombuffer(bytearray(file.read()), np.uint8, offset=offset))
    return values.reshape(-1, 1, 28, 28) if kind == "images" else values


if __name__ == "__main__":
    main()
