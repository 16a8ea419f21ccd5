"""The one door for arrays: what a user calls an array, its numbers unchanged, or a refusal."""

import numbers
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core._arrays import expected, has_float64, has_x64, is_tracing, is_wide, on_device

#: Rounding to float32 may cost this much of a column's spread, in units of float32's own rounding:
#: reached where data lie some thirty times their spread from the origin.
SHARE = 16
EPS = float(np.finfo(np.float32).eps)
#: What computes in float32 alone refuses numbers that lose more of their spread than this.
MOST_LOST = 1e-3
_FRAMES = "x.to_numpy(dtype=float)"


def read(name: str, x: Any) -> Any:
    """An array as it is, at full width: JAX arrays and tracers pass, all else becomes NumPy.

    Lists, NumPy's scalars and subclasses, frames and series (by `to_numpy` or `__array__`), any
    byte order, long doubles whose range float64 has, objects that are numbers. A `ValueError` for
    masked entries, ragged lists, text, dates, objects, nothing at all.
    """
    if not isinstance(x, jax.Array) and hasattr(x, "__jax_array__"):
        x = x.__jax_array__()
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            _refuse(name, f"dtype {x.dtype}", "jax.random.key_data")
        return x
    if isinstance(x, list | tuple) and any(isinstance(row, np.ma.MaskedArray) for row in x):
        x = np.ma.array(x)
    if isinstance(x, np.ma.MaskedArray):
        masked = int(np.ma.count_masked(x))
        if masked:
            _refuse(name, f"{masked} masked entries", "dropping those rows, or x.filled(a number)")
        x = x.data
    try:
        table = None if hasattr(x, "__array__") else getattr(x, "to_numpy", None)
        array = np.asarray(x if table is None else table())
    except jax.errors.TracerArrayConversionError:
        return jnp.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        first = (str(error).splitlines() or [""])[0]
        _refuse(name, f"{type(x).__name__} ({first})", "rows of equal length")
    return _native(name, array, x)


def _native(name: str, array: np.ndarray, given: Any) -> np.ndarray:
    """The array in a dtype of this machine that JAX has too."""
    kind = array.dtype.kind
    if kind == "O":
        return _of_objects(name, array, given)
    if kind in "fc" and array.dtype.itemsize > (8 if kind == "f" else 16):
        # A long double; infinity may not come of a finite number.
        with np.errstate(over="ignore"):
            short = array.astype(np.float64 if kind == "f" else np.complex128)
        if np.any(np.isfinite(array) & ~np.isfinite(short)):
            _refuse(name, f"{array.dtype} numbers beyond float64's range", "rescaling them")
        return short
    if kind in "bifuc":
        return np.asarray(array, array.dtype.newbyteorder("="))
    # Void to NumPy are the narrow types that JAX has: bfloat16, float8, int4.
    if kind == "V" and jnp.issubdtype(array.dtype, np.number):
        return array
    suggestion = "array.astype(float)" if kind in "US" else "numbers in place of dates and records"
    _refuse(name, f"dtype {array.dtype}", suggestion)


def _of_objects(name: str, array: np.ndarray, given: Any) -> np.ndarray:
    """Python's and a frame's numbers, which NumPy keeps as objects where they are mixed or long."""
    flat = array.ravel().tolist()
    strange = next((item for item in flat if not isinstance(item, numbers.Real)), None)
    if array.size == 0 or not all(isinstance(item, numbers.Real) for item in flat):
        inside = type(given).__name__ if array.ndim == 0 else f"objects ({strange!r:.40})"
        suggestion = _FRAMES if hasattr(given, "to_numpy") else "an array of numbers"
        _refuse(name, inside, suggestion)
    try:
        if all(isinstance(item, numbers.Integral) for item in flat):
            return array.astype(np.int64)
    except OverflowError:
        pass  # beyond 64 bits: a float holds the leading digits
    try:
        return array.astype(np.float64)
    except OverflowError:
        _refuse(name, "integers beyond float64's range", "rescaling them")


def _refuse(name: str, got: str, suggestion: str) -> NoReturn:
    raise expected(f"an array of numbers as {name}", got, suggestion)


def read_numbers(name: str, x: Any) -> Any:
    """Real floating numbers at full width: as `read`, and integers as the right floats.

    Float64 for wide integers, lists and frames. Complex numbers are refused, and formats of eight
    bits, in which no result could be given back.
    """
    x = read(name, x)
    dtype = x.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        if dtype.itemsize < 2:
            _refuse(name, f"dtype {dtype}", "x.astype(jnp.float32)")
        return x
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise expected(
            f"real numbers in {name}",
            f"dtype {dtype}",
            "real and imaginary parts as coordinates: jnp.concatenate([x.real, x.imag], -1)",
        )
    wide = dtype.itemsize >= 4
    if isinstance(x, np.ndarray):
        return x.astype(np.float64 if wide else jnp.result_type(float))
    if wide and not is_tracing(x) and x.is_fully_addressable:
        seen = np.asarray(x, np.float64)
        # What float32 holds exactly stays on its device.
        if np.abs(seen).max(initial=0) > 2**24:
            return seen
    return x.astype(jnp.result_type(float))


def loses_spread(x: Any, share: float = SHARE * EPS) -> bool:
    """Whether float32 can't hold these float64 numbers, or a share of their spread is lost by it.

    By column: the spread of the rounding error against that of the numbers. Data near the origin
    lose nothing that a float32 result would show; data at 1e7 with spread 1 lose 8 % of their
    variance. Of what is no float64 array that can be looked at, nothing is lost.
    """
    if is_tracing(x) or getattr(x, "dtype", None) != np.float64 or x.size == 0:
        return False
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return False
    rows = np.asarray(x).reshape(-1, x.shape[-1] if x.ndim else 1)
    single = np.finfo(np.float32)
    # NaN and infinity lose nothing here; they are refused elsewhere.
    with np.errstate(over="ignore", invalid="ignore"):
        extent = np.maximum(rows.max(axis=0), -rows.min(axis=0))
        # In units of the extent, for squares leave even the range of float64.
        far = (extent > 0) & ((extent < 1e-140) | (extent > 1e140))
        unit = np.where(far, extent, 1)
        spread = unit * (rows / unit if far.any() else rows).std(axis=0)
        mean = rows.mean(axis=0)
        # What varies by rounding in float64 only does not vary.
        varies = spread > 4 * np.finfo(np.float64).eps * np.abs(mean)
        outside = (spread < single.tiny) | (extent > single.max)
        doubtful = varies & ((np.abs(mean) > SHARE * spread) | outside)
        if not doubtful.any():
            return False
        some = rows[:, doubtful]
        lost = np.std(some - some.astype(np.float32), axis=0)
    return bool(np.any((lost > share * spread[doubtful]) | outside[doubtful]))


def needs_float64(name: str, x: Any, *trees: Any) -> bool:
    """Whether what `read_numbers` gave has to be computed in float64, although x64 is off.

    So it is where the numbers are float64 arrays of JAX already, where float32 would cost their
    spread, and where what they meet (`trees`: dictionaries, matrices) was fitted in float64. A
    `ValueError` where float32 would cost the spread, and the backend has no float64.
    """
    if x.dtype != np.float64 or has_x64():
        return False
    if not isinstance(x, jax.Array) and not is_wide(*trees) and not loses_spread(x):
        return False
    if not has_float64():
        raise expected(
            f"numbers in {name} whose spread float32 holds, as this backend has no float64",
            "float64 numbers far from the origin",
            "x - x.mean(axis=0) before they go in",
        )
    return True


def as_states(name: str, x: Any, *trees: Any) -> Any:
    """Real floating numbers for what computes in float64 where `needs_float64` says so.

    Outside x64 these are perhaps NumPy's. What follows runs in `precise_as(x.dtype)` and gives its
    results back by `leave`.
    """
    x = read_numbers(name, x)
    return x if needs_float64(name, x, *trees) else held(name, x)


def held(name: str, x: Any) -> Array:
    """What `read` gave, as JAX holds it here: of NumPy, 64 bits under x64 only.

    Refused: a finite number that does not fit in float32, an integer that would wrap.
    """
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    # What JAX holds already it holds, whatever is asked of new arrays.
    if dtype == x.dtype or isinstance(x, jax.Array):
        return on_device(x)
    return jax.device_put(_cut(name, np.asarray(x), dtype))


def check_held(name: str, x: Any) -> Any:
    """What `read` gave, as it is, unless JAX does not hold its numbers here."""
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if isinstance(x, np.ndarray) and dtype != x.dtype:
        _cut(name, x, dtype)
    return x


def _held_apart(name: str, x: Any) -> Array:
    """As `held`, if float32 tells the numbers of a column apart."""
    out = held(name, x)
    if out.dtype != x.dtype and loses_spread(x, MOST_LOST):
        raise expected(
            f"numbers in {name} whose spread {out.dtype} holds",
            "float64 numbers far from the origin or next to zero",
            "x - x.mean(axis=0), other units, or jax_enable_x64",
        )
    return out


def _cut(name: str, x: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers in a narrower dtype of their kind, if it holds them."""
    if x.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if x.size and (x.min() < limits.min or x.max() > limits.max):
            raise expected(
                f"integers in {name} that fit in {dtype}",
                f"{x.min()} to {x.max()}",
                "x.astype(float) for numbers, or jax_enable_x64",
            )
        return x.astype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        short = x.astype(dtype)
    beyond = np.isfinite(x) & ~np.isfinite(short) if not np.isfinite(short).all() else None
    if (beyond is None or not beyond.any()) and x.any() and not short.any():
        beyond = x != 0  # all that there is would vanish
    if beyond is not None and beyond.any():
        raise expected(
            f"numbers in {name} that fit in {dtype}",
            f"{x[beyond].flat[0]:.3g}, which does not fit in {dtype}",
            "rescaling them, or jax_enable_x64",
        )
    return short


def as_array(name: str, x: Any) -> Array:
    """An array for JAX with its dtype as far as JAX has it here; nothing wraps, nothing overflows.

    For what a model takes, where tokens stay integers; what `read` or `held` refuses is refused,
    and numbers whose spread is lost.
    """
    return _held_apart(name, read(name, x))


def as_numbers(name: str, x: Any) -> Array:
    """Real floating numbers for JAX; integers and booleans become floats.

    Float64 becomes float32 outside x64, if it holds their spread. What can compute in float64
    instead takes `as_states`.
    """
    # Lists and integers have no dtype of their own: they take JAX's.
    return _held_apart(name, read_numbers(name, x))


def as_integers(name: str, x: Any) -> Array:
    """Integers for JAX, such as tokens, labels, places: none wraps."""
    x = read(name, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise expected(f"integers in {name}", f"dtype {x.dtype}", "x.astype(int)")
    return held(name, x)


def held_leaves(tree: Any) -> Any:
    """A dictionary's arrays as JAX takes them here: what a user wrote down does not wrap.

    A leaf of NumPy or a Python number that a compiled call would cut is cut here, if it fits;
    integers that don't become floats, as in states. What was fitted in float64 becomes float32
    outside x64, for a `precise_for` that does not widen.
    """

    def hold(leaf: Any) -> Any:
        if is_wide(leaf):  # fitted in float64, and used where there is none
            return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))
        if isinstance(leaf, int):
            return leaf if abs(leaf) < 2**31 else float(leaf)
        if isinstance(leaf, float) and np.isfinite(leaf):
            # A number of Python's has no dtype of its own, and stays one if it fits.
            _cut("a dictionary", np.asarray(leaf), jax.dtypes.canonicalize_dtype(float))
            return leaf
        if isinstance(leaf, jax.Array | float | complex | jax.ShapeDtypeStruct):
            return leaf
        if not isinstance(leaf, np.ndarray | np.generic):
            return held("a dictionary", read("a dictionary", leaf))
        known = not isinstance(leaf, np.ma.MaskedArray) and leaf.dtype.isnative
        known = known and leaf.dtype.kind in "biufc" and leaf.dtype.itemsize <= 8
        if known and jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype:
            return leaf
        leaf = read("a dictionary", leaf)
        if leaf.dtype.kind in "iu" and np.abs(leaf.astype(np.float64)).max(initial=0) >= 2**31:
            leaf = leaf.astype(np.float64)
        return _cut("a dictionary", leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))

    return jax.tree.map(hold, tree)


def _rows(name: str, x: Any) -> Any:
    """Real floating numbers `(n, d)` at full width."""
    array = read_numbers(name, x)
    if array.ndim != 2:
        raise expected(
            f"{name} of shape (n, d), a row for each sample",
            f"shape {tuple(array.shape)}",
            "x.reshape(len(x), -1), or x[:, None] for one coordinate",
        )
    if array.shape[0] == 0:
        raise expected(
            f"at least one sample in {name}", "an empty batch", "checking how the data were read"
        )
    return array


def as_rows(x: Any, *trees: Any) -> Any:
    """States `(n, d)`; in float64 where they or the dictionaries that they meet need it."""
    array = _rows("x", x)
    return array if needs_float64("x", array, *trees) else held("x", array)


def as_pair(x: Any, y: Any, *trees: Any) -> tuple[Any, Any]:
    """Snapshots before and after: as many of one as of the other; identity is kept.

    Where the dictionaries `trees` or either of the snapshots need float64, both keep it.
    """
    same = y is x
    x = _rows("x", x)
    y = x if same else _rows("y", y)
    if x.shape[0] != y.shape[0]:
        raise expected(
            "as many rows in y as in x",
            f"{x.shape[0]} and {y.shape[0]}",
            "pairing each snapshot with its successor: x = s[:-1], y = s[1:]",
        )
    wide = needs_float64("x", x, *trees) or (not same and needs_float64("y", y, *trees))
    keep = lambda name, a: a if wide and a.dtype == np.float64 else held(name, a)
    x_held = keep("x", x)
    return x_held, x_held if same else keep("y", y)
