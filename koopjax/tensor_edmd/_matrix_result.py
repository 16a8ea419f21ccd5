"""What an approximation of a matrix in TT format returns."""

from typing import Any

import numpy as np
from jaxtyping import Array, Float

from koopjax._core import precise_as, pytree, static
from koopjax.tensor_edmd import _matrix_solve as als


@pytree
class MatrixInfo:
    """What an approximation of a matrix says about itself.

    Attributes:
        error: `‖W − T‖ / ‖W‖` in the norm `‖E‖² = tr(M Eᵀ G E)`.
        start: the same before the first sweep.
        history: the same after each sweep, `(sweeps,)`.
        residual: what is left of the normal equations of the last sweep's cores, relative, the
            largest: how exactly they were solved.
        swaps: rows and columns that traded places, `(2,)`.
        method: "als" (static).
        reason: which start was taken, which rank was clipped, why it stopped (static).
    """

    error: Any
    start: Any
    history: Any
    residual: Any
    swaps: Any
    method: str = static(default="als")
    reason: str = static(default="")


@pytree
class MatrixApproximation:
    """A TT matrix `T` close to a matrix: `train[s, t] = T[row_order[s], column_order[t]]`.

    Attributes:
        train: `TTMatrix` of the rows and columns in their orders.
        row_order: `(m,)` indices: `x[:, row_order]` is what the train takes.
        column_order: `(n,)` indices: the train gives `(x T)[:, column_order]`. The order of hidden
            units costs nothing: the bias and the next layer's rows are put in the same one.
        info: `MatrixInfo`.
        result: int32 result code, as in `edmd.solve`.
    """

    train: Any
    row_order: Any
    column_order: Any
    info: Any
    result: Any

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks, ones at the ends included."""
        return self.train.ranks

    @property
    def numbers(self) -> int:
        """Numbers in the cores; a row order that is not the natural one is stored beside them."""
        return self.train.numbers

    def to_dense(self) -> Float[Array, "m n"]:
        """The approximation `T` of the matrix, in the matrix's own order."""
        with precise_as(self.train.dtype):
            dense = als.full_matrix(self.train.cores)
            rows, columns = np.argsort(self.row_order), np.argsort(self.column_order)
            return dense[rows][:, columns]
