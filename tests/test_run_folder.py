"""A run folder can be resumed from wherever it was left, by one process at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil

import jax
import jax.numpy as jnp
import optax
import pytest
from test_checkpoint import assert_same_bits

import jaxcnn
from jaxcnn.training import run_folder
from jaxcnn.training.run_folder import RunFolder, StorageError, _of_config, no_sums
from jaxcnn.training.samples import DataError

# The state is small, but has all that a real one has: nested optax state, a step, a key.


def state_at(step: int, seed: int = 0):
    network = jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(3))
    state = jaxcnn.init_train_state(network, optax.adamw(optax.cosine_decay_schedule(0.1, 9)), seed, (2, 2, 1))
    return state._replace(step=jnp.asarray(step, jnp.int32), params=jax.tree.map(lambda p: p + step, state.params))


def steps_kept(folder: RunFolder) -> list[int]:
    return sorted(int(path.name) for path in (folder.path / "checkpoints").iterdir())


def metrics(folder: RunFolder) -> list[dict]:
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    """A run of five epochs of 10 steps, as it is left."""
    with RunFolder(tmp_path / "runs" / "one") as folder:
        folder.create({"seed": 3, "seeds": 1}, state_at(0))
        for step in range(10, 60, 10):
            folder.log({"step": step, "train_loss": 1 / step})
            folder.keep(
                state_at(step), no_sums(1)
            )  # at once: none may be left out because the one before is being written
    return RunFolder(folder.path)


def test_what_is_there(folder):
    assert steps_kept(folder) == [30, 40, 50]
    assert folder.config()["seed"] == 3
    assert [line["step"] for line in metrics(folder)] == [10, 20, 30, 40, 50]
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "checkpoints",
        "config.json",
        "lock",
        "metrics.jsonl",
    ]


def test_the_first_checkpoint_comes_before_the_config(tmp_path, monkeypatch):
    """So a folder that has its config.json, however the run ended, can be resumed."""
    folder, seen = RunFolder(tmp_path / "run"), []

    def replace(file, text):
        seen.append((file.name, json.loads(text)["seed"], steps_kept(folder)))

    monkeypatch.setattr("jaxcnn.training.run_folder._replace", replace)
    with folder:
        folder.create({"seed": 3, "seeds": 1}, state_at(0))
    assert seen == [("config.json", 3, [0])]


def test_resume_restores_the_very_bits(folder):
    with folder:
        kept = folder.resume(state_at(0, seed=1))
    assert_same_bits(kept.state, state_at(50))
    assert (kept.sums, kept.warnings) == (no_sums(1), [])
    assert kept.lines == metrics(folder)
    jax.random.normal(kept.state.key)  # a typed key, as it was


def test_resume_in_the_middle_of_an_epoch(folder):
    sums = {"loss": [1 / 3], "seconds": 0.1, "skipped": [2]}
    with folder:
        folder.resume(state_at(0))
        folder.keep(state_at(53), sums)
    with folder:
        kept = folder.resume(state_at(0))
    assert int(kept.state.step) == 53
    assert kept.sums == sums


def test_a_damaged_checkpoint_is_set_aside(folder):
    newest = folder.path / "checkpoints" / "50"
    (newest / "state" / "_METADATA").write_text("")
    before = (folder.path / "metrics.jsonl").read_bytes()
    assert int(folder.newest(state_at(0)).state.step) == 40  # which changes nothing
    assert newest.is_dir()
    with folder:
        kept = folder.resume(state_at(0))
        assert_same_bits(kept.state, state_at(40))
        assert kept.warnings == [
            f"{newest}: cannot be read; going on from the one of step 40",
            "metrics.jsonl is not that of step 40: written anew, and what was later is done again",
        ]
        assert [line["step"] for line in metrics(folder)] == [10, 20, 30, 40]
        assert (folder.path / "damaged-50" / "state" / "_METADATA").exists()
        folder.log({"step": 50, "train_loss": 1 / 50})
        folder.keep(state_at(50), no_sums(1))
    assert (folder.path / "metrics.jsonl").read_bytes() == before
    with folder:
        kept = folder.resume(state_at(0))
    assert_same_bits(kept.state, state_at(50))
    assert kept.warnings == []


def test_a_checkpoint_under_another_name(folder):
    checkpoints = folder.path / "checkpoints"
    shutil.copytree(checkpoints / "40", checkpoints / "60")
    kept = folder.newest(state_at(0))
    assert (int(kept.state.step), kept.warnings) == (50, [f"{checkpoints / '60'}: is that of step 40"])


def test_metrics_after_the_newest_checkpoint_are_dropped(folder):
    shutil.rmtree(folder.path / "checkpoints" / "50")  # the line was written, then the power failed
    whole = (folder.path / "metrics.jsonl").read_bytes()
    (folder.path / "metrics.jsonl").write_bytes(whole + b'{"step": 60, "trai')
    with folder:
        kept = folder.resume(state_at(0))
        assert int(kept.state.step) == 40
        assert kept.warnings == ["metrics.jsonl is not that of step 40: written anew, and what was later is done again"]
        folder.log({"step": 50, "train_loss": 1 / 50})
    assert (folder.path / "metrics.jsonl").read_bytes() == whole


def test_what_cannot_be_resumed(folder, tmp_path):
    def resume(path):
        with RunFolder(path) as other:
            other.config()
            other.resume(state_at(0))

    def spoil(config):
        (folder.path / "config.json").write_text(json.dumps(config))

    checkpoints, config = folder.path / "checkpoints", folder.config()
    breaks = {
        f"no checkpoint is whole: {checkpoints / '50'}: is another run's, or config.json is; {checkpoints / '40'}: ": (
            lambda: spoil(changed | {"sha256": _of_config(changed)})
        ),
        f"no checkpoint is whole: {checkpoints / '50'}: cannot be read; .*; start the run anew$": lambda: [
            (spoil(config), [(path / "state" / "_METADATA").unlink() for path in checkpoints.iterdir()])
        ],
        "no checkpoint in checkpoints/; start the run anew": lambda: [
            shutil.rmtree(path) for path in checkpoints.iterdir()
        ],
        "config.json is not as it was written, its digest is another; undo the change, or ": lambda: spoil(changed),
        "config.json is damaged: ": lambda: (folder.path / "config.json").write_text("{"),
        "no run there: config.json: No such file": lambda: (folder.path / "config.json").unlink(),
    }
    changed = config | {"seed": 4}
    for says, break_it in breaks.items():
        break_it()
        with pytest.raises(DataError, match=f"--resume {folder.path}: {says}"):
            resume(folder.path)
    with pytest.raises(DataError, match="no run there"):
        resume(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_checkpoints_that_a_run_under_way_removes_while_they_are_read(folder, monkeypatch):
    """It is told as it is, not as damage: all that were listed are gone, and a newer one is there."""
    path, aside = folder.path / "checkpoints", folder.path / "aside"
    newest, *older = sorted(path.iterdir(), key=lambda one: int(one.name), reverse=True)
    newest.rename(aside)
    read = run_folder.checkpoint.read

    def removed_meanwhile(checkpoint, *like):
        if aside.exists():
            for one in older:
                shutil.rmtree(one)
            aside.rename(newest)
        return read(checkpoint, *like)

    monkeypatch.setattr(run_folder.checkpoint, "read", removed_meanwhile)
    kept = folder.newest(state_at(0))
    assert kept.state.step == int(newest.name)
    assert kept.warnings == []


def test_one_process_at_a_time(folder):
    with folder:
        folder.resume(state_at(0))
        holder = (folder.path / "lock").read_text().strip()
        assert holder.startswith(f"process {os.getpid()} on ")
        with RunFolder(folder.path) as other, pytest.raises(StorageError) as error:
            other.resume(state_at(0))
    assert str(error.value) == f"{folder.path} is in use by {holder}; wait for its end, or give another folder"
    with RunFolder(folder.path) as other:  # it was given back
        other.resume(state_at(0))


def test_a_new_run_in_a_folder_that_another_process_has_just_taken(tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with RunFolder(tmp_path) as folder, pytest.raises(StorageError, match="is in use by another process"):
            folder.create({"seed": 0, "seeds": 1}, state_at(0))
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with RunFolder(tmp_path) as folder:  # no run has begun there: it can be a new one's
        folder.create({"seed": 0, "seeds": 1}, state_at(0))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/some/file"),
        ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [os_error_code='28']"),
    ],
    ids=["the system's", "orbax's"],
)
def test_a_checkpoint_that_cannot_be_written(folder, monkeypatch, error):
    def fail(*_):
        raise error

    with folder:
        folder.resume(state_at(0))
        with monkeypatch.context() as patched:
            patched.setattr(type(folder._checkpoints), "wait_until_finished", fail)
            with pytest.raises(StorageError) as told:
                folder.keep(state_at(60), no_sums(1))
    assert str(told.value) == (
        f"{folder.path} cannot be written to: No space left on device; the checkpoint of step 50 is whole"
    )


def test_a_new_run_needs_a_new_folder(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "file").touch()
    for path, says in {
        folder.path: "holds files already; give a new folder, or --resume it",
        tmp_path / "file": f"{tmp_path / 'file'} is no folder that can be written to; give another",
        tmp_path / "file" / "below": f"{tmp_path / 'file'} is no folder that can be written to",
    }.items():
        for refuse in (
            RunFolder(path).require_new,
            lambda p=path: RunFolder(p).create({"seed": 0, "seeds": 1}, state_at(0)),
        ):
            with pytest.raises(DataError, match=f"--out {path}: {says}"):
                refuse()
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])
    (tmp_path / "empty").mkdir()
    RunFolder(tmp_path / "empty").require_new()
    RunFolder(tmp_path / "a" / "b").require_new()
    assert not (tmp_path / "a").exists()
