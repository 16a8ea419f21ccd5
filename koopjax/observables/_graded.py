"""The graded order of multi-indices: how columns are built from earlier ones, and found by rank.

A product of coordinates is a sorted tuple `i1 <= i2 <= ... <= ik`. Columns are ordered by degree
`k`, within a degree lexicographically by that tuple, so the products whose first index is at least
`i` are a suffix of their block. Both constructions below rest on this.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from koopjax._core import as_whole, expected

MAX_COLUMNS = 2**31 - 1


def graded_size(d: int, degree: int) -> int:
    """Number of products of `d` coordinates up to a total degree: `C(d + degree, degree)`."""
    return math.comb(as_whole("the number of coordinates", d, 0) + degree, degree)


def require_addressable(size: int) -> None:
    """Raise where columns can't be counted in 32 bits, long after memory has run out."""
    if size > MAX_COLUMNS:
        raise expected(
            f"at most {MAX_COLUMNS:,} observables",
            f"{size:,}",
            "a lower degree, or Project to fewer coordinates first",
        )


def tuples(d: int, degree: int) -> list[tuple[int, ...]]:
    """All sorted index tuples in graded order, the empty one (the constant) first."""
    return [
        factors
        for k in range(degree + 1)
        for factors in itertools.combinations_with_replacement(range(d), k)
    ]


def _suffix_sizes(d: int, k: int) -> np.ndarray:
    """`s[i]`: how many products of degree `k` have no index below `i`, for `i = 0, ..., d`."""
    if k == 0:
        return np.ones(d + 1, np.int64)
    return np.array([math.comb(d - i + k - 1, k) for i in range(d)] + [0], np.int64)


@functools.lru_cache(maxsize=64)
def power_plan(d: int, degree: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For each degree from 2 on: which coordinate times which column of the block before.

    `x_i` multiplies the suffix of the previous block that has no index below `i`.
    """
    plan = []
    for k in range(2, degree + 1):
        lengths = _suffix_sizes(d, k - 1)[:d]
        left = np.repeat(np.arange(d), lengths)
        # Position within each run, moved to where that suffix starts in the previous block.
        starts = np.cumsum(lengths) - lengths
        within = np.arange(len(left)) - np.repeat(starts, lengths)
        right = within + np.repeat(lengths[0] - lengths if d else lengths, lengths)
        plan.append((left.astype(np.int32), right.astype(np.int32)))
    return tuple(plan)


@functools.lru_cache(maxsize=64)
def table_plan(d: int, degree: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For each degree from 2 on: which univariate value times which column of lower degree.

    The product that begins with index `i` taken `m` times is `h_m(x_i)` times a product of degree
    `k - m` in later coordinates. The first array points into a table `(d, degree + 1)` of
    univariate values, the second into all columns of degree below `k`.
    """
    offsets = [0] + [graded_size(d, k) for k in range(degree + 1)]
    suffixes = [_suffix_sizes(d, k) for k in range(degree + 1)]
    plan = []
    for k in range(2, degree + 1):
        left, right = [], []
        for i in range(d):
            for m in range(k, 0, -1):
                rest = k - m
                count = int(suffixes[rest][i + 1])
                end = offsets[rest + 1]
                left.append(np.full(count, i * (degree + 1) + m, np.int32))
                right.append(np.arange(end - count, end, dtype=np.int32))
        empty = np.zeros(0, np.int32)
        plan.append((np.concatenate([empty, *left]), np.concatenate([empty, *right])))
    return tuple(plan)


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def unrank(indices: Array, d: int, degree: int) -> Int[Array, "m degree"]:
    """The sorted index tuples of the columns `indices`, filled up with `d`.

    Works on traced indices, in `O(m degree log d)`, without listing the dictionary.
    """
    sizes = np.stack([_suffix_sizes(d, k) for k in range(degree + 1)]).astype(np.int32)
    starts = np.array([0] + [graded_size(d, k) for k in range(degree)], np.int32)
    suffix = jnp.asarray(sizes)
    indices = jnp.asarray(indices, jnp.int32)
    k = jnp.searchsorted(jnp.asarray(starts), indices, side="right").astype(jnp.int32) - 1
    # `left`: how many products, this one included, come from here to the end of its suffix.
    left = suffix[k, 0] - (indices - jnp.asarray(starts)[k])
    find = jax.vmap(lambda row, count: jnp.searchsorted(-row, -count, side="right"))
    columns = []
    for _ in range(degree):
        first = find(suffix[k], left).astype(jnp.int32) - 1
        columns.append(first)
        lower = jnp.maximum(k - 1, 0)
        left = jnp.where(k > 0, suffix[lower, first] - (suffix[k, first] - left), 1)
        k = lower
    if not columns:
        return jnp.zeros((indices.shape[0], 0), jnp.int32)
    return jnp.stack(columns, axis=1)


def pick(columns: Array, indices: np.ndarray | Array) -> Array:
    """Columns by indices that are known to be in range."""
    return columns.at[:, indices].get(mode="promise_in_bounds")


def pick_rows(rows: Array, indices: np.ndarray | Array) -> Array:
    """Rows by indices that are known to be in range."""
    return rows.at[indices].get(mode="promise_in_bounds")
