"""A factorisation as a value: made once from statistics, asked for every ridge, rank and target."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_DATA,
    NONFINITE_SOLUTION,
    RANK_DEFICIENT,
    SUCCESS,
    UNDERDETERMINED,
    matmul,
    precise,
    pytree,
    static,
    worst,
)
from koopjax.edmd._factor import (
    column_scale,
    count_of,
    diagnose,
    energy,
    is_finite,
    spectral,
    target_energy,
)
from koopjax.edmd._smooth import decides, leading_vectors, reduced, ridge, root_metric, truncated
from koopjax.edmd._statistics import Gram, Statistics, check_statistics, check_whole


@pytree
class Info:
    """What a solution says about itself.

    Attributes:
        rank: numerical rank of Ψ(x), as far as the solver keeps it; of K itself for `ReducedRank`.
        condition: condition number of Ψ(x) over its numerical rank (the root of the Gram
            matrix's).
        rounding: estimated relative error of the matrix by rounding: `κ² ε` from a Gram matrix,
            `κ ε` from an R factor, with κ the condition that the solve meets (columns scaled, ridge
            counted in, truncated directions left out).
        cancellation: how much larger the terms of `Ψ(x) K` are than their sum,
            `(Σ_i ‖ψ_i‖² ‖K_i‖²)^{1/2} / ‖Ψy‖`: digits that a prediction loses.
        residual: `‖Ψx K − Ψy‖ / ‖Ψy‖`, from the statistics alone.
        alpha: the ridge that was used, absolute.
        count: samples.
        scores: mean held-out error of each grid point after a cross-validation, else None.
        statistics: "gram" or "rfactor" (static).
        dtype: of their accumulation (static).
        reason: why those (static).
    """

    rank: Any
    condition: Any
    rounding: Any
    cancellation: Any
    residual: Any
    alpha: Any
    count: Any
    scores: Any = None
    statistics: str = static(default="")
    dtype: str = static(default="")
    reason: str = static(default="given")


@pytree
class Solution:
    """A value, a result code, and what the solver found out on the way.

    Attributes:
        value: `(p, q)` Koopman matrix.
        result: int32 result code; `koopjax._core.message` tells what to do about it, `unwrap`
            raises.
        info: `Info`.
    """

    value: Any
    result: Any
    info: Any


@pytree
class Outcome:
    """What a solver hands over: the matrix and what its result code is judged by.

    Attributes:
        value: `(p, q)`.
        rank: numerical rank of Ψx that the solution uses; of K, where that one is reduced.
        needed: numerical rank of Ψx that the solver relies on.
        found: how much of `needed` there is.
        condition: of Ψx, over its numerical rank.
        amplification: condition number that rounding errors of the statistics meet.
        alpha: the ridge, absolute.
    """

    value: Any
    rank: Any
    needed: Any
    found: Any
    condition: Any
    amplification: Any
    alpha: Any


@pytree
class Factorisation:
    """Statistics with their singular values and their diagnosis, from which all solutions come.

    Made by `factorise`, and given to `solve` in the place of statistics. Its methods are what
    solvers are written with, and run inside `solve`.

    Attributes:
        statistics: `Gram` or `RFactor` of all samples, with zeros where they were not finite.
        finite: whether they were.
        spectral: `Ψx = U diag(s) Vᵀ` as far as the statistics hold it: `v` `(p, p)`, `s` `(p,)`
            falling, and `c = Uᵀ Ψy` `(p, q)`, both zero beyond the numerical rank. Constants to
            differentiation.
        diagnosis: numerical rank and condition of Ψx. Constant to differentiation.
    """

    statistics: Any
    finite: Any
    spectral: Any
    diagnosis: Any

    @property
    def sizes(self) -> tuple[int, int]:
        """`(p, q)`: how many observables before and after."""
        return self.statistics.sizes

    def targets(self, indices: Any) -> "Factorisation":
        """The same for some of the targets; nothing is factorised again."""
        with precise(self):
            some = self.statistics.select(None, indices)
            parts = dataclasses.replace(self.spectral, c=jnp.take(self.spectral.c, indices, axis=1))
        return dataclasses.replace(self, statistics=some, spectral=parts)

    def penalty(self, alpha: Any, relative: Any = 0.0) -> Array:
        """The absolute ridge: `α + relative · tr(G) / p`."""
        stats = self.statistics
        mean = energy(stats) / stats.sizes[0]
        return jnp.asarray(alpha, stats.dtype) + jnp.asarray(relative, stats.dtype) * mean

    def ridge(self, alpha: Any) -> Float[Array, "p q"]:
        """`argmin ‖Ψx K − Ψy‖² + α ‖K‖²`, the one of least norm where it is not unique."""
        return ridge(self.statistics, alpha)

    def truncated(self, rank: Any) -> Float[Array, "p q"]:
        """`V_r S_r⁻¹ U_rᵀ Ψy`: least squares on the leading singular vectors of Ψx."""
        return truncated(self.statistics, self.spectral, rank)

    def reduced(self, alpha: Any, rank: Any, metric: Any = None) -> Float[Array, "p q"]:
        """The ridge solution with its prediction cut to a rank, in a metric of the targets."""
        roots = root_metric(metric, self.statistics.dtype)
        return reduced(self.statistics, alpha, rank, roots)

    def factors(
        self, alpha: Any, metric: Any = None
    ) -> tuple[Float[Array, "p k"], Float[Array, "k q"]]:
        """Two thin factors of the ridge solution, of which the leading r give `reduced`.

        With `k = min(p, q)`; ordered by their share of the prediction in the metric.
        """
        roots = root_metric(metric, self.statistics.dtype)
        k = ridge(self.statistics, alpha)
        w = leading_vectors(self.statistics, alpha, min(self.sizes), roots)
        if roots is None:
            return matmul(k, w), w.T
        return matmul(matmul(k, roots[0]), w), matmul(w.T, roots[1])

    def outcome(self, value: Array, alpha: Any = 0.0) -> Outcome:
        """What a solution that uses all of Ψx, with so large a ridge, is judged by.

        A ridge that decides needs no rank, and no more samples than there are.
        """
        stats, found = self.statistics, self.diagnosis
        count = jnp.minimum(found.rank, stats.count.astype(jnp.int32))
        return Outcome(
            value=value,
            rank=found.rank,
            needed=jnp.where(decides(stats, found.largest, alpha), count, stats.sizes[0]),
            found=found.rank,
            condition=found.condition,
            amplification=self._amplification(alpha),
            alpha=jnp.asarray(alpha, stats.dtype),
        )

    def truncation(self, rank: Any) -> Outcome:
        """`truncated` with what it is judged by."""
        s, rank = self.spectral.s, jnp.asarray(rank).astype(jnp.int32)
        numerical = count_of(s > 0)
        used = jnp.minimum(numerical, rank)

        def ratio(count: Array) -> Array:
            last = s[jnp.maximum(count - 1, 0)]
            return jnp.where(count > 0, s[0] / jnp.where(last > 0, last, 1), 1)

        return Outcome(
            value=self.truncated(rank),
            rank=used,
            needed=jnp.minimum(rank, self.sizes[0]),
            found=numerical,
            condition=ratio(numerical),
            amplification=ratio(used),
            alpha=jnp.zeros((), self.statistics.dtype),
        )

    def _amplification(self, alpha: Any) -> Array:
        """Condition number of the ridge problem: the smaller of two bounds."""
        stats, found = self.statistics, self.diagnosis
        high = found.largest**2
        # Where columns depend on each other and the ridge decides, it is all there is at the low
        # end.
        alone = found.tied & decides(stats, found.largest, alpha)
        low = jnp.where(alone, 0, (found.largest / found.condition) ** 2)
        total = low + alpha
        raw = jnp.where(total > 0, jnp.sqrt((high + alpha) / jnp.where(total > 0, total, 1)), 1)
        return jnp.where(alone, raw, jnp.minimum(raw, found.scaled))

    def judged(self, outcome: Outcome, dtype: Any = None) -> Solution:
        """An outcome with its result code, by the digits of a dtype (None: the statistics')."""
        stats = self.statistics
        fixed = jax.lax.stop_gradient
        # Rounding meets the condition squared where products were formed.
        power = 2 if isinstance(stats, Gram) else 1
        rounding = fixed(outcome.amplification) ** power * jnp.finfo(stats.dtype).eps
        lost = fixed(_cancellation(stats, outcome.value))
        # Half of the digits lost is where a result stops being what its dtype promises: in the
        # solve, or later in every prediction, where large terms cancel.
        eps = float(jnp.finfo(stats.dtype if dtype is None else dtype).eps)
        flag = lambda condition, code: jnp.where(condition, code, SUCCESS)
        code = worst(
            flag(outcome.found < outcome.needed, RANK_DEFICIENT),
            flag((rounding > eps**0.5) | (eps * lost > eps**0.5), ILL_CONDITIONED),
            flag(stats.count < jnp.asarray(outcome.needed).astype(stats.dtype), UNDERDETERMINED),
            flag(~jnp.isfinite(outcome.value).all(), NONFINITE_SOLUTION),
        )
        info = Info(
            rank=fixed(outcome.rank).astype(jnp.int32),
            condition=fixed(outcome.condition),
            rounding=rounding,
            cancellation=lost,
            residual=_relative_residual(stats, outcome.value),
            alpha=outcome.alpha,
            count=stats.count,
            statistics="gram" if isinstance(stats, Gram) else "rfactor",
            dtype=jnp.dtype(stats.dtype).name,
        )
        # Of two codes for data that are not finite the one that names the cause stays.
        code = jnp.where(self.finite, code, NONFINITE_DATA)
        return Solution(jnp.where(self.finite, outcome.value, jnp.nan), code, info)


def factorised(stats: Statistics) -> Factorisation:
    """`factorise` without its checks; traceable. What goes unused, the compiler leaves out."""
    finite = is_finite(stats)
    # Zeros in place of NaN keep the factorisations clean; a solution is made NaN again.
    clean = jax.tree.map(lambda a: jnp.where(finite, a, 0), stats)
    fixed = jax.lax.stop_gradient(clean)
    clean = dataclasses.replace(clean, count=stats.count)
    return Factorisation(clean, finite, spectral(fixed), diagnose(fixed))


_factorise = jax.jit(factorised)


def factorise(statistics: Statistics) -> Factorisation:
    """The factorisation of statistics, once, for any number of solvers, ridges, ranks and targets.

    Args:
        statistics: `Gram` or `RFactor` of all samples together (`edmd.total` of stacked ones).

    Numerics: eigenvalues or SVD, `O(p³)`, with a diagnosis of as much; a ridge costs another
        triangular factor, a rank a product. For one solution `edmd.solve` does with less.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import edmd
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> made = edmd.factorise(edmd.Gram.from_batch(x, 3 * x))
        >>> [edmd.solve(made, edmd.TruncatedSVD(rank)).value.tolist() for rank in (1, 2)]
        [[[0.0, 0.0], [0.0, 3.0]], [[3.0, 0.0], [0.0, 3.0]]]
    """
    check_statistics(statistics)
    check_whole(statistics)
    with precise(statistics):
        return _factorise(statistics)


def _relative_residual(stats: Statistics, k: Array) -> Array:
    """`‖Ψx K − Ψy‖ / ‖Ψy‖`, differentiable; zero where there is nothing to predict."""
    if isinstance(stats, Gram):
        fitted = jnp.sum(k * (matmul(stats.gram, k) - 2 * stats.cross))
        squared = target_energy(stats) + fitted
    else:
        left = matmul(stats.r[:, : stats.p], k)
        squared = jnp.sum((left - stats.r[:, stats.p :]) ** 2)
    whole = target_energy(stats)
    positive = (squared > 0) & (whole > 0)
    ratio = jnp.where(positive, squared, 1) / jnp.where(positive, whole, 1)
    return jnp.where(positive, jnp.sqrt(ratio), 0)


def _cancellation(stats: Statistics, k: Array) -> Array:
    """Size of the terms of a prediction relative to the target."""
    terms = jnp.sum((k / column_scale(stats)[:, None]) ** 2)
    whole = target_energy(stats)
    return jnp.sqrt(terms / jnp.where(whole > 0, whole, 1))
