"""The rules under jax's transformations; the table of both, and its command: transformations.py."""

import json
import sys

import jax
import pytest
import transformations
from conftest import CASES, Case
from transformations import ALL, SHARDED, applies, failures

import jaxcnn
from jaxcnn import Rule

# One of each kind: batching of all and of some arrays, loops and recomputation, a derivative of the backward pass, the
# samples divided among devices.
TELLING = (
    "vmap", "vmap of the weights alone", "jit of scan of checkpoint", "jvp of grad", *SHARDED,
)  # fmt: skip
# Of each family, and of each kind of arrays: weights and none, integers and a key, a scalar output, many outputs.
REPRESENTATIVES = (
    "conv2d", "max_pool first", "sigmoid", "flatten", "dense", "cross-entropy of indices", "reflect_pad", "rms_norm",
    "dropout",
)  # fmt: skip
REST = tuple(name for name in ALL if name not in TELLING)


@pytest.mark.parametrize("case", CASES)
def test_every_rule_under_the_most_telling_transformations(case):
    assert failures(CASES[case], TELLING) == {}


@pytest.mark.parametrize("case", REPRESENTATIVES)
def test_rules_of_each_family_under_the_rest(case):
    assert failures(CASES[case], REST) == {}


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in CASES if case not in REPRESENTATIVES])
def test_every_rule_under_the_rest(case):
    assert failures(CASES[case], REST) == {}


def test_every_public_rule_has_a_case():
    public = {name for name, value in vars(jaxcnn).items() if isinstance(value, Rule)}
    assert public == {case.rule.name for case in CASES.values()}


# The table can fail: wrong rules, and the transformations that show it.


def slightly_more(residuals, dy):
    return tuple((1 + 1e-11) * gradient for gradient in jaxcnn.dense.backward(residuals, dy))


def without_second_derivative(residuals, dy):
    return jaxcnn.sigmoid.backward(jax.lax.stop_gradient(residuals), dy)


def branching(residuals, dy):
    return jaxcnn.sigmoid.backward(residuals, dy if dy.sum() > 0 else 1 * dy)


def centred(x):
    return x - x.mean(0), ()


def centred_backward(residuals, dy):
    return (dy - dy.mean(0),)


def remembering():
    """What the backward pass needs is kept beside the residuals."""
    kept = {}

    def forward(x):
        kept["x"] = x
        return x**2, ()

    return Rule(forward, lambda residuals, dy: (2 * kept["x"] * dy,), "remembering", batch_axes=(0,))


COMPILED = {name for name in ALL if name != "eager"}
SECOND = {"grad", "vmap of grad", "jvp of grad", "jacrev", "hessian"}
ELEMENTS = ((4, 3),)
WRONG = {
    "by 1e-11": (
        Case(jaxcnn.dense.replace(backward=slightly_more), ((4, 3), (3, 5), (5,))), set(ALL), "Not equal to tolerance",
    ),
    "no second derivative": (
        Case(jaxcnn.sigmoid.replace(backward=without_second_derivative), ELEMENTS), SECOND, "Not equal to tolerance",
    ),
    "a branch on values": (
        Case(jaxcnn.sigmoid.replace(backward=branching), ELEMENTS), COMPILED, "TracerBoolConversionError: Attempted",
    ),
    "samples that depend on each other": (
        Case(Rule(centred, centred_backward, batch_axes=(0,)), ELEMENTS), set(SHARDED), "Not equal to tolerance",
    ),
    "what is kept beside the residuals": (
        Case(remembering(), ELEMENTS), COMPILED - {"jvp", "linearize", "shard_map of the gradient"}, "Tracer",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "shown", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_seen(case, shown, says):
    wrong = failures(case)
    assert set(wrong) == {name for name in shown if applies(case, name)}
    assert all(says in text for text in wrong.values())


def test_the_command_prints_the_whole_table(monkeypatch, capsys, tmp_path):
    cases = {"right": CASES["sigmoid"], "wrong": WRONG["a branch on values"][0]}
    monkeypatch.setattr(transformations, "CASES", cases)
    monkeypatch.setattr(sys, "argv", ["transformations.py", "--json", str(tmp_path / "table.json")])
    assert transformations.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["right", "ok", "ok", "ok", "ok", "-", *["ok"] * 14], ["wrong", "ok", "NOT", "NOT", "NOT", "-", *["NOT"] * 14],
    ]  # fmt: skip
    assert [line.split(maxsplit=1)[1] for line in lines[3:22]] == list(ALL)
    assert lines[22].startswith("wrong, jit: TracerBoolConversionError: Attempted boolean conversion")
    assert lines[-1] == "36 pairs of 2 cases and 19 transformations, 17 not right"
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["right"] == {name: None if name == "vmap of the weights alone" else "ok" for name in ALL}
    assert table["wrong"]["eager"] == "ok" != table["wrong"]["jit"]
