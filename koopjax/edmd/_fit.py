"""`fit`: from snapshots to a Koopman operator, with the statistics that conditioning asks for."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from koopjax._core import ILL_CONDITIONED, expected, has_float64, is_tracing, worst
from koopjax.edmd._accumulate import Lift, kind_of, observed_dtype, run, sum_dtype
from koopjax.edmd._factor import is_finite
from koopjax.edmd._inputs import check_arrays, fold_layout, peek
from koopjax.edmd._koopman import Koopman
from koopjax.edmd._memory import available_bytes, planned_bytes
from koopjax.edmd._precision import cast, precise, traced
from koopjax.edmd._solve import Solution, compute, solve
from koopjax.edmd._solvers import ReducedRank, Ridge, TruncatedSVD
from koopjax.edmd._statistics import Gram, RFactor, Statistics, total

REQUESTED = "requested"
TRACED = "traced: Gram in the caller's dtype, which is differentiable"
NO_FLOAT64 = "R factors: the backend has no float64"
GRAM_ENOUGH = "float64 Gram: the condition is low enough"
GRAM_REFUSED = "R factors: the condition was too high for a float64 Gram"
ONE_PASS = "Gram kept although ill-conditioned: the stream can't be read a second time"
NO_ROOM = "Gram kept although ill-conditioned: R factors exceed the memory limit"


def tolerance(dtype: Any) -> float:
    """Rounding error of a solution that results of a dtype are allowed: 1e-11, or 1e-6 below."""
    return 1e-11 if jnp.dtype(dtype) == jnp.float64 else 1e-6


def _identity_target(target: Any) -> bool:
    return type(target).__name__ == "Identity"


def _readout_solver(solver: Any, info: Any) -> Any:
    """What regresses the state on the lifted state: the same regularisation, at full rank."""
    if isinstance(solver, TruncatedSVD):
        return solver
    if hasattr(solver, "choose"):
        inner = solver.solver
        return TruncatedSVD(info.rank) if isinstance(inner, TruncatedSVD) else Ridge(info.alpha)
    return Ridge(info.alpha)


@jax.jit
def _readout(stats: Statistics, solver: Any) -> Any:
    return compute(stats, solver).value


def _solve_both(
    stats: Statistics, stacked: Statistics | None, q: int, state: str, solver: Any
) -> tuple[Solution, Any]:
    """K from the first q targets, and the readout from the statistics of the others."""
    whole = stats.sizes[1]
    if not state:
        return solve(stats if stacked is None else stacked, solver), None
    first, last = jnp.arange(q), jnp.arange(q, whole)
    folds = None if stacked is None else stacked.select(None, first)
    solution = solve(stats.select(None, first) if folds is None else folds, solver)
    # Of Ψ(x) for a square K; else of the target dictionary, whose own products are there too.
    sides = stats.select(None, last) if state == "x" else stats.of_targets(q)
    readout_solver = _readout_solver(solver, solution.info) if state == "x" else Ridge()
    with precise(sides):
        return solution, _readout(sides, readout_solver)


def _check_finite_result(stats: Statistics) -> None:
    with precise(stats):
        finite = is_finite(stats)
    if not is_tracing(finite) and not bool(finite):
        raise expected(
            "finite observables on finite data",
            "NaN or infinity in the statistics",
            "cleaning the snapshots, or a Standardize against overflow in the dictionary",
        )


def fit(
    psi: Any,
    x: Any,
    y: Any = None,
    target: Any = None,
    solver: Any = None,
    statistics: Any = "auto",
    weights: Any = None,
    *,
    folds: Any = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    accumulate_dtype: Any = None,
    memory_limit: int | None = None,
) -> Koopman:
    """Extended dynamic mode decomposition: the matrix K with `Ψ_target(y) ≈ Ψ(x) K`.

    Args:
        psi: dictionary of the snapshots before, see `koopjax.observables`.
        x: snapshots before `(n, d)`; or an iterable of pairs `(x, y)` (triples with weights),
            fitted in memory that does not depend on how many there are.
        y: snapshots after `(n, d_out)`; None with an iterable.
        target: dictionary of the snapshots after. None: `psi` on both sides, K square. Another,
            such as `Identity()`: regress on it.
        solver: `Ridge()` (no ridge, least norm) by default; `Ridge(alpha)`, `TruncatedSVD(rank)`,
            `ReducedRank(rank, metric)`, `CrossValidated(solver, grid)`.
        statistics: "auto", "gram" or "rfactor" (or the classes). "auto" accumulates a Gram matrix
            in float64; if the condition is too high for it (estimated rounding error above 1e-6
            for float32 results, 1e-11 for float64), it takes a second pass with R factors. A
            backend without float64 gets R factors at once. Under jit, vmap or grad it is a Gram
            matrix in the caller's dtype. `info.statistics` and `info.reason` say which and why.
        weights: `(n,)`, not negative.
        folds: for `CrossValidated`: as in `accumulate`; None takes the solver's number.
        batch_size: rows lifted at a time; None chooses by size.
        mesh: divide the rows over all devices of this mesh.
        accumulate_dtype: dtype of the sums; None as `statistics` says.
        memory_limit: bytes for statistics and blocks; None: what the machine has free.

    Returns:
        Koopman: in the dtype of the observables.

    Raises:
        ValueError: wrong shapes, no samples, NaN or infinity, a dictionary too large for memory,
            settings that can't be met. Numerical trouble raises nothing: see `Koopman.result`, or
            call `unwrap`.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import edmd, observables
        >>> x = jnp.linspace(-1.0, 1.0, 50)[:, None]
        >>> koopman = edmd.fit(observables.Monomials(2), x, 0.5 * x)
        >>> [round(float(v), 4) for v in koopman.eigenvalues().real]
        [1.0, 0.5, 0.25]

    Reference: Williams, Kevrekidis & Rowley (2015), J. Nonlinear Sci. 25; Sugishita, Kinjo &
    Ohkubo (2024), arXiv 2402.11740.
    """
    solver = Ridge() if solver is None else solver
    chooses = hasattr(solver, "choose")
    state = "x" if target is None else ("" if _identity_target(target) else "y")
    lift = Lift(psi, target, state)
    reiterable = True
    if y is None:
        if weights is not None or not (folds is None or isinstance(folds, int)):
            raise expected("weights and fold numbers only beside arrays", "a stream")
        source, probe = peek(x)
        reiterable = iter(x) is not x
    else:
        x, y, weights, _ = check_arrays(x, y, weights, target)
        source, probe = x, (x, y)
    dtype = observed_dtype(lift, *probe, memory_limit)
    p, q = Lift(psi, target).sizes(probe[0].shape[1], probe[1].shape[1])
    solver_folds = solver.folds if chooses and folds is None else folds
    if not chooses and folds is not None:
        raise expected("folds beside CrossValidated", type(solver).__name__)
    if y is not None:
        solver_folds, source, y, weights = fold_layout(solver_folds, source, y, weights)
    staged = traced(lift, None if y is None else source, y, weights)
    kind, reason = _first_kind(statistics, staged)

    def attempt(kind: type, source: Any, reason: str) -> tuple[Solution, Any]:
        stats = run(
            lift, source, y, weights, kind=kind,
            dtype=sum_dtype(dtype, accumulate_dtype, staged), batch_size=batch_size,
            folds=solver_folds, mesh=mesh, memory_limit=memory_limit,
        )  # fmt: skip
        _check_finite_result(stats)
        stacked = stats if solver_folds else None
        stats = total(stats) if solver_folds else stats
        solution, readout = _solve_both(stats, stacked, q, state, solver)
        info = dataclasses.replace(solution.info, reason=reason)
        return dataclasses.replace(solution, info=info), readout

    solution, readout = attempt(kind, source, reason)
    if reason == GRAM_ENOUGH and not is_tracing(solution):
        if float(solution.info.rounding) > tolerance(dtype):
            extra = lift.sizes(probe[0].shape[1], probe[1].shape[1])[1]
            limit = available_bytes() if memory_limit is None else memory_limit
            plan = planned_bytes(p, extra, RFactor, jnp.float64, 2 * (p + extra), solver_folds)
            if reiterable and plan <= limit:
                again = source if y is not None else x
                solution, readout = attempt(RFactor, again, GRAM_REFUSED)
            else:
                why = NO_ROOM if reiterable else ONE_PASS
                info = dataclasses.replace(solution.info, reason=why)
                code = worst(solution.result, ILL_CONDITIONED)
                solution = Solution(solution.value, code, info)
    return _koopman(lift, solution, readout, dtype)


def _first_kind(statistics: Any, staged: bool) -> tuple[type, str]:
    """Which statistics to begin with, and why."""
    if not isinstance(statistics, str) or statistics != "auto":
        return kind_of(statistics), REQUESTED
    if staged:
        return Gram, TRACED
    return (Gram, GRAM_ENOUGH) if has_float64() else (RFactor, NO_FLOAT64)


def _koopman(lift: Lift, solution: Solution, readout: Any, dtype: Any) -> Koopman:
    """The operator in the caller's dtype."""
    info = cast(solution.info, dtype)
    return Koopman(
        psi=lift.psi,
        target=lift.target,
        matrix=cast(solution.value, dtype),
        readout=None if readout is None else cast(readout, dtype),
        info=info,
        result=solution.result,
    )
