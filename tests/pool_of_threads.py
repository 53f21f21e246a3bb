"""Whether XLA adds up rightly where its pool has no thread free: `PJRT_NPROC=2 python tests/pool_of_threads.py STEPS`.

Plain jax, nothing of the library in it. Two CPU devices each compute the same convolutions of the same images again and
again, in one program; prints in how many of the steps the result is not that of the first. With jax 0.10.2 and two
threads these are nearly all from step 340 on, by a tenth of the largest element and more; with three threads none, nor
with

    XLA_FLAGS=--xla_disable_hlo_passes=cpu-parallel-task-assigner

in the environment, which is what `jaxcnn.use_cpu_cores` sees to: then no kernel is divided among the threads. Each one
that is leaves a task in a queue, and a queue has 1024 places: in a step three kernels are divided. Only `small` is
wrong, a convolution that XLA hands to Eigen. tests/test_pool_of_threads.py runs this in processes of its own.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


def convolution(images, filters, stride=(1, 1), padding="SAME"):
    return lax.conv_general_dilated(images, filters, stride, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def main() -> int:
    steps = int(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", 2)
    rng = np.random.default_rng(0)
    images, first, second = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((64, 14, 14, 6), (5, 5, 6, 16), (5, 6, 16, 12))
    )

    def step(_, images):
        y = jnp.tanh(convolution(images, first))
        small = convolution(y, second, (1, 2), ((2, 2), (2, 2)))
        turned = lax.optimization_barrier((jnp.swapaxes(images, 0, 3), jnp.moveaxis(y, 0, 2)))
        return None, (small.sum((1, 2)), convolution(*turned, padding=((2, 2), (2, 2))))

    mesh = jax.make_mesh((2,), ("device",), axis_types=(AxisType.Auto,))
    how = {"mesh": mesh, "in_specs": P("device"), "out_specs": P("device"), "check_vma": False}
    several = jax.shard_map(lambda images: lax.scan(step, None, images)[1], **how)
    results = jax.device_get(jax.jit(several)(np.broadcast_to(images, (2 * steps, *images.shape))))
    wrong = [i for i in range(2 * steps) if any((result[i] != result[0]).any() for result in results)]
    print(f"{len(wrong)} of {2 * steps} steps are wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
