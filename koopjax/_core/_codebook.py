"""Codebooks of numbers: k-means in one dimension, to the optimum."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

#: Distinct values times size up to which the optimum is found among the values themselves.
EXACT = 1 << 23
#: Largest size that is searched for; larger codebooks are spread as this one is.
MOST = 1 << 10
#: Steps of Lloyd's algorithm from where the search could not see every value.
STEPS = 300


def codebooks(
    values: Any, sizes: Sequence[int], weights: Any = None, *, keep_zero: bool = False
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The few values `c` of least `Σ w_i (v_i − c[k_i])²`, for several sizes in one search.

    Clusters of numbers are intervals of the sorted numbers. With `D_k(j)` the least error of the
    first j of them in k intervals and `e(i, j)` that of one interval about its mean,

        D_k(j) = min_i D_{k−1}(i) + e(i, j),

    whose best `i` never falls as j or k rises, so that every other j bounds those between.

    Args:
        values: numbers of any shape, finite.
        sizes: numbers of values, at least 1 each beside a kept zero.
        weights: as `values`, finite and not negative; all alike by default. What weighs nothing
            goes to the nearest value.
        keep_zero: let zeros stay zeros: where there are any, the first value is zero and stands for
            nothing else.

    Returns:
        For each size the values in increasing order, float64 (behind the kept zero), and the place
        of every number among them. There are fewer values where fewer do as well.

    Numerics:
        Float64 on the host, `O(n log n)` a value of the largest codebook. Errors are sums of
        squared distances from values nearby, so that clusters far from zero keep their digits.
        Beyond `EXACT` (n distinct numbers times the size) neighbours are merged first, into as many
        groups as that allows, and Lloyd's steps on all numbers follow. Before these the error
        exceeds the least by no more than half the sum of `mass × width × gap` over the groups that
        the best borders cut, `gap` being the distance of the two values there; after them 1e-5 or
        less of the least was seen. Sizes beyond `MOST` are a local optimum.

    Reference: Wu (1991), J. Algorithms 12, 663; Grønlund, Larsen, Mathiasen, Nielsen, Schneider &
        Song (2017), arXiv 1701.07204; Panter & Dite (1951), Proc. IRE 39, 44 (how dense good values
        lie, for the groups).
    """
    values = np.asarray(values, np.float64)
    cost = np.ones(values.shape) if weights is None else np.asarray(weights, np.float64)
    held = values == 0 if keep_zero else np.zeros(values.shape, bool)
    zero = int(held.any())
    distinct, where = np.unique(values[~held], return_inverse=True)
    mass = np.bincount(where.ravel(), cost[~held], minlength=len(distinct))
    out = []
    for book in _books(distinct, mass, [size - zero for size in sizes]):
        codes = np.zeros(values.shape, np.int64)
        nearest = np.searchsorted((book[1:] + book[:-1]) / 2, distinct)
        codes[~held] = nearest[where.ravel()] + zero
        out.append((np.concatenate([np.zeros(zero), book]), codes))
    return out


def _books(distinct: np.ndarray, mass: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """The values for each size, of sorted distinct numbers."""
    if not np.any(mass > 0):
        mass = np.ones_like(mass)
    x, w = distinct[mass > 0], mass[mass > 0]
    wanted = [size for size in sizes if size < len(x)]
    if not wanted:
        return [distinct if len(distinct) <= size else x for size in sizes]
    # Squares stay in range whatever the units; powers of two cost no digit.
    shift = int(np.frexp(np.max(np.abs(x)))[1])
    x, w = np.ldexp(x, -shift), w / w.max()
    most = min(max(wanted), MOST)
    groups = max(EXACT // most, 2 * most)
    starts = _groups(x, w, groups)
    counted = np.add.reduceat(w, starts)
    found = _search(_means(x, w, starts), counted, {min(size, most) for size in wanted})
    out = []
    for size in sizes:
        if size >= len(x):
            out.append(distinct if len(distinct) <= size else np.ldexp(x, shift))
            continue
        book = _means(x, w, starts[found[min(size, most)]])
        if size > most:
            book = np.interp(np.linspace(0, most - 1, size), np.arange(most), book)
        if len(starts) < len(x) or size > most:
            book = _lloyd(x, w, book)
        out.append(np.ldexp(book, shift))
    return out


def _groups(x: np.ndarray, w: np.ndarray, most: int) -> np.ndarray:
    """Where groups of neighbours begin, at most so many: as dense as good values would lie."""
    if len(x) <= most:
        return np.arange(len(x))
    # The best values for a density f lie with density f^(1/3).
    share = np.cumsum(np.cbrt(w[1:] * np.diff(x) ** 2))
    group = np.append(0, np.floor(share / share[-1] * (most - 1)))
    return np.flatnonzero(np.diff(group, prepend=-1))


def _means(x: np.ndarray, w: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Mean of each interval of the numbers, from where each begins."""
    first = x[starts]
    apart = x - np.repeat(first, np.diff(starts, append=len(x)))
    return first + np.add.reduceat(w * apart, starts) / np.add.reduceat(w, starts)


def _lloyd(x: np.ndarray, w: np.ndarray, book: np.ndarray) -> np.ndarray:
    """Means of what is nearest, again and again; values that nothing is nearest to are left out."""
    starts = None
    for _ in range(STEPS):
        before = starts
        inner = np.searchsorted(x, (book[1:] + book[:-1]) / 2)
        starts = np.unique(np.append(0, inner[inner < len(x)]))
        if before is not None and np.array_equal(starts, before):
            break
        book = _means(x, w, starts)
    return book


class _Sums(NamedTuple):
    """Mass, mean and squared error of intervals on either side of a middle.

    At level l the borders come in blocks of `2^(l+1)`; each is held with the interval between it
    and the middle of its block, means relative to the number there. Any two borders lie on two
    sides of one middle, at the level of the highest bit in which they differ, and the intervals
    join there without a difference of large sums.
    """

    mass: np.ndarray
    mean: np.ndarray
    error: np.ndarray
    offset: np.ndarray

    def between(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Squared error of the numbers from border i to border j, `i < j`, about their mean."""
        level = self.offset[i ^ j]
        a, b = level + i, level + j
        left, right = self.mass[a], self.mass[b]
        apart = self.mean[b] - self.mean[a]
        return self.error[a] + self.error[b] + apart * apart * (left * right / (left + right))


def _sums(x: np.ndarray, w: np.ndarray) -> _Sums:
    n, levels = len(x), len(x).bit_length()
    size = 1 << levels
    x, w = np.pad(x, (0, size - n), mode="edge"), np.pad(w, (0, size - n))
    held = np.zeros((3, levels, n + 1))
    offset = np.zeros(size, np.int64)
    for level in range(levels):
        half = 1 << level
        offset[half : 2 * half] = level * (n + 1)
        apart = x.reshape(-1, 2, half)
        apart = apart - apart[:, 1:, :1]
        weight = w.reshape(-1, 2, half)
        sides = np.zeros((3, len(apart), 2, half))
        # Outwards from the middle; the border in the middle has nothing on its right.
        sides[:, :, 0] = _running(apart[:, 0, ::-1], weight[:, 0, ::-1])[:, :, ::-1]
        sides[:, :, 1, 1:] = _running(apart[:, 1], weight[:, 1])[:, :, :-1]
        held[:, level] = sides.reshape(3, size)[:, : n + 1]
    mass, mean, error = held.reshape(3, -1)
    return _Sums(mass, mean, error, offset)


def _running(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mass, mean and squared error of the first numbers of each row, all terms positive."""
    mass = np.cumsum(w, axis=1)
    whole = np.where(mass > 0, mass, 1.0)
    mean = np.cumsum(w * x, axis=1) / whole
    rise = np.zeros_like(x)
    rise[:, 1:] = w[:, 1:] * mass[:, :-1] / whole[:, 1:] * (x[:, 1:] - mean[:, :-1]) ** 2
    return np.stack([mass, mean, np.cumsum(rise, axis=1)])


def _search(x: np.ndarray, w: np.ndarray, sizes: set[int]) -> dict[int, np.ndarray]:
    """Where the intervals of least error begin, by their number."""
    n, most = len(x), max(sizes)
    sums, rows = _sums(x, w), np.arange(n + 1)
    least = np.zeros(n + 1)
    least[1:] = sums.between(np.zeros(n, np.int64), rows[1:])
    last = np.zeros((most, n + 1), np.int32)
    for k in range(1, most):
        least, last[k] = _with_one_more(least, last[k - 1], sums)
    found = {}
    for size in sizes:
        ends = [n]
        for k in range(size - 1, 0, -1):
            ends.append(int(last[k, ends[-1]]))
        found[size] = np.unique([0, *ends[1:]])
    return found


def _with_one_more(
    least: np.ndarray, before: np.ndarray, sums: _Sums
) -> tuple[np.ndarray, np.ndarray]:
    """`D_k` and where its last interval begins, from `D_{k−1}` and where that of it does."""
    n = len(least) - 1
    best, value = np.zeros(n + 1, np.int64), np.zeros(n + 1)
    step = 1 << (n.bit_length() - 1)
    while step:
        rows = np.arange(step, n + 1, 2 * step)
        above = rows + step
        high = np.where(above <= n, best[np.minimum(above, n)], n)
        high = np.minimum(high, rows - 1)
        low = np.minimum(np.maximum(best[rows - step], before[rows]), high)
        count = high - low + 1
        starts = np.cumsum(count) - count
        columns = np.arange(starts[-1] + count[-1]) - np.repeat(starts - low, count)
        tried = least[columns] + sums.between(columns, np.repeat(rows, count))
        value[rows] = np.minimum.reduceat(tried, starts)
        ties = np.flatnonzero(tried == np.repeat(value[rows], count))
        best[rows] = columns[ties[np.searchsorted(ties, starts)]]  # the first of those that tie
        step //= 2
    return value, best
