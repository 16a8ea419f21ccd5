"""Sufficient statistics of a least-squares problem, as monoids: Gram matrices and R factors."""

import dataclasses
from typing import Any, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax._core import (
    as_dtype,
    as_integers,
    as_numbers,
    as_whole,
    cast,
    check_number,
    expected,
    is_tracing,
    matmul,
    precise,
    precise_as,
    promoted,
    pytree,
    qr_r,
    read_numbers,
    static,
    working_dtype,
)
from koopjax.edmd._inputs import read_weights


def check_statistics(statistics: Any) -> None:
    """Raise unless these are statistics with at least one observable on each side."""
    advice = "edmd.accumulate(...)"
    if not isinstance(statistics, Gram | RFactor):
        raise expected("edmd.Gram or edmd.RFactor", f"{type(statistics).__name__}", advice)
    names = ("gram", "cross", "target_gram") if isinstance(statistics, Gram) else ("r",)
    for name in names:
        array = getattr(statistics, name)
        dtype = getattr(array, "dtype", np.dtype(object))
        if not jnp.issubdtype(dtype, jnp.floating) or not dtype.isnative or array.ndim < 2:
            got = f"{type(array).__name__} {dtype} {getattr(array, 'shape', '')}"
            raise expected(f"a real matrix as the field {name} of statistics", got, advice)
    if min(statistics.sizes) < 1:
        raise expected("at least one observable on each side", f"sizes {statistics.sizes}")


def _check_mergeable(first: Any, second: Any) -> None:
    check_statistics(first)
    check_statistics(second)
    if type(first) is not type(second) or first.sizes != second.sizes:
        raise expected(
            f"statistics like {type(first).__name__} of sizes (p, q) = {first.sizes}",
            f"{type(second).__name__} of sizes {getattr(second, 'sizes', None)}",
            "accumulating both with the same dictionaries",
        )


def _narrower(first: Any, second: Any) -> str:
    """The dtype of less precision of two that observables came in."""
    names = [s.observed for s in (first, second) if s.observed]
    return max(names, key=lambda name: jnp.finfo(name).eps, default="")


def weighted(
    psi_x: Array, psi_y: Array, weights: Array | None, dtype: Any
) -> tuple[Array, Array, Array]:
    """Rows times the root of their weight, in the dtype of the accumulation, and the sample count.

    Rows of weight zero are replaced, not multiplied: padding and samples the user has switched off
    stay out even where an observable overflows.
    """
    same = psi_y is psi_x
    psi_x = psi_x.astype(dtype)
    psi_y = psi_x if same else psi_y.astype(dtype)
    if weights is None:
        return psi_x, psi_y, jnp.asarray(psi_x.shape[0], dtype)
    # A weight of NaN must reach the statistics, so that the result is flagged.
    used = (weights != 0)[:, None]
    root = jnp.sqrt(jnp.where(weights != 0, weights, 1)).astype(dtype)[:, None]
    rows_x = jnp.where(used, psi_x * root, 0)
    rows_y = rows_x if same else jnp.where(used, psi_y * root, 0)
    return rows_x, rows_y, jnp.sum(weights != 0).astype(dtype)


def check_whole(statistics: Any) -> None:
    """Raise unless these are statistics of all samples together."""
    if statistics.folds is not None:
        raise expected(
            "statistics of all samples together",
            f"{statistics.folds} folds",
            "edmd.total(statistics), or CrossValidated(solver, grid)",
        )


class _Moments:
    """What both kinds of statistics do alike with the array that holds their moments."""

    @classmethod
    def from_batch(
        cls,
        psi_x: Float[Array, "n p"],
        psi_y: Float[Array, "n q"],
        weights: Float[Array, " n"] | None = None,
    ) -> Self:
        """The statistic of one batch of lifted snapshots.

        Args:
            psi_x: `(n, p)` observables before.
            psi_y: `(n, q)` observables after; where it is the same object as `psi_x`, one product
                serves for all.
            weights: `(n,)`, not negative; a weight of 2 counts a sample twice.
        """
        psi_x, psi_y, weights = _checked(psi_x, psi_y, weights)
        with precise(psi_x, psi_y):
            dtype = working_dtype(promoted(psi_x.dtype, psi_y.dtype))
            return cls._of_rows(*weighted(psi_x, psi_y, weights, dtype))

    @classmethod
    def _of_rows(cls, rows_x: Array, rows_y: Array, count: Array) -> Self:
        raise NotImplementedError

    @property
    def _stacked(self) -> Array:
        raise NotImplementedError

    @property
    def dtype(self) -> Any:
        """The dtype of the accumulation."""
        return self._stacked.dtype

    @property
    def folds(self) -> int | None:
        """How many folds are stacked along the leading axis, or None."""
        return self._stacked.shape[0] if self._stacked.ndim == 3 else None

    def astype(self, dtype: Any) -> Self:
        """The statistic in another dtype (for use outside a float64 context, say)."""
        return cast(self, as_dtype("dtype", dtype))


@pytree
class Gram(_Moments):
    """Second moments of a pair of lifted snapshots.

    `gram = Ψxᵀ W Ψx`, `cross = Ψxᵀ W Ψy`, `target_gram = Ψyᵀ W Ψy`, with W the diagonal of sample
    weights. Addition of all fields is `merge`, so batches, folds and devices combine in any order.
    A smaller dictionary is a submatrix (`select`). A leading axis on every field stacks statistics
    by fold.

    Numerics: `2 n p (p + q)` operations and `p² + p q + q²` numbers, however many samples. Forming
    products squares the condition number: with rounding unit ε the solution is good to
    `cond(Ψ)² ε`. Where that is too much, use `RFactor`.

    Attributes:
        gram: `(p, p)`.
        cross: `(p, q)`.
        target_gram: `(q, q)`.
        count: `()`, samples of non-zero weight, as a float so that it can't overflow.
        observed: dtype of the observables where it is narrower than that of the sums, else empty
            (static): columns that depend on each other to its rounding are dependent.

    Reference: Williams, Kevrekidis & Rowley (2015), J. Nonlinear Sci. 25 (EDMD).
    """

    gram: Any
    cross: Any
    target_gram: Any
    count: Any
    observed: str = static(default="")

    @classmethod
    def empty(cls, p: int, q: int, dtype: Any = jnp.float32) -> "Gram":
        """The statistic of no samples, the unit of `merge`."""
        z, dtype = jnp.zeros, as_dtype("dtype", dtype)
        p, q = as_whole("p", p, 0), as_whole("q", q, 0)
        with precise_as(dtype):
            return cls(z((p, p), dtype), z((p, q), dtype), z((q, q), dtype), z((), dtype))

    @classmethod
    def _of_rows(cls, rows_x: Array, rows_y: Array, count: Array) -> "Gram":
        gram = matmul(rows_x.T, rows_x)
        if rows_y is rows_x:
            return cls(gram, gram, gram, count)
        return cls(gram, matmul(rows_x.T, rows_y), matmul(rows_y.T, rows_y), count)

    @property
    def _stacked(self) -> Array:
        return self.cross

    def update(self, psi_x: Array, psi_y: Array, weights: Array | None = None) -> "Gram":
        """The statistic with one more batch merged in."""
        psi_x, psi_y, weights = _checked(psi_x, psi_y, weights)
        with precise(self, psi_x, psi_y):
            return self.merge(self._of_rows(*weighted(psi_x, psi_y, weights, self.dtype)))

    @property
    def sizes(self) -> tuple[int, int]:
        """`(p, q)`: how many observables before and after."""
        return self.cross.shape[-2], self.cross.shape[-1]

    def merge(self, other: "Gram") -> "Gram":
        """The statistic of both sets of samples together."""
        _check_mergeable(self, other)
        observed = _narrower(self, other)
        other = dataclasses.replace(other, observed=self.observed)
        with precise(self, other):
            merged = jax.tree.map(lambda a, b: a + b, self, other)
        return dataclasses.replace(merged, observed=observed)

    def scale(self, factor: Any) -> "Gram":
        """The statistic with all sample weights multiplied by a factor (`count` stays)."""
        check_number("factor", factor)
        with precise(self):
            f = as_numbers("factor", factor).astype(self.dtype)
            moments = f * self.gram, f * self.cross, f * self.target_gram
            return Gram(*moments, self.count, self.observed)

    def select(
        self, indices: Int[Array, " s"] | None = None, targets: Int[Array, " t"] | None = None
    ) -> "Gram":
        """The statistic of a smaller dictionary, without another pass over the data.

        Args:
            indices: which observables before to keep, in this order; None keeps all.
            targets: which observables after to keep; None keeps all.
        """
        p, q = self.sizes
        rows, cols = _indices(indices, p), _indices(targets, q)
        with precise(self):
            gram = jnp.take(jnp.take(self.gram, rows, -2), rows, -1)
            cross = jnp.take(jnp.take(self.cross, rows, -2), cols, -1)
            target = jnp.take(jnp.take(self.target_gram, cols, -2), cols, -1)
            return Gram(gram, cross, target, self.count, self.observed)

    def to_gram(self) -> "Gram":
        """Itself; there so that both kinds of statistics answer alike."""
        return self

    def of_targets(self, p: int) -> "Gram":
        """Regress the targets after column `p` on the `p` targets before it."""
        t = self.target_gram
        with precise(self):
            return Gram(t[:p, :p], t[:p, p:], t[p:, p:], self.count, self.observed)


@pytree
class RFactor(_Moments):
    """The R factor of the lifted snapshots side by side: `[Ψx Ψy] = Q R`.

    `RᵀR` holds the same second moments as `Gram`, but they are never formed, so the condition
    number is not squared: the solution is good to `cond(Ψ) ε`. `merge` is the QR of two stacked
    R factors; signs of rows may differ between orders of merging, `RᵀR` does not.

    Numerics: `2 (b + p + q) (p + q)²` operations for a batch of b samples.

    Attributes:
        r: `(p + q, p + q)`, upper triangular.
        count: `()`, samples of non-zero weight.
        p: number of observables before (static).
        observed: as for `Gram` (static).
    """

    r: Any
    count: Any
    p: int = static()
    observed: str = static(default="")

    @classmethod
    def empty(cls, p: int, q: int, dtype: Any = jnp.float32) -> "RFactor":
        """The statistic of no samples, the unit of `merge`."""
        p, q, dtype = as_whole("p", p, 0), as_whole("q", q, 0), as_dtype("dtype", dtype)
        with precise_as(dtype):
            return cls(jnp.zeros((p + q, p + q), dtype), jnp.zeros((), dtype), p)

    @classmethod
    def _of_rows(cls, rows_x: Array, rows_y: Array, count: Array) -> "RFactor":
        rows = jnp.concatenate([rows_x, rows_y], axis=1)
        return cls(_square(qr_r(rows), rows.shape[1]), count, rows_x.shape[1])

    @property
    def _stacked(self) -> Array:
        return self.r

    def update(self, psi_x: Array, psi_y: Array, weights: Array | None = None) -> "RFactor":
        """The statistic with one more batch merged in: one QR of the factor over the new rows."""
        psi_x, psi_y, weights = _checked(psi_x, psi_y, weights)
        with precise(self, psi_x, psi_y):
            rows_x, rows_y, count = weighted(psi_x, psi_y, weights, self.dtype)
            rows = jnp.concatenate([rows_x, rows_y], axis=1)
            r = qr_r(jnp.concatenate([self.r, rows]))
            return dataclasses.replace(self, r=r, count=self.count + count)

    @property
    def sizes(self) -> tuple[int, int]:
        """`(p, q)`: how many observables before and after."""
        return self.p, self.r.shape[-1] - self.p

    def merge(self, other: "RFactor") -> "RFactor":
        """The statistic of both sets of samples together."""
        _check_mergeable(self, other)
        with precise(self, other):
            r = qr_r(jnp.concatenate([self.r, other.r], axis=-2))
            count = self.count + other.count
        return RFactor(r, count, self.p, _narrower(self, other))

    def scale(self, factor: Any) -> "RFactor":
        """The statistic with all sample weights multiplied by a factor (`count` stays)."""
        check_number("factor", factor)
        with precise(self):
            root = jnp.sqrt(as_numbers("factor", factor).astype(self.dtype))
            return dataclasses.replace(self, r=root * self.r)

    def select(
        self, indices: Int[Array, " s"] | None = None, targets: Int[Array, " t"] | None = None
    ) -> "RFactor":
        """The statistic of a smaller dictionary; arguments as for `Gram.select`."""
        p, q = self.sizes
        rows, cols = _indices(indices, p), _indices(targets, q)
        keep = jnp.concatenate([rows, p + cols])
        with precise(self):
            r = qr_r(jnp.take(self.r, keep, axis=-1))
            r = _square(r, keep.shape[0])
            return RFactor(r, self.count, rows.shape[0], self.observed)

    def to_gram(self) -> Gram:
        """The products `RᵀR`, for what needs second moments only."""
        p = self.p
        with precise(self):
            moments = matmul(jnp.swapaxes(self.r, -1, -2), self.r)
            blocks = moments[..., :p, :p], moments[..., :p, p:], moments[..., p:, p:]
            return Gram(*blocks, self.count, self.observed)

    def of_targets(self, p: int) -> "RFactor":
        """Regress the targets after column `p` on the `p` targets before it."""
        with precise(self):
            columns = self.r[:, self.p :]
            r = _square(qr_r(columns), columns.shape[1])
            return RFactor(r, self.count, p, self.observed)


Statistics: TypeAlias = Gram | RFactor
KINDS: dict[str, type] = {"gram": Gram, "rfactor": RFactor}


def _checked(psi_x: Any, psi_y: Any, weights: Any) -> tuple[Any, Any, Any]:
    """A user's batch: floating, of as many rows each; identity is kept."""
    same = psi_y is psi_x
    psi_x = read_numbers("psi_x", psi_x)
    psi_y = psi_x if same else read_numbers("psi_y", psi_y)
    if psi_x.ndim != 2 or psi_y.ndim != 2 or psi_x.shape[0] != psi_y.shape[0]:
        raise expected(
            "psi_x (n, p) and psi_y (n, q) with the same n",
            f"shapes {psi_x.shape} and {psi_y.shape}",
            "evaluating both dictionaries on the same samples",
        )
    return psi_x, psi_y, None if weights is None else read_weights(weights, psi_x)


def _square(r: Array, size: int) -> Array:
    """Fewer rows than columns (a batch smaller than the dictionary): zero rows below."""
    return jnp.pad(r, [(0, 0)] * (r.ndim - 2) + [(0, size - r.shape[-2]), (0, 0)])


def _indices(indices: Any, size: int) -> Array:
    if indices is None:
        return jnp.arange(size)
    chosen = as_integers("indices", indices)
    if chosen.ndim != 1:
        raise expected("a vector of integer indices", f"shape {chosen.shape}")
    if not is_tracing(chosen) and chosen.size:
        known = np.asarray(chosen)
        if known.min() < -size or known.max() >= size:
            raise expected(f"indices below {size}", f"{known.min()} to {known.max()}")
    return jnp.where(chosen < 0, chosen + size, chosen)
