"""Which dtype parameters are kept in, and which one is computed in."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.layers.layer import Layer, require_layers
from jaxcnn.rule import Static


class DtypesResiduals(NamedTuple):
    saved: Any  # the layer's own
    given: Static  # the dtype of each leaf of (params, x): those of (dparams, dx)
    computed: Static  # the dtype of the layer's output: its dy's


def with_dtypes(layer: Layer, *, parameters: Any = None, computation: Any = None, output: Any = None) -> Layer:
    """The layer, or network, with its parameters kept in one dtype and its passes computed in another.

    By default computation follows the parameters: each layer that has any casts its x to their dtype. The two together
    are mixed precision: with parameters="float32", computation="bfloat16" the passes run in bfloat16, and what the
    optimizer adds up, parameters and gradients, is float32. Statistics of normalisation are computed and kept in
    float32 at least, whatever the dtype.

    Args:
      parameters: the floating dtype that `init` gives the parameters; as the layer makes them when None.
      computation: the floating dtype that the parameters and x are cast to, and their gradients back from; none is cast
        when None.
      output: the floating dtype of the output, "float32" for a loss in float32; the computation's when None.

    Raises:
      TypeError: something that is no Layer, a dtype that is not floating. ValueError, when run: float64 where jax has
      it switched off.

    Source: Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.1.

    >>> from jaxcnn import Dense
    >>> layer = with_dtypes(Dense(3), parameters="float32", computation="bfloat16")
    >>> params, state, _ = layer.init(jax.random.key(0), (5,))
    >>> y, state, residuals = layer.forward(params, state, jnp.ones((2, 5)))
    >>> y.dtype, *(leaf.dtype for leaf in jax.tree.leaves(layer.backward(residuals, y)))
    (dtype(bfloat16), dtype('float32'), dtype('float32'), dtype('float32'))
    """
    require_layers("with_dtypes", [layer])
    parameters, computation, output = (
        None if dtype is None else _floating(argument, dtype)
        for argument, dtype in (("parameters", parameters), ("computation", computation), ("output", output))
    )

    def init(key, input_shape):
        params, state, output_shape = layer.init(key, input_shape)
        return _cast(params, parameters), state, output_shape

    def forward(params, state, x, *, train=False, key=None):
        given = Static(tuple(leaf.dtype for leaf in jax.tree.leaves((params, x))))
        params, x = _cast((params, x), computation)
        y, new_state, saved = layer.forward(params, state, x, train=train, key=key)
        return _cast(y, output), new_state, DtypesResiduals(saved, given, Static(y.dtype))

    # A cast rounds, which is taken for the identity, its error for noise: of the rounding itself, a staircase, the
    # derivative would be 0. So each cast before the layer is one after its backward pass, back: dw and dx, computed in
    # the one dtype, are cast to those of w and x; and the one behind the layer comes first, dy in y's own dtype.
    def backward(residuals, dy):
        leaves, structure = jax.tree.flatten(layer.backward(residuals.saved, dy.astype(residuals.computed.value)))
        back = [leaf.astype(dtype) for leaf, dtype in zip(leaves, residuals.given.value, strict=True)]
        return jax.tree.unflatten(structure, back)

    def reference(params, state, x, *, train=False, key=None):
        params, x = _cast((params, x), computation)
        y, new_state = layer.plain(params, state, x, train=train, key=key)
        return _cast(y, output), new_state

    rebuild = functools.partial(with_dtypes, parameters=parameters, computation=computation, output=output)
    return Layer(layer.name, init, forward, backward, layers=(layer,), reference=reference, rebuild=rebuild)


def _cast(tree: Any, dtype: Any) -> Any:
    """The floats among the leaves in that dtype; as they are when None."""
    if dtype is None:
        return tree
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"with_dtypes: {dtype} is switched off in jax; jax.enable_x64(True) switches it on")
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def _floating(argument: str, dtype: Any) -> Any:
    try:
        named = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"with_dtypes: {argument} must be a floating dtype, got {dtype!r}") from None
    if not jnp.issubdtype(named, jnp.floating):
        raise TypeError(f"with_dtypes: {argument} must be a floating dtype, got {named}")
    return named
