"""One choice of projection, dictionary, rank and ridge, and the bytes that it takes."""

import dataclasses
import math
from typing import Any

import numpy as np

from koopjax.compress.gram._eliminate import backward


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """One choice of everything.

    Attributes:
        directions: the coordinates, before entries are given up.
        kept: which entries of the state are read.
        coordinates: how many.
        degree: of the products.
        columns: which products are kept.
        rank: of K.
        ridge: relative to the number of samples.
        bits: of an entry of projection and K where they lie on a grid; None for float32.
        entries: of K that are kept; None for all of the kept products.
    """

    directions: Any
    kept: np.ndarray
    coordinates: int
    degree: int
    columns: np.ndarray
    rank: int
    ridge: float
    bits: int | None = None
    entries: int | None = None

    @classmethod
    def least(cls, d: int, q: int) -> "Setting":
        """The smallest form: one entry, one coordinate, and a line in it."""
        del d
        return cls(None, np.arange(1), 1, 1, np.arange(2), q, 0.0)

    @property
    def observables(self) -> int:
        """How many products are kept."""
        return len(self.columns)

    def bytes(self, d: int, q: int) -> int:
        """Bytes of the arrays that depend on the setting; see `array_bytes`."""
        total = math.comb(self.coordinates + self.degree, self.degree)
        return array_bytes(
            d, q, len(self.kept), self.coordinates, self.observables, total, self.rank
        )

    def fewer(self, stats: Any, count: int) -> tuple["Setting", np.ndarray]:
        """The setting with some observables less, chosen by elimination, and which stay.

        Args:
            stats: of its observables alone.
            count: how many go; two stay at least.
        """
        gram, cross = np.asarray(stats.gram, np.float64), np.asarray(stats.cross, np.float64)
        size = max(2, self.observables - count)
        alpha = self.ridge * float(stats.count)
        stay, _ = backward(gram, cross, [size], alpha, (0,))[size]
        return dataclasses.replace(self, columns=self.columns[stay]), stay

    def as_dict(self, d: int) -> dict[str, Any]:
        """For the report."""
        return {
            "entries": f"{len(self.kept)} of {d}",
            "coordinates": self.coordinates,
            "degree": self.degree,
            "observables": self.observables,
            "rank": self.rank,
            "ridge": self.ridge,
            **({} if self.bits is None else {"bits": self.bits}),
            **({} if self.entries is None else {"entries of K": self.entries}),
        }


def index_bytes(count: int, size: int) -> int:
    """Bytes of a sorted choice of `count` out of `size`: its entropy, and a little more.

    The file codes such a choice near its entropy; the last steps of a search look at true files.
    """
    if count in (0, size):
        return 0
    share = count / size
    bits = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    return math.ceil(1.05 * size * bits / 8) + 12


def array_bytes(d: int, q: int, m: int, r: int, p: int, total: int, rank: int) -> int:
    """Bytes of all arrays of a block.

    Args:
        d, q: entries of the states.
        m: entries kept.
        r: coordinates.
        p: observables kept.
        total: observables of the whole dictionary.
        rank: of K; `q` for a dense K.
    """
    k = p * rank + (rank * q if rank < q else 0)
    return 4 * (m * r + r + k) + index_bytes(m, d) + index_bytes(p, total)


def most_observables(limit: int, d: int, q: int, m: int, r: int, total: int, rank: int) -> int:
    """The largest number of observables that a number of bytes allows."""
    if array_bytes(d, q, m, r, total, total, rank) <= limit:
        return total
    p = min(total - 1, max(0, limit - array_bytes(d, q, m, r, 0, total, rank)) // (4 * rank))
    while p > 0 and array_bytes(d, q, m, r, p, total, rank) > limit:
        p -= 1
    return p
