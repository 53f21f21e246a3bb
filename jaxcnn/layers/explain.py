"""The backward pass of a network, step by step from the loss to the first layer: as text, and as a page."""

from __future__ import annotations

import functools
import html
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.layers.layer import Layer
from jaxcnn.layers.summary import Call, derivation_of, followed, title_of
from jaxcnn.rule import Rule
from jaxcnn.rules.loss import softmax_cross_entropy


class Array(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.name} {_times(self.shape)}"


class Step(NamedTuple):
    """The backward pass of one layer, or of the loss."""

    path: tuple[str, ...]  # the names of the layers around it and its own, as among the parameters
    rule: str  # whose backward pass it is
    given: tuple[Array, ...]  # dy; the loss is given 1
    gives: tuple[Array, ...]  # dx, and the gradients of the parameters
    saved: tuple[Array, ...]  # what the forward pass kept for it, its parameters left out
    derivation: str  # the comment above it; "" where there is none
    place: str  # file:line of it
    code: str

    @property
    def name(self) -> str:
        return "/".join(self.path[1:]) or self.path[0]


class Explanation(NamedTuple):
    network: str
    input_shape: tuple[int, ...]  # N included
    output_shape: tuple[int, ...]
    steps: tuple[Step, ...]  # in the order in which they run

    @property
    def heading(self) -> str:
        return f"The backward pass of {self.network}, {_times(self.input_shape)} → {_times(self.output_shape)}"

    def __str__(self) -> str:
        lines = [f"{self.heading}\n", *textwrap.wrap(_SYMBOLS, 110)]
        told: dict[str, str] = {}
        for number, step in enumerate(self.steps, 1):
            lines += ["", f"{number}. {step.name}" + (f" ({step.rule})" if step.rule != step.path[-1] else "")]
            for word, arrays in (("given", step.given), ("gives", step.gives), ("saved", step.saved)):
                lines.append(f"   {word}  {_listed(arrays)}")
            lines.append(f"   code   {step.place}")
            if step.derivation and step.derivation in told:
                lines.append(f"   as in {told[step.derivation]}")
            elif step.derivation:
                lines += ["", textwrap.indent(step.derivation, "   ")]
                told[step.derivation] = f"{number}. {step.name}"
        return "\n".join(lines)

    def html(self) -> str:
        """One page without scripts, and nothing that is elsewhere."""
        steps = "\n".join(_section(number, step) for number, step in enumerate(self.steps, 1))
        title = html.escape(self.heading)
        return _PAGE.substitute(title=title, symbols=html.escape(_SYMBOLS), steps=steps)


def explain(
    network: Layer, input_shape: Sequence[int], batch: int = 1, *, loss: Rule | None = softmax_cross_entropy
) -> Explanation:
    """The backward pass of a network, from the loss to its first layer; `print` shows it, `.html()` is a page of it.

    For each layer: what it is given and what it gives, what its forward pass saved for it, the derivation that its
    author wrote above it, in the symbols of the source, and where its code stands. Nothing is computed: shapes alone
    are followed. Layers that only hold others are left out, but for those that add the gradients of branches.

    Args:
      network: any layer. input_shape: without N. batch: N.
      loss: a rule of (outputs, N class indices), or None.

    Raises:
      ValueError, TypeError: as `jaxcnn.summary`.

    >>> from jaxcnn import Dense, ReLU, sequential
    >>> steps = explain(sequential(Dense(3), ReLU()), (5,), batch=2).steps
    >>> [step.path[-1] for step in steps]
    ['softmax_cross_entropy', 'relu', 'dense']
    >>> print(*steps[-1].gives, sep=", ")
    dx 2×5, dbias 3, dweights 5×3
    """
    return followed("explain", network, input_shape, batch, functools.partial(_explanation, loss))


def _explanation(loss: Rule | None, calls: list[Call]) -> Explanation:
    network = calls[0]
    steps = [] if loss is None else [_of_loss(loss, network.output)]
    parameters = {id(p) for p in jax.tree.leaves(network.params)}
    return Explanation(
        network.path[0], network.input.shape, network.output.shape, (*steps, *_of_calls(network, parameters))
    )


def _of_loss(loss: Rule, logits: Any) -> Step:
    labels = jnp.zeros(logits.shape[:1], jnp.int32)
    cost, residuals = loss.forward(logits, labels, **loss.static())
    gives = _array("dlogits", loss.backward(residuals, jnp.ones_like(cost), **loss.static())[0])
    saved = tuple(_array(name, leaf) for name, leaf in _named(residuals))
    given = (_array("dL/dL = 1", cost),)
    return Step((loss.name,), loss.name, given, (gives,), saved, derivation_of(loss.backward), *_code(loss.backward))


def _of_calls(call: Call, parameters: set[int]) -> list[Step]:
    """Of a layer that is made of layers theirs, last to first, and then its own, but where it is a mere chain."""
    steps = [step for inner in reversed(call.inner) for step in _of_calls(inner, parameters)]
    return steps if _is_chain(call) else [*steps, _of_layer(call, parameters)]


def _is_chain(call: Call) -> bool:
    """Whether each layer in it is given what the one before gives: then the dx of each is the dy of the one before."""
    passed = [call.input, *(inner.output for inner in call.inner)]
    taken = [*(inner.input for inner in call.inner), call.output]
    return bool(call.inner) and all(a is b for a, b in zip(passed, taken, strict=True))


def _of_layer(call: Call, parameters: set[int]) -> Step:
    held = {id(leaf) for inner in call.inner for leaf in jax.tree.leaves(inner.residuals)} | parameters
    saved = tuple(_array(name, leaf) for name, leaf in _named(call.residuals) if id(leaf) not in held)
    gradients = () if call.inner else tuple(_array(f"d{name}", leaf) for name, leaf in _named(call.params))
    return Step(
        call.path,
        title_of(call.layer),
        (_array("dy", call.output),),
        (_array("dx", call.input), *gradients),
        saved,
        derivation_of(call.backward),
        *_code(call.backward),
    )


def _named(tree: Any) -> list[tuple[str, Any]]:
    """Each array, by the last of its names: the field of the residuals, the key of the parameters."""
    leaves = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path[-1:], simple=True) if path else "", leaf) for path, leaf in leaves]


def _array(name: str, value: Any) -> Array:
    return Array(name, tuple(value.shape), str(value.dtype), math.prod(value.shape) * value.dtype.itemsize)


def _code(backward: Callable[..., Any]) -> tuple[str, str]:
    """(file:line, the code); of the package's own the file from its folder on."""
    function = inspect.unwrap(backward)
    try:
        lines, first = inspect.getsourcelines(function)
        path = Path(inspect.getsourcefile(function) or "")
    except (OSError, TypeError):
        return "no source at hand", ""
    package = Path(__file__).parents[1]
    if path.is_relative_to(package):
        path = path.relative_to(package.parent)
    return f"{path}:{first}", textwrap.dedent("".join(lines))


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "a number"


def _listed(arrays: Sequence[Array]) -> str:
    return ", ".join(map(str, arrays)) or "nothing"


# --- the page -------------------------------------------------------------------------------------------------------

_SYMBOLS = (
    "dy is the gradient of the loss by a layer's output, dx that by its input: the dy of the next step. In the "
    "source's symbols a layer l has the input a^(l-1), the output z^l or a^l, and g^l = da^l/dz^l; dy is dL/da^l, dx "
    "is dL/da^(l-1). The steps run from the last layer to the first."
)

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; }
section { border-top: 1px solid #8886; padding: 0.5rem 0 1rem; }
h1 { font-size: 1.4rem; }
h2 { font-size: 1.1rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: 0; }
dt { color: #888; }
dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #8882; padding: 0.75rem; font-size: 0.85rem; line-height: 1.4; }
@media (max-width: 40rem) { pre.formula { white-space: pre-wrap; } }
summary { cursor: pointer; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p>$symbols</p>
$steps
</body>
</html>
""")


def _section(number: int, step: Step) -> str:
    rows = {"given": _listed(step.given), "gives": _listed(step.gives), "saved": _listed(step.saved)}
    if size := sum(array.bytes for array in step.saved):
        rows["saved"] += f" ({size:,} bytes)"
    terms = "".join(f"<dt>{word}</dt><dd>{html.escape(text)}</dd>" for word, text in rows.items())
    formula = f'<pre class="formula">{html.escape(step.derivation)}</pre>' if step.derivation else ""
    code = ""
    if step.code:
        code = f"<details><summary>{html.escape(step.place)}</summary><pre>{html.escape(step.code)}</pre></details>"
    name = html.escape(step.name + (f" ({step.rule})" if step.rule != step.path[-1] else ""))
    return f"<section>\n<h2>{number}. {name}</h2>\n<dl>{terms}</dl>\n{formula}\n{code}\n</section>"
