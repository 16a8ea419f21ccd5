"""From statistics and a solver to a solution that says how far it can be trusted."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_DATA,
    NONFINITE_SOLUTION,
    RANK_DEFICIENT,
    RESULTS,
    SUCCESS,
    UNDERDETERMINED,
    as_dtype,
    check,
    expected,
    held_leaves,
    is_tracing,
    matmul,
    precise,
    pytree,
    static,
    worst,
)
from koopjax.edmd._factor import column_scale, is_finite, target_energy
from koopjax.edmd._smooth import leading_vectors, ridge, root_metric
from koopjax.edmd._solvers import Outcome, ReducedRank, Ridge, TruncatedSVD, penalty
from koopjax.edmd._statistics import Gram, Statistics, check_statistics


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


def relative_residual(stats: Statistics, k: Array) -> Array:
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


def rounding_unit(stats: Statistics, amplification: Array) -> Array:
    """Estimated relative rounding error of a solution."""
    power = 2 if isinstance(stats, Gram) else 1
    return amplification**power * jnp.finfo(stats.dtype).eps


def cancellation(stats: Statistics, k: Array) -> Array:
    """Size of the terms of a prediction relative to the target."""
    terms = jnp.sum((k / column_scale(stats)[:, None]) ** 2)
    whole = target_energy(stats)
    return jnp.sqrt(terms / jnp.where(whole > 0, whole, 1))


def judge(
    stats: Statistics, outcome: Outcome, rounding: Array, lost: Array, finite: Array, dtype: Any
) -> Array:
    """The result code of an outcome: the gravest of all that applies."""
    flag = lambda condition, code: jnp.where(condition, code, SUCCESS)
    # Half of the digits lost is where a result stops being what its dtype promises: in the solve,
    # or later in every prediction, where large terms cancel.
    eps = float(jnp.finfo(dtype).eps)
    limit = eps**0.5
    return worst(
        flag(outcome.found < outcome.needed, RANK_DEFICIENT),
        flag((rounding > limit) | (eps * lost > limit), ILL_CONDITIONED),
        flag(stats.count < jnp.asarray(outcome.needed).astype(stats.dtype), UNDERDETERMINED),
        flag(~jnp.isfinite(outcome.value).all(), NONFINITE_SOLUTION),
        flag(~finite, NONFINITE_DATA),
    )


def compute(stats: Statistics, solver: Any, dtype: Any = None) -> Solution:
    """Solve and judge by the digits of a dtype (None: that of the statistics); traceable."""
    dtype = stats.dtype if dtype is None else dtype
    finite = is_finite(stats)
    # Zeros in place of NaN keep the factorisations clean; the value is made NaN again below.
    clean = jax.tree.map(lambda a: jnp.where(finite, a, 0), stats)
    outcome = solver.compute(clean, None)
    fixed = jax.lax.stop_gradient
    rounding = rounding_unit(clean, fixed(outcome.amplification))
    lost = fixed(cancellation(clean, outcome.value))
    code = judge(clean, fixed(outcome), rounding, lost, finite, dtype)
    # Of two codes for data that are not finite the one that names the cause stays.
    code = jnp.where(finite, code, NONFINITE_DATA)
    info = Info(
        rank=fixed(outcome.rank).astype(jnp.int32),
        condition=fixed(outcome.condition),
        rounding=rounding,
        cancellation=lost,
        residual=relative_residual(clean, outcome.value),
        alpha=outcome.alpha,
        count=stats.count,
        statistics="gram" if isinstance(stats, Gram) else "rfactor",
        dtype=jnp.dtype(stats.dtype).name,
    )
    return Solution(jnp.where(finite, outcome.value, jnp.nan), code, info)


_compute = jax.jit(compute, static_argnames="dtype")


def solve(statistics: Statistics, solver: Any = None, *, dtype: Any = None) -> Solution:
    """The Koopman matrix from statistics.

    Args:
        statistics: `Gram` or `RFactor`; stacked by fold for `CrossValidated`.
        solver: `Ridge` (the default, with no ridge: the solution of least norm), `TruncatedSVD`,
            `ReducedRank` or `CrossValidated`.
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
        >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
        >>> solve(Gram.from_batch(x, 3 * x)).value.tolist()
        [[3.0, 0.0], [0.0, 3.0]]
    """
    check_statistics(statistics)
    solver = Ridge() if solver is None else solver
    # An array has a `choose` too.
    if hasattr(solver, "choose") and not isinstance(solver, type | jax.Array | np.ndarray):
        return solver.choose(statistics, dtype)
    if not isinstance(solver, Ridge | TruncatedSVD | ReducedRank):
        raise expected("a solver such as edmd.Ridge(1e-6)", f"{solver!r:.60}")
    if statistics.folds is not None:
        raise expected(
            "statistics of all samples together",
            f"{statistics.folds} folds",
            "edmd.total(statistics), or CrossValidated(solver, grid)",
        )
    solver.validate(statistics.sizes)
    dtype = None if dtype is None else as_dtype("dtype", dtype)
    with precise(statistics):
        return _compute(statistics, held_leaves(solver), dtype=dtype)


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


@jax.jit
def _factors(stats: Statistics, solver: ReducedRank) -> tuple[Array, Array]:
    alpha = penalty(stats, solver.alpha, solver.relative)
    roots = root_metric(solver.metric, stats.sizes[1], stats.dtype)
    w = leading_vectors(stats, alpha, solver.rank, roots)
    k = ridge(stats, alpha)
    if roots is None:
        return matmul(k, w), w.T
    return matmul(matmul(k, roots[0]), w), matmul(w.T, roots[1])


def low_rank(
    statistics: Statistics, solver: ReducedRank | Ridge
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
    if isinstance(solver, Ridge):
        solver = ReducedRank(min(statistics.sizes), None, solver.alpha, solver.relative)
    if not isinstance(solver, ReducedRank) or is_tracing(solver.rank):
        raise expected("ReducedRank with a concrete rank, or Ridge", f"{solver}")
    solver.validate(statistics.sizes)
    rank = int(solver.rank)
    full = held_leaves(dataclasses.replace(solver, rank=min(statistics.sizes)))
    with precise(statistics):
        left, right = _factors(statistics, full)
        return left[:, :rank], right[:rank]
