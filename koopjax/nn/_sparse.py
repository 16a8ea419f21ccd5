"""The Koopman matrix by its stored entries."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax._core import as_array, as_whole, expected, is_tracing, read
from koopjax.nn import functional
from koopjax.nn._operators import Operator, check_bias, check_matrix


class Sparse(Operator):
    """A sparse operator: `x K + b`, `K` given by its stored entries.

    The values train, the places are frozen. The product is taken with the gathered entries alone
    or with the matrix put together, whichever `nn.functional.sparse_order` expects to be faster for
    the batch: on few rows the former, on many the latter.

    Args:
        values: `(k,)`, the stored entries.
        rows: `(k,)` integers, `0 <= row < p`; concrete.
        columns: `(k,)` integers, `0 <= column < q`; concrete. In any order, no place twice.
        shape: `(p, q)`.
        bias: `(q,)`, or none.
        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype to store in; none keeps that of the values.
        precision: of the product; the default keeps every digit on every backend.

    Attributes:
        values: entries, by row, then by column.
        rows: where they are, in the smallest unsigned integers.
        columns: likewise.
        shape: `(p, q)`.

    Example:
        >>> import jax.numpy as jnp
        >>> places = jnp.array([0, 1]), jnp.array([2, 0])
        >>> operator = Sparse(jnp.array([2.0, 3.0]), *places, shape=(2, 3))
        >>> operator(jnp.ones(2))
        Array([3., 0., 2.], dtype=float32)
    """

    arrays = ("values", "rows", "columns", "bias")
    frozen = ("rows", "columns")
    values: Any
    rows: Any
    columns: Any

    def __init__(
        self,
        values: ArrayLike,
        rows: ArrayLike,
        columns: ArrayLike,
        shape: tuple[int, int],
        bias: ArrayLike | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: Any = functional.PRECISION,
    ):
        p, q = as_shape(shape)
        values, rows, columns = (
            as_array("values", values),
            read("rows", rows),
            read("columns", columns),
        )
        if is_tracing(rows, columns):
            raise expected("concrete rows and columns", "traced ones", "Sparse outside jit")
        sizes = {np.shape(a) for a in (values, rows, columns)}
        if len(sizes) != 1 or len(sizes.pop()) != 1:
            raise expected(
                "values, rows and columns of one shape (k,)",
                f"{np.shape(values)}, {np.shape(rows)} and {np.shape(columns)}",
            )
        check_bias(bias, q)
        places = _flat(rows, "rows", p) * q + _flat(columns, "columns", q)
        order = np.argsort(places, kind="stable")
        places = places[order]
        if np.any(places[1:] == places[:-1]):
            twice = int(places[:-1][places[1:] == places[:-1]][0])
            raise expected("each place once", f"({twice // q}, {twice % q}) twice")
        held = {"values": values[order], "bias": bias}
        row, column = np.divmod(places, max(1, q))
        constants = {
            "rows": row.astype(np.min_scalar_type(max(0, p - 1))),
            "columns": column.astype(np.min_scalar_type(max(0, q - 1))),
        }
        self._setup(held, dtype, param_dtype, precision, constants)
        self.shape = (p, q)

    @classmethod
    def from_dense(
        cls, matrix: ArrayLike, bias: ArrayLike | None = None, **settings: Any
    ) -> "Sparse":
        """The operator of the entries of a matrix that are not zero.

        Args:
            matrix: `(p, q)`, concrete.
            bias: `(q,)`, or none.
            **settings: those of the constructor.
        """
        check_matrix("matrix", matrix)
        if is_tracing(matrix):
            raise expected("a concrete matrix", "a traced one", "Sparse(values, ...) inside jit")
        dense = np.asarray(as_array("matrix", matrix))
        rows, columns = np.nonzero(dense)
        values = dense[rows, columns]
        return cls(values, rows, columns, (dense.shape[0], dense.shape[1]), bias, **settings)

    @property
    def widths(self) -> tuple[int, int]:
        """Of input and output, `(p, q)`."""
        return self.shape

    @property
    def nonzero(self) -> int:
        """Stored entries."""
        return self.values.shape[0]

    def flops(self, n: int) -> int:
        """Operations for `n` samples in the way that is taken: `2 n k`, or those of `Dense`."""
        p, q = self.shape
        way = functional.sparse_order(n, p, q, self.nonzero)
        return 2 * n * (self.nonzero if way == "gather" else p * q)

    def to_dense(self) -> Float[Array, "p q"]:
        """The matrix `K`."""
        values, rows, columns = (v.get_value() for v in (self.values, self.rows, self.columns))
        return functional.sparse_matrix(values, rows, columns, self.shape)

    def _apply(self, x: Array, *arrays: Any) -> Array:
        *entries, bias = arrays
        return functional.apply_sparse(
            x, *entries, shape=self.shape, bias=bias, precision=self.precision
        )


def as_shape(shape: Any) -> tuple[int, int]:
    """The shape of a matrix as two integers."""
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise expected("a shape (p, q)", f"{shape!r:.60}")
    return as_whole("p", shape[0], 0), as_whole("q", shape[1], 0)


def _flat(index: ArrayLike, name: str, size: int) -> np.ndarray:
    """Indices in 64 bits, after a check of kind and range."""
    array = np.asarray(index)
    if array.size and array.dtype.kind not in "iu":
        raise expected(f"{name} of integers", f"{array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= size):
        raise expected(f"{name} from 0 to {size - 1}", f"{array.min()} to {array.max()}")
    return array.astype(np.int64)
