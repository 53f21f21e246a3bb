"""What is saved is what is loaded, bit for bit; a run folder can be resumed from wherever it was left."""

from __future__ import annotations

import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn
from jaxcnn.training.checkpoint import params_sha256
from jaxcnn.training.idx import DataError
from jaxcnn.training.run_folder import RunFolder

NESTED = {
    "conv2d": {"filters": np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3), "bias": np.zeros(1, np.float32)},
    "residual": {"dense": {"weights": jnp.full((2, 3), 1 / 3, jnp.bfloat16), "scale": np.float64(1 / 3)}},
}


def assert_same_bits(got: Any, wanted: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert (np.asarray(a).dtype, np.shape(a)) == (np.asarray(b).dtype, np.shape(b))
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    ("params", "state"),
    [(NESTED, {"norm": {"mean": np.ones(3, np.float32)}}), (NESTED, {}), (NESTED, None), ({}, {}), ({"relu": {}}, {})],
    ids=["state", "empty state", "no state", "nothing", "a layer without parameters"],
)
def test_save_and_load(tmp_path, params, state):
    jaxcnn.save(tmp_path / "a" / "network", params, state)
    got = jaxcnn.load(str(tmp_path / "a" / "network"))
    assert_same_bits(got, (params, state or {}))


def test_a_network_made_by_jaxcnn_comes_back(tmp_path):
    params, state, _ = jaxcnn.models.source().init(jax.random.key(0), (8, 8, 1))
    jaxcnn.save(tmp_path / "network", params, state)
    assert_same_bits(jaxcnn.load(tmp_path / "network"), (params, state))


def test_orbax_alone_reads_it(tmp_path):
    from orbax.checkpoint import v1

    jaxcnn.save(tmp_path / "network", NESTED)
    assert_same_bits(v1.load(tmp_path / "network"), {"params": NESTED, "state": {}})


def test_an_existing_path_is_left_as_it_is(tmp_path):
    jaxcnn.save(tmp_path / "network", NESTED)
    for path in (tmp_path, tmp_path / "network"):
        with pytest.raises(FileExistsError, match=f"save: {path} exists; give a new path"):
            jaxcnn.save(path, {"other": np.ones(1)})
    assert_same_bits(jaxcnn.load(tmp_path / "network")[0], NESTED)


def test_load_of_a_run_folder_gives_its_newest_network(tmp_path):
    state = jaxcnn.init_train_state(jaxcnn.models.source(), optax.sgd(0.1), 0, (8, 8, 1))
    with RunFolder(tmp_path / "run") as folder:
        folder.create({}, state)
        later = jax.tree.map(lambda p: p + 1, state.params)
        folder.keep(state._replace(params=later, step=jnp.int32(7)), {})
    params, kept = jaxcnn.load(tmp_path / "run")
    assert kept == {}
    assert jax.tree.structure(params) == jax.tree.structure(later)
    assert all(
        (np.asarray(a) == np.asarray(b)).all() for a, b in zip(*map(jax.tree.leaves, (params, later)), strict=True)
    )


def test_save_refuses_a_whole_train_state(tmp_path):
    state = jaxcnn.init_train_state(jaxcnn.models.source(), optax.sgd(0.1), 0, (8, 8, 1))
    with pytest.raises(
        TypeError, match=r"save: got a TrainState, required its parts: save\(path, state.params, state.s"
    ):
        jaxcnn.save(tmp_path / "network", state)


def test_load_of_what_is_no_network(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        jaxcnn.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"is neither a complete network of jaxcnn\.save nor a run folder"):
        jaxcnn.load(tmp_path)
    jaxcnn.save(tmp_path / "network", NESTED)
    for file in (tmp_path / "network").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(DataError, match=r"network is neither a complete network of jaxcnn\.save") as error:
        jaxcnn.load(tmp_path / "network")
    assert "\n" not in str(error.value)


def test_digest_tells_all_differences():
    zeros = np.zeros((2, 3), np.float32)
    differing = [
        {"dense": {"weights": zeros}},
        {"dense": {"weights": zeros + np.float32(1e-45)}},
        {"dense": {"weights": -zeros}},
        {"dense": {"weights": zeros.T}},
        {"dense": {"weights": zeros.astype(np.int32)}},
        {"dense": {"filters": zeros}},
        {"dense_1": {"weights": zeros}},
        {"dense": {"weights": zeros, "bias": zeros[0]}},
        {"dense": {"weights": np.float32([[0, 0, 1], [0, 0, 0]])}},
        {"dense": {"weights": np.float32([[0, 0, 0], [1, 0, 0]])}},
    ]
    assert len({params_sha256(params) for params in differing}) == len(differing)


def test_digest_depends_on_nothing_else():
    weights, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
    same = [
        {"weights": weights, "bias": bias},
        {"bias": bias, "weights": weights},
        {"weights": np.asfortranarray(weights), "bias": jnp.asarray(bias)},
    ]
    assert len({params_sha256(params) for params in same}) == 1


# A run folder. The state is small, but has all that a real one has: nested optax state, a step, a key.


def state_at(step: int, seed: int = 0):
    network = jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(3))
    state = jaxcnn.init_train_state(network, optax.adamw(optax.cosine_decay_schedule(0.1, 9)), seed, (2, 2, 1))
    return state._replace(step=jnp.asarray(step, jnp.int32), params=jax.tree.map(lambda p: p + step, state.params))


def steps_kept(folder: RunFolder) -> list[int]:
    return sorted(int(path.name) for path in (folder.path / "checkpoints").iterdir())


@pytest.fixture
def folder(tmp_path):
    """A run of five epochs of 10 steps, as it is left."""
    with RunFolder(tmp_path / "runs" / "one") as folder:
        folder.create({"seed": 3}, state_at(0))
        for step in range(10, 60, 10):
            folder.log({"step": step, "train_loss": 1 / step})
            folder.keep(state_at(step), {})  # at once: none may be left out because the one before is being written
    return RunFolder(folder.path)


def test_every_epoch_has_its_checkpoint(folder):
    assert steps_kept(folder) == [0, 10, 20, 30, 40, 50]
    assert all(map(folder.has_checkpoint, steps_kept(folder)))
    assert not folder.has_checkpoint(60)
    assert folder.config() == {"seed": 3}
    assert [line["step"] for line in folder.metrics()] == [10, 20, 30, 40, 50]
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_the_first_checkpoint_comes_before_the_config(tmp_path, monkeypatch):
    """So a folder that has its config.json, however the run ended, can be resumed."""
    folder, seen = RunFolder(tmp_path / "run"), []

    class Json:
        def dumps(self, config, **_):
            seen.append((config, steps_kept(folder)))
            return "{}"

    monkeypatch.setattr("jaxcnn.training.checkpoint.json", Json())
    with folder:
        folder.create({"seed": 3}, state_at(0))
    assert seen == [({"seed": 3}, [0])]


def test_resume_restores_the_very_bits(folder):
    with folder:
        state, sums = folder.resume(state_at(0, seed=1))
    assert_same_bits(state, state_at(50))
    assert sums == {"loss": 0.0, "seconds": 0.0}
    jax.random.normal(state.key)  # a typed key, as it was


def test_resume_in_the_middle_of_an_epoch(folder):
    with folder:
        folder.resume(state_at(0))
        folder.keep(state_at(53), {"loss": 1 / 3, "seconds": 0.1})
    with folder:
        state, sums = folder.resume(state_at(0))
    assert int(state.step) == 53
    assert sums == {"loss": 1 / 3, "seconds": 0.1}


def test_metrics_after_the_newest_checkpoint_are_dropped(folder):
    shutil.rmtree(folder.path / "checkpoints" / "50")  # the line was written, then the power failed
    whole = (folder.path / "metrics.jsonl").read_bytes()
    (folder.path / "metrics.jsonl").write_bytes(whole + b'{"step": 60, "trai')
    assert [line["step"] for line in folder.metrics()] == [10, 20, 30, 40, 50]  # half a line was never one
    with folder:
        assert int(folder.resume(state_at(0))[0].step) == 40
        folder.log({"step": 50, "train_loss": 1 / 50})
    assert (folder.path / "metrics.jsonl").read_bytes() == whole


def test_what_cannot_be_resumed(folder, tmp_path):
    def resume(path):
        with RunFolder(path) as other:
            other.config()
            other.metrics()
            other.resume(state_at(0))

    checkpoints = folder.path / "checkpoints"
    breaks = {
        f"checkpoint cannot be read; remove {checkpoints / '50'} to go on from an earlier one$": (
            lambda: (checkpoints / "50" / "state" / "_METADATA").write_text("")
        ),
        "no checkpoint in checkpoints/; start the run anew": lambda: [
            shutil.rmtree(path) for path in checkpoints.iterdir()
        ],
        "metrics.jsonl is damaged: ": lambda: (folder.path / "metrics.jsonl").write_text("{\n"),
        "config.json is damaged: ": lambda: (folder.path / "config.json").write_text("{"),
        "no run there: config.json: No such file": lambda: (folder.path / "config.json").unlink(),
    }
    for says, break_it in breaks.items():  # each later one is met before the earlier
        break_it()
        with pytest.raises(DataError, match=f"--resume {folder.path}: {says}"):
            resume(folder.path)
    with pytest.raises(DataError, match="no run there"):
        resume(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_new_run_needs_a_new_folder(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "file").touch()
    for path, says in {
        folder.path: "holds files already; give a new folder, or --resume it",
        tmp_path / "file": f"{tmp_path / 'file'} is no folder that can be written to; give another",
        tmp_path / "file" / "below": f"{tmp_path / 'file'} is no folder that can be written to",
    }.items():
        for refuse in (RunFolder(path).require_new, lambda p=path: RunFolder(p).create({}, state_at(0))):
            with pytest.raises(DataError, match=f"--out {path}: {says}"):
                refuse()
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").require_new()
    RunFolder(tmp_path / "a" / "b").require_new()
    assert not (tmp_path / "a").exists()
