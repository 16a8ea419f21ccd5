"""What a fit will take, before anything is allocated."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from koopjax import observables
from koopjax._core import as_whole, available_bytes, expected, held_leaves, precise_as, promoted
from koopjax.edmd._statistics import Gram

# Square matrices alive at the same time in the solve: statistics, scaled copy, factor, right-hand
# sides, work space of LAPACK.
COPIES = 4


def statistics_bytes(p: int, q: int, kind: type, dtype: Any, folds: int | None) -> int:
    """Bytes of the statistics themselves."""
    numbers = p * p + p * q + q * q if kind is Gram else (p + q) ** 2
    return numbers * jnp.dtype(dtype).itemsize * (folds or 1)


def planned_bytes(p: int, q: int, kind: type, dtype: Any, rows: int, folds: int | None) -> int:
    """Bytes of accumulation and solve: statistics, their copies, and one lifted block."""
    width = jnp.dtype(dtype).itemsize
    copies = 2 * statistics_bytes(p, q, kind, dtype, folds)
    solve = COPIES * p * (p + q) * width
    return copies + solve + 2 * rows * (p + q) * width


def check_memory(
    lift: Any, x: Any, y: Any, kind: type, dtype: Any, rows: int, folds: int | None, limit: Any
) -> None:
    """Refuse a fit that will not fit, naming sizes that would.

    Args:
        lift: both dictionaries.
        x: shape of the snapshots before.
        y: shape of the snapshots after.
        kind: class of the statistics.
        dtype: of the accumulation.
        rows: rows lifted at a time.
        folds: statistics stacked.
        limit: bytes; None for what is free.
    """
    p, q = lift.sizes(x[1], y[1])
    limit = available_bytes() if limit is None else as_whole("memory_limit", limit, 1, 2**63)
    needed = planned_bytes(p, q, kind, dtype, rows, folds)
    if needed <= limit:
        return
    # With the target as wide as the dictionary every p counts for its target too.
    largest = _largest(limit, (q, p), kind, dtype, min(rows, 256), folds)
    # One square of float32 with that many rows: the advice of `fits` for just that number.
    ideas = observables.fits(lift.psi, x[1], 4 * largest**2, squares=1).advice
    raise expected(
        f"a dictionary whose statistics fit in {limit / 2**30:.3g} GiB",
        f"{_number(p)} observables before and {_number(q)} after, "
        f"which need {_gibibytes(needed)} GiB",
        f"{ideas or 'fewer targets'} (at most {largest:,} observables fit)",
    )


def observed_dtype(lift: Any, x: Any, y: Any, memory_limit: Any = None) -> Any:
    """The floating dtype in which the observables come out; refuses those that can't fit."""
    # Before tracing, because a dictionary of absurd size may build its index tables there.
    check_memory(lift, x.shape, y.shape, Gram, jnp.float32, 1, None, memory_limit)
    row = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
    with precise_as(promoted(x.dtype, y.dtype)):
        before, after = jax.eval_shape(held_leaves(lift), row(x), row(y))
    p, q = lift.sizes(x.shape[1], y.shape[1])
    if before.shape != (1, p) or after.shape != (1, q):
        raise expected(
            f"observables of shapes (1, {p}) and (1, {q}) from one sample, as their sizes say",
            f"{before.shape} and {after.shape}",
            "correcting size(d) of the dictionary",
        )
    return promoted(before.dtype, after.dtype)


def _number(n: int) -> str:
    """A count in full, or its power of ten where digits say nothing (products of dictionaries)."""
    return f"{n:,}" if n < 10**15 else f"over 10^{int(math.log10(n))}"


def _gibibytes(n: int) -> str:
    # Integers go beyond what a float holds.
    return f"{n / 2**30:.3g}" if n < 2**80 else _number(n // 2**30)


def _largest(
    limit: int, ratio: tuple[int, int], kind: type, dtype: Any, rows: int, folds: Any
) -> int:
    """Most observables whose plan fits, with targets in the same proportion; by bisection."""
    low, high = 0, 2
    q = lambda p: p * ratio[0] // max(ratio[1], 1) + 1
    fits = lambda p: planned_bytes(p, q(p), kind, dtype, rows, folds) <= limit
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
