"""Right backward passes in random configurations: the verifier may not find anything wrong with them."""

import jax
import pytest
from random_configurations import EVERYWHERE, FAMILIES, draw

import jaxcnn

COUNT, IN_EVERY_RUN = 1000, 12


def accept(number):
    drawn = draw(number)
    report = jaxcnn.verify(drawn.subject, *drawn.arrays, **drawn.static)
    if number % 20 == 19:  # the programs of hundreds of configurations fill gigabytes
        jax.clear_caches()
    assert report.ok, f"{drawn.said}\n{report}"


@pytest.mark.parametrize("number", range(IN_EVERY_RUN))
def test_no_false_alarm(number):
    accept(number)


@pytest.mark.long
@pytest.mark.parametrize("number", range(IN_EVERY_RUN, COUNT))
def test_no_false_alarm_in_a_thousand(number):
    accept(number)


def test_there_are_a_thousand_different_ones_of_every_kind():
    drawn = [draw(number) for number in range(COUNT)]
    assert len({(d.said.split(":", 1)[1], *(a.tobytes() for a in d.arrays)) for d in drawn}) == COUNT
    for what in (*EVERYWHERE, "float64", "float32", "bfloat16", "float16"):
        assert sum(f", {what}" in d.said for d in drawn) > 50, what
    images = [d.arrays[0].shape for d in drawn if d.arrays[0].ndim == 4]
    assert sum(1 in shape[1:3] for shape in images) > 20  # one row or column
    assert sum(shape[0] == 1 for shape in images) > 20
    assert sum(shape[3] == 1 for shape in images) > 20
    assert all(sum(d.family == family for d in drawn) > 30 for family in FAMILIES)
