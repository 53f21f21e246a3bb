"""What holds of every public name."""

import inspect
import pathlib
import subprocess
import sys

import pytest

import jaxcnn
from jaxcnn.verification.cases import short_cases

RULES = {n: getattr(jaxcnn, n) for n in jaxcnn.__all__ if isinstance(getattr(jaxcnn, n), jaxcnn.Rule)}
# Each constructor, and what its layer is called.
CONSTRUCTORS = {
    "AdaptiveAvgPool": "adaptive_avg_pool", "AvgPool": "avg_pool", "Conv1D": "conv1d",
    "Conv2D": "conv2d", "Conv3D": "conv3d",
    "ConvTranspose2D": "conv_transpose2d", "Dense": "dense", "DepthToSpace": "depth_to_space", "Flatten": "flatten",
    "GlobalAvgPool": "global_avg_pool", "GlobalMaxPool": "global_max_pool", "MaxPool": "max_pool",
    "ReLU": "relu", "ReflectPad": "reflect_pad", "Sigmoid": "sigmoid", "SpaceToDepth": "space_to_depth",
    "Upsample": "upsample", "ZeroPad": "zero_pad", "residual": "residual", "sequential": "source",
    "ELU": "elu", "GELU": "gelu", "HardSigmoid": "hard_sigmoid", "HardSwish": "hard_swish", "LeakyReLU": "leaky_relu",
    "LogSoftmax": "log_softmax", "PReLU": "prelu", "ReLU6": "relu6", "SELU": "selu", "SiLU": "silu",
    "Softmax": "softmax", "Softplus": "softplus", "Tanh": "tanh",
    "BatchNorm": "batch_norm", "Dropout": "dropout", "GroupNorm": "group_norm", "Identity": "identity",
    "LayerScale": "layer_scale", "SqueezeExcitation": "squeeze_excitation", "parallel": "parallel",
    "with_dtypes": "mixed",
    "InstanceNorm": "instance_norm", "LayerNorm": "layer_norm", "RMSNorm": "rms_norm",
    "SpatialDropout": "spatial_dropout", "StochasticDepth": "stochastic_depth",
}  # fmt: skip
# Every rule is public under its own name: a rule left out of jaxcnn/__init__.py would escape the tests below.
SOURCES = sorted(pathlib.Path(jaxcnn.__file__).parent.rglob("*.py"))


def test_the_rules_are_those_of_the_design():
    assert set(RULES) >= {"conv2d", "dense", "flatten", "max_pool", "relu", "sigmoid", "softmax_cross_entropy"}


def test_every_rule_that_is_defined_is_public():
    defined = {
        line.split(" = ")[0]
        for path in SOURCES
        for line in path.read_text().splitlines()
        if " = Rule(" in line and not line.startswith((" ", "#", ">>>"))
    }
    assert defined == set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_cases_in_the_verifiers_table(name):
    assert [c for c in short_cases() if c.subject == RULES[name]]


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_layer_has_a_case_in_the_verifiers_table(name):
    layers = [c.subject.name for c in short_cases() if isinstance(c.subject, jaxcnn.Layer)]
    assert CONSTRUCTORS[name] in layers


def test_constructors_are_all_that_make_layers():
    makes = {
        n for n in jaxcnn.__all__
        if inspect.isfunction(f := getattr(jaxcnn, n)) and inspect.signature(f).return_annotation == "Layer"
    }  # fmt: skip
    assert makes == set(CONSTRUCTORS)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_documented(name):
    doc = inspect.getdoc(RULES[name])
    for section in ("Args:", "Returns:", "Raises:", "Source:", ">>> "):
        assert section in doc, section
    for parameter in inspect.signature(RULES[name]).parameters:
        assert f"{parameter}:" in doc, parameter
    assert RULES[name].name == RULES[name].__name__ == name


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_derivation_above_its_backward_pass(name):
    lines, start = inspect.findsource(RULES[name].backward)
    assert lines[start - 1].startswith("# ")


@pytest.mark.parametrize("name", ["backproplayer", "g_maxpool", "rotate180", "unflatten"])
def test_every_plain_function_is_documented(name):
    doc = inspect.getdoc(getattr(jaxcnn, name))
    for section in ("Args:", "Returns:", "Raises:", "Source:" if name != "rotate180" else "source", ">>> "):
        assert section in doc, section


@pytest.mark.parametrize("name", jaxcnn.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(jaxcnn, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'jaxcnn' has no attribute 'conv4d'"):
        jaxcnn.conv4d  # noqa: B018


def test_import_brings_in_nothing_heavy_and_starts_no_device():
    code = (
        "import sys, jaxcnn; from jax._src import xla_bridge; "
        "print([m for m in ('optax', 'orbax', 'sklearn', 'rich', 'tyro', 'scipy.stats') if m in sys.modules], "
        "xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_optax_is_imported_by_training_alone():
    """And by the benchmark, whose contestants train with it."""
    users = {path.parent.name for path in SOURCES if "import optax" in path.read_text().replace(">>> import", "")}
    assert users == {"training", "benchmark"}


def test_no_autodiff_in_the_hand_written_path():
    """Rules, layers and models never name it; `Rule.autodiff` and the verifier are there to compare."""
    for path in SOURCES:
        if path.parent.name in ("rules", "layers") or path.name == "models.py":
            code = [line.split("#")[0] for line in path.read_text().splitlines()]
            inside = False
            for line in code:
                quotes = line.count('"""')
                inside ^= quotes == 1
                if quotes or inside:
                    continue
                assert not any(f"jax.{f}(" in line for f in ("grad", "vjp", "value_and_grad", "linearize")), line


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert jaxcnn.__version__ == version("jaxcnn")
