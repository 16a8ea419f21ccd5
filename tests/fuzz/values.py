"""Arguments that are not what a verb expects, by the kind of the argument that they replace.

A change is a function of the right value and of a generator. Its name says what is wrong.
"""

from __future__ import annotations

import decimal
import fractions
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from koopjax import edmd, observables as ob

Change = Callable[[Any, np.random.Generator], Any]


class Frame:
    """What a data frame shows of itself to a library that does not know frames."""

    def __init__(self, array: Any):
        self.values = np.asarray(array)
        self.columns = [f"c{i}" for i in range(self.values.shape[-1] if self.values.ndim else 1)]
        self.shape, self.ndim = self.values.shape, self.values.ndim

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)

    def to_numpy(self) -> np.ndarray:
        return self.values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[..., self.columns.index(name)]  # by column, as frames do


def real(a: Any, dtype: Any = np.float32) -> np.ndarray:
    """In a dtype, complex numbers without their imaginary parts."""
    a = np.asarray(a)
    return (a.real if np.iscomplexobj(a) else a).astype(dtype)


class GivesNaN:
    """A function of the caller's whose values are NaN."""

    def __init__(self, function: Any):
        self.function = function

    def __call__(self, *inputs: Any) -> Any:
        return jnp.asarray(self.function(*inputs)) * jnp.nan


def at(array: Any, value: Any, dtype: Any = None) -> np.ndarray:
    """The array with one entry changed."""
    made = np.array(array, None if np.iscomplexobj(array) else dtype)
    if made.size:
        made.reshape(-1)[made.size // 2] = value
    return made


def masked(array: Any, some: bool) -> Any:
    array = np.asarray(array)
    mask = np.zeros(array.shape, bool)
    if some and mask.size:
        mask.reshape(-1)[0] = True
    return np.ma.MaskedArray(array, mask)


def nothing(a: Any, rng: Any) -> Any:
    return None


ANY: dict[str, Change] = {
    "None": nothing,
    "a word": lambda a, rng: "nonsense",
    "empty text": lambda a, rng: "",
    "bytes": lambda a, rng: b"\x00\xff",
    "a class": lambda a, rng: ob.Monomials,
    "an object": lambda a, rng: object(),
    "a function": lambda a, rng: lambda *b, **c: None,
    "an empty dict": lambda a, rng: {},
    "an empty list": lambda a, rng: [],
    "a set": lambda a, rng: {1, 2},
    "a dictionary of observables": lambda a, rng: ob.Monomials(2),
    "a solver": lambda a, rng: edmd.Ridge(0.1),
    "in a list": lambda a, rng: [a],
    "in a dict": lambda a, rng: {"a": a},
    "an ellipsis": lambda a, rng: ...,
    "2**70": lambda a, rng: 2**70,
    "a random key": lambda a, rng: jax.random.key(3),
}

ARRAY: dict[str, Change] = {
    "one NaN": lambda a, rng: at(a, np.nan, np.float32),
    "one inf": lambda a, rng: at(a, np.inf, np.float32),
    "one -inf": lambda a, rng: at(a, -np.inf, np.float64),
    "all NaN": lambda a, rng: np.full(np.shape(a), np.nan, np.float32),
    "negated": lambda a, rng: -real(a),
    "zeros": lambda a, rng: np.zeros(np.shape(a), np.float32),
    "constant": lambda a, rng: np.full(np.shape(a), 0.7, np.float32),
    "one entry 1e39": lambda a, rng: at(a, 1e39, np.float64),
    "one entry 1e30": lambda a, rng: at(a, 1e30, np.float32),
    "scale 1e30": lambda a, rng: real(a) * np.float32(1e30),
    "scale 1e-30": lambda a, rng: real(a) * np.float32(1e-30),
    "scale 1e200": lambda a, rng: real(a, np.float64) * 1e200,
    "scale 1e-44": lambda a, rng: real(a) * np.float32(1e-44),
    "offset 1e6": lambda a, rng: real(a, np.float64) + 1e6,
    "offset 1e6 float32": lambda a, rng: real(a) + np.float32(1e6),
    "2**40": lambda a, rng: np.full(np.shape(a), 2**40),
    "wide integers": lambda a, rng: rng.integers(3_000_000_000, 9_000_000_000, np.shape(a)),
    "unsigned 2**64 - 1": lambda a, rng: np.full(np.shape(a), 2**64 - 1, np.uint64),
    "small integers": lambda a, rng: rng.integers(-3, 4, np.shape(a)),
    "float64": lambda a, rng: real(a, np.float64),
    "float16": lambda a, rng: np.asarray(a).astype(np.float16),
    "bfloat16": lambda a, rng: jnp.asarray(real(a), jnp.bfloat16),
    "float8": lambda a, rng: real(a).astype(ml_dtypes.float8_e4m3fn),
    "longdouble": lambda a, rng: np.asarray(a, np.longdouble),
    "complex": lambda a, rng: np.asarray(a) * (1 + 1j),
    "complex without imaginary part": lambda a, rng: np.asarray(a, np.complex64),
    "bool": lambda a, rng: np.asarray(a) > 0,
    "objects": lambda a, rng: np.asarray(a).astype(object),
    "objects with None": lambda a, rng: at(np.asarray(a).astype(object), None, object),
    "strings": lambda a, rng: np.asarray(a).astype(str),
    "big-endian": lambda a, rng: real(a).astype(">f4"),
    "big-endian integers": lambda a, rng: np.round(real(a, np.float64)).astype(">i4"),
    "records": lambda a, rng: np.zeros(len(a) if np.ndim(a) else 1, [("u", "f4"), ("v", "i4")]),
    "dates": lambda a, rng: np.zeros(np.shape(a), "datetime64[s]"),
    "masked, none hidden": lambda a, rng: masked(a, False),
    "masked, one hidden": lambda a, rng: masked(a, True),
    "a list": lambda a, rng: np.asarray(a).tolist(),
    "a tuple of rows": lambda a, rng: tuple(np.asarray(a)) if np.ndim(a) else (a,),
    "a ragged list": lambda a, rng: [[1.0, 2.0], [3.0]],
    "a frame": lambda a, rng: Frame(a),
    "a matrix": lambda a, rng: np.matrix(np.asarray(a).reshape(np.shape(a)[0], -1)),
    "of JAX": lambda a, rng: jnp.asarray(real(a)),
    "Fortran's order": lambda a, rng: np.asfortranarray(a),
    "reversed strides": lambda a, rng: np.asarray(a)[::-1],
    "read-only": lambda a, rng: np.broadcast_to(np.asarray(a), np.shape(a)),
    "one dimension more": lambda a, rng: np.asarray(a)[None],
    "one dimension more behind": lambda a, rng: np.asarray(a)[..., None],
    "one dimension less": lambda a, rng: np.asarray(a)[0],
    "a number": lambda a, rng: 1.5,
    "a zero-dimensional array": lambda a, rng: np.array(2.0, np.float32),
    "one row less": lambda a, rng: np.asarray(a)[:-1],
    "one row more": lambda a, rng: np.concatenate([a, np.asarray(a)[-1:]]),
    "one sample": lambda a, rng: np.asarray(a)[:1],
    "no samples": lambda a, rng: np.asarray(a)[:0],
    "no columns": lambda a, rng: np.asarray(a)[..., :0],
    "one column": lambda a, rng: np.asarray(a)[..., :1],
    "one column more": lambda a, rng: np.concatenate([a, np.asarray(a)[..., -1:]], -1),
    "transposed": lambda a, rng: np.asarray(a).T,
    "the same row": lambda a, rng: np.repeat(np.asarray(a)[:1], len(a), 0),
    "the same column": lambda a, rng: np.repeat(np.asarray(a)[..., :1], np.shape(a)[-1], -1),
    "a constant column": lambda a, rng: at(np.asarray(a).T, 0.0).T * 0 + 1.0,
    "very many columns": lambda a, rng: np.broadcast_to(np.float32(1), (2, 100_000)),
    "a generator": lambda a, rng: (row for row in np.asarray(a)),
    "a list of None": lambda a, rng: [None, None],
}

# The same shape and roughly the same numbers: what a verb should mostly take.
KEEPS = [
    "float64", "float16", "longdouble", "objects", "big-endian", "masked, none hidden", "a list",
    "a tuple of rows", "a frame", "of JAX", "Fortran's order", "read-only",
    "complex without imaginary part", "a matrix", "offset 1e6", "offset 1e6 float32",
    "small integers", "wide integers", "scale 1e-30", "scale 1e30", "reversed strides",
]  # fmt: skip

NUMBERS: list[Any] = [
    -1, 0, 1, 2, -2**31, 2**31, 2**40, 2**63, 2**64, 10**30, 1.5, 3.0, -0.5, 0.0, 1e-30, 1e30,
    1e39, 1e308, float("nan"), float("inf"), -float("inf"), True, False, 1j, 2 + 0j, "3", "0.1",
    np.int64(2), np.int8(-1), np.uint8(3), np.float64(0.5), np.float16(2), np.bool_(True),
    np.array(2), np.array(0.5), np.array([2]), np.array([1.0, 2.0]), np.array([]), [2], (1, 2),
    decimal.Decimal("0.5"), fractions.Fraction(1, 2), np.longdouble(0.5), np.array([np.nan]),
    np.array(3, ">i4"), np.array("2"), np.datetime64("2020-01-01"), np.ma.masked, b"2",
]  # fmt: skip

SCALAR: dict[str, Change] = {
    **{f"{type(v).__name__} {v!r}": (lambda a, rng, v=v: v) for v in NUMBERS},
    "of JAX": lambda a, rng: jnp.asarray(2),
    "one for each": lambda a, rng: np.arange(1, 4),
}

TEXT: dict[str, Change] = {
    "capitals": lambda a, rng: str(a).upper(),
    "with a blank": lambda a, rng: f" {a}",
    "a number": lambda a, rng: 3,
    "True": lambda a, rng: True,
    "False": lambda a, rng: False,
    "a long word": lambda a, rng: "x" * 10_000,
    "two lines": lambda a, rng: f"{a}\n{a}",
    "in a tuple": lambda a, rng: (a,),
    "as bytes": lambda a, rng: str(a).encode(),
    "a NumPy string": lambda a, rng: np.str_(a),
    "a zero byte": lambda a, rng: f"{a}\0",
    "a surrogate": lambda a, rng: "\ud800",
}

KEY: dict[str, Change] = {
    "0": lambda a, rng: 0,
    "raw": lambda a, rng: jax.random.PRNGKey(0),
    "several": lambda a, rng: jax.random.split(jax.random.key(0), 3),
    "in NumPy": lambda a, rng: np.array([0, 1], np.uint32),
    "floats": lambda a, rng: np.zeros(2, np.float32),
    "of another generator": lambda a, rng: jax.random.key(0, impl="rbg"),
    "NumPy's generator": lambda a, rng: np.random.default_rng(0),
}

SEQUENCE: dict[str, Change] = {
    "as an array": lambda a, rng: np.asarray(a),
    "as floats": lambda a, rng: [float(v) for v in a],
    "as text": lambda a, rng: [str(v) for v in a],
    "reversed": lambda a, rng: list(a)[::-1],
    "one less": lambda a, rng: list(a)[:-1],
    "one more": lambda a, rng: [*a, list(a)[-1]],
    "with a zero": lambda a, rng: [0, *list(a)[1:]],
    "with -1": lambda a, rng: [-1, *list(a)[1:]],
    "with 2**40": lambda a, rng: [2**40, *list(a)[1:]],
    "with None": lambda a, rng: [None, *list(a)[1:]],
    "with NaN": lambda a, rng: [float("nan"), *list(a)[1:]],
    "with 1.5": lambda a, rng: [1.5, *list(a)[1:]],
    "doubled": lambda a, rng: [*a, *a],
    "a number": lambda a, rng: 2,
    "a generator": lambda a, rng: (v for v in a),
    "a dict": lambda a, rng: dict(enumerate(a)),
    "nested": lambda a, rng: [list(a)],
    "a thousand": lambda a, rng: [next(iter(a))] * 1000,
}

FUNCTION: dict[str, Change] = {
    "gives None": nothing,
    "gives text": lambda a, rng: lambda *b: "x",
    "gives a number": lambda a, rng: lambda *b: 1.0,
    "gives NaN": lambda a, rng: GivesNaN(a),
    "gives one dimension more": lambda a, rng: lambda *b: jnp.asarray(a(*b))[None],
    "gives one row": lambda a, rng: lambda *b: jnp.asarray(a(*b))[:1],
    "gives integers": lambda a, rng: lambda *b: jnp.asarray(a(*b)).astype(jnp.int32),
    "gives complex": lambda a, rng: lambda *b: jnp.asarray(a(*b)) * 1j,
    "gives a list": lambda a, rng: lambda *b: [a(*b)],
    "gives a dict": lambda a, rng: lambda *b: {"a": a(*b)},
    "takes nothing": lambda a, rng: lambda: 1.0,
    "a class": lambda a, rng: GivesNaN,
}

OBJECT: dict[str, Change] = {
    "its class": lambda a, rng: type(a),
    "two of it": lambda a, rng: (a, a),
    "an array": lambda a, rng: np.ones((3, 3), np.float32),
    "a number": lambda a, rng: 3,
    "True": lambda a, rng: True,
    "a tree of other arrays": lambda a, rng: jax.tree.map(lambda v: jnp.zeros(2), a),
    "NaN in its arrays": lambda a, rng: jax.tree.map(
        lambda v: v * jnp.nan if _inexact(v) else v, a
    ),
    "in float64 NumPy": lambda a, rng: jax.tree.map(
        lambda v: np.asarray(v, np.float64) if _inexact(v) else v, a
    ),
    "big-endian arrays": lambda a, rng: jax.tree.map(
        lambda v: np.asarray(v).astype(">f4") if _inexact(v) else v, a
    ),
    "arrays times 1e30": lambda a, rng: jax.tree.map(
        lambda v: v * np.float32(1e30) if _inexact(v) else v, a
    ),
    "arrays of text": lambda a, rng: jax.tree.map(lambda v: "x", a),
    "arrays one dimension up": lambda a, rng: jax.tree.map(lambda v: jnp.asarray(v)[None], a),
}

KINDS: dict[str, dict[str, Change]] = {
    "array": ARRAY,
    "number": SCALAR,
    "text": TEXT,
    "key": KEY,
    "sequence": SEQUENCE,
    "function": FUNCTION,
    "object": OBJECT,
    "flag": SCALAR,
}


def _inexact(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.inexact)


def change(kind: str, rng: np.random.Generator) -> str:
    """The name of a change for an argument of a kind, drawn with what matters most first."""
    own = KINDS[kind]
    draw = rng.random()
    if kind == "array" and draw < 0.3:
        return str(rng.choice(KEEPS))
    return str(rng.choice(list(ANY if draw > 0.8 else own)))


def apply(kind: str, name: str, value: Any, rng: np.random.Generator) -> Any:
    """The value with a named change."""
    own = KINDS[kind]
    return (own[name] if name in own else ANY[name])(value, rng)
