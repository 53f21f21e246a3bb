"""The experiments on speed beside the bench: how cost grows, and a whole run; on small numbers."""

import gzip
import importlib
import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import optax
import pytest
from experiment_folder import experiment

import jaxcnn
from jaxcnn.benchmark.problem import NETWORKS
from jaxcnn.benchmark.result import Result, Row
from jaxcnn.training.compiler import compiler_options

FOLDER = Path(__file__).parents[1] / "experiments" / "speed"


@pytest.fixture(scope="module", autouse=True)
def folder():
    """The modules are imported as their own runs import them: from their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield


@pytest.fixture
def growth():
    return importlib.import_module("growth")


@pytest.fixture
def cores():
    return importlib.import_module("cores")


@pytest.fixture
def loading():
    return importlib.import_module("loading")


@pytest.fixture
def same_options():
    return importlib.import_module("same_options")


@pytest.fixture
def whole_run():
    return importlib.import_module("whole_run")


@pytest.fixture
def fashion(tmp_path) -> Path:
    """Four files like Fashion-MNIST's, of few images: of class k the k-th row is bright."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 256), ("t10k", 2000)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        images = rng.integers(0, 50, (count, 28, 28)).astype(np.uint8)
        images[np.arange(count), 2 * labels] = 250
        for kind, axes, values in (("images", "idx3", images), ("labels", "idx1", labels)):
            header = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
            file = tmp_path / f"{split}-{kind}-{axes}-ubyte.gz"
            file.write_bytes(gzip.compress(header + values.tobytes(), 1))
    return tmp_path


def test_the_readme_has_the_measured_figures():
    readme = (FOLDER.parents[1] / "README.md").read_text("utf-8")
    speed, loading = (json.loads((FOLDER / name).read_text("utf-8")) for name in ("result.json", "loading.json"))
    rows = experiment("speed").in_readme(speed)
    for one in loading["networks"]:
        rates = (one["images_per_second"][way] for way in ("memory", "png", "kept"))
        rows.append("| " + " | ".join([one["network"], *(f"{float(f'{rate:.3g}'):,.0f}" for rate in rates)]) + " |")
    there = [line for line in readme.splitlines() if line.startswith(("| two_conv ", "| source ", "| resnet20 "))]
    assert sorted(there) == sorted(rows)


def test_a_row_of_the_readme_is_of_the_fastest_ways():
    timed = [("jax", False, 0.1), ("jax", True, 0.2), ("jax", False, 0.3), ("torch", False, None)]
    timed += [("torch", False, 0.5), ("flax", False, 0.01), ("jaxcnn", False, 0.06), ("jaxcnn", True, 0.05)]
    rows = [dict(zip(("library", "scan", "median"), one, strict=True)) for one in timed]
    result = {"network": "source", "input_shape": [8, 8, 1], "batch": 32, "rows": rows}
    run = experiment("speed")
    (row,) = run.in_readme({"results": [result]})
    assert row == "| source 8×8×1, 32 | 100 (200 in a scan) | 500 | 50.0, in a scan | 2.0 | 10.0 |"


@pytest.mark.parametrize("program", ["jaxcnn", "PyTorch"])
def test_each_program_learns_from_the_files(whole_run, program, fashion, monkeypatch):
    if program == "PyTorch" and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    monkeypatch.setattr(whole_run, "BATCH", 32)
    ran = whole_run.run(program, fashion, seed=0, epochs=8)
    assert ran[:2] == (program, 0)
    assert ran.accuracy > 0.9
    assert ran.seconds > 0.5


def test_the_peers_program_has_nothing_of_jax(whole_run):
    text = whole_run.PROGRAMS["PyTorch"].read_text()
    assert not [line for line in text.splitlines() if "import" in line and "jax" in line]


@pytest.fixture
def programs(whole_run, tmp_path, monkeypatch):
    """Sets what each program prints, and how long it waits before that."""

    def set_to(**said: tuple[float, str]) -> None:
        for name, (seconds, text) in said.items():
            (tmp_path / f"{name}.py").write_text(f"import time\ntime.sleep({seconds})\nprint({text!r}, flush=True)\n")
        monkeypatch.setattr(whole_run, "PROGRAMS", {name: tmp_path / f"{name}.py" for name in said})

    return set_to


@pytest.mark.parametrize(
    ("ours", "theirs", "passed"),
    [
        ((0.0, "accuracy 0.9000"), (0.5, "accuracy 0.9100"), True),
        ((0.0, "accuracy 0.8999"), (0.5, "accuracy 0.9100"), False),
        ((0.0, "accuracy 0.9000"), (0.5, "accuracy 0.8000"), False),
        ((0.5, "accuracy 0.9000"), (0.5, "accuracy 0.9000"), False),
    ],
)
def test_both_must_reach_the_accuracy_and_one_the_ratio(whole_run, programs, tmp_path, capsys, ours, theirs, passed):
    programs(jaxcnn=ours, PyTorch=theirs)
    assert whole_run.main(["--quick", "--out", str(tmp_path / "out")]) == (0 if passed else 1)
    record = json.loads((tmp_path / "out" / "whole_run.json").read_text())
    assert record["passed"] == passed
    seconds = record["median_seconds"]
    assert record["ratio"] == pytest.approx(seconds["jaxcnn"] / seconds["PyTorch"])
    assert [(r["program"], r["seed"]) for r in record["runs"]] == [("jaxcnn", 0), ("PyTorch", 0)]
    assert "required 0.67" in capsys.readouterr().out


def test_a_program_that_fails_is_no_result(whole_run, programs, tmp_path):
    programs(jaxcnn=(0, "out of luck"))
    with pytest.raises(RuntimeError, match=r"jaxcnn: ended without an accuracy: out of luck"):
        whole_run.run("jaxcnn", tmp_path, 0, 1)


def test_the_median_is_over_a_programs_own_seeds(whole_run):
    Ran = whole_run.Ran
    runs = [Ran("jaxcnn", s, 0.9, t) for s, t in enumerate((1.0, 5.0, 2.0))] + [Ran("PyTorch", 0, 0.9, 9.0)]
    assert (whole_run.median(runs, "jaxcnn"), whole_run.median(runs, "PyTorch")) == (2.0, 9.0)


def test_operations_are_those_of_the_three_products_of_each_layer(growth):
    """two_conv on 28×28: multiplications of the forward pass layer by layer, as many for each of the two gradients."""
    first, second, dense = 28 * 28 * 9 * 32, 14 * 14 * 9 * 32 * 64, 3136 * 128 + 128 * 10
    assert growth.Point(512, 28, 32).operations == 2 * 512 * (2 * first + 3 * second + 3 * dense)


def test_a_cliff_is_a_jump_of_the_time_of_one_operation(growth):
    points = [growth.Point(batch=batch) for batch in (16, 32, 64, 128)]
    times = (1.0, 2.0, 8.1, 5.3)  # by operation: the same, 2.025 times, a third; by step the last is much less
    measured = [growth.Measured(p, t, 1.0) for p, t in zip(points, times, strict=True)]
    assert growth.cliffs("batch", measured) == [
        {"sweep": "batch", "from": 32, "to": 64, "factor": pytest.approx(2.025)},
        {"sweep": "batch", "from": 64, "to": 128, "factor": pytest.approx(5.3 / 8.1)},
    ]


def test_growth_measures_and_draws(growth, tmp_path, monkeypatch, capsys):
    Point = growth.Point
    sweeps = {"batch": [Point(2, 8, 2), Point(4, 8, 2)], "size": [Point(2, 4, 2)], "channels": [Point(2, 4, 1)]}
    monkeypatch.setattr(growth, "points", lambda sweep, quick: sweeps[sweep])
    monkeypatch.setattr(growth.jaxcnn, "use_cpu_cores", lambda n: 2)  # this process has used its devices already
    monkeypatch.setattr(growth, "SECONDS", 0.0)
    monkeypatch.setattr(growth, "MATRIX", 64)
    monkeypatch.setattr(growth, "MOST_OPERATIONS", Point(4, 8, 2).operations - 1)
    assert growth.main(["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "growth.json").read_text())
    assert [m["batch"] for m in record["sweeps"]["batch"]] == [2]
    assert record["left_out"] == [{"batch": 4, "size": 8, "channels": 2}]
    assert "left out: {'batch': 4, 'size': 8, 'channels': 2}" in capsys.readouterr().out
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_cliff_makes_growth_fail(growth, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth.jaxcnn, "use_cpu_cores", lambda n: 2)
    steep = {16: 1.0, 64: 100.0, 256: 100.0}
    measured = lambda sweep: [growth.Measured(p, steep.get(p.batch, 1.0), 0.5) for p in sweep]  # noqa: E731
    monkeypatch.setattr(growth, "measure", measured)
    assert growth.main(["--quick", "--out", str(tmp_path)]) == 1
    assert "cliff: batch 16 to 64: 25.0 times" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["growth", "whole_run", "cores", "loading", "same_options"])
def test_help_is_printed(script, request, capsys):
    """A lone % in a help text is an error of argparse, and only here."""
    with pytest.raises(SystemExit) as end:
        request.getfixturevalue(script).main(["--help"])
    assert end.value.code == 0
    assert "--quick" in capsys.readouterr().out


def test_cores_are_compared_and_held_against_the_bar(cores, tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    monkeypatch.setattr(cores.jax.config, "update", lambda *given: made.append(given))  # too late in this process
    seconds = {1: iter([3.0, 5.0, 4.0]), 2: iter([2.0, 9.0, 2.0])}
    with monkeypatch.context() as patch:
        patch.setattr(cores, "timed", lambda batch, mesh: seconds[mesh.size].__next__)
        assert cores.compare(32, 2, 3) == {"one": 4.0, "all": 2.0, "times": 2.0}
    monkeypatch.setattr(cores, "BATCHES", (32, 128))
    for times, status in ((1.6, 0), (1.4, 1)):
        monkeypatch.setattr(cores, "compare", lambda *_: {"one": times, "all": 1.0, "times": times})  # noqa: B023
        assert cores.main(["--quick", "--out", str(tmp_path)]) == status
        found = json.loads((tmp_path / "cores.json").read_text())["batches"]
        assert [(one["batch"], one["times"]) for one in found] == [(32, times), (128, times)]
        assert f"batch 128: {times}e+03 ms on one device" in capsys.readouterr().out
    assert set(made) == {("jax_num_cpu_devices", 2)}
    monkeypatch.setattr(cores, "available_cores", lambda: 1)
    with pytest.raises(SystemExit):
        cores.main(["--quick"])
    assert "there is one core, and nothing to compare it with" in capsys.readouterr().err


def test_a_step_is_timed_until_it_has_ended(cores, monkeypatch):
    """On the mesh that is asked for: with a clock that stands still but where the step is waited for."""
    clock, meshes = [0.0], []

    class Made:
        def __init__(self, *_, mesh, **__):
            meshes.append(mesh)
            self.shardings = None

        def __call__(self, state, *_):
            return state, {}

    def wait(_):
        clock[0] += 8.0

    monkeypatch.setattr(cores.jaxcnn, "train_step", Made)
    monkeypatch.setattr(cores.jax, "device_put", lambda data, _: data)
    monkeypatch.setattr(cores.jax, "block_until_ready", wait)
    monkeypatch.setattr(cores.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cores, "IMAGES", 16)
    assert cores.timed(4, "a mesh")() == 8.0 / 4
    assert meshes == ["a mesh"]


def test_training_on_files_is_held_against_the_bar(loading, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading.jaxcnn, "use_cpu_cores", lambda n: 2)  # this process has used its devices already
    monkeypatch.setattr(loading, "keep_compiled_programs", lambda: None)
    for kept, status in ((96.0, 0), (94.0, 1)):
        rates = {"memory": 100.0, "png": 80.0, "kept": kept}
        one = {"network": "source", "images_per_second": rates, "rounds": {}, "kept_over_memory": kept / 100}
        monkeypatch.setattr(loading, "measured", lambda *_: [one])  # noqa: B023
        assert loading.main(["--quick", "--out", str(tmp_path)]) == status
        assert json.loads((tmp_path / "loading.json").read_text())["networks"] == [one]
        assert f"source: memory 100, png 80, kept {kept:.0f}\n" in capsys.readouterr().out


def test_plain_jax_is_given_the_options_of_a_step(same_options):
    reference, plain, told, ours = same_options.with_options(2)
    assert [one.name for one in (reference, plain, ours)] == ["jax, 1 device", "jax, 2 devices", "jaxcnn"]
    assert (told.name, told.module, told.devices) == ("jax, 2 devices, a step's options", plain.module, 2)
    network, optimizer = jaxcnn.models.source(), optax.sgd(0.1)
    step = jaxcnn.train_steps(network, jaxcnn.softmax_cross_entropy, optimizer)
    state, indices = jaxcnn.init_train_state(network, optimizer, 0, (8, 8, 1)), np.zeros((1, 4), int)
    program = step.trace(state, np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, int), indices).jaxpr.jaxpr
    assert compiler_options(program, step.mesh, in_pieces=False) == told.options["compiler_options"]


def test_the_ratios_are_of_medians(same_options):
    rows = [("jax, 1 device", 9.0), ("jax, 2 devices", 8.0), ("jax, 2 devices, a step's options", 6.0), ("jaxcnn", 2.0)]
    made = tuple(Row(name, "", False, seconds=(1.0, seconds, 99.0)) for name, seconds in rows)
    found = same_options.ratios_of(Result(NETWORKS[-1], 32, 1, 1.0, made))
    wanted = {"network": "resnet20", "size": "32×32×3", "batch": 32, "over": 4.0, "over_told": 3.0}
    assert found == wanted


def test_the_record_beside_jax_with_the_same_options_is_told():
    record = json.loads((FOLDER / "same_options.json").read_text("utf-8"))
    assert record["command"] == "python experiments/speed/same_options.py"
    told = [[one["over_told"] for one in record["ratios"] if one["network"] == name] for name in ("two_conv", "source")]
    (rest,) = [[one["over_told"] for one in record["ratios"] if one["network"] == "resnet20"]]
    ranges = [f"{min(each):.1f} to {max(each):.1f}" for each in told]
    readme = " ".join((FOLDER.parents[1] / "README.md").read_text("utf-8").split())
    wanted = f"two_conv is {ranges[0]} times as fast as jax, the source's network, a step at a time, {ranges[1]}"
    assert wanted in readme
    assert [f"{ratio:.1f}" for ratio in rest] == ["1.1", "1.5", "1.5"]


def test_files_and_memory_are_the_same_images(loading, tmp_path, monkeypatch):
    """And each way is timed, the waiting for images included."""
    for name, value in (("TRAIN", 64), ("TEST", 20), ("SECONDS", 0.01)):
        monkeypatch.setattr(loading, name, value)
    (found,) = loading.measured(tmp_path, quick=True)
    reading = ["reading png", "reading jpg", "reading kept"]
    assert list(found["images_per_second"]) == ["memory", "png", "kept", *reading]
    assert all(len(each) == 1 and each[0] > 0 for each in found["rounds"].values())
    data = loading.data_by_way(tmp_path)
    assert data["memory"].train.images.shape == (64, 32, 32, 3)
    assert (data["kept"].train.images[:] == data["memory"].train.images).all()
    assert data["png"].sha256 == data["kept"].sha256 != data["jpg"].sha256
    clock = [0.0]

    def waited(chunks):
        for one in chunks:
            clock[0] += 2.0
            yield one

    chunks_of = loading.chunk.chunks_of
    monkeypatch.setattr(loading.chunk, "chunks_of", lambda run, done: waited(chunks_of(run, done)))
    monkeypatch.setattr(loading.time, "perf_counter", lambda: clock[0])
    run = loading.run_of("source", data["png"])
    assert loading.rate_of(run, lambda _: None, seconds=3.0) == 2 * 64 / 4.0
