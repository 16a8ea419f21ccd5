"""Which ranks a tensor can have, and what a rounding says about itself."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import expected, pytree, read
from koopjax.tt._support import check_modes


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
    if given.ndim == 0:
        ranks = (1, *[int(given)] * (d - 1), 1)
    elif given.size == d - 1:
        ranks = (1, *(int(r) for r in given), 1)
    else:
        ranks = tuple(int(r) for r in given)
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
    one = jnp.ones(1, jnp.int32)
    if rank.ndim == 0:
        inner = jnp.full(d - 1, rank, jnp.int32)
    elif rank.shape == (d - 1,):
        inner = rank.astype(jnp.int32)
    elif rank.shape == (d + 1,):
        inner = rank[1:-1].astype(jnp.int32)
    else:
        raise expected(f"one rank, or {d - 1} of them", f"shape {rank.shape}")
    return jnp.concatenate([one, jnp.clip(inner, 1, size), one])
