"""The Koopman matrix by a codebook: few shared values."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax._core import (
    as_flag,
    check_finite,
    codebooks,
    expected,
    held,
    is_tracing,
    read_numbers,
)
from koopjax.nn import functional
from koopjax.nn._operators import Operator, as_parameter, check_bias, check_matrix

MOST_VALUES = 1 << 16


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
        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype to store in; none keeps that of the codebook.
        precision: of the product; the default keeps every digit on every backend.

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
        precision: Any = functional.PRECISION,
    ):
        zero = as_flag("zero", zero)
        book = as_parameter("the codebook", codebook, param_dtype)
        if book.ndim != 1 or not 1 <= book.shape[0] <= MOST_VALUES:
            raise expected(f"a codebook of 1 to {MOST_VALUES} values", f"shape {book.shape}")
        check_matrix("codes", codes)
        check_bias(bias, jnp.shape(codes)[1])
        given = check_codes(codes, 0, book.shape[0] - 1)
        if zero and (is_tracing(book) or np.asarray(book)[0] != 0):
            book = book.at[0].set(0)
        held = {"codebook": book, "bias": bias}
        small = given.astype(np.min_scalar_type(book.shape[0] - 1))
        self._setup(held, dtype, param_dtype, precision, {"codes": small})
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
        if is_tracing(matrix, weights):
            raise expected("a concrete matrix", "a traced one", "Clustered(codebook, codes)")
        check_finite("matrix", matrix)
        dense = np.asarray(matrix)
        zeros = bool(np.any(dense == 0))
        least = 1 + int(zeros and bool(np.any(dense)))
        if not isinstance(size, int | np.integer) or isinstance(size, bool):
            raise expected("a whole number as size", f"{size!r}")
        if not least <= size <= MOST_VALUES:
            raise expected(f"a size from {least} to {MOST_VALUES}", f"{size}")
        cost = None if weights is None else np.asarray(read_numbers("weights", weights), np.float64)
        if cost is not None and (
            cost.shape != dense.shape or not np.all((cost >= 0) & np.isfinite(cost))
        ):
            span = f", from {cost.min()} to {cost.max()}" if cost.size else ""
            wanted = f"weights of shape {dense.shape}, finite and none negative"
            raise expected(wanted, f"shape {cost.shape}{span}")
        ((book, codes),) = codebooks(dense, [int(size)], cost, keep_zero=True)
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
        codebook, codes = self.codebook.get_value(), self.codes.get_value()
        return functional.clustered_matrix(codebook, codes, zero=self.zero)

    def _apply(self, x: Array, *arrays: Any) -> Array:
        return functional.apply_clustered(x, *arrays, zero=self.zero, precision=self.precision)


def check_codes(codes: ArrayLike, least: int, most: int) -> Any:
    """Codes as an array, NumPy's where they are concrete, after a check of kind and range."""
    array = jnp.asarray(codes) if is_tracing(codes) else np.asarray(codes)
    if array.size and array.dtype.kind not in "iu":
        raise expected("codes of integers", f"{array.dtype}")
    if array.size and not is_tracing(array) and not (least <= array.min() <= array.max() <= most):
        raise expected(f"codes from {least} to {most}", f"{array.min()} to {array.max()}")
    return array
