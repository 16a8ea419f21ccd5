"""Stored forms of the Koopman matrix: by its entries, by a codebook, in small integers."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax._core import (
    as_array,
    as_flag,
    as_numbers,
    as_whole,
    check_finite,
    codebooks,
    expected,
    held,
    is_tracing,
    read,
    read_numbers,
)
from koopjax.nn._operators import (
    PRECISION,
    Operator,
    as_indices,
    as_parameter,
    check_bias,
    check_concrete,
    check_matrix,
)

# Multiplications of a dense product that take as long as one of another kind, measured on CPU.
GATHERED = 55  # one multiplication of gathered numbers, summed by segments
PLACED = 150  # a number that is put into a matrix of zeros
ENTRY = 20  # an entry of that matrix, written and read once

MOST_VALUES = 1 << 16  # of a codebook
AXES: dict[str | None, int | None] = {None: None, "column": 0, "row": 1}


class Sparse(Operator):
    """A sparse operator: `x K + b`, `K` given by its stored entries.

    The values train, the places are frozen. The product is taken with the gathered entries alone
    or with the matrix put together, whichever is expected to be faster for the batch: on few rows
    the former, on many the latter. Batches of different sizes may differ in their last bits.

    Args:
        values: `(k,)`, the stored entries.
        rows: `(k,)` integers, `0 <= row < p`; concrete.
        columns: `(k,)` integers, `0 <= column < q`; concrete. In any order, no place twice.
        shape: `(p, q)`.
        bias: `(q,)`, or none.
        dtype, param_dtype, precision: as in `Operator`.

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
        precision: Any = PRECISION,
    ):
        if not isinstance(shape, tuple | list) or len(shape) != 2:
            raise expected("a shape (p, q)", f"{shape!r:.60}")
        p, q = as_whole("p", shape[0], 0), as_whole("q", shape[1], 0)
        values = as_array("values", values)
        rows, columns = read("rows", rows), read("columns", columns)
        check_concrete("row and column of each entry", "Sparse outside jit", rows, columns)
        sizes = {np.shape(a) for a in (values, rows, columns)}
        if len(sizes) != 1 or len(sizes.pop()) != 1:
            raise expected(
                "values, rows and columns of one shape (k,)",
                f"{np.shape(values)}, {np.shape(rows)} and {np.shape(columns)}",
            )
        check_bias(bias, q)
        rows = as_indices("rows", rows, 0, p - 1).astype(np.int64)
        places = rows * q + as_indices("columns", columns, 0, q - 1).astype(np.int64)
        order = np.argsort(places, kind="stable")
        places = places[order]
        if np.any(places[1:] == places[:-1]):
            twice = int(places[:-1][places[1:] == places[:-1]][0])
            raise expected("each place once", f"({twice // q}, {twice % q}) twice")
        row, column = np.divmod(places, max(1, q))
        arrays = {
            "values": values[order],
            "rows": row.astype(np.min_scalar_type(max(0, p - 1))),
            "columns": column.astype(np.min_scalar_type(max(0, q - 1))),
            "bias": bias,
        }
        self._setup(arrays, dtype, param_dtype, precision)
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
        check_concrete("matrix", "Sparse(values, ...) inside jit", matrix)
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

    def _gathers(self, n: int) -> bool:
        """Whether to multiply stored entries alone; the dense product wins from a few rows on."""
        p, q = self.shape
        return GATHERED * n * self.nonzero <= PLACED * self.nonzero + (ENTRY + n) * p * q

    def flops(self, n: int) -> int:
        """Operations for `n` samples in the way that is taken: `2 n k`, or those of `Dense`."""
        return 2 * n * self.nonzero if self._gathers(n) else super().flops(n)

    def to_dense(self) -> Float[Array, "p q"]:
        """The matrix `K`."""
        entries = (v.get_value() for v in (self.values, self.rows, self.columns))
        return _placed(*entries, shape=self.shape)

    def _map(self, x: Array, values: Array, rows: Array, columns: Array) -> Array:
        (p, q), n = self.shape, math.prod(x.shape[:-1])
        if not self._gathers(n):
            return jnp.matmul(
                x, _placed(values, rows, columns, shape=self.shape), precision=self.precision
            )
        gathered = jnp.take(x.reshape(n, p).T, rows.astype(jnp.int32), axis=0, mode="clip")
        products = gathered * values[:, None]
        out = jax.ops.segment_sum(products, columns.astype(jnp.int32), q).T
        return out.reshape(*x.shape[:-1], q)


@functools.partial(jax.jit, static_argnames="shape")
def _placed(values: Array, rows: Array, columns: Array, *, shape: tuple[int, int]) -> Array:
    """The matrix of stored entries."""
    # unsigned bytes can't hold the size 256 that the bounds of an index are compared with
    places = jnp.zeros(shape, values.dtype).at[rows.astype(jnp.int32), columns.astype(jnp.int32)]
    how: Any = {"indices_are_sorted": True, "unique_indices": True, "mode": "promise_in_bounds"}
    return places.set(values, **how)


class Clustered(Operator):
    """An operator of shared values: `x K + b` with `K = codebook[codes]`.

    The codebook trains (an entry's gradient is the sum over those that share it), the codes are
    frozen. `export` stores the codes at the price of their entropy.

    Args:
        codebook: `(k,)`, the values; at most 65,536.
        codes: `(p, q)` integers, `0 <= code < k`.
        bias: `(q,)`, or none.
        zero: hold the first value of the codebook at zero while it trains, so that pruned entries
            stay pruned.
        dtype, param_dtype, precision: as in `Operator`.

    Example:
        >>> import jax.numpy as jnp
        >>> operator = Clustered(jnp.array([0.5, -1.0]), jnp.array([[0, 1, 0], [1, 1, 0]]))
        >>> operator(jnp.ones(2))
        Array([-0.5, -2. ,  1. ], dtype=float32)
    """

    arrays = ("codebook", "codes", "bias")
    frozen = ("codes",)
    codebook: Any
    codes: Any

    def __init__(
        self,
        codebook: ArrayLike,
        codes: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        zero: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: Any = PRECISION,
    ):
        zero = as_flag("zero", zero)
        book = as_parameter("the codebook", codebook, param_dtype)
        if book.ndim != 1 or not 1 <= book.shape[0] <= MOST_VALUES:
            raise expected(f"a codebook of 1 to {MOST_VALUES} values", f"shape {book.shape}")
        check_matrix("codes", codes)
        check_bias(bias, jnp.shape(codes)[1])
        given = as_indices("codes", codes, 0, book.shape[0] - 1)
        if zero and (is_tracing(book) or np.asarray(book)[0] != 0):
            book = book.at[0].set(0)
        small = given.astype(np.min_scalar_type(book.shape[0] - 1))
        arrays = {"codebook": book, "codes": small, "bias": bias}
        self._setup(arrays, dtype, param_dtype, precision)
        self.zero = zero

    @classmethod
    def from_dense(
        cls,
        matrix: ArrayLike,
        size: int,
        bias: ArrayLike | None = None,
        *,
        weights: ArrayLike | None = None,
        **settings: Any,
    ) -> "Clustered":
        """The operator of the values that serve a matrix best: k-means of its entries.

        The least `Σ w_ij (M_ij − K_ij)²` of all codebooks, by dynamic programming in float64 on the
        host; nothing is random. Zeros of the matrix stay exact: where it has any, the first of the
        values is zero and held there.

        Args:
            matrix: `(p, q)`, concrete and finite.
            size: number of values, a held zero included.
            bias: `(q,)`, or none.
            weights: `(p, q)`, finite and not negative: what a squared error of each entry costs;
                all alike by default.
            **settings: those of the constructor.

        Numerics:
            100,000 weights take a second of CPU for 16 values and three for 256. Up to 8 million
            weights times values the optimum; beyond, within 1e-5 of it as far as seen.

        Returns:
            An operator with at most `size` values in increasing order behind the held zero: fewer
            where the matrix has fewer, which are then kept as they are.
        """
        matrix = read_numbers("matrix", matrix)
        check_matrix("matrix", matrix)
        check_concrete("matrix", "Clustered(codebook, codes)", matrix, weights)
        check_finite("matrix", matrix)
        dense = np.asarray(matrix)
        zeros = bool(np.any(dense == 0))
        least = 1 + int(zeros and bool(np.any(dense)))
        size = as_whole("size", size, least, MOST_VALUES)
        cost = None if weights is None else np.asarray(read_numbers("weights", weights), np.float64)
        if cost is not None and (
            cost.shape != dense.shape or not np.all((cost >= 0) & np.isfinite(cost))
        ):
            span = f", from {cost.min()} to {cost.max()}" if cost.size else ""
            wanted = f"weights of shape {dense.shape}, finite and none negative"
            raise expected(wanted, f"shape {cost.shape}{span}")
        ((book, codes),) = codebooks(dense, [size], cost, keep_zero=True)
        codebook = held("matrix", book.astype(dense.dtype))
        return cls(codebook, codes, bias, zero=zeros, **settings)

    @property
    def widths(self) -> tuple[int, int]:
        """Of input and output, `(p, q)`."""
        return self.codes.shape

    @property
    def size(self) -> int:
        """Number of values, `k`."""
        return self.codebook.shape[0]

    def to_dense(self) -> Float[Array, "p q"]:
        """The matrix `K`."""
        return _looked_up(self.codebook.get_value(), self.codes.get_value(), zero=self.zero)

    def _map(self, x: Array, codebook: Array, codes: Array) -> Array:
        return jnp.matmul(x, _looked_up(codebook, codes, zero=self.zero), precision=self.precision)


@functools.partial(jax.jit, static_argnames="zero")
def _looked_up(codebook: Array, codes: Array, *, zero: bool) -> Array:
    """The matrix of a codebook and codes."""
    if zero:
        # a mask costs nothing where writing one number would be an operation of its own
        codebook = jnp.where(jnp.arange(codebook.shape[0]) == 0, 0, codebook)
    return jnp.take(codebook, codes.astype(jnp.int32), axis=0, mode="clip")


class Quantized(Operator):
    """An operator of small integers: `x K + b` with `K = codes * scale`.

    Computed as `(x codes) * scale`, or `(x * scale) codes` where each row has its scale. The
    scales train, the codes are frozen. `export` stores the codes at the price of their entropy.

    Args:
        codes: `(p, q)` integers of absolute value at most `2^(bits-1) - 1`.
        scale: one number, `(1, 1)`; one a column, `(q,)` or `(1, q)`; or one a row, `(p, 1)`.
        bias: `(q,)`, or none.
        bits: width of the codes, 2 to 8.
        dtype, param_dtype, precision: as in `Operator`.

    Example:
        >>> import jax.numpy as jnp
        >>> operator = Quantized(jnp.array([[1, -7], [0, 3]]), jnp.array([0.5, 0.25]), bits=4)
        >>> operator(jnp.ones(2))
        Array([ 0.5, -1. ], dtype=float32)
    """

    arrays = ("codes", "scale", "bias")
    frozen = ("codes",)
    codes: Any
    scale: Any

    def __init__(
        self,
        codes: ArrayLike,
        scale: ArrayLike,
        bias: ArrayLike | None = None,
        bits: int = 8,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike | None = None,
        precision: Any = PRECISION,
    ):
        p, q = check_matrix("codes", codes)
        codes = read("codes", codes)
        check_bias(bias, q)
        bits = as_whole("bits", bits, 2, 8)
        most = _most(bits)
        given = as_indices("codes", codes, -most, most)
        line = as_numbers("scale", scale)
        if line.ndim < 2:
            line = line.reshape(1, -1)
        if line.shape not in {(1, 1), (1, q), (p, 1)}:
            raise expected(
                f"a scale of shape (), ({q},), (1, {q}) or ({p}, 1)", f"shape {line.shape}"
            )
        arrays = {"codes": given.astype(np.int8), "scale": line, "bias": bias}
        self._setup(arrays, dtype, param_dtype, precision)
        self.bits = bits

    @classmethod
    def from_dense(
        cls,
        matrix: ArrayLike,
        bits: int = 8,
        axis: str | None = None,
        bias: ArrayLike | None = None,
        **settings: Any,
    ) -> "Quantized":
        """A matrix rounded to the grid whose ends are its largest absolute value.

        Args:
            matrix: `(p, q)`, concrete and finite.
            bits: width of the codes, 2 to 8.
            axis: what shares a scale: everything (none), each `"column"` or each `"row"`.
            bias: `(q,)`, or none.
            **settings: those of the constructor.

        Returns:
            An operator that differs from the matrix by at most half a scale an entry. Zeros stay
            zero.
        """
        check_matrix("matrix", matrix)
        check_concrete("matrix", "Quantized(codes, scale)", matrix)
        if not isinstance(axis, str | None) or axis not in AXES:
            raise expected("an axis among None, 'column' and 'row'", f"{axis!r:.60}")
        check_finite("matrix", matrix)
        # Integers are numbers here too: a scale cut to an integer would be zero.
        dense = np.asarray(as_numbers("matrix", matrix))
        wide, most = dense.astype(np.float64), _most(as_whole("bits", bits, 2, 8))
        largest = np.max(np.abs(wide), axis=AXES[axis], keepdims=True, initial=0)
        # rounded first: the codes belong to the scale that is stored
        scale = np.where(largest > 0, largest / most, 1).astype(dense.dtype)
        stored = scale.astype(np.float64)
        stored = np.where(stored == 0, 1, stored)  # below the smallest number of the dtype
        codes = np.clip(np.rint(wide / stored), -most, most).astype(np.int8)
        return cls(codes, scale, bias, bits, **settings)

    @property
    def widths(self) -> tuple[int, int]:
        """Of input and output, `(p, q)`."""
        return self.codes.shape

    def to_dense(self) -> Float[Array, "p q"]:
        """The matrix `K`."""
        codes, scale = self.codes.get_value(), self.scale.get_value()
        return codes.astype(scale.dtype) * scale

    def _map(self, x: Array, codes: Array, scale: Array) -> Array:
        product = functools.partial(jnp.matmul, precision=self.precision)
        line, codes = scale.reshape((1,) * (x.ndim - 1) + (-1,)), codes.astype(x.dtype)
        return product(x * line, codes) if scale.shape[0] > 1 else product(x, codes) * line


def _most(bits: int) -> int:
    """The largest code, `2^(bits-1) - 1`."""
    return (1 << (bits - 1)) - 1
