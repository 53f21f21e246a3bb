"""The experiment on the verifier's power: its sample, its counts, and the faults that it makes smaller and smaller."""

from __future__ import annotations

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiment_folder import FOLDER, README, experiment, imported
from planted_faults import FAULTS, Row
from planted_peers import NO_TWIN

import jaxcnn


@pytest.fixture(scope="module")
def run():
    with imported("verifier_power"):
        yield experiment("verifier_power")


def test_quick_runs(run, tmp_path):
    assert run.main(["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == "python experiments/verifier_power/run.py --quick"
    assert (tmp_path / "verifier_power.png").stat().st_size > 10_000
    assert record["found"]["all"]["jaxcnn.verify"] == {"found": 2, "missed": 0, "n/a": 0}
    assert record["right_rules"]["jaxcnn.verify"]["refused"] == []
    (place,) = record["power"]
    assert place["jaxcnn.verify"] == ["found", "found"]  # of 1e-2 and 1e-8
    assert place["check_grads"] == ["found", "missed"]


# --- the sample -----------------------------------------------------------------------------------------------------


def test_every_fault_is_of_one_kind(run):
    assert sorted(id(f) for kind in run.KINDS for f in run.of_kind(kind)) == sorted(map(id, FAULTS))
    assert all(len(faults) >= 2 for faults in run.sample(run.EVERY).values())
    assert run.sample(20)["pooling"] == run.of_kind("pooling")[::20]


def test_right_rules_are_asked_once_and_no_reversal(run):
    faults = run.of_kind("users' small rules")
    right = run.right_ones(faults)
    assert "gradient_reversal" in {f.right.name for f in faults}
    assert {f.rule.name for f in right} == {f.right.name for f in faults} - {"gradient_reversal"}
    assert len({(id(f.rule), str(f.static)) for f in right}) == len(right)
    assert all(f.rule is f.right for f in right)


# --- counting -------------------------------------------------------------------------------------------------------


def row(run, given, *peers):
    """Of a fault whose cause is "scaled"."""
    fault = next(f for f in FAULTS if f.causes == ("scaled",))
    return Row(fault, given, 1.0, dict(zip(run.PEERS, peers, strict=True)))


def test_found_missed_and_not_asked(run):
    asked = [
        row(run, "scaled", "found", "missed", NO_TWIN, "n/a: torch does not trace"),
        row(run, "negated", "found", "found", "missed", "n/a: torch is not installed"),
        row(run, "missed", "found", NO_TWIN, "missed", "found"),
    ]
    found = run.found_by(asked)
    assert (found["faults"], found["named right"]) == (3, 1)
    each = [tuple(found[checker].values()) for checker in run.CHECKERS]
    assert each == [(2, 1, 0), (3, 0, 0), (1, 1, 1), (0, 2, 1), (1, 0, 2)]


TORCH = "n/a: torch is not installed"


def test_a_false_alarm_is_a_right_rule_refused(run):
    """Torch is not asked."""
    right = [
        row(run, "missed", "missed", NO_TWIN, "missed", TORCH),
        row(run, "kink", "missed", NO_TWIN, NO_TWIN, TORCH),
        row(run, "missed", "missed", NO_TWIN, "missed", TORCH),
    ]
    given = run.alarms(right)
    assert [(one["asked"], len(one["refused"])) for one in given.values()] == [(3, 1), (3, 0), (3, 3), (3, 1), (0, 0)]


def test_time_is_taken_of_right_rules_that_all_accept(run, monkeypatch):
    """Of five that all do the first and the last; of torch none, where it is not installed."""
    right = [
        row(run, "missed", "missed", NO_TWIN, "missed", TORCH),
        row(run, "kink", "missed", "missed", "missed", TORCH),
        *(row(run, "missed", "missed", "missed", "missed", TORCH) for _ in range(5)),
    ]
    right = [one._replace(fault=one.fault._replace(name=str(i))) for i, one in enumerate(right)]
    monkeypatch.setattr(run, "_seconds", lambda ask, fault: float(fault.name))
    assert list(run.seconds_of(right).values()) == [4.0, 4.0, 4.0, 4.0, None]


def test_the_smallest_is_the_last_before_a_miss(run):
    sizes = (1.0, 0.1, 0.01, 0.001)
    cases = {"found found missed found": 0.1, "found found found found": 0.001, "missed found found found": None}
    assert {said: run.smallest(said.split(), sizes) for said in cases} == cases


# --- faults of a size -----------------------------------------------------------------------------------------------


def test_a_fault_is_of_its_size_and_in_its_place(run):
    for place in run.places():
        fault, right = place.fault(0.25), place.rule
        with jax.enable_x64(True):
            arrays = [jnp.asarray(array) for array in place.arrays]
            dy = jnp.asarray(np.random.default_rng(0).standard_normal(right(*arrays).shape))
            wrong, expected = (map(np.asarray, jax.vjp(rule, *arrays)[1](dy)) for rule in (fault.rule, right))
        number = list(inspect.signature(right.forward).parameters).index(place.argument)
        for i, (got, wanted) in enumerate(zip(wrong, expected, strict=True)):
            factor = np.where(wanted != 0, got / np.where(wanted != 0, wanted, 1), 1).ravel()
            off = np.flatnonzero(np.abs(factor - 1) > 1e-12)
            assert len(off) == (0 if i != number else 1 if place.one else wanted.size), place.name
            np.testing.assert_allclose(factor[off], 1.25)


def test_the_one_element_that_is_wrong_is_the_same(run):
    ones = [place.arrays[0] for place in run.places() if place.one]
    assert [x.size for x in ones] == [16, 256, 4096]
    assert {x[x.size // 2] for x in ones} == {0.5}


# --- the result -----------------------------------------------------------------------------------------------------


def test_the_whole_run_says_what_was_found(run):
    record = json.loads((FOLDER / "verifier_power" / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == "python experiments/verifier_power/run.py"
    chosen = run.sample(run.EVERY)
    assert [f["fault"] for f in record["faults"]] == [f.name for faults in chosen.values() for f in faults]
    assert (record["catalogue"], record["every"], record["sizes"]) == (len(FAULTS), run.EVERY, list(run.SIZES))
    assert [one["place"] for one in record["power"]] == [place.name for place in run.places()]
    assert (FOLDER / "verifier_power" / "verifier_power.png").stat().st_size > 10_000
    line = next(line for line in README.splitlines() if line.startswith("| [verifier_power]"))
    for part in (f"`{record['command']}`", "verifier_power/result.json", "verifier_power/verifier_power.png"):
        assert part in line
    for table in (run.found_table, run.checkers_table, run.power_table):
        assert f"\n{table(record)}\n" in README


def test_the_verifier_says_so_still(run):
    """Of two of the record's faults, and of the size next to which it ceases to find one."""
    record = json.loads((FOLDER / "verifier_power" / "result.json").read_text(encoding="utf-8"))
    for kind in run.QUICK:
        fault = run.sample(run.EVERY)[kind][0]
        entry = next(f for f in record["faults"] if f["fault"] == fault.name)
        report = jaxcnn.verify(fault.rule, *fault.arrays, **fault.static)
        assert report.findings[0].cause == entry["given"]
    (place,) = (p for p in run.places() if p.name.endswith("1 of 16"))
    least = next(one for one in record["power"] if one["place"] == place.name)["smallest"]["jaxcnn.verify"]
    for size, ok in ((least, False), (least / 10, True)):
        fault = place.fault(size)
        assert jaxcnn.verify(fault.rule, *fault.arrays).ok == ok
