"""Settings as users write them down: numbers, counts and dtypes, or one line that says what is."""

import math
import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np

from koopjax._core._arrays import expected, is_tracing


def _scalar(value: Any) -> int | float:
    """The Python number in a scalar of Python, NumPy or JAX; NaN for whatever else."""
    if isinstance(value, bool | np.bool_) or value is np.ma.masked:
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


def as_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A count: a whole number from `least` to `most`, also as NumPy and JAX write it.

    Args:
        name: completes "expected ... as a whole number".
        value: what a user gives.
        least: smallest that is allowed.
        most: largest that is allowed; None for no limit.
    """
    number = _scalar(value)
    whole = isinstance(number, int) or number.is_integer()
    if not whole or number < least or (most is not None and number > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise expected(f"{name} as a whole number {limit}", f"{value!r:.60}")
    return int(number)


def check_number(name: str, value: Any, least: float = 0.0, most: float = math.inf) -> None:
    """Raise unless this is one finite number from `least` to `most`; tracers pass.

    Args:
        name: how the setting is called.
        value: what a user gives.
        least: smallest that is allowed.
        most: largest that is allowed.
    """
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


def check_dictionary(name: str, psi: Any) -> None:
    """Raise unless this is callable and tells its size: what the protocol of a dictionary asks."""
    # A class is callable and has the method too, but settings are missing.
    if isinstance(psi, type) or not callable(psi) or not callable(getattr(psi, "size", None)):
        raise expected(
            f"a dictionary with size(d) as {name}, see koopjax.observables",
            f"{getattr(psi, '__name__', type(psi).__name__)}",
            "observables.Custom(function, size) for a function of your own",
        )
