"""The Koopman matrix by a codebook: few shared values."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.nnx.nn import dtypes
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from koopjax._core import check_finite, expected, is_tracing, on_device
from koopjax.nn import functional
from koopjax.nn._operators import Operator, check_bias, check_matrix

MOST_VALUES = 1 << 16
LLOYD_STEPS = 300  # each costs a search of the borders among the sorted values, so they may be many


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
        book = on_device(codebook, param_dtype)
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
        self.zero = bool(zero)

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

        Lloyd's steps from the quantiles, in float64, to a fixed point; nothing is random. Zeros
        of the matrix stay exact: where it has any, the first of the values is zero and held there.

        Args:
            matrix: `(p, q)`, concrete and finite.
            size: number of values, a held zero included.
            bias: `(q,)`, or none.
            weights: `(p, q)`, not negative: what a squared error of each entry costs; all alike by
                default.
            **settings: those of the constructor.

        Returns:
            An operator with at most `size` values in increasing order behind the held zero: fewer
            where the matrix has fewer, which are then kept as they are.
        """
        check_matrix("matrix", matrix)
        if is_tracing(matrix, weights):
            raise expected("a concrete matrix", "a traced one", "Clustered(codebook, codes)")
        check_finite("matrix", matrix)
        dense = np.asarray(matrix)
        zeros = dense == 0
        held = bool(np.any(zeros))
        least = 1 + int(held and not np.all(zeros))
        if isinstance(size, bool) or not least <= size <= MOST_VALUES:
            raise expected(f"a size from {least} to {MOST_VALUES}", f"{size}")
        cost = np.ones(dense.shape) if weights is None else np.asarray(weights, np.float64)
        if cost.shape != dense.shape or not np.all(cost >= 0):
            raise expected(
                f"weights of shape {dense.shape}, none negative", f"an array of shape {cost.shape}"
            )
        others = dense[~zeros]
        book, nearest = _k_means(others.astype(np.float64), cost[~zeros], size - held)
        codes = np.zeros(dense.shape, np.int64)
        codes[~zeros] = nearest + held
        codebook = np.concatenate([np.zeros(int(held)), book]).astype(dense.dtype)
        return cls(codebook, codes, bias, zero=held, **settings)

    @property
    def in_features(self) -> int:
        """Width of the input, `p`."""
        return self.codes.shape[0]

    @property
    def out_features(self) -> int:
        """Width of the output, `q`."""
        return self.codes.shape[1]

    @property
    def size(self) -> int:
        """Number of values, `k`."""
        return self.codebook.shape[0]

    def flops(self, n: int) -> int:
        """`2 n p q`, as `Dense`."""
        return 2 * n * self.in_features * self.out_features

    def to_dense(self) -> Float[Array, "p q"]:
        """The matrix `K`."""
        codebook, codes = self.codebook.get_value(), self.codes.get_value()
        return functional.clustered_matrix(codebook, codes, zero=self.zero)

    def __call__(self, x: Float[Array, "*batch p"]) -> Float[Array, "*batch q"]:
        """`x K + b` along the last axis."""
        bias = None if self.bias is None else self.bias.get_value()
        x, codebook, bias = dtypes.promote_dtype(
            (jnp.asarray(x), self.codebook.get_value(), bias), dtype=self.dtype
        )
        return functional.apply_clustered(
            x, codebook, self.codes.get_value(), bias, zero=self.zero, precision=self.precision
        )


def check_codes(codes: ArrayLike, least: int, most: int) -> Any:
    """Codes as an array, NumPy's where they are concrete, after a check of kind and range."""
    array = jnp.asarray(codes) if is_tracing(codes) else np.asarray(codes)
    if array.size and array.dtype.kind not in "iu":
        raise expected("codes of integers", f"{array.dtype}")
    if array.size and not is_tracing(array) and not (least <= array.min() <= array.max() <= most):
        raise expected(f"codes from {least} to {most}", f"{array.min()} to {array.max()}")
    return array


def _k_means(values: np.ndarray, weights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weighted k-means of numbers: sorted centres, and the nearest of each number.

    Clusters of numbers are intervals: with the values sorted and their weights summed up once, a
    step is a search of the borders and differences of sums.
    """
    distinct, where = np.unique(values, return_inverse=True)
    if len(distinct) <= size:
        return distinct, where
    weight = np.bincount(where, weights)
    if not np.any(weight > 0):
        weight = np.ones_like(weight)
    center = distinct.mean()  # sums of what is near zero keep their digits
    mass = np.concatenate([[0.0], np.cumsum(weight)])
    moment = np.concatenate([[0.0], np.cumsum(weight * (distinct - center))])
    quantiles = mass[-1] * (np.arange(size) + 0.5) / size
    centers = np.unique(distinct[np.searchsorted(mass[1:], quantiles)])
    centers = _with_more(centers, distinct, weight, size)
    ends = None
    for _ in range(LLOYD_STEPS):
        borders = (centers[1:] + centers[:-1]) / 2
        inner = np.searchsorted(distinct, borders)
        if ends is not None and np.array_equal(inner, ends):
            break
        ends = inner
        first, last = np.concatenate([[0], inner]), np.concatenate([inner, [len(distinct)]])
        held = mass[last] - mass[first]
        means = (moment[last] - moment[first]) / np.where(held > 0, held, 1)
        centers = np.sort(np.where(held > 0, means + center, centers))
    nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, distinct)
    used, again = np.unique(nearest, return_inverse=True)
    return centers[used], again[where]


def _with_more(
    centers: np.ndarray, distinct: np.ndarray, weight: np.ndarray, size: int
) -> np.ndarray:
    """As many centres as asked where quantiles coincide: those whose cost is largest join."""
    while len(centers) < size:
        nearest = np.searchsorted((centers[1:] + centers[:-1]) / 2, distinct)
        cost = np.maximum(weight, 1e-300) * (distinct - centers[nearest]) ** 2
        cost[np.isin(distinct, centers)] = -1.0
        most = np.argsort(-cost, kind="stable")[: max(1, (size - len(centers)) // 4)]
        centers = np.unique(np.concatenate([centers, distinct[most]]))
    return centers
