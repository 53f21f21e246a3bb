"""What is saved is what is loaded, bit for bit, and nothing else is."""

from __future__ import annotations

import collections
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcnn
from jaxcnn.training.checkpoint import digest, params_sha256
from jaxcnn.training.run_folder import RunFolder, no_sums
from jaxcnn.training.samples import DataError

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
        folder.create({"seed": 0, "seeds": 1}, state)
        later = jax.tree.map(lambda p: p + 1, state.params)
        folder.keep(state._replace(params=later, step=jnp.int32(7)), no_sums(1))
    params, kept = jaxcnn.load(tmp_path / "run")
    assert kept == {}
    assert jax.tree.structure(params) == jax.tree.structure(later)
    assert all(
        (np.asarray(a) == np.asarray(b)).all() for a, b in zip(*map(jax.tree.leaves, (params, later)), strict=True)
    )


def test_load_takes_the_checkpoint_before_a_damaged_one(tmp_path):
    state = jaxcnn.init_train_state(jaxcnn.models.source(), optax.sgd(0.1), 0, (8, 8, 1))
    with RunFolder(tmp_path / "run") as folder:
        folder.create({"seed": 0, "seeds": 1}, state)
        folder.keep(state._replace(params=jax.tree.map(lambda p: p + 1, state.params), step=jnp.int32(7)), no_sums(1))
    newest, first = (tmp_path / "run" / "checkpoints" / name for name in ("7", "0"))
    (newest / "state" / "_METADATA").write_text("")
    with pytest.warns(UserWarning, match=f"load: {newest} is damaged; the checkpoint before it is taken"):
        params, _ = jaxcnn.load(tmp_path / "run")
    assert params_sha256(params) == params_sha256(state.params)
    (first / "state" / "_METADATA").write_text("")
    with pytest.warns(match="damaged"), pytest.raises(DataError, match="no checkpoint is whole"):
        jaxcnn.load(tmp_path / "run")


def test_arrays_that_are_not_those_that_were_saved(tmp_path):
    """Exchanged with another network's of the same shapes, which orbax reads without a word."""
    for name, value in (("zeros", 0.0), ("ones", 1.0)):
        jaxcnn.save(tmp_path / name, {"weights": np.full(3, value)})
    shutil.rmtree(tmp_path / "zeros" / "state")
    shutil.copytree(tmp_path / "ones" / "state", tmp_path / "zeros" / "state")
    from orbax.checkpoint import v1

    assert v1.load(tmp_path / "zeros")["params"]["weights"][0] == 1
    with pytest.raises(DataError, match="neither a complete network"):
        jaxcnn.load(tmp_path / "zeros")


def test_the_digest_of_a_checkpoint():
    """It does not depend on whether a field's name comes from a NamedTuple or a dict; it does on all else."""
    tree, record = {"b": np.zeros((2, 3), np.float32), "a": np.ones(1)}, {"run": "x", "sha256": "not itself"}
    same = digest(tree, record)
    pair = collections.namedtuple("pair", "a b")
    assert digest(pair(tree["a"], tree["b"]), {"run": "x"}) == same
    differing = [
        (tree | {"a": np.ones(2)}, record),
        (tree | {"a": np.ones((1, 1))}, record),
        (tree | {"a": np.ones(1, np.float32)}, record),
        (tree | {"b": -tree["b"]}, record),
        ({"b": tree["b"], "c": tree["a"]}, record),
        (tree, {"run": "y"}),
        (tree, {"run": "x", "sums": {}}),
    ]
    assert len({same, *(digest(*one) for one in differing)}) == 1 + len(differing)


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


def test_load_of_a_run_without_checkpoints(tmp_path):
    state = jaxcnn.init_train_state(jaxcnn.models.source(), optax.sgd(0.1), 0, (8, 8, 1))
    with RunFolder(tmp_path / "run") as folder:
        folder.create({"seed": 0, "seeds": 1}, state)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(DataError, match=r"run: no checkpoint in it$"):
        jaxcnn.load(tmp_path / "run")


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
