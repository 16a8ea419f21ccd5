"""The door for arrays: every number arrives as it is, or is refused in one line."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from koopjax import _core


class Frame:
    """A table as pandas and polars hand it over."""

    def __init__(self, values):
        self.values = values

    def to_numpy(self, dtype=None):
        return np.asarray(self.values, dtype)


class Series(Frame):
    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


PLAIN = [[1.0, -2.5], [3.0, 0.25]]
NUMBERS = {
    "list": PLAIN,
    "tuple of arrays": tuple(np.asarray(PLAIN)),
    "list of jax arrays": [jnp.asarray(row) for row in PLAIN],
    "big-endian": np.array(PLAIN, ">f8"),
    "big-endian single": np.array(PLAIN, ">f4"),
    "columns first": np.asfortranarray(PLAIN),
    "strides": np.repeat(np.array(PLAIN), 2, axis=0)[::2],
    "long double": np.array(PLAIN, np.longdouble),
    "objects": np.array(PLAIN, object),
    "frame": Frame(PLAIN),
    "series": Series(np.array(PLAIN, object)),
    "no mask": np.ma.array(PLAIN),
    "half": np.array(PLAIN, np.float16),
    "brain half": np.array(PLAIN, ml_dtypes.bfloat16),
    "device": jnp.asarray(PLAIN),
}


@pytest.mark.parametrize("x", NUMBERS.values(), ids=NUMBERS)
def test_numbers_arrive_as_they_are(x):
    made = _core.as_numbers("x", x)
    assert isinstance(made, jax.Array)
    assert made.dtype == (x.dtype if getattr(x, "dtype", np.dtype("f8")).itemsize == 2 else "f4")
    np.testing.assert_array_equal(np.asarray(made, np.float64), PLAIN)


@pytest.mark.parametrize(
    "values",
    [
        np.array([2**32 + 1, -(2**40)]),
        np.array([2**63 + 2**40], np.uint64),
        [2**70, 3],
        jnp.asarray([2**31 - 1, 5]),
        np.array([7, -3], ">i8"),
        np.array([7, -3], ml_dtypes.int4),
        np.array([True, False]),
    ],
)
def test_integers_become_the_right_float(values):
    want = [float(v) for v in np.asarray(values, object).tolist()]
    np.testing.assert_array_equal(_core.read_numbers("x", values), want)
    np.testing.assert_allclose(_core.as_numbers("x", values), want, rtol=1e-7)


def test_integers_that_stay_integers_never_wrap():
    for dtype in (">i8", np.uint64, np.int8):
        tokens = _core.as_integers("tokens", np.array([0, 101], dtype))
        assert jnp.issubdtype(tokens.dtype, jnp.integer)
        np.testing.assert_array_equal(tokens, [0, 101])
    assert _core.as_array("x", np.array([3, 4])).dtype == jnp.int32
    for door in (_core.as_integers, _core.as_array):
        with pytest.raises(ValueError, match=r"integers in tokens that fit in int32.*4294967297"):
            door("tokens", np.array([2**32 + 1]))
    with pytest.raises(ValueError, match="expected integers in tokens, got dtype float64"):
        _core.as_integers("tokens", [1.5])
    with jax.enable_x64(True):
        assert int(_core.as_integers("tokens", np.array([2**32 + 1]))[0]) == 2**32 + 1


REFUSED = {
    "masked": (np.ma.array(PLAIN, mask=[[0, 1], [0, 0]]), r"1 masked entries; try .*filled"),
    "masked rows": ([np.ma.array([1.0, 2.0], mask=[0, 1])], "1 masked entries"),
    "ragged": ([[1.0], [1.0, 2.0]], "rows of equal length"),
    "text": (np.array(["1.5"]), "dtype <U3"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
    "missing": ([1.0, None], "objects .None."),
    "mixed frame": (Frame(np.array([1.0, "a"], object)), "to_numpy"),
    "nothing": (None, "NoneType"),
    "record": (np.zeros(2, [("a", "f4")]), "dtype"),
    "mapping": ({"a": 1}, "got dict"),
    "key": (jax.random.key(0), "key_data"),
    "beyond long": (np.array([np.longdouble("1e400")]), "float64's range"),
    "eight bits": (np.ones(2, ml_dtypes.float8_e4m3fn), r"x.astype\(jnp.float32\)"),
    "complex": (np.array([1j]), "real and imaginary parts as coordinates"),
    "beyond single": (np.array([1e39, 1.0]), "1e.39, which does not fit in float32.*x64"),
}


@pytest.mark.parametrize(("x", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_why(x, text):
    with pytest.raises(ValueError, match=f"expected .*snapshots.*{text}"):
        _core.as_numbers("snapshots", x)


def test_finite_beyond_single_precision_is_not_called_infinite():
    _core.check_finite("x", np.array([1e39]))
    with jax.enable_x64(True):
        assert float(_core.as_numbers("x", [1e39])[0]) == 1e39
    with pytest.raises(ValueError, match=r"got 1 NaN or infinite entries.*\(1,\)"):
        _core.check_finite("x", np.array([1e39, np.inf]))


def test_tracers_pass():
    made = jax.jit(lambda t: _core.as_numbers("x", [t, 2 * t]) + _core.as_numbers("t", t))(3)
    np.testing.assert_array_equal(made, [6.0, 9.0])


@pytest.mark.parametrize(("offset", "spread", "lost"), [
    (0.0, 1.0, False), (10.0, 1.0, False), (1e4, 1.0, True), (1e8, 1.0, True), (1e8, 1e8, False),
    (0.0, 1e-42, True), (0.0, 1e39, True), (1e5, 0.0, False),
])  # fmt: skip
def test_whether_float32_loses_the_spread(offset, spread, lost):
    x = offset + spread * np.random.default_rng(0).normal(size=(64, 3)) * np.array([0.0, 1.0, 1.0])
    assert _core.loses_spread(x) is lost
    assert not _core.loses_spread(x.clip(-1e9, 1e9).astype(np.float32))


def test_whole_numbers_that_float32_holds_lose_nothing():
    assert not _core.loses_spread(np.random.default_rng(0).integers(60_000, 60_255, (64, 2)) * 1.0)


@pytest.mark.parametrize("door", [_core.as_numbers, _core.as_array])
def test_what_computes_in_float32_alone_refuses_numbers_that_it_cannot_tell_apart(door):
    x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    for near in (x, x + 1e3, x * 1e25, x * 1e-25, np.ones((3, 2)) * 1e8):
        assert door("x", near).dtype == jnp.float32
    with jax.enable_x64(True):
        assert door("x", x + 1e8).dtype == jnp.float64
    for far in (x + 1e7, x * [1, 1e-60], (x * 1e3 + 2**40).astype(np.int64).astype(float)):
        with pytest.raises(ValueError, match="numbers in x whose spread float32 holds"):
            door("x", far)
    with pytest.raises(ValueError, match="fit in float32, got 1e-60"):
        door("x", np.full((2, 2), 1e-60))


def test_spreads_whose_squares_leave_float64_are_seen():
    x = np.random.default_rng(0).uniform(-1, 1, (300, 1))
    for scale in (1e-200, 1e200):
        assert _core.loses_spread(x * scale)
