"""Settings as users write them down: numbers, counts and dtypes, or one line that says what is."""

import contextlib
import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core._arrays import expected, is_tracing

#: A count that an array may have, and a loop run through.
MOST = 2**31 - 1


def _scalar(value: Any) -> int | float:
    """The Python number in a scalar of Python, NumPy or JAX; NaN for whatever else."""
    # A masked scalar is an array that calls itself a real number.
    if isinstance(value, bool | np.bool_ | np.ma.MaskedArray):
        return math.nan
    # An array of one number has a dtype, and is no array of objects or of text.
    if getattr(value, "ndim", None) == 0 and getattr(value.dtype, "kind", "O") in "iufV":
        value = value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    try:
        return float(value) if isinstance(value, numbers.Real) else math.nan
    except OverflowError:
        return math.nan


def as_whole(name: str, value: Any, least: int, most: int = MOST) -> int:
    """A count: a whole number from `least` to `most`, also as NumPy and JAX write it."""
    number = _scalar(value)
    whole = isinstance(number, int) or number.is_integer()
    if not whole or not least <= number <= most:
        below = most == MOST and not number > most
        limit = f"of at least {least}" if below else f"from {least} to {most}"
        raise expected(f"{name} as a whole number {limit}", f"{value!r:.60}")
    return int(number)


def check_integer(name: str, value: Any, least: int, most: int = MOST) -> None:
    """Raise unless this is an integer from `least` to `most`; for settings that stay as given.

    Where `as_whole` takes 2.0 as 2, here it is refused, since it would stay a float.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise expected(f"{name} as an integer of at least {least}", f"{value!r:.60}")


def as_number(name: str, value: Any) -> float:
    """A setting as one finite real number, which may have any size."""
    number = _scalar(value)
    if not math.isfinite(number):
        raise expected(f"{name} as one finite number", f"{value!r:.60}")
    return float(number)


def check_number(name: str, value: Any, least: float = 0.0, most: float = math.inf) -> None:
    """Raise unless this is one finite number from `least` to `most`; tracers pass."""
    if is_tracing(value):
        return
    number = _scalar(value)
    # An integer may be longer than a float.
    finite = isinstance(number, int) or math.isfinite(number)
    if not finite or not least <= number <= most:
        limit = f" of at most {most:g}" if math.isfinite(most) else ""
        low = f" of at least {least:g}" if math.isfinite(least) else ""
        raise expected(f"{name}{low}{limit}, and finite", f"{value!r:.60}", "a number")


def as_dtype(name: str, value: Any) -> np.dtype:
    """A real floating dtype of at least 16 bits, by name or object."""
    try:
        dtype = None if value is None or isinstance(value, bool) else jnp.dtype(value)
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or not 2 <= dtype.itemsize <= 8:
        raise expected(f"a floating dtype as {name}", f"{value!r:.60}", "jnp.float32")
    return dtype


def as_flag(name: str, value: Any) -> bool:
    """True or False, also as NumPy and JAX write it."""
    scalar = getattr(value, "ndim", None) == 0 and not isinstance(value, np.ma.MaskedArray)
    if not isinstance(value, bool) and not (scalar and value.dtype == np.bool_):
        raise expected(f"True or False as {name}", f"{value!r:.60}")
    return bool(value)


def as_key(name: str, key: Any) -> Array:
    """One random key of JAX, typed; one of the old kind, two integers, becomes so."""
    dtype, ndim = getattr(key, "dtype", None), getattr(key, "ndim", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and ndim == 0:
        return key
    with contextlib.suppress(TypeError, ValueError):
        if dtype == np.uint32 and ndim == 1:
            return jax.random.wrap_key_data(key)
    raise expected(f"{name}: one random key", f"{key!r:.60}", "key=jax.random.key(0)")


def check_dictionary(name: str, psi: Any) -> None:
    """Raise unless this is callable and tells its size: what the protocol of a dictionary asks."""
    # A class is callable and has the method too, but settings are missing.
    if isinstance(psi, type) or not callable(psi) or not callable(getattr(psi, "size", None)):
        raise expected(
            f"a dictionary with size(d) as {name}, see koopjax.observables",
            f"{getattr(psi, '__name__', type(psi).__name__)}",
            "observables.Custom(function, size) for a function of your own",
        )
