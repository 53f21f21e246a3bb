"""Curves as SVG, filters as PNG: what is drawn is where and of what colour the values say."""

from __future__ import annotations

import base64
import io
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxcnn.report import figures


def pixels_of(source: str) -> np.ndarray:
    kind, _, content = source.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA")).astype(int)


def points_of(svg: str, colour: str) -> np.ndarray:
    """Of the first line of that colour: (points, 2) of its x and y, downwards."""
    (path, *_) = re.findall(rf'<path d="([^"]*)"[^>]*fill: none; stroke: {colour.lower()}', svg)
    return np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path), float)


@pytest.mark.parametrize("values", [[2.0, 0.5, 0.1, 0.4], [2.0, 1.9, 2.5, 1.0]], ids=["logarithmic", "linear"])
def test_a_curve_goes_through_its_values(values):
    colour = figures.PALETTE[0]
    svg = figures.curves("x", "text", "loss", [figures.Curve([1, 2, 3, 4], np.array(values)[:, None], colour)])
    x, y = points_of(svg, colour).T
    assert len(x) == 4
    heights = np.log(values) if min(values) < 0.2 else values
    assert np.corrcoef(-y, heights)[0, 1] == pytest.approx(1, abs=1e-6)
    assert np.corrcoef(x, range(4))[0, 1] == pytest.approx(1, abs=1e-6)


def test_several_seeds_are_a_mean_in_a_band():
    values, colour = np.array([[1.0, 2.0, 6.0], [2.0, 4.0, 3.0], [1.0, 1.0, 4.0]]), figures.PALETTE[1]
    svg = figures.curves("x", "text", "loss", [figures.Curve([1, 2, 3], values, colour)])
    assert np.corrcoef(-points_of(svg, colour)[:, 1], np.log(values.mean(1)))[0, 1] == pytest.approx(1, abs=1e-6)
    assert "fill-opacity: 0.2" in svg


@pytest.mark.parametrize(("shape", "size"), [((5, 3, 2, 3), (25, 26)), ((4, 3, 3, 2), (51, 25))], ids=["RGB", "deeper"])
def test_filters_of_several_channels(rng, shape, size):
    weights = rng.normal(size=shape)
    mosaic = figures.filters(weights)
    pixels = pixels_of(mosaic.source)
    assert pixels.shape[:2] == (mosaic.height, mosaic.width) == size
    if shape[-1] == 3:  # of the fourth of five, which is the first in its row, the second weight
        wanted = 255 * (weights[3, 0, 1] / np.abs(weights).max() + 1) / 2
        np.testing.assert_allclose(pixels[13, 4, :3], wanted, atol=1)
    else:  # of the third filter's second channel the second weight
        colour = matplotlib.colormaps["RdBu"]((weights[2, 0, 1, 1] / np.abs(weights).max() + 1) / 2)
        wanted = 255 * np.array(colour)
        np.testing.assert_allclose(pixels[26, 17], wanted, atol=4)
