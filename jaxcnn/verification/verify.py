"""verify: a hand-written backward pass against autodiff and finite differences, element by element."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule
from jaxcnn.verification.checks import Checks
from jaxcnn.verification.options import Options, refuse_bad_options
from jaxcnn.verification.report import Report
from jaxcnn.verification.rounding import coarsest
from jaxcnn.verification.subject import StructureError, Subject, subject_of
from jaxcnn.verification.trials import EPSILON, first_line

__all__ = ["Options", "verify"]


def verify(
    rule_or_layer: Rule | Layer,
    *arrays: Any,
    options: Options | None = None,
    key: jax.Array | None = None,
    train: bool | None = None,
    **static: Any,
) -> Report:
    """Compares a hand-written backward pass with autodiff's and with finite differences, for each argument.

    In float64, whatever the default precision:

    - "float64": equal to `jax.vjp` of the rule's reference (its plain forward where it has none), for random
      cotangents, one with a few huge and tiny entries, zero, a large one, and ones that look at a single element of the
      output; at the given values, at these rounded so that they tie and contain zeros, and at values with more digits
      than float32 keeps;
    - "differences": equal to finite differences of the forward pass, where these can be trusted; at a kink the gradient
      must lie between the one-sided differences;
    - "adjoint": ⟨J v, u⟩ = ⟨v, Jᵀ u⟩, with J v by `jax.jvp`;
    - "without jit", "second call", "vmap", and, on a declared batch axis, "other batch": half of it in another order;
    - "second order": the derivative of the backward pass equals that of autodiff's.

    Then in float32, bfloat16 and float16, at the given values and close to them: the largest error against the
    float64 gradient at the same rounded inputs may be at most four times that of autodiff's own gradient in that dtype,
    plus one unit in the last place of the largest element.

    Args:
      rule_or_layer: a `Rule`, or a `Layer`, whose parameters are then initialised here.
      arrays: the rule's arrays, or the layer's input x. Integer and key arrays have no gradient. Of an output that is a
        tree of arrays dy is the vector of all their elements.
      options: see `Options`.
      key: of a layer's initial parameters and of its randomness. train: the layer's mode, True when not given.
      static: the rule's static arguments, those called `key`, `train` or `options` (no `Options`) too.

    Returns:
      A `Report`: `.ok`, `.findings` (each with its cause in one word and the evidence in a sentence), and a table when
      printed. Whatever a faulty backward pass does, raising included, is a finding. What could not be checked at the
      given arrays is among its `gaps`.

    Raises:
      TypeError, ValueError: a bad call: what is no rule and no layer, arguments that the forward pass refuses or at
        which it gives no finite value.

    >>> import jaxcnn
    >>> wrong = jaxcnn.sigmoid.replace(backward=lambda residuals, dy: (-dy * residuals.y * (1 - residuals.y),))
    >>> verify(jaxcnn.sigmoid, jnp.linspace(-3, 3, 7)).ok
    True
    >>> verify(wrong, jnp.linspace(-3, 3, 7)).findings[0].message
    'dx equals the right gradient with its sign changed'
    """
    if options is not None and not isinstance(options, Options):
        if not isinstance(rule_or_layer, Rule) or "options" not in inspect.signature(rule_or_layer).parameters:
            raise TypeError(f"verify: options must be an Options, got {type(options).__name__}")
        static["options"], options = options, None
    options = Options() if options is None else options
    refuse_bad_options(options)
    x64 = jnp.result_type(float) == jnp.float64
    subject = subject_of(rule_or_layer, arrays, key, train, static)
    with jax.enable_x64(True), np.errstate(all="ignore"):  # NaN and infinity are told apart here, not by warnings
        gaps = _refuse_bad_call(subject)
        subject = subject._replace(reversible=_has_reverse_mode(subject))
        return Checks(subject._replace(epsilon=_epsilon(subject, gaps)), options, x64, gaps).report()


def _has_reverse_mode(subject: Subject) -> bool:
    """Whether autodiff can run the plain forward pass backward; ValueError where it has no forward mode either."""
    values = [jnp.asarray(a, np.float64) for a in subject.arrays]

    def run(passes, values):
        output, pullback = passes.by_autodiff(values)
        return pullback(jnp.ones_like(output))

    for reversible in (True, False):
        try:
            jax.eval_shape(partial(run, subject._replace(reversible=reversible)), values)
            return reversible
        except StructureError:  # no pair of output and residuals: found below
            return True
        except Exception as error:
            reason = error
    raise ValueError(
        f"verify: {subject.name}: autodiff cannot differentiate its forward pass ({first_line(reason)}); "
        "give the rule a reference that it can: Rule(forward, backward, reference=…)"
    )


def _epsilon(subject: Subject, gaps: list[str]) -> float:
    """What float64's is, or that of the dtype to which the forward pass narrows what it is given."""
    try:
        epsilon = coarsest(subject, [np.asarray(a, np.float64) for a in subject.arrays])
    except StructureError:
        return EPSILON
    if epsilon > EPSILON:
        gaps.append(f"the forward pass narrows float64: all is compared to a relative precision of {epsilon:.1e} alone")
    return epsilon


def _refuse_bad_call(subject: Subject) -> list[str]:
    """Runs the plain forward alone: what it raises is about the call. Returns what it leaves unchecked."""
    called = f"verify: {subject.name}"
    if not subject.arrays:
        raise TypeError(f"{called} got no floating-point array, so there is no gradient to verify")
    for name, array in zip(subject.arguments, subject.arrays, strict=True):
        if not array.size:
            raise ValueError(f"{called}: {name} must not be empty, got shape {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{called}: {name} must be real, got {array.dtype}")
        if not np.isfinite(array.astype(np.float64)).all():
            raise ValueError(f"{called}: {name} must be finite, got NaN or infinity")
    values = [jnp.asarray(a, np.float64) for a in subject.arrays]
    try:
        output = jax.eval_shape(subject.plain, values)
        value = np.asarray(subject.value(values)) if hasattr(output, "shape") else None
    except StructureError:  # no pair of output and residuals: the rule's fault, found below
        return []
    except Exception as error:
        said, kind = first_line(error), TypeError if isinstance(error, TypeError) else ValueError
        if type(error) in (TypeError, ValueError):  # a refusal in words
            raise kind(str(error) if subject.name in said.split(": ")[:2] else f"{called}: {said}") from None
        raise kind(f"{called}: its forward pass raises {type(error).__name__}: {said}") from error
    if value is None:
        raise TypeError(
            f"{called} must have a floating array, or a tree of these, as output, got {type(output).__name__}"
        )
    if not jnp.issubdtype(output.dtype, jnp.floating):
        raise TypeError(f"{called} must have a floating output, got {output.dtype}")
    bad = int((~np.isfinite(value)).sum())
    if bad == value.size:
        raise ValueError(f"{called} has no finite output at the given arrays; choose values that it is defined for")
    return [f"{bad} of {value.size} elements of the output are not finite at the given arrays"] if bad else []
