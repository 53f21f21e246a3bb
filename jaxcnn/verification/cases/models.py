"""Cases of whole networks, narrow and on small images: what takes long is compiling."""

from __future__ import annotations

from jaxcnn import models
from jaxcnn.layers import Layer
from jaxcnn.verification.cases.case import Case, normal
from jaxcnn.verification.options import Options

# A network's gradients are right where its rules' are and they are put together rightly: what depends on a rule alone,
# its precision and what jax's transformations make of it, is verified there.
AS_A_WHOLE = Options(dtypes=(), transforms=False, second_order=False)


def short() -> list[Case]:
    return []


def more() -> list[Case]:
    """Every network that is made of blocks, once in training; with running statistics one, which all such share."""
    return [
        _network(models.all_conv(3, width=2), (12, 12, 1)),
        _network(models.resnet20(3, width=2), (8, 8, 1)),
        _network(models.resnet20(3, width=2), (8, 8, 1), train=False),
        _network(models.resnet9(3, width=2), (8, 8, 1)),
        _network(models.mobilenet_v2(3, width=2), (8, 8, 1)),
        _network(models.convnext(3, width=6, drop=0.5), (8, 8, 1)),
    ]


def _network(network: Layer, shape: tuple[int, int, int], train: bool = True) -> Case:
    what = "network, " + "×".join(map(str, shape)) + ("" if train else ", trained")
    return Case(network, what, (normal(4, *shape),), {"train": train}, AS_A_WHOLE)
