"""What the verbs ask of arrays, modes, ranks and settings, and which ranks a tensor can have."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import as_numbers, check_number, expected, pytree, read
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


def check_modes(modes: Sequence[int], name: str = "modes") -> tuple[int, ...]:
    """Sizes as a tuple of integers, at least one of them, each at least 1."""
    given = read(f"the {name}", modes)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise expected(f"{name} as a sequence of whole numbers", f"{modes!r:.60}", "(2, 3, 4)")
    sizes = tuple(int(n) for n in given)
    if not sizes or min(sizes) < 1 or max(sizes) > MOST_SIZE:
        raise expected(f"{name}, at least one, each from 1 to {MOST_SIZE}", f"{modes!r:.60}")
    return sizes


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


@pytree
class RoundInfo:
    """What was lost and what was clipped on the way to a train.

    Attributes:
        error: relative Frobenius error of the truncation, `‖A − Ã‖ / ‖A‖`, from the singular
            values that were cut; rounding of the dtype not included.
        ranks: TT ranks of the result, `(d + 1,)`.
        feasible: the largest ranks that the modes allow, `(d + 1,)`.
        clipped: whether the rank that was asked for (each of them, or a single one) lies above
            the feasible ones and was cut to it.
    """

    error: Any
    ranks: Any
    feasible: Any
    clipped: Any

    @property
    def message(self) -> str:
        """In words, with concrete values: error, ranks, and what was clipped."""
        ranks = tuple(int(r) for r in np.asarray(self.ranks))
        text = f"relative error {float(self.error):.2e} at ranks {ranks}"
        if bool(self.clipped):
            most = tuple(int(r) for r in np.asarray(self.feasible))
            text += f"; the rank asked for was clipped to what the modes allow, {most}"
        return text


def feasible_ranks(modes: Sequence[int]) -> tuple[int, ...]:
    """The largest TT ranks that a tensor of these modes can have.

    `r_k = min(n_1 ... n_k, n_{k+1} ... n_d)`; ones at both ends.

    Args:
        modes: mode sizes; for a TT matrix the products `m_k n_k`.

    Example:
        >>> feasible_ranks((2, 3, 2, 2))
        (1, 2, 4, 2, 1)
    """
    modes = check_modes(modes)
    cuts = range(len(modes) + 1)
    return tuple(min(math.prod(modes[:k]), math.prod(modes[k:])) for k in cuts)


def clip_ranks(
    modes: Sequence[int], rank: int | Sequence[int]
) -> tuple[tuple[int, ...], str | None]:
    """Ranks cut to what the modes allow, and a sentence that says so.

    Args:
        modes: mode sizes.
        rank: one rank for all bonds, or `d - 1` of them, or `d + 1` with ones at the ends.

    Returns:
        `d + 1` ranks, and None where nothing had to be clipped: a single rank counts as clipped
        where it is above every feasible one, not for the bonds next to small modes.

    Example:
        >>> clip_ranks((2, 3, 2), 2)
        ((1, 2, 2, 1), None)
        >>> clip_ranks((2, 3, 2), 4)[0]
        (1, 2, 2, 1)
    """
    modes = check_modes(modes)
    wanted = as_ranks(len(modes), rank)
    most = feasible_ranks(modes)
    ranks = tuple(min(r, m) for r, m in zip(wanted, most, strict=True))
    if not was_clipped(rank, wanted, most):
        return ranks, None
    return ranks, f"ranks {wanted} clipped to {ranks}: modes {modes} allow at most {most}"


def was_clipped(rank: Any, wanted: Sequence[int], most: Sequence[int]) -> bool:
    """Whether a rank (or ranks) asked for lies above what the modes allow."""
    if np.ndim(rank) == 0:
        return len(most) > 2 and int(rank) > max(most[1:-1])
    return any(w > m for w, m in zip(wanted, most, strict=True))


def as_ranks(d: int, rank: Any) -> tuple[int, ...]:
    """One rank or a sequence of them as `d + 1` ranks, each at least 1."""
    given = np.asarray(read("the rank", rank))
    if given.ndim > 1 or not np.issubdtype(given.dtype, np.integer):
        raise expected("a whole number as rank, or a sequence of them", f"{rank!r}")
    inner = [given.item()] * (d - 1) if given.ndim == 0 else given.tolist()
    ranks = (1, *inner, 1) if len(inner) == d - 1 else tuple(inner)
    if len(ranks) != d + 1 or ranks[0] != 1 or ranks[-1] != 1:
        raise expected(
            f"one rank, or {d - 1} ranks for the bonds of {d} cores", f"{given.tolist()}"
        )
    if min(ranks) < 1 or (given.ndim == 0 and int(given) < 1):
        raise expected("ranks of at least 1", f"{given.tolist()}", "rank=1")
    return ranks


def requested(d: int, rank: Any, size: int) -> Array:
    """A rank that may be traced as `(d + 1,)` integers, at most the padded size inside."""
    rank = jnp.asarray(rank)
    if not jnp.issubdtype(rank.dtype, jnp.integer):
        raise expected("a whole number as rank, or an array of them", f"dtype {rank.dtype}")
    if rank.shape not in {(), (d - 1,), (d + 1,)}:
        raise expected(f"one rank, or {d - 1} of them", f"shape {rank.shape}")
    inner = jnp.broadcast_to(rank if rank.shape != (d + 1,) else rank[1:-1], d - 1)
    return jnp.pad(jnp.clip(inner.astype(jnp.int32), 1, size), 1, constant_values=1)
