"""Solvers: settings that turn a factorisation into a Koopman matrix."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import (
    RESULTS,
    SUCCESS,
    as_dtype,
    as_whole,
    check,
    check_metric,
    check_number,
    expected,
    held_leaves,
    is_tracing,
    matmul,
    precise,
    pytree,
)
from koopjax.edmd._factor import Spectral, first
from koopjax.edmd._factorisation import Factorisation, Info, Outcome, Solution, factorised
from koopjax.edmd._smooth import root_metric
from koopjax.edmd._statistics import Gram, Statistics, check_statistics, check_whole


class Solver:
    """What `solve`, `fit` and `CrossValidated` ask of a solver; the base of one's own.

    A solver is a pytree (`jax.tree_util.register_dataclass`) whose settings are its leaves. It has
    to say `compute` and no more; the other methods have answers that suit most.

    Attributes:
        folds: how many folds of the samples it wants apart; None for all together.
        parameters: the settings that a grid may range over, "alpha" (a ridge) and "rank"; the last
            is the solver's own.
        alpha, relative: the ridge, absolute and in units of `tr(G) / p`; zero without one.
    """

    folds: int | None = None
    parameters: ClassVar[tuple[str, ...]] = ()
    alpha: Any = 0.0
    relative: Any = 0.0

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise `ValueError` if settings that are known can't be met with `(p, q)` observables."""

    def compute(self, factorisation: Factorisation) -> Outcome:
        """The solution from finite statistics, see `Factorisation.outcome`; traceable."""
        raise NotImplementedError(f"{type(self).__name__}.compute")

    def readout(self, info: Info) -> "Solver":
        """What regresses the state on the lifted state: the same regularisation, at full rank."""
        del info
        return self

    def largest(self, sizes: tuple[int, int]) -> int:
        """The largest rank of a solution."""
        return min(sizes)

    def at(self, alpha: Any, rank: Any) -> "Solver":
        """With the settings of a grid point, as far as a grid may range over them."""
        point = {"alpha": alpha, "rank": rank}
        changes = {name: point[name] for name in self.parameters}
        # The ridges of a grid are absolute.
        if "alpha" in changes and "relative" in {f.name for f in dataclasses.fields(self)}:  # pyright: ignore
            changes["relative"] = 0.0
        return dataclasses.replace(self, **changes)  # pyright: ignore

    def held_out(self, train: Factorisation, held: Gram, alphas: Array, ranks: Array) -> Array:
        """Relative squared error on held-out statistics at each grid point, `(alphas, ranks)`."""
        whole = jnp.trace(held.target_gram)

        def score(alpha: Array, rank: Array) -> Array:
            k = self.at(alpha, rank).compute(train).value
            error = whole + jnp.sum(k * (matmul(held.gram, k) - 2 * held.cross))
            return error / jnp.where(whole > 0, whole, 1)

        ranked = lambda alpha: jax.lax.map(lambda rank: score(alpha, rank), ranks)
        return jax.lax.map(ranked, alphas)

    def solve(self, source: Statistics | Factorisation, dtype: Any = None) -> Solution:
        """What `edmd.solve` gives."""
        made = isinstance(source, Factorisation)
        if not made:
            check_whole(source)
        self.validate(source.sizes)
        with precise(source):
            return (_solve if made else _compute)(source, held_leaves(self), dtype=dtype)

    def low_rank(self, statistics: Statistics) -> tuple[Array, Array]:
        """What `edmd.low_rank` gives."""
        raise expected("ReducedRank with a concrete rank, or Ridge", f"{self}")


def check_solver(solver: Any) -> Solver:
    """A solver as it is; `Ridge()` for None."""
    if solver is None:
        return Ridge()
    if not isinstance(solver, Solver):
        raise expected("a solver such as edmd.Ridge(1e-6)", f"{solver!r:.60}")
    if jax.tree_util.all_leaves([solver]):
        got, advice = type(solver).__name__, "jax.tree_util.register_dataclass"
        raise expected("a solver registered as a pytree", f"{got}, which is none", advice)
    return solver


def solved(factorisation: Factorisation, solver: Solver, dtype: Any = None) -> Solution:
    """What a solver finds, judged by the digits of a dtype (None: the statistics'); traceable."""
    return factorisation.judged(solver.compute(factorisation), dtype)


def compute(stats: Statistics, solver: Solver, dtype: Any = None) -> Solution:
    """Factorise, solve and judge; traceable."""
    return solved(factorised(stats), solver, dtype)


_solve = jax.jit(solved, static_argnames="dtype")
_compute = jax.jit(compute, static_argnames="dtype")


def _check_rank(rank: Any, largest: int) -> None:
    if not is_tracing(rank):
        as_whole("rank", rank, 1, largest)


@jax.jit
def _factors(stats: Statistics, solver: "ReducedRank") -> tuple[Array, Array]:
    made = factorised(stats)
    return made.factors(made.penalty(solver.alpha, solver.relative), solver.metric)


@pytree
class Ridge(Solver):
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

    parameters = ("alpha",)
    alpha: Any = 0.0
    relative: Any = 0.0

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise unless the ridge is finite and at least 0."""
        check_number("alpha", self.alpha)
        check_number("relative", self.relative)

    def compute(self, factorisation: Factorisation) -> Outcome:
        """The ridge solution."""
        alpha = factorisation.penalty(self.alpha, self.relative)
        return factorisation.outcome(factorisation.ridge(alpha), alpha)

    def readout(self, info: Info) -> "Ridge":
        """The ridge that was used."""
        return Ridge(info.alpha)

    def held_out(self, train: Factorisation, held: Gram, alphas: Array, ranks: Array) -> Array:
        """All ridges from one factorisation."""
        return _of_filters(train.spectral, held, alphas, ranks)

    def low_rank(self, statistics: Statistics) -> tuple[Array, Array]:
        """All `min(p, q)` ranks."""
        most = min(statistics.sizes)
        return ReducedRank(most, None, self.alpha, self.relative).low_rank(statistics)


@pytree
class TruncatedSVD(Solver):
    """Least squares on the leading singular vectors of Ψ(x): `K = V_r S_r⁻¹ U_rᵀ Ψy`.

    Args:
        rank: how many are kept; a leaf, so that vmap over ranks shares one factorisation. Traced
            ranks beyond the numerical rank keep all there is.

    Reference: Williams, Kevrekidis & Rowley (2015), J. Nonlinear Sci. 25 (EDMD).
    """

    parameters = ("rank",)
    rank: Any

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise unless there are so many singular values."""
        _check_rank(self.rank, self.largest(sizes))

    def compute(self, factorisation: Factorisation) -> Outcome:
        """The truncated solution, judged by the singular values that are there anyway."""
        return factorisation.truncation(self.rank)

    def readout(self, info: Info) -> "TruncatedSVD":
        """On the singular vectors that were used."""
        return TruncatedSVD(info.rank)

    def largest(self, sizes: tuple[int, int]) -> int:
        """As many as there are observables."""
        return sizes[0]

    def held_out(self, train: Factorisation, held: Gram, alphas: Array, ranks: Array) -> Array:
        """All ranks from one factorisation."""
        return _of_filters(train.spectral, held, alphas, ranks)


@pytree
class ReducedRank(Solver):
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

    parameters = ("alpha", "rank")
    rank: Any
    metric: Any = None
    alpha: Any = 0.0
    relative: Any = 0.0

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise unless ridge, rank and metric can be met."""
        check_number("alpha", self.alpha)
        check_number("relative", self.relative)
        _check_rank(self.rank, self.largest(sizes))
        check_metric("metric", self.metric, sizes[1])

    def compute(self, factorisation: Factorisation) -> Outcome:
        """The ridge solution with its prediction cut."""
        base = Ridge(self.alpha, self.relative).compute(factorisation)
        cut = factorisation.reduced(base.alpha, self.rank, self.metric)
        rank, (p, q) = jnp.asarray(self.rank), factorisation.sizes
        return dataclasses.replace(
            base,
            # At full rank there is nothing to cut, and a projection costs small outputs digits.
            value=jnp.where(rank < min(p, q), cut, base.value),
            rank=jnp.minimum(jnp.minimum(base.rank, q), rank.astype(jnp.int32)),
        )

    def readout(self, info: Info) -> Ridge:
        """The ridge that was used, at full rank."""
        return Ridge(info.alpha)

    def held_out(self, train: Factorisation, held: Gram, alphas: Array, ranks: Array) -> Array:
        """All ranks of a ridge from one SVD."""
        parts = train.spectral
        roots = root_metric(self.metric, parts.c.dtype)
        keep = parts.s > 0
        measure = (lambda m: m) if roots is None else (lambda m: matmul(m, roots[0]))
        a = matmul(parts.v.T, matmul(held.gram, parts.v))
        c, b = measure(parts.c), measure(matmul(parts.v.T, held.cross))
        target = held.target_gram
        whole = jnp.trace(target if roots is None else matmul(matmul(roots[0], target), roots[0]))

        def scores(alpha: Array) -> Array:
            root = jnp.sqrt(jnp.where(keep, parts.s**2 + alpha, 1))
            w = jnp.linalg.svd((parts.s / root)[:, None] * c, full_matrices=False)[2].T
            z = matmul((parts.s / root**2)[:, None] * c, w)
            # The prediction's share along each direction: ranks are partial sums.
            gain = 2 * jnp.sum(matmul(b, w) * z, axis=0) - jnp.sum(z * matmul(a, z), axis=0)
            error = whole - jnp.cumsum(gain)[jnp.minimum(ranks, gain.shape[0]) - 1]
            return error / jnp.where(whole > 0, whole, 1)

        return jax.lax.map(scores, alphas)

    def low_rank(self, statistics: Statistics) -> tuple[Array, Array]:
        """The leading columns and rows of all ranks' factors."""
        if is_tracing(self.rank):
            return super().low_rank(statistics)
        self.validate(statistics.sizes)
        rank = int(self.rank)
        full = held_leaves(dataclasses.replace(self, rank=min(statistics.sizes)))
        with precise(statistics):
            left, right = _factors(statistics, full)
            return left[:, :rank], right[:rank]


def solve(
    statistics: Statistics | Factorisation, solver: Solver | None = None, *, dtype: Any = None
) -> Solution:
    """The Koopman matrix from statistics.

    Args:
        statistics: `Gram` or `RFactor`, stacked by fold for `CrossValidated`; or what `factorise`
            made of them, to solve many times.
        solver: `Ridge` (the default, with no ridge: the solution of least norm), `TruncatedSVD`,
            `ReducedRank`, `CrossValidated`, or a `Solver` of your own.
        dtype: in which the value will be used: ILL_CONDITIONED means that rounding in the
            statistics costs more than half of its digits. None: that of the statistics.

    Returns:
        Solution: in the dtype of the statistics. The result code is an int32 per vmap lane:
        RANK_DEFICIENT, ILL_CONDITIONED, UNDERDETERMINED, NONFINITE_DATA, NONFINITE_SOLUTION, or
        success.

    Numerics:
        One factorisation, `O(p³)`: Cholesky or QR for `Ridge` and `ReducedRank`, eigenvalues or
        SVD for `TruncatedSVD`, with singular values for the diagnosis. Differentiable in the
        statistics and the ridge, by implicit rules that stay finite when Ψ is rank-deficient.

    Raises:
        ValueError: a rank that can't be had, a metric of another shape, statistics stacked by
            fold given to a plain solver or the other way round.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import edmd
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> solve(edmd.Gram.from_batch(x, 3 * x)).value.tolist()
        [[3.0, 0.0], [0.0, 3.0]]
    """
    if not isinstance(statistics, Factorisation):
        check_statistics(statistics)
    dtype = None if dtype is None else as_dtype("dtype", dtype)
    return check_solver(solver).solve(statistics, dtype)


def unwrap(solution: Any, *, allow: tuple[int, ...] = ()) -> Any:
    """The value of a solution, or an error with the advice of its result code.

    Args:
        solution: `Solution`, or `Koopman` (then returned itself); concrete.
        allow: result codes that pass besides success, such as `RANK_DEFICIENT`.

    Raises:
        NumericalError: another code than those.
    """
    if not hasattr(solution, "result"):
        raise expected("an edmd.Solution or a fit", type(solution).__name__, "edmd.solve(...)")
    if not isinstance(allow, tuple | list) or not all(code in RESULTS for code in allow):
        raise expected(f"result codes from {sorted(RESULTS)} as allow", f"{allow!r:.60}")
    check(solution.result, allow=(SUCCESS, *allow))
    return solution.value if isinstance(solution, Solution) else solution


def low_rank(
    statistics: Statistics, solver: Solver
) -> tuple[Float[Array, "p r"], Float[Array, "r q"]]:
    """The solution as two thin factors, `K = left @ right`.

    Args:
        statistics: `Gram` or `RFactor`.
        solver: `ReducedRank`, its rank a concrete number; or `Ridge` for all min(p, q) ranks.

    Returns:
        `left` `(p, r)` and `right` `(r, q)`: ordered by their share of the prediction, so that
        leading columns and rows are the factors of any smaller rank.
    """
    check_statistics(statistics)
    return check_solver(solver).low_rank(statistics)


def _of_filters(parts: Spectral, held: Gram, alphas: Array, ranks: Array) -> Array:
    """Of a ridge or a truncation, `K = V diag(h) c`."""
    a = matmul(parts.v.T, matmul(held.gram, parts.v))
    b = matmul(parts.v.T, held.cross)
    # The error is a quadratic form in h, so a grid point costs p² operations.
    quadratic = a * matmul(parts.c, parts.c.T)
    linear = jnp.sum(b * parts.c, axis=1)
    whole = jnp.trace(held.target_gram)

    def score(alpha: Array, rank: Array) -> Array:
        used = (parts.s > 0) & first(parts.s.shape[0], rank)
        h = jnp.where(used, parts.s / jnp.where(used, parts.s**2 + alpha, 1), 0)
        error = whole - 2 * jnp.dot(h, linear) + jnp.dot(h, matmul(quadratic, h))
        return error / jnp.where(whole > 0, whole, 1)

    return jax.vmap(lambda alpha: jax.vmap(lambda rank: score(alpha, rank))(ranks))(alphas)
