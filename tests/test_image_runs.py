"""A run on a folder of images, whose classes have names: what predict, report and the classifier make of it."""

import json
import re

import numpy as np
import pytest
from test_images import CLASSES, write

import jaxcnn
from jaxcnn import cli
from jaxcnn.inference.images import read_images
from jaxcnn.training import devices

SIZE = 8, 8, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(the folder of images, the run): three classes of noise that hardly differ, so that some are wrong."""
    path, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    parts = {}
    for name, each in (("train", 40), ("test", 20)):
        labels = np.repeat(np.arange(3), each)
        images = rng.integers(0, 150, (3 * each, *SIZE)).astype(np.uint8)
        images[np.arange(len(labels)), 2 * labels] += 25
        parts[name] = images, labels
    folder = write(path / "folder", parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "use_cpu_cores", lambda n: n)  # this process has used its devices already
        command = ["train", "--data", str(folder), "--epochs", "3", "--validation", "0", "--batch-size", "8"]
        assert cli.main([*command, "--out", str(path / "run")]) == 0
    return folder, path / "run"


def last_of(run):
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_the_classifier_has_the_names_and_the_accuracy(made):
    folder, run = made
    network = jaxcnn.classifier(run)
    assert (network.names, network.size, network.enlarged) == (CLASSES, SIZE, 1)
    right = []
    for label, name in enumerate(CLASSES):
        images = np.concatenate([read_images(file, SIZE) for file in sorted((folder / "test" / name).iterdir())])
        right.append(np.asarray(network(images)).argmax(1) == label)
    assert np.mean(right) == pytest.approx(last_of(run)["test_accuracy"])
    assert 0.34 < np.mean(right) < 1


def test_predict_says_the_name(made, capsys):
    folder, run = made
    file = next((folder / "test" / "fox").iterdir())
    assert cli.main(["predict", str(run), str(file), "--top", "1"]) == 0
    probabilities = np.asarray(jaxcnn.classifier(run)(read_images(file, SIZE)))[0]
    best = int(probabilities.argmax())
    assert capsys.readouterr().out == f"{file}: {CLASSES[best]} {probabilities[best]:.2%}\n"


def test_the_report_says_the_names_and_shows_the_mistakes(made, tmp_path):
    _, run = made
    assert cli.main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    wrong = round((1 - last_of(run)["test_accuracy"]) * 60)
    shown = re.findall(r"(cat|dog|fox) → (cat|dog|fox), \d+\.\d%", page)
    assert len(shown) == min(wrong, 24) > 0
    assert all(label != predicted for label, predicted in shown)
    assert f"{60 - wrong} of 60 test images are right" in page
