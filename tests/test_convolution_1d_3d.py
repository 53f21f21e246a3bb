"""conv1d and conv3d against scipy in value, against `jax.vjp` of lax's convolution in value and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, assert_close, assert_same, draw
from jax import lax
from scipy import signal

from jaxcnn import Conv1D, Conv3D, conv1d, conv2d, conv3d

pytestmark = pytest.mark.usefixtures("x64")


def plain(axes):
    """lax's convolution over so many spatial axes, of every rank."""

    def convolve(x, filters, bias=None, *, stride=1, padding="SAME", dilation=1, groups=1):
        one_filter, one_sample = filters.ndim < axes + 2, x.ndim < axes + 2
        x, filters = (a[..., None] if a.ndim == axes else a for a in (x, filters))
        x, filters = (a[None] if a.ndim == axes + 1 else a for a in (x, filters))
        y = lax.conv_general_dilated(
            x, filters, (stride,) * axes if isinstance(stride, int) else stride, padding,
            rhs_dilation=(dilation,) * axes if isinstance(dilation, int) else dilation,
            dimension_numbers=("NWC", "OWI", "NWC") if axes == 1 else ("NDHWC", "ODHWI", "NDHWC"),
            feature_group_count=groups,
        )  # fmt: skip
        y = y[..., 0] if one_filter else y
        y = y[0] if one_sample else y
        return y if bias is None else y + bias

    return convolve


# x, filters, bias.
RANKS = {
    "W": (conv1d, (7,), (3,), ()),
    "W×C": (conv1d, (7, 2), (3, 2), ()),
    "W×C with n filters": (conv1d, (7, 2), (4, 3, 2), (4,)),
    "N×W×C": (conv1d, (2, 7, 3), (4, 2, 3), (4,)),
    "D×H×W": (conv3d, (3, 4, 5), (2, 3, 1), ()),
    "D×H×W×C": (conv3d, (3, 4, 5, 2), (2, 1, 3, 2), ()),
    "D×H×W×C with n filters": (conv3d, (3, 4, 5, 2), (4, 2, 3, 3, 2), (4,)),
    "N×D×H×W×C": (conv3d, (2, 3, 4, 5, 2), (4, 3, 2, 3, 2), (4,)),
}
AXES = {conv1d: 1, conv3d: 3}


@pytest.mark.parametrize("rank", RANKS)
def test_values_and_gradients_for_every_rank(rank, rng):
    rule, *shapes = RANKS[rank]
    assert_same([rule, plain(AXES[rule])], draw(rng, *shapes), rng, FLOAT64)


# x without N, filters without n; what else. Two samples, four filters and a bias each time.
CONFIGURATIONS = [
    (conv1d, (9, 2), (3, 2), {"stride": 2, "padding": "VALID"}),
    (conv1d, (8, 2), (2, 2), {"stride": 3, "padding": ((0, 4),)}),  # a filter smaller than the stride
    (conv1d, (7, 4), (3, 2), {"groups": 2, "dilation": 2}),
    (conv1d, (6, 2), (3, 1), {"groups": 2, "padding": ((2, 0),)}),  # depthwise, causal
    (conv1d, (1, 2), (4, 2), {}),
    (conv3d, (4, 6, 5, 2), (3, 2, 3, 2), {"stride": (2, 3, 1)}),
    (conv3d, (5, 4, 6, 1), (2, 3, 2, 1), {"stride": (1, 2, 3), "padding": "VALID"}),
    (conv3d, (3, 4, 3, 2), (2, 3, 2, 2), {"padding": ((2, 0), (0, 3), (1, 4))}),
    (conv3d, (5, 4, 3, 2), (2, 2, 3, 2), {"dilation": (3, 2, 1), "stride": (2, 1, 2)}),
    (conv3d, (3, 2, 4, 4), (3, 2, 1, 2), {"groups": 2}),
    (conv3d, (3, 2, 4, 2), (2, 2, 2, 1), {"groups": 2, "stride": 2}),  # depthwise
    (conv3d, (1, 1, 1, 2), (3, 2, 3, 2), {}),
]


@pytest.mark.parametrize(("rule", "x", "filters", "static"), CONFIGURATIONS)
def test_values_and_gradients(rule, x, filters, static, rng):
    assert_same([rule, plain(AXES[rule])], draw(rng, (2, *x), (4, *filters), (4,)), rng, FLOAT64, **static)


@pytest.mark.parametrize(("rule", "x", "filters"), [(conv1d, (40, 4), (3, 4)), (conv3d, (4, 5, 6, 4), (3, 3, 3, 4))])
def test_float32(rule, x, filters, rng):
    arrays = draw(rng, (3, *x), (5, *filters), (5,), dtype=np.float32)
    assert_same([rule, plain(AXES[rule])], arrays, rng, FLOAT32)


@pytest.mark.parametrize("rank", ["N×W×C", "N×D×H×W×C"])
def test_values_by_scipy(rank, rng):
    """By the definition: a sum over channels, for each sample and each filter."""
    rule, x, filters, _ = RANKS[rank]
    x, filters = draw(rng, x, filters)
    wanted = np.stack(
        [np.stack([sum(signal.correlate(*pair, "valid") for pair in channels(a, f)) for f in filters], -1) for a in x]
    )
    assert_close(rule(x, filters, padding="VALID"), wanted, FLOAT64)


def channels(x, filters):
    return zip(np.moveaxis(x, -1, 0), np.moveaxis(filters, -1, 0), strict=True)


@pytest.mark.parametrize("static", [{}, {"stride": 2, "dilation": 2}])
def test_a_flat_volume_is_an_image_and_a_flat_image_a_signal(static, rng):
    """One row, or one layer, more or less changes nothing: neither value nor gradient."""
    signals, filters, bias = draw(rng, (2, 6, 3), (4, 3, 3), (4,))
    assert_same(
        [conv1d, lambda x, w, b, **s: conv2d(x[:, None], w[:, None], b, **s)[:, 0]],
        (signals, filters, bias), rng, FLOAT64, **static,
    )  # fmt: skip
    images, filters = draw(rng, (2, 4, 5, 3), (4, 2, 3, 3))
    assert_same(
        [lambda x, w, b, **s: conv3d(x[:, None], w[:, None], b, **s)[:, 0], conv2d],
        (images, filters, bias), rng, FLOAT64, **static,
    )  # fmt: skip


def test_gradient_is_a_convolution_with_the_filter_turned_in_all_its_axes(rng):
    x, filters, dy = draw(rng, (4, 5, 3), (3, 1, 3), (4, 5, 3))
    dx, dw = jax.vjp(conv3d, x, filters)[1](dy)
    assert_close(dx, conv3d(dy, filters[::-1, ::-1, ::-1]), FLOAT64)
    assert_close(dw, conv3d(np.pad(x, ((1, 1), (0, 0), (1, 1))), dy, padding="VALID"), FLOAT64)


def test_no_samples():
    y, pullback = jax.vjp(conv3d, jnp.zeros((0, 2, 3, 4, 2)), jnp.ones((3, 2, 2, 2, 2)))
    assert y.shape == (0, 2, 3, 4, 3)
    assert_close(pullback(y), (jnp.zeros((0, 2, 3, 4, 2)), jnp.zeros((3, 2, 2, 2, 2))), EXACT)


def of_signal(x=(2, 5, 4), filters=(6, 3, 4), bias=None, **static):
    return lambda: conv1d(np.zeros(x), np.zeros(filters), None if bias is None else np.zeros(bias), **static)


def of_volume(x=(2, 3, 4, 5, 4), filters=(6, 3, 3, 3, 4), **static):
    return lambda: conv3d(np.zeros(x), np.zeros(filters), **static)


PADDING_TEXT = 'padding must be "SAME", "VALID" or '
ERRORS = [
    (of_signal((2, 5), (2, 5, 2)), ValueError,
     "conv1d: filters have 2 input channels, the signal has 5 in 1 group(s); filters need 5"),
    (of_signal((2, 5, 4, 1)), ValueError,
     "conv1d: signal and filters must be W and w, W×C and w×C, W×C and n×w×C, N×W×C and n×w×C; got shapes "
     "(2, 5, 4, 1) and (6, 3, 4)"),
    (of_signal(stride=(1, 1)), TypeError, "conv1d: stride must be a whole number, got (1, 1)"),
    (of_signal(padding=(1, 1)), TypeError,
     f"conv1d: {PADDING_TEXT}((left, right),) in whole numbers, got (1, 1)"),
    (of_signal(padding="CAUSAL"), ValueError, f"conv1d: {PADDING_TEXT}one pair, got 'CAUSAL'"),
    (of_signal(padding="VALID", dilation=3), ValueError,
     "conv1d: the window spans 7, the padded signal is 5; the window must fit into it"),
    (of_signal(bias=(4,)), ValueError, "conv1d: bias must have shape (6,), one value an output channel, got (4,)"),
    (lambda: conv1d(np.zeros(5, int), np.zeros(3)), TypeError, "conv1d: signal must be floating point, got int64"),
    (of_volume((3, 4, 5, 3), (6, 3, 3, 3, 4)), ValueError,
     "conv3d: filters have 4 input channels, the volume has 3 in 1 group(s)"),
    (of_volume((4, 5), (3, 3)), ValueError,
     "conv3d: volume and filters must be D×H×W and d×h×w, D×H×W×C and d×h×w×C, D×H×W×C and n×d×h×w×C, "
     "N×D×H×W×C and n×d×h×w×C; got shapes (4, 5) and (3, 3)"),
    (of_volume(stride=(1, 2)), TypeError, "conv3d: stride must be a whole number or three of them, got (1, 2)"),
    (of_volume(dilation=(1, 2, 0)), ValueError, "conv3d: dilation must be at least 1, got (1, 2, 0)"),
    (of_volume(padding=((1, 1), (1, 1))), TypeError,
     f"conv3d: {PADDING_TEXT}((front, back), (top, bottom), (left, right)) in whole numbers, got ((1, 1), (1, 1))"),
    (of_volume(padding="same"), ValueError, f"conv3d: {PADDING_TEXT}three pairs, got 'same'"),
    (of_volume((2, 2, 4, 5, 4), padding="VALID"), ValueError,
     "conv3d: the window spans 3×3×3, the padded volume is 2×4×5; the window must fit into it"),
    (of_volume(groups=3), ValueError, "conv3d: groups must divide the 4 channels and the 6 filters, got 3"),
    (lambda: Conv1D(4, (3, 3)), TypeError, "Conv1D: size must be a whole number, got (3, 3)"),
    (lambda: Conv3D(4, (3, 3)), TypeError, "Conv3D: size must be a whole number or three of them, got (3, 3)"),
    (lambda: Conv1D(4, 3).init(jax.random.key(0), (5, 5, 1)), ValueError,
     "conv1d: input_shape must be (W, C), without N, got (5, 5, 1)"),
    (lambda: Conv3D(4, 3).forward({}, {}, jnp.ones((2, 4, 4, 1))), ValueError,
     "conv3d: x must be N×D×H×W×C, got shape (2, 4, 4, 1)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(message)
