"""The explanation of a backward pass: against the network itself and its summary; the page."""

import functools
import inspect
import itertools
import math
import os
import pathlib
import re
import subprocess
import sys
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import pytest

import jaxcnn
from jaxcnn import Conv2D, Dense, Flatten, Layer, MaxPool, ReLU, cli, models, residual, sequential
from jaxcnn.training.names import name_of

MODELS = [
    f for n, f in inspect.getmembers(models, inspect.isfunction)
    if f.__module__ == models.__name__ and not n.startswith("_")
]  # fmt: skip
SHAPE = 64, 64, 3
ROOT = pathlib.Path(jaxcnn.__file__).parents[1]


@functools.cache
def explained(model):
    return jaxcnn.explain(model(), SHAPE, 2)


@pytest.mark.parametrize("model", MODELS)
def test_the_steps_give_each_parameters_gradient_and_save_what_the_summary_counts(model):
    network, explanation = model(), explained(model)
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE)[0])
    gradients = {
        "/".join((*step.path[1:], array.name.removeprefix("d"))): array.shape
        for step in explanation.steps[1:]
        for array in step.gives[1:]
    }
    assert gradients == {name_of(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}
    saved = sum(array.bytes for step in explanation.steps[1:] for array in step.saved)
    assert saved == sum(row.saved_bytes for row in jaxcnn.summary(network, SHAPE, 2).rows)


@pytest.mark.parametrize("model", MODELS)
def test_each_step_says_where_its_backward_pass_stands(model):
    for step in explained(model).steps:
        file, line = step.place.split(":")
        code = (ROOT / file).read_text().splitlines()[int(line) - 1 :]
        assert "def " in code[0] or "lambda" in code[0]
        assert step.code.splitlines()[0] == code[0].strip()
        if step.derivation:
            above = (ROOT / file).read_text().splitlines()[int(line) - 2]
            assert step.derivation.splitlines()[-1].strip() == above.strip().removeprefix("#").strip()


def test_dy_of_a_step_is_dx_of_the_one_before():
    steps = jaxcnn.explain(models.lenet5(), (28, 28, 1), 3).steps
    assert [step.rule for step in steps[:4]] == ["softmax_cross_entropy", "dense", "relu", "dense"]
    for before, step in itertools.pairwise(steps):
        assert before.gives[0].shape == step.given[0].shape
    assert steps[-1].gives[0] == ("dx", (3, 28, 28, 1), "float32", 3 * 28 * 28 * 4)


def test_what_was_saved_is_named():
    network = sequential(Conv2D(4, 3), ReLU(), MaxPool(2), Flatten(), Dense(3))
    steps = {step.path[-1]: step for step in jaxcnn.explain(network, (8, 8, 1), 2).steps}
    assert [str(a) for a in steps["conv2d"].saved] == ["image 2×8×8×1"]  # its filters are parameters
    assert [str(a) for a in steps["max_pool"].saved] == ["x 2×8×8×4", "y 2×4×4×4"]
    assert steps["flatten"].saved == ()
    assert [str(a) for a in steps["softmax_cross_entropy"].saved] == ["logits 2×3", "labels 2"]
    assert steps["softmax_cross_entropy"].saved[0].bytes == 2 * 3 * 4
    assert math.prod(steps["relu"].saved[0].shape) == 2 * 8 * 8 * 4


def test_branches_are_added_after_them():
    network = sequential(Dense(4), residual(sequential(Dense(4), ReLU())))
    steps = jaxcnn.explain(network, (4,), loss=None).steps
    assert [step.name for step in steps] == [
        "residual/identity", "residual/layer/relu", "residual/layer/dense", "residual", "dense",
    ]  # fmt: skip
    assert steps[3].gives[0].shape == (1, 4)
    assert "gets the sum of what they return" in steps[3].derivation


def test_a_derivation_is_told_once_in_the_text_and_each_time_on_the_page():
    explanation = jaxcnn.explain(models.lenet5(), (28, 28, 1))
    line = explanation.steps[1].derivation.splitlines()[0]
    text = str(explanation)
    assert text.count(line) == 1
    assert text.count("as in 2. dense_3") == 2
    assert "gives  dx 1×84, dbias 10, dweights 84×10" in text
    assert max(map(len, text.splitlines())) <= 130


def test_a_layer_of_ones_own_without_a_comment():
    twice = Layer(
        "twice", lambda key, shape: ({}, {}, shape), lambda p, s, x, **_: (2 * x, s, ()), lambda r, dy: ({}, 2 * dy)
    )
    (step,) = jaxcnn.explain(twice, (3,), loss=None).steps
    assert (step.derivation, step.saved) == ("", ())
    assert step.place.startswith(f"{pathlib.Path(__file__)}:")
    names: dict = {}
    exec("def forward(p, s, x, **_): return x, s, ()\ndef backward(r, dy): return {}, dy", names)
    unseen = Layer("unseen", lambda key, shape: ({}, {}, shape), names["forward"], names["backward"])
    assert jaxcnn.explain(unseen, (3,), loss=None).steps[0].place == "no source at hand"


class Page(HTMLParser):
    """Its tags, how deep they are, and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_by_itself():
    explanation = jaxcnn.explain(models.resnet20(), (32, 32, 3))
    text = explanation.html()
    page = Page(text)
    assert page.open == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img"})
    assert "http" not in text
    assert sum(tag == "section" for tag, _ in page.tags) == len(explanation.steps)
    for step in explanation.steps:
        assert step.derivation in page.text
        assert step.code in page.text
        assert step.place in page.text
    assert any(a.get("name") == "viewport" for tag, a in page.tags if tag == "meta")


def test_the_page_escapes_names():
    text = jaxcnn.explain(sequential(Dense(2), name="<b>&"), (3,)).html()
    assert "<b>" not in text
    assert "&lt;b&gt;&amp;" in text


def test_errors():
    with pytest.raises(TypeError, match="explain: "):
        jaxcnn.explain(jnp.ones(3), (3,))
    with pytest.raises(ValueError, match="explain: batch must be"):
        jaxcnn.explain(Dense(2), (3,), 0)


def test_the_command(tmp_path, capsys):
    file = tmp_path / "page.html"
    assert cli.main(["explain", "source", "--input", "8x8x1", "--batch-size", "32"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{jaxcnn.explain(models.source(), (8, 8, 1), 32)}\n"
    assert cli.main(["explain", "source", "--input", "8x8x1", "--html", str(file)]) == 0
    assert file.read_text(encoding="utf-8") == jaxcnn.explain(models.source(), (8, 8, 1)).html()
    assert re.fullmatch(rf"{file}: 8 steps\n", capsys.readouterr().out)


def test_a_terminal_that_has_no_signs_but_ascii():
    command = [sys.executable, "-m", "jaxcnn", "explain", "source", "--input", "8x8x1"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1\\xd78\\xd78\\xd71" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("explain sauce --input 8x8x1", "explain: got the model sauce; did you mean source? the models are "),
        ("explain source --input 8", "--input 8: not for source: "),
        (
            "explain source --input 8x8x1 --html no/such/page.html",
            "--html: got no/such/page.html, required a file that",
        ),
        ("explein source", "got the command explein; did you mean explain? the commands are train, report, "),
        ("thesis", "got the command thesis; the commands are train, "),
    ],
)
def test_errors_of_the_command(arguments, message, capsys):
    assert cli.main(arguments.split()) == 2
    assert f"jaxcnn: {message}" in capsys.readouterr().err
