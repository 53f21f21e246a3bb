"""How coarse, how false and how noisy may a gradient be, and what does one of the wrong sign do?

    python experiments/noise/run.py [--quick] [--out DIR]

Four questions on the digits: gradients rounded in every layer; weights of few bits with a straight-through gradient;
Gaussian noise on the gradient; the gradient of a second head reversed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import gradient_noise
import reversal
import rounding
import straight_through

import jaxcnn

sys.path.append(str(Path(__file__).parents[1]))
import common


def main(arguments: Sequence[str] | None = None) -> int:
    quick = "the digits of two seeds, one rate and one epoch, of each question a few variants"
    options = common.options_of(__file__, __doc__ or "", quick, arguments)
    result = quickly() if options.quick else wholly()
    if options.quick:
        print(*tables(result), sep="\n\n")
    common.write(options, **result)
    draw(result, options.out / "noise.png")
    return 0


def wholly() -> dict:
    seeds = rounding.SEEDS
    split = common.digits(seeds)
    result = {"seeds": seeds, "batch": 32}
    result["rounding"] = rounding.experiment(
        rounding.network(), split, seeds, list(rounding.FORMATS), rounding.RATES, rounding.EPOCHS, rounding.DRAWS
    )
    print(rounding.table(result["rounding"]), flush=True)
    result["straight_through"] = straight_through.experiment(
        straight_through.network(), split, seeds, straight_through.BITS, straight_through.RATES, straight_through.EPOCHS
    )
    print(straight_through.table(result["straight_through"]), flush=True)
    result["gradient_noise"] = [gradient_noise.whole(name) for name in gradient_noise.VARIANTS]
    print(gradient_noise.table(result["gradient_noise"]), flush=True)
    split, how = common.digits(reversal.SEEDS), (reversal.RATES, reversal.EPOCHS)
    result["reversal"] = reversal.experiment(split, reversal.SEEDS, reversal.STRENGTHS, *how)
    result["reversal"]["labelled"] = reversal.limit(split, reversal.SEEDS, *how)
    print(reversal.table(result["reversal"]), flush=True)
    return result


def quickly() -> dict:
    seeds = range(2)
    split = common.digits(seeds)
    split = split._replace(train=type(split.train)(*(a[:, :320] for a in split.train)))
    noises = gradient_noise.NONE, gradient_noise.ANNEALED[0]
    return {
        "seeds": seeds,
        "batch": 32,
        "rounding": rounding.experiment(
            rounding.network(0), split, seeds, ["float8_e4m3fn"], rounding.RATES[1:2], 1, 4
        ),
        "straight_through": straight_through.experiment(
            straight_through.network(0), split, seeds, (1,), straight_through.RATES[1:2], 1
        ),
        "gradient_noise": [gradient_noise.experiment(gradient_noise.SHALLOW, split, seeds, noises, (0.1,), 1)],
        "reversal": reversal.experiment(split, seeds, (0.0, 1.0), reversal.RATES[1:2], 1),
    }


def tables(result: dict) -> list[str]:
    """As in experiments/README.md."""
    parts = rounding, straight_through, gradient_noise, reversal
    return [part.table(result[part.__name__]) for part in parts]


def draw(result: dict, path: Path) -> None:
    made, axes = common.figure(2, 4, width=5.0, height=4.2)
    rounding.draw(result["rounding"], *axes[0, :3])
    straight_through.draw(result["straight_through"], axes[0, 3])
    gradient_noise.draw(result["gradient_noise"], list(axes[1, :3]))
    reversal.draw(result["reversal"], axes[1, 3])
    for unused in axes[1, len(result["gradient_noise"]) : 3]:
        unused.set_axis_off()
    made.savefig(path, dpi=80)


if __name__ == "__main__":
    jaxcnn.use_cpu_cores()
    sys.exit(main())
