"""Rules inside modules of Flax NNX and Equinox, trained by their own means: the README's snippets, as printed.

The snippets call `jaxcnn.conv2d` by its name, so that a test can exchange it.
"""

import re
from pathlib import Path

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import FLOAT32, assert_close
from flax import nnx

import jaxcnn

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README.split("\n## Inside Flax and Equinox\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def snippets():
    """What the names of each snippet are after it has run, by library."""
    names, after = {"jax": jax, "jnp": jnp, "jaxcnn": jaxcnn, "optax": optax}, {}
    for code in re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL):
        exec(compile(code, "README.md", "exec"), names)
        after["flax" if "nnx" in code else "equinox"] = dict(names)
    return after


GRADIENTS = {
    "flax": lambda loss, *arguments: nnx.to_pure_dict(nnx.state(nnx.grad(loss)(*arguments))),
    "equinox": lambda loss, *arguments: vars(equinox.filter_grad(loss)(*arguments)),
}


@pytest.mark.parametrize("library", GRADIENTS)
def test_the_loss_falls(library, snippets):
    losses = np.asarray(snippets[library]["losses"])
    assert losses.shape == (20,)
    assert losses[-1] < losses[0] / 3
    assert abs(losses[0] - np.log(10)) < 1.5  # at first it knows nothing of ten classes


def tripled(rule):
    """The rule with a wrong backward pass."""
    return rule.replace(backward=lambda r, dy, **static: tuple(3 * d for d in rule.backward(r, dy, **static)))


@pytest.mark.parametrize("rule", ["conv2d", "max_pool"])
@pytest.mark.parametrize("library", GRADIENTS)
def test_the_backward_pass_that_runs_is_the_hand_written_one(library, rule, snippets, monkeypatch):
    """With three times it in a wrong one, the gradients of filters and bias are three times as large, no others are."""
    names = snippets[library]
    arguments = [names[name] for name in ("loss", "model", "images", "labels")]
    right = GRADIENTS[library](*arguments)
    monkeypatch.setattr(jaxcnn, rule, tripled(getattr(jaxcnn, rule)))
    wrong = GRADIENTS[library](*arguments)
    assert set(right) == {"filters", "bias", "head"}
    for name, gradient in right.items():
        assert_close(jax.tree.map(lambda g, n=name: g if n == "head" else 3 * g, gradient), wrong[name], FLOAT32)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(right))
