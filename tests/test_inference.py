"""What a run has learned, used: the classifier, `jaxcnn predict`, `jaxcnn export`."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import jaxcnn
from jaxcnn import cli
from jaxcnn.inference.images import read_images
from jaxcnn.training import devices
from jaxcnn.training.config import Config
from jaxcnn.training.data import load_data
from jaxcnn.training.loop import initially_chosen
from jaxcnn.training.run import describe, prepare
from jaxcnn.training.run_folder import RunFolder
from jaxcnn.training.samples import DataError

SIZE = 8, 8, 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained for two epochs on the digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "use_cpu_cores", lambda n: n)  # this process has used its devices already
        assert cli.main(["train", "--epochs", "2", "--out", str(folder)]) == 0
    return folder


def begun(folder, **options):
    """A run folder with the initial parameters; and the run."""
    run = prepare(Config(**options))
    with RunFolder(folder) as made:
        made.create(describe(run), run.state, initially_chosen(run))
    return run


def raw(data):
    """The test images as they were before they were standardised."""
    return data.test.images * np.float32(data.deviation) + np.float32(data.mean)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Some digits as PNG, of 8 bits."""
    folder = tmp_path_factory.mktemp("pictures")
    np.save(folder / "sixteen.npy", load_digits().images[:4])
    for i, image in enumerate(load_digits().images[:4]):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


# --- the classifier -------------------------------------------------------------------------------------------------


def test_its_accuracy_is_that_of_the_run(run):
    data = load_data("digits", seed=0)
    network = jaxcnn.classifier(run)
    probabilities = np.asarray(jax.jit(network)(raw(data)))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (probabilities.argmax(1) == data.test.labels).mean() == last["test_accuracy"]
    assert -np.log(probabilities[np.arange(360), data.test.labels]).mean() == pytest.approx(last["test_loss"], rel=1e-4)
    assert network.names == tuple("0123456789")


def test_bytes_are_divided_by_255(run):
    network = jaxcnn.classifier(run)
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE), np.uint8)
    np.testing.assert_allclose(network(images), network(images.astype(np.float32) / 255), rtol=1e-5)


def test_images_that_were_scaled_up_for_the_network(tmp_path):
    run = begun(tmp_path / "run", model="all_conv", precision="bfloat16")
    network = jaxcnn.classifier(tmp_path / "run")
    assert (network.size, network.enlarged) == (SIZE, 4)
    logits = jax.jit(run.network.forward)(run.state.params, run.state.state, run.data[0].test.images[:5])[0]
    probabilities = np.asarray(jax.jit(network)(raw(load_data("digits", seed=0))[:5]))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=2e-3)  # bfloat16
    assert np.ptp(probabilities, axis=0).max() > 1e-2  # it looks at them


def test_each_seed_has_its_own_network_and_scaling(tmp_path):
    run = begun(tmp_path / "run", seed=3, seeds=2)
    with pytest.raises(ValueError, match=r"seed: got None, but .* has the seeds 3, 4"):
        jaxcnn.classifier(tmp_path / "run")
    for i, seed in enumerate((3, 4)):
        network = jaxcnn.classifier(tmp_path / "run", seed=seed)
        params = jax.tree.map(lambda leaf, i=i: leaf[i], run.state.params)
        logits = run.network.forward(params, {}, run.data[i].test.images[:5])[0]
        np.testing.assert_allclose(network(raw(run.data[i])[:5]), jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((8, 8, 1)), ValueError, r"classifier: images must be N×8×8×1, got shape \(8, 8, 1\)"),
        (np.zeros((2, 8, 9, 1)), ValueError, r"classifier: images must be N×8×8×1, got shape \(2, 8, 9, 1\)"),
        (np.zeros((2, 8, 8, 1), int), TypeError, "classifier: images must be uint8 or floating, got int"),
    ],
)
def test_images_that_it_does_not_take(run, images, error, message):
    with pytest.raises(error, match=message):
        jaxcnn.classifier(run)(images)


# --- files of images ------------------------------------------------------------------------------------------------


def test_pictures_and_arrays_are_read_alike(pictures, tmp_path):
    given = (load_digits().images[1] * 255 / 16).astype(np.uint8)
    np.save(tmp_path / "one.npy", given)
    np.save(tmp_path / "many.npy", np.stack([given, given])[..., None])
    picture = Image.fromarray(given)
    picture.convert("RGB").save(tmp_path / "color.png")
    picture.convert("P").save(tmp_path / "palette.png")
    picture.save(tmp_path / "photo.jpg", quality=100, subsampling=0)
    for name in ("one.npy", "color.png", "palette.png"):
        np.testing.assert_array_equal(read_images(tmp_path / name, SIZE), given[None, ..., None])
    np.testing.assert_array_equal(read_images(tmp_path / "many.npy", SIZE)[1], given[..., None])
    photo = read_images(tmp_path / "photo.jpg", SIZE).astype(int)
    assert np.abs(photo[0, ..., 0] - given).max() <= 4
    color = read_images(tmp_path / "one.npy", SIZE)
    assert read_images(pictures / "1.png", (8, 8, 3)).shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(read_images(pictures / "1.png", (8, 8, 3))[..., 2], color[..., 0])


def test_a_photo_is_turned_as_it_says(tmp_path):
    tall = np.kron(np.arange(32, dtype=np.uint8).reshape(8, 4) * 8, np.ones((8, 8), np.uint8))  # 64×32
    lying = Image.fromarray(tall).transpose(Image.Transpose.ROTATE_90)
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    lying.save(tmp_path / "photo.jpg", quality=100, exif=exif)
    assert np.abs(read_images(tmp_path / "photo.jpg", (64, 32, 1))[0, ..., 0].astype(int) - tall).max() <= 8
    small = read_images(tmp_path / "photo.jpg", (8, 4, 1), resize=True)[0, ..., 0].astype(int)
    assert np.abs(small - tall[::8, ::8]).max() <= 16
    assert (small[1:] > small[:-1]).all()


def test_a_picture_of_another_size(tmp_path):
    large = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8), np.ones((4, 4), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"large.png: got 32×32 pixels, required 8×8; --resize scales it"):
        read_images(tmp_path / "large.png", SIZE)
    scaled = read_images(tmp_path / "large.png", SIZE, resize=True)[0, ..., 0].astype(int)
    assert np.abs(scaled - np.arange(64).reshape(8, 8)).max() <= 2


def spoilt(path):
    """Of each name a file that no classifier takes, and what is said of it."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (8, 8, 4), np.uint8)).save(path / "transparent.png")
    Image.fromarray(rng.integers(0, 65536, (8, 8)).astype(np.uint16)).save(path / "deep.png")
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(path / "cut.png")
    whole = (path / "cut.png").read_bytes()
    (path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (path / "words.png").write_text("no picture")
    (path / "words.npy").write_text("no array")
    np.save(path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(path / "whole.npy", np.zeros((8, 8), int))
    np.save(path / "nan.npy", np.full((8, 8), np.nan))
    np.save(path / "wide.npy", np.zeros((8, 9)))
    np.save(path / "flat.npy", np.zeros(64))
    np.save(path / "empty.npy", np.zeros((0, 8, 8, 1)))
    np.save(path / "scalar.npy", np.zeros(()))
    (path / "folder").mkdir()
    return {
        "transparent.png": "has transparent pixels; save it on a background",
        "deep.png": "got Pillow's mode I;16, required 8 bits of gray or of each colour",
        "cut.png": "cannot be read: ",
        "words.png": "no PNG or JPEG image",
        "words.npy": "no .npy file of numbers",
        "objects.npy": "no .npy file of numbers",
        "whole.npy": "got the dtype int64, required uint8 or floating",
        "nan.npy": "holds values that are NaN or infinite",
        "wide.npy": "got an array 8×9, required 8×8×1 or N×8×8×1",
        "flat.npy": "got an array 64, required 8×8×1 or N×8×8×1",
        "empty.npy": "holds no image",
        "scalar.npy": "got an array of a single number, required 8×8×1",
        "folder": "a folder; give the files in it",
        "none.png": "no such file",
    }


def test_files_that_are_no_images(tmp_path):
    for name, message in spoilt(tmp_path).items():
        with pytest.raises(DataError, match=f"{name}: {message}"):
            read_images(tmp_path / name, SIZE)


def test_a_picture_has_one_channel_or_three(pictures):
    with pytest.raises(DataError, match=r"a picture has 1 or 3 channels, the run's images have 2; give them as .npy"):
        read_images(pictures / "0.png", (8, 8, 2))


# --- the commands ---------------------------------------------------------------------------------------------------


def test_predict(run, pictures, tmp_path, capsys):
    np.save(tmp_path / "many.npy", (load_digits().images[:2] / 16).astype(np.float32))
    files = [str(pictures / "2.png"), str(tmp_path / "many.npy")]
    assert cli.main(["predict", str(run), *files, "--top", "2", "--json", str(tmp_path / "all.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    network = jaxcnn.classifier(run)
    given = np.concatenate([read_images(pictures / "2.png", SIZE) / np.float32(255), np.load(files[1])[..., None]])
    names = [files[0], f"{files[1]}[0]", f"{files[1]}[1]"]
    results = json.loads((tmp_path / "all.json").read_text())
    for line, name, result, expected in zip(lines, names, results, np.asarray(network(given)), strict=True):
        first, second = expected.argsort()[:-3:-1]
        assert line == f"{name}: {first} {expected[first]:.2%}, {second} {expected[second]:.2%}"
        assert result["image"] == name
        np.testing.assert_allclose(list(result["probabilities"].values()), expected, rtol=1e-4)
        assert list(result["probabilities"]) == list("0123456789")


LOADED = """
import sys
sys.modules["jaxcnn"] = None  # importing it is an error
import jax.export, numpy as np
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert sorted(program.platforms) == ["cpu", "cuda", "tpu"], program.platforms
np.save(sys.argv[3], program.call(np.load(sys.argv[2])))
"""


@pytest.mark.parametrize("batch", [None, 3])
def test_an_export_runs_where_this_package_is_not(run, tmp_path, capsys, batch):
    file = tmp_path / "network.stablehlo"
    more = [] if batch is None else ["--batch-size", str(batch)]
    assert cli.main(["export", str(run), "--out", str(file), *more]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{file}: {file.stat().st_size:,} bytes for cpu, cuda, tpu; ")
    assert f"# {'N' if batch is None else batch}×8×8×1, float32" in printed
    images = np.random.default_rng(0).random((3, *SIZE), np.float32)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", LOADED, file, tmp_path / "images.npy", tmp_path / "out.npy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = np.asarray(jaxcnn.classifier(run)(images))
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.01  # of different images different probabilities


def test_an_export_of_one_batch_takes_no_other(run):
    program = jax.export.deserialize(bytearray(jaxcnn.exported(jaxcnn.classifier(run), batch=2)))
    with pytest.raises(ValueError, match="shape"):
        program.call(jnp.zeros((3, *SIZE)))
    with pytest.raises(ValueError, match="exported: batch must be at least 1, got 0"):
        jaxcnn.exported(jaxcnn.classifier(run), batch=0)


def test_the_file_lies_in_the_run_folder_by_default(run):
    assert cli.main(["export", str(run)]) == 0
    assert (run / "network.stablehlo").stat().st_size > 10_000
    (run / "network.stablehlo").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict RUN", "predict: got no IMAGE, required at least one file: jaxcnn predict RUN IMAGE ..."),
        ("predict RUN none.png", "none.png: no such file"),
        ("predict RUN 0.png --top 0", "--top: got 0, required at least 1"),
        ("predict RUN 0.png --seed 5", "--seed: got 5, but "),
        ("predict RUN 0.png --json no/such.json", "--json: got no/such.json, required a file that can be written"),
        ("predict RUN sixteen.npy", "sixteen.npy: got floats from 0 to 16, required from 0 to 1, as the run's images"),
        ("predict RUN 0.png --json 0.png", "--json: got 0.png, which is one of the images; give another file"),
        ("predict nowhere 0.png", "nowhere: no run there: config.json: No such file or directory"),
        ("export nowhere", "nowhere: no run there: config.json: No such file or directory"),
        ("export RUN --out no/such", "--out: got no/such, required a file that can be written"),
        ("export RUN --batch-size 0", "--batch-size: got 0, required at least 1"),
    ],
)
def test_errors_of_the_commands(run, pictures, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(pictures)
    assert cli.main([str(run) if word == "RUN" else word for word in arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxcnn: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_readmes_snippet(run, tmp_path, monkeypatch):
    readme = (pathlib.Path(jaxcnn.__file__).parents[1] / "README.md").read_text()
    (block,) = (b for b in re.findall(r"```py\n(.*?)```", readme, re.DOTALL) if "jaxcnn.classifier" in b)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).random((2, *SIZE), np.float32)
    names = {"jax": jax, "jaxcnn": jaxcnn, "pathlib": pathlib, "images": images}
    exec(compile(block, "README.md", "exec"), names)
    np.testing.assert_allclose(names["run"](images), names["probabilities"], rtol=1e-5)
    assert names["probabilities"].shape == (2, 10)
    assert "<title>Training report: " in (tmp_path / "report.html").read_text("utf-8")


def test_a_classifier_is_frozen_and_shown_without_its_weights(run):
    assert len(repr(jaxcnn.classifier(run))) < 500
    with pytest.raises(dataclasses.FrozenInstanceError):
        jaxcnn.classifier(run).names = ()
