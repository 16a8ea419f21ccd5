"""What the verbs ask of arrays, modes and settings."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import as_numbers, check_number, expected, read
from koopjax.tt._precision import precise

#: A mode may have so many places: what an index of 32 bits reaches.
MOST_SIZE = 2**31 - 1


def as_floating(name: str, array: Any) -> Array:
    """A real or complex floating array; integers become the default float."""
    listed = not hasattr(array, "dtype")
    array = read(name, array)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return as_numbers(name, array)
    if array.dtype.itemsize < 2:
        raise expected(f"numbers of 16 bits or more in {name}", f"dtype {array.dtype}")
    if listed:  # numbers of Python have no digits of their own to keep
        return jnp.asarray(array)
    with precise(jax.ShapeDtypeStruct((), array.dtype)):
        return jnp.asarray(array)


def check_modes(modes: Sequence[int]) -> tuple[int, ...]:
    """Mode sizes as a tuple of integers, at least one of them, each at least 1."""
    given = read("the modes", modes)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise expected("mode sizes as a sequence of whole numbers", f"{modes!r:.60}", "(2, 3, 4)")
    modes = tuple(int(n) for n in given)
    if not modes or min(modes) < 1 or max(modes) > MOST_SIZE:
        raise expected(f"at least one mode, each of size 1 to {MOST_SIZE}", f"modes {modes}")
    return modes


def check_rtol(rtol: Any) -> float:
    """A relative tolerance as a float: finite and not negative."""
    check_number("rtol", rtol)
    return float(rtol)


def check_dtype(dtype: Any) -> np.dtype:
    """A real or complex floating dtype."""
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError):
        found = None
    if found is None or not jnp.issubdtype(found, jnp.inexact):
        raise expected("a real or complex floating dtype", f"{dtype!r:.60}", "jnp.float32")
    return found


def check_precision(precision: Any) -> None:
    """Raise unless `jax.lax` knows this precision."""
    names = {"default", "high", "highest", "fastest", "bfloat16", "bfloat16_3x", "tensorfloat32"}
    known = isinstance(precision, str) and precision in names | {"float32"}
    pair = isinstance(precision, tuple) and len(precision) == 2
    if not (known or pair or precision is None or isinstance(precision, jax.lax.Precision)):
        raise expected("a precision of JAX", f"{precision!r:.60}", "precision='highest'")
