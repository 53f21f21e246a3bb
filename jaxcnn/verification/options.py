"""What `verify` does and leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxcnn.rules.window import is_whole
from jaxcnn.verification.comparisons import DTYPES


class Options(NamedTuple):
    """What `verify` does; what is left out is said in the report.

    cotangents: how many random ones. One alone misses a fault it happens to be orthogonal to.
    dtypes: in which the precision is measured, after float64.
    seed: of the cotangents and of the elements that finite differences look at.
    finite_differences: leave them out for a rule whose intended gradient is not its forward's (gradient reversal, a
      straight-through estimate), which declares it by `reference`.
    transforms: leave out eager calls, vmap and other batches. second_order: leave out the derivative of the backward.
    """

    cotangents: int = 3
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    seed: int = 0
    finite_differences: bool = True
    transforms: bool = True
    second_order: bool = True


def refuse_bad_options(options: Options) -> None:
    """Raises TypeError or ValueError for what no check can be made with."""
    for name, least in (("cotangents", 1), ("seed", 0)):
        value = getattr(options, name)
        if not is_whole(value) or value < least:
            raise ValueError(f"verify: options.{name} must be a whole number, at least {least}, got {value!r}")
    if isinstance(options.dtypes, str) or not isinstance(options.dtypes, Sequence):
        raise TypeError(f"verify: options.dtypes must be a tuple of names, got {options.dtypes!r}")
    for dtype in options.dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"verify: options.dtypes must be of {', '.join(DTYPES)}, got {dtype!r}")
