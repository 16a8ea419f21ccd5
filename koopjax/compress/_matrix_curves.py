"""Pruning curves of a Koopman matrix: how many of its entries it can do without, by method."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from koopjax._core import as_number, check_finite, expected, read_numbers, ridge_solve
from koopjax.compress._obs import activation_order, surgeon_stage
from koopjax.compress._units import unit_diagonal

#: Methods of `matrix_curves`.
CURVES = ("magnitude", "wanda", "obs")
#: Share of the remaining entries that go in one stage of OBS, while columns are long and when they
#: are short, and the number of rows that is between the two.
COARSE, FINE, SHORT = 0.5, 0.15, 1500


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
    gram, cross = (
        np.asarray(read_numbers(name, a), np.float64)
        for name, a in (("gram", gram), ("cross", cross))
    )
    p = len(gram) if gram.ndim else 0
    if gram.shape != (p, p) or cross.ndim != 2 or len(cross) != p or not cross.size:
        raise expected("a Gram matrix (p, p) and moments (p, q)", f"{gram.shape}, {cross.shape}")
    for name, values in (("shares", shares), ("methods", methods)):
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
            raise expected(f"a list of {name}", f"{values!r:.60}")
    check_finite("gram", gram)
    check_finite("cross", cross)
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
        rank = _by_size(dense) if name == "magnitude" else activation_order(gram, dense)
        out[name] = [np.where(rank >= dense.size - count, dense, 0.0) for count in counts]
    return out


def _by_size(matrix: np.ndarray) -> np.ndarray:
    """Place of each entry in the order of magnitude, the least first."""
    order = np.argsort(np.abs(matrix), axis=None, kind="stable")
    rank = np.empty(matrix.size, np.int64)
    rank[order] = np.arange(matrix.size)
    return rank.reshape(matrix.shape)


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
