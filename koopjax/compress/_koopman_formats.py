"""Cheaper forms of a matrix whose inputs have a known Gram matrix: K, or a projection.

All of them look for a `V` of few bits, few values or few rows with a small
`tr((W − V)ᵀ G (W − V))`, the squared error of the products on the data, and none of them is ever
worse in it than the plain form that it starts from. They are functions of `G` alone: the same Gram
matrix answers every form, with no second pass over the data.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from koopjax._core import codebooks, expected, ridge_solve
from koopjax.compress._feedback import feedback, on_codebook
from koopjax.compress._units import unit_diagonal

#: Scales of a grid that are tried, as shares of that which reaches the largest entry.
SHRINK = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
#: Rounds of a codebook and its codes in turn.
ROUNDS = 8


class Codebook(NamedTuple):
    """Shared values.

    Attributes:
        values: `(k,)`.
        codes: `(p, q)` which of them each entry is.
    """

    values: np.ndarray
    codes: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """`(p, q)`."""
        return self.values[self.codes]


class Groups(NamedTuple):
    """Rows that share their entries.

    Attributes:
        labels: `(p,)` the group of each row.
        rows: `(g, q)`.
    """

    labels: np.ndarray
    rows: np.ndarray

    @property
    def matrix(self) -> np.ndarray:
        """`(p, q)`."""
        return self.rows[self.labels]

    @property
    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """`(p, g)` and `(g, q)`, whose product is the matrix; the first is ones and zeros."""
        return np.eye(len(self.rows))[self.labels], self.rows


def gram_error(
    gram: Float[np.ndarray, "p p"], matrix: Float[np.ndarray, "p q"],
    other: Float[np.ndarray, "p q"],
) -> Float[np.ndarray, " q"]:  # fmt: skip
    """`diag((W − V)ᵀ G (W − V))`: the squared error of each column."""
    difference = np.asarray(matrix, np.float64) - other
    return np.sum(difference * (gram @ difference), axis=0)


def quantized(
    gram: Float[np.ndarray, "p p"], matrix: Float[np.ndarray, "p q"], bits: int, *,
    alpha: float = 1e-4,
) -> tuple[Int[np.ndarray, "p q"], Float[np.ndarray, " q"]]:  # fmt: skip
    """Small integers and a scale a column: `V = codes * scale`.

    Row by row, each entry goes to the nearest step and what that costs is made good by the rows
    that are still to come, as the inverse of the Gram matrix says (error feedback). Each column
    takes the best of several scales, plain rounding among them.

    Args:
        gram: `(p, p)` second moments of the inputs.
        matrix: `(p, q)`, acting from the right.
        bits: 2 to 8; codes lie within `± (2^(bits-1) − 1)`.
        alpha: ridge of the feedback, relative to each entry of the diagonal of `gram`.

    Returns:
        Integers and float32 scales.

    Numerics:
        Float64 on the host, `O(p³ + p² q)`.

    Raises:
        ValueError: bits out of range, shapes that do not fit.

    Reference: Frantar, Ashkboos, Hoefler & Alistarh (2023), arXiv 2210.17323.
    """
    gram, matrix = _checked(gram, matrix)
    if not 2 <= bits <= 8:
        raise expected("bits from 2 to 8", f"{bits}")
    most, q = 2 ** (bits - 1) - 1, matrix.shape[1]
    widest = np.max(np.abs(matrix), axis=0)
    scales = np.concatenate([share * np.where(widest > 0, widest, 1) / most for share in SHRINK])
    scales = scales.astype(np.float32).astype(np.float64)
    wide = np.tile(matrix, (1, len(SHRINK)))
    nearest = lambda row: np.clip(np.rint(row / scales), -most, most) * scales
    fed = feedback(gram, wide, nearest, alpha=alpha)
    forms = np.concatenate([fed, nearest(wide)], axis=1)
    error = gram_error(gram, np.tile(wide, (1, 2)), forms).reshape(-1, q)
    best = np.argmin(error, axis=0)
    chosen = forms.reshape(len(gram), -1, q)[:, best, np.arange(q)]
    scale = np.tile(scales, 2).reshape(-1, q)[best, np.arange(q)]
    return np.rint(chosen / scale).astype(np.int8), scale.astype(np.float32)


def clustered(
    gram: Float[np.ndarray, "p p"], matrix: Float[np.ndarray, "p q"], size: int, *,
    alpha: float = 1e-4,
) -> Codebook:  # fmt: skip
    """A codebook of few values for all entries.

    Starts from the optimum of the entries alone; then, in turn, codes by error feedback as in
    `quantized` and values by least squares in the Gram metric, `Σ_c Z_cᵀ G Z_c b = Σ_c Z_cᵀ G W_c`
    with the one-hot codes `Z_c` of column c. The best round is returned.

    Args:
        gram, matrix, alpha: as in `quantized`.
        size: number of values.

    Raises:
        ValueError: fewer than one value, shapes that do not fit.

    Reference: Gong, Liu, Yang & Bourdev (2014), arXiv 1412.6115 (k-means of weights).
    """
    gram, matrix = _checked(gram, matrix)
    if size < 1:
        raise expected("a codebook of at least one value", f"{size}")
    best = Codebook(*codebooks(matrix, [size])[0])
    book = best.values
    least = float(gram_error(gram, matrix, best.matrix).sum())
    codes = best.codes
    for turn in range(ROUNDS):
        if turn:  # the first turn refits the values of the plain codes
            codes = _nearest_code(book, feedback(gram, matrix, on_codebook(book), alpha=alpha))
        book = _refit_values(gram, matrix, codes, book)
        codes = np.argsort(np.argsort(book, kind="stable"), kind="stable")[codes]
        book = np.sort(book)
        error = float(gram_error(gram, matrix, book[codes]).sum())
        if error < least:
            best, least = Codebook(book, codes), error
    return best


def grouped_rows(
    gram: Float[np.ndarray, "p p"], matrix: Float[np.ndarray, "p q"], groups: int, *,
    alpha: float = 1e-8,
) -> Groups:  # fmt: skip
    """Rows in groups that share their entries, by agglomeration: observables that act alike.

    Merges, again and again, the two groups whose merging costs least by Ward's criterion with
    weights `G_ii`, then refits the shared rows in the Gram metric: `B = (Zᵀ G Z)⁻¹ Zᵀ G W`. Of the
    transposed problem (the metric on the outputs as `gram`) it groups the columns.

    Args:
        gram, matrix: as in `quantized`.
        groups: how many are left.
        alpha: ridge of the refit, relative to the second moment of each group.

    Numerics: `O(p³)` on the host at worst, with vectorised inner loops.

    Reference: Ward (1963), J. Am. Stat. Assoc. 58, 236.
    """
    gram, matrix = _checked(gram, matrix)
    p = len(gram)
    if not 1 <= groups <= p:
        raise expected(f"groups from 1 to {p}", f"{groups}")
    weight = np.maximum(np.diag(gram), 1e-12 * max(float(np.trace(gram)), 1e-300))
    center, labels = matrix.copy(), np.arange(p)
    square = np.sum((center[:, None] - center[None]) ** 2, axis=2)
    cost = square * (weight[:, None] * weight / (weight[:, None] + weight))
    np.fill_diagonal(cost, np.inf)
    for _ in range(p - groups):
        i, j = np.unravel_index(np.argmin(cost), cost.shape)
        center[i] = (weight[i] * center[i] + weight[j] * center[j]) / (weight[i] + weight[j])
        weight[i] += weight[j]
        labels[labels == j] = i
        alive = np.isfinite(cost[i])
        alive[[i, j]] = False
        cost[j], cost[:, j] = np.inf, np.inf
        far = np.sum((center - center[i]) ** 2, axis=1) * weight * weight[i] / (weight + weight[i])
        cost[i] = cost[:, i] = np.where(alive, far, np.inf)
    kept, labels = np.unique(labels, return_inverse=True)
    plain = Groups(labels, center[kept])
    z = np.eye(len(kept))[labels]
    system, unit = unit_diagonal(z.T @ gram @ z)
    right = unit[:, None] * (z.T @ gram @ matrix)
    rows = unit[:, None] * ridge_solve(system, right, alpha)
    fitted = Groups(labels, rows)
    errors = [gram_error(gram, matrix, form.matrix).sum() for form in (fitted, plain)]
    return fitted if errors[0] <= errors[1] else plain


def _checked(gram: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gram, matrix = np.asarray(gram, np.float64), np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or gram.shape != (len(matrix), len(matrix)):
        raise expected(
            "a matrix (p, q) and the Gram matrix (p, p) of its inputs",
            f"shapes {matrix.shape} and {gram.shape}",
        )
    return gram, matrix


def _nearest_code(book: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which value of a sorted codebook is nearest."""
    return np.searchsorted((book[1:] + book[:-1]) / 2, values)


def _refit_values(
    gram: np.ndarray, matrix: np.ndarray, codes: np.ndarray, book: np.ndarray
) -> np.ndarray:
    """Values by least squares in the Gram metric; unused ones stay."""
    size = len(book)
    system, right = np.zeros((size, size)), np.zeros(size)
    for c in range(matrix.shape[1]):
        z = np.eye(size)[codes[:, c]]
        weighted = gram @ z
        system += z.T @ weighted
        right += weighted.T @ matrix[:, c]
    system, unit = unit_diagonal(system)
    moved = ridge_solve(system, unit * right + 1e-10 * book / unit, 1e-10)
    return unit * moved
