"""Sufficient statistics of a least-squares problem, as monoids: Gram matrices and R factors."""

import dataclasses
import functools
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


def _weighted(
    psi_x: Array, psi_y: Array | None, weights: Array | None, dtype: Any
) -> tuple[Array, Array, Array]:
    """Rows times the root of their weight, in the dtype of the accumulation, and the sample count.

    Rows of weight zero are replaced, not multiplied: padding and samples the user has switched off
    stay out even where an observable overflows.
    """
    same = psi_y is None
    psi_x = psi_x.astype(dtype)
    psi_y = psi_x if psi_y is None else psi_y.astype(dtype)
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


@functools.partial(jax.jit, static_argnames=("kind", "dtype"))
def _of_batch(psi_x: Array, psi_y: Any, weights: Any, *, kind: Any, dtype: Any) -> Any:
    return kind._of_rows(*_weighted(psi_x, psi_y, weights, dtype))


class _Moments:
    """What both kinds of statistics do alike; each says how rows, sums and parts are made."""

    count: Any
    observed: Any
    _of_rows: Any
    _sum: Any
    _scaled: Any
    _part: Any
    _stacked: Any  # the array whose leading axis, if it has three, is that of folds

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
            dtype = psi_x.dtype if psi_y is None else promoted(psi_x.dtype, psi_y.dtype)
            return _of_batch(psi_x, psi_y, weights, kind=cls, dtype=working_dtype(dtype))

    def update(self, psi_x: Array, psi_y: Array, weights: Array | None = None) -> Self:
        """The statistic with one more batch merged in."""
        psi_x, psi_y, weights = _checked(psi_x, psi_y, weights)
        with precise(self, psi_x, psi_y):
            return self._and_batch(psi_x, psi_y, weights)

    def merge(self, other: Self) -> Self:
        """The statistic of both sets of samples together."""
        check_statistics(self)
        check_statistics(other)
        if type(self) is not type(other) or self.sizes != other.sizes:
            raise expected(
                f"statistics like {type(self).__name__} of sizes (p, q) = {self.sizes}",
                f"{type(other).__name__} of sizes {other.sizes}",
                "accumulating both with the same dictionaries",
            )
        # Of two precisions in which observables came, the lesser.
        names = [s.observed for s in (self, other) if s.observed]
        observed = max(names, key=lambda name: jnp.finfo(name).eps, default="")
        with precise(self, other):
            merged: Any = self._sum(other)
        return dataclasses.replace(merged, observed=observed)

    def scale(self, factor: Any) -> Self:
        """The statistic with all sample weights multiplied by a factor (`count` stays)."""
        check_number("factor", factor)
        with precise(self):
            return self._scaled(as_numbers("factor", factor).astype(self.dtype))

    def select(
        self,
        indices: Int[Array | np.ndarray, " s"] | None = None,
        targets: Int[Array | np.ndarray, " t"] | None = None,
    ) -> Self:
        """The statistic of a smaller dictionary, without another pass over the data.

        Args:
            indices: which observables before to keep, in this order; None keeps all.
            targets: which observables after to keep; None keeps all.
        """
        p, q = self.sizes
        with precise(self):
            return self._part(_indices(indices, p), _indices(targets, q))

    @jax.jit
    def _and_batch(self, psi_x: Array, psi_y: Any, weights: Any) -> Self:
        return self._sum(self._of_rows(*_weighted(psi_x, psi_y, weights, self.dtype)))

    @property
    def sizes(self) -> tuple[int, int]:
        """`(p, q)`: how many observables before and after."""
        return self._stacked.shape[-2], self._stacked.shape[-1]

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
        p, q, dtype = as_whole("p", p, 0), as_whole("q", q, 0), as_dtype("dtype", dtype)
        with precise_as(dtype):
            z = jnp.zeros
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

    @jax.jit
    def _sum(self, other: "Gram") -> "Gram":
        other = dataclasses.replace(other, observed=self.observed)
        return jax.tree.map(lambda a, b: a + b, self, other)

    def _scaled(self, factor: Array) -> "Gram":
        moments = factor * self.gram, factor * self.cross, factor * self.target_gram
        return Gram(*moments, self.count, self.observed)

    @jax.jit
    def _part(self, rows: Array, cols: Array) -> "Gram":
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

    @jax.jit
    def _and_batch(self, psi_x: Array, psi_y: Any, weights: Any) -> "RFactor":
        # One QR of the factor over the new rows, which need none of their own.
        rows_x, rows_y, count = _weighted(psi_x, psi_y, weights, self.dtype)
        rows = jnp.concatenate([rows_x, rows_y], axis=1)
        r = qr_r(jnp.concatenate([self.r, rows]))
        return dataclasses.replace(self, r=r, count=self.count + count)

    @property
    def sizes(self) -> tuple[int, int]:
        """`(p, q)`: how many observables before and after."""
        return self.p, self.r.shape[-1] - self.p

    @jax.jit
    def _sum(self, other: "RFactor") -> "RFactor":
        r = qr_r(jnp.concatenate([self.r, other.r], axis=-2))
        return RFactor(r, self.count + other.count, self.p)

    def _scaled(self, factor: Array) -> "RFactor":
        return dataclasses.replace(self, r=jnp.sqrt(factor) * self.r)

    @jax.jit
    def _part(self, rows: Array, cols: Array) -> "RFactor":
        keep = jnp.concatenate([rows, self.p + cols])
        r = _square(qr_r(jnp.take(self.r, keep, axis=-1)), keep.shape[0])
        return RFactor(r, self.count, rows.shape[0], self.observed)

    def to_gram(self) -> Gram:
        """The products `RᵀR`, for what needs second moments only."""
        with precise(self):
            return self._squared()

    @jax.jit
    def _squared(self) -> Gram:
        p, moments = self.p, matmul(jnp.swapaxes(self.r, -1, -2), self.r)
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
    """A user's batch: floating, of as many rows each; None where both sides are the same."""
    same = psi_y is psi_x
    psi_x = read_numbers("psi_x", psi_x)
    psi_y = psi_x if same else read_numbers("psi_y", psi_y)
    if psi_x.ndim != 2 or psi_y.ndim != 2 or psi_x.shape[0] != psi_y.shape[0]:
        raise expected(
            "psi_x (n, p) and psi_y (n, q) with the same n",
            f"shapes {psi_x.shape} and {psi_y.shape}",
            "evaluating both dictionaries on the same samples",
        )
    psi_y = None if same else psi_y
    return psi_x, psi_y, None if weights is None else read_weights(weights, psi_x)


def _square(r: Array, size: int) -> Array:
    """Fewer rows than columns (a batch smaller than the dictionary): zero rows below."""
    return jnp.pad(r, [(0, 0)] * (r.ndim - 2) + [(0, size - r.shape[-2]), (0, 0)])


def _indices(indices: Any, size: int) -> Any:
    if indices is None:
        return np.arange(size)
    chosen = as_integers("indices", indices)
    if chosen.ndim != 1:
        raise expected("a vector of integer indices", f"shape {chosen.shape}")
    if is_tracing(chosen):
        return jnp.where(chosen < 0, chosen + size, chosen)
    known = np.asarray(chosen)
    if known.size and (known.min() < -size or known.max() >= size):
        raise expected(f"indices below {size}", f"{known.min()} to {known.max()}")
    return np.where(known < 0, known + size, known)


@jax.jit
def merge_stacked(stacked: Any) -> Any:
    """Merge statistics stacked along the leading axis, pairwise, as a tree.

    The depth is logarithmic and each level is one batched merge, so it serves for folds and for
    what an `all_gather` over devices brings together.
    """
    if isinstance(stacked, Gram):
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), stacked)
    size = stacked.r.shape[0]
    while size > 1:
        half = size // 2
        lower = jax.tree.map(lambda a, h=half: a[:h], stacked)
        upper = jax.tree.map(lambda a, h=half: a[h : 2 * h], stacked)
        merged = jax.vmap(lambda a, b: a.merge(b))(lower, upper)
        rest = jax.tree.map(lambda a, h=half: a[2 * h :], stacked)
        stacked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), merged, rest)
        size = size - half
    return jax.tree.map(lambda a: a[0], stacked)


def _check_stacked(stacked: Any) -> None:
    check_statistics(stacked)
    if stacked.folds is None:
        got = type(stacked).__name__
        raise expected("statistics stacked by fold", got, "edmd.accumulate(..., folds=5)")


def total(stacked: Statistics) -> Statistics:
    """All folds of stacked statistics merged into one."""
    _check_stacked(stacked)
    with precise(stacked):
        return merge_stacked(stacked)


def leave_one_out(stacked: Statistics) -> Statistics:
    """For each fold the statistics of all the others, stacked alike.

    Gram matrices are subtracted from their sum. R factors can't be taken away stably, so the
    others are merged: prefixes with suffixes, about three merges a fold.
    """
    _check_stacked(stacked)
    with precise(stacked):
        return _left_out(stacked)


@jax.jit
def _left_out(stacked: Statistics) -> Statistics:
    if isinstance(stacked, Gram):
        return jax.tree.map(lambda a: jnp.sum(a, axis=0)[None] - a, stacked)
    unit = jax.tree.map(lambda a: jnp.zeros_like(a[0]), stacked)

    def step(carry: RFactor, fold: RFactor) -> tuple[RFactor, RFactor]:
        return carry.merge(fold), carry

    # Exclusive prefixes and suffixes: what lies before and what lies behind each fold.
    _, before = jax.lax.scan(step, unit, stacked, length=stacked.folds)
    _, after = jax.lax.scan(step, unit, stacked, length=stacked.folds, reverse=True)
    return jax.vmap(lambda a, b: a.merge(b))(before, after)
