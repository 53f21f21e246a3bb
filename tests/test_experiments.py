"""The experiments on training: what they share, that each runs, and that its result is what its code and README say."""

from __future__ import annotations

import importlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from experiment_folder import FOLDER, README, experiment, imported, result_of

import jaxcnn

NAMES = ("manual_vs_autodiff", "pooling_ties", "relu_at_zero", "famous_mistakes")


@pytest.fixture(scope="module", autouse=True)
def folder():
    with imported("famous_mistakes"):
        yield


@pytest.fixture(scope="module")
def common():
    return importlib.import_module("common")


# --- each experiment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_quick_runs(name, tmp_path):
    assert experiment(name).main(["--quick", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert record["command"] == f"python experiments/{name}/run.py --quick"
    assert set(record["versions"]) >= {"python", "jax", "optax"}
    assert record["cpu"]
    assert str(FOLDER) not in json.dumps(record)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_run_is_committed_and_listed(name):
    record = result_of(name)
    assert record["command"] == f"python experiments/{name}/run.py"
    assert (FOLDER / name / f"{name}.png").stat().st_size > 10_000
    row = next(line for line in README.splitlines() if line.startswith(f"| [{name}]"))
    assert f"`{record['command']}`" in row
    assert f"{name}/result.json" in row
    assert f"{name}/{name}.png" in row


# --- what they have in common ---------------------------------------------------------------------------------------


def test_the_committed_record_is_not_written_over_by_a_quick_run(tmp_path, monkeypatch, capsys):
    command_line = importlib.import_module("command_line")
    parser = command_line.parser_of("What?\n", "less", "result.json")
    script = str(tmp_path / "why" / "run.py")
    monkeypatch.setattr(command_line.tempfile, "tempdir", str(tmp_path))
    whole, quick = (command_line.parsed(parser, script, given) for given in ([], ["--quick"]))
    assert (whole.out, whole.command) == (tmp_path / "why", "python experiments/why/run.py")
    assert quick.command == "python experiments/why/run.py --quick"
    assert quick.out.parent == tmp_path
    assert quick.out.name.startswith("jaxcnn-quick-")
    assert capsys.readouterr().out == f"--quick without --out: what is written goes to {quick.out}\n"
    assert command_line.parsed(parser, script, ["--quick", "--out", str(tmp_path / "a" / "b")]).out.is_dir()


@pytest.mark.parametrize("out", ["a file", "a file/below", "/proc"])
def test_where_nothing_can_be_written_nothing_is_run(out, tmp_path, capsys):
    (tmp_path / "a file").touch()
    command_line = importlib.import_module("command_line")
    parser = command_line.parser_of("What?\n", "less", "result.json")
    with pytest.raises(SystemExit) as end:
        command_line.parsed(parser, __file__, ["--out", str(tmp_path / out)])
    assert end.value.code == 2
    assert f"error: --out: nothing can be written to {tmp_path / out}: " in capsys.readouterr().err


def test_without_fashion_mnist_an_experiment_says_what_to_install(common, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "PACKAGED", tmp_path / "none")
    with pytest.raises(SystemExit, match=r"/none: no such folder; install Debian's package dataset-fashion-mnist$"):
        common.fashion([0], train=1, validation=1)


# --- pooling_ties ---------------------------------------------------------------------------------------------------


def test_ties_are_counted_before_and_behind_the_relu():
    """Four windows: no tie; one above zero; one of negative values; one that the ReLU makes."""
    z = jnp.array([[1.0, 2, 5, 5], [3, 4, 1, 0], [-1, -1, -3, 0], [-2, -5, -1, -2]])[None, ..., None]
    ties = experiment("pooling_ties").ties_of(z)
    assert {name: float(share) for name, share in ties.items()} == {"before": 0.5, "after": 0.75, "above zero": 0.25}


def test_pooling_ties_says_what_was_found():
    module, record = experiment("pooling_ties"), result_of("pooling_ties")
    assert [tuple(r[k] for k in ("data", "optimizer", "dtype")) for r in record["results"]] == [
        (data, optimizer, dtype) for data in module.SEEDS for optimizer in module.OPTIMIZERS for dtype in module.DTYPES
    ]
    assert all(r["seeds"] == list(module.SEEDS[r["data"]]) for r in record["results"])
    assert record["rates"] == {name: list(rates) for name, (_, rates) in module.OPTIMIZERS.items()}
    assert record["epochs"] == module.EPOCHS
    assert record["relu_and_pooling_commute"]
    for result in record["results"]:
        assert f"\n{module.row(result)}\n" in README


# --- manual_vs_autodiff ---------------------------------------------------------------------------------------------


def test_errors_are_in_units_of_the_largest_element():
    module = experiment("manual_vs_autodiff")
    exact = {"a": np.array([3.0, 4.0]), "b": np.array([0.5])}
    unit = 2.0**-23
    got = {"a": np.array([3.0, 4 + 8 * unit]), "b": np.array([0.5 + 6 * unit / 2])}
    ulps, relative = module.errors(got, exact, "float32")
    assert ulps == pytest.approx(6)  # of b, whose unit is half of float32's at 1; of a they are 2
    assert relative == pytest.approx(np.hypot(8, 3) * unit / np.sqrt(25.25))


def test_a_trajectory_by_autodiff_is_the_same_again_and_another_in_another_order():
    module = experiment("manual_vs_autodiff")
    split = importlib.import_module("common").digits((0, 1))
    runs = [module.trajectory("float32", split, (0, 1), 3, "autodiff", other)[0] for other in (False, False, True)]
    assert runs[0].shape[:2] == (3, 2)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    np.testing.assert_allclose(runs[0], runs[2], atol=1e-5)


def test_manual_vs_autodiff_says_what_was_found():
    module, record = experiment("manual_vs_autodiff"), result_of("manual_vs_autodiff")
    assert (record["seeds"], record["steps"]) == (list(module.SEEDS), module.STEPS)
    assert {n["network"] for n in record["networks"]} == set(module.NETWORKS)
    assert {r["rule"] for r in record["rules"]} >= {"conv2d", "max_pool", "relu", "sigmoid", "softmax_cross_entropy"}
    assert module.in_words(record["rules"], record["networks"], record["training"]) in README


# --- relu_at_zero ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_slope_is_the_derivative_at_0_alone(dtype):
    module = experiment("relu_at_zero")
    x = jnp.array([-1.0, -0.0, 0.0, 2.0], dtype)
    dx, dslope = jax.vjp(module.relu, x, jnp.array(0.25))[1](jnp.full(4, 3.0, dtype))
    assert dx.tolist() == [0, 0.75, 0.75, 3]
    assert float(dslope) == 0
    assert jaxcnn.verify(module.relu, np.linspace(-1, 1, 8), np.zeros(())).ok


def test_relu_at_zero_says_what_was_found():
    module, record = experiment("relu_at_zero"), result_of("relu_at_zero")
    of = [
        (data, optimizer, dtype) for data in module.DATA for optimizer in module.OPTIMIZERS for dtype in module.DTYPES
    ]
    assert [(r["data"], r["optimizer"], r["dtype"]) for r in record["results"]] == of
    assert record["seeds"] == list(module.SEEDS)
    assert record["rates"] == {name: list(rates) for name, (_, rates) in module.OPTIMIZERS.items()}
    assert record["epochs"] == module.EPOCHS
    for result in record["results"]:
        assert [g["slope"] for g in result["by_slope"]] == list(module.SLOPES)
        assert f"\n{module.row(result)}\n" in README


# --- the tutorial ---------------------------------------------------------------------------------------------------


def test_the_tutorial_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(block.splitlines()) == 60
    exec(compile(block, "experiments/README.md", "exec"), {})
    ok, found, compared, *near = capsys.readouterr().out.splitlines()
    assert ok == "True"
    assert found.startswith("dx ")
    assert re.fullmatch(r"without the square [+-]\d+\.\d\d ± \d+\.\d\d points", compared)
    cosines = {line.split(":")[0]: float(line.split()[2].rstrip(",")) for line in near}
    assert cosines.keys() == {"conv2d/bias", "conv2d/filters", "dense/bias", "dense/weights"}
    assert cosines["dense/weights"] == pytest.approx(1, abs=1e-3)  # above the changed rule all is right
    assert 0.5 < cosines["conv2d/filters"] < 0.999


# --- what they share ------------------------------------------------------------------------------------------------


def network(common):
    """ReLU, negated as variant 1, with a gradient of zero as variant 3."""
    changed = {
        1: jaxcnn.relu.replace(backward=lambda r, dy: (-jaxcnn.relu.backward(r, dy)[0],)),
        3: jaxcnn.relu.replace(backward=lambda r, dy: (jnp.zeros_like(dy),)),
    }
    activation = common.one_of(jaxcnn.ReLU(), {i: jaxcnn.ReLU(rule=rule) for i, rule in changed.items()})
    return jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(6), activation, jaxcnn.Dense(10)), changed


@pytest.mark.parametrize("variant", range(5))
def test_a_variant_is_the_changed_layer(common, variant):
    switched, changed = network(common)
    rule = changed.get(variant, jaxcnn.relu)
    plain = jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(6), jaxcnn.ReLU(rule=rule), jaxcnn.Dense(10))
    images, labels = jax.random.normal(jax.random.key(1), (8, 2, 2, 1)), jnp.arange(8)
    states = [jaxcnn.init_train_state(n, optax.sgd(0.1), 0, (2, 2, 1)) for n in (switched, plain)]
    states[0] = states[0]._replace(state=common.with_leaves(states[0].state, "variant", variant))
    ways = (
        jaxcnn.gradients(n, jaxcnn.softmax_cross_entropy, s, images, labels)
        for n, s in zip((switched, plain), states, strict=True)
    )
    for a, b in zip(*map(jax.tree.leaves, ways), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_row_is_trained_as_it_would_be_alone(common):
    """Variant 1 at the first rate with the second seed, against `train_steps`; and the best epoch is what is kept."""
    switched, changed = network(common)
    seeds, rates, epochs = (3, 7), (0.1, 0.01), 3
    split = common.digits(seeds)
    variants = [{"variant": 0}, {"variant": 1}]
    how = {"rates": rates, "epochs": epochs, "variants": variants, "optimizer": optax.sgd}
    trained = common.train(switched, split, seeds, **how, watch=lambda states: {"step": states.step})
    assert trained.loss.shape == trained.validation.shape == (2, 2, 2, epochs)
    steps = split.train.labels.shape[1] // 32
    assert [int(w["step"][1, 0, 1]) for w in trained.watched] == [steps * e for e in range(epochs + 1)]

    plain = jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(6), jaxcnn.ReLU(rule=changed[1]), jaxcnn.Dense(10))
    mesh = jax.make_mesh((1,), ("batch",))
    run = jaxcnn.train_steps(plain, jaxcnn.softmax_cross_entropy, optax.sgd(0.1), mesh=mesh)
    state = jaxcnn.init_train_state(plain, optax.sgd(0.1), 7, (8, 8, 1))
    images, labels = (jnp.asarray(a[1]) for a in split.train)
    kept, highest = None, -1.0
    for epoch in range(epochs):
        order = jaxcnn.shuffled(len(labels), 32, seed=7, epoch=epoch)
        state, metrics = run(state, images, labels, order)
        assert float(metrics["loss"].mean()) == pytest.approx(trained.loss[1, 0, 1, epoch], rel=1e-4)
        got = jaxcnn.evaluate(plain, state, split.validation.images[1], split.validation.labels[1])["accuracy"]
        assert trained.validation[1, 0, 1, epoch] == pytest.approx(got, abs=0.008)  # one image or two by rounding
        if trained.validation[1, 0, 1, epoch] > highest:
            highest, kept = trained.validation[1, 0, 1, epoch], jax.device_get(state.params)
    for a, b in zip(*map(jax.tree.leaves, (kept, trained.best.params)), strict=True):
        np.testing.assert_allclose(b[5], a, rtol=2e-3, atol=1e-4)


def test_the_rate_is_chosen_on_validation_and_tested_as_chosen(common):
    validation = np.array([[[[0.5, 0.8]], [[0.9, 0.1]], [[0.7, 0.7]]], [[[0.3, 0.2]], [[0.1, 0.1]], [[0.2, 0.1]]]])
    network = jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(2, bias=False))
    # Six rows, variants × rates: the network of row k says class 0 for k images of six.
    weights = np.zeros((6, 1, 2), np.float32)
    weights[..., 1] = 1
    best = jaxcnn.init_train_states(network, optax.sgd(1.0), [0] * 6, (1, 1, 1))
    best = best._replace(
        params={"dense": {"weights": jnp.asarray(weights) * np.array([1, -1, 1, 1, 1, -1]).reshape(6, 1, 1)}}
    )
    trained = common.Trained((1.0, 2.0, 3.0), validation, validation, best, [])
    assert trained.chosen.tolist() == [1, 0]
    assert trained.at_chosen.tolist() == [1, 3]
    samples = jaxcnn.training.samples.Samples(np.ones((1, 6, 1, 1, 1), np.float32), np.zeros((1, 6), np.int32))
    split = common.Split(samples, samples, samples)
    assert common.tested(network, trained, split).tolist() == [[1.0], [0.0]]


def test_digits_of_a_seed_are_shared_out_once(common):
    split = common.digits((0, 1))
    sizes = [part.labels.shape for part in split]
    assert sizes == [(2, 1149), (2, 288), (2, 360)]
    each = [{image.tobytes() for image in part.images[0].round(3)} for part in split]
    assert sum(map(len, each)) == len(set.union(*each)) == 1797
    assert (split.train.labels[0] != split.train.labels[1]).any()


def test_paired_interval():
    """Student's for five differences of mean 1 and deviation 1: ± 2.776 / √5."""
    common = importlib.import_module("common")
    others = np.array([1.0, 5.0, 2.0, 8.0, 3.0])
    differences = 1 + np.array([-1, 1, -1, 1, 0.0])
    got = common.paired(others + differences, others)
    assert got["mean"] == pytest.approx(1)
    assert (got["high"] - got["low"]) / 2 == pytest.approx(2.7764 / np.sqrt(5), rel=1e-4)


def test_numbers_are_written_to_five_digits(common, tmp_path):
    options = common.options_of(str(FOLDER / "pooling_ties" / "run.py"), "What?", "", ["--out", str(tmp_path)])
    common.write(options, mean=np.float64(1 / 3), each=np.array([[1, 2]]), line=np.array([2 / 3]), one=np.float32(0.1))
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["mean"], record["each"], record["line"], record["one"]) == (0.33333, [[1, 2]], [0.66667], 0.1)


def test_a_name_that_no_layer_keeps(common):
    with pytest.raises(AssertionError, match="no layer keeps slope"):
        common.with_leaves({"relu": {"variant": jnp.zeros(())}}, "slope", 1)
