"""K, or a projection, in few bits: forms of a matrix whose inputs have a known Gram matrix.

What is looked for is a `V` of small `tr((W − V)ᵀ G (W − V))`, the squared error of the products on
the data, never worse in it than plain rounding. It is a function of `G` alone: the same Gram matrix
answers every form, with no second pass over the data.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.linalg import get_lapack_funcs

from koopjax._core import expected
from koopjax.compress.gram._obs import alike
from koopjax.compress.gram._select import unit_diagonal

Rounding = Callable[[np.ndarray], np.ndarray]
#: Scales of a grid that are tried, as shares of that which reaches the largest entry.
SHRINK = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


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
    gram, matrix = np.asarray(gram, np.float64), np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or gram.shape != (len(matrix), len(matrix)):
        raise expected(
            "a matrix (p, q) and the Gram matrix (p, p) of its inputs",
            f"shapes {matrix.shape} and {gram.shape}",
        )
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


def feedback(
    gram: Float[np.ndarray, "p p"],
    matrix: Float[np.ndarray, "p q"],
    rounding: Rounding,
    *,
    mask: Bool[np.ndarray, "p q"] | None = None,
    protect: Sequence[int] = (),
    alpha: float = 1e-3,
) -> Float[np.ndarray, "p q"]:
    """Round a matrix V with little error `tr((V − Q)ᵀ G (V − Q))`.

    Rows go in the order of falling `G_ii`. When row i becomes `q_i`, the rows behind it that are
    not rounded yet move by `−(v_i − q_i) U_i· / U_ii`, where `U` is the upper factor of `G⁻¹ =
    UᵀU`: the least-squares answer to the error.

    Where the mask is False the matrix must be zero, and stays so. Protected rows (the bias) are not
    rounded: they come last and take up what is left. `alpha` is a ridge relative to each entry of
    the diagonal of G. One factorisation for columns that share their mask, float64 on the host.

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


def on_grid(scale: float, most: int, dtype: np.dtype) -> Rounding:
    """Rounding to the multiples of a scale, up to `most` of them from zero, as `dtype` has them."""
    # Products of the scale and small integers in `dtype` itself, by which `export` knows a grid.
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
    """The scale of least (weighted) squared error among sixty."""
    largest = float(np.max(np.abs(values)))
    if largest == 0:
        return 1.0
    cost = 1.0 if weights is None else weights
    tries = largest / most * np.geomspace(0.15, 1.0, 60)
    errors = [np.sum(cost * (values - on_grid(s, most, dtype)(values)) ** 2) for s in tries]
    return float(tries[int(np.argmin(errors))])
