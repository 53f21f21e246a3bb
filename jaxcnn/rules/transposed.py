"""Transposed convolution: the adjoint of `conv2d`, which enlarges where conv2d with a stride reduces."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.correlation import correlate, filter_gradient, image_gradient
from jaxcnn.rules.dtypes import require_equal_floats
from jaxcnn.rules.window import Geometry, by, geometry, padding_pairs, pair, with_all_axes


class ConvTranspose2DResiduals(NamedTuple):
    image: Array  # as given; the filter gradient correlates dy with it
    filters: Array  # as given; the image gradient is dy's convolution with them


def conv_transpose2d_forward(
    image: Array,
    filters: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: str | tuple = "SAME",
    dilation: int | tuple[int, int] = 1,
) -> tuple[Array, ConvTranspose2DResiduals]:
    """The adjoint of `conv2d` with the same filters, stride, padding and dilation.

    Each value of the image puts a multiple of its filter into the output, in steps of the stride. For every a of the
    output's shape, the scalar products of conv2d(a) with b and of a with conv_transpose2d(b) are equal.

    Args:
      image: H×W×n or N×H×W×n, any floating dtype from 16 bits.
      filters: n×h×w×C as conv2d has them that makes n channels of C; of the image's dtype.
      bias: one value for each output channel, (C,), or None.
      stride: steps of the filter in the output, a number or (rows, columns).
      padding: "SAME" or "VALID", or ((top, bottom), (left, right)): what conv2d would add, here cut off the output.
      dilation: distance between neighbouring filter values, a number or a pair.

    Returns:
      Ho×Wo×C or N×Ho×Wo×C, of the image's dtype. Ho = H·stride under "SAME", otherwise
      (H - 1)·stride + (h - 1)·dilation + 1 - padding; Wo likewise. (`lax.conv_transpose` with "VALID" and
      a stride larger than the filter adds rows of zeros at the end.)

    Raises:
      ValueError: other ranks or shapes; padding that leaves nothing of the output; unknown padding.
      TypeError: dtypes that are not floating or not equal; stride or dilation that are no whole numbers.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4.

    >>> conv_transpose2d(jnp.array([[[1.0], [10.0]]]), jnp.array([[[[1.0], [2.0]]]]), stride=2, padding="VALID")[..., 0]
    Array([[ 1.,  2., 10., 20.]], dtype=float32)
    >>> conv_transpose2d(jnp.ones((2, 4, 4, 5)), jnp.ones((5, 3, 3, 3)), jnp.zeros(3), stride=2).shape
    (2, 8, 8, 3)
    """
    g = _geometry(image, filters, bias, stride, padding, dilation)
    y = image_gradient(with_all_axes(image), filters, g, 1)
    y = y.reshape(*image.shape[:-3], *y.shape[1:])
    return (y if bias is None else y + bias), ConvTranspose2DResiduals(image, filters)


# In one dimension, with stride s, dilation d and p values cut off before,
#
#     y[q] = Σ w[i] x[r]  over all r and i with  r·s + i·d - p = q,        so
#
#     dL/dx[r] = Σ_i w[i] dy[r·s + i·d - p],        dL/dw[i] = Σ_r dy[r·s + i·d - p] x[r].
#
# On the left conv2d of dy; on the right conv2d's filter gradient, dy in the place of its image and x in that of its
# cotangent. Each y gets its bias once: db is the sum of dy over all images and places.
def conv_transpose2d_backward(residuals: ConvTranspose2DResiduals, dy: Array, *, stride, padding, dilation):
    image, filters = residuals
    g = _geometry(image, filters, None, stride, padding, dilation)
    dys = with_all_axes(dy)
    dx = correlate(dys, filters, g, 1)
    dw = filter_gradient(dys, with_all_axes(image), g, 1)
    return dx.reshape(image.shape), dw, jnp.sum(dy, tuple(range(dy.ndim - 1)))


conv_transpose2d = Rule(
    conv_transpose2d_forward, conv_transpose2d_backward, "conv_transpose2d", batch_axes=(0, None, None)
)


def _geometry(image, filters, bias, stride, padding, dilation) -> Geometry:
    """The geometry of the conv2d whose adjoint this is: its image is the output here."""
    name = "conv_transpose2d"
    if image.ndim not in (3, 4) or filters.ndim != 4:
        raise ValueError(
            f"{name}: image and filters must be H×W×n or N×H×W×n and n×h×w×C; "
            f"got shapes {image.shape} and {filters.shape}"
        )
    require_equal_floats(name, image=image, filters=filters, bias=bias)
    if 0 in filters.shape:
        raise ValueError(f"{name}: filters must not be empty, got shape {filters.shape}")
    if image.shape[-1] != filters.shape[0]:
        raise ValueError(
            f"{name}: there must be a filter for each channel of the image, "
            f"got {filters.shape[0]} filters for {image.shape[-1]} channels"
        )
    if bias is not None and bias.shape != filters.shape[3:]:
        raise ValueError(
            f"{name}: bias must have shape {filters.shape[3:]}, one value an output channel, got {bias.shape}"
        )
    stride, dilation = pair(name, "stride", stride), pair(name, "dilation", dilation)
    window = filters.shape[1:3]
    if padding == "SAME":
        size = [n * s for n, s in zip(image.shape[-3:-1], stride, strict=True)]
    else:
        cut = (0, 0) if isinstance(padding, str) else map(sum, padding_pairs(name, padding, 2))
        size = [
            (n - 1) * s + (w - 1) * d + 1 - c
            for n, s, w, d, c in zip(image.shape[-3:-1], stride, window, dilation, cut, strict=True)
        ]
    if min(size) < 1:
        raise ValueError(f"{name}: the output must have pixels, got {by(size)} for padding {padding!r}")
    return geometry(name, size, window, stride, dilation, padding)
