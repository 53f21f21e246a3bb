"""The training step: equal to autodiff's, without autodiff, on one device and on several."""

import dataclasses
import functools
import subprocess
import sys

import chex
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

import jaxcnn
from jaxcnn.training.step import BACKWARD

BATCH, SHAPE = 16, (8, 8, 1)
NETWORK = jaxcnn.sequential(
    jaxcnn.Conv2D(4, 3), jaxcnn.ReLU(), jaxcnn.MaxPool(2), jaxcnn.Flatten(), jaxcnn.Dense(8), jaxcnn.Sigmoid(),
    jaxcnn.Dense(10),
)  # fmt: skip
OPTIMIZER = optax.adam(1e-2)
LOSS = jaxcnn.softmax_cross_entropy
# float32 sums in another order: a few units in the last place of the largest element, grown over some steps.
ORDER = 1e-5


def mesh_of(devices):
    return jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


@functools.cache
def data(samples=64):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, samples)
    images = generator.standard_normal((10, *SHAPE))[labels] + 0.3 * generator.standard_normal((samples, *SHAPE))
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def new_state(optimizer=OPTIMIZER, seed=0):
    return jaxcnn.init_train_state(NETWORK, optimizer, seed, SHAPE)


def trained(steps=3, optimizer=OPTIMIZER, **options):
    """The state and the losses after some single steps."""
    step = jaxcnn.train_step(NETWORK, LOSS, optimizer, **options)
    state, losses = new_state(optimizer), []
    for i in range(steps):
        images, labels = (a[i * BATCH : (i + 1) * BATCH] for a in data())
        state, metrics = step(state, images, labels)
        losses.append(float(metrics["loss"]))
    return state, losses


def close(a, b, tolerance=ORDER):
    chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("microbatch", [None, 4])
def test_manual_step_equals_autodiff_step(devices, microbatch):
    options = {"mesh": mesh_of(devices), "microbatch": microbatch}
    by_hand, losses = trained(backward="manual", **options)
    by_autodiff, reference = trained(backward="autodiff", **options)
    close(by_hand.params, by_autodiff.params)
    np.testing.assert_allclose(losses, reference, rtol=ORDER)


def test_first_update_is_autodiffs_gradient_of_the_whole_batch():
    """Against a gradient taken here, not by the library: a fault that both backward modes share would show."""
    images, labels = (a[:BATCH] for a in data())
    state = new_state(optax.sgd(1.0))

    def cost(params):
        logits = NETWORK.forward(params, {}, images)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradients = jax.value_and_grad(cost)(state.params)
    expected = jax.tree.map(lambda p, g: p - g, state.params, gradients)
    accuracy = float((NETWORK.forward(state.params, {}, images)[0].argmax(-1) == labels).mean())
    for options in ({}, {"microbatch": 4}, {"mesh": mesh_of(1)}, {"backward": "autodiff"}):
        step = jaxcnn.train_step(NETWORK, LOSS, optax.sgd(1.0), **options)
        after, metrics = step(new_state(optax.sgd(1.0)), images, labels)
        close(after.params, expected)
        assert float(metrics["loss"]) == pytest.approx(float(value), rel=ORDER)
        assert float(metrics["accuracy"]) == pytest.approx(accuracy)
        assert int(metrics["invalid_labels"]) == 0


@pytest.mark.parametrize("options", [{"microbatch": 2}, {"microbatch": 3}, {"microbatch": 999}])
def test_microbatches_and_devices_do_not_change_the_gradient(options):
    whole, losses = trained(mesh=mesh_of(1))
    for devices in (1, 2):
        parts, same = trained(mesh=mesh_of(devices), **options)
        close(parts.params, whole.params)
        np.testing.assert_allclose(losses, same, rtol=ORDER)


def test_one_hot_and_soft_labels_train_like_indices():
    images, labels = (a[:BATCH] for a in data())
    step = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER)
    by_index, metrics = step(new_state(), images, labels)
    by_row, same = step(new_state(), images, jax.nn.one_hot(labels, 10))
    close(by_index.params, by_row.params)
    close(metrics, same)


def test_steps_in_a_scan_equal_single_steps():
    images, labels = data()
    run = jaxcnn.train_steps(NETWORK, LOSS, OPTIMIZER)
    state, metrics = run(new_state(), images, labels, jnp.arange(3 * BATCH).reshape(3, BATCH))
    single, losses = trained(3)
    close(state.params, single.params)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=ORDER)
    assert int(state.step) == int(single.step) == 3
    assert {k: v.shape for k, v in metrics.items()} == dict.fromkeys(("loss", "accuracy", "invalid_labels"), (3,))


FORBIDDEN = ("grad", "vjp", "linearize", "value_and_grad", "jvp", "jacrev", "jacfwd")


@pytest.fixture
def no_autodiff(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("autodiff was used")

    for name in FORBIDDEN:
        monkeypatch.setattr(jax, name, refuse)


@pytest.mark.parametrize("microbatch", [None, 4])
def test_manual_training_uses_no_autodiff(no_autodiff, microbatch):
    images, labels = data()
    # A new optimizer: nothing that an earlier test has traced can be used again.
    run = jaxcnn.train_steps(NETWORK, LOSS, optax.adam(2e-2), microbatch=microbatch)
    state, losses = new_state(), []
    for epoch in range(8):
        indices = jaxcnn.shuffled(len(labels), BATCH, seed=0, epoch=epoch)
        state, metrics = run(state, images, labels, indices)
        losses += metrics["loss"].tolist()
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


def test_autodiff_training_would_be_caught(no_autodiff):
    images, labels = data()
    run = jaxcnn.train_steps(NETWORK, LOSS, optax.adam(2e-2), backward="autodiff")
    with pytest.raises(AssertionError, match="autodiff was used"):
        run(new_state(), images, labels, jaxcnn.shuffled(len(labels), BATCH, seed=0, epoch=0))


def _shapes(tree):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)


@pytest.mark.parametrize("backward", BACKWARD)
def test_step_lowers_for_cpu_cuda_and_tpu(backward):
    step = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, backward=backward, mesh=mesh_of(1))
    images, labels = (a[:BATCH] for a in data())
    exported = jax.export.export(step, platforms=["cpu", "cuda", "tpu"])(*_shapes((new_state(), images, labels)))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    after, _ = exported.call(new_state(), images, labels)  # and what was exported is the step
    expected, _ = trained(1, mesh=mesh_of(1))
    close(after.params, expected.params)


def test_step_lowers_for_devices_that_are_not_there():
    mesh = AbstractMesh((4,), ("batch",), axis_types=(AxisType.Auto,))
    step = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, mesh=mesh)
    images, labels = (a[:BATCH] for a in data())
    lowered = step.trace(*_shapes((new_state(), images, labels))).lower(lowering_platforms=("tpu",))
    assert "all_reduce" in lowered.as_text()


@pytest.fixture
def compilations():
    """How many programs XLA has compiled since the test began."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("devices", [1, 2])
def test_second_step_compiles_nothing(devices, compilations):
    images, labels = jax.block_until_ready(tuple(a[:BATCH] for a in data()))
    step = jaxcnn.train_step(NETWORK, LOSS, optax.adam(3e-2), mesh=mesh_of(devices))
    state = new_state()
    before = len(compilations)
    state, _ = step(state, images, labels)
    first = len(compilations)
    step(state, images, labels)
    assert first > before  # the listener works
    assert len(compilations) == first


def test_only_the_state_is_donated():
    images, labels = (a[:BATCH] for a in data())
    state = new_state()
    step = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, mesh=mesh_of(1))
    step(state, images, labels)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not images.is_deleted()
    assert not labels.is_deleted()


@pytest.mark.parametrize("backward", BACKWARD)
@pytest.mark.parametrize("bad", [-1, 10])
def test_label_outside_the_classes_gives_nan_and_says_why(backward, bad):
    images, labels = (a[:BATCH] for a in data())
    step = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, backward=backward)
    _, metrics = step(new_state(), images, labels.at[3].set(bad))
    assert np.isnan(metrics["loss"])
    assert int(metrics["invalid_labels"]) == 1


def test_state_is_a_function_of_the_seed():
    a, b, other = new_state(), new_state(), new_state(seed=1)
    chex.assert_trees_all_equal(a.params, b.params)
    assert (jax.random.key_data(a.key) == jax.random.key_data(b.key)).all()
    differ = jax.tree.map(lambda p, q: bool((p != q).any()), a.params, other.params)
    assert differ["dense_1"]["weights"]
    assert differ["conv2d"]["filters"]


def test_shuffled_takes_each_sample_once_in_an_order_of_seed_and_epoch():
    order = jaxcnn.shuffled(10, 3, seed=0, epoch=0)
    assert order.shape == (3, 3)
    assert len(set(np.ravel(order).tolist())) == 9
    np.testing.assert_array_equal(order, jaxcnn.shuffled(10, 3, seed=0, epoch=0))
    for seed, epoch in ((0, 1), (1, 0)):
        assert (order != jaxcnn.shuffled(10, 3, seed=seed, epoch=epoch)).any()
    with pytest.raises(ValueError, match=r"shuffled: batch must be from 1 to the number of samples, 10; got 11"):
        jaxcnn.shuffled(10, 11, seed=0, epoch=0)


def test_evaluate_counts_every_image_once():
    images, labels = data()
    state, _ = trained(1)
    logits = NETWORK.forward(jax.device_get(state.params), {}, images)[0]
    expected = {
        "loss": float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()),
        "accuracy": float((logits.argmax(-1) == labels).mean()),
        "samples": 64,
    }
    for batch in (1000, 64, 10, 7):
        assert jaxcnn.evaluate(NETWORK, state, images, labels, batch=batch) == pytest.approx(expected, rel=ORDER)


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (4, 3, {}, r"evaluate: needs one label for each image, got 4 images and labels \(3,\)"),
        (0, 0, {}, r"evaluate: needs one label for each image, got 0 images"),
        (4, 4, {"batch": 0}, r"evaluate: batch must be at least 1, got 0"),
    ],
)
def test_evaluate_refuses(images, labels, options, message):
    with pytest.raises(ValueError, match=message):
        jaxcnn.evaluate(NETWORK, new_state(), jnp.zeros((images, *SHAPE)), jnp.zeros(labels, int), **options)


def test_evaluate_refuses_a_label_outside_the_classes():
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: labels must be in 0 … 9, got 10"):
        jaxcnn.evaluate(NETWORK, new_state(), jnp.zeros((4, *SHAPE)), jnp.array([0, 1, 10, 2]))


def _python(code, timeout=240):
    """Its own process: devices are counted before jax first uses one."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout)


def test_use_cpu_cores_makes_devices():
    done = _python("import jax, jaxcnn, numpy; print(jaxcnn.use_cpu_cores(numpy.int64(3)), jax.device_count())")
    assert done.stdout.split() == ["3", "3"], done.stderr


def test_use_cpu_cores_comes_first():
    done = _python("import jax, jaxcnn; jax.devices(); jaxcnn.use_cpu_cores(3)")
    assert "use_cpu_cores: jax has used a device already; call it at the start of the program" in done.stderr


@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "at least 1, got 0"),
        (2.5, TypeError, "a whole number or None, got 2.5"),
        ("2", TypeError, "a whole number or None, got '2'"),
        (True, TypeError, "a whole number or None, got True"),
    ],
)
def test_use_cpu_cores_refuses(n, error, message):
    with pytest.raises(error, match=f"^use_cpu_cores: n must be {message}"):
        jaxcnn.use_cpu_cores(n)


def _noisy(name="noisy"):
    """Adds noise to x, only when training; counts its calls, remembers the mean of x and a key."""

    def init(key, shape):
        return {}, {"calls": jnp.zeros((), jnp.int32), "mean": jnp.zeros(()), "key": key}, shape

    def forward(params, state, x, *, train=False, key=None):
        if not train:
            return x + state["mean"], state, ()
        new_state = {"calls": state["calls"] + 1, "mean": x.mean(), "key": state["key"]}
        return x + jax.random.normal(key, x.shape, x.dtype), new_state, ()

    return jaxcnn.Layer(name, init, forward, lambda residuals, dy: ({}, dy))


NOISY = jaxcnn.sequential(_noisy(), NETWORK)


def noisy_losses(steps=2, images=None, **options):
    """The network's initial state at a learning rate of 0: losses differ by the noise alone."""
    images = data()[0][:BATCH] if images is None else images
    state = jaxcnn.init_train_state(NOISY, optax.sgd(0.0), 0, SHAPE)
    step = jaxcnn.train_step(NOISY, LOSS, optax.sgd(0.0), **options)
    losses = []
    for _ in range(steps):
        state, metrics = step(state, images, data()[1][: len(images)])
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("backward", BACKWARD)
def test_noise_is_another_at_each_step_and_the_same_in_each_run(backward):
    _, losses = noisy_losses(backward=backward)
    _, same = noisy_losses(backward=backward)
    assert losses == same
    assert abs(losses[0] - losses[1]) > 1e-4


@pytest.mark.parametrize("options", [{"mesh": 2}, {"mesh": 1, "microbatch": BATCH // 2}])
def test_noise_is_another_in_each_part_of_the_batch(options):
    """Two equal halves with the same noise would lose what one half alone loses."""
    options = options | {"mesh": mesh_of(options["mesh"])}
    half = data()[0][: BATCH // 2]
    labels = data()[1][: BATCH // 2]
    step = jaxcnn.train_step(NOISY, LOSS, optax.sgd(0.0), **options)

    def gradient_noise(images):
        state = jaxcnn.init_train_state(NOISY, optax.sgd(0.0), 0, SHAPE)
        return float(step(state, images, jnp.concatenate([labels, labels]))[1]["loss"])

    both = gradient_noise(jnp.concatenate([half, half]))
    exchanged = [0.0, 0.0]
    for i, part in enumerate((half, half)):
        zeros = jnp.zeros_like(part)
        images = jnp.concatenate([part, zeros] if i == 0 else [zeros, part])
        exchanged[i] = gradient_noise(images)
    assert np.isfinite(both)
    assert abs(exchanged[0] - exchanged[1]) > 1e-4  # equal if both parts drew the same noise


@pytest.mark.parametrize("options", [{"mesh": 1}, {"mesh": 2}, {"mesh": 2, "microbatch": 4}])
@pytest.mark.parametrize("backward", BACKWARD)
def test_network_state_is_kept_and_averaged_over_devices(options, backward):
    options = options | {"mesh": mesh_of(options["mesh"]), "backward": backward}
    state, _ = noisy_losses(**options)
    kept = state.state["noisy"]
    assert kept["calls"].dtype == jnp.int32
    assert int(kept["calls"]) == 2 * (BATCH // options["mesh"].size // options.get("microbatch", 999) or 1)
    if "microbatch" not in options:  # the last micro-batch's otherwise
        assert float(kept["mean"]) == pytest.approx(float(data()[0][:BATCH].mean()), rel=1e-4, abs=1e-6)
    initial = jaxcnn.init_train_state(NOISY, optax.sgd(0.0), 0, SHAPE).state["noisy"]["key"]
    assert (jax.random.key_data(kept["key"]) == jax.random.key_data(initial)).all()


def test_evaluate_uses_the_state_and_the_loss_given():
    state, _ = noisy_losses(images=data()[0][:BATCH] + 3)
    images, labels = (a[:BATCH] for a in data())
    logits = NOISY.forward(jax.device_get(state.params), jax.device_get(state.state), images)[0]
    right = float(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean())
    assert jaxcnn.evaluate(NOISY, state, images, labels)["loss"] == pytest.approx(right, rel=ORDER)
    double = LOSS.replace(forward=lambda logits, labels: (2 * LOSS.forward(logits, labels)[0], ()))
    assert jaxcnn.evaluate(NOISY, state, images, labels, loss=double)["loss"] == pytest.approx(2 * right, rel=ORDER)


def test_optimizer_sees_the_parameters():
    """Weight decay moves them even where the gradient is zero."""
    decay = optax.chain(optax.set_to_zero(), optax.add_decayed_weights(0.5))
    before = jax.device_get(new_state(decay).params)
    step = jaxcnn.train_step(NETWORK, LOSS, decay)
    after, _ = step(new_state(decay), *(a[:BATCH] for a in data()))
    close(after.params, jax.tree.map(lambda p: 1.5 * p, before))


def test_shuffled_is_not_symmetric_in_seed_and_epoch():
    assert (jaxcnn.shuffled(10, 3, seed=1, epoch=2) != jaxcnn.shuffled(10, 3, seed=2, epoch=1)).any()


@pytest.mark.parametrize("bad", [64, 99, -1])
def test_an_index_that_names_no_sample_gives_nan(bad):
    images, labels = data()
    run = jaxcnn.train_steps(NETWORK, LOSS, OPTIMIZER)
    indices = jnp.arange(BATCH).reshape(1, BATCH).at[0, 3].set(bad)
    _, metrics = run(new_state(), images, labels, indices)
    assert np.isnan(metrics["loss"][0])
    assert int(metrics["invalid_labels"][0]) == 1


def test_a_mesh_of_one_device_runs_on_that_device():
    other = jax.make_mesh((1,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[1:2])
    state, _ = trained(1, mesh=other)
    assert {d for leaf in jax.tree.leaves(state.params) for d in leaf.devices()} == {jax.devices()[1]}


def test_evaluate_takes_images_of_another_device():
    images, labels = data()
    state, _ = trained(1, mesh=mesh_of(2))
    there = jaxcnn.evaluate(NETWORK, state, jax.device_put(images, jax.devices()[0]), labels)
    assert there == pytest.approx(jaxcnn.evaluate(NETWORK, state, np.asarray(images), labels))


@pytest.mark.parametrize("batch", [10, 7, 64])
def test_evaluate_divides_the_images_among_the_devices(batch):
    """Where a batch divides; one of 7 does not, and each device takes all of it."""
    images, labels = data()
    seen = []

    def watched(params, state, x, *, train=False, key=None):
        seen.append(x.shape[0])
        return NETWORK.forward(params, state, x, train=train, key=key)

    network = dataclasses.replace(NETWORK, forward=watched)
    state, _ = trained(1, mesh=mesh_of(2))
    on_two = jaxcnn.evaluate(network, state, images, labels, batch=batch)
    assert set(seen) == {n // 2 if n % 2 == 0 else n for n in (batch, len(images) % batch) if n}
    on_one = jaxcnn.evaluate(NETWORK, jax.device_get(state), images, labels, batch=batch)
    assert on_two == pytest.approx(on_one, rel=ORDER)


def test_a_gradient_of_another_shape_is_refused():
    """It would change the parameter's shape by broadcasting."""
    wide = jaxcnn.dense.replace(backward=lambda r, dy: (dy @ r.w.T, r.x.T @ dy, dy.sum(0)[None]))
    network = jaxcnn.sequential(jaxcnn.Flatten(), jaxcnn.Dense(10, rule=wide))
    state = jaxcnn.init_train_state(network, OPTIMIZER, 0, SHAPE)
    step = jaxcnn.train_step(network, LOSS, OPTIMIZER)
    with pytest.raises(TypeError, match=r"sequential: backward must return gradients like the parameters"):
        step(state, *(a[:BATCH] for a in data()))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: jaxcnn.train_step(NETWORK, optax.softmax_cross_entropy, OPTIMIZER), TypeError,
         r"train_step: loss must be a jaxcnn.Rule of \(logits, labels\), got function"),
        (lambda: jaxcnn.train_step(NETWORK, LOSS, optax.adam), TypeError,
         r"train_step: optimizer must be an optax optimizer, made by a call as optax.adam\(1e-3\)"),
        (lambda: jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER)(new_state().params, *data()), TypeError,
         r"train_step: takes a TrainState first, got dict"),
    ],
)  # fmt: skip
def test_what_beginners_give_in_place(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("devices", [1, 2])
def test_a_state_is_used_once(devices):
    step, state = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER, mesh=mesh_of(devices)), new_state()
    batch = [a[:BATCH] for a in data()]
    state, _ = step(state, *batch)
    step(state, *batch)
    with pytest.raises(ValueError, match=r"train_step: an earlier step has used up this state; go on with the one it"):
        step(state, *batch)


def test_lists_are_taken_as_arrays():
    images, labels = (a[:BATCH] for a in data())
    step = jaxcnn.train_step(NETWORK, LOSS, OPTIMIZER)
    a, b = (step(new_state(), images, given)[1] for given in (labels, labels.tolist()))
    close(a, b)


def test_the_devices_meet_once_for_all_small_arrays():
    """One sum of the floats, one of the counts, one of the large matrix: 3, for 9 arrays of gradients and metrics."""
    network = jaxcnn.models.source()
    step = jaxcnn.train_step(network, LOSS, OPTIMIZER, mesh=mesh_of(2))
    state = jax.eval_shape(lambda: jaxcnn.init_train_state(network, OPTIMIZER, 0, (8, 8, 1)))
    data = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    assert len(jax.tree.leaves(state.params)) + 3 == 9
    assert step.lower(state, *data).as_text().count("stablehlo.all_reduce") == 3
