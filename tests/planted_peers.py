"""What other gradient checkers find of a planted fault, each used as its documentation says.

A peer answers "found", "missed", or "n/a: " and the reason; one that also refuses the right rule with these arrays has
found nothing. All get float64, which torch asks for and which makes the others stricter.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads
from planted_base import Fault, functions

from jaxcnn import Layer

NO_TWIN = "n/a: it refuses the right rule too"


def _check_grads(fault: Fault, order: int) -> None:
    check_grads(*_as_called(fault), order=order, modes=["rev"])


def _chex(fault: Fault) -> None:
    import chex

    chex.assert_numerical_grads(*_as_called(fault), order=1, modes=["rev"])  # a custom_vjp has no forward mode


def _as_called(fault: Fault):
    """The function and its arrays; times 1, so that the backward pass is given a dy of jax, not check_grads' NumPy."""
    by_hand, _, values = functions(fault)
    return lambda *values: 1.0 * by_hand(*values), values


def _torch(fault: Fault) -> None:
    import torch

    forward, backward, values = _passes(fault)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            y, ctx.residuals = forward([jnp.asarray(t.numpy()) for t in tensors])
            return torch.tensor(np.asarray(y))

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, dy):
            cotangents = backward(ctx.residuals, jnp.asarray(dy.numpy()))
            return tuple(None if c is None else torch.tensor(np.asarray(c)) for c in cotangents)

    tensors = [torch.tensor(np.asarray(v), requires_grad=True) for v in values]
    large = sum(v.size for v in values) > 1000  # the whole Jacobian would take minutes
    torch.autograd.gradcheck(Function.apply, tensors, fast_mode=large)


def _passes(fault: Fault):
    """forward(values) -> (y, residuals) and backward(residuals, dy) -> cotangents, just as they were written."""
    _, _, values = functions(fault)
    if isinstance(fault.rule, Layer):
        key = jax.random.key(0)
        params, state, _ = fault.rule.init(key, fault.arrays[0].shape[1:])
        tree = jax.tree.structure((params, 0))

        def forward_layer(values):
            y, _, residuals = fault.rule.forward(*_spliced(tree, values, state), train=True, key=key)
            return y, residuals

        return forward_layer, lambda residuals, dy: jax.tree.leaves(fault.rule.backward(residuals, dy)), values

    arrays, static = fault.rule.bind(*fault.arrays, **fault.static)
    floats = [i for i, a in enumerate(arrays) if a is not None and jnp.issubdtype(a.dtype, jnp.inexact)]

    def forward(values):
        given = dict(zip(floats, values, strict=True))
        return fault.rule.forward(*(given.get(i, a) for i, a in enumerate(arrays)), **static)

    def backward(residuals, dy):
        cotangents = fault.rule.backward(residuals, dy, **static)
        return [cotangents[i] for i in floats] if len(cotangents) == len(arrays) else cotangents

    return forward, backward, values


def _spliced(tree, values, state):
    params, x = jax.tree.unflatten(tree, values)
    return params, state, x


def _refuses(check: Callable[[Fault], None], fault: Fault) -> bool:
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(fault)
        except Exception:  # a failed check, or the faulty backward pass itself
            return True
        return False


def _peer(check: Callable[[Fault], None], ask: Callable[[Fault], str | None] = lambda fault: None):
    @functools.cache
    def refuses_right(key):
        return _refuses(check, twins[key])

    twins: dict = {}

    def peer(fault: Fault) -> str:
        if reason := ask(fault):
            return f"n/a: {reason}"
        if not _refuses(check, fault):
            return "missed"
        twin = fault._replace(rule=fault.right)
        key = (id(fault.right), tuple(map(id, fault.arrays)), tuple(fault.static.items()))
        twins[key] = twin  # kept, so that its ids stay its own
        return NO_TWIN if refuses_right(key) else "found"

    return peer


def _for_torch(fault: Fault) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    return {
        "jit": "torch does not trace",
        "vmap": "NumPy has no vmap",
        "second order": "NumPy has no derivative",
    }.get(fault.why)


PEERS: dict[str, Callable[[Fault], str]] = {
    "check_grads": _peer(functools.partial(_check_grads, order=1)),
    "check_grads, order 2": _peer(functools.partial(_check_grads, order=2)),
    "chex": _peer(_chex),
    "torch gradcheck": _peer(_torch, _for_torch),
}
