"""The verifier: right passes pass, wrong ones are found and named, bad calls raise."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcnn
from jaxcnn.verification.cases import full_cases, short_cases
from jaxcnn.verification.report import Finding, Report, Row, Worst
from jaxcnn.verification.subject import subject_of
from jaxcnn.verification.trials import Trial, float64_trials

QUICK = jaxcnn.Options(dtypes=(), transforms=False, second_order=False)

GENERATOR = np.random.default_rng(0)
X, W, B = (GENERATOR.standard_normal(s).astype(np.float32) for s in ((4, 3), (3, 5), (5,)))


def dense_with(change):
    """dense, its right cotangents changed."""
    return jaxcnn.dense.replace(backward=lambda residuals, dy: change(*jaxcnn.dense.backward(residuals, dy)))


def _raises(residuals, dy):
    raise ZeroDivisionError("in the backward pass")


WRONG = {
    "a billionth too large": (dense_with(lambda dx, dw, db: (dx, dw * (1 + 1e-9), db)), "w", "float64", "scaled"),
    "negated": (dense_with(lambda dx, dw, db: (-dx, dw, db)), "x", "float64", "negated"),
    "one element": (dense_with(lambda dx, dw, db: (dx, dw.at[1, 2].mul(1.5), db)), "w", "float64", "unknown"),
    "a constant": (dense_with(lambda dx, dw, db: (dx, dw + 1e-3, db)), "w", "float64", "not-linear"),
    "zero": (dense_with(lambda dx, dw, db: (dx, dw, 0 * db)), "b", "float64", "zero"),
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
    "a number for a pair": (
        jaxcnn.Rule(lambda x, w, b: (x @ w + b).sum(), lambda r, dy: (), "s"), "", "float64", "structure",
    ),
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
    assert len(report.findings) == 1, "each fault is said once"


CHECKS = (
    "float64", "differences", "adjoint", "second call", "without jit", "vmap", "other batch",
    "second order", "float32", "bfloat16", "float16",
)  # fmt: skip


def test_the_right_one_passes_with_a_row_for_each_argument_and_check():
    report = jaxcnn.verify(jaxcnn.dense, X, W, B)
    assert report.ok
    by_dy = [("dy", "second order")]
    assert sorted((r.argument, r.check) for r in report.rows) == sorted([*itertools.product("xwb", CHECKS), *by_dy])
    assert all(row.ok for row in report.rows)
    assert report.largest("float64") <= 1e-12
    assert report.largest("differences") < 1e-6
    assert 0 < report.largest("float32") < 1e-5
    assert 1e-4 < report.largest("float16") < 1e-2  # really measured in that dtype
    assert 1e-4 < report.largest("bfloat16") < 0.1
    assert report.notes == ("saved for the backward pass: 108 bytes, by autodiff 108",)


def test_messages_say_what_was_found():
    report = jaxcnn.verify(WRONG["another shape"][0], X, W, B)
    assert report.findings[0].message == "dw has the wrong form: it is float64[5, 3], its array is float64[3, 5]"
    report = jaxcnn.verify(WRONG["raises"][0], X, W, B)
    assert "the backward pass failed: ZeroDivisionError: in the backward pass" in report.findings[0].message
    report = jaxcnn.verify(WRONG["too few"][0], X, W, B)
    assert "backward must return a tuple of 3 cotangents, got a tuple of 2" in report.findings[0].message
    report = jaxcnn.verify(WRONG["negated"][0], X, W, B)
    assert report.findings[0].message == "dx equals the right gradient with its sign changed"


def test_a_fault_that_one_cotangent_hides_is_found_by_others():
    """What is wrong is orthogonal to the first cotangent that is drawn, of every size, and linear."""
    dense = subject_of(jaxcnn.dense, (X, W, B), None, None, {})
    hiding = float64_trials(dense, lambda *trial: Trial(*trial, (), ()), 0, 2)
    first = hiding[0].dy
    across = np.roll(first, 1)
    across -= first * (across * first).sum() / (first**2).sum()

    def backward(residuals, dy):
        dx, dw, db = jaxcnn.dense.backward(residuals, dy)
        return dx, dw + (dy * across.astype(dy.dtype)).sum(), db

    report = jaxcnn.verify(jaxcnn.dense.replace(backward=backward), X, W, B, options=QUICK)
    assert [f.argument for f in report.findings] == ["w"]
    shown = {t.kind for t in hiding if abs((t.dy * across).sum()) > 1e-9 * np.abs(t.dy).max(initial=0)}
    assert shown == {"random", "spread", "one element", "ties"}  # "small" and "large" are made of the first


def test_a_layer_is_verified_parameter_by_parameter():
    wrong = jaxcnn.dense.replace(backward=lambda r, dy: (dy @ r.w.T, 2 * r.x.T @ dy, dy.sum(0)))
    network = jaxcnn.sequential(jaxcnn.Dense(4), jaxcnn.Sigmoid(), jaxcnn.Dense(3, rule=wrong))
    report = jaxcnn.verify(network, X)
    assert [f.argument for f in report.findings] == ["dense_2/weights"]
    assert {r.argument for r in report.rows} == {
        "dense_1/bias", "dense_1/weights", "dense_2/bias", "dense_2/weights", "x", "dy",
    }  # fmt: skip


def test_a_layer_of_another_structure_is_found():
    layer = jaxcnn.Dense(4)
    broken = jaxcnn.Layer("broken", layer.init, layer.forward, lambda r, dy: ({"weights": r.saved.w}, dy))
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


def test_a_layer_is_not_verified_at_a_scale_of_one_alone():
    """Its backward pass forgets the scale, which is 1 at first."""

    def init(key, shape):
        return {"scale": jnp.ones(shape[-1:])}, {}, shape

    def forward(params, state, x, *, train=False, key=None):
        return params["scale"] * x, state, x

    layer = jaxcnn.Layer("scale", init, forward, lambda x, dy: ({"scale": (dy * x).sum(0)}, dy))
    assert [f.argument for f in jaxcnn.verify(layer, X).findings] == ["x"]


def test_a_forward_that_refuses_a_dtype_is_no_fault():
    def forward(x):
        if x.dtype == jnp.bfloat16:
            raise TypeError("no bfloat16 here")
        return 2 * x, ()

    report = jaxcnn.verify(jaxcnn.Rule(forward, lambda residuals, dy: (2 * dy,), "double"), X)
    assert report.ok
    assert "bfloat16 left out: the forward pass refuses it: no bfloat16 here" in report.notes


def test_options_leave_checks_out_and_say_so():
    straight_through = jaxcnn.Rule(
        lambda x: (jnp.round(x), ()),
        lambda residuals, dy: (dy,),
        "round",
        reference=lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x),
    )
    assert jaxcnn.verify(straight_through, X).findings[0].check == "differences"
    report = jaxcnn.verify(straight_through, X, options=jaxcnn.Options(finite_differences=False))
    assert report.ok, str(report)
    assert report.notes[0].startswith("finite differences left out")
    report = jaxcnn.verify(jaxcnn.sigmoid, X, options=jaxcnn.Options(transforms=False, second_order=False, dtypes=()))
    assert {r.check for r in report.rows} == {"float64", "differences", "adjoint"}
    assert report.notes[:2] == (
        "without jit, vmap and other batches left out by option",
        "second order left out by option",
    )


def test_integer_and_absent_arrays_have_no_row():
    report = jaxcnn.verify(jaxcnn.softmax_cross_entropy, X, np.array([0, 1, 2, 0]))
    assert {r.argument for r in report.rows} == {"logits", "dy"}
    assert {r.argument for r in jaxcnn.verify(jaxcnn.dense, X, W).rows} == {"x", "w", "dy"}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jaxcnn.verify(print, X), TypeError, "verify: takes a Rule or a Layer, got builtin_function_or_method"),
        (lambda: jaxcnn.verify(jaxcnn.Dense(3)), TypeError, "verify: a layer is verified with one array, x"),
        (lambda: jaxcnn.verify(jaxcnn.dense, X), TypeError, "dense: missing a required argument: 'w'"),
        (lambda: jaxcnn.verify(jaxcnn.dense, X, X), ValueError, r"dense: x must be \(..., 4\) for w \(4, 3\)"),
        (lambda: jaxcnn.verify(jaxcnn.flatten, np.ones((2, 2), int)), TypeError,
         "verify: flatten got no floating-point array, so there is no gradient to verify"),
        (lambda: jaxcnn.verify(jaxcnn.Dense(3), np.ones((2, 2), int)), TypeError,
         "verify: x of a layer must be floating point, got int"),
        (lambda: jaxcnn.verify(jaxcnn.Rule(lambda x: ((), ()), lambda r, dy: dy, "none"), X), TypeError,
         "verify: none must have a floating array, or a tree of these, as output, got tuple"),
        (lambda: jaxcnn.verify(jaxcnn.Rule(lambda x: ((x, x > 0), ()), lambda r, dy: dy, "mixed"), X), TypeError,
         "verify: mixed must have a floating array, or a tree of these, as output, got tuple"),
        (lambda: jaxcnn.verify(jaxcnn.sigmoid, X[:0]), ValueError,
         r"verify: sigmoid: x must not be empty, got shape \(0, 3\)"),
        (lambda: jaxcnn.verify(jaxcnn.sigmoid, X * np.nan), ValueError, "verify: sigmoid: x must be finite, got NaN"),
        (lambda: jaxcnn.verify(jaxcnn.sigmoid, X, options={"seed": 1}), TypeError,
         "options must be an Options, got dict"),
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


def test_a_report_prints_what_is_wrong_and_where():
    rows = (Row("x", "float64", 0.0, 1e-12, 1.0), Row("w", "float32", 2.0, 1.0, 4.0, 0.5, 0.25))
    errors = np.array([[0.0, 0.0], [1.0, 2.0]])
    finding = Finding("w", "float32", "border", 2.0, 1.0, "dw differs", ("partial",), Worst((1, 1), 3.0, 5.0), errors)
    text = str(Report("mine", rows, (finding,), ("4 bytes",)))
    assert text.splitlines() == [
        "mine: 1 finding(s)",
        "  border (or partial): dw differs",
        "    worst: dw[1, 1] is 5, right is 3",
        "    |  |",
        "    |+@|",
        "  largest error, relative  x        w",
        "  float64                  0.0e+00",
        "  float32                           5.0e-01 = 8 ulp (autodiff 2) FAILED",
        "  note: 4 bytes",
    ]
    assert rows[1].relative == 0.5
    assert math.isnan(Report("mine", (), ()).largest("float64"))


def test_a_report_plots_where_the_error_sits(tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 1))
    wrong = jaxcnn.sigmoid.replace(backward=lambda r, dy: (jaxcnn.sigmoid.backward(r, dy)[0].at[:, 0].set(0),))
    report = jaxcnn.verify(wrong, x, options=jaxcnn.Options(dtypes=(), transforms=False))
    assert report.findings[0].cause == "border"
    assert report.findings[0].picture().splitlines()[1:] == ["|      |"] * 5
    report.plot(tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="plot: sigmoid has no finding with a place to show"):
        jaxcnn.verify(jaxcnn.sigmoid, x, options=jaxcnn.Options(dtypes=(), transforms=False)).plot(tmp_path / "no.png")


@pytest.mark.parametrize("case", short_cases(), ids=lambda c: f"{c.subject.name}, {c.what}")
def test_every_short_case_holds(case):
    """The values and the differences; `jaxcnn verify` makes all checks, and takes a minute."""
    report = case.verify(jaxcnn.Options(dtypes=(), transforms=False, second_order=False))
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
    from jaxcnn.verification.cases.case import Case, normal

    case = Case(jaxcnn.relu, "right", (normal(3),), {})
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
