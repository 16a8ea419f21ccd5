"""To which sizes lanes of different ranks are padded: few compilations, little waste."""

from collections.abc import Sequence
from typing import Any

from koopjax._core import expected
from koopjax.sweep._reduced import check_ranks

#: The work of a local problem grows with the fourth power of the rank, measured for ranks 6 to 16.
POWER = 4
#: How much more work than without padding is allowed, as the model counts it.
WASTE = 1.35


def _cheapest(ranks: Sequence[int], cost: Sequence[float], count: int) -> list[int]:
    """Sizes of so many buckets that cover sorted ranks with the least work.

    Dynamic programming over where a bucket ends: each pads all of its lanes to its last rank.
    """
    n = len(ranks)
    best: list[list[tuple[float, list[int]]]] = [[(0.0, [])] + [(float("inf"), [])] * n]
    for _ in range(count):
        row = [(0.0, [])]
        for end in range(1, n + 1):
            options = [
                (best[-1][start][0] + (end - start) * cost[end - 1], start) for start in range(end)
            ]
            value, start = min(options)
            row.append((value, [*best[-1][start][1], ranks[end - 1]]))
        best.append(row)
    return best[-1][n][1]


def bucket_sizes(ranks: Sequence[int], buckets: Any = None) -> dict[int, int]:
    """The size that each rank is padded to.

    Args:
        ranks: of the lanes, in any order.
        buckets: sizes, the largest at least the largest rank; None for the fewest that cost at
            most a third more work than no padding.

    Returns:
        Rank to size.
    """
    known = sorted(set(ranks))
    if buckets is None:
        cost = [float(rank**POWER) for rank in known]
        for count in range(1, len(known) + 1):
            sizes = _cheapest(known, cost, count)
            found = _assign(known, sizes)
            if sum(found[rank] ** POWER for rank in known) <= WASTE * sum(cost):
                return found
    sizes = sorted(set(check_ranks(buckets)))
    if sizes[-1] < known[-1]:
        raise expected(f"a bucket for rank {known[-1]}", f"sizes {sizes}", f"adding {known[-1]}")
    return _assign(known, sizes)


def _assign(ranks: Sequence[int], sizes: Sequence[int]) -> dict[int, int]:
    return {rank: min(size for size in sizes if size >= rank) for rank in ranks}
