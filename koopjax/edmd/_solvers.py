"""Solvers: settings that turn statistics into a Koopman matrix."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import (
    as_whole,
    check_metric,
    check_number,
    is_tracing,
    pytree,
)
from koopjax.edmd._factor import Diagnosis, count_of, diagnose, energy
from koopjax.edmd._smooth import decides, reduced, ridge, root_metric, truncated
from koopjax.edmd._statistics import Statistics


@pytree
class Outcome:
    """What a solver hands to `solve`: the matrix and what its result code is judged by.

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


def check_alpha(alpha: Any, relative: Any) -> None:
    check_number("alpha", alpha)
    check_number("relative", relative)


def _check_rank(rank: Any, largest: int) -> None:
    if not is_tracing(rank):
        as_whole("rank", rank, 1, largest)


def penalty(stats: Statistics, alpha: Any, relative: Any) -> Array:
    """The absolute ridge: `α + relative · tr(G) / p`."""
    mean = energy(stats) / stats.sizes[0]
    return jnp.asarray(alpha, stats.dtype) + jnp.asarray(relative, stats.dtype) * mean


def regularised(stats: Statistics, diagnosis: Diagnosis, alpha: Any) -> Array:
    """Condition number of the ridge problem: the smaller of two bounds on the amplification."""
    high = diagnosis.largest**2
    # Where columns depend on each other and the ridge decides, it is all there is at the low end.
    alone = diagnosis.tied & decides(stats, diagnosis.largest, alpha)
    low = jnp.where(alone, 0, (diagnosis.largest / diagnosis.condition) ** 2)
    total = low + alpha
    raw = jnp.where(total > 0, jnp.sqrt((high + alpha) / jnp.where(total > 0, total, 1)), 1)
    return jnp.where(alone, raw, jnp.minimum(raw, diagnosis.scaled))


@pytree
class Ridge:
    """Least squares with a ridge: `min ‖Ψx K − Ψy‖² + α ‖K‖²`.

    Solved by a triangular factor with columns scaled to unit norm; where that one is singular to
    rounding, by the pseudo-inverse on the numerical rank (so that `Ridge()` gives the solution of
    least norm, with a code that says so). A ridge above rounding makes the solution unique: a low
    rank (which `info.rank` tells) and few samples are no failure then. Derivatives are implicit and
    finite on either path.

    Args:
        alpha: absolute ridge, as in scikit-learn; at least 0.
        relative: ridge in units of the mean squared column norm `tr(G) / p`, added to `alpha`.

    Example:
        >>> Ridge(1e-3).alpha
        0.001
    """

    alpha: Any = 0.0
    relative: Any = 0.0

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise `ValueError` if settings that are known can't be met."""
        check_alpha(self.alpha, self.relative)

    def compute(self, stats: Statistics, diagnosis: Diagnosis | None = None) -> Outcome:
        """The solution from finite statistics; `diagnosis` where it is there already."""
        alpha = penalty(stats, self.alpha, self.relative)
        value = ridge(stats, alpha)
        if diagnosis is None:
            diagnosis = diagnose(stats)
        # A ridge that decides needs no rank, and no more samples than there are.
        count = jnp.minimum(diagnosis.rank, stats.count.astype(jnp.int32))
        needed = jnp.where(decides(stats, diagnosis.largest, alpha), count, stats.sizes[0])
        return Outcome(
            value=value,
            rank=diagnosis.rank,
            needed=needed,
            found=diagnosis.rank,
            condition=diagnosis.condition,
            amplification=regularised(stats, diagnosis, alpha),
            alpha=alpha,
        )


@pytree
class TruncatedSVD:
    """Least squares on the leading singular vectors of Ψ(x): `K = V_r S_r⁻¹ U_rᵀ Ψy`.

    Args:
        rank: how many are kept; a leaf, so that vmap over ranks shares one factorisation. Traced
            ranks beyond the numerical rank keep all there is.

    Reference: Williams, Kevrekidis & Rowley (2015), J. Nonlinear Sci. 25 (EDMD).
    """

    rank: Any

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise `ValueError` if settings that are known can't be met."""
        _check_rank(self.rank, sizes[0])

    def compute(self, stats: Statistics, diagnosis: Diagnosis | None = None) -> Outcome:
        """The solution from finite statistics."""
        del diagnosis  # the singular values that are computed anyway say more
        value, s = truncated(stats, self.rank)
        numerical = count_of(s > 0)
        used = jnp.minimum(numerical, jnp.asarray(self.rank).astype(jnp.int32))
        ratio = lambda count: jnp.where(count > 0, s[0] / _at(s, count), 1)
        return Outcome(
            value=value,
            rank=used,
            needed=jnp.minimum(jnp.asarray(self.rank).astype(jnp.int32), stats.sizes[0]),
            found=numerical,
            condition=ratio(numerical),
            amplification=ratio(used),
            alpha=jnp.zeros((), stats.dtype),
        )


def _at(s: Array, count: Array) -> Array:
    value = s[jnp.maximum(count - 1, 0)]
    return jnp.where(value > 0, value, 1)


@pytree
class ReducedRank:
    """Reduced-rank regression: the best K of a rank for the prediction Ψ(x) K, in a metric.

    `min ‖(Ψx K − Ψy) M^{1/2}‖² + α ‖K M^{1/2}‖²` over all K of rank r. The optimum is the ridge
    solution with its prediction `Ψx K M^{1/2}` cut to r singular values, and comes from the
    statistics alone: `K_r = K M^{1/2} W_r W_rᵀ M^{-1/2}` with W the right singular vectors.

    Args:
        rank: a leaf; vmap over ranks shares one factorisation.
        metric: `(q, q)`, symmetric and positive semi-definite: what an error in the targets
            costs. None is the identity. Directions that a singular metric ignores are used last.
        alpha: ridge, as in `Ridge`.
        relative: ridge relative to the mean squared column norm, as in `Ridge`.

    Reference: Izenman (1975), J. Multivariate Anal. 5 (reduced-rank regression).
    """

    rank: Any
    metric: Any = None
    alpha: Any = 0.0
    relative: Any = 0.0

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise `ValueError` if settings that are known can't be met."""
        check_alpha(self.alpha, self.relative)
        _check_rank(self.rank, min(sizes))
        check_metric("metric", self.metric, sizes[1])

    def compute(self, stats: Statistics, diagnosis: Diagnosis | None = None) -> Outcome:
        """The solution from finite statistics."""
        base = Ridge(self.alpha, self.relative).compute(stats, diagnosis)
        roots = root_metric(self.metric, stats.sizes[1], stats.dtype)
        cut = reduced(stats, base.alpha, self.rank, roots)
        return Outcome(
            # At full rank there is nothing to cut, and a projection costs small outputs digits.
            value=jnp.where(jnp.asarray(self.rank) < min(stats.sizes), cut, base.value),
            rank=jnp.minimum(
                jnp.minimum(base.rank, stats.sizes[1]), jnp.asarray(self.rank).astype(jnp.int32)
            ),
            needed=base.needed,
            found=base.found,
            condition=base.condition,
            amplification=base.amplification,
            alpha=base.alpha,
        )


Solver = Ridge | TruncatedSVD | ReducedRank
