"""Does training on a folder of images keep up with training on the same images in memory?

    python experiments/speed/loading.py [--quick] [--out DIR] [--data DIR]

20,000 images, as PNG files of 32×32 and as JPEG files of 64×64, which are scaled to 32×32; batch 32, all cores, which
the steps and the decoding share. Images a second of the steps alone (images in memory), of reading alone, and of
training on the PNG files: decoded in each epoch, and read where `--cache` keeps them decoded ("kept"). In turn, back
and forth, medians over the rounds; a turn is timed from the end of its first chunk of steps to the end of a later one,
and the reading ahead goes on meanwhile. Exit status 1 if with `--cache` less than 0.95 of the steps' own rate is
reached.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import jaxcnn
from jaxcnn.benchmark.surroundings import surroundings
from jaxcnn.training import chunk
from jaxcnn.training.config import Config
from jaxcnn.training.data import DataSet, load_data
from jaxcnn.training.devices import available_cores, keep_compiled_programs
from jaxcnn.training.optimizer import make_optimizer
from jaxcnn.training.recipes import RECIPES
from jaxcnn.training.run import Run
from jaxcnn.training.step import init_train_state

sys.path.append(str(Path(__file__).parents[1]))
from command_line import parsed, parser_of

NETWORKS = ("source", "two_conv", "resnet20")
FORMATS = {"png": 32, "jpg": 64}  # pixels of a side in the files
SIZE, CLASSES, BATCH = 32, 10, 32
TRAIN, TEST = 19_200, 800  # whole chunks of 100 steps
ROUNDS, SECONDS = 5, 0.75  # of a turn, at least
REQUIRED = 0.95

Turn = Callable[[float], float]  # of its seconds: images a second


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__ or "", "one network, one short round", "loading.json")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the images are made, and found again")
    options = parsed(parser, __file__, arguments)
    jaxcnn.use_cpu_cores(max(n for n in range(1, available_cores() + 1) if BATCH % n == 0))
    keep_compiled_programs()

    with tempfile.TemporaryDirectory() as folder:
        found = measured(options.data or Path(folder), options.quick)
    for one in found:
        print(f"{one['network']}: " + ", ".join(f"{way} {rate:,.0f}" for way, rate in one["images_per_second"].items()))
    record = {
        "command": options.command,
        **surroundings(["jaxcnn", "jax", "jaxlib", "optax", "numpy", "grain", "pillow"]),
        "batch": BATCH,
        "rounds": 1 if options.quick else ROUNDS,
        "required": REQUIRED,
        "networks": found,
    }
    (options.out / "loading.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(one["kept_over_memory"] >= REQUIRED for one in found) else 1


def measured(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """For each network the median rate of each way, all ways in turn."""
    for suffix, side in FORMATS.items():
        if not (folder / suffix).exists():
            write(folder / suffix, suffix, side)
    data = data_by_way(folder)
    found = []
    for network in NETWORKS[:1] if quick else NETWORKS:
        turns = {way: training(run_of(network, one)) for way, one in data.items() if way != "jpg"}
        if not found:  # whatever is trained on them
            turns |= {f"reading {way}": reading(run_of(network, one)) for way, one in data.items() if way != "memory"}
        for turn in turns.values():
            turn(0)  # compiles
        rates: dict[str, list[float]] = {way: [] for way in turns}
        for i in range(1 if quick else ROUNDS):
            for way in list(turns)[:: -1 if i % 2 else 1]:
                rates[way].append(turns[way](SECONDS))
        median = {way: statistics.median(each) for way, each in rates.items()}
        ratio = median["kept"] / median["memory"]
        found.append({"network": network, "images_per_second": median, "rounds": rates, "kept_over_memory": ratio})
    return found


def write(folder: Path, suffix: str, side: int) -> None:
    """Blurred noise: a file of it takes about as many bytes as one of a photograph."""
    rng = np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("test", TEST)):
        for label in range(CLASSES):
            (folder / part / str(label)).mkdir(parents=True)
        for i in range(count):
            noise = Image.fromarray(rng.integers(0, 256, (side // 4, side // 4, 3)).astype(np.uint8))
            image = noise.resize((side, side), Image.Resampling.BICUBIC)
            image.save(folder / part / str(i % CLASSES) / f"{i:05}.{suffix}")


def data_by_way(folder: Path) -> dict[str, DataSet]:
    """The images in memory, of each format, and kept decoded."""
    data = {suffix: load_data(str(folder / suffix), seed=0, image_size=str(SIZE)) for suffix in FORMATS}
    kept = load_data(str(folder / "png"), seed=0, image_size=str(SIZE), cache=folder / "cache")
    held = kept._replace(train=kept.train._replace(images=kept.train.images[:]))
    return {"memory": held, **data, "kept": kept}


def run_of(model: str, data: DataSet) -> Run:
    """Of more epochs than a turn takes."""
    config = Config(model=model, epochs=1000, batch_size=BATCH, validation=0.0, augment="none").complete()
    network, steps_an_epoch = RECIPES[model].network(CLASSES), TRAIN // BATCH
    optimizer = make_optimizer(config, 1000 * steps_an_epoch)
    state = init_train_state(network, optimizer, 0, (SIZE, SIZE, 3))
    return Run(config, (data,), network, optimizer, state, steps_an_epoch)


def training(run: Run) -> Turn:
    steps = chunk.steps_of(run, None)

    def turn(seconds: float) -> float:
        state = chunk.copied(run.state)

        def use(one: chunk.Chunk) -> None:
            nonlocal state
            state, _ = jax.block_until_ready(steps(state, one))

        return rate_of(run, use, seconds)

    return turn


def reading(run: Run) -> Turn:
    return lambda seconds: rate_of(run, lambda one: jax.block_until_ready(one.data), seconds)


def rate_of(run: Run, use: Callable[[chunk.Chunk], Any], seconds: float) -> float:
    """Images a second from the end of the first chunk on."""
    with contextlib.closing(chunk.chunks_of(run, 0)) as chunks:  # waits for what is being read
        use(next(chunks))
        start, images = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            one = next(chunks)
            use(one)
            images += one.batches.size
        return images / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
