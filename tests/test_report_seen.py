"""The report in headless Chromium: what is to be seen of it on a phone and on a wide screen."""

from __future__ import annotations

import dataclasses

import pytest
from browser import CHROMIUM, seen
from test_loop import SMALL, train

from jaxcnn import cli
from jaxcnn.training import devices
from jaxcnn.training.run import prepare

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)")

PHONE, WIDE = 390, 1200
LOOK = """(page, view) => {
  const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const ink = view.getComputedStyle(page.body).color;
  const curve = p => p.getTotalLength() > 50 && ![ink, "none"].includes(view.getComputedStyle(p).stroke);
  const all = (kind, root = page) => [...root.querySelectorAll(kind)];
  return {
    room: [page.documentElement.clientWidth, page.documentElement.scrollWidth],
    headings: all("h1, h2").map(e => e.innerText),
    text: page.body.innerText,
    images: all("img").map(e => ({box: box(e), pixels: e.complete ? e.naturalWidth : 0, shape: e.width / e.height,
                                  drawn: e.naturalWidth / e.naturalHeight})),
    figures: all("svg").map(e => ({box: box(e), curves: all("path", e).filter(curve).length,
                                   words: all("text", e).map(t => [box(t), view.getComputedStyle(t).fill])})),
    scrolled: all(".scroll").filter(e => e.checkVisibility()).map(e => ({box: box(e),
      room: [e.clientWidth, e.scrollWidth], overflow: view.getComputedStyle(e).overflowX})),
    ink,
    widest: Math.max(...all("body *").filter(e => !e.closest(".scroll")).map(e => box(e)[2])),
  };
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of one run, and that of two, one of them with several seeds."""
    folder = tmp_path_factory.mktemp("runs")
    train(prepare(dataclasses.replace(SMALL, validation=0.1)), folder / "one")
    several = dataclasses.replace(SMALL, batch_size=32, seeds=2)
    train(prepare(several), folder / "a_run_of_several_seeds_with_a_long_name_without_an_end_or_a_break")
    runs = [str(path) for path in sorted(folder.iterdir())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "keep_compiled_programs", lambda: None)  # this process has its own cache
        assert cli.main(["report", runs[1], "--out", str(folder / "one.html")]) == 0
        assert cli.main(["report", *runs, "--out", str(folder / "two.html")]) == 0
    return {name: (folder / f"{name}.html").read_text() for name in ("one", "two")}


@pytest.fixture(scope="module")
def looked(pages, tmp_path_factory):
    """(page, width) -> what is seen."""
    kept = {}

    def look(name: str, width: int):
        if (name, width) not in kept:
            kept[name, width] = seen(pages[name], width, LOOK, tmp_path_factory.mktemp("chromium"))
        return kept[name, width]

    return look


@pytest.mark.parametrize("width", [PHONE, WIDE])
@pytest.mark.parametrize("name", ["one", "two"])
class TestEverywhere:
    def test_nothing_is_wider_than_the_screen(self, looked, name, width):
        """But for tables, each in a box that can be moved."""
        found = looked(name, width)
        assert width - 20 <= found["room"][0] == found["room"][1] <= width
        assert found["widest"] <= width
        for box in found["scrolled"]:
            assert box["overflow"] == "auto"
            assert box["box"][2] <= width

    def test_figures_and_images_are_drawn(self, looked, name, width):
        found = looked(name, width)
        assert len(found["figures"]) == {"one": 3, "two": 4}[name]
        for figure in found["figures"]:
            left, top, right, bottom = figure["box"]
            assert right - left > min(300, width / 4)
            assert bottom - top > 180
            assert figure["curves"] >= 2  # besides axes and grid, which have the colour of text
            assert figure["words"]
        assert len(found["images"]) > 3
        for image in found["images"]:
            left, top, right, bottom = image["box"]
            assert right - left >= 60
            assert bottom - top >= 60
            assert image["pixels"] >= 8
            assert image["shape"] == pytest.approx(image["drawn"], rel=0.03)  # not squeezed

    def test_words_in_figures_can_be_read(self, looked, name, width):
        """As tall as text of 9 pixels at least, inside their figure, in the page's colour."""
        found = looked(name, width)
        for figure in found["figures"]:
            for (left, top, right, bottom), colour in figure["words"]:
                assert min(bottom - top, right - left) >= 6  # a digit's width, or the height of turned text
                assert max(bottom - top, right - left) >= 9
                assert figure["box"][0] <= left < right <= figure["box"][2]
                assert figure["box"][1] <= top < bottom <= figure["box"][3]
                assert colour == found["ink"]

    def test_all_sections_are_there(self, looked, name, width):
        found = looked(name, width)
        first = ["Differences of configuration"] if name == "two" else []
        rest = [
            "Result",
            "Configuration",
            "Verification of the first batch",
            "Loss and accuracy",
            "Gradient norms by layer",
            "Confusion matrix",
            "Worst mistakes",
            "Learned filters",
            "Timing",
            "Data and versions",
        ]
        assert found["headings"][1:] == first + rest
        for words in ("By hand against autodiff", "dense_2/weights", "of 360 test images are right", "--learning-rate"):
            assert words in found["text"]


def test_columns_stand_below_each_other_on_a_phone(looked):
    """And side by side where there is room: the curves of loss and accuracy."""
    for width, beside in ((PHONE, False), (WIDE, True)):
        loss, accuracy, *_ = (figure["box"] for figure in looked("one", width)["figures"])
        assert (accuracy[0] >= loss[2]) == beside
        assert (accuracy[1] >= loss[3]) != beside


def test_only_wide_tables_are_to_be_moved_on_a_phone(looked):
    """Of one run all tables fit, but for the one of all epochs, which is closed."""
    assert [box for box in looked("one", PHONE)["scrolled"] if box["room"][1] > box["room"][0] > 0] == []
    assert [box for box in looked("two", WIDE)["scrolled"] if box["room"][1] > box["room"][0] > 0] == []
