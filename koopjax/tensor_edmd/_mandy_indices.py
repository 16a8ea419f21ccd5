"""Sets of multi-indices of a product dictionary, and how they come apart coordinate by coordinate.

A set is that of all multi-indices whose degrees sum to at most a total; with a total as large as
all degrees together it is the full product. Sets of this kind are closed downwards, so that a
change of basis by triangular matrices, one a coordinate, maps a set to itself.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from koopjax._core import expected
from koopjax.observables import Polynomial1D, Trigonometric


@dataclasses.dataclass(frozen=True)
class IndexPlan:
    """A set of multi-indices, static: `grades[k][i]` is the degree of function i in mode k.

    Attributes:
        grades: degrees of the functions, mode by mode.
        total: the largest sum of degrees.
    """

    grades: tuple[tuple[int, ...], ...]
    total: int

    @property
    def modes(self) -> tuple[int, ...]:
        """Mode sizes."""
        return tuple(len(g) for g in self.grades)

    @property
    def size(self) -> int:
        """How many multi-indices there are (counted, not listed)."""
        return _count(self.grades, self.total)

    def indices(self) -> np.ndarray:
        """`(p, d)`, in lexicographic order."""
        return _tuples(self.grades, self.total)

    def tails(self, k: int) -> int:
        """Number of distinct tails `(i_k, ..., i_{d-1})`; 1 for k = d."""
        return _count(self.grades[k:], self.total)

    def heads(self, k: int) -> int:
        """Number of distinct beginnings `(i_0, ..., i_{k-1})`."""
        return _count(self.grades[:k], self.total)

    def split(self, k: int) -> np.ndarray:
        """`(n_k, tails of k+1)`: where first index and tail lie among the tails of k.

        An index one beyond the last says that they don't.
        """
        where = _positions(self.grades[k:], self.total)
        tails = _tuples(self.grades[k + 1 :], self.total).tolist()
        first = range(len(self.grades[k]))
        return _looked_up(where, [[(i, *tail) for tail in tails] for i in first])

    def exchange(self, k: int) -> np.ndarray:
        """`(p, n_k)`: where each multi-index lies with its k-th entry replaced by 0, 1, ..."""
        rows, entries = self.indices().tolist(), range(len(self.grades[k]))
        where = _positions(self.grades, self.total)
        return _looked_up(where, [[(*r[:k], i, *r[k + 1 :]) for i in entries] for r in rows])


def full_plan(modes: tuple[int, ...]) -> IndexPlan:
    """All multi-indices."""
    grades = tuple(tuple(range(n)) for n in modes)
    return IndexPlan(grades, sum(n - 1 for n in modes))


def graded_plan(product: Any, total: Any) -> IndexPlan:
    """The multi-indices up to a total degree of a product of polynomials or Fourier series."""
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise expected("total_degree as an integer of at least 0", repr(total), "total_degree=3")
    grades = []
    for factor in getattr(product, "factors", ()):
        if isinstance(factor, Polynomial1D):
            grades.append(tuple(range(factor.degree + 1)))
        elif isinstance(factor, Trigonometric):
            grades.append(tuple((i + 1) // 2 for i in range(2 * factor.order + 1)))
        else:
            raise expected(
                "families with a degree (Polynomial1D, Trigonometric) for total_degree",
                type(factor).__name__,
                "total_degree=None",
            )
    if not grades:
        raise expected(
            "one mode a coordinate for total_degree", type(product).__name__, "form='coordinate'"
        )
    return IndexPlan(tuple(grades), min(total, sum(max(g) for g in grades)))


@functools.lru_cache(maxsize=256)
def _count(grades: tuple[tuple[int, ...], ...], total: int) -> int:
    ways = [1] + [0] * total
    for grade in grades:
        ways = [sum(ways[t - g] for g in grade if g <= t) for t in range(total + 1)]
    return sum(ways)


@functools.lru_cache(maxsize=256)
def _tuples(grades: tuple[tuple[int, ...], ...], total: int) -> np.ndarray:
    if not grades:
        return np.zeros((1, 0), np.int32)
    parts = []
    for i, g in enumerate(grades[0]):
        if g <= total:
            tails = _tuples(grades[1:], total - g)
            parts.append(np.concatenate([np.full((len(tails), 1), i, np.int32), tails], axis=1))
    return np.concatenate(parts)


def _positions(grades: tuple[tuple[int, ...], ...], total: int) -> dict[tuple[int, ...], int]:
    return {tuple(row): j for j, row in enumerate(_tuples(grades, total).tolist())}


def _looked_up(where: dict[tuple[int, ...], int], table: list[list[tuple]]) -> np.ndarray:
    return np.array([[where.get(index, len(where)) for index in row] for row in table], np.int32)
