"""conv2d against scipy in value, against `jax.vjp` of lax's convolution in value and gradients; rotate180."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import EXACT, FLOAT32, FLOAT64, assert_close, assert_same, draw, plain_conv2d
from scipy import signal

from jaxcnn import conv2d, rotate180

pytestmark = pytest.mark.usefixtures("x64")

# The source's four combinations. The number of channels is not the number of filters, nor height the width.
RANKS = {
    "H×W": ((6, 5), ()),
    "H×W×C": ((6, 5, 3), (3,)),
    "H×W×C with n filters": ((6, 5, 3), (3,)),
    "N×H×W×C": ((2, 6, 5, 3), (3,)),
}
WINDOWS = [(3, 3), (5, 5), (2, 2), (4, 4), (1, 1), (1, 3), (3, 2), (2, 5), (4, 1)]


def shapes(rank, window):
    image, channels = RANKS[rank]
    return image, (*((4,) if "n filters" in rank or "N" in rank else ()), *window, *channels)


def scipy_same(image, filters, correlate):
    """The source's convolution by its definition: a sum over channels, for each image and each filter."""
    if filters.ndim == 4:
        return np.stack([scipy_same(image, one, correlate) for one in filters], -1)
    if image.ndim == 4:
        return np.stack([scipy_same(one, filters, correlate) for one in image])
    if image.ndim == 3:
        return sum(scipy_same(image[..., c], filters[..., c], correlate) for c in range(image.shape[-1]))
    # Of the full output, the rows and columns of the image: an even filter reaches further down and to the right.
    (h, w), (H, W) = filters.shape, image.shape
    return correlate(image, filters, "full")[h // 2 : h // 2 + H, w // 2 : w // 2 + W]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rank", RANKS)
def test_values_by_scipy(rank, window, rng):
    image, filters = draw(rng, *shapes(rank, window))
    y = conv2d(image, filters)
    assert y.shape == (*image.shape[: image.ndim // 4], 6, 5, *filters.shape[: filters.ndim // 4])
    assert_close(y, scipy_same(image, filters, signal.correlate2d), FLOAT64)
    # The source's closing note: a mathematician's convolution turns the filter.
    turned = scipy_same(image, filters, signal.convolve2d)
    assert_close(conv2d(image, rotate180(filters)), turned, FLOAT64)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("window", [(3, 3), (2, 4)])
@pytest.mark.parametrize("rank", RANKS)
def test_gradients_for_every_rank(rank, window, with_bias, rng):
    image, filters = shapes(rank, window)
    bias = filters[:1] if len(filters) == 4 else ()
    assert_same([conv2d, plain_conv2d], draw(rng, image, filters, *([bias] if with_bias else [])), rng, FLOAT64)


# Height, width, channels; filters h×w×C; what else. Two images, four filters and a bias each time.
CONFIGURATIONS = [
    ((6, 6, 2), (3, 3, 2), {"stride": 2}),
    ((7, 6, 2), (3, 2, 2), {"stride": (2, 3)}),
    ((8, 7, 1), (3, 3, 1), {"stride": 3, "padding": "VALID"}),  # two rows and one column are never looked at
    ((9, 5, 2), (2, 2, 2), {"stride": (4, 1), "padding": "VALID"}),
    ((5, 5, 2), (1, 1, 2), {"stride": 2}),  # a filter smaller than the stride
    ((6, 5, 2), (2, 3, 2), {"padding": "VALID"}),
    ((6, 5, 2), (6, 5, 2), {"padding": "VALID"}),
    ((7, 8, 2), (3, 2, 2), {"dilation": 2}),
    ((7, 8, 2), (2, 3, 2), {"dilation": (3, 2), "padding": "VALID", "stride": (1, 2)}),
    ((6, 5, 4), (3, 3, 2), {"groups": 2}),
    ((6, 5, 4), (3, 2, 1), {"groups": 4, "stride": 2}),  # depthwise
    ((6, 5, 2), (3, 2, 1), {"groups": 2, "dilation": 2}),  # depthwise, two filters a channel
    ((6, 5, 2), (3, 3, 2), {"padding": ((1, 0), (2, 1))}),
    ((5, 4, 2), (2, 3, 2), {"padding": ((4, 0), (1, 5))}),  # more zeros than the filter is wide
    ((5, 4, 2), (2, 2, 2), {"padding": ((0, 5), (3, 0)), "stride": (3, 2), "dilation": (1, 2)}),
    ((1, 1, 2), (3, 3, 2), {}),
    ((1, 1, 1), (1, 1, 1), {"padding": "VALID"}),
    ((1, 1, 2), (2, 4, 2), {"stride": 2}),
    ((3, 2, 2), (5, 7, 2), {}),  # a filter larger than the image
    ((3, 2, 2), (3, 3, 2), {"dilation": 4, "stride": 2}),
    ((1, 7, 1), (1, 4, 1), {"stride": (1, 2)}),
    ((4, 0, 1), (1, 1, 1), {"padding": ((0, 0), (1, 1))}),  # nothing but padding
]


@pytest.mark.parametrize(("image", "filters", "static"), CONFIGURATIONS)
def test_values_and_gradients(image, filters, static, rng):
    arrays = draw(rng, (2, *image), (4, *filters), (4,))
    assert_same([conv2d, plain_conv2d], arrays, rng, FLOAT64, **static)


@pytest.mark.parametrize("static", [{}, {"stride": 2, "padding": "VALID"}])
def test_float32(static, rng):
    arrays = draw(rng, (3, 9, 8, 4), (5, 3, 3, 4), (5,), dtype=np.float32)
    assert_same([conv2d, plain_conv2d], arrays, rng, FLOAT32, **static)


def test_images_and_filters_and_output_channels_are_not_mixed(rng):
    """Each image by itself, each filter by itself: the batch is the single ones side by side."""
    image, filters = draw(rng, (2, 6, 5, 3), (4, 3, 3, 3))
    y = conv2d(image, filters)
    assert_close(y[1], conv2d(image[1], filters), FLOAT64)
    assert_close(y[1, :, :, 2], conv2d(image[1], filters[2]), FLOAT64)


def test_depthwise_is_one_convolution_a_channel(rng):
    image, filters = draw(rng, (6, 5, 3), (3, 3, 2, 1))
    y = conv2d(image, filters, groups=3)
    for c in range(3):
        assert_close(y[..., c], conv2d(image[..., c], filters[c, ..., 0]), FLOAT64)


def test_image_gradient_is_a_convolution_with_the_turned_filter(rng):
    """The source's dL/da^l = convolution(W, dL/da^(l+1)), for an odd filter, with its W turned."""
    image, filters, dy = draw(rng, (6, 5), (3, 5), (6, 5))
    dx, dw = jax.vjp(conv2d, image, filters)[1](dy)
    assert_close(dx, conv2d(dy, rotate180(filters)), FLOAT64)
    # And dL/dW^l = convolution(a^(l-1), dL/da^l): dy slides over the padded image.
    assert_close(dw, conv2d(np.pad(image, ((1, 1), (2, 2))), dy, padding="VALID"), FLOAT64)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2), (5, 3, 4, 2)])
def test_rotate180(shape, rng):
    (filters,) = draw(rng, shape)
    axes = (1, 2) if len(shape) == 4 else (0, 1)
    assert_close(rotate180(filters), np.rot90(filters, 2, axes), EXACT)


def zeros(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


def convolve(image=(2, 5, 5, 4), filters=(6, 3, 3, 4), bias=None, **static):
    return lambda: conv2d(zeros(*image), zeros(*filters), None if bias is None else zeros(*bias), **static)


RANKS_TEXT = (
    "image and filters must be H×W and h×w, H×W×C and h×w×C, H×W×C and n×h×w×C, N×H×W×C and n×h×w×C; got shapes "
)
PADDING_TEXT = 'padding must be "SAME", "VALID" or ((top, bottom), (left, right)) in whole numbers, got '
ERRORS = [
    (convolve((5,), (3, 3)), ValueError, f"{RANKS_TEXT}(5,) and (3, 3)"),
    (convolve((5, 5), (3, 3, 1)), ValueError, f"{RANKS_TEXT}(5, 5) and (3, 3, 1)"),
    (convolve((2, 5, 5, 1), (3, 3, 1)), ValueError, f"{RANKS_TEXT}(2, 5, 5, 1) and (3, 3, 1)"),
    (convolve(filters=(6, 3, 3, 3)), ValueError,
     "filters have 3 input channels, the image has 4 in 1 group(s); filters need 4"),
    (convolve(groups=2), ValueError, "filters have 4 input channels, the image has 4 in 2 group(s); filters need 2"),
    (convolve(groups=3), ValueError, "groups must divide the 4 channels and the 6 filters, got 3"),
    (convolve(groups=4), ValueError, "groups must divide the 4 channels and the 6 filters, got 4"),
    (convolve(groups=0), ValueError, "groups must divide the 4 channels and the 6 filters, got 0"),
    (convolve(groups=2.0), TypeError, "groups must be a whole number, got 2.0"),
    (convolve(groups=True), TypeError, "groups must be a whole number, got True"),
    (convolve(bias=(4,)), ValueError, "bias must have shape (6,), one value an output channel, got (4,)"),
    (convolve((5, 5), (3, 3), (1,)), ValueError, "bias must have shape (), one value an output channel, got (1,)"),
    (convolve(filters=(6, 0, 3, 4)), ValueError, "filters must not be empty, got shape (6, 0, 3, 4)"),
    (convolve(stride=0), ValueError, "stride must be at least 1, got 0"),
    (convolve(stride=(1, -1)), ValueError, "stride must be at least 1, got (1, -1)"),
    (convolve(stride=1.5), TypeError, "stride must be a whole number or a pair of them, got 1.5"),
    (convolve(stride=(1, 1, 1)), TypeError, "stride must be a whole number or a pair of them, got (1, 1, 1)"),
    (convolve(stride="2"), TypeError, "stride must be a whole number or a pair of them, got '2'"),
    (convolve(dilation=0), ValueError, "dilation must be at least 1, got 0"),
    (convolve(dilation=None), TypeError, "dilation must be a whole number or a pair of them, got None"),
    (convolve(padding="same"), ValueError, "padding must be \"SAME\", \"VALID\" or two pairs, got 'same'"),
    (convolve(padding=1), TypeError, f"{PADDING_TEXT}1"),
    (convolve(padding=(1, 1)), TypeError, f"{PADDING_TEXT}(1, 1)"),
    (convolve(padding=((1, 1), (1, 0.5))), TypeError, f"{PADDING_TEXT}((1, 1), (1, 0.5))"),
    (convolve(padding=((1, 1),)), TypeError, f"{PADDING_TEXT}((1, 1),)"),
    (convolve(padding=((1, 1), (0, -1))), ValueError, "padding must not be negative, got ((1, 1), (0, -1))"),
    (convolve((2, 2, 2, 4), padding="VALID"), ValueError,
     "the window spans 3×3, the padded image is 2×2; the window must fit into it"),
    (convolve(padding="VALID", dilation=(1, 3)), ValueError,
     "the window spans 3×7, the padded image is 5×5; the window must fit into it"),
    (convolve((2, 0, 5, 4)), ValueError, "the window spans 3×3, the padded image is 2×7; the window must fit into it"),
    (lambda: conv2d(zeros(5, 5, dtype=int), zeros(3, 3)), TypeError, "image must be floating point, got int64"),
    (lambda: conv2d(zeros(5, 5), zeros(3, 3, dtype=complex)), TypeError, "filters must be floating point, got complex"),
    (lambda: conv2d(zeros(5, 5), zeros(3, 3, dtype=np.float32)), TypeError,
     "dtypes must be equal, got image float64, filters float32"),
    (lambda: conv2d(zeros(5, 5), zeros(3, 3), zeros(dtype=np.float32)), TypeError,
     "dtypes must be equal, got image float64, filters float64, bias float32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(f"conv2d: {message}")


@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 1, 1)])
def test_errors_of_rotate180(shape):
    with pytest.raises(ValueError, match="rotate180: filters must be h×w, h×w×C or n×h×w×C, got shape"):
        rotate180(zeros(*shape))


def test_no_images():
    """A batch of none is a batch: nothing comes out, and the weights have gradient zero."""
    y, pullback = jax.vjp(conv2d, zeros(0, 4, 4, 2), jnp.ones((3, 2, 2, 2)))
    assert y.shape == (0, 4, 4, 3)
    assert_close(pullback(y), (zeros(0, 4, 4, 2), zeros(3, 2, 2, 2)), EXACT)
