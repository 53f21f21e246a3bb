"""The verifier: right passes pass, wrong ones are found, bad calls raise."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.verification.cases import full_cases, short_cases
from jaxcnn.verification.report import Finding, Report, Row

GENERATOR = np.random.default_rng(0)
X, W, B = (GENERATOR.standard_normal(s).astype(np.float32) for s in ((4, 3), (3, 5), (5,)))


def dense_with(change):
    """dense, its right cotangents changed."""
    return jaxcnn.dense.replace(backward=lambda residuals, dy: change(*jaxcnn.dense.backward(residuals, dy)))


def _raises(residuals, dy):
    raise ZeroDivisionError("in the backward pass")


WRONG = {
    "a billionth too large": (dense_with(lambda dx, dw, db: (dx, dw * (1 + 1e-9), db)), "w", "float64", "unknown"),
    "negated": (dense_with(lambda dx, dw, db: (-dx, dw, db)), "x", "float64", "unknown"),
    "one element": (dense_with(lambda dx, dw, db: (dx, dw.at[1, 2].add(1e-3), db)), "w", "float64", "unknown"),
    "zero": (dense_with(lambda dx, dw, db: (dx, dw, 0 * db)), "b", "float64", "unknown"),
    "NaN": (dense_with(lambda dx, dw, db: (dx, dw.at[0, 0].set(jnp.nan), db)), "w", "float64", "nan"),
    "infinite": (dense_with(lambda dx, dw, db: (dx.at[0, 0].set(jnp.inf), dw, db)), "x", "float64", "nan"),
    "rounded to bfloat16": (
        dense_with(lambda dx, dw, db: (dx, jax.lax.reduce_precision(dw, 8, 7), db) if dw.dtype != "float64"
                   else (dx, dw, db)),
        "w", "float32", "precision",
    ),
    "None": (dense_with(lambda dx, dw, db: (dx, dw, None)), "b", "float64", "structure"),
    "another shape": (dense_with(lambda dx, dw, db: (dx, dw.T, db)), "w", "float64", "structure"),
    "keeps an axis": (dense_with(lambda dx, dw, db: (dx, dw, db[None])), "b", "float64", "structure"),
    "another dtype": (dense_with(lambda dx, dw, db: (dx.astype(jnp.float16), dw, db)), "x", "float64", "structure"),
    "too few": (dense_with(lambda dx, dw, db: (dx, dw)), "", "float64", "structure"),
    "a list": (dense_with(lambda dx, dw, db: [dx, dw, db]), "", "float64", "structure"),
    "no tuple": (dense_with(lambda dx, dw, db: dx), "", "float64", "structure"),
    "raises": (jaxcnn.dense.replace(backward=_raises), "", "float64", "structure"),
    "wrong signature": (jaxcnn.dense.replace(backward=lambda residuals: ()), "", "float64", "structure"),
    "no residuals": (
        jaxcnn.dense.replace(forward=lambda x, w, b: x @ w + b, reference=lambda x, w, b: x @ w + b),
        "", "float64", "structure",
    ),
    "reference of another value": (
        jaxcnn.dense.replace(reference=lambda x, w, b=None: x @ w), "", "float64", "structure",
    ),
    "reference of another shape": (
        jaxcnn.dense.replace(reference=lambda x, w, b=None: (x @ w + b).sum()), "", "float64", "structure",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_backward_pass_is_found(what):
    rule, argument, check, cause = WRONG[what]
    report = jaxcnn.verify(rule, X, W, B)
    assert not report.ok
    first = report.findings[0]
    assert (first.argument, first.check, first.cause) == (argument, check, cause), str(report)
    assert first.error > first.tolerance or math.isnan(first.error)
    assert len(report.findings) == 1, "each fault is said once"


def test_the_right_one_passes_with_a_row_for_each_argument_and_dtype():
    report = jaxcnn.verify(jaxcnn.dense, X, W, B)
    assert report.ok
    assert [(r.argument, r.check) for r in report.rows] == [
        (a, c) for c in ("float64", "float32", "bfloat16") for a in ("x", "w", "b")
    ]
    assert all(row.ok and row.scale > 0 for row in report.rows)
    assert report.largest("float64") <= 1e-12
    assert 0 < report.largest("float32") < 1e-5
    assert 1e-4 < report.largest("bfloat16") < 0.1  # really measured in bfloat16


def test_messages_say_what_was_found():
    report = jaxcnn.verify(WRONG["another shape"][0], X, W, B)
    assert report.findings[0].message == "dw has the wrong form: it is float64[5, 3], its array is float64[3, 5]"
    report = jaxcnn.verify(WRONG["raises"][0], X, W, B)
    assert "the backward pass failed: ZeroDivisionError: in the backward pass" in report.findings[0].message
    report = jaxcnn.verify(WRONG["too few"][0], X, W, B)
    assert "backward must return a tuple of 3 cotangents, got a tuple of 2" in report.findings[0].message
    report = jaxcnn.verify(WRONG["negated"][0], X, W, B)
    assert report.findings[0].message.startswith("dx differs in float64 by ")


def test_a_fault_that_one_cotangent_hides_is_found_by_others():
    """Right for positive first elements of dy alone."""

    def backward(residuals, dy):
        dx, dw, db = jaxcnn.dense.backward(residuals, dy)
        return dx, jnp.where(dy[0, 0] > 0, dw, -dw), db

    rule = jaxcnn.dense.replace(backward=backward)
    assert not jaxcnn.verify(rule, X, W, B, options=jaxcnn.Options(cotangents=8)).ok
    one = [jaxcnn.verify(rule, X, W, B, options=jaxcnn.Options(cotangents=1, seed=s)).ok for s in range(6)]
    assert any(one)  # a single one does miss it
    assert not all(one)


def test_a_layer_is_verified_parameter_by_parameter():
    wrong = jaxcnn.dense.replace(backward=lambda r, dy: (dy @ r.w.T, 2 * r.x.T @ dy, dy.sum(0)))
    network = jaxcnn.sequential(jaxcnn.Dense(4), jaxcnn.Sigmoid(), jaxcnn.Dense(3, rule=wrong))
    report = jaxcnn.verify(network, X)
    assert [f.argument for f in report.findings] == ["dense_2/weights"]
    assert {r.argument for r in report.rows} == {
        "dense_1/bias", "dense_1/weights", "dense_2/bias", "dense_2/weights", "x",
    }  # fmt: skip


def test_a_layer_of_another_structure_is_found():
    layer = jaxcnn.Dense(4)
    broken = jaxcnn.Layer("broken", layer.init, layer.forward, lambda r, dy: ({"weights": r.w}, dy))
    report = jaxcnn.verify(broken, X)
    assert report.findings[0].cause == "structure"
    assert "backward must return (dparams, dx) of structure" in report.findings[0].message


def test_a_convention_at_ties_is_no_fault_and_another_convention_is():
    x = np.zeros((2, 4, 4, 1), np.float32)
    for ties in ("first", "split", "all"):
        assert jaxcnn.verify(jaxcnn.max_pool, x, ties=ties).ok
        assert jaxcnn.verify(jaxcnn.MaxPool(2, ties=ties), x).ok
    first = jaxcnn.max_pool.replace(
        backward=lambda r, dy, **static: jaxcnn.max_pool.backward(r, dy, **{**static, "ties": "first"})
    )
    assert not jaxcnn.verify(first, x, ties="all").ok


def test_integer_and_absent_arrays_have_no_row():
    report = jaxcnn.verify(jaxcnn.softmax_cross_entropy, X, np.array([0, 1, 2, 0]))
    assert {r.argument for r in report.rows} == {"logits"}
    assert {r.argument for r in jaxcnn.verify(jaxcnn.dense, X, W).rows} == {"x", "w"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jaxcnn.verify(print, X), TypeError, "verify: takes a Rule or a Layer, got builtin_function_or_method"),
        (lambda: jaxcnn.verify(jaxcnn.Dense(3)), TypeError, "verify: a layer is verified with one array, x"),
        (lambda: jaxcnn.verify(jaxcnn.dense, X), TypeError, "dense: missing a required argument: 'w'"),
        (lambda: jaxcnn.verify(jaxcnn.dense, X, X), ValueError, r"dense: x must be \(..., 4\) for w \(4, 3\)"),
        (lambda: jaxcnn.verify(jaxcnn.flatten, np.ones((2, 2), int)), TypeError,
         "verify: flatten got no floating-point array, so there is no gradient to verify"),
        (lambda: jaxcnn.verify(jaxcnn.Dense(3), np.float32(1)), ValueError, "verify: x must have an axis of samples"),
    ],
)  # fmt: skip
def test_a_bad_call_raises(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_callers_precision_is_left_alone():
    jaxcnn.verify(jaxcnn.sigmoid, X)
    assert jnp.ones(1).dtype == jnp.float32
    with jax.enable_x64(True):
        assert jaxcnn.verify(jaxcnn.sigmoid, jnp.asarray(X, jnp.float64)).ok
        assert jnp.ones(1).dtype == jnp.float64


def test_a_report_prints_a_table():
    rows = (Row("x", "float64", 0.0, 1e-12, 1.0), Row("w", "float32", 2.0, 1.0, 4.0, 0.5))
    finding = Finding("w", "float32", "precision", 2.0, 1.0, "dw differs")
    text = str(Report("mine", rows, (finding,)))
    assert text.splitlines() == [
        "mine: 1 finding(s)",
        "  x  float64   error 0.0e+00  allowed 1.0e-12  ok",
        "  w  float32   error 2.0e+00  allowed 1.0e+00  FAILED   autodiff's own 5.0e-01",
        "  precision: dw differs",
    ]
    assert rows[1].relative == 0.5
    assert math.isnan(Report("mine", (), ()).largest("float64"))


@pytest.mark.parametrize("case", short_cases(), ids=lambda c: f"{c.subject.name}, {c.what}")
def test_every_short_case_holds(case):
    """Without bfloat16, to save time here: `jaxcnn verify` runs it."""
    report = case.verify(jaxcnn.Options(dtypes=("float32",)))
    assert report.ok, str(report)
    assert report.largest("float64") <= 1e-12


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_full_case_holds():
    for case in full_cases():
        report = case.verify()
        assert report.ok, f"{case.what}: {report}"


def test_cases_have_distinct_names():
    names = [(c.subject.name, c.what) for c in full_cases()]
    assert len(set(names)) == len(names)


def test_command_prints_the_table_writes_json_and_exits_1_on_a_failure(monkeypatch, tmp_path, capsys):
    from jaxcnn import cli
    from jaxcnn.verification import cases

    case = cases.Case(jaxcnn.relu, "right", (cases.normal(3),), {})
    wrong = case._replace(subject=jaxcnn.relu.replace(backward=lambda r, dy: (2 * dy,)), what="wrong")
    for table, status in (([case], 0), ([case, wrong], 1)):
        monkeypatch.setattr(cases, "short_cases", lambda table=table: table)
        assert cli.main(["verify", "--json", str(tmp_path / "v.json")]) == status
        result = json.loads((tmp_path / "v.json").read_text())
        assert (result["cases"], result["failed"]) == (len(table), status)
        assert [r["ok"] for r in result["results"]] == [True, False][: len(table)]
    said = capsys.readouterr().out
    assert "FAILED" in said
    assert "2 cases, 1 failed" in said
