"""The report of runs: its numbers are those computed here, what is missing is said, nothing is from outside."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import matplotlib
import numpy as np
import pytest
from pages import Page
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from test_cli import end, start
from test_loop import SMALL, train
from test_report_figures import pixels_of, points_of

import jaxcnn
from jaxcnn import cli
from jaxcnn.cli_report import _with_data
from jaxcnn.report import figures
from jaxcnn.report.record import read_records
from jaxcnn.training import devices, loop
from jaxcnn.training.loop import Interrupted
from jaxcnn.training.run import prepare
from jaxcnn.training.run_folder import RunFolder, _of_config

MATRIX = "Test images: a row for each label, a column for each prediction"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one(folder):
    """A run that has ended, and its folder."""
    run = prepare(dataclasses.replace(SMALL, validation=0.1))
    train(run, folder / "one")
    return run, folder / "one"


@pytest.fixture(scope="module")
def seeds(folder):
    run = prepare(dataclasses.replace(SMALL, epochs=2, batch_size=32, seed=1, seeds=2, learning_rate=0.004))
    train(run, folder / "seeds")
    return run, folder / "seeds"


@pytest.fixture(scope="module")
def stopped(folder):
    run = prepare(SMALL)
    with pytest.raises(Interrupted):
        train(run, folder / "stopped", until=279)
    return run, folder / "stopped"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch):
    """The settings of jax's cache are this process'."""
    monkeypatch.setattr(devices, "keep_compiled_programs", lambda: None)


def reported(capsys, out, *runs) -> str:
    assert cli.main(["report", *map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    return out.read_text()


@pytest.fixture
def text(one, tmp_path, capsys):
    """The page of the run that has ended."""
    return reported(capsys, tmp_path / "page.html", one[1])


def answers(run, path, seed=None):
    """(labels, probabilities) of the test images, in float64 by NumPy from the network's logits."""
    params, state = jaxcnn.load(path, seed=seed)
    images, labels = run.data[0].test
    logits = np.asarray(run.network.forward(params, state, images)[0], np.float64)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return labels, exponentials / exponentials.sum(1, keepdims=True)


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_confusion_matrix_is_that_of_the_test_images(one, text):
    run, path = one
    labels, probabilities = answers(run, path)
    wanted = confusion_matrix(labels, probabilities.argmax(1), labels=range(10))
    headings, *rows = Page(text).tables[MATRIX]
    assert headings == ["", *map(str, range(10))]
    assert [row[0] for row in rows] == headings[1:]
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], int), wanted)
    accuracy = lines_of(path)[-1]["test_accuracy"]
    assert accuracy == np.trace(wanted) / 360 < 1
    assert f"{np.trace(wanted)} of 360 test images are right, {accuracy:.2%}." in Page(text).texts["p"]
    confused = dict(Page(text).tables["The most frequent confusions"][1:])
    np.fill_diagonal(wanted, 0)
    assert max(confused, key=lambda pair: int(confused[pair])) == next(iter(confused))
    for pair, count in confused.items():
        assert wanted[int(pair[0]), int(pair[-1])] == int(count)


def test_the_worst_mistakes_come_first_as_they_look(one, text):
    """The images are found again among scikit-learn's own, with that label."""
    run, path = one
    labels, probabilities = answers(run, path)
    predicted, certain = probabilities.argmax(1), probabilities.max(1)
    wrong = sorted(np.flatnonzero(predicted != labels), key=lambda i: -certain[i])[:24]
    assert len(wrong) > 3
    captions = [caption for caption in Page(text).texts["figcaption"] if "→" in caption]
    assert captions == [f"{labels[i]} → {predicted[i]}, {certain[i]:.1%}" for i in wrong]
    images = [image for image in Page(text).attributes("img") if "taken for" in image["alt"]]
    assert len(images) == len(wrong)
    digits = load_digits()
    grey = np.clip(digits.images / 16 * 256, 0, 255).astype(int)
    for i, image in zip(wrong, images, strict=True):
        assert image["alt"] == f"one: test image {i}, a {labels[i]}, taken for {predicted[i]}"
        found = np.abs(grey - pixels_of(image["src"])[..., 0]).max((1, 2)) <= 1
        assert labels[i] in digits.target[found]


def test_tables_say_what_the_run_folder_says(one, text):
    _, path = one
    tables, lines = Page(text).tables, lines_of(path)
    config = json.loads((path / "config.json").read_text())
    result = dict(tables["What the runs have come to"])
    last = lines[-1]
    assert (result["test accuracy"], result["test loss"]) == (
        f"{last['test_accuracy']:.2%}",
        f"{last['test_loss']:.4f}",
    )
    assert (result["state"], result["chosen epoch"]) == ("finished", str(last["chosen_epoch"]))
    assert result["best validation"] == f"{max(line['validation_accuracy'] for line in lines):.2%}"
    assert result["parameters"] == f"{sum(leaf.size for leaf in jax.tree.leaves(jaxcnn.load(path)[0])):,}"
    options = dict(tables["As config.json has it, defaults filled in"])
    assert [name[2:].replace("-", "_") for name in list(options)[1:]] == [f.name for f in dataclasses.fields(SMALL)]
    for name in ("batch_size", "epochs", "model", "validation", "learning_rate"):
        assert options[f"--{name.replace('_', '-')}"] == str(config[name])
    check = dict(tables["By hand against autodiff"][1:])
    assert check == {name: f"{difference:.1e}" for name, difference in config["gradient_check"].items()}
    headings, *rows = tables["one"]
    for line, row in zip(lines, rows, strict=True):
        shown = dict(zip(headings, row, strict=True))
        assert shown["train loss"] == f"{line['train_loss']:.4f}"
        assert shown["validation accuracy"] == f"{line['validation_accuracy']:.2%}"
        assert shown["images/s"] == f"{line['images_per_second']:,.0f}"
    seconds = [line["seconds"] for line in lines]
    timing = next(rows for caption, rows in tables.items() if caption.startswith("Of the training steps alone"))
    assert dict(timing)["all epochs, s"] == f"{sum(seconds):.4g}"
    assert dict(timing)["a later epoch, s"] == f"{seconds[1]:.3g}"


def test_the_curves_are_the_runs(one, text):
    lines = lines_of(one[1])
    drawn = [
        re.search(rf'<svg[^>]*aria-label="one: {what}.*?</svg>', text, re.DOTALL) for what in ("train loss", "conv")
    ]
    losses, norms = (found[0] for found in drawn if found is not None)
    ends = (lines[0]["train_loss"], lines[-1]["train_loss"], lines[-1]["test_loss"])
    assert "train loss {:.4f} to {:.4f}".format(*ends[:2]) in losses
    assert f"test loss {ends[2]:.4f}" in losses
    for layer in ("conv2d", "dense_1", "dense_2"):
        first, last = (line["gradient_norms"][layer] for line in (lines[0], lines[-1]))
        assert f"{layer} {first:.2g} to {last:.2g}" in norms
    colours = figures.shades(3)
    assert [colour for colour in colours if len(points_of(norms, colour)) == len(lines)] == colours


def test_filters_are_tiles_of_their_weights(one, text):
    params, _ = jaxcnn.load(one[1])
    weights = np.asarray(params["conv2d"]["filters"])[..., 0]
    (image,) = (image for image in Page(text).attributes("img") if "conv2d" in image["alt"])
    assert image["alt"] == "one: conv2d, 64 filters of 3×3×1"
    pixels = pixels_of(image["src"])
    assert pixels.shape[:2] == (8 * 13 - 1, 8 * 13 - 1)
    colours = matplotlib.colormaps["RdBu"]
    for number in (0, 7, 37):
        row, column = divmod(number, 8)
        tile = pixels[13 * row + 1 : 13 * row + 12 : 4, 13 * column + 1 : 13 * column + 12 : 4]
        wanted = 255 * colours((weights[number] / np.abs(weights).max() + 1) / 2)
        np.testing.assert_allclose(tile, wanted, atol=4)
    assert (pixels[12, :, 3] == 0).all()


def test_runs_side_by_side(one, seeds, tmp_path, capsys):
    """The differences first; of several seeds mean and deviation, and the first one's network."""
    page = Page(reported(capsys, tmp_path / "page.html", one[1], seeds[1]))
    assert page.texts["h1"] == ["Training report: one, seeds"]
    assert page.texts["h2"][0] == "Differences of configuration"
    headings, *rows = page.tables["Options in which the runs differ"]
    assert headings == ["", "one", "seeds"]
    assert rows == [
        ["--batch-size", "8", "32"],
        ["--learning-rate", "0.008", "0.004"],
        ["--seed", "0", "1"],
        ["--seeds", "1", "2"],
        ["--validation", "0.1", "0"],
    ]
    last = lines_of(seeds[1])[-1]
    accuracies = last["test_accuracy"]
    result = {row[0]: row[1:] for row in page.tables["Of several seeds mean ± deviation of a sample"]}
    assert result["test accuracy"][1] == f"{np.mean(accuracies):.2%} ± {np.std(accuracies, ddof=1):.2%}"
    of_each = page.tables["seeds: each seed"][1:]
    assert [row[:2] for row in of_each] == [[str(s), f"{a:.2%}"] for s, a in zip((1, 2), accuracies, strict=True)]
    assert {"one", "seeds (seed 1)"} <= set(page.texts["h3"])
    labels, probabilities = answers(*seeds, seed=1)  # the second run's is the last of that caption
    shown = np.array([row[1:] for row in page.tables[MATRIX][1:]], int)
    np.testing.assert_array_equal(shown, confusion_matrix(labels, probabilities.argmax(1), labels=range(10)))


def test_a_run_that_is_not_finished(stopped, tmp_path, capsys):
    """What is there is shown; the test images are for its end."""
    page = Page(reported(capsys, tmp_path / "page.html", stopped[1]))
    notes = [text for text in page.texts["p"] if "finished" in text or "test images" in text]
    assert notes[:2] == [
        "The run is not finished: 1 of 2 epochs so far. It is under way, or ended before its time, and then "
        "jaxcnn train --resume goes on with it.",
        "The test images are for the end of the run: no confusion matrix and no mistakes before.",
    ]
    assert "Loss and accuracy" in page.texts["h2"]
    assert "Learned filters" in page.texts["h2"]
    assert not {"Confusion matrix", "Worst mistakes"} & set(page.texts["h2"])
    result = dict(page.tables["What the runs have come to"])
    assert (result["test accuracy"], result["best validation"]) == ("–", "–")


def test_metrics_that_are_lost(one, tmp_path, capsys):
    """The checkpoints say how far the run has come, and resuming writes them anew."""
    run = tmp_path / "run"
    shutil.copytree(one[1], run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    anew = f"jaxcnn train --resume {run} writes it anew, and goes on if there is more to do."
    page = Page(reported(capsys, tmp_path / "page.html", run))
    assert f"metrics.jsonl has 1 of the 2 epochs that have ended. {anew}" in page.texts["p"]
    assert dict(page.tables["What the runs have come to"])["state"] == "2 of 2 epochs"
    assert not [text for text in page.texts["p"] if "not finished" in text or "test images are" in text]
    (run / "metrics.jsonl").unlink()
    missing = "there are no curves, no gradient norms and no times"
    page = Page(reported(capsys, tmp_path / "page.html", run))
    assert f"metrics.jsonl has 0 of the 2 epochs that have ended: {missing}. {anew}" in page.texts["p"]
    assert end(start("train", "--resume", run, cwd=tmp_path)).status == 0
    assert (run / "metrics.jsonl").read_text() == "".join(lines)
    page = Page(reported(capsys, tmp_path / "page.html", run))
    assert not [text for text in page.texts["p"] if "metrics.jsonl" in text]


def test_a_run_without_an_epoch(stopped, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(stopped[1], run)
    (run / "metrics.jsonl").unlink()
    for newer in (run / "checkpoints").iterdir():
        if newer.name != "0":
            shutil.rmtree(newer)
    page = Page(reported(capsys, tmp_path / "page.html", tmp_path / "run"))
    assert "No epoch has ended yet: there are no curves, no gradient norms and no times." in page.texts["p"]
    assert {"Verification of the first batch", "Learned filters"} <= set(page.texts["h2"])
    assert not {"Loss and accuracy", "Gradient norms by layer", "Timing"} & set(page.texts["h2"])


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "others"])
def test_data_that_are_not_there_any_more(rng, tmp_path, capsys, gone):
    data = tmp_path / "data.npz"
    names = {"x_train": (60, 8, 8), "x_test": (20, 8, 8)}
    given = {name: rng.integers(40, 200, shape, "u1") for name, shape in names.items()}
    given |= {name.replace("x", "y"): np.arange(shape[0]) % 3 for name, shape in names.items()}
    np.savez(data, **given)
    config = dataclasses.replace(SMALL, data=str(data), classes=3, epochs=1, validation=0.0)
    train(prepare(config), tmp_path / "run")
    page = Page(reported(capsys, tmp_path / "page.html", tmp_path / "run"))
    assert MATRIX in page.tables
    assert dict(page.tables["What the runs have come to"])["best validation"] == "–"
    image = next(image for image in page.attributes("img") if "taken for" in image["alt"])
    wanted = given["x_test"][int(re.findall(r"image (\d+)", image["alt"])[0])]
    np.testing.assert_allclose(pixels_of(image["src"])[..., 0], wanted, atol=1)  # no contrast is added
    if gone:
        moved = data.rename(tmp_path / "moved.npz")
    else:
        np.savez(data, **given | {"x_test": given["x_test"][::-1]})
    says = "no such file or folder" if gone else "not the data that the run was begun with"
    page = Page(reported(capsys, tmp_path / "page.html", tmp_path / "run"))
    assert [text for text in page.texts["p"] if says in text]
    assert MATRIX not in page.tables
    if gone:
        says = f"--data: got {data}, required the file or folder of the run's data; there is none"
        fails(capsys, says, tmp_path / "run", "--data", data)
        now = ["--out", str(tmp_path / "page.html"), "--data", str(moved)]
        assert cli.main(["report", str(tmp_path / "run"), *now]) == 0
        assert MATRIX in Page((tmp_path / "page.html").read_text()).tables
    assert "Worst mistakes" not in page.texts["h2"]
    assert "Learned filters" in page.texts["h2"]


def test_what_is_damaged_is_said(one, tmp_path, capsys):
    shutil.copytree(one[1], tmp_path / "run")
    kept = sorted((tmp_path / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(kept[-1] / "state")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_lo')
    says = " ".join(Page(reported(capsys, tmp_path / "page.html", tmp_path / "run")).texts["p"])
    assert f"{kept[-1]} is damaged; the checkpoint before it is taken" in says
    assert "metrics.jsonl: line 3 is not as it was written, and is left out." in says
    for checkpoint in kept[:-1]:
        shutil.rmtree(checkpoint)
    page = Page(reported(capsys, tmp_path / "page.html", tmp_path / "run"))
    assert [text for text in page.texts["p"] if text.startswith("No network: ")]
    assert not {"Learned filters", "Confusion matrix"} & set(page.texts["h2"])


def test_another_network_than_was_tested_is_said(one, tmp_path, capsys):
    shutil.copytree(one[1], tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    digest = lines_of(one[1])[-1]["params_sha256"]
    file.write_text(file.read_text().replace(digest, "0" * 64))
    says = "The network in the newest whole checkpoint is not the one that was tested at the end."
    assert says in Page(reported(capsys, tmp_path / "page.html", tmp_path / "run")).texts["p"]
    assert says not in Page(reported(capsys, tmp_path / "other.html", one[1])).texts["p"]


def test_nothing_is_from_outside_and_nothing_runs(text):
    assert not re.findall(r"https?:|src=\"(?!data:)|@import|<script|<link|<iframe|\bon\w+=", text)
    assert set(re.findall(r"url\(([^)]{0,5})", text)) <= {f"#{name}"[:5] for name in ("curve", "norms")}
    page = Page(text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert used
    assert used == set(ids)
    (policy,) = (meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert all(image["alt"] for image in page.attributes("img"))
    assert all(svg["aria-label"] and svg["role"] == "img" for svg in page.attributes("svg"))
    assert len(page.tables) == len(page.attributes("table"))  # each has a caption


def test_the_contents_lead_to_every_section(text):
    page = Page(text)
    links = [link["href"] for link in page.attributes("a")]
    assert links == [f"#{section['id']}" for section in page.attributes("h2")]
    assert page.texts["a"] == page.texts["h2"]
    assert "#loss-and-accuracy" in links


def test_names_are_text(one, tmp_path, capsys):
    name = "<img src=x onerror=alert(1)>&amp;\"'"
    shutil.copytree(one[1], tmp_path / name)
    text = reported(capsys, tmp_path / "page.html", tmp_path / name, one[1])
    page = Page(text)
    assert page.texts["h1"] == [f"Training report: {name}, one"]
    assert {image["src"][:5] for image in page.attributes("img")} == {"data:"}
    assert not [attributes for _, attributes in page.tags if any(key.startswith("on") for key in attributes)]
    assert name in page.tables["By hand against autodiff"][0]


# Where it is written, and what it says of bad input.


def test_the_page_is_written_into_the_run_folder_and_the_run_is_as_it_was(one, capsys):
    def contents():
        return {path: path.stat().st_mtime_ns for path in one[1].rglob("*") if path.name != "report.html"}

    before = contents()
    for _ in range(2):  # its own page it writes anew
        assert cli.main(["report", str(one[1])]) == 0
        assert capsys.readouterr() == (f"{one[1] / 'report.html'}: one (finished)\n", "")
    assert (one[1] / "report.html").read_text().startswith("<!doctype html>\n<!-- jaxcnn report -->\n")
    assert contents() == before
    assert loop.finished(one[0], RunFolder(one[1])) is not None


def test_of_several_runs_it_is_written_here(one, stopped, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(one[1]), str(stopped[1])]) == 0
    assert capsys.readouterr().out == "report.html: one (finished), stopped (1 of 2 epochs)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def fails(capsys, says, *arguments) -> None:
    assert cli.main(["report", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"jaxcnn: {says}\n")


def test_it_does_not_write_over_what_is_not_its_own(one, tmp_path, capsys):
    thesis = tmp_path / "thesis.html"
    thesis.write_text("<!doctype html>\n<p>three years")
    says = f"--out: got {thesis}, a file that jaxcnn report has not written; give another, or remove it"
    fails(capsys, says, one[1], "--out", thesis)
    assert thesis.read_text() == "<!doctype html>\n<p>three years"


def test_a_page_that_cannot_be_written(one, tmp_path, capsys, monkeypatch):
    """The earlier one stays, and nothing besides."""
    out = tmp_path / "page.html"
    before = reported(capsys, out, one[1])

    def full(path, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    fails(capsys, f"--out: {out} cannot be written: No space left on device", one[1], "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert out.read_text() == before


CHANGES = {
    "another rate": (
        lambda text: text.replace("0.008", "0.009"),
        "config.json is not as it was written, its digest is another; undo the change, or start a run of the changed "
        "configuration",
    ),
    "cut short": (lambda text: "", "config.json is damaged: Expecting value: line 1 column 1 (char 0)"),
    "another version": (
        lambda text: signed({name: v for name, v in json.loads(text).items() if name != "gradient_check"}),
        "config.json is not one of this version of jaxcnn: it has no 'gradient_check'",
    ),
}


def signed(config: dict) -> str:
    return json.dumps({**config, "sha256": _of_config(config)})


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_a_configuration_that_is_not_the_runs(one, tmp_path, capsys, change, says):
    shutil.copytree(one[1], tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(change(config.read_text()))
    fails(capsys, f"{tmp_path / 'run'}: {says}", tmp_path / "run")


def test_data_that_moved_are_of_one_run(one, stopped, capsys):
    fails(capsys, "--data: got elsewhere for 2 runs, required one run", one[1], stopped[1], "--data", "elsewhere")
    says = f"--data: got nowhere, but {one[1]} is of the digits, which come with scikit-learn"
    fails(capsys, says, one[1], "--data", "nowhere")


def test_data_of_a_name_have_moved_to_a_folder(one, tmp_path):
    (record,) = read_records([one[1]])
    record = record._replace(options=dataclasses.replace(record.options, data="fashion-mnist"))
    options = _with_data([record], tmp_path).options
    assert (options.data, options.data_dir) == ("fashion-mnist", str(tmp_path))


def test_one_run_twice(one, capsys):
    fails(capsys, f"{one[1]}/../one: given twice; give each run once", one[1], f"{one[1]}/../one")


def test_without_matplotlib(one, tmp_path):
    program = "import sys; sys.modules['matplotlib'] = None; from jaxcnn.__main__ import main; sys.exit(main())"
    ended = end(start("report", one[1], "--out", "page.html", cwd=tmp_path, program=("-c", program)))
    says = 'jaxcnn: needs the package matplotlib; install it with: pip install "jaxcnn[plot]"\n'
    assert ended == (2, "", says)
    assert list(tmp_path.iterdir()) == []
