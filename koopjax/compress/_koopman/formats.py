"""K, or a projection, in few bits: forms of a matrix whose inputs have a known Gram matrix.

What is looked for is a `V` of small `tr((W − V)ᵀ G (W − V))`, the squared error of the products on
the data, never worse in it than plain rounding. It is a function of `G` alone: the same Gram matrix
answers every form, with no second pass over the data.
"""

import numpy as np
from jaxtyping import Float, Int

from koopjax._core import expected
from koopjax.compress.gram._feedback import feedback

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
