"""Curves as SVG and arrays as PNG, to stand inside the page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

SIZE = (4.6, 3.0)  # inches of 72 units: the width of a phone, where the text is to be read
PANEL = (0.2, 0.17, 0.77, 0.79)  # left, bottom, width, height of the axes: room for numbers of six digits
INK = "#010203"  # becomes the page's own colour of text, dark or light
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text as text
    "font.family": "DejaVu Sans",
    "font.size": 11,
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick")},
    **{f"axes.{name}": INK for name in ("edgecolor", "labelcolor")},
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.15,
}
PIXELS = 4  # rows and columns of a weight in a picture of filters
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's: for every eye


class Curve(NamedTuple):
    epochs: Sequence[float]
    values: np.ndarray  # (epochs, seeds)
    colour: str
    dashed: bool = False
    point: bool = False  # a ring in place of a line


def palette(count: int) -> list[str]:
    """Colours that can be told apart, of any number of runs."""
    return list(PALETTE[:count]) if count <= len(PALETTE) else shades(count)


def shades(count: int) -> list[str]:
    """Colours in an order that can be seen: of the layers of a network."""
    from matplotlib.colors import to_hex

    colours = matplotlib.colormaps["plasma"]  # but for its ends, which vanish on black and on white
    return [to_hex(colours(x)) for x in np.linspace(0.3, 0.85, count)]


def curves(name: str, text: str, label: str, series: Sequence[Curve], *, percent: bool = False) -> str:
    """An <svg> of values over epochs, with several seeds their mean and a band from the smallest to the largest.

    The axis of values is logarithmic where they are positive and the largest is more than five times the smallest;
    that of fractions is in percent.

    Args:
      name: what its ids begin with. text: in place of the picture, for who cannot see it. label: of the axis.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = figure.add_axes(PANEL)
        for curve in series:
            mean = curve.values.mean(1)
            if curve.point:
                axes.plot(curve.epochs, mean, "o", color=curve.colour, markerfacecolor="none", clip_on=False)
                continue
            mark = "." if len(curve.epochs) < 30 else ""
            axes.plot(curve.epochs, mean, "--" if curve.dashed else "-", marker=mark, color=curve.colour, linewidth=1.6)
            if curve.values.shape[1] > 1:
                low, high = curve.values.min(1), curve.values.max(1)
                axes.fill_between(curve.epochs, low, high, color=curve.colour, alpha=0.2, linewidth=0)
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        else:
            _scale(axes, np.concatenate([curve.values.ravel() for curve in series]))
        axes.set_xlim(0, max(2, 1.02 * max(max(curve.epochs) for curve in series)))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        written = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return _inline(name, text, written.getvalue())


def _scale(axes: Any, values: np.ndarray) -> None:
    values = values[np.isfinite(values)]
    if not values.size or values.min() <= 0 or values.max() <= 5 * values.min():
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 200 * values.min() else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _inline(name: str, text: str, svg: str) -> str:
    """matplotlib's file as part of a page: no namespaces, which are addresses; ids of its own; the page's colours."""
    head, body = re.findall(r"<svg ([^>]*)>(.*)</svg>", svg, re.DOTALL)[0]
    box = re.findall(r'viewBox="([^"]*)"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*</defs>", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href").replace(INK, "currentColor").replace("'DejaVu Sans'", "sans-serif")
    used = set(re.findall(r'(?:href="|url\()#([^")]*)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    return f'<svg viewBox="{box}" role="img" aria-label="{escape(text)}">{body}</svg>'


def image(pixels: np.ndarray) -> str:
    """A data URI of H×W×C pixels from 0 to 1: in colour of three channels, else the first one in grey."""
    if pixels.shape[-1] == 3:
        return _png(pixels)
    return _png(pixels[..., 0], cmap="gray", vmin=0, vmax=1)


class Mosaic(NamedTuple):
    source: str  # data URI
    width: int  # pixels
    height: int


def filters(weights: np.ndarray) -> Mosaic:
    """Of n×h×h×C filters: in colour where C is 3, one a tile where it is 1, else a row for each, a tile a channel."""
    largest = float(np.abs(weights).max()) or 1.0
    n, height, width, channels = weights.shape
    if channels == 3:
        tiles = _in_rows((weights / largest + 1) / 2)
        opaque = np.isfinite(tiles[..., :1])
        pixels = np.concatenate([np.nan_to_num(tiles), opaque], -1)
        return Mosaic(_png(pixels), *pixels.shape[1::-1])
    if channels == 1:
        pixels = _in_rows(weights)[..., 0]
    else:
        pixels = _tiled(weights.transpose(0, 3, 1, 2).reshape(n, channels, height, width, 1))[..., 0]
    return Mosaic(_png(pixels, cmap="RdBu", vmin=-largest, vmax=largest), *pixels.shape[::-1])


def _in_rows(tiles: np.ndarray) -> np.ndarray:
    """n tiles in rows, about as many as columns."""
    columns = int(np.ceil(np.sqrt(len(tiles))))
    missing = -len(tiles) % columns
    padded = np.concatenate([tiles, np.full((missing, *tiles.shape[1:]), np.nan)])
    return _tiled(padded.reshape(-1, columns, *tiles.shape[1:]))


def _tiled(grid: np.ndarray) -> np.ndarray:
    """rows×columns×h×w×C tiles in one array, each weight as PIXELS×PIXELS, a line of NaN between the tiles."""
    grid = grid.repeat(PIXELS, 2).repeat(PIXELS, 3)
    rows, columns, height, width, channels = grid.shape
    framed = np.full((rows, columns, height + 1, width + 1, channels), np.nan)
    framed[:, :, :height, :width] = grid
    return framed.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]


def _png(pixels: np.ndarray, **how: Any) -> str:
    written = io.BytesIO()
    imsave(written, pixels.astype(float), format="png", **how)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
