"""Do the pictures that show what a network looks at depend on what it has learned?

    python experiments/saliency/run.py [--quick] [--out DIR]

Gradient, gradient × input, guided backpropagation and deconvnet, each the right backward pass of the same network but
for its ReLUs; and the test of Adebayo et al. (2018): layers of the trained network get new random parameters, from the
last one down and each alone, and the maps are compared with those of the trained one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage, stats

import jaxcnn
from jaxcnn import Conv2D, Dense, Flatten, Layer, MaxPool, ReLU, Rule

sys.path.append(str(Path(__file__).parents[1]))
import common

SEEDS, EPOCHS, RATES = range(8), 8, (0.001, 0.003)  # adam's
TRAIN, VALIDATION, IMAGES = 6000, 1000, 500  # maps are made of so many test images
SHAPE, SHOWN = (28, 28, 1), 6
LAYERS = ("dense_2", "dense_1", "conv2d_3", "conv2d_2", "conv2d_1")  # from the last one down
MEASURES = {
    "rank": "rank correlation",
    "rank_inside": "rank correlation inside the object",
    "ssim": "structural similarity",
}


# --- the backward passes --------------------------------------------------------------------------------------------


# Springenberg et al. 2014: dx = dy · [x > 0] · [dy > 0].
def guided_backward(residuals, dy):
    (dx,) = jaxcnn.relu.backward(residuals, dy)
    return (jnp.where(dy > 0, dx, 0),)


# Zeiler & Fergus 2013: dx = dy · [dy > 0], whatever x was. (Their unpooling is max_pool's own backward pass.)
def deconvnet_backward(residuals, dy):
    return (jnp.where(dy > 0, dy, 0),)


RULES = {
    "gradient": jaxcnn.relu,
    "guided": jaxcnn.relu.replace(backward=guided_backward),
    "deconvnet": jaxcnn.relu.replace(backward=deconvnet_backward),
}
METHODS = ("gradient", "gradient × input", "guided", "deconvnet")


def network_of(rule: Rule = jaxcnn.relu) -> Layer:
    """All have the same parameters and forward pass."""
    return jaxcnn.sequential(
        Conv2D(8, 3), ReLU(rule=rule), MaxPool(2),
        Conv2D(16, 3), ReLU(rule=rule), MaxPool(2),
        Conv2D(16, 3), ReLU(rule=rule),
        Flatten(), Dense(64), ReLU(rule=rule), Dense(10),
    )  # fmt: skip


def logit_by_input(network: Layer, params: Any, state: Any, images: Any, classes: Any) -> jax.Array:
    """Of each image what the network's backward passes give for one of its logits; N×H×W×C, classes (N,)."""
    logits, _, residuals = network.forward(params, state, images)
    return network.backward(residuals, jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype))[1]


@jax.jit
def maps_of(params: Any, state: Any, images: jax.Array, classes: jax.Array) -> dict[str, jax.Array]:
    """By each method, N×H×W."""
    made = {name: logit_by_input(network_of(rule), params, state, images, classes) for name, rule in RULES.items()}
    made["gradient × input"] = images * made["gradient"]
    return {name: made[name].sum(-1) for name in METHODS}


# --- how near two maps are ------------------------------------------------------------------------------------------


def similarity(maps: Any, others: Any, images: Any) -> dict[str, np.ndarray]:
    """Of the absolute values of N×H×W maps, for each image.

    "rank": Spearman's correlation over all pixels. "rank_inside": over those alone that are not black. "ssim":
    structural similarity, each map divided by its largest value. NaN where a map is constant.
    """
    pair = [np.abs(np.asarray(given, np.float64)) for given in (maps, others)]
    flat = [m.reshape(len(m), -1) for m in pair]
    inside = np.asarray(images).reshape(flat[0].shape) > 0
    return {
        "rank": _correlation(*(stats.rankdata(m, axis=-1) for m in flat)),
        "rank_inside": np.array(
            [_correlation(*(stats.rankdata(m[i]) for m in two)) for *two, i in zip(*flat, inside, strict=True)]
        ),
        "ssim": structural_similarity(*pair),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (m - m.mean(-1, keepdims=True) for m in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def structural_similarity(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Wang et al. 2004, in windows of 7×7 that lie inside: the mean of
    (2 μa μb + c) (2 cov(a, b) + d) / ((μa² + μb² + c) (σa² + σb² + d)), c = 0.01², d = 0.03², values from 0 to 1.
    """
    with np.errstate(invalid="ignore"):
        a, b = (m / m.max((1, 2), keepdims=True) for m in (maps, others))

    def mean(values):
        return ndimage.uniform_filter(values, 7, axes=(1, 2))[:, 3:-3, 3:-3]

    mean_a, mean_b = mean(a), mean(b)
    covariance = mean(a * b) - mean_a * mean_b
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    c, d = 0.01**2, 0.03**2
    ratio = (2 * mean_a * mean_b + c) * (2 * covariance + d) / ((mean_a**2 + mean_b**2 + c) * (variances + d))
    return ratio.mean((1, 2))


# --- randomisation --------------------------------------------------------------------------------------------------


def randomised(params: dict, fresh: dict, layers: Iterable[str]) -> dict:
    """The trained parameters, those of these layers fresh ones."""
    return {name: (fresh if name in layers else params)[name] for name in params}


def fresh_of(seed: int) -> dict:
    """Initial parameters, others than those that the seed's training began with."""
    return network_of().init(jax.random.key(1000 + seed), SHAPE)[0]


def of_row(states: Any, row: int) -> tuple[Any, Any]:
    """(parameters, layers' state) of one of several networks."""
    return jax.tree.map(lambda leaf: leaf[row], (states.params, states.state))


def stages() -> dict[str, list[tuple[str, ...]]]:
    """Which layers are randomised: "cascade", from the last one down to that one; "alone"."""
    return {
        "cascade": [LAYERS[: i + 1] for i in range(len(LAYERS))],
        "alone": [(layer,) for layer in LAYERS],
    }


def compared(states: Any, images: np.ndarray, seeds: Sequence[int]) -> dict[str, Any]:
    """Of every seed the mean similarity over the images, (seeds,): of the stages, and of three things to hold them
    against: the next seed's trained network, the trained network's map of another image, and the image as a map.
    """
    of_seed = [of_row(states, i) for i in range(len(seeds))]
    classes = [np.asarray(network_of().forward(*own, images)[0].argmax(-1)) for own in of_seed]
    trained = [maps_of(*own, images, c) for own, c in zip(of_seed, classes, strict=True)]
    fresh = [fresh_of(seed) for seed in seeds]

    def near(others) -> dict[str, dict[str, np.ndarray]]:
        """By method and measure; `others`: of each seed the maps that its own are compared with."""
        found: dict[str, dict[str, np.ndarray]] = {}
        for name in METHODS:
            each = [similarity(t[name], o[name], images) for t, o in zip(trained, others, strict=True)]
            found[name] = {m: np.array([np.nanmean(one[m]) for one in each]) for m in MEASURES}
            found[name]["constant"] = np.array([np.isnan(one["rank"]).mean() for one in each])
        return found

    def made_with(layers):
        given = zip(of_seed, fresh, classes, strict=True)
        return [maps_of(randomised(params, other, layers), state, images, c) for (params, state), other, c in given]

    next_network = [maps_of(*of_seed[(i + 1) % len(seeds)], images, c) for i, c in enumerate(classes)]
    another_image = [{name: np.roll(t[name], 1, 0) for name in METHODS} for t in trained]
    return {
        **{kind: [near(made_with(layers)) for layers in lists] for kind, lists in stages().items()},
        "another network": near(next_network),
        "another image": near(another_image),
        "the image": near([dict.fromkeys(METHODS, images[..., 0])] * len(seeds)),
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """By method and measure: mean and 95 % interval over the seeds; and of guided minus gradient, seed by seed."""

    def of(near):
        made: dict[str, Any] = {
            name: {
                **{m: {**common.paired(near[name][m], 0), "each": near[name][m]} for m in MEASURES},
                "constant": near[name]["constant"].mean(),
            }
            for name in METHODS
        }
        made["guided - gradient"] = {m: common.paired(near["guided"][m], near["gradient"][m]) for m in MEASURES}
        return made

    def of_stages(kind):
        return {layers[-1]: of(near) for layers, near in zip(stages()[kind], found[kind], strict=True)}

    return {kind: of_stages(kind) if kind in stages() else of(near) for kind, near in found.items()}


# --- the whole ------------------------------------------------------------------------------------------------------


def black_is_0(split: common.Split) -> common.Split:
    """So that gradient × input is 0 on the background."""
    black = split.train.images.min()
    return common.Split(*(part._replace(images=part.images - black) for part in split))


def main(arguments: Sequence[str] | None = None) -> int:
    quick = "two seeds, 640 training images each, one rate, one epoch, maps of 20 images"
    options = common.options_of(__file__, __doc__ or "", quick, arguments)
    seeds, epochs, rates = (range(2), 1, RATES[1:]) if options.quick else (SEEDS, EPOCHS, RATES)
    train, count = (640, 20) if options.quick else (TRAIN, IMAGES)
    split = black_is_0(common.fashion(seeds, train=train, validation=VALIDATION))
    trained = common.train(network_of(), split, seeds, rates=rates, epochs=epochs)
    accuracy = common.tested(network_of(), trained, split)[0]
    print(f"trained: {100 * accuracy.mean():.2f} ± {100 * accuracy.std(ddof=1):.2f} %", flush=True)

    states = jax.tree.map(lambda leaf: leaf[trained.at_chosen], trained.best)
    images = split.test.images[0, :count]
    results = summary(compared(states, images, seeds))
    how = {"seeds": list(seeds), "rates": rates, "epochs": epochs, "train": train, "images": count}
    chosen = {"rate": rates[trained.chosen[0]], "test_accuracy": common.spread(accuracy)}
    record = common.write(options, **how, **chosen, similarity=results)
    print(table(record))
    draw(record, states, images, split.test.labels[0, :count], options.out / "saliency.png")
    return 0


def table(record: dict) -> str:
    """As in experiments/README.md: of each method "rank" with half its interval, "rank_inside", "ssim"."""
    found = record["similarity"]
    lines = {
        **{" … ".join(dict.fromkeys((LAYERS[0], layer))): found["cascade"][layer] for layer in LAYERS},
        **{f"{layer} alone": found["alone"][layer] for layer in LAYERS[1:]},
        **{kind: found[kind] for kind in ("another network", "another image", "the image")},
    }
    rows = [["random, or instead", *METHODS, "guided − gradient"], ["---"] * (len(METHODS) + 2)]
    for name, near in lines.items():
        apart = near["guided - gradient"]["rank"]
        rows.append([name, *(_cell(near[method]) for method in METHODS), f"{apart['low']:+.2f} … {apart['high']:+.2f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(near: dict) -> str:
    rank = near["rank"]
    inside, ssim = (f"{near[m]['mean']:.2f}" for m in ("rank_inside", "ssim"))
    return f"{rank['mean']:.2f} ± {(rank['high'] - rank['low']) / 2:.2f} / {inside} / {ssim}"


def draw(record: dict, states: Any, images: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Left some images and their maps; in the middle two images' maps as layers are randomised; right the curves."""
    shown = [int(np.argmax(labels == label)) for label in range(SHOWN)]
    params, state = of_row(states, 0)
    fresh = fresh_of(record["seeds"][0])
    classes = np.asarray(network_of().forward(params, state, images)[0].argmax(-1))
    versions = [params, *(randomised(params, fresh, layers) for layers in stages()["cascade"])]
    maps = [{name: np.asarray(m) for name, m in maps_of(own, state, images, classes).items()} for own in versions]

    made, axes = common.figure(len(MEASURES), 4, width=4.2, height=2.6)
    left, middle = (axes[0, i].get_gridspec()[:, i] for i in (0, 1))
    for unused in axes[:, :2].ravel():
        unused.remove()
    pictures = [[_in_gray(images[i, ..., 0]), *(_in_colors(maps[0][name][i]) for name in METHODS)] for i in shown]
    _mosaic(made.add_subplot(left), pictures, [""] * SHOWN, ["image", *METHODS], "trained, the predicted class's logit")
    pictures = [[_in_colors(m[name][i]) for m in maps] for name in METHODS for i in shown[:2]]
    methods = [line for name in METHODS for line in (name, "")]
    title = "random: from the last layer down to …"
    _mosaic(made.add_subplot(middle), pictures, methods, ["none", *LAYERS], title)
    for line, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        for one, kind in zip(line[2:], stages(), strict=True):
            _curves(one, record["similarity"], kind, measure)
            one.set_title(f"{label}, {kind}", fontsize="small")
    axes[-1, -1].legend(fontsize="xx-small", loc="upper right")
    made.savefig(path, dpi=100)


def _in_gray(image: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["gray_r"](image / image.max())[..., :3]


def _in_colors(values: np.ndarray) -> np.ndarray:
    """Blue below 0, white at 0, red above."""
    from matplotlib import colormaps

    return colormaps["RdBu_r"](0.5 + 0.5 * values / (np.abs(values).max() or 1.0))[..., :3]


def _mosaic(axes: Any, pictures: Sequence[Sequence[np.ndarray]], rows, columns, title: str) -> None:
    """Pictures H×W×3 in rows, with a gray line around each."""
    height, width = (size + 2 for size in pictures[0][0].shape[:2])
    padded = [[np.pad(p, ((1, 1), (1, 1), (0, 0)), constant_values=0.8) for p in line] for line in pictures]
    axes.imshow(np.concatenate([np.concatenate(line, 1) for line in padded]), interpolation="nearest")
    axes.set_xticks(width * (np.arange(len(columns)) + 0.5), columns, fontsize="x-small", rotation=30)
    axes.set_yticks(height * (np.arange(len(rows)) + 0.5), rows, fontsize="x-small")
    axes.tick_params(length=0)
    axes.set_title(title, fontsize="small")


def _curves(axes: Any, found: dict, kind: str, measure: str) -> None:
    colors = dict(zip(METHODS, ("tab:blue", "tab:orange", "tab:green", "tab:red"), strict=True))
    for offset, (name, color) in enumerate(colors.items()):
        points = [found[kind][layer][name][measure] for layer in LAYERS]
        mean, low, high = (np.array([p[which] for p in points]) for which in ("mean", "low", "high"))
        at = np.arange(len(LAYERS)) + 0.06 * (offset - 1.5)
        style = {"color": color, "linestyle": "-" * (kind == "cascade"), "marker": "o", "markersize": 3, "capsize": 2}
        axes.errorbar(at, mean, yerr=[mean - low, high - mean], label=name, **style)
        axes.axhline(found["another network"][name][measure]["mean"], color=color, linestyle=":", linewidth=0.8)
    axes.plot([], [], ":", color="black", linewidth=0.8, label="another trained network")
    axes.set_xticks(range(len(LAYERS)), LAYERS, fontsize="x-small")
    axes.set_ylim(-0.1, 1.05)


if __name__ == "__main__":
    jaxcnn.use_cpu_cores()
    sys.exit(main())
