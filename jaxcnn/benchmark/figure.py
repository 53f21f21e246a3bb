"""The result as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jaxcnn.benchmark.result import Result

COLORS = {"jax": "tab:blue", "flax": "tab:cyan", "equinox": "tab:purple", "torch": "tab:orange", "jaxcnn": "tab:green"}


def draw(results: Sequence[Result], path: Path) -> None:
    """Writes a picture: for each network a panel, of each library its fastest form, as images a second."""
    networks = list(dict.fromkeys(result.network for result in results))
    columns = min(2, len(networks))
    lines = -(-len(networks) // columns)
    figure = Figure(figsize=(6 * columns, 4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, network in zip(panels, networks, strict=False):
        shown = [result for result in results if result.network == network]
        kinds = [(library, scan) for scan in (False, True) for library in COLORS]
        kinds = [kind for kind in kinds if any(result.best(*kind) for result in shown)]
        width = 0.85 / len(kinds)
        for place, (library, scan) in enumerate(kinds):
            bars = [(i, result, row) for i, result in enumerate(shown) if (row := result.best(library, scan))]
            left = [i + (place - (len(kinds) - 1) / 2) * width for i, _, _ in bars]
            speeds = [result.batch / row.median for _, result, row in bars]
            slowest = [speed - r.batch / max(row.seconds) for speed, (_, r, row) in zip(speeds, bars, strict=True)]
            fastest = [r.batch / min(row.seconds) - speed for speed, (_, r, row) in zip(speeds, bars, strict=True)]
            style = {"color": COLORS[library], "hatch": "//" if scan else None, "label": _label(library, scan)}
            axes.bar(left, speeds, width, yerr=(slowest, fastest), **style)
        axes.set_xticks(range(len(shown)), [f"batch {result.batch}" for result in shown])
        axes.set_title(f"{network.model}, {'×'.join(map(str, network.input_shape))}")
        axes.set_ylabel("images a second")
    for axes in panels[len(networks) :]:
        axes.set_axis_off()
    legend = {label: bar for axes in panels for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)


def _label(library: str, scan: bool) -> str:
    name = {"jax": "jax.value_and_grad", "flax": "Flax NNX", "equinox": "Equinox", "torch": "PyTorch"}
    return name.get(library, library) + (", in a scan" if scan else "")
