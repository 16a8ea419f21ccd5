"""Checks on arrays and small helpers about where and at which precision code runs."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

#: Characters of what an error says that it got.
LONGEST = 500
#: Share of the free memory that is planned with; the rest is for the data and the backend.
SHARE = 0.8


def expected(what: str, got: str, suggestion: str = "") -> ValueError:
    """A `ValueError` in the house form: what was expected, what came, what to do."""
    got = " ".join(got.split())
    got = got if len(got) <= LONGEST else f"{got[:LONGEST]} ..."
    text = f"expected {what}, got {got}"
    return ValueError(f"{text}; try {suggestion}" if suggestion else text)


def on_device(array: Any, dtype: Any = None) -> Array:
    """`jnp.asarray(array, dtype)`, of NumPy without a program compiled for each shape."""
    if isinstance(array, np.ndarray):
        wanted = np.dtype(array.dtype if dtype is None else dtype)
        if jax.dtypes.canonicalize_dtype(wanted) == wanted:
            return jax.device_put(array.astype(wanted))  # a copy, which the caller can't change
    return jnp.asarray(array, dtype)


def is_tracing(*trees: Any) -> bool:
    """Whether any leaf of the trees is a tracer, so that values can't be looked at."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def has_float64() -> bool:
    """Whether the default backend computes in float64 (CPU and GPU do, TPU does not)."""
    return jax.default_backend() != "tpu"


def available_bytes() -> int:
    """Memory that a computation on the default device may take, as far as the system says."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(SHARE * 1024 * int(fields["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        # Not Linux: the physical memory is the best that the standard library knows.
        return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def on_host(array: Any) -> bool:
    """Whether NumPy reads an array where it lies, without a transfer."""
    if not isinstance(array, jax.Array):
        return True
    return array.is_fully_addressable and all(d.platform == "cpu" for d in array.devices())


@jax.jit
def _all_finite(array: Array) -> Array:
    return jnp.all(jnp.isfinite(array))


def check_finite(name: str, array: Any) -> None:
    """Raise `ValueError` if a concrete array holds NaN or infinity; says how many and where first.

    Integers and booleans pass; tracers are not looked at.
    """
    if is_tracing(array):
        return
    # NumPy's stay where they are: cut to float32, a finite 1e39 would be infinite. What lies in the
    # host's memory is read there, without a program compiled for each shape.
    there = not on_host(array)
    xp: Any = jnp if there else np
    array = xp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    if not (_all_finite(array) if there else np.isfinite(array).all()):
        bad = ~xp.isfinite(array)
        count = int(xp.sum(bad))
        first = tuple(int(i) for i in xp.unravel_index(xp.argmax(bad), bad.shape))
        raise ValueError(
            f"expected finite numbers in {name}, got {count} NaN or infinite entries, the first at "
            f"index {first}; try dropping those samples"
        )


def blocks(x: Array, size: int) -> tuple[Array, Array]:
    """Cut the rows into equal blocks for a scan, the last padded with rows of weight zero.

    Blocks `(b, size, ...)`, padded by repeating the last row (which keeps every observable finite
    where zeros might not be), and weights `(b, size)` in the dtype of `x` (float32 for integers).
    """
    n = x.shape[0]
    if n == 0:
        raise expected("at least one sample", "an empty batch", "checking how the data were read")
    count = -(-n // size)
    padding = count * size - n
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    weights = jnp.ones(n, dtype)
    if padding:
        x = jnp.concatenate([x, jnp.broadcast_to(x[-1:], (padding, *x.shape[1:]))])
        weights = jnp.concatenate([weights, jnp.zeros(padding, dtype)])
    return x.reshape(count, size, *x.shape[1:]), weights.reshape(count, size)


# Where float64 is needed it is asked for locally; the global configuration stays as it is.

DOUBLE = (np.dtype(np.float64), np.dtype(np.complex128))


def in_float64(needed: bool) -> contextlib.AbstractContextManager:
    """The local float64 context where it is needed and not there; else one that does nothing.

    Also while tracing: what is traced inside stays float64.
    """
    return jax.enable_x64(True) if needed and not has_x64() else contextlib.nullcontext()


def precise(*trees: Any) -> contextlib.AbstractContextManager:
    """`in_float64` where a leaf of the trees is.

    Without it JAX would cut float64 statistics to float32 (and warn) unless x64 is on.
    """
    return in_float64(
        any(getattr(leaf, "dtype", None) in DOUBLE for leaf in jax.tree.leaves(trees))
    )


def has_x64() -> bool:
    """Whether JAX keeps float64 here, by the user's choice or a local one."""
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


@contextlib.contextmanager
def own_rules() -> Iterator[None]:
    """JAX as this library is written for, whatever a user asks of their own code.

    Inside, NaN stands for what is absent or did not come out, and is looked at; dtypes promote.
    Also a decorator.
    """
    with jax.numpy_dtype_promotion("standard"), jax.debug_nans(False):
        yield


def is_wide(*trees: Any) -> bool:
    """Whether a leaf was fitted in float64: an array of JAX in that dtype.

    NumPy's float64 and Python's numbers are what users write down; they take the dtype they meet.
    """

    def wide(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and leaf.dtype in DOUBLE and not leaf.weak_type

    return any(map(wide, jax.tree.leaves(trees)))


def precise_for(x: Any, *trees: Any) -> contextlib.AbstractContextManager:
    """A context for states and what they meet: float64 where either is in it.

    What is traced keeps to the dtype of `x`, since a transpose runs where the gradient is taken;
    `held_leaves` then cuts the trees to it.
    """
    fitted = is_wide(*trees) and not is_tracing(x, *trees) and has_float64()
    return precise_as(np.float64 if fitted else x.dtype)


def leave(tree: Any) -> Any:
    """Results in float64 as NumPy where JAX would cut them in whatever is done next."""
    if has_x64():
        return tree

    def host(leaf: Any) -> Any:
        known = is_wide(leaf) and not is_tracing(leaf) and leaf.is_fully_addressable
        return np.asarray(leaf) if known else leaf

    return jax.tree.map(host, tree)


def working_dtype(dtype: Any) -> Any:
    """The dtype in which factorisations run: at least float32, since LAPACK has no half types."""
    if not jnp.issubdtype(dtype, jnp.floating):
        raise expected("floating-point observables", f"dtype {dtype}", "x.astype(jnp.float32)")
    return promoted(dtype, jnp.float32)


def promoted(*dtypes: Any) -> Any:
    """The dtype that holds all of these, also where a user has made promotion strict."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, dtypes)


def precise_as(dtype: Any) -> contextlib.AbstractContextManager:
    """As `precise`, for arrays of a dtype that are about to be made."""
    return precise(jax.ShapeDtypeStruct((), np.dtype(dtype)))


def at_least_float32(array: Any) -> Any:
    """Half types as float32, which LAPACK has routines for; others as they are."""
    return array.astype(jnp.float32) if jnp.dtype(array.dtype).itemsize < 4 else array


def cast(tree: Any, dtype: Any) -> Any:
    """Every floating leaf in another dtype; other leaves (counts, codes) as they are."""

    def convert(leaf: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return jnp.asarray(leaf).astype(dtype) if floating else leaf

    with precise(tree) if dtype != jnp.float64 else jax.enable_x64(True):
        return jax.tree.map(convert, tree)


def traced(*trees: Any) -> bool:
    """Whether values can't be looked at: a leaf is a tracer, or the call itself is being staged.

    Under jit even operations on constants are staged, so a function called there on concrete
    arrays has no concrete results.
    """
    return is_tracing(*trees) or is_tracing(jnp.zeros(()))
