"""A user's own rule: from the command line and in pytest."""

import json

import numpy as np
import pytest

import jaxcnn
from jaxcnn import cli
from jaxcnn.testing import assert_rule
from jaxcnn.verification.target import make_array, make_static

MODULE = """
import jax.numpy as jnp
import jaxcnn

def scale_forward(x, s, *, power=1):
    return s * x**power, (x, s)

def scale_backward(residuals, dy, *, power):
    x, s = residuals
    return dy * s * power * x ** (power - 1), (dy * x**power).sum()

def backward_without_sum(residuals, dy, *, power):
    return scale_backward(residuals, dy, power=power)[0], (dy * residuals[0]**power).mean()

scale = jaxcnn.Rule(scale_forward, scale_backward, "scale")
wrong = scale.replace(backward=backward_without_sum)
loss = jaxcnn.softmax_cross_entropy
layer = jaxcnn.Dense(3)
number = 3
"""


@pytest.fixture
def module(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "fails.py").write_text("1 / 0\n")
    return f"{tmp_path}/mine.py"


@pytest.mark.parametrize(
    "arguments",
    [
        [":scale", "--shapes", "2x3", "scalar", "--static", "power=3"],
        [":loss", "--shapes", "4x5", "4:5"],
        [":layer", "--shapes", "4x5"],
    ],
)
def test_a_right_rule_exits_0(module, arguments, capsys):
    assert cli.main(["verify", module + arguments[0], *arguments[1:]]) == 0
    assert ": correct\n" in capsys.readouterr().out


def test_a_wrong_rule_exits_1_and_is_named(module, capsys, tmp_path):
    call = ["verify", f"{module}:wrong", "--shapes", "2x3", "scalar", "--json", str(tmp_path / "r.json")]
    assert cli.main(call) == 1
    said = capsys.readouterr().out
    assert "scaled: ds equals the right gradient times 0.166667, that is 1/6" in said
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["failed"], result["results"][0]["findings"][0]["cause"]) == (1, "scaled")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.py"], "verify: got 'mine.py', required path/to/module.py:name"),
        (["no.py:scale"], "verify: no.py: no such file; required path/to/module.py:name"),
        (["{module}:nope"], "mine.py has no nope; rules and layers in it: scale, wrong, loss, layer"),
        (["{module}:number"], "verify: number of {module} is a int, required a jaxcnn.Rule or a Layer"),
        (["{folder}/fails.py:x"], "fails.py cannot be run: ZeroDivisionError: division by zero"),
        (["{module}:scale"], "--shapes: got none, required a shape for each array of scale"),
        (["{module}:scale", "--shapes", "2xx3"], "--shapes: got '2xx3', required sizes as 2x8x8x3"),
        (["{module}:scale", "--shapes", "3:0"], "--shapes: got '3:0', required"),
        (["{module}:scale", "--shapes", "3"], "scale: missing a required argument: 's'"),
        (["{module}:scale", "--shapes", "3", "3", "--static", "power"], "--static: got 'power', required name=value"),
        (["{module}:scale", "--shapes", "3", "3", "--static", "pwr=2"], "scale: got an unexpected keyword argument"),
        (["{module}:scale", "--full"], "--full: is for the library's own rules"),
        (["--shapes", "3"], "verify: --shapes and --static are for a rule of your own"),
        (["{module}:loss", "--shapes", "4x5", "3:5"], "softmax_cross_entropy: labels must be indices (4,)"),
    ],
)
def test_a_bad_call_exits_2_with_one_line(module, arguments, message, capsys, tmp_path):
    known = {"module": module, "folder": str(tmp_path)}
    assert cli.main(["verify", *(a.format(**known) for a in arguments)]) == 2
    said = capsys.readouterr()
    assert message.format(**known) in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_arrays_are_drawn_as_written():
    assert make_array("2x3", 0).dtype == np.float32
    indices = make_array("50:3", 0)
    assert set(indices.tolist()) == {0, 1, 2}
    assert (make_array("2x3", 0) != make_array("2x3", 1)).all()
    assert make_static("padding=((1, 0), (0, 1))") == ("padding", ((1, 0), (0, 1)))
    assert make_static("ties=split") == ("ties", "split")


def test_assert_rule_raises_with_the_report():
    x = np.linspace(-2, 2, 5)
    assert_rule(jaxcnn.sigmoid, x)
    assert_rule(jaxcnn.max_pool, np.zeros((4, 4)), ties="all")
    wrong = jaxcnn.sigmoid.replace(backward=lambda r, dy: (dy * r.y,))
    with pytest.raises(AssertionError, match=r"sigmoid: 1 finding\(s\)\n  unknown: dx differs from the right gradient"):
        assert_rule(wrong, x)
    with pytest.raises(TypeError, match="verify: takes a Rule or a Layer, got ufunc"):
        assert_rule(np.sin, x)
