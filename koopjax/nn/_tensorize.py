"""From a matrix, or another operator, to a TT operator."""

import math
from collections.abc import Sequence

from jax.typing import ArrayLike

from koopjax import tt
from koopjax._core import as_numbers, expected, matmul
from koopjax.nn._operators import Dense, LowRank, Operator, check_matrix
from koopjax.nn._tt import TT, as_modes


def tensorize(
    operator: Operator | ArrayLike,
    row_modes: Sequence[int],
    column_modes: Sequence[int],
    rank: int | None = None,
    *,
    rtol: float = 0.0,
    form: str = "auto",
) -> TT:
    """A matrix as a TT operator, by TT-SVD: the best in the plain norm up to a factor `√(d - 1)`.

    Args:
        operator: `Dense`, `LowRank`, or a matrix `(p, q)`. Bias, dtype and precision are kept; the
            parameters of the result train.
        row_modes: `(m_1, ..., m_d)` with `∏ m_k = p`; for the operator behind a product dictionary
            the sizes of its families.
        column_modes: `(n_1, ..., n_d)` with `∏ n_k = q`, such as `(1, ..., 1, q)`.
        rank: the largest rank.
        rtol: relative error in the Frobenius norm that is allowed; with a `rank` as well, the
            smaller rank counts.
        form: order of contraction, as in `TT`.

    Returns:
        The operator; with neither `rank` nor `rtol` exact, of full ranks.

    Raises:
        ValueError: modes whose products are not the shape of the matrix.

    Example:
        >>> import jax
        >>> dense = Dense.create(jax.random.key(0), 12, 6)
        >>> tensorize(dense, (3, 4), (2, 3)).ranks
        (1, 6, 1)
    """
    bias, settings = None, {}
    if isinstance(operator, Operator):
        bias = None if operator.bias is None else operator.bias.get_value()
        settings = {"dtype": operator.dtype, "precision": operator.precision}
    if isinstance(operator, LowRank):
        matrix = matmul(operator.left.get_value(), operator.right.get_value())
    elif isinstance(operator, Dense):
        matrix = operator.matrix.get_value()
    elif isinstance(operator, Operator):
        raise expected("a Dense or LowRank operator, or a matrix", type(operator).__name__)
    else:
        matrix = as_numbers("matrix", operator)
    shape = check_matrix("matrix", matrix)
    row_modes, column_modes = as_modes("row", row_modes), as_modes("column", column_modes)
    if shape != (math.prod(row_modes), math.prod(column_modes)):
        raise expected(
            f"modes whose products are the shape {shape}",
            f"row modes {row_modes} and column modes {column_modes}",
        )
    train = tt.matrix_from_dense(matrix, row_modes, column_modes, max_rank=rank, rtol=rtol)
    return TT.from_train(train, bias, form=form, **settings)
