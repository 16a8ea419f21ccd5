"""The Koopman matrix in small integers and scales."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax._core import as_numbers, as_whole, check_finite, expected, is_tracing, read
from koopjax.nn import functional
from koopjax.nn._clustered import check_codes
from koopjax.nn._operators import Operator, check_bias, check_matrix

AXES: dict[str | None, int | None] = {None: None, "column": 0, "row": 1}


class Quantized(Operator):
    """An operator of small integers: `x K + b` with `K = codes * scale`.

    Computed as `(x codes) * scale`, or `(x * scale) codes` where each row has its scale. The
    scales train, the codes are frozen. `export` stores the codes at the price of their entropy.

    Args:
        codes: `(p, q)` integers of absolute value at most `2^(bits-1) - 1`.
        scale: one number, `(1, 1)`; one a column, `(q,)` or `(1, q)`; or one a row, `(p, 1)`.
        bias: `(q,)`, or none.
        bits: width of the codes, 2 to 8.
        dtype: dtype to compute in; none promotes input and parameters.
        param_dtype: dtype to store in; none keeps that of the scale.
        precision: of the product; the default keeps every digit on every backend.

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
        precision: Any = functional.PRECISION,
    ):
        p, q = check_matrix("codes", codes)
        codes = read("codes", codes)
        check_bias(bias, q)
        bits = as_whole("bits", bits, 2, 8)
        most = _most(bits)
        given = check_codes(codes, -most, most)
        line = as_numbers("scale", scale)
        if line.ndim < 2:
            line = line.reshape(1, -1)
        if line.shape not in {(1, 1), (1, q), (p, 1)}:
            raise expected(
                f"a scale of shape (), ({q},), (1, {q}) or ({p}, 1)", f"shape {line.shape}"
            )
        held = {"scale": line, "bias": bias}
        self._setup(held, dtype, param_dtype, precision, {"codes": given.astype(np.int8)})
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
        if is_tracing(matrix):
            raise expected("a concrete matrix", "a traced one", "Quantized(codes, scale)")
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
        return functional.quantized_matrix(self.codes.get_value(), self.scale.get_value())

    def _apply(self, x: Array, *arrays: Any) -> Array:
        return functional.apply_quantized(x, *arrays, precision=self.precision)


def _most(bits: int) -> int:
    """The largest code, `2^(bits-1) - 1`."""
    return (1 << (bits - 1)) - 1
