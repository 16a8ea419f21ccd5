"""From snapshots to statistics and to a Koopman operator: one pass over the data, or two."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from koopjax._core import (
    ILL_CONDITIONED,
    as_dtype,
    as_whole,
    available_bytes,
    cast,
    check_dictionary,
    expected,
    has_float64,
    held_leaves,
    in_float64,
    is_tracing,
    is_wide,
    precise,
    precise_as,
    promoted,
    traced,
    working_dtype,
    worst,
)
from koopjax.edmd._accumulate import (
    Lift,
    block_rows,
    check_memory,
    from_arrays,
    from_stream,
    observed_dtype,
    on_mesh,
    planned_bytes,
)
from koopjax.edmd._factor import is_finite
from koopjax.edmd._factorisation import Solution
from koopjax.edmd._inputs import (
    check_arrays,
    check_mesh,
    check_sound,
    check_stream,
    fold_layout,
    peek,
)
from koopjax.edmd._koopman import Koopman
from koopjax.edmd._solvers import Ridge, Solver, check_solver, compute, solve
from koopjax.edmd._statistics import KINDS, Gram, RFactor, Statistics, total
from koopjax.observables import Identity, contains_state

REQUESTED = "requested"
TRACED = "traced: Gram, which is differentiable"
ASKED = "Gram: one pass in the accumulate_dtype that was asked for"
NO_FLOAT64 = "R factors: the backend has no float64"
GRAM_ENOUGH = "float64 Gram: the condition is low enough"
GRAM_REFUSED = "R factors: the condition was too high for a float64 Gram"
ONE_PASS = "Gram kept although ill-conditioned: the stream can't be read a second time"
NO_ROOM = "Gram kept although ill-conditioned: R factors exceed the memory limit"


class Regression:
    """Validated data and dictionaries, and how they are gone through.

    Attributes:
        lift: both dictionaries and the state carried along.
        columns: where the state is among the observables, for a readout without regression; None
            where it has to be regressed or is not asked for.
        source, y: snapshots before and after; or the stream with its first batch put back.
        again: the source of a second pass; None where there can't be one.
        sizes: `(p, q)` without the state carried along.
        dtype: of the observables.
    """

    def __init__(
        self,
        lift: Lift,
        x: Any,
        y: Any,
        weights: Any,
        folds: Any,
        *,
        batch_size: int | None,
        mesh: Mesh | None,
        accumulate_dtype: Any,
        memory_limit: int | None,
    ) -> None:
        """Check everything before anything is allocated."""
        check_dictionary("psi", lift.psi)
        if lift.target is not None:
            check_dictionary("target", lift.target)
        self.batch_size = None if batch_size is None else as_whole("batch_size", batch_size, 1)
        self.mesh = mesh
        self.accumulate_dtype, self.memory_limit = accumulate_dtype, memory_limit
        same = False
        if y is None:
            folds = check_stream(weights, folds)
            source, probe = peek(x, lift)
        else:
            x, y, weights, same = check_arrays(x, y, weights, lift.target, lift)
            source, probe = x, (x, y)
        self.widths = d, d_out = probe[0].shape[1], probe[1].shape[1]
        self.columns = None
        if lift.state:
            # Read off, the state is exact whatever the ridge; regressed, it would be shrunk again.
            before = lift.state == "x" or lift.target is None
            self.columns = contains_state(*((lift.psi, d) if before else (lift.target, d_out)))
            if self.columns is not None:
                lift = dataclasses.replace(lift, state="")
        self.lift = dataclasses.replace(lift, same=same and not lift.state)
        self.dtype = observed_dtype(self.lift, *probe, memory_limit)
        if y is None:
            self.again: Any = None if iter(x) is x else x
        else:
            folds, source, y, weights = fold_layout(folds, source, y, weights)
            self.again = source
        self.source: Any = source
        self.folds, self.y, self.weights = folds, y, weights
        self.sizes = Lift(lift.psi, lift.target).sizes(d, d_out)
        # Whether values can't be looked at.
        self.staged = traced(self.lift, None if y is None else source, y, weights)

    def statistics(self, kind: type, again: bool = False) -> Statistics:
        """One pass over the data, with float64 asked for where the sums need it."""
        lift, y, folds, dtype = self.lift, self.y, self.folds, self._sum_dtype()
        x = self.again if again else self.source
        if self.mesh is not None:
            check_mesh(self.mesh, x, y)
        staged = is_tracing(lift, y, self.weights)
        fitted = is_wide(lift) and not staged
        # What users wrote down is read as outside; what was fitted in float64 stays in it.
        with precise_as(np.float64 if fitted else np.float32):
            lift = held_leaves(lift)
        how: dict[str, Any] = {"kind": kind, "dtype": dtype, "folds": folds}
        with in_float64(fitted or (dtype == np.float64 and not staged)):
            if y is None:
                return from_stream(
                    lift, x, batch_size=self.batch_size, mesh=self.mesh,
                    memory_limit=self.memory_limit, **how,
                )  # fmt: skip
            n, width = x.shape[0], sum(lift.sizes(x.shape[1], y.shape[1]))
            batch = self.batch_size or block_rows(n, width, kind, folds)
            check_memory(lift, x.shape, y.shape, kind, dtype, batch, folds, self.memory_limit)
            if self.mesh is not None:
                data = lift, x, y, self.weights
                return on_mesh(*data, batch_size=self.batch_size, mesh=self.mesh, **how)
            batch = -(-min(batch, n) // (folds or 1)) * (folds or 1)
            return from_arrays(lift, x, y, self.weights, batch=batch, **how)

    def _sum_dtype(self) -> Any:
        """The dtype of the sums: as asked, else float64 where it can be had."""
        if self.accumulate_dtype is not None:
            asked = as_dtype("accumulate_dtype", self.accumulate_dtype)
            return jnp.dtype(working_dtype(asked))
        if self.staged or not has_float64():
            return jnp.dtype(working_dtype(self.dtype))
        return jnp.dtype("float64")

    def first_kind(self, statistics: Any) -> tuple[type, str]:
        """Which statistics to begin with, and why."""
        if not isinstance(statistics, str) or statistics != "auto":
            return _kind_of(statistics), REQUESTED
        if self.staged:
            return Gram, TRACED
        asked = self.accumulate_dtype
        if asked is not None and as_dtype("accumulate_dtype", asked) != jnp.float64:
            return Gram, ASKED
        return (Gram, GRAM_ENOUGH) if has_float64() else (RFactor, NO_FLOAT64)

    def no_second_pass(self) -> str:
        """Why R factors can't be had; empty where they can."""
        if self.again is None:
            return ONE_PASS
        p, whole = self.lift.sizes(*self.widths)
        limit = available_bytes() if self.memory_limit is None else self.memory_limit
        plan = planned_bytes(p, whole, RFactor, jnp.float64, 2 * (p + whole), self.folds)
        return NO_ROOM if plan > limit else ""


def _kind_of(statistics: Any) -> type:
    """The class of statistics that a name or a class stands for."""
    if isinstance(statistics, str) and statistics in KINDS:
        return KINDS[statistics]
    if isinstance(statistics, type) and statistics in KINDS.values():
        return statistics
    raise expected(
        "statistics 'auto', 'gram', 'rfactor', edmd.Gram or edmd.RFactor", repr(statistics)
    )


def accumulate(
    psi: Any,
    x: Any,
    y: Any = None,
    *,
    target: Any = None,
    statistics: Any = "gram",
    folds: Any = None,
    weights: Any = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    accumulate_dtype: Any = None,
    memory_limit: int | None = None,
) -> Statistics:
    """Statistics of lifted snapshots in one pass, from which every solver works.

    From one pass come all ridges, ranks, folds and smaller dictionaries: see `solve`,
    `CrossValidated` and `Gram.select`.

    Args:
        psi: dictionary of the snapshots before.
        x: snapshots before `(n, d)`, or an iterable of pairs `(x, y)` (or triples with weights);
            then `y` and `weights` stay None and memory does not depend on how many there are.
        y: snapshots after `(n, d_out)`. The same object as `x` (with `target=None`): Ψ is
            evaluated once and one product serves.
        target: dictionary of the snapshots after; None for `psi`.
        statistics: "gram" or "rfactor", or the classes themselves.
        folds: None; a number k, which puts sample i into fold `i mod k`; or `(n,)` fold numbers
            (blocks of a time series, say). The result is then stacked by fold.
        weights: `(n,)`, not negative.
        batch_size: rows lifted at a time; None chooses by size.
        mesh: rows are divided over all its devices; Gram matrices are summed (`psum`), R factors
            gathered and merged as a tree.
        accumulate_dtype: dtype of the sums. None: float64 where the backend has it, the caller's
            dtype under jit, vmap or grad.
        memory_limit: bytes that statistics and blocks may take; None: what the machine has free.

    Returns:
        `Gram` or `RFactor`. In float64 where x64 is off, use its methods (which know), or
        `.astype(jnp.float32)` before mixing it into float32 computations.

    Raises:
        ValueError: wrong shapes, no samples, NaN or infinity in concrete arrays, or a dictionary
            too large for the memory (the message says what would fit).

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import edmd, observables
        >>> x = jnp.linspace(-1.0, 1.0, 50)[:, None]
        >>> edmd.accumulate(observables.Monomials(2), x, 0.5 * x).sizes
        (3, 3)
    """
    kind = _kind_of(statistics)
    regression = Regression(
        Lift(psi, target), x, y, weights, folds, batch_size=batch_size, mesh=mesh,
        accumulate_dtype=accumulate_dtype, memory_limit=memory_limit,
    )  # fmt: skip
    with precise_as(regression.dtype):
        return regression.statistics(kind)


@jax.jit
def _readout(stats: Statistics, solver: Any) -> Any:
    return compute(stats, solver).value


def _solved(
    regression: Regression, given: Statistics, solver: Solver, reason: str
) -> tuple[Solution, Any]:
    """The solution from what a pass over the data gave, and the readout."""
    with precise(given):
        check_sound(is_finite(given), "statistics")
    q, dtype, state = regression.sizes[1], regression.dtype, regression.lift.state
    stats = total(given) if regression.folds else given
    # K is of the first q targets; the others are the state.
    chosen = given.select(None, np.arange(q)) if state else given
    solution, readout = solve(chosen, solver, dtype=dtype), None
    if state:
        # Of Ψ(x) for a square K; else of the target dictionary, whose own products are there too.
        square = state == "x"
        rest = np.arange(q, stats.sizes[1])
        sides = stats.select(None, rest) if square else stats.of_targets(q)
        with precise(sides):
            readout = _readout(sides, solver.readout(solution.info) if square else Ridge())
    elif regression.columns is not None:
        picked = np.zeros((q, len(regression.columns)), np.float32)
        picked[regression.columns, np.arange(len(regression.columns))] = 1
        readout = cast(picked, dtype)
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

    By the statistics asked for or those that conditioning takes: one pass over the data,
    or a second where the first was not good enough.
    """
    solver = check_solver(solver)
    if solver.folds is None and folds is not None:
        raise expected("folds beside CrossValidated", type(solver).__name__)
    folds = solver.folds if folds is None else folds
    regression = Regression(lift, x, y, weights, folds, **options)
    solver.validate(regression.sizes)
    dtype = regression.dtype
    # The rounding error that results of this dtype are allowed.
    tolerance = 1e-11 if dtype == jnp.float64 else 1e-6
    with precise_as(dtype):
        kind, reason = regression.first_kind(statistics)
        stats = regression.statistics(kind)
        solution, readout = _solved(regression, stats, solver, reason)
        doubted = reason == GRAM_ENOUGH and not is_tracing(solution)
        if doubted and float(solution.info.rounding) > tolerance:
            why = regression.no_second_pass()
            if why:
                info = dataclasses.replace(solution.info, reason=why)
                code = worst(solution.result, ILL_CONDITIONED)
                solution = Solution(solution.value, code, info)
            else:
                del stats
                stats = regression.statistics(RFactor, again=True)
                solution, readout = _solved(regression, stats, solver, GRAM_REFUSED)
    value, info = cast(solution.value, dtype), cast(solution.info, promoted(dtype, jnp.float32))
    solution = Solution(value, solution.result, info)
    return solution, None if readout is None else cast(readout, dtype)


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
