"""The sections that show the network at work: confusion matrix, mistakes, filters."""

from __future__ import annotations

import numpy as np

from jaxcnn.report import figures, html
from jaxcnn.report.network import MISTAKES, Answers, Shown

CLASSES = 25  # the largest matrix that is shown whole
PAIRS = 10  # the confusions that are listed
TILES = 5000  # filters, a tile a channel, up to which those of all convolutions are shown
RIGHT, WRONG = "0, 114, 178", "213, 94, 0"  # red, green, blue


def confusion(shown: Shown) -> str | None:
    answers = shown.answers
    if answers is None:
        return None
    counts = answers.confusion()
    right, total = int(np.trace(counts)), int(counts.sum())
    said = html.paragraph(f"{right:,} of {total:,} test images are right, {right / total:.2%}.")
    matrix = [_matrix(counts, answers.names)] if len(counts) <= CLASSES else []
    return said + html.columns([*matrix, _confused(counts, answers.names)])


def _matrix(counts: np.ndarray, names: tuple[str, ...]) -> str:
    classes = range(len(counts))
    largest = max(1, int(counts.max()))
    mistakes = max(1, int((counts - np.diag(np.diag(counts))).max()))
    body = []
    for label in classes:
        cells = []
        for predicted, count in enumerate(counts[label]):
            if not count:
                cells.append('<td class="none">0</td>')
                continue
            colour, share = (RIGHT, count / largest) if label == predicted else (WRONG, count / mistakes)
            cells.append(f'<td style="background:rgba({colour}, {0.12 + 0.4 * share:.2f})">{count}</td>')
        body.append([html.row_heading(names[label]), *cells])
    caption = "Test images: a row for each label, a column for each prediction"
    return html.framed(caption, ["", *names], body, "confusion")


def _confused(counts: np.ndarray, names: tuple[str, ...]) -> str:
    """The most frequent mistakes in words."""
    wrong = counts - np.diag(np.diag(counts))
    pairs = [(int(wrong[label, predicted]), label, predicted) for label, predicted in np.argwhere(wrong)]
    pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:PAIRS]
    if not pairs:
        return html.paragraph("No test image is wrong.")
    rows = [[f"{names[label]} taken for {names[predicted]}", f"{count:,}"] for count, label, predicted in pairs]
    return html.table("The most frequent confusions", ["", "images"], rows)


def mistakes(name: str, shown: Shown) -> str | None:
    answers = shown.answers
    if answers is None:
        return None
    wrong = answers.mistakes()
    if not len(wrong):
        return html.paragraph("No test image is wrong.")
    count = f"{len(wrong):,}" if len(wrong) <= MISTAKES else f"The first {MISTAKES} of {len(wrong):,}"
    said = html.paragraph(
        f"{count} wrong test images, that of the most probable prediction first: label → prediction, its probability."
    )
    items = "".join(f"<li>{_mistake(name, answers, place)}</li>" for place in wrong[:MISTAKES])
    return f'{said}<ol class="mistakes">{items}</ol>'


def _mistake(name: str, answers: Answers, place: int) -> str:
    label, predicted = (answers.names[k] for k in (answers.labels[place], answers.predicted[place]))
    probability = answers.probabilities[place].max()
    pixels = answers.images[place]
    text = f"{name}: test image {place}, a {label}, taken for {predicted}"
    picture = html.image(figures.image(pixels), text, pixels.shape[1::-1])
    return html.figure(picture, f"{label} → {predicted}, {probability:.1%}")


def learned_filters(name: str, shown: Shown) -> str | None:
    """Those of the first convolution; of a network of few filters those of all."""
    if not shown.filters:
        return None
    tiles = sum(weights.shape[0] * weights.shape[-1] for weights in shown.filters.values())
    chosen = shown.filters if tiles <= TILES else dict([next(iter(shown.filters.items()))])
    parts = []
    for layer, weights in chosen.items():
        n, height, width, channels = weights.shape
        size = f"{n} filters of {height}×{width}×{channels}"
        how = {1: "blue positive, red negative, white 0", 3: "red, green and blue, grey is 0"}.get(
            channels, "a row for each filter, a column for each channel; blue positive, red negative, white 0"
        )
        mosaic = figures.filters(weights)
        picture = html.image(mosaic.source, f"{name}: {layer}, {size}", (mosaic.width, mosaic.height))
        largest = f"largest weight {np.abs(weights).max():.3g}"
        parts.append(html.figure(picture, f"{layer}: {size}; {how}; {largest}"))
    rest = len(shown.filters) - len(chosen)
    left = html.paragraph(f"The {rest} convolutions behind it are not shown.") if rest else ""
    return html.columns(parts) + left
