"""The experiment `source_errata`: every erratum is confirmed, and the check can fail."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxcnn

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "source_errata"


@pytest.fixture(scope="module")
def modules():
    """The experiment's modules, imported as its own run imports them: from its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import erratum
        import part1
        import part2_images
        import run

        yield {"run": run, "erratum": erratum, "part1": part1, "part2_images": part2_images}
        for name in ("run", "erratum", "part1", "part2_theory", "part2_layers", "part2_images"):
            sys.modules.pop(name, None)  # other experiments have a run.py too


@pytest.fixture(scope="module")
def run(modules):
    return modules["run"]


@pytest.fixture(scope="module")
def quick(run, tmp_path_factory):
    """(exit status, record) of the quick run."""
    out = tmp_path_factory.mktemp("errata")
    status = run.main(["--quick", "--out", str(out)])
    return status, json.loads((out / "result.json").read_text(encoding="utf-8"))


def test_every_erratum_is_confirmed(run, quick):
    status, record = quick
    assert status == 0
    assert [one["id"] for one in record["errata"]] == [one.id for one in run.ERRATA]
    assert [one["id"] for one in record["errata"] if not one["confirmed"]] == []
    assert record["errata_count"] == record["confirmed_count"] == 46
    assert record["kinds"] == {"error": 27, "imprecise": 19}
    for one in record["errata"]:
        assert one["relative_errors"]["corrected"] < 1e-12


def test_record_says_how_it_was_made(quick):
    _, record = quick
    assert record["command"] == "python experiments/source_errata/run.py --quick"
    assert set(record["versions"]) == {"python", "jax", "jaxlib", "numpy"}
    assert record["seeds"] == [0]
    assert record["cpu"]
    assert str(ROOT) not in json.dumps(record)


def test_committed_record_is_of_these_errata(run):
    record = json.loads((FOLDER / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == "python experiments/source_errata/run.py"
    assert [(one["id"], one["printed"], one["corrected"]) for one in record["errata"]] == [
        (one.id, one.printed, one.right) for one in run.ERRATA
    ]
    assert record["confirmed_count"] == len(run.ERRATA)


def test_readme_lists_them(run):
    readme = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert "\n".join(one.row(number) for number, one in enumerate(run.ERRATA, 1)) + "\n\n" in readme
    for line, printed, right in run.TYPOS:
        assert f"| line {line} | {printed} | {right} |\n" in readme
    assert f"{len(run.ERRATA)} of {len(run.ERRATA)} errata confirmed" in readme


def test_ids_are_distinct(run):
    assert [name for name, count in Counter(one.id for one in run.ERRATA).items() if count > 1] == []


# What makes an erratum fall: which of its three forms (printed, corrected, autodiff) stands in the place of each.
FALLEN = {
    "printed form is right": (1, 1, 2),
    "corrected form is wrong": (0, 0, 2),
}


@pytest.mark.parametrize("forms", FALLEN.values(), ids=FALLEN)
@pytest.mark.parametrize("id", ["bias_gradient", "relu_name", "pooling_dtype", "convolution_rotation"])
def test_check_can_fail(run, tmp_path, capsys, id, forms):
    one = next(e for e in run.ERRATA if e.id == id)
    fallen = dataclasses.replace(one, evaluate=lambda case: tuple(one.evaluate(case)[form] for form in forms))
    sound = next(e for e in run.ERRATA if e.id == "pooling_output_size")
    assert run.main(["--quick", "--out", str(tmp_path)], [sound, fallen]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"not confirmed: {id}"
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert [e["confirmed"] for e in record["errata"]] == [True, False]


@pytest.mark.parametrize(("raises", "error"), [(None, NameError), ("SyntaxError", NameError), ("NameError", None)])
def test_another_exception_does_not_confirm(modules, raises, error):
    """A printed form that fails for some other reason than the one claimed, or does not fail, proves nothing."""
    erratum = modules["erratum"]

    def printed():
        if error is not None:
            raise error("name 'x' is not defined")
        return 2.0

    one = dataclasses.replace(modules["run"].ERRATA[0], raises=raises)
    one = dataclasses.replace(one, evaluate=lambda case: (printed, lambda: 1.0, lambda: 1.0))
    assert not erratum.judge(one, erratum.Case(0, 1)).confirmed


def test_one_bad_case_is_enough(modules):
    erratum = modules["erratum"]
    good = erratum.Result(True, "2", "1", "1", 1.0, 1e-16)
    bad = erratum.Result(False, "1", "1", "1", 1e-16, 1e-15)
    assert not erratum.worst([good, bad, good]).confirmed
    assert erratum.worst([good, bad, good]).corrected_error == 1e-15
    assert erratum.worst([good, good]).confirmed


# The corrections of the source's code, written into it.
REPAIRS = [
    ("range(?)", "range(C)"),
    ("range(0,H,2)", "range(0,H-1,2)"),
    ("range(0,W,2)", "range(0,W-1,2)"),
    ("(H//2,W//2)", "(H//2,W//2), im.dtype"),
    ("(H//2,W//2,C)", "(H//2,W//2,C), im.dtype"),
    ("(img>0)*img", "np.where(im <= 0, 0, im)"),
    ("img.reshape(H*W)", "im.reshape(1,H*W)"),
]


@pytest.mark.parametrize(
    ("code", "function", "rule", "shape"),
    [
        ("MAXPOOL_HW", "maxpoolHW", jaxcnn.max_pool, (5, 7)),
        ("MAXPOOL_HW", "maxpoolHW", jaxcnn.max_pool, (4, 6)),
        ("MAXPOOL_HWC", "maxpoolHWC", jaxcnn.max_pool, (5, 6, 3)),
        ("RELU", "ReLU", jaxcnn.relu, (4, 6)),
        ("FLATTEN_HW", "flatten", jaxcnn.flatten, (4, 6)),
    ],
)
def test_repaired_code_equals_the_library(modules, code, function, rule, shape):
    text = getattr(modules["part1"], code)
    for printed, right in REPAIRS:
        text = text.replace(printed, right)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    got = modules["erratum"].run_printed(text, 1)[function](image)
    expected = np.asarray(rule(image))
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_printed_example_of_the_mask_is_right(modules):
    """Lines 146–160 of the source: nothing to correct there."""
    z = np.array([[1.0, 2, 3, 4], [8, 7, 5, 6], [9, 11, 12, 10], [10, 7, 13, 9]])
    a = np.array([[8.0, 6], [11, 13]])
    mask = [[0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
    np.testing.assert_array_equal(modules["part2_images"].printed_mask(z, a), mask)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(np.asarray(jaxcnn.max_pool(z)), a)


def test_command(tmp_path):
    """The command as the README gives it, with bad arguments refused."""
    command = [sys.executable, "experiments/source_errata/run.py"]
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert "--quick" in shown.stdout
    assert "--out" in shown.stdout
    assert subprocess.run([*command, "--fast"], cwd=ROOT, capture_output=True, check=False).returncode == 2
