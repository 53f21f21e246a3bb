"""`jaxcnn train --tensorboard`: the event files hold what metrics.jsonl holds."""

import json
import struct
import sys

import pytest

from jaxcnn import cli
from jaxcnn.training import devices
from jaxcnn.training.board import Board
from jaxcnn.training.loop import EpochEnd, Progress


def scalars(folder):
    """{name: {step: value}} of all event files in a folder, a later file's over an earlier one's.

    A record is a length of 8 bytes, a checksum of 4, as many bytes of a protocol buffer, a checksum of 4.
    """
    from tensorboardX.proto import event_pb2

    found: dict[str, dict[int, float]] = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            place += 16 + length
    return found


@pytest.fixture(autouse=True)
def _devices(monkeypatch):
    monkeypatch.setattr(devices, "use_cpu_cores", lambda n: n)  # this process has used its devices already


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_curves_are_those_of_the_metrics(tmp_path):
    command = ["train", "--epochs", "2", "--validation", "0.2", "--out", str(tmp_path / "run")]
    assert cli.main([*command, "--tensorboard"]) == 0
    found = scalars(tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    for name in ("train_loss", "validation_accuracy", "images_per_second"):
        expected = {line["step"]: line[name] for line in lines}
        assert found[f"epoch/{name}"] == pytest.approx(expected, rel=1e-6)
    assert found["epoch/test_accuracy"] == pytest.approx({lines[-1]["step"]: lines[-1]["test_accuracy"]}, rel=1e-6)
    steps = lines[-1]["step"]
    assert max(found["step/loss"]) == steps
    assert len(found["step/loss"]) >= 2


def test_no_events_where_none_are_asked_for(tmp_path):
    assert cli.main(["train", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_seeds_and_layers_have_a_curve_each(tmp_path):
    line = {
        "step": 7,
        "epoch": 1,
        "train_loss": [0.5, 0.25],
        "gradient_norms": {"dense/bias": [1.0, 2.0]},
        "seconds": 3,
        "params_sha256": ["a", "b"],
    }
    with Board(tmp_path, range(3, 5)) as board:
        board.show(EpochEnd(line))
    assert scalars(tmp_path) == {
        "epoch/train_loss/seed_3": {7: 0.5},
        "epoch/train_loss/seed_4": {7: 0.25},
        "epoch/gradient_norms/dense/bias/seed_3": {7: 1.0},
        "epoch/gradient_norms/dense/bias/seed_4": {7: 2.0},
        "epoch/seconds": {7: 3.0},
    }


def test_what_is_done_again_after_an_interrupt_is_shown_once(tmp_path):
    from tensorboardX.proto import event_pb2

    with Board(tmp_path, range(1)) as board:
        for step in (10, 20, 30):
            board.show(Progress(0, step, 100, 1.0, 1.0))
    with Board(tmp_path, range(1)) as board:
        board.show(Progress(0, 20, 100, 2.0, 1.0))
    _, file = sorted((tmp_path / "tensorboard").iterdir())
    second = file.read_bytes()
    events, place = [], 0
    while place < len(second):
        (length,) = struct.unpack_from("<Q", second, place)
        events.append(event_pb2.Event.FromString(second[place + 12 : place + 12 + length]))
        place += 16 + length
    # By this TensorBoard leaves out what earlier files have from step 20 on.
    assert [e.step for e in events if e.session_log.status == event_pb2.SessionLog.START] == [20]


def test_without_tensorboardX(tmp_path, monkeypatch, capsys):
    from jaxcnn import __main__ as command

    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(sys, "argv", ["jaxcnn", "train", "--tensorboard", "--out", str(tmp_path / "run")])
    assert command.main() == 2
    says = 'jaxcnn: needs the package tensorboardX; install it with: pip install "jaxcnn[tensorboard]"\n'
    assert capsys.readouterr().err == says
    assert not (tmp_path / "run").exists()
    says = (
        "needs the package tensorboardX for the event files of TensorBoard; install it with: pip install .*tensorboard"
    )
    with pytest.raises(ModuleNotFoundError, match=says):
        Board(tmp_path, range(1))
