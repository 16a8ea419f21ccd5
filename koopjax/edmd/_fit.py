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
    cast,
    check_dictionary,
    expected,
    has_float64,
    is_tracing,
    precise,
    precise_as,
    promoted,
    traced,
    worst,
)
from koopjax.edmd._accumulate import Lift, kind_of, run, sum_dtype
from koopjax.edmd._factor import is_finite
from koopjax.edmd._inputs import (
    check_arrays,
    check_batch_size,
    check_stream,
    fold_layout,
    peek,
)
from koopjax.edmd._koopman import Koopman
from koopjax.edmd._memory import available_bytes, observed_dtype, planned_bytes
from koopjax.edmd._solve import Solution, compute, solve
from koopjax.edmd._solvers import Ridge, TruncatedSVD
from koopjax.edmd._statistics import Gram, RFactor, Statistics, total
from koopjax.observables import Identity, contains_state

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


@dataclasses.dataclass(frozen=True)
class Problem:
    """A regression made ready: validated data, dictionaries, and how they are to be gone through.

    Attributes:
        lift: both dictionaries and the state carried along.
        columns: where the state is among the observables, for a readout without regression; None
            where it has to be regressed or is not asked for.
        source: snapshots before, or the stream with its first batch put back.
        again: the same for a second pass; None where there can't be one.
        y: snapshots after; None for a stream.
        weights: of the samples.
        folds: number of folds to stack, or None.
        sizes: `(p, q)` without the state carried along.
        widths: `(d, d_out)`.
        dtype: of the observables.
        options: the remaining arguments of `run`.
    """

    lift: Lift
    columns: np.ndarray | None
    source: Any
    again: Any
    y: Any
    weights: Any
    folds: Any
    sizes: tuple[int, int]
    widths: tuple[int, int]
    dtype: Any
    options: dict[str, Any]

    @property
    def staged(self) -> bool:
        """Whether values can't be looked at."""
        return traced(self.lift, None if self.y is None else self.source, self.y, self.weights)


def prepare(
    lift: Lift, x: Any, y: Any, weights: Any, folds: Any, options: dict[str, Any]
) -> Problem:
    """Validate data and sizes before anything is allocated."""
    check_dictionary("psi", lift.psi)
    if lift.target is not None:
        check_dictionary("target", lift.target)
    if y is None:
        folds = check_stream(weights, folds)
        source, probe = peek(x, lift)
        again = None if iter(x) is x else x
    else:
        x, y, weights, _ = check_arrays(x, y, weights, lift.target, lift)
        source, probe, again = x, (x, y), x
    widths = probe[0].shape[1], probe[1].shape[1]
    lift, columns = _without_regression(lift, widths)
    dtype = observed_dtype(lift, *probe, options["memory_limit"])
    if y is not None:
        folds, source, y, weights = fold_layout(folds, source, y, weights)
        again = source
    sizes = Lift(lift.psi, lift.target).sizes(*widths)
    return Problem(lift, columns, source, again, y, weights, folds, sizes, widths, dtype, options)


def _without_regression(lift: Lift, widths: tuple[int, int]) -> tuple[Lift, np.ndarray | None]:
    """A lift that does not carry the state where it is among the observables, and its columns.

    Read off, the state is exact whatever the ridge; regressed, it would be shrunk a second time.
    """
    if not lift.state:
        return lift, None
    before = lift.state == "x" or lift.target is None
    psi, d = (lift.psi, widths[0]) if before else (lift.target, widths[1])
    columns = contains_state(psi, d)
    return lift if columns is None else dataclasses.replace(lift, state=""), columns


def _selection(columns: np.ndarray, size: int, dtype: Any) -> Any:
    """The readout `(size, d)` that takes these columns."""
    matrix = np.zeros((size, len(columns)), np.float32)
    matrix[columns, np.arange(len(columns))] = 1
    return cast(matrix, dtype)


def _attempt(
    problem: Problem, solver: Any, kind: type, source: Any, reason: str
) -> tuple[Solution, Any]:
    """One pass over the data with one kind of statistics, and the solve."""
    options = dict(problem.options)
    dtype = sum_dtype(problem.dtype, options.pop("accumulate_dtype"), problem.staged)
    stats = run(
        problem.lift, source, problem.y, problem.weights, kind=kind, dtype=dtype,
        folds=problem.folds, **options,
    )  # fmt: skip
    _check_finite_result(stats)
    stacked = stats if problem.folds else None
    stats = total(stats) if problem.folds else stats
    solution, readout = _solve_both(
        stats, stacked, problem.sizes[1], problem.lift.state, solver, problem.dtype
    )
    if problem.columns is not None:
        readout = _selection(problem.columns, problem.sizes[1], problem.dtype)
    info = dataclasses.replace(solution.info, reason=reason)
    return dataclasses.replace(solution, info=info), readout


def estimate(problem: Problem, solver: Any, statistics: Any) -> tuple[Solution, Any]:
    """The solution and the readout, by the statistics asked for or those that it takes."""
    kind, reason = _first_kind(problem, statistics)
    solution, readout = _attempt(problem, solver, kind, problem.source, reason)
    if reason != GRAM_ENOUGH or is_tracing(solution):
        return solution, readout
    if float(solution.info.rounding) <= tolerance(problem.dtype):
        return solution, readout
    p, whole = problem.lift.sizes(*problem.widths)
    limit = problem.options["memory_limit"]
    limit = available_bytes() if limit is None else limit
    plan = planned_bytes(p, whole, RFactor, jnp.float64, 2 * (p + whole), problem.folds)
    if problem.again is not None and plan <= limit:
        return _attempt(problem, solver, RFactor, problem.again, GRAM_REFUSED)
    why = ONE_PASS if problem.again is None else NO_ROOM
    info = dataclasses.replace(solution.info, reason=why)
    return Solution(solution.value, worst(solution.result, ILL_CONDITIONED), info), readout


def check_settings(solver: Any, folds: Any) -> tuple[Any, Any]:
    """The solver and its folds where none are given; raises unless they go together."""
    solver = Ridge() if solver is None else solver
    if isinstance(solver, type) or not hasattr(solver, "validate"):
        raise expected("a solver such as edmd.Ridge(1e-6)", f"{solver!r:.60}")
    if not hasattr(solver, "choose") and folds is not None:
        raise expected("folds beside CrossValidated", type(solver).__name__)
    if hasattr(solver, "choose") and folds is None:
        folds = solver.folds
    return solver, folds


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
    solver, folds = check_settings(solver, folds)
    state = "x" if target is None else ("" if isinstance(target, Identity) else "y")
    options = {
        "batch_size": check_batch_size(batch_size),
        "mesh": mesh,
        "accumulate_dtype": accumulate_dtype,
        "memory_limit": memory_limit,
    }
    problem = prepare(Lift(psi, target, state), x, y, weights, folds, options)
    solver.validate(problem.sizes)
    dtype = problem.dtype
    with precise_as(dtype):
        solution, readout = estimate(problem, solver, statistics)
    return Koopman(
        psi=psi,
        target=target,
        matrix=cast(solution.value, dtype),
        readout=None if readout is None else cast(readout, dtype),
        info=cast(solution.info, promoted(dtype, jnp.float32)),
        result=solution.result,
    )


def _first_kind(problem: Problem, statistics: Any) -> tuple[type, str]:
    """Which statistics to begin with, and why."""
    if not isinstance(statistics, str) or statistics != "auto":
        return kind_of(statistics), REQUESTED
    if problem.staged:
        return Gram, TRACED
    asked = problem.options["accumulate_dtype"]
    if asked is not None and as_dtype("accumulate_dtype", asked) != jnp.float64:
        return Gram, ASKED
    return (Gram, GRAM_ENOUGH) if has_float64() else (RFactor, NO_FLOAT64)
