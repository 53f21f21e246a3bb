"""`jaxcnn bench`: the contestants do the same work, who does other work is refused, and the figures are right."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcnn import cli
from jaxcnn.benchmark import by_jax, run, worker
from jaxcnn.benchmark.contestant import REFERENCE, STEPS_A_SCAN, Contestant, contestants
from jaxcnn.benchmark.problem import BATCHES, NETWORKS, Network, make_problem, operations, weights
from jaxcnn.benchmark.result import TOLERANCE, Result, Row, Settings, as_json, difference

ROOT = Path(__file__).parents[1]
TINY = Network("source", (8, 8, 1), (64,), scan=True)
BATCH = 4
FAULTS = ("another network", "another rate", "an exception", "an exception later", "the end of the process", "NaN")

# One run of everybody, in their own processes, with some who must not get in.


@pytest.fixture(scope="module")
def events():
    there = [one for one in contestants(2) if one.library != "torch"]
    faulty = [Contestant(fault, "jax", "benchmark_contestants", 1, {"fault": fault}) for fault in FAULTS]
    missing = Contestant("missing", "no_such_package", "benchmark_contestants")
    return list(run.run(Settings((TINY,), (BATCH,), (*there, *faulty, missing), rounds=2, seconds=0.001, seed=0)))


@pytest.fixture(scope="module")
def rows(events):
    (result,) = (event for event in events if isinstance(event, Result))
    return {row.contestant: row for row in result.rows}


def test_whoever_does_the_same_work_is_timed(rows):
    timed = {name for name, row in rows.items() if row.refused is None}
    assert timed == {
        REFERENCE, "jax, 2 devices", f"{REFERENCE}, scan", "jax, 2 devices, scan", "flax", "equinox",
        "jaxcnn", "jaxcnn, scan",
    }  # fmt: skip
    for name in timed:
        row = rows[name]
        assert len(row.seconds) == 2, name
        assert 0 < min(row.seconds) <= row.median <= max(row.seconds) < 1
        assert row.first_call > row.median, name  # it compiles
        assert row.temporaries > 0
        assert row.steps % (STEPS_A_SCAN if row.scan else 1) == 0
        assert row.difference < TOLERANCE
        assert len(set(row.losses)) == 3


REFUSED = {
    "another network": "another network: the first losses are ",
    "another rate": "another network: the first losses are ",
    "NaN": "another network: the first losses are nan, nan, nan; the reference's ",
    "an exception": "ValueError: no such kernel",
    "an exception later": "RuntimeError: out of memory",
    "the end of the process": "the process ended with exit code 7",
    "missing": "no_such_package is not installed",
}


def test_whoever_does_not_is_refused(rows):
    assert {name for name, row in rows.items() if row.refused is not None} == set(REFUSED)
    for name, says in REFUSED.items():
        assert rows[name].refused.startswith(says)
        assert rows[name].seconds == ()


def test_another_rate_shows_in_the_later_losses_alone(rows):
    reference, losses = rows[REFERENCE].losses, rows["another rate"].losses
    assert losses[0] == pytest.approx(reference[0], rel=1e-6)
    assert abs(losses[1] / reference[1] - 1) > 5 * TOLERANCE


def test_contestants_take_turns(events):
    said = [event.what for event in events if isinstance(event, run.Turn)]
    rounds = [what.split(": round ") for what in said if ": round " in what]
    first, second = ([name for name, number in rounds if number == f"{i} of 2"] for i in (1, 2))
    assert rounds == [[name, f"{i} of 2"] for i, names in ((1, first), (2, second)) for name in names]
    assert first[:2] == ["matrix product", REFERENCE]
    assert second == [name for name in first if name != "an exception later"]
    assert said[: len(said) - len(rounds)] == [f"{name}: first steps" for name in first[:1] + NAMES]


NAMES = [one.name for one in contestants(2) if one.library != "torch"] + list(FAULTS)


def test_the_reference_comes_first():
    settings = Settings((TINY,), (BATCH,), tuple(contestants(2)[1:]), 1, 0.1, 0)
    with pytest.raises(ValueError, match="run: the first contestant must be 'jax, 1 device', got "):
        next(run.run(settings))


def test_a_reference_that_fails_ends_the_run():
    bad = Contestant(REFERENCE, "jax", "benchmark_contestants", 1, {"fault": "an exception"})
    with pytest.raises(RuntimeError, match="benchmark: jax, 1 device: ValueError: no such kernel"):
        list(run.run(Settings((TINY,), (BATCH,), (bad,), 1, 0.001, 0)))


# The networks, in this process.


@pytest.mark.parametrize("library", ["jaxcnn", "flax", "equinox", "torch"])
@pytest.mark.parametrize("network", [Network("two_conv", (12, 8, 3), (32, 64)), Network("resnet20", (8, 12, 3))])
def test_first_losses_are_those_of_plain_jax(network, library):
    """On images that are not square, so that no library exchanges height and width."""
    if library == "torch":
        pytest.importorskip("torch")
    problem = make_problem(network, 16, seed=1)
    wanted = [float(loss) for loss in by_jax.prepare(problem, 1).run(3)]
    for one in contestants(2):
        if one.library == library and not one.scan and "compiled" not in one.options:
            got = [float(np.asarray(loss)) for loss in one.prepare(problem).run(3)]
            assert difference(tuple(got), tuple(wanted)) < 10 * TOLERANCE, one.name  # few images: rounding errors grow


def test_a_shape_that_does_not_fit_is_refused():
    problem = make_problem(TINY, 4, seed=0)
    problem = problem._replace(parameters=[problem.parameters[0][..., :32], *problem.parameters[1:]])
    for library in ("jaxcnn", "flax", "equinox"):
        (one,) = (c for c in contestants(1) if c.library == library and not c.scan)
        with pytest.raises(ValueError, match="shape"):
            one.prepare(problem)


def test_the_problem_is_a_function_of_the_seed():
    one, same, other = (make_problem(NETWORKS[0], 8, seed) for seed in (0, 0, 1))
    assert one.images.shape == (BATCHES, 8, 28, 28, 1)
    assert one.labels.shape == (BATCHES, 8)
    assert {p.dtype for p in (*one.parameters, one.images)} == {np.dtype("f4")}
    for a, b, c in zip(*(jax.tree.leaves(p._replace(network=())) for p in (one, same, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: f"{n.model}-{n.input_shape[0]}")
def test_operations_are_those_of_the_program(network):
    """Those of a step counted by formula, against the matrix products and convolutions in the traced forward pass."""
    problem = make_problem(network, 2, seed=0)
    given = (problem.parameters, by_jax.first_statistics(problem), problem.images[0])
    program = jax.make_jaxpr(by_jax.forward(network))(*given)
    products = [
        math.prod(e.outvars[0].aval.shape) * math.prod(e.invars[1].aval.shape[:-1])
        for e in program.eqns
        if e.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert len(products) == len(weights(network))
    assert operations(network, 2) == 2 * (3 * sum(products) - products[0])


# The figures.


def row(name, library, *milliseconds, scan=False, **more):
    return Row(name, library, scan, seconds=tuple(m / 1e3 for m in milliseconds), first_call=1.0, **more)


RESULT = Result(
    TINY,
    BATCH,
    operations=3_000_000,
    rate=1e9,
    rows=(
        row("jax, 1 device", "jax", 12, 10, 50, temporaries=4000),
        row("jax, 2 devices", "jax", 8, 7, 6, temporaries=3000),
        row("jax, scan", "jax", 30, 30, 30, scan=True, temporaries=100),
        Row("torch, compiled", "torch", False, refused="no compiler"),
        row("torch, eager", "torch", 14, 14, 14),
        row("jaxcnn", "jaxcnn", 4, 3, 3.5, temporaries=150),
        row("jaxcnn, scan", "jaxcnn", 3, 2, 1, scan=True, temporaries=200),
    ),
)


def test_ratios_are_over_the_fastest_of_the_same_kind():
    jax_1, jax_2, jax_scan, refused, torch, ours, scan = RESULT.rows
    assert [one.median for one in (jax_1, jax_2, ours, scan)] == [0.012, 0.007, 0.0035, 0.002]
    assert RESULT.best("jax") == jax_2
    assert RESULT.best("jax", scan=True) == jax_scan
    assert RESULT.best("torch") == torch
    assert RESULT.best("torch", scan=True) is RESULT.best("flax") is None
    assert RESULT.over(ours, "jax") == pytest.approx(2)
    assert RESULT.over(ours, "torch") == pytest.approx(4)
    assert RESULT.over(jax_1, "jax") == pytest.approx(7 / 12)
    assert RESULT.over(scan, "jax") == pytest.approx(15)
    assert RESULT.over(scan, "torch") == pytest.approx(7)
    assert RESULT.over(ours, "flax") is RESULT.over(refused, "jax") is RESULT.share(refused) is None
    assert RESULT.share(ours) == pytest.approx(3e6 / 3.5e-3 / 1e9)


def test_difference_is_relative_to_the_reference():
    assert difference((1.0, 2.2, 4.0), (1.0, 2.0, 4.0)) == pytest.approx(0.1)
    assert difference((1.0, math.nan), (1.0, 2.0)) == math.inf


def test_record():
    settings = Settings((TINY,), (BATCH,), (), rounds=3, seconds=0.1, seed=0)
    record = json.loads(json.dumps(as_json(settings, [RESULT])))
    assert record["versions"]["jax"] == jax.__version__
    assert record["cpu"]
    assert record["cores"] >= 1
    assert (record["rounds"], record["tolerance"]) == (3, TOLERANCE)
    (one,) = record["results"]
    assert (one["network"], one["input_shape"], one["batch"]) == ("source", [8, 8, 1], BATCH)
    assert {name: one["rows"][-2][name] for name in ("contestant", "median", "over_jax", "over_torch", "share")} == {
        "contestant": "jaxcnn", "median": 0.0035, "over_jax": 2.0, "over_torch": 4.0, "share": pytest.approx(6 / 7)
    }  # fmt: skip
    assert one["rows"][3]["refused"] == "no compiler"
    assert one["rows"][3]["median"] is None
    assert str(ROOT) not in json.dumps(record)


# The command.


@pytest.fixture
def without_torch(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "torch" else find(name, *more))


def test_command(tmp_path, capsys, without_torch):
    files = tmp_path / "bench.json", tmp_path / "bench.png"
    options = ("--networks", "source", "--batches", "2", "--contestants", "jaxcnn", "torch", "--rounds", "1", "--quick")
    assert cli.main(["bench", *options, "--json", str(files[0]), "--figure", str(files[1])]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "source, 8×8×1, batch 2: " in out
    record = json.loads(files[0].read_text())
    (result,) = record["results"]
    assert {row["library"] for row in result["rows"]} == {"jax", "jaxcnn", "torch"}
    for one in result["rows"]:
        (line,) = (line for line in out.splitlines() if line.startswith(f"{one['contestant']}  "))
        ratio = "-" if one["refused"] else f" {one['over_jax']:.2f} "
        assert ratio in line
    assert "torch, eager; torch, channels last; torch, compiled; torch, compiled channels last: torch is not" in out
    assert files[1].read_bytes().startswith(b"\x89PNG")


# The experiment.


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments" / "speed")
    import bars
    import run as speed

    yield speed, bars
    for name in ("run", "bars"):
        sys.modules.pop(name, None)  # other experiments have a run.py too


def test_bars(experiment):
    _, bars = experiment
    wanted = [
        bars.Bar("source", BATCH, "jax", 2.1),
        bars.Bar("source", BATCH, "torch", 4),
        bars.Bar("source", BATCH, "jax", 15, scan=True),
        bars.Bar("source", BATCH, "flax", 1),
        bars.Bar("source", BATCH, "jax", 20, what="temporaries"),
        bars.Bar("source", BATCH, "jax", 21, what="temporaries"),
        bars.Bar("source", 512, "jax", 1),
        bars.Bar("two_conv", BATCH, "jax", 1),
    ]
    judged = bars.judge([RESULT], wanted)
    assert [(one["measured"], one["passed"]) for one in judged] == [
        (pytest.approx(2), False), (pytest.approx(4), True), (pytest.approx(15), True), (None, False),
        (pytest.approx(20), True), (pytest.approx(20), False),
    ]  # fmt: skip


def test_bars_are_those_of_networks_that_are_run(experiment):
    _, bars = experiment
    empty = [Result(n, b, 1, 1.0, ()) for n in NETWORKS for b in (32, 128, 512)]
    judged = bars.judge(empty)
    assert len(judged) == 24
    assert {(one["model"], one["batch"], one["over"], one["scan"], one["what"]) for one in judged} == {
        (bar.model, bar.batch, bar.over, bar.scan, bar.what) for bar in bars.BARS
    }
    assert not any(one["passed"] for one in judged)


@pytest.mark.parametrize(("required", "status"), [(1.9, 0), (2.1, 1)])
def test_experiment(experiment, required, status, tmp_path, monkeypatch, capsys):
    """All but the timing, which is that of the command."""
    speed, bars = experiment
    asked = []
    monkeypatch.setattr(speed, "measure", lambda settings: asked.append(settings) or [RESULT])
    wanted = [bars.Bar("source", BATCH, "jax", required), bars.Bar("source", BATCH, "torch", 4)]
    assert speed.main(["--quick", "--out", str(tmp_path / "new")], wanted) == status
    assert [(one.networks, one.batches, one.rounds) for one in asked] == [(NETWORKS, (32,), 2)]
    record = json.loads((tmp_path / "new" / "result.json").read_text())
    assert record["command"] == "python experiments/speed/run.py --quick"
    assert [(one["measured"], one["passed"]) for one in record["bars"]] == [(2.0, status == 0), (4.0, True)]
    assert record["bars_passed"] == 2 - status
    assert record["results"][0]["rows"][0]["contestant"] == REFERENCE
    assert record["versions"]["jax"] == jax.__version__
    assert capsys.readouterr().out.splitlines()[-1] == f"{2 - status} of 2 bars passed"
    assert (tmp_path / "new" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_worker_has_the_devices_as_plain_jax_makes_them(monkeypatch, tmp_path):
    """And nothing that `use_cpu_cores` tells XLA: a step's own options are all that jaxcnn has before its peers."""
    taken = {}
    monkeypatch.setattr(jax.config, "update", taken.__setitem__)
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setenv("PJRT_NPROC", "2")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    worker._settle(Contestant("jaxcnn", "jaxcnn", "jaxcnn.benchmark.by_jaxcnn", 2), str(tmp_path))
    assert taken["jax_num_cpu_devices"] == 2
    assert os.environ["XLA_FLAGS"] == ""
