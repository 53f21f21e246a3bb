"""The table of cases: every rule and layer of the library, at every rank, at the places where such code goes wrong.

Each file holds the cases of one family: `short`, every rule and layer once at every rank; `more`, the rest.
"""

from __future__ import annotations

from jaxcnn.verification.cases import activation, layers, normalization, pooling, resize, source
from jaxcnn.verification.cases.case import Case

FAMILIES = (source, pooling, resize, normalization, activation, layers)


def short_cases() -> list[Case]:
    return [case for family in FAMILIES for case in family.short()]


def full_cases() -> list[Case]:
    return short_cases() + [case for family in FAMILIES for case in family.more()]
