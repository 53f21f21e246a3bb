"""Cases of activations."""

from __future__ import annotations

from jaxcnn.layers import activation as layers
from jaxcnn.rules.piecewise_activation import elu, hard_sigmoid, hard_swish, leaky_relu, prelu, relu6, selu
from jaxcnn.rules.smooth_activation import gelu, silu, softplus, tanh
from jaxcnn.rules.softmax import log_softmax, softmax
from jaxcnn.verification.cases.case import Case, Maker, case, normal, tied

ONE_ARGUMENT = (relu6, leaky_relu, elu, selu, hard_sigmoid, hard_swish, tanh, softplus, silu, gelu)


def kinks(*shape: int) -> Maker:
    """0, ±3, ±6: all kinks of the rules here."""
    return lambda generator: 3.0 * generator.integers(-2, 3, shape)


def large(size: float, *shape: int) -> Maker:
    return lambda generator: size * generator.standard_normal(shape)


def short() -> list[Case]:
    """Every rule and every layer."""
    x = normal(5, 4)
    return [
        *(case(rule, "N×C", lambda g: 3 * x(g)) for rule in ONE_ARGUMENT),
        case(gelu, "N×C, exact", x, approximate=False),
        case(prelu, "N×C", x, normal(4)),
        case(softmax, "N×C", x),
        case(log_softmax, "N×C", x),
        case(layers.PReLU(), "layer", x),
        *(
            case(layer, "layer", normal(3, 2))
            for layer in (
                *(layers.ReLU6(), layers.LeakyReLU(), layers.ELU(), layers.SELU(), layers.HardSigmoid()),
                *(layers.HardSwish(), layers.Tanh(), layers.Softplus(), layers.SiLU(), layers.GELU()),
                *(layers.Softmax(), layers.LogSoftmax()),
            )
        ),
    ]


def more() -> list[Case]:
    """Kinks, values large and small, other static values, other axes, one slope for all."""
    images = normal(2, 5, 3, 4)
    return [
        *(case(rule, "kinks", kinks(5, 4)) for rule in ONE_ARGUMENT),
        *(case(rule, "values 1e4", large(1e4, 5, 4)) for rule in ONE_ARGUMENT),
        *(case(rule, "values 1e-4", large(1e-4, 5, 4)) for rule in ONE_ARGUMENT),
        case(leaky_relu, "slope 0", tied(5, 4), negative_slope=0.0),
        case(leaky_relu, "slope 2", tied(5, 4), negative_slope=2.0),
        case(elu, "alpha 2", tied(5, 4), alpha=2.0),
        case(elu, "alpha 0", tied(5, 4), alpha=0.0),
        case(gelu, "exact, values 1e4", large(1e4, 5, 4), approximate=False),
        case(prelu, "N×H×W×C", images, normal(4)),
        case(prelu, "N×H×W×C, one slope", images, normal()),
        case(prelu, "scalar", normal(), normal()),
        case(prelu, "zeros and ties", tied(5, 4), tied(4)),
        case(prelu, "values 1e4", large(1e4, 5, 4), normal(4)),
        *(
            case(rule, what, make, **static)
            for rule in (softmax, log_softmax)
            for what, make, static in (
                ("C", normal(4), {}),
                ("N×H×W×C, axis 1", images, {"axis": 1}),
                ("N×H×W×C, two axes", images, {"axis": (1, 2)}),
                ("zeros and ties", tied(5, 4), {}),
                ("values 10", large(10, 5, 4), {}),
                ("values 1e4", large(1e4, 5, 4), {}),
                ("one class", normal(5, 1), {}),
            )
        ),
        case(layers.PReLU(shared=True), "layer, one slope", images),
    ]
