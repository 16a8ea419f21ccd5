"""`fit`: from snapshots to a Koopman operator, with the statistics that conditioning asks for."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from koopjax._core import (
    ILL_CONDITIONED,
    as_dtype,
    available_bytes,
    cast,
    expected,
    has_float64,
    is_tracing,
    precise,
    precise_as,
    promoted,
    worst,
)
from koopjax.edmd._accumulate import Lift, run
from koopjax.edmd._factor import is_finite
from koopjax.edmd._factorisation import Solution
from koopjax.edmd._folds import total
from koopjax.edmd._koopman import Koopman
from koopjax.edmd._memory import planned_bytes
from koopjax.edmd._regression import Regression, kind_of, prepare
from koopjax.edmd._solve import solve
from koopjax.edmd._solvers import Ridge, Solver, check_solver, compute
from koopjax.edmd._statistics import Gram, RFactor, Statistics
from koopjax.observables import Identity

REQUESTED = "requested"
TRACED = "traced: Gram, which is differentiable"
ASKED = "Gram: one pass in the accumulate_dtype that was asked for"
NO_FLOAT64 = "R factors: the backend has no float64"
GRAM_ENOUGH = "float64 Gram: the condition is low enough"
GRAM_REFUSED = "R factors: the condition was too high for a float64 Gram"
ONE_PASS = "Gram kept although ill-conditioned: the stream can't be read a second time"
NO_ROOM = "Gram kept although ill-conditioned: R factors exceed the memory limit"


def tolerance(dtype: Any) -> float:
    """Rounding error of a solution that results of a dtype are allowed: 1e-11, or 1e-6 below."""
    return 1e-11 if jnp.dtype(dtype) == jnp.float64 else 1e-6


@jax.jit
def _readout(stats: Statistics, solver: Any) -> Any:
    return compute(stats, solver).value


def _solve_both(
    stats: Statistics, stacked: Statistics | None, q: int, state: str, solver: Any, dtype: Any
) -> tuple[Solution, Any]:
    """K from the first q targets, and the readout from the statistics of the others."""
    whole = stats.sizes[1]
    if not state:
        return solve(stats if stacked is None else stacked, solver, dtype=dtype), None
    first, last = jnp.arange(q), jnp.arange(q, whole)
    folds = None if stacked is None else stacked.select(None, first)
    chosen = stats.select(None, first) if folds is None else folds
    solution = solve(chosen, solver, dtype=dtype)
    # Of Ψ(x) for a square K; else of the target dictionary, whose own products are there too.
    sides = stats.select(None, last) if state == "x" else stats.of_targets(q)
    readout_solver = solver.readout(solution.info) if state == "x" else Ridge()
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


def _selection(columns: np.ndarray, size: int, dtype: Any) -> Any:
    """The readout `(size, d)` that takes these columns."""
    matrix = np.zeros((size, len(columns)), np.float32)
    matrix[columns, np.arange(len(columns))] = 1
    return cast(matrix, dtype)


def _solved(
    regression: Regression, stats: Statistics, solver: Solver, reason: str
) -> tuple[Solution, Any]:
    """The solution from what a pass over the data gave, and the readout."""
    _check_finite_result(stats)
    stacked = stats if regression.folds else None
    stats = total(stats) if regression.folds else stats
    q, dtype = regression.sizes[1], regression.dtype
    solution, readout = _solve_both(stats, stacked, q, regression.lift.state, solver, dtype)
    if regression.columns is not None:
        readout = _selection(regression.columns, q, dtype)
    info = dataclasses.replace(solution.info, reason=reason)
    return dataclasses.replace(solution, info=info), readout


def regress(
    lift: Lift,
    x: Any,
    y: Any,
    weights: Any,
    solver: Any,
    statistics: Any,
    folds: Any,
    **options: Any,
) -> tuple[Solution, Any]:
    """The solution and the readout in the dtype of the observables, for `fit` and `generator`.

    By the statistics asked for or those that conditioning takes: `run` goes through the data once,
    or a second time where the first was not good enough.
    """
    solver = check_solver(solver)
    if solver.folds is None and folds is not None:
        raise expected("folds beside CrossValidated", type(solver).__name__)
    folds = solver.folds if folds is None else folds
    regression = prepare(lift, x, y, weights, folds, **options)
    solver.validate(regression.sizes)
    with precise_as(regression.dtype):
        kind, reason = _first_kind(regression, statistics)
        stats = run(*regression.data, **regression.plan(kind))
        solution, readout = _solved(regression, stats, solver, reason)
        doubted = reason == GRAM_ENOUGH and not is_tracing(solution)
        if doubted and float(solution.info.rounding) > tolerance(regression.dtype):
            why = _no_second_pass(regression)
            if why:
                info = dataclasses.replace(solution.info, reason=why)
                code = worst(solution.result, ILL_CONDITIONED)
                solution = Solution(solution.value, code, info)
            else:
                del stats
                again = dataclasses.replace(regression, source=regression.again)
                stats = run(*again.data, **again.plan(RFactor))
                solution, readout = _solved(again, stats, solver, GRAM_REFUSED)
    dtype = regression.dtype
    solution = Solution(
        cast(solution.value, dtype),
        solution.result,
        cast(solution.info, promoted(dtype, jnp.float32)),
    )
    return solution, None if readout is None else cast(readout, dtype)


def _no_second_pass(regression: Regression) -> str:
    """Why R factors can't be had; empty where they can."""
    if regression.again is None:
        return ONE_PASS
    p, whole = regression.lift.sizes(*regression.widths)
    limit = regression.memory_limit
    limit = available_bytes() if limit is None else limit
    rows = 2 * (p + whole)
    plan = planned_bytes(p, whole, RFactor, jnp.float64, rows, regression.folds)
    return NO_ROOM if plan > limit else ""


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
            for float32 results, 1e-11 for float64), it takes a second pass with R factors, which
            costs several times as much; "gram" refuses it. A backend without float64 gets R
            factors at once. Under jit, vmap or grad, and where `accumulate_dtype` asks for less
            than float64, it is a Gram matrix, in one pass, and the result code says if it is not
            enough. `info.statistics` and `info.reason` say which and why.
        weights: `(n,)`, not negative.
        folds: for `CrossValidated`: as in `accumulate`; None takes the solver's number.
        batch_size: rows lifted at a time; None chooses by size.
        mesh: divide the rows over all devices of this mesh.
        accumulate_dtype: dtype of the sums; None as `statistics` says.
        memory_limit: bytes for statistics and blocks; None: what the machine has free.

    Returns:
        Koopman: in the dtype of the observables. That is float64, whatever JAX's default, where
        NumPy's float64 data lie so far from the origin that float32 would lose their spread.

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
    state = "x" if target is None else ("" if isinstance(target, Identity) else "y")
    solution, readout = regress(
        Lift(psi, target, state), x, y, weights, solver, statistics, folds, batch_size=batch_size,
        mesh=mesh, accumulate_dtype=accumulate_dtype, memory_limit=memory_limit,
    )  # fmt: skip
    return Koopman(psi, target, solution.value, readout, solution.info, solution.result)


def _first_kind(regression: Regression, statistics: Any) -> tuple[type, str]:
    """Which statistics to begin with, and why."""
    if not isinstance(statistics, str) or statistics != "auto":
        return kind_of(statistics), REQUESTED
    if regression.staged:
        return Gram, TRACED
    asked = regression.accumulate_dtype
    if asked is not None and as_dtype("accumulate_dtype", asked) != jnp.float64:
        return Gram, ASKED
    return (Gram, GRAM_ENOUGH) if has_float64() else (RFactor, NO_FLOAT64)
