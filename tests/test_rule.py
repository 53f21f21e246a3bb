"""Rule: dtypes, arguments, comparison of rules, errors."""

import functools
import inspect
import pickle
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import (
    CASES,
    EXACT,
    FLOAT32,
    FLOAT64,
    assert_close,
    assert_same,
    draw,
    is_float,
    plain_conv2d,
    values_and_gradients,
)

import jaxcnn
from jaxcnn import Rule
from jaxcnn.rule import Static


def scale_forward(x, factor=None, *, power=1, shift=(0, 0)):
    """The power of x, times the factor."""
    y = x**power + sum(shift)
    return (y if factor is None else y * factor), (x, factor, Static(shift))


def scale_backward(residuals, dy, *, power, shift):
    x, factor, kept = residuals
    assert kept.value == shift  # a Static stays the Python value that it was
    dfactor = None if factor is None else (dy * (x**power + sum(shift))).sum()
    return dy * power * x ** (power - 1) * (1 if factor is None else factor), dfactor


scale = Rule(scale_forward, scale_backward)
X = np.array([1.0, -2.0, 3.0], np.float32)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_have_the_dtype_given(case, dtype, x64, rng):
    rule, shapes, static = CASES[case]
    arrays = draw(rng, *shapes, dtype=dtype)
    [(y, gradients)] = values_and_gradients([functools.partial(rule, **static)], arrays, rng)
    assert y.dtype == dtype
    assert [g.dtype for g in gradients if g is not None] == [a.dtype for a in arrays if is_float(a)]


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, b: jaxcnn.conv2d(x, w, bias=b),
        lambda x, w, b: jaxcnn.conv2d(filters=w, bias=b, image=x),
        lambda x, w, b: jaxcnn.conv2d(x, w, b, stride=1, padding="SAME", dilation=(1, 1), groups=1),
        lambda x, w, b: jaxcnn.conv2d(x, w, b, padding=[[1, 1], [1, 1]]),
        lambda x, w, b: jaxcnn.conv2d(x, w, b, padding=np.ones((2, 2), int)),
        lambda x, w, b: jaxcnn.conv2d(x, w, None, stride=[1, 1]) + b,
        lambda x, w, b: jaxcnn.conv2d(x, w, stride=np.int64(1)) + b,
    ],
)
def test_arguments_are_bound_by_the_signature(call, rng):
    x, w, b = draw(rng, (2, 4, 4, 2), (3, 3, 3, 2), (3,), dtype=np.float32)  # numpy arrays are as good as jax's
    assert_same([call, plain_conv2d], (x, w, b), rng, FLOAT32)
    assert isinstance(jaxcnn.conv2d(x, w, b), jax.Array)


def test_static_arguments_reach_both_passes():
    assert_close(jax.jit(jax.grad(lambda x: scale(x, power=3, shift=[1, 2])[1]))(X), np.float32([0, 12, 0]), EXACT)
    assert scale.bind(X, power=2)[1] == scale.static(power=2) == {"power": 2, "shift": (0, 0)}
    assert scale.bind(X)[0][1] is None


NUMBERS = {
    "dropout": lambda x, half: jaxcnn.dropout(x, jax.random.key(0), rate=half),
    "softmax_cross_entropy": lambda x, half: jaxcnn.softmax_cross_entropy(x, jnp.zeros(2, int), label_smoothing=half),
    "layer_norm": lambda x, half: jaxcnn.layer_norm(x, x[0], x[0], epsilon=half),
    "huber_loss": lambda x, half: jaxcnn.huber_loss(x, 3 * x, delta=half),
    "sigmoid_focal_loss": lambda x, half: jaxcnn.sigmoid_focal_loss(x, x, gamma=half, alpha=half),
    "elu": lambda x, half: jaxcnn.elu(-x, alpha=half),
    "Dropout": lambda x, half: jaxcnn.differentiable(jaxcnn.Dropout(half))(
        {}, {}, x, train=True, key=jax.random.key(0)
    )[0],
}  # fmt: skip


@pytest.mark.parametrize("half", [np.float64(0.5), np.float32(0.5), Fraction(1, 2)], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_static_numbers_do_not_widen_the_arrays(name, half, x64):
    """A number of NumPy would, and a fraction cannot be computed with at all."""
    x = jnp.ones((2, 4), jnp.bfloat16)
    wanted, got = (jax.vjp(functools.partial(NUMBERS[name], half=h), x) for h in (0.5, half))
    assert got[0].dtype == jnp.bfloat16
    assert_close(got[0], wanted[0], EXACT)
    assert_close(got[1](got[0]), wanted[1](wanted[0]), EXACT)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
@pytest.mark.parametrize("name", ["relu", "gelu", "max_pool", "avg_pool", "softmax"])
def test_floats_of_8_bits_are_refused(name, dtype):
    with pytest.raises(TypeError) as caught:
        getattr(jaxcnn, name)(jnp.ones((4, 4), dtype))
    required = "float16, bfloat16, float32 or float64"
    assert str(caught.value) == f"{name}: x must be {required}, got {jnp.dtype(dtype)}"


def test_static_values_of_only_positional_arrays():
    def forward(x, /, *, power=2):
        return x**power, x

    assert Rule(forward, lambda x, dy, *, power: (dy * power * x,)).static() == {"power": 2}


@pytest.mark.parametrize("factor", [None, np.float32(2.5)])
def test_optional_array(factor):
    """Backward gives an entry for it all the same; Rule drops that of an absent one."""
    _, pullback = jax.vjp(functools.partial(scale, power=2), X, factor)
    dx, dfactor = pullback(X)
    assert_close(dx, (2 if factor is None else 5) * X * X, EXACT)
    assert_close(dfactor, None if factor is None else np.float32((X**3).sum()), EXACT)


def test_integer_boolean_and_key_arrays_have_no_cotangent():
    def forward(x, index, mask, key):
        noise = jax.random.normal(key, x.shape)
        return jnp.where(mask, x[index] * noise, 0), (index, mask, noise)

    def backward(residuals, dy):
        index, mask, noise = residuals
        return jnp.zeros_like(dy).at[index].add(jnp.where(mask, dy * noise, 0)), None, None, None

    rule, index, mask = Rule(forward, backward), jnp.array([2, 0, 2]), jnp.array([True, False, True])
    arrays = (X, index, mask, jax.random.key(3))
    got = jax.vjp(lambda x: rule(x, *arrays[1:]), X)[1](X)
    assert_close(got, jax.vjp(lambda x: forward(x, *arrays[1:])[0], X)[1](X), FLOAT32)
    over_keys = jax.vmap(jax.grad(lambda x, key: rule(x, index, mask, key).sum()), (None, 0))
    assert over_keys(X, jax.random.split(arrays[3], 4)).shape == (4, 3)


def test_static_residuals_cross_jit_and_vmap():
    """Residuals, taken from one jitted pass to another: a bare shape would come out as arrays."""
    x = jnp.ones((2, 3, 2, 2))
    y, residuals = jax.jit(jaxcnn.flatten.forward)(x)
    assert residuals.shape == Static((2, 3, 2, 2))
    assert jax.jit(jaxcnn.flatten.backward)(residuals, y)[0].shape == x.shape
    ys, residuals = jax.vmap(jaxcnn.flatten.forward)(x[None])
    assert residuals.shape.value == x.shape
    assert jax.vmap(jaxcnn.flatten.backward)(residuals, ys)[0].shape == (1, *x.shape)


def test_rules_are_frozen_and_compare_by_their_passes():
    same = Rule(scale_forward, scale_backward, "another name", reference=jnp.sin, batch_axes=(0, None))
    other = scale.replace(backward=lambda residuals, dy, **static: (dy, None))
    assert same == scale
    assert len({scale, same, other}) == 2
    with pytest.raises(AttributeError, match="cannot assign"):
        scale.name = "other"  # pyright: ignore


def test_replace_keeps_the_rest():
    def doubled(residuals, dy, **static):
        return tuple(2 * d for d in jaxcnn.max_pool.backward(residuals, dy, **static))

    rule, x = jaxcnn.max_pool.replace(backward=doubled), jnp.arange(16.0).reshape(4, 4)
    assert (rule.forward, rule.reference) == (jaxcnn.max_pool.forward, jaxcnn.max_pool.reference)
    assert (rule.name, rule.batch_axes) == ("max_pool", (0,))
    pulled = [jax.vjp(r, x)[1](jnp.array([[1.0, 2.0], [3.0, 5.0]]))[0] for r in (jaxcnn.max_pool, rule)]
    assert_close(pulled[1], 2 * pulled[0], EXACT)
    assert pulled[0].sum() == 11


def test_partial_sets_the_defaults_of_static_arguments(x64, rng):
    """In all passes and in the reference; a value given in the call goes first, as in functools.partial."""
    rule, x = scale.partial(power=3, shift=[1, 2]), np.arange(1.0, 4.0)
    assert rule.static() == {"power": 3, "shift": (1, 2)}
    assert rule.static(power=2)["power"] == 2
    assert_same([rule, rule.autodiff(), rule.plain, lambda x, f: (x**3 + 3) * f], (x, np.array(2.5)), rng, FLOAT64)
    assert_same([functools.partial(rule, power=2), lambda x: x**2 + 3], (x,), rng, FLOAT64)
    assert_close(rule.forward(x)[0], x**3 + 3, EXACT)
    tied = jaxcnn.max_pool.partial(ties="all")  # its reference is not its forward
    for each in (tied, tied.autodiff()):
        assert_close(jax.vjp(each, jnp.zeros((2, 2)))[1](jnp.full((1, 1), 3.0))[0], jnp.full((2, 2), 3.0), EXACT)


def test_partial_rules_made_alike_are_equal():
    made = [scale.partial(power=p, shift=s) for p, s in ((3, [0, 1]), (3, (0, 1)), (2, (0, 1)))]
    assert (
        made[0]
        == made[1]
        == scale.partial(shift=(0, 1)).partial(power=3)
        == scale.partial(power=2, shift=(0, 1)).partial(power=3)
    )
    assert len({*made, scale}) == 3
    assert pickle.loads(pickle.dumps(made[0])) == made[0]


def test_partial_keeps_name_documentation_and_fields():
    rule = jaxcnn.max_pool.partial(ties="all", window=3)
    assert (rule.name, rule.__doc__, rule.batch_axes) == ("max_pool", jaxcnn.max_pool.__doc__, (0,))
    parameters = inspect.signature(rule).parameters
    assert {n: p.default for n, p in parameters.items() if n != "x"} == {
        "window": 3, "stride": None, "padding": "VALID", "ties": "all",
    }  # fmt: skip
    assert rule.__module__ == "jaxcnn.rules.pooling"


@pytest.mark.parametrize(
    ("rule", "given", "message"),
    [
        (scale, {"power": 2, "shfit": (1, 2)}, "scale: partial takes the static arguments power, shift; got shfit"),
        (scale, {"factor": 2.0}, "scale: partial takes the static arguments power, shift; got factor"),
        (jaxcnn.relu, {"slope": 2.0}, "relu: partial takes nothing: there are no static arguments; got slope"),
        (scale, {"shift": {}}, "scale: shift must be hashable, got dict"),
    ],
)
def test_partial_refuses(rule, given, message):
    with pytest.raises(TypeError) as caught:
        rule.partial(**given)
    assert str(caught.value) == message


@pytest.mark.parametrize("case", CASES)
def test_autodiff_is_vjp_of_the_reference(case, x64, rng):
    rule, shapes, static = CASES[case]
    arrays = draw(rng, *shapes)
    broken = rule.replace(backward=lambda residuals, dy, **static: [])  # which autodiff must not look at
    assert_same([broken.autodiff(), rule.plain], arrays, rng, FLOAT64, **static)


def test_autodiff_follows_the_reference_where_it_differs_from_the_forward():
    rule = Rule(lambda x: (jnp.maximum(x, 0), x), lambda x, dy: (dy,), "r", reference=lambda x: jnp.where(x > 0, x, 0))
    assert [float(jax.grad(f)(0.0)) for f in (rule, rule.autodiff(), lambda x: rule.forward(x)[0])] == [1.0, 0.0, 0.5]
    assert rule.plain(2.0) == 2.0
    assert scale.plain(3.0, power=2) == 9.0  # no reference: the forward


def test_autodiff_keeps_signature_and_binding():
    rule = scale.autodiff()
    assert inspect.signature(rule) == inspect.signature(scale)
    assert_close(jax.grad(lambda x: rule(factor=2.0, x=x, power=2).sum())(X), 4 * X, EXACT)
    assert rule == scale.autodiff()


def test_a_rule_presents_itself_as_its_forward():
    assert inspect.signature(scale) == inspect.signature(scale_forward)
    assert (scale.name, scale.__name__, repr(scale)) == ("scale", "scale", "Rule(scale)")
    assert scale.__doc__ == scale_forward.__doc__
    assert Rule(scale_forward, scale_backward, "mine").name == "mine"
    assert Static((1, 2)) == Static((1, 2)) != Static((2, 1))


def returning(*cotangents):
    """The gradient of a rule whose backward pass returns this."""
    rule = scale.replace(backward=lambda residuals, dy, **static: cotangents[0] if cotangents[1:] else cotangents)
    return lambda: jax.grad(lambda x, f: rule(x, f).sum(), (0, 1))(X, np.float32(2))


NUMBER = "scale: backward must return a tuple of 2 cotangents, one for each array parameter of forward, got "

ERRORS = {
    "one cotangent": (
        returning(X),
        f"{NUMBER}a tuple of 1",
    ),
    "a list": (
        returning([X, 1.0], ...),
        f"{NUMBER}list",
    ),
    "shape": (
        lambda: returning((X[:2], jnp.float32(1)), ...)(),
        "scale: backward's cotangent 0 is float32[2], its array is float32[3]; shape and dtype must be equal",
    ),
    "dtype": (
        lambda: returning((X, jnp.bfloat16(1)), ...)(),
        "scale: backward's cotangent 1 is bfloat16[], its array is float32[]; shape and dtype must be equal",
    ),
    "None": (
        lambda: returning((X, None), ...)(),
        "scale: backward's cotangent 1 is None, its array is float32[]; None is for integer, boolean and key arrays",
    ),
    "forward returns an array": (
        lambda: Rule(lambda x: x, scale_backward, "f")(X),
        "f: forward must return (output, residuals), got ",
    ),
    "forward returns three": (
        lambda: jax.grad(Rule(lambda x: (x, x, x), scale_backward, "f"))(1.0),
        "f: forward must return (output, residuals), got a tuple of 3",
    ),
    "static array": (
        lambda: scale(X, power=jnp.array(2)),
        "scale: power must be a Python value known before tracing, got an array",
    ),
    "static tracer": (
        lambda: jax.jit(lambda n: scale(X, shift=(n, 0)))(2),
        "scale: shift must be a Python value known before tracing, got an array",
    ),
    "static unhashable": (lambda: scale(X, power={}), "scale: power must be hashable, got dict"),
    "no array": (lambda: scale("text"), "scale: x must be an array, got str"),
    "no array by keyword": (lambda: scale(X, factor=object()), "scale: factor must be an array, got object"),
    "required None": (lambda: scale(None), "scale: x must be an array, got None"),
    "required None of several": (lambda: jaxcnn.add(X, None), "add: xs[1] must be an array, got None"),
    "required None of a rule with defaults": (
        lambda: jaxcnn.dropout.partial(rate=0.5)(X, None),
        "dropout: key must be an array, got None",
    ),
    "missing": (lambda: scale(), "scale: missing a required argument: 'x'"),
    "unknown": (lambda: scale(X, stride=2), "scale: got an unexpected keyword argument 'stride'"),
    "too many": (
        lambda: scale(X, 1.0, 2),
        "scale: too many positional arguments; power, shift are given by keyword",
    ),
    "too many without static arguments": (lambda: jaxcnn.relu(X, 2), "relu: too many positional arguments"),
    "no axes": (
        lambda: jaxcnn.dropout(X, jax.random.key(0), rate=0.5, broadcast=1),
        "dropout: broadcast must be a tuple of whole numbers, got 1",
    ),
    "static unknown": (lambda: scale.static(stride=2), "scale: got an unexpected keyword argument 'stride'"),
    "forward no function": (lambda: Rule(3, scale_backward), "Rule: forward must be a function, got int"),
    "backward no function": (lambda: Rule(scale_forward, "b"), "Rule: backward must be a function, got str"),
    "no array parameter": (
        lambda: Rule(lambda *, power: 1, scale_backward, "f"),
        "Rule: forward must have a positional parameter, an array; got f(*, power)",
    ),
    "only keywords": (
        lambda: Rule(lambda **static: 1, scale_backward, "f"),
        "Rule: forward must have a positional parameter, an array; got f(**static)",
    ),
}


@pytest.mark.parametrize("error", ERRORS)
def test_errors(error):
    call, message = ERRORS[error]
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("case", CASES)
def test_numpy_cotangents(case, x64, rng):
    rule, shapes, static = CASES[case]
    arrays = draw(rng, *shapes)
    y, pullback = jax.vjp(functools.partial(rule, **static), *arrays)
    dy = rng.normal(size=y.shape)
    got, wanted = ([g for g in pullback(d) if g.dtype != jax.dtypes.float0] for d in (dy, jnp.asarray(dy)))
    assert_close(got, wanted, FLOAT64)
