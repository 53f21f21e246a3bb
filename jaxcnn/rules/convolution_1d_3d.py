"""Convolution over one and over three spatial axes: signals and volumes, as `conv2d` convolves images."""

from __future__ import annotations

from jaxcnn.rule import Array, Rule
from jaxcnn.rules.convolution import ConvolutionResiduals, convolution_gradients, convolve


def conv1d_forward(
    signal: Array,
    filters: Array,
    bias: Array | None = None,
    *,
    stride: int = 1,
    padding: str | tuple = "SAME",
    dilation: int = 1,
    groups: int = 1,
) -> tuple[Array, ConvolutionResiduals]:
    """Convolution of a signal, or of N signals, with one filter or n of them: `conv2d` with one spatial axis.

    With stride 1 and "SAME" the output has the signal's length for every filter, odd or even.

    ========  ========  ========
    signal    filters   output
    ========  ========  ========
    W         w         Wo
    W×C       w×C       Wo
    W×C       n×w×C     Wo×n
    N×W×C     n×w×C     N×Wo×n
    ========  ========  ========

    Args:
      signal: any floating dtype from 16 bits.
      filters: of the signal's dtype; with `groups`, C here is the signal's C / groups.
      bias: one value for each output channel, (n,); a scalar () where the output has no channel axis. Or None.
      stride: steps of the filter.
      padding: "SAME" or "VALID" as in `jax.lax`, or zeros to add: ((left, right),). ((w - 1, 0),) is a causal
        convolution: no output sees a later value.
      dilation: distance between neighbouring filter values.
      groups: the channels are cut into this many groups, and the filters likewise, as in `conv2d`.

    Returns:
      The output, of the signal's dtype. Wo = (W + padding - (w - 1)·dilation - 1) // stride + 1.

    Raises:
      ValueError: other ranks or shapes; channels that do not divide into the groups; a filter that spans more than
        the padded signal; unknown padding.
      TypeError: dtypes that are not floating or not equal; stride, dilation or groups that are no whole numbers.

    Source: y[r] = Σ_i x[r·stride + i·dilation - p] w[i]; Waibel et al., "Phoneme recognition using time-delay neural
    networks", 1989.

    >>> import jax.numpy as jnp
    >>> conv1d(jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([-1.0, 1.0]), padding="VALID")  # differences
    Array([1., 2., 4.], dtype=float32)
    >>> conv1d(jnp.ones((2, 16, 3)), jnp.ones((5, 3, 3)), jnp.zeros(5), stride=2).shape
    (2, 8, 5)
    """
    return convolve(1, signal, filters, bias, stride, padding, dilation, groups)


# Derived above `conv2d_backward`, where this is the one dimension that is written there:
#
#     dL/dx[q] = Σ_i w[i] dy[(q + p - i·d) / s]   where s divides,        dL/dw[i] = Σ_r x[r·s + i·d - p] dy[r].
#
# The filter is turned in its one axis. db is the sum of dy over all signals and places.
def conv1d_backward(residuals: ConvolutionResiduals, dy: Array, *, stride, padding, dilation, groups):
    return convolution_gradients(1, residuals, dy, stride, padding, dilation, groups)


conv1d = Rule(conv1d_forward, conv1d_backward, "conv1d", batch_axes=(0, None, None))


def conv3d_forward(
    volume: Array,
    filters: Array,
    bias: Array | None = None,
    *,
    stride: int | tuple[int, int, int] = 1,
    padding: str | tuple = "SAME",
    dilation: int | tuple[int, int, int] = 1,
    groups: int = 1,
) -> tuple[Array, ConvolutionResiduals]:
    """Convolution of a volume, or of N volumes, with one filter or n of them: `conv2d` with three spatial axes.

    With stride 1 and "SAME" the output has the volume's depth, height and width for every filter, odd or even.

    ==========  ==========  ============
    volume      filters     output
    ==========  ==========  ============
    D×H×W       d×h×w       Do×Ho×Wo
    D×H×W×C     d×h×w×C     Do×Ho×Wo
    D×H×W×C     n×d×h×w×C   Do×Ho×Wo×n
    N×D×H×W×C   n×d×h×w×C   N×Do×Ho×Wo×n
    ==========  ==========  ============

    Args:
      volume: any floating dtype from 16 bits; the depth may be time, the volume a film.
      filters: of the volume's dtype; with `groups`, C here is the volume's C / groups. The backward pass is a program
        of d·h·w parts.
      bias: one value for each output channel, (n,); a scalar () where the output has no channel axis. Or None.
      stride: steps of the filter, a number or (depth, rows, columns).
      padding: "SAME" or "VALID" as in `jax.lax`, or zeros to add: ((front, back), (top, bottom), (left, right)).
      dilation: distance between neighbouring filter values, a number or three.
      groups: the channels are cut into this many groups, and the filters likewise, as in `conv2d`.

    Returns:
      The output, of the volume's dtype. Do = (D + padding - (d - 1)·dilation - 1) // stride + 1, Ho and Wo likewise.

    Raises:
      ValueError: other ranks or shapes; channels that do not divide into the groups; a filter that spans more than
        the padded volume; unknown padding.
      TypeError: dtypes that are not floating or not equal; stride, dilation or groups that are no whole numbers.

    Source: Ji et al., "3D convolutional neural networks for human action recognition", 2013, equation 2.

    >>> import jax.numpy as jnp
    >>> volume = jnp.arange(8.0).reshape(2, 2, 2)
    >>> conv3d(volume, jnp.array([-1.0, 1.0]).reshape(2, 1, 1), padding="VALID")  # from one layer to the next
    Array([[[4., 4.],
            [4., 4.]]], dtype=float32)
    >>> conv3d(jnp.ones((2, 4, 8, 8, 3)), jnp.ones((5, 3, 3, 3, 3)), jnp.zeros(5), stride=(1, 2, 2)).shape
    (2, 4, 4, 4, 5)
    """
    return convolve(3, volume, filters, bias, stride, padding, dilation, groups)


# Derived above `conv2d_backward`. Over three axes the sums run over i = (i₁, i₂, i₃) and r = (r₁, r₂, r₃), and the
# place that meets is, axis by axis, q_a = r_a·s_a + i_a·d_a - p_a:
#
#     dL/dx[q] = Σ_i w[i] dy[(q + p - i·d) / s]   where all s divide,      dL/dw[i] = Σ_r x[r·s + i·d - p] dy[r].
#
# i runs against q on all three, so the filter is turned in all three: a point reflection, no rotation.
def conv3d_backward(residuals: ConvolutionResiduals, dy: Array, *, stride, padding, dilation, groups):
    return convolution_gradients(3, residuals, dy, stride, padding, dilation, groups)


conv3d = Rule(conv3d_forward, conv3d_backward, "conv3d", batch_axes=(0, None, None))
