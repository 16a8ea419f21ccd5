"""Checks on arrays and small helpers about where and at which precision code runs."""

import os
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
    """A `ValueError` in the house form: what was expected, what came, what to do.

    Args:
        what: completes "expected ...".
        got: completes "got ..."; put on one line, since many an array's `repr` takes several.
        suggestion: completes "try ..."; left out where empty.
    """
    got = " ".join(got.split())
    got = got if len(got) <= LONGEST else f"{got[:LONGEST]} ..."
    text = f"expected {what}, got {got}"
    return ValueError(f"{text}; try {suggestion}" if suggestion else text)


def on_device(array: Any, dtype: Any) -> Array:
    """`jnp.asarray(array, dtype)`, of NumPy without a program compiled for each shape."""
    there = isinstance(array, np.ndarray) and dtype is not None
    if there and jax.dtypes.canonicalize_dtype(dtype) == np.dtype(dtype):
        return jax.device_put(array.astype(dtype))
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


@jax.jit
def _all_finite(array: Array) -> Array:
    return jnp.all(jnp.isfinite(array))


def check_finite(name: str, array: Any) -> None:
    """Raise `ValueError` if a concrete array holds NaN or infinity; says how many and where first.

    Args:
        name: how the array is called in the message.
        array: any array; integers and booleans pass; tracers are not looked at.
    """
    if is_tracing(array):
        return
    # NumPy's stay where they are: cut to float32, a finite 1e39 would be infinite. What lies in the
    # host's memory is read there, without a program compiled for each shape.
    there = isinstance(array, jax.Array) and any(d.platform != "cpu" for d in array.devices())
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
    """Cut the rows into equal blocks for a scan, the last one padded with rows of weight zero.

    Args:
        x: `(n, ...)`.
        size: rows in a block; at least 1.

    Returns:
        `(b, size, ...)` blocks, padded by repeating the last row (which keeps every observable
        finite where zeros might not be), and `(b, size)` weights in the dtype of `x` (float32 for
        integers): 1 for samples, 0 for padding.
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
