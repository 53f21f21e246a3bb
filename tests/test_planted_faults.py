"""The catalogue of planted faults is what it says: every fault is wrong, and nothing is missing from it."""

from collections import Counter

import numpy as np
import pytest
from planted_faults import CAUSES, FAMILIES, FAULTS, cause_given, family, really_wrong

import jaxcnn

NAMES = [f"{family(f)}: {f.name}" for f in FAULTS]


@pytest.mark.long
@pytest.mark.parametrize("fault", FAULTS, ids=NAMES)
def test_each_fault_is_wrong_and_its_right_twin_is_right(fault):
    assert really_wrong(fault)
    assert not really_wrong(fault._replace(rule=fault.right))
    # What another proof than autodiff is needed for, autodiff does not show.
    if fault.why not in ("autodiff", "second call"):
        assert not really_wrong(fault._replace(why="autodiff"))


# Found, but given another cause than the wanted one. A test fails when the verifier names one that is on this list.
MISNAMED = {
    "avg_pool: one place of the window left out",
    "avg_pool: the rest that no window sees",
    "adaptive_avg_pool: divided by the longest window",
    "space_to_depth: blocks in column-major order",
    "space_to_depth: axes not exchanged",
    "depth_to_space: axes not exchanged",
    "upsample_bilinear: half pixel added",
    "upsample_bilinear: weights in float16",
    "batch_norm: dscale: unbiased variance",
    "batch_norm: mean saved in bfloat16",
    "dropout: a fresh mask",
    "dropout: no mask, but the factor",
    "dropout: kept with probability rate",
    "dropout: mask transposed",
    "dropout: one row drawn for all samples",
    "dropout: whole samples for whole channels",
    "dropout: same channels in all samples",
    "sigmoid: by a difference",
    "flatten: rows from the end",
    "layer: concatenate: channels dealt out one by one",
}


def one_of_each():
    """The first fault of each family and of each cause that has one right name; those that are misnamed left aside."""
    chosen = {}
    for number, fault in enumerate(FAULTS):
        if NAMES[number] in MISNAMED:
            continue
        if not family(fault).startswith("own: "):
            chosen.setdefault(("family", family(fault)), number)
        if len(fault.causes) == 1:
            chosen.setdefault(("cause", *fault.causes), number)
    return sorted(set(chosen.values()))


SAMPLE = one_of_each()


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.long, id=NAMES[n]) for n in range(len(FAULTS))],
)
def test_verify_finds_and_names_it(number):
    """The whole table: `python tests/planted_faults.py`."""
    given = cause_given(FAULTS[number])
    assert given != "missed"
    assert (given in FAULTS[number].causes) == (NAMES[number] not in MISNAMED), given


@pytest.mark.long
def test_verify_finds_nothing_wrong_with_the_right_twins():
    for fault in {(id(f.right), str(f.static)): f for f in FAULTS}.values():
        # What a gradient reversal passes back is not its forward pass's derivative, and its reference says so.
        options = jaxcnn.Options(finite_differences=fault.right.name != "gradient_reversal")
        report = jaxcnn.verify(fault.right, *fault.arrays, options=options, **fault.static)
        assert report.ok, f"{fault.name}: {report}"


def test_the_catalogue_is_complete():
    assert len(FAULTS) >= 954  # so that none is lost; raise it with those that come
    assert [n for n, count in Counter(NAMES).items() if count > 1] == []
    of_family = Counter(map(family, FAULTS))
    assert {name: of_family[name] for name in FAMILIES if of_family[name] < 3} == {}
    assert set(of_family) == {*FAMILIES, *(name for name in of_family if name.startswith("own: "))}
    assert sum(n for name, n in of_family.items() if name.startswith("own: ")) >= 12
    assert set(NAMES) >= MISNAMED
    of_cause = Counter(f.causes[0] for f in FAULTS if len(f.causes) == 1)
    assert all(of_cause[cause] >= 3 for cause in CAUSES), of_cause
    assert all(set(f.causes) <= set(CAUSES) for f in FAULTS)
    assert [f.name for f in FAULTS if len(f.causes) > 1 and not f.note] == []


def test_the_arrays_are_small_and_exact_in_float32():
    for fault in FAULTS:
        for array in fault.arrays:
            assert array.size <= 4096
            assert (array == array.astype(np.float32)).all(), fault.name
