"""One training step, and many in one scan: forward, the loss backward, the network backward, the update."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcnn.layers import Layer
from jaxcnn.rule import Rule, equally_varying
from jaxcnn.rules.platform import by_platform
from jaxcnn.training.arguments import as_arrays, require_one_seed, require_parts
from jaxcnn.training.augment import Augmentation
from jaxcnn.training.compiler import compiler_options
from jaxcnn.training.devices import (
    TURN,
    agreed_over_devices,
    all_devices,
    must_not_overlap,
    place,
    require_one_axis,
    require_whole_kernels,
    sum_over_devices,
)
from jaxcnn.training.metrics import counts_of
from jaxcnn.training.microbatch import AUTO, automatic, check, sum_over_parts
from jaxcnn.training.processes import require_shared


class TrainState(NamedTuple):
    """All that training carries from step to step; with the data, all that resuming needs."""

    params: dict[str, Any]  # nested, with readable names
    state: dict[str, Any]  # what the layers keep but do not train
    opt_state: Any  # optax's
    step: jax.Array  # () int32: steps done
    key: jax.Array  # () key: the randomness of a step is a function of (key, step)
    skipped: Any = np.int32(0)  # () int32: steps whose update was left out, their gradient not being finite


def init_train_state(
    network: Layer, optimizer: optax.GradientTransformation, seed: int, input_shape: tuple[int, ...]
) -> TrainState:
    """The state before the first step, every number in it a function of the seed.

    Args:
      network: any Layer. optimizer: any optax GradientTransformation.
      seed: a whole number. input_shape: of one image, H×W×C.

    >>> import jaxcnn
    >>> state = init_train_state(jaxcnn.models.source(), optax.sgd(0.1), 0, (8, 8, 1))
    >>> int(state.step), sorted(state.params)
    (0, ['conv2d', 'dense_1', 'dense_2'])
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    params, state, _ = network.init(init_key, tuple(input_shape))
    return TrainState(params, state, optimizer.init(params), jnp.zeros((), jnp.int32), key, jnp.zeros((), jnp.int32))


def train_step(
    network: Layer,
    loss: Rule,
    optimizer: optax.GradientTransformation,
    *,
    backward: str = "manual",
    microbatch: int | str | None = None,
    augment: Augmentation | None = None,
    skip_nonfinite: int | None = None,
    mesh: Mesh | None = None,
) -> Step:
    """A jitted training step: `state, metrics = step(state, images, labels)`.

    Args:
      network: N×H×W×C -> logits.
      loss: a rule of (logits, labels), the mean over the batch. `Rule.partial` sets its static arguments:
        `softmax_cross_entropy.partial(label_smoothing=0.1)`.
      optimizer: any optax GradientTransformation.
      backward: "manual", the hand-written passes and no autodiff anywhere; or "autodiff", `jax.value_and_grad` through
        the same plain forward passes, the reference run.
      microbatch: how many images (of one device) pass through the network at a time; where they do not divide, those
        left over pass first. The gradient is the mean over all images. The whole batch when None, or when it is
        smaller. "auto": on a CPU about as many as stay in its cache between the two passes, elsewhere the whole batch;
        that too where a layer looks at samples together. Batch normalisation takes the statistics of what passes
        together: of the whole batch, on all devices, when None or "auto"; else of the devices' micro-batches of one
        turn, the smaller one's by themselves too, and each turn moves the running statistics by as much. Random layers
        draw anew for each micro-batch.
      augment: a function (key, images) -> images of the same shape and dtype, as those of `jaxcnn.augment`; each
        device's images of a step pass through it before the network, with a key of their own. None: as they are.
      skip_nonfinite: how many steps may have NaN or infinity in their loss, gradient or new state: they are left out
        and counted in `state.skipped`. With one more than these, counted as well, the state stays as it is, its step
        included, and all later steps change nothing. Metrics then have "finite". When None nothing is watched, which
        is faster: NaN stays where it came, in the state or the loss, and can be looked for after many steps.
      mesh: the devices that share the batch, on one axis; all devices when None.

    Returns:
      A `Step`. Of its arguments only the state is donated: do not use the old one again. metrics: "loss", the mean over
      the batch; "accuracy", the fraction of right classes, of the binary losses that of logits on the right side of 0;
      "invalid_labels", how many class indices lie outside the classes, or binary labels are none, the reason of a loss
      that is NaN. For a loss of numbers, as `mean_squared_error`, "loss" alone. With `skip_nonfinite` also "finite",
      whether the step was.

    Raises:
      TypeError: an argument of another type. ValueError: an unknown `backward`; a mesh of more than one axis; when
      called: a batch that does not divide by the devices, and whatever the network and the loss refuse.

    >>> import jaxcnn
    >>> network, optimizer = jaxcnn.models.source(), optax.sgd(0.1)
    >>> state = init_train_state(network, optimizer, 0, (8, 8, 1))
    >>> step = train_step(network, jaxcnn.softmax_cross_entropy, optimizer)
    >>> state, metrics = step(state, jnp.zeros((4, 8, 8, 1)), jnp.arange(4))
    >>> int(state.step), round(float(metrics["loss"]), 2)
    (1, 2.62)
    """
    mesh = all_devices() if mesh is None else mesh
    one = one_step("train_step", network, loss, optimizer, backward, microbatch, augment, skip_nonfinite, mesh)
    specs = {"images": P(mesh.axis_names), "labels": P(mesh.axis_names)}
    return Step("train_step", by_each_device(one, mesh, specs), mesh, specs, in_pieces=True)


def train_steps(
    network: Layer,
    loss: Rule,
    optimizer: optax.GradientTransformation,
    *,
    backward: str = "manual",
    microbatch: int | str | None = None,
    augment: Augmentation | None = None,
    skip_nonfinite: int | None = None,
    mesh: Mesh | None = None,
) -> Step:
    """Many steps in one `lax.scan`: `state, metrics = run(state, images, labels, indices)`.

    The arguments are those of `train_step`. images and labels are the whole data set, on the device; row s of
    `indices`, whole numbers (steps, batch), says which samples step s takes. Each entry of metrics is (steps,). Between
    the steps nothing returns to Python, so a small network is not all overhead.

    >>> import jaxcnn
    >>> network, optimizer = jaxcnn.models.source(), optax.sgd(0.1)
    >>> state = init_train_state(network, optimizer, 0, (8, 8, 1))
    >>> run = train_steps(network, jaxcnn.softmax_cross_entropy, optimizer)
    >>> indices = shuffled(10, 4, seed=0, epoch=0)
    >>> state, metrics = run(state, jnp.zeros((10, 8, 8, 1)), jnp.arange(10), indices)
    >>> int(state.step), metrics["loss"].shape
    (2, (2,))
    """
    mesh = all_devices() if mesh is None else mesh
    one = one_step("train_steps", network, loss, optimizer, backward, microbatch, augment, skip_nonfinite, mesh)

    def many(state, images, labels, indices):
        if indices.ndim != 2 or not jnp.issubdtype(indices.dtype, jnp.integer):
            got = f"{indices.dtype} of {indices.ndim} axes"
            raise TypeError(f"train_steps: indices must be whole numbers, (steps, batch), got {got}")

        def step(state, chosen):
            # An index that names no sample gives NaN and an invalid label, not some other sample.
            chosen = jnp.where(chosen < 0, len(images), chosen.astype(jnp.promote_types(chosen.dtype, jnp.int32)))
            return one(state, *(a.at[chosen].get(mode="fill") for a in (images, labels)))

        return lax.scan(step, state, indices)

    specs = {"images": P(), "labels": P(), "indices": P(None, mesh.axis_names)}
    return Step("train_steps", by_each_device(many, mesh, specs), mesh, specs, in_pieces=False)


def shuffled(samples: int, batch: int, *, seed: int, epoch: int) -> jax.Array:
    """The batches of one epoch: (samples // batch, batch) indices, each sample at most once, the rest left out.

    The order is a function of (seed, epoch) alone.

    Raises:
      ValueError: a batch larger than the number of samples.

    >>> shuffled(10, 4, seed=0, epoch=0).shape
    (2, 4)
    """
    if not 1 <= batch <= samples:
        raise ValueError(f"shuffled: batch must be from 1 to the number of samples, {samples}; got {batch}")
    return _batches(jax.random.fold_in(jax.random.key(seed), epoch), samples, batch)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _batches(key: jax.Array, samples: int, batch: int) -> jax.Array:
    return jax.random.permutation(key, samples)[: samples // batch * batch].reshape(-1, batch)


class Step:
    """A jitted step over a mesh: (state, *data) -> (state, metrics), the state the same on all devices.

    `lower`, `trace` and `eval_shape` are those of the jitted function; `jax.export.export` takes a Step as well.
    What is exported, or of an abstract mesh, is compiled without a step's options (`whole_kernels`): where it is to run
    on several CPU devices `use_cpu_cores` comes first.
    """

    def __init__(self, name: str, function: Callable[..., Any], mesh: Mesh, specs: dict[str, P], *, in_pieces: bool):
        self.name, self.mesh, self.specs = name, mesh, specs
        self._is_default = mesh.size == 1 and isinstance(mesh, Mesh) and mesh.devices.flat[0] == jax.devices()[0]
        self._function, self._in_pieces = function, in_pieces
        self._inner = jax.jit(function)  # jax takes options for the compiler at the top level alone
        self._jitted: dict[Any, Any] = {}  # for each shape of the data, which decides about the options

    def __call__(self, state: TrainState, *data: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        self._require_fresh(state)
        data = as_arrays(self.name, self.specs, self.mesh.size, data)
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((state, data))):
            require_whole_kernels(self.name, self.mesh)
            return self._inner(state, *data)
        if not isinstance(self.mesh, Mesh):
            raise TypeError(f"{self.name}: of an abstract mesh: it can be traced and lowered, and not be called")
        if self._is_default:
            return self.jitted(state, *data)(state, *data)
        if self.mesh.is_multi_process:
            require_shared(self.name, state, data)
        data = tuple(place(d, self.mesh, spec) for d, spec in zip(data, self.specs.values(), strict=True))
        state = place(state, self.mesh, P())
        jitted = self.jitted(state, *data)
        if not must_not_overlap(self.mesh):
            return jitted(state, *data)
        with TURN:
            return jax.block_until_ready(jitted(*jax.block_until_ready((state, *data))))

    def jitted(self, state: Any, *data: Any) -> Any:
        """The jitted function for a state and data of these shapes and dtypes, arrays or `jax.ShapeDtypeStruct`."""
        shapes = tuple((array.shape, array.dtype) for array in data)
        if shapes not in self._jitted:
            program = self._inner.trace(state, *data).jaxpr.jaxpr  # which jax keeps for what is jitted now
            options = compiler_options(program, self.mesh, in_pieces=self._in_pieces)
            self._jitted[shapes] = jax.jit(self._function, donate_argnums=0, compiler_options=options)
        return self._jitted[shapes]

    def trace(self, state: Any, *data: Any) -> Any:
        return self.jitted(state, *data).trace(state, *data)

    def lower(self, state: Any, *data: Any) -> Any:
        return self.jitted(state, *data).lower(state, *data)

    def eval_shape(self, state: Any, *data: Any) -> Any:
        return self._inner.eval_shape(state, *data)

    @property
    def shardings(self) -> tuple[NamedSharding, ...]:
        """How each array of the data lies on the mesh."""
        return tuple(NamedSharding(self.mesh, spec) for spec in self.specs.values())

    def _require_fresh(self, state: Any) -> None:
        if not isinstance(state, TrainState):
            raise TypeError(f"{self.name}: takes a TrainState first, got {type(state).__name__}")
        if isinstance(state.step, jax.Array) and not isinstance(state.step, Tracer) and state.step.is_deleted():
            raise ValueError(f"{self.name}: an earlier step has used up this state; go on with the one it returned")


def by_each_device(function: Callable[..., Any], mesh: Mesh, specs: dict[str, P]) -> Callable[..., Any]:
    """Run by each device with its share of the data."""
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=(P(), *specs.values()), out_specs=P())


def one_step(name, network, loss, optimizer, backward, microbatch, augment, skip_nonfinite, mesh):
    """(state, images, labels) -> (state, metrics), on each device of a mesh with its share of a batch; else on one."""
    require_parts(name, network, loss, optimizer, augment, skip_nonfinite, backward, BACKWARD)
    check(name, microbatch)
    axis, devices = None, 1
    if mesh is not None:
        require_one_axis(name, mesh)
        axis, devices = mesh.axis_names[0] if mesh.size > 1 else None, mesh.size
    gradient = BACKWARD[backward]

    def one(state: TrainState, images, labels):
        require_one_seed(name, state)
        key = jax.random.fold_in(state.key, state.step)
        key = key if axis is None else jax.random.fold_in(key, lax.axis_index(axis))
        if augment is not None:
            key, own = jax.random.split(key)
            images = _augmented(name, augment, own, images)
        params, net_state, images, labels = equally_varying((state.params, state.state, images, labels))

        samples = images.shape[0]

        def in_parts(size):
            def whole(params, net_state, images, labels, key):
                def part(net_state, images, labels, key):
                    # A part of the batch counts by its number of images: all that follows are plain sums.
                    share = images.shape[0] / max(1, samples * devices)  # the loss refuses 0 images
                    return gradient(network, loss, share, params, net_state, images, labels, key)

                if size >= samples:
                    return part(net_state, images, labels, key)
                return sum_over_parts(part, size, net_state, images, labels, key)

            return whole

        given = params, net_state, images, labels, key
        if microbatch != AUTO:
            net_state, sums = in_parts(microbatch or samples)(*given)
        elif (size := automatic(network, params, net_state, images, key)) == samples:
            net_state, sums = in_parts(samples)(*given)
        else:
            net_state, sums = by_platform(in_parts(size), in_parts(samples), *given)
        if axis is not None:
            sums = sum_over_devices(sums, axis)
            net_state = jax.tree.map(lambda leaf: agreed_over_devices(leaf, axis), net_state)
        gradients, metrics = sums
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_params: Any = optax.apply_updates(state.params, updates)
        new = TrainState(new_params, net_state, opt_state, state.step + 1, state.key, state.skipped)
        if skip_nonfinite is None:
            return new, metrics
        finite = all_finite((metrics["loss"], gradients, new))
        return _unless(finite, new, state, skip_nonfinite), metrics | {"finite": finite}

    return one


def _augmented(name, augment, key, images):
    changed = augment(key, images)
    wanted, got = (f"{a.dtype}{list(a.shape)}" if isinstance(a, jax.Array) else repr(a) for a in (images, changed))
    if got != wanted:
        raise TypeError(f"{name}: augment must return images as it gets them, {wanted}; got {got}")
    return changed


def all_finite(tree: Any) -> jax.Array:
    """Whether no floating number in it is NaN or infinite, as a () bool."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


# optax.apply_if_finite leaves out the update alone, not what the layers keep (running statistics), and after too many
# errors accepts it; here the state after them is the last good one.
def _unless(finite, new: TrainState, old: TrainState, limit: int) -> TrainState:
    """The new state where all is finite, else the old one with the step counted, up to the limit."""
    running = old.skipped <= limit
    skipped = old.skipped + (running & ~finite)
    chosen = jax.tree.map(functools.partial(jnp.where, running & finite), new, old)
    return chosen._replace(step=jnp.where(skipped <= limit, new.step, old.step), skipped=skipped)


def gradient_by_hand(network, loss, share, params, net_state, images, labels, key):
    """The hand-written passes: no jax.grad, no jax.vjp."""
    static = loss.static()
    logits, net_state, residuals = network.forward(params, net_state, images, train=True, key=key)
    value, saved = loss.forward(logits, labels, **static)
    dlogits, *_ = loss.backward(saved, jnp.full_like(value, share), **static)
    dparams, _ = network.backward(residuals, dlogits)
    _require_like(network.name, params, dparams)
    return net_state, (dparams, _metrics(loss, value, logits, labels, share))


def _require_like(name: str, params, dparams) -> None:
    """A gradient of another shape would change its parameter's shape by broadcasting; raises TypeError."""
    shapes, got = (jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (params, dparams))
    if shapes != got:
        raise TypeError(f"{name}: backward must return gradients like the parameters, {shapes}; got {got}")


def _by_autodiff(network, loss, share, params, net_state, images, labels, key):
    """Autodiff of the same plain forward passes."""

    def cost(params):
        logits, new_state, _ = network.forward(params, net_state, images, train=True, key=key)
        value = loss.forward(logits, labels, **loss.static())[0]
        return value * share, (new_state, _metrics(loss, value, logits, labels, share))

    (_, (net_state, metrics)), dparams = jax.value_and_grad(cost, has_aux=True)(params)
    return net_state, (dparams, metrics)


BACKWARD = {"manual": gradient_by_hand, "autodiff": _by_autodiff}


def _metrics(loss, value, logits, labels, share) -> dict[str, jax.Array]:
    metrics = {"loss": value * share}
    if counts := counts_of(loss, logits, labels):
        metrics["accuracy"] = counts.right(logits, labels).mean(dtype=value.dtype) * share
        metrics["invalid_labels"] = (~counts.valid(logits, labels)).sum()
    return metrics
