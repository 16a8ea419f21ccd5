"""Pruning with the Gram matrix: which entries of a matrix to keep, and what they become."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import get_lapack_funcs

from koopjax._core import as_integers, as_number, check_number, expected, read, ridge_solve
from koopjax.compress.gram._select import as_moments, unit_diagonal

#: Methods of `matrix_curves`.
CURVES = ("magnitude", "wanda", "obs")
#: Share of the remaining entries that go in one stage of OBS, while columns are long and when they
#: are short, and the number of rows that is between the two.
COARSE, FINE, SHORT = 0.5, 0.15, 1500
#: Share of the remaining entries that go in one stage of `removal_order`.
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


def _rows(protect: Any, p: int) -> list[int]:
    """Indices of rows that stay."""
    rows = list(protect) if isinstance(protect, Iterable) else protect
    found = np.asarray(as_integers("protect", rows)) if rows != [] else np.zeros(0, int)
    if found.ndim != 1 or (found.size and not (-p <= found.min() <= found.max() < p)):
        raise expected(f"indices of {p} rows as protect", f"{protect!r:.60}", "(0,)")
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
    """Wanda: entries of least `|W_ic| ‖x_i‖` go first; integers as `Removal.rank`.

    In the group "column" every column gives up the same share at any time, else all are compared.

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
    rank = ranks(np.lexsort((score.ravel(), place.ravel())), matrix.shape)
    rank[protect] = matrix.size
    return rank


def matrix_curves(
    gram: Float[np.ndarray, "p p"],
    cross: Float[np.ndarray, "p q"],
    shares: Sequence[float],
    *,
    alpha: float,
    methods: Sequence[str] = CURVES,
) -> dict[str, list[Float[np.ndarray, "p q"]]]:
    """A Koopman matrix with fewer and fewer entries, from one pair of Gram matrices.

    All curves start from the ridge solution `K = (G + α D)⁻¹ C` with `D` the diagonal of `G`.
    "magnitude" keeps the largest entries, "wanda" in each column those of largest
    `|K_ic| sqrt(G_ii)`, both as they are. "obs" takes out those whose loss raises the squared
    error least, `K_ic² / [G_c⁻¹]_ii` with `G_c` the system of the rows left in column `c`, and
    refits the column, stage by stage.

    Args:
        gram: `ΨxᵀΨx`, `(p, p)`.
        cross: `ΨxᵀΨy`, `(p, q)`.
        shares: of the `p q` entries to keep, each above 0 and at most 1.
        alpha: ridge relative to each observable's second moment, at least 0.
        methods: some of `CURVES`.

    Returns:
        By method, a matrix for each share in the order given, float64.

    Numerics:
        Float64 on the host. Magnitude and Wanda take one solve; OBS one inverse a column and stage,
        of the size of what is left there: half of the entries go in a stage while columns are
        longer than `SHORT`, then 15 in a hundred, so the first few stages take most of the time.

    Raises:
        ValueError: shapes that do not fit, a share out of range, an unknown method.

    Reference: Hassibi & Stork (1993), NeurIPS 5 (OBS); Sun, Liu, Bair & Kolter (2024),
        arXiv 2306.11695 (Wanda).
    """
    gram, cross = as_moments(gram, "the cross moments", cross)
    if not cross.size:
        raise expected("a Gram matrix (p, p) and moments (p, q)", f"{gram.shape}, {cross.shape}")
    for name, values in (("shares", shares), ("methods", methods)):
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise expected(f"a list of {name}", f"{values!r:.60}")
    for share in shares:
        if not 0 < as_number("a share", share) <= 1:
            raise expected("shares of the entries above 0 and at most 1", f"{share}")
    if not as_number("alpha", alpha) >= 0:
        raise expected("a ridge of at least 0", f"{alpha}")
    unknown = [name for name in methods if name not in CURVES]
    if unknown:
        raise expected(f"methods among {', '.join(CURVES)}", f"{unknown[0]!r}")
    counts = [max(1, round(share * cross.size)) for share in shares]
    scaled, unit = unit_diagonal(gram)
    right = cross * unit[:, None]
    ridge = max(float(alpha), 1e-10)
    dense = unit[:, None] * ridge_solve(scaled, right, ridge)
    out: dict[str, list[np.ndarray]] = {}
    for name in methods:
        if name == "obs":
            out[name] = [unit[:, None] * k for k in _surgeon(scaled, right, ridge, counts)]
            continue
        if name == "magnitude":
            rank = ranks(np.argsort(np.abs(dense), axis=None, kind="stable"), dense.shape)
        else:
            rank = activation_order(gram, dense)
        out[name] = [np.where(rank >= dense.size - count, dense, 0.0) for count in counts]
    return out


def ranks(order: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The place of each entry in an order of them all."""
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    return rank.reshape(shape)


def _surgeon(
    gram: np.ndarray, cross: np.ndarray, alpha: float, counts: Sequence[int]
) -> list[np.ndarray]:
    """Optimal brain surgeon by stages, for observables of unit second moment."""
    mask = np.ones(cross.shape, bool)
    found: dict[int, np.ndarray] = {}
    for count in sorted(set(counts), reverse=True):
        while True:
            left = int(mask.sum())
            value, saliency = surgeon_stage(gram, cross, mask, alpha)
            if left == count:
                break
            share = COARSE if left > SHORT * cross.shape[1] else FINE
            gone = min(left - count, max(1, int(share * left)))
            live = np.flatnonzero(mask)
            mask.ravel()[live[np.argpartition(saliency.ravel()[live], gone - 1)[:gone]]] = False
        found[count] = value
    return [found[count] for count in counts]
