"""From statistics and a solver to a solution that says how far it can be trusted."""

from typing import Any

from jaxtyping import Array, Float

from koopjax._core import RESULTS, SUCCESS, as_dtype, check, expected
from koopjax.edmd._factorisation import Factorisation, Solution
from koopjax.edmd._solvers import Solver, check_solver
from koopjax.edmd._statistics import Statistics, check_statistics


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
