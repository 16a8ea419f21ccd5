"""Pruning with the Gram matrix: which entries of a matrix to keep, and what they become."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import get_lapack_funcs

from koopjax._core import (
    as_integers,
    check_finite,
    check_metric,
    check_number,
    expected,
    read,
    read_numbers,
    ridge_solve,
)
from koopjax.compress._units import unit_diagonal

#: Share of the remaining entries that go in one stage.
SHARE = 0.15


@dataclasses.dataclass(frozen=True, eq=False)
class Removal:
    """In which order the entries of a matrix are given up.

    Attributes:
        rank: `(p, q)` integers; the entry that goes first has 0, the last one the largest. Entries
            that stay for ever have `p q`.
        kept: number of entries after each stage, falling.
        error: `tr((W − V)ᵀ G (W − V)) / tr(Wᵀ G W)` of the refitted rest `V` after each stage.
    """

    rank: np.ndarray
    kept: np.ndarray
    error: np.ndarray

    def mask(self, count: int) -> Bool[np.ndarray, "p q"]:
        """The entries that are left when `count` of them are to be kept."""
        return self.rank >= self.rank.size - count if count < self.rank.size else self.rank >= 0


def removal_order(
    gram: Float[np.ndarray, "p p"],
    matrix: Float[np.ndarray, "p q"],
    *,
    alpha: float = 1e-4,
    protect: Any = (),
    least: float = 0.002,
) -> Removal:
    """Optimal brain surgeon: entries of least saliency go first, the rest of their column refitted.

    In column `c`, taking entry `i` out raises the squared error by `V_ic² / [G_c⁻¹]_ii`, where
    `G_c` is the Gram matrix on the column's remaining rows and `V` the refitted matrix. One share
    of all remaining entries goes in each stage, wherever they are.

    Args:
        gram: `(p, p)` second moments of the inputs, float64.
        matrix: `(p, q)`, acting from the right.
        alpha: ridge, relative to each entry of the diagonal of `gram`; at least 1e-10.
        protect: rows that stay, such as that of the constant.
        least: share of the entries at which the order stops mattering; those left go by saliency.

    Numerics:
        Float64 on the host. A stage inverts a matrix a column, of the size of what is left there,
        so that the first few of about `log(1/least) / 0.16` stages cost more than all others.

    Reference: Hassibi & Stork (1993), NeurIPS 5; Frantar & Alistarh (2023), arXiv 2301.00774.
    """
    gram, matrix = as_moments(gram, "the matrix", matrix)
    p, q = matrix.shape
    check_number("alpha", alpha)
    check_number("least", least, 0, 1)
    protect = _rows(protect, p)
    gram, unit = unit_diagonal(gram)
    matrix, ridge = matrix / unit[:, None], max(float(alpha), 1e-10)
    whole = float(np.sum(matrix * (gram @ matrix))) or 1.0
    cross = gram @ matrix
    mask = np.ones((p, q), bool)
    free = np.ones((p, q), bool)
    free[protect] = False
    rank = np.full((p, q), p * q)
    gone, kept, errors = 0, [], []
    floor = max(1, int(least * free.sum()))
    while True:
        v, saliency = surgeon_stage(gram, cross, mask, ridge)
        difference = matrix - v
        kept.append(int(mask.sum()))
        errors.append(float(np.sum(difference * (gram @ difference))) / whole)
        left = np.flatnonzero((mask & free).ravel())
        if left.size == 0:
            break
        order = left[np.argsort(saliency.ravel()[left], kind="stable")]
        count = left.size if left.size <= floor else max(1, int(SHARE * left.size))
        rank.ravel()[order[:count]] = gone + np.arange(count)
        mask.ravel()[order[:count]] = False
        gone += count
    rank[~free] = p * q
    return Removal(rank, np.asarray(kept), np.asarray(errors))


def as_moments(gram: Any, name: str, matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    """A Gram matrix `(p, p)` and a matrix `(p, q)` on the host in float64."""
    given = (("the Gram matrix", gram), (name, matrix))
    gram, matrix = (np.asarray(read_numbers(called, a), np.float64) for called, a in given)
    if matrix.ndim != 2:
        raise expected(f"{name} of shape (p, q)", f"shape {matrix.shape}")
    if gram.shape != (len(matrix), len(matrix)):
        raise expected(f"a Gram matrix of shape {(len(matrix),) * 2}", f"{gram.shape}")
    # In float32: what sums in it leave below zero is rounding.
    check_metric("Gram matrix", unit_diagonal(gram)[0].astype(np.float32), len(gram))
    check_finite(name, matrix)
    return gram, matrix


def _rows(protect: Any, p: int) -> list[int]:
    """Indices of rows that stay."""
    if not isinstance(protect, Iterable):
        raise expected(f"indices of {p} rows as protect", f"{protect!r:.60}", "(0,)")
    rows = list(protect)
    found = np.asarray(as_integers("protect", rows)) if rows else np.zeros(0, int)
    if found.ndim != 1 or (found.size and not (-p <= found.min() <= found.max() < p)):
        raise expected(f"indices of {p} rows as protect", f"{protect!r:.60}")
    return found.tolist()


def surgeon_stage(
    gram: np.ndarray, cross: np.ndarray, mask: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """The refitted matrix on a mask and the saliency of its entries, both `(p, q)`.

    For a Gram matrix of unit diagonal, or the ridge depends on the units.
    """
    v, saliency = np.zeros(cross.shape), np.zeros(cross.shape)
    for rows, columns in alike(mask):
        places = np.ix_(rows, columns)
        inverse = _inverse(gram[np.ix_(rows, rows)] + ridge * np.eye(len(rows)))
        v[places] = inverse @ cross[places]
        saliency[places] = v[places] ** 2 / np.diag(inverse)[:, None]
    return v, saliency


def alike(mask: Bool[np.ndarray, "p q"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The columns of a mask in groups of equal rows: those rows (some), and the columns."""
    packed = np.packbits(mask, axis=0)
    _, group = np.unique(packed, axis=1, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(group.reshape(-1)))
    for columns in np.split(order, ends[:-1]):
        rows = np.flatnonzero(mask[:, columns[0]])
        if len(rows):
            yield rows, columns


def _inverse(system: np.ndarray) -> np.ndarray:
    """Of a positive definite matrix, at 2/5 of what `np.linalg.inv` takes."""
    potrf, potri = get_lapack_funcs(("potrf", "potri"), (system,))
    factor, failed = potrf(system, lower=1)
    if failed:  # indefinite by rounding, where the ridge is tiny
        return np.linalg.inv(system)
    lower = np.tril(potri(factor, lower=1)[0])
    return lower + np.tril(lower, -1).T


def refit(
    gram: Float[np.ndarray, "p p"],
    cross: Float[np.ndarray, "p q"],
    mask: Bool[np.ndarray, "p q"],
    *,
    alpha: float = 1e-4,
) -> Float[np.ndarray, "p q"]:
    """Least squares in which each column has its own set of rows: `min tr(Vᵀ G V − 2 Vᵀ C)`.

    Args:
        gram: `(p, p)`.
        cross: `C = XᵀY`, `(p, q)`.
        mask: which entries may differ from zero.
        alpha: ridge, relative to each entry of the diagonal of `gram`.
    """
    gram, cross = as_moments(gram, "the cross moments", cross)
    check_number("alpha", alpha)
    mask = np.asarray(read("the mask", mask))
    if mask.shape != cross.shape or mask.dtype != bool:
        got = f"{mask.dtype} of shape {mask.shape}"
        raise expected(f"a mask of booleans of shape {cross.shape}", got, "weights != 0")
    gram, unit = unit_diagonal(gram)
    ridge, cross = max(float(alpha), 1e-10), cross * unit[:, None]
    out = np.zeros(cross.shape)
    for rows, columns in alike(mask):
        places = np.ix_(rows, columns)
        out[places] = ridge_solve(gram[np.ix_(rows, rows)], cross[places], ridge)
    return out * unit[:, None]


def activation_order(
    gram: Float[np.ndarray, "p p"],
    matrix: Float[np.ndarray, "p q"],
    protect: Any = (),
    *,
    group: str = "column",
) -> np.ndarray:
    """Wanda: entries of least `|W_ic| ‖x_i‖` go first.

    Args:
        gram: `(p, p)` second moments of the inputs.
        matrix: `(p, q)`.
        protect: rows that stay.
        group: "column" (every column gives up the same share at any time) or "layer".

    Returns:
        `(p, q)` integers as `Removal.rank`.

    Reference: Sun, Liu, Bair & Kolter (2024), arXiv 2306.11695.
    """
    gram, matrix = as_moments(gram, "the matrix", matrix)
    score = np.abs(matrix) * np.sqrt(np.maximum(np.diag(gram), 0))[:, None]
    protect = _rows(protect, len(matrix))
    score[protect] = np.inf
    place = np.zeros(score.shape, np.int64)
    if group == "column":
        place = np.argsort(np.argsort(score, axis=0, kind="stable"), axis=0, kind="stable")
    # By place in the column where columns share alike, then by score.
    order = np.lexsort((score.ravel(), place.ravel()))
    rank = np.empty(matrix.size, np.int64)
    rank[order] = np.arange(matrix.size)
    rank = rank.reshape(matrix.shape)
    rank[protect] = matrix.size
    return rank
