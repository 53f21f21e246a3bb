"""The page: what each section says of the runs, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxcnn.report import html
from jaxcnn.report.figures import Curve, curves, palette, shades
from jaxcnn.report.network import Shown
from jaxcnn.report.pictures import confusion, learned_filters, mistakes
from jaxcnn.report.record import MEASURES, Record
from jaxcnn.version import __version__

NAMED = 10  # layers beside a figure


def report(records: Sequence[Record], networks: Sequence[Shown]) -> str:
    """The page of these runs and of what their networks show, as text."""
    title = f"Training report: {', '.join(record.name for record in records)}"
    both = list(zip(records, networks, strict=True))
    parts = [
        *_differences(records),
        html.columns([_result(both), _configuration(records)]),
        html.heading("Verification of the first batch"),
        *_verification(records, networks),
        *_curves(records),
        *_gradient_norms(both),
        *_each(both, "Confusion matrix", lambda record, shown: confusion(shown)),
        *_each(both, "Worst mistakes", lambda record, shown: mistakes(record.name, shown)),
        *_each(both, "Learned filters", lambda record, shown: learned_filters(record.name, shown)),
        *_timing(records),
        *_epochs(records),
        html.heading("Data and versions"),
        _facts(records),
        f"<footer>{html.paragraph(f'Written by jaxcnn {__version__}.')}</footer>",
    ]
    return html.page(title, [html.heading(title, 1), *_notes(both), html.contents(parts), *parts])


def _notes(both: Sequence[tuple[Record, Shown]]) -> list[str]:
    """What is not finished, missing or changed comes first."""
    said = []
    for record, shown in both:
        begun = f"The run is not finished: {record.state} so far. It is under way, or ended before its time, and then"
        state = [] if record.finished or record.lost else [f"{begun} jaxcnn train --resume goes on with it."]
        where = f"{record.name}: " if len(both) > 1 else ""
        said += [html.note(f"{where}{text}") for text in (*state, *record.notes, *shown.notes)]
    return said


def _differences(records: Sequence[Record]) -> list[str]:
    if len(records) == 1:
        return []
    rows = [row for row in _options(records) if len(set(row[1:])) > 1]
    same = html.paragraph("All options are the same.")
    shown = html.table("Options in which the runs differ", _columns(records), rows, words=True) if rows else same
    return [html.heading("Differences of configuration"), shown]


def _result(both: Sequence[tuple[Record, Shown]]) -> str:
    rows: dict[str, Callable[[Record, Shown], str]] = {
        "state": lambda record, _: record.state,
        "test accuracy": lambda record, _: _mean(record.last("test_accuracy"), "{:.2%}"),
        "test loss": lambda record, _: _mean(record.last("test_loss"), "{:.4f}"),
        "best validation": lambda record, _: _best(record),
        "chosen epoch": lambda record, _: _chosen(record),
        "parameters": lambda _, shown: f"{shown.parameters:,}",
        "training images": lambda record, _: f"{record.config['training_images'][0]:,}",
        "test images": lambda record, _: f"{record.config['test_images'][0]:,}",
        "seeds": lambda record, _: ", ".join(map(str, record.options.all_seeds)),
    }
    cells = [[name, *(cell(record, shown) or "–" for record, shown in both)] for name, cell in rows.items()]
    several = any(record.options.seeds > 1 for record, _ in both)
    caption = "Of several seeds mean ± deviation of a sample" if several else "What the runs have come to"
    shown = html.table(caption, _columns([record for record, _ in both]), cells, words=True)
    return html.heading("Result") + shown + _seeds([record for record, _ in both])


def _seeds(records: Sequence[Record]) -> str:
    """A table for each run of several seeds that has ended."""
    tables = []
    for record in records:
        if record.options.seeds == 1 or not record.finished:
            continue
        figures = [record.last("test_accuracy"), record.last("test_loss")]
        rows = [
            [str(seed), f"{accuracy:.2%}", f"{loss:.4f}"]
            for seed, accuracy, loss in zip(record.options.all_seeds, *figures, strict=True)
        ]
        tables.append(html.table(f"{record.name}: each seed", ["seed", "test accuracy", "test loss"], rows))
    return "".join(tables)


def _configuration(records: Sequence[Record]) -> str:
    caption = "As config.json has it, defaults filled in"
    return html.heading("Configuration") + html.table(caption, _columns(records), _options(records), words=True)


def _options(records: Sequence[Record]) -> list[list[str]]:
    names = [field.name for field in dataclasses.fields(records[0].options)]
    return [[f"--{name.replace('_', '-')}", *(_word(record.config[name]) for record in records)] for name in names]


def _verification(records: Sequence[Record], networks: Sequence[Shown]) -> list[str]:
    """Before the first step, at the initial parameters."""
    order = dict.fromkeys(layer for shown in networks for layer in shown.layers)
    places = {layer: place for place, layer in enumerate(order)}
    names = {name for record in records for name in record.config["gradient_check"]}
    first = sorted(names, key=lambda name: (places.get(name.rpartition("/")[0], len(places)), name))
    rows = [
        [name, *(f"{check[name]:.1e}" if name in check else "" for check in _checks(records))]
        for name in first
    ]  # fmt: skip
    largest = max((difference for check in _checks(records) for difference in check.values()), default=0.0)
    return [
        html.paragraph(
            "Before the first step, at the initial parameters, the gradient of the first batch was computed by the "
            "hand-written backward pass and by autodiff. The table has the largest difference of each parameter's two, "
            f"relative to its largest element; the largest of all is {largest:.1e}; float32 rounds at 1.2e-07."
        ),
        html.table("By hand against autodiff", _columns(records, "parameter"), rows),
    ]


def _checks(records: Sequence[Record]) -> list[dict[str, float]]:
    return [record.config["gradient_check"] for record in records]


def _curves(records: Sequence[Record]) -> list[str]:
    begun = [record for record in records if record.lines]
    if not begun:
        return []
    colours = dict(zip([r.name for r in records], palette(len(records)), strict=True))
    drawn = []
    for measure in ("loss", "accuracy"):
        series = []
        for record in begun:
            colour = colours[record.name]
            series.append(Curve(record.epochs, record.values(f"train_{measure}"), colour))
            if np.isfinite(validation := record.values(f"validation_{measure}")).any():
                series.append(Curve(record.epochs, validation, colour, dashed=True))
            if np.isfinite(test := record.last(f"test_{measure}")).any():
                series.append(Curve([_tested_epoch(record)], test[None], colour, point=True))
        text = "; ".join(_in_words(record, measure) for record in begun)
        drawing = curves(f"curves-{measure}", text, measure, series, percent=measure == "accuracy")
        drawn.append(html.figure(drawing, text))
    several = any(record.options.seeds > 1 for record in begun)
    band = " Of several seeds the mean, in a band from the smallest to the largest." if several else ""
    legend = html.key((colours[record.name], record.name) for record in begun) if len(records) > 1 else ""
    how = (
        "Solid: training, the mean over the steps of each epoch while the network changes. Dashed: validation images, "
        f"at the end of the epoch. Ring: test images, once, by the network of that epoch.{band}"
    )
    return [html.heading("Loss and accuracy"), html.paragraph(how), legend, html.columns(drawn)]


def _in_words(record: Record, measure: str) -> str:
    """A curve for who cannot see it: where it begins and ends."""
    form = "{:.4f}" if measure == "loss" else "{:.2%}"
    said = []
    for part in ("train", "validation", "test"):
        values = record.values(f"{part}_{measure}")
        seen = np.flatnonzero(np.isfinite(values).any(1))
        if len(seen):
            ends = [form.format(np.nanmean(values[i])) for i in dict.fromkeys((seen[0], seen[-1]))]
            said.append(f"{part} {measure} {' to '.join(ends)}")
    return f"{record.name}: {', '.join(said)}"


def _tested_epoch(record: Record) -> float:
    """Of several seeds, which may each have their own, the last."""
    last = record.lines[-1]
    return last["epoch"] if record.options.seeds > 1 else last.get("chosen_epoch", last["epoch"])


def _gradient_norms(both: Sequence[tuple[Record, Shown]]) -> list[str]:
    drawn = []
    for number, (record, shown) in enumerate(both):
        if not record.lines:
            continue
        known = {layer for line in record.lines for layer in line["gradient_norms"]}
        layers = [layer for layer in shown.layers if layer in known]
        series = []
        for layer, colour in zip(layers, shades(len(layers)), strict=True):
            norms = [line["gradient_norms"].get(layer, np.nan) for line in record.lines]
            series.append(Curve(record.epochs, np.array(norms, float)[:, None], colour))
        ends = ", ".join(f"{layer} {s.values[0, 0]:.2g} to {s.values[-1, 0]:.2g}"
                         for layer, s in zip(layers, series, strict=True))  # fmt: skip
        text = f"{record.name}: {ends}"
        drawing = curves(f"norms-{number}", text, "norm of the gradient", series)
        named = np.unique(np.linspace(0, len(layers) - 1, NAMED).round().astype(int))
        legend = html.key([(series[i].colour, layers[i]) for i in named])
        drawn.append(html.figure(legend + drawing, record.name))
    if not drawn:
        return []
    how = (
        "The Euclidean norm of the gradient of each layer's parameters, together, at the end of each epoch: of the "
        "mean loss of the first batch, the same images each time, without augmentation, of several seeds the first "
        f"one's. The first layer is the darkest; of more than {NAMED} some are named."
    )
    return [html.heading("Gradient norms by layer"), html.paragraph(how), html.columns(drawn)]


def _each(
    both: Sequence[tuple[Record, Shown]], title: str, part: Callable[[Record, Shown], str | None]
) -> list[str]:  # fmt: skip
    """A section with a column for each run that has that part; of several seeds it is the first one's."""
    parts = [(record, found) for record, shown in both if (found := part(record, shown)) is not None]
    if not parts:
        return []
    if len(both) > 1:
        shown = [html.heading(_of_seed(record, record.name), 3) + found for record, found in parts]
        return [html.heading(title), html.columns(shown)]
    record, found = parts[0]
    return [html.heading(_of_seed(record, title)), found]


def _of_seed(record: Record, title: str) -> str:
    return f"{title} (seed {record.options.seed})" if record.options.seeds > 1 else title


def _timing(records: Sequence[Record]) -> list[str]:
    begun = [record for record in records if record.lines]
    if not begun:
        return []
    rows: dict[str, Callable[[list[float], list[float]], str]] = {
        "first epoch, s": lambda seconds, _: f"{seconds[0]:.3g}",
        "a later epoch, s": lambda seconds, _: f"{np.median(seconds[1:]):.3g}" if seconds[1:] else "",
        "all epochs, s": lambda seconds, _: f"{sum(seconds):.4g}",
        "images/s": lambda _, rates: f"{np.median(rates[1:]):,.0f}" if rates[1:] else "",
        "images/s at most": lambda _, rates: f"{max(rates):,.0f}",
    }
    times = [[[line[name] for line in r.lines] for name in ("seconds", "images_per_second")] for r in begun]
    cells = [[name, *(cell(*each) for each in times)] for name, cell in rows.items()]
    caption = (
        "Of the training steps alone, without evaluation and checkpoints. The first epoch has the compilation in it; "
        "of the later ones the median"
    )
    return [html.heading("Timing"), html.table(caption, _columns(begun), cells)]


def _epochs(records: Sequence[Record]) -> list[str]:
    """Every figure, for who wants to read it off."""
    parts = []
    for record in records:
        if not record.lines:
            continue
        measures = [name for name in MEASURES if any(name in line for line in record.lines)]
        values = {name: np.atleast_2d(record.values(name)).mean(1) for name in measures}
        rows = [
            [
                str(line["epoch"]),
                *(_figure(name, values[name][i]) for name in measures),
                f"{line['seconds']:.3g}",
                f"{line['images_per_second']:,.0f}",
            ]
            for i, line in enumerate(record.lines)
        ]
        headings = ["epoch", *(name.replace("_", " ") for name in measures), "seconds", "images/s"]
        caption = (
            f"{record.name}: means of its {record.options.seeds} seeds" if record.options.seeds > 1 else record.name
        )
        parts.append(html.details(f"Epoch by epoch: {record.name}", html.table(caption, headings, rows)))
    return parts


def _facts(records: Sequence[Record]) -> str:
    names = ("data_sha256", "pixel_mean", "pixel_deviation", "devices", "python", "versions", "run")
    rows = [[name.replace("_", " "), *(_word(record.config[name]) for record in records)] for name in names]
    rows.insert(0, ["folder", *(str(record.path) for record in records)])
    return html.table("What else the results depend on", _columns(records, "fact"), rows, words=True)


def _columns(records: Sequence[Record], first: str = "") -> list[str]:
    return [first, *(record.name for record in records)]


def _mean(values: np.ndarray, form: str) -> str:
    """Of one seed its value, of several mean and deviation; nothing where there is none."""
    if np.isnan(values).all():
        return ""
    if len(values) == 1:
        return form.format(values[0])
    return f"{form.format(values.mean())} ± {form.format(values.std(ddof=1))}"


def _best(record: Record) -> str:
    values = record.values("validation_accuracy")
    return _mean(values.max(0), "{:.2%}") if len(values) else ""


def _chosen(record: Record) -> str:
    chosen = record.lines[-1].get("chosen_epoch") if record.finished else None
    if chosen is None:
        return "the last" if record.finished else ""
    return ", ".join(map(str, np.atleast_1d(chosen)))


def _figure(name: str, value: float) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4f}"


def _word(value: Any) -> str:
    """A value of config.json, to be read."""
    if value is None or value == []:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_word(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_word, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
