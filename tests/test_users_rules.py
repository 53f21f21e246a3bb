"""Rules as people write them: right ones that are easily taken for wrong, wrong ones that are easily missed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxcnn
from jaxcnn import Rule, verify


def values(*shape, by=1.0):
    return (by * np.random.default_rng(7).standard_normal(shape)).astype(np.float32)


def elementwise(forward, slope, **fields):
    return Rule(lambda x: (forward(x), x), lambda x, dy: (dy * slope(x),), "mine", **fields)


def of_output(forward, backward):
    def both(x):
        y = forward(x)
        return y, y

    return Rule(both, backward, "mine")


def first_of_the_largest(x, dy):
    return (jax.nn.one_hot(x.argmax(-1), x.shape[-1], dtype=x.dtype) * dy[..., None],)


def fourth_power(x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * x), (0, x))[1]


def with_zero(*shape):
    """One element at the kink of what bends at zero."""
    x = values(*shape)
    x[(-1,) * x.ndim] = 0
    return x


def stopped(x):
    return x.at[0].set(lax.stop_gradient(x[0]))


WEIGHTS = jnp.arange(6.0)
RIGHT = {
    "a NumPy constant": (elementwise(lambda x: x / np.sqrt(2.0), lambda x: 1 / np.sqrt(2.0)), values(3, 4)),
    "an array for a constant": (elementwise(lambda x: x * WEIGHTS, lambda x: WEIGHTS), values(3, 6)),
    "elu by minimum": (
        elementwise(lambda x: jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0))),
                    lambda x: jnp.where(x > 0, 1, jnp.exp(jnp.minimum(x, 0)))), values(3, 4),
    ),
    "relu by maximum": (elementwise(lambda x: jnp.maximum(x, 0), lambda x: x > 0), values(3, 4)),
    "abs": (elementwise(jnp.abs, jnp.sign), values(3, 4)),
    "the larger of two": (
        Rule(lambda a, b: (jnp.maximum(a, b), a > b), lambda r, dy: (dy * r, dy * ~r), "larger"),
        values(3, 4), values(3, 4, by=0.7),
    ),
    "the first of the largest": (Rule(lambda x: (x.max(-1), x), first_of_the_largest, "max"), values(2, 4)),
    "clip beside its bounds": (
        elementwise(lambda x: jnp.clip(x, -1, 1), lambda x: (x >= -1) & (x <= 1)),
        np.array([0.3, -0.5, 1.001, 0.9999, -1.0005, 2, -0.9995], np.float32),
    ),
    "tanh near 1": (of_output(jnp.tanh, lambda y, dy: (dy * (1 - y * y),)), 8 + values(3, 4, by=0.1)),
    "softmax of large values": (
        of_output(jax.nn.softmax, lambda y, dy: (y * (dy - (dy * y).sum(-1, keepdims=True)),)), values(3, 5, by=30),
    ),
    "cross-entropy of confident logits": (
        jaxcnn.softmax_cross_entropy, 25 * np.eye(4, dtype=np.float32), np.arange(4),
    ),
    "sine of large values": (elementwise(jnp.sin, jnp.cos), values(3, 4, by=1e9)),
    "a loop that autodiff cannot run backward": (elementwise(fourth_power, lambda x: 4 * x**3), values(4)),
    "a constant narrower than float64": (elementwise(lambda x: x * jnp.float32(3), lambda x: 3), values(4)),
    "arrays of several dtypes that it takes as one alone": (
        jaxcnn.layer_norm, values(2, 4), np.ones(4, np.float16), np.zeros(4, np.float32),
    ),
    "arcsin at 1": (
        elementwise(jnp.arcsin, lambda x: 1 / jnp.sqrt(1 - x * x)), np.array([0.1, 0.5, 1, -0.3], np.float32),
    ),
    "inverse of a matrix": (
        of_output(jnp.linalg.inv, lambda y, dy: (-y.T @ dy @ y.T,)), values(3, 3) + 3 * np.eye(3, dtype=np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_a_right_rule_passes(what):
    report = verify(*RIGHT[what])
    assert report.ok, str(report)


def test_what_could_not_be_checked_is_said():
    rule = elementwise(jnp.sqrt, lambda x: 0.5 / jnp.sqrt(x))
    report = verify(rule, np.array([0.1, 0.5, -1.0, 2.0], np.float32))
    assert report.ok
    assert str(report).startswith("mine: correct where it could be checked\n")
    assert report.gaps == (
        "1 of 4 elements of the output are not finite at the given arrays",
        "1 of 4 elements of the right dx are not finite",
    )
    assert "  not checked: 1 of 4 elements of the right dx are not finite" in str(report).splitlines()
    assert verify(*RIGHT["sine of large values"]).gaps == ("no finite difference of x could be trusted",)
    sine = elementwise(lambda x: jnp.sin(x.astype(jnp.float32)), jnp.cos)
    report = verify(sine.replace(backward=lambda x, dy: ((dy * jnp.cos(x)).astype(x.dtype),)), values(3))
    assert report.ok
    assert "the forward pass narrows float64: all is compared to a relative precision of 1.2e-07 alone" in report.gaps
    assert "other batch left out: no axis of samples is declared (batch_axes)" in report.notes


def test_a_forward_pass_that_widens_is_said_where_the_caller_does_not_use_it():
    rule, x = RIGHT["an array for a constant"]
    wide = "in bfloat16 the forward pass gives float32, wider than bfloat16; dx there: it is float32[3, 6], its"
    assert any(note.startswith(wide) for note in verify(rule, x).notes)
    found = verify(rule, jnp.asarray(x, jnp.bfloat16)).findings
    assert [(f.check, f.cause) for f in found] == [("bfloat16", "structure")]


def hwio(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def not_rotated(residuals, dy):
    x, w = residuals
    return hwio(dy, w.swapaxes(2, 3)), jax.vjp(lambda w: hwio(x, w), w)[1](dy)[0]


KEPT = {}


def keeping(x):
    KEPT["x"] = x
    return x**2, ()


def every_tie(x, dy):
    return ((x == x.max(-1, keepdims=True)) * dy[..., None],)


def product(x):
    y = jnp.prod(x)
    return y, (x, y)


def tanh_slope(x):
    return jax.vmap(jax.grad(jax.nn.gelu))(x.ravel()).reshape(x.shape)


def box(image, mode="constant"):
    return jax.scipy.signal.convolve(jnp.pad(image, 1, mode), jnp.ones((3,) * image.ndim, image.dtype), "valid")


BOX = Rule(lambda x: (box(x), ()), lambda r, dy: (box(dy, "edge"),), "box")
WRONG = {
    "every tied maximum, two rows": (
        Rule(lambda x: (x.max(-1), x), every_tie, "max"), [values(2, 4)], "ties", "several values of x tie",
    ),
    "what is kept outside the residuals": (
        Rule(keeping, lambda r, dy: (2 * KEPT["x"] * dy,), "square", reference=lambda x: x**2), [values(3)],
        "nondeterministic", "between a call under jit and one without",
    ),
    "right in float32 alone, of arrays of two dtypes": (
        Rule(lambda x, w: (x * w, (x, w)), lambda r, dy: (dy * r[1], (dy * r[0]).astype(r[1].dtype)), "times"),
        [jnp.asarray(values(3), jnp.bfloat16), values(3)],
        "structure", "dx has the wrong form: it is float32[3], its array is bfloat16[3]",
    ),
    "an unrotated filter h×w×C×n": (
        Rule(lambda x, w: (hwio(x, w), (x, w)), not_rotated, "hwio"), [values(2, 5, 6, 3), values(3, 3, 3, 4)],
        "rotated", "for w rotated by 180 degrees in its axes 0, 1",
    ),
    "another formula, nearly right": (
        elementwise(lambda x: jax.nn.gelu(x, approximate=False), tanh_slope), [values(4, 5)],
        "unknown", "the derivative of another formula, close to that of the forward pass",
    ),
    "dy forgotten": (
        Rule(lambda x: (x**2, x), lambda x, dy: (2 * x,), "square"), [values(4, 5)],
        "not-linear", "dx is the same for dy = 0: dy does not enter it",
    ),
    "a loop that autodiff cannot run backward": (
        elementwise(fourth_power, lambda x: 3 * x**3), [values(4)], "scaled", "dx equals the right gradient times 0.75",
    ),
    "a stopped gradient everywhere": (
        Rule(lambda x: (jnp.sin(lax.stop_gradient(x)), ()), lambda r, dy: (jnp.zeros_like(dy),), "mine"),
        [values(4, 5)], "zero", "not the finite differences of the forward pass",
    ),
    "a stopped gradient beside a kink": (
        Rule(lambda x: (jnp.where((z := stopped(x)) > 0, z, 0.1 * z), x),
             lambda x, dy: (jnp.where(x > 0, dy, 0.1 * dy).at[0].set(0),), "mine"),
        [with_zero(200)], "unknown", "not the finite differences of the forward pass",
    ),
    "a stopped gradient beside a narrow residual": (
        Rule(lambda x: (3 * x + lax.stop_gradient(2 * x), x.mean().astype(jnp.float16)), lambda r, dy: (3 * dy,), "m"),
        [values(6)], "scaled", "not the finite differences of the forward pass",
    ),
    "a residual that is no array": (
        Rule(lambda x: (x**2, ("square", x)), lambda r, dy: (2 * r[1] * dy,), "mine"), [values(3)],
        "structure", "residuals must be arrays, residuals[0] is str; Static wraps what is none",
    ),
    "a complex cotangent": (
        elementwise(jnp.sin, lambda x: 1j * jnp.cos(x)), [values(3)],
        "structure", "dx has the wrong form: it is complex",
    ),
    "dy handed on": (
        elementwise(jnp.sin, lambda x: 1.0), [values(4, 5)], "unknown", "dx equals dy: the derivative of the pass",
    ),
    "0 / 0 of a product": (
        Rule(product, lambda r, dy: (dy * r[1] / r[0],), "prod"), [1 + values(5, by=0.1)],
        "nan", "dx has values that are NaN or infinite where x is zero",
    ),
    "values rounded to float32": (
        Rule(lambda x: (x**2, x), lambda x, dy: ((2 * x.astype(jnp.float32) * dy).astype(x.dtype),), "square"),
        [values(5)], "precision", "not at values of more digits than float32 keeps",
    ),
    "another edge, of a signal": (BOX, [values(12)], "border", "wrong everywhere within 1 of its edge"),
    "another edge, of an image": (BOX, [values(7, 8)], "border", "wrong everywhere within 1 of its edge"),
    "another order of a signal": (
        Rule(lambda x: (x[::-1] ** 2, x), lambda x, dy: (2 * x * dy,), "turned"), [values(5)],
        "flipped", "for dy with axis 0 of dy in reverse order",
    ),
    "a sum over the other axis": (
        Rule(lambda x, b: (x * x + b, x), lambda x, dy: (2 * x * dy, dy.sum(1)), "add"), [values(5, 5), values(5)],
        "transposed", "db equals the right gradient for dy with its axes 0, 1 exchanged",
    ),
    "a repetition taken for tiles": (
        Rule(lambda x: (jnp.repeat(x, 3), ()), lambda r, dy: (dy.reshape(3, -1).sum(0),), "repeat"), [values(4)],
        "transposed", "for dy with axis 0 laid out as 3×4, where 4×3 belongs",
    ),
    "a running sum from the wrong end": (
        Rule(lambda x: (jnp.cumsum(x), ()), lambda r, dy: (jnp.cumsum(dy),), "cumsum"), [values(6)],
        "flipped", "dx runs along axis 0 the wrong way",
    ),
    "a dictionary": (
        Rule(lambda x: (x**2, x), lambda x, dy: ({"x": 2 * x * dy},), "square"), [values(4, 5)],
        "structure", "backward's cotangent of x must be an array, got dict",
    ),
    "relu of derivative 1 at 0": (
        jaxcnn.relu.replace(
            forward=lambda x: (jnp.where(x <= 0, 0, x), x), backward=lambda x, dy: (jnp.where(x < 0, 0, dy),)
        ),
        [values(4, 5)], "kink", "exactly at a kink of the forward pass",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_rule_is_found_and_named(what):
    rule, arrays, cause, message = WRONG[what]
    found = verify(rule, *arrays).findings
    assert [f.cause for f in found][:1] == [cause], found
    assert message in found[0].message


@pytest.mark.parametrize("seed", range(8))
def test_ties_are_made_whatever_the_values(seed):
    x = np.random.default_rng(seed).standard_normal((2, 4))
    report = verify(WRONG["every tied maximum, two rows"][0], x, options=jaxcnn.Options(dtypes=(), second_order=False))
    assert [f.cause for f in report.findings] == ["ties"]


def test_static_arguments_may_be_called_as_verifys_own():
    for name in ("train", "key", "options"):
        namespace = {}
        exec(
            f"def forward(x, *, {name}=1): return x * {name}, ()\n"
            f"def backward(residuals, dy, *, {name}): return (dy * {name},)",
            namespace,
        )
        right = Rule(namespace["forward"], namespace["backward"], "times")
        assert verify(right, values(3), **{name: 3}).ok
        wrong = right.replace(backward=lambda residuals, dy, **static: (dy,))
        assert "dx equals the right gradient times 0.333" in verify(wrong, values(3), **{name: 3}).findings[0].message


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1 + 3e-9, "times 1 + 3.0e-09"),
        (1 - 2e-8, "times 1 - 2.0e-08"),
        (6, "times 6, and 6 is"),
        (1 / 6, "that is 1/6"),
    ],
)
def test_a_factor_is_said_to_the_digits_that_differ(factor, said):
    rule = RIGHT["tanh near 1"][0].replace(backward=lambda y, dy: (factor * dy * (1 - y * y),))
    assert said in verify(rule, values(6)).findings[0].message


def raising(error):
    def forward(x):
        raise error

    return Rule(forward, lambda r, dy: (dy,), "mine")


def from_elsewhere(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


class TwoArguments(ValueError):
    def __init__(self, one, another):
        super().__init__(one, another)


IDENTITY = Rule(lambda x: (x, ()), lambda r, dy: (dy,), "mine")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: verify(Rule(lambda x: (x.astype(int), x), lambda x, dy: (dy,), "mine"), values(3)), TypeError,
         "verify: mine must have a floating output, got int"),
        (lambda: verify(IDENTITY, values(3), options=jaxcnn.Options(dtypes=("float8",))), ValueError,
         "options.dtypes must be of float16, bfloat16, float32, got 'float8'"),
        (lambda: verify(IDENTITY, values(3), options=jaxcnn.Options(dtypes="float32")), TypeError,
         "options.dtypes must be a tuple of names, got 'float32'"),
        (lambda: verify(IDENTITY, values(3), options=jaxcnn.Options(seed=-1)), ValueError,
         "options.seed must be a whole number, at least 0, got -1"),
        (lambda: verify(IDENTITY, values(3), options=jaxcnn.Options(cotangents=0)), ValueError,
         "options.cotangents must be a whole number, at least 1, got 0"),
        (lambda: verify(raising(KeyError("oops")), values(3)), ValueError,
         "verify: mine: its forward pass raises KeyError: 'oops'"),
        (lambda: verify(raising(ValueError("too small")), values(3)), ValueError, "verify: mine: too small"),
        (lambda: verify(raising(TwoArguments(1, 2)), values(3)), ValueError,
         r"verify: mine: its forward pass raises TwoArguments: \(1, 2\)"),
        (lambda: verify(elementwise(lambda x: x if x.sum() > 0 else -x, abs), values(3)), TypeError,
         "verify: mine: its forward pass raises TracerBoolConversionError: "),
        (lambda: verify(elementwise(np.sin, jnp.cos), values(3)), TypeError,
         "verify: mine: its forward pass raises TracerArrayConversionError: "),
        (lambda: verify(Rule(lambda x: ((x, x > 0), x), lambda r, dy: (dy[0],), "mine"), values(3)), TypeError,
         "verify: mine must have a floating array, or a tree of these, as output, got tuple"),
        (lambda: verify(elementwise(from_elsewhere, jnp.cos), values(3)), ValueError,
         "verify: mine: autodiff cannot differentiate its forward pass .*; give the rule a reference that it can"),
        (lambda: verify(IDENTITY.replace(batch_axes=(2,)), values(3, 3)), ValueError,
         r"verify: mine: batch_axes names axis 2 of x, whose shape is \(3, 3\)"),
        (lambda: IDENTITY.replace(batch_axes="x"), TypeError,
         "Rule: batch_axes must be a tuple with an axis or None for each array, got 'x'"),
        (lambda: IDENTITY.replace(batch_axes=(0, 0)), ValueError,
         r"Rule: batch_axes must have an entry for each of the 1 arrays, got \(0, 0\)"),
        (lambda: verify(IDENTITY, np.array([None, 1])), TypeError, "mine: x must be an array, got an ndarray of dtype"),
        (lambda: verify(jaxcnn.Dense(3), np.array([[None, 1]])), TypeError, "got dtype object"),
        (lambda: verify(jaxcnn.Dense(3), values(3, 3), key=3), TypeError, "verify: key must be a jax key, .*, got 3"),
        (lambda: verify(IDENTITY, values(3) * 1j), TypeError, "verify: mine: x must be real, got complex64"),
        (lambda: verify(elementwise(jnp.log, lambda x: 1 / x), -np.ones(3)), ValueError,
         "verify: mine has no finite output at the given arrays; choose values that it is defined for"),
        (lambda: verify(IDENTITY, values(3), train=True), TypeError, "mine: got an unexpected keyword argument"),
    ],
)  # fmt: skip
def test_a_bad_call_raises(call, error, message):
    with pytest.raises(error, match=f"^{message}" if message.startswith("verify") else message) as raised:
        call()
    assert type(raised.value) is error  # none of jax's own


def test_a_kink_of_the_callers_own_binds_and_the_message_says_what_to_do():
    report = verify(RIGHT["relu by maximum"][0], np.array([-1.0, 0.0, 2.0]))
    assert [f.cause for f in report.findings] == ["kink"]
    assert "autodiff's value there lies between both sides; a reference can declare yours" in report.findings[0].message


def test_a_reference_stands_in_for_what_autodiff_cannot_differentiate():
    def sine(x):
        how = {"vmap_method": "expand_dims"}
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, **how)

    options = jaxcnn.Options(second_order=False)
    right = elementwise(sine, jnp.cos, reference=jnp.sin)
    assert verify(right, values(3), options=options).ok
    wrong = right.replace(backward=lambda x, dy: (-dy * jnp.cos(x),))
    assert [f.cause for f in verify(wrong, values(3), options=options).findings] == ["negated"]


def test_vmap_is_checked_of_arrays_of_several_dtypes():
    arrays = RIGHT["arrays of several dtypes that it takes as one alone"][1:]
    report = verify(jaxcnn.layer_norm, *arrays, options=jaxcnn.Options(dtypes=(), second_order=False))
    assert "vmap" in {row.check for row in report.rows}


def test_a_forward_pass_that_vmap_refuses_is_no_fault_of_the_backward_pass():
    rule = elementwise(from_elsewhere, jnp.cos, reference=jnp.sin)
    report = verify(rule, values(3), options=jaxcnn.Options(second_order=False))
    assert report.ok
    assert "vmap left out: the forward pass refuses it: vmap is only supported for" in str(report)


def both_ways(x):
    return {"sine": jnp.sin(x), "mean": jnp.cos(x).mean()}, x


def both_ways_backward(x, dy):
    return (dy["sine"] * jnp.cos(x) - dy["mean"] * jnp.sin(x) / x.size,)


def test_an_output_may_be_a_tree():
    right = Rule(both_ways, both_ways_backward, "both")
    assert verify(right, values(3, 4)).ok
    assert verify(right.replace(reference=lambda x: both_ways(x)[0]), values(3, 4)).ok
    forgotten = right.replace(backward=lambda x, dy: (dy["sine"] * jnp.cos(x),))
    assert not verify(forgotten, values(3, 4)).ok


def test_samples_are_taken_of_an_output_that_is_a_tree():
    def backward(x, dy):
        return (dy[0] * jnp.arange(1.0, 5)[: len(x), None] + dy[1],)

    rule = Rule(lambda x: ((x, x), x), backward, "mine", batch_axes=(0,))
    right = rule.replace(backward=lambda x, dy: (dy[0] + dy[1],))
    assert verify(right, values(4, 3)).ok
    assert {"other batch", "float64"} <= {r.check for r in verify(rule, values(4, 3)).rows if not r.ok}


def test_precision_is_told_in_units_in_the_last_place():
    report = verify(jaxcnn.sigmoid, values(3, 4))
    row = next(r for r in report.rows if r.check == "bfloat16")
    assert row.ulp == 2.0 ** (np.floor(np.log2(row.scale)) - 7)
    assert row.ulps == row.error / row.ulp
    assert f"{row.relative:.1e} = {row.ulps:.2g} ulp (autodiff {row.autodiff_ulps:.2g})" in str(report)


def test_the_module_for_tests_is_there_without_an_import_of_its_own():
    assert jaxcnn.testing.assert_rule(jaxcnn.relu, values(3)) is None
