"""Rounding with error feedback: what one entry loses, the entries behind it make up for."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.linalg import get_lapack_funcs

from koopjax.compress.gram._obs import alike
from koopjax.compress.gram._units import unit_diagonal

Rounding = Callable[[np.ndarray], np.ndarray]


def on_grid(scale: float, most: int, dtype: np.dtype) -> Rounding:
    """Rounding to the multiples of a scale, up to `most` of them from zero, as `dtype` has them.

    The values are products of the scale and small integers in `dtype` itself, by which `export`
    knows a grid; float64 holds them exactly.
    """
    step = np.asarray(scale, dtype)

    def rounded(values: np.ndarray) -> np.ndarray:
        counts = np.clip(np.rint(values / float(step)), -most, most)
        return (step * counts.astype(dtype)).astype(np.float64) + 0.0  # no minus zero

    return rounded


def on_codebook(book: np.ndarray) -> Rounding:
    """Rounding to the nearest of sorted values."""
    borders = (book[1:] + book[:-1]) / 2
    return lambda values: book[np.searchsorted(borders, values)] + 0.0


def best_scale(
    values: np.ndarray, most: int, dtype: np.dtype, weights: np.ndarray | None = None
) -> float:
    """The scale of least (weighted) squared error among sixty.

    Args:
        values: to round.
        most: the largest multiple.
        dtype: of the result.
        weights: as `values`, or None for all alike.
    """
    largest = float(np.max(np.abs(values)))
    if largest == 0:
        return 1.0
    cost = np.ones(values.shape) if weights is None else weights
    tries = largest / most * np.geomspace(0.15, 1.0, 60)
    errors = [np.sum(cost * (values - on_grid(s, most, dtype)(values)) ** 2) for s in tries]
    return float(tries[int(np.argmin(errors))])


def feedback(
    gram: Float[np.ndarray, "p p"],
    matrix: Float[np.ndarray, "p q"],
    rounding: Rounding,
    *,
    mask: Bool[np.ndarray, "p q"] | None = None,
    protect: Sequence[int] = (),
    alpha: float = 1e-3,
) -> Float[np.ndarray, "p q"]:
    """Round a matrix V of few error `tr((V − Q)ᵀ G (V − Q))`.

    Rows go in the order of falling `G_ii`. When row i becomes `q_i`, the rows behind it that are
    not rounded yet move by `−(v_i − q_i) U_i· / U_ii`, where `U` is the upper factor of `G⁻¹ =
    UᵀU`: the least-squares answer to the error.

    Args:
        gram: `(p, p)` second moments of the inputs.
        matrix: `(p, q)`; where the mask is False it must be zero, and stays so.
        rounding: values to values.
        mask: the entries that there are; all without.
        protect: rows that are not rounded (the bias); they come last and take up what is left.
        alpha: ridge, relative to each entry of the diagonal of `gram`.

    Numerics:
        Float64 on the host: one factorisation for columns that share their mask.

    Reference:
        Frantar, Ashkboos, Hoefler & Alistarh (2023), GPTQ, ICLR; Frantar & Alistarh (2022),
        Optimal Brain Compression, NeurIPS 35.
    """
    p = len(gram)
    ridge = alpha / unit_diagonal(gram)[1] ** 2
    kept = np.ones(matrix.shape, bool) if mask is None else np.asarray(mask)
    last = np.isin(np.arange(p), list(protect))
    # protected rows behind all others, which go by falling power
    order = np.lexsort((-np.diag(gram), last))
    out = np.zeros(matrix.shape)
    for rows, columns in alike(kept[order]):
        rows = order[rows]
        system = gram[np.ix_(rows, rows)] + np.diag(ridge[rows])
        # A lower factor of the flipped matrix is an upper one of the matrix.
        lower = np.linalg.cholesky(system[::-1, ::-1])
        upper = get_lapack_funcs(("trtri",), (lower,))[0](lower, lower=1)[0][::-1, ::-1]
        values = matrix[np.ix_(rows, columns)].copy()
        for k in range(int(np.count_nonzero(~last[rows]))):
            rounded = rounding(values[k])
            gap = (values[k] - rounded) / upper[k, k]
            values[k + 1 :] -= np.outer(upper[k, k + 1 :], gap)
            values[k] = rounded
        out[np.ix_(rows, columns)] = values
    return out
