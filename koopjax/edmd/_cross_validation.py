"""Ridge and rank chosen by cross-validation, from statistics stacked by fold."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import (
    NONFINITE_DATA,
    as_dtype,
    as_whole,
    check_metric,
    expected,
    held_leaves,
    is_tracing,
    matmul,
    precise,
    pytree,
    read_numbers,
    static,
)
from koopjax.edmd._factor import first, is_finite, spectral
from koopjax.edmd._smooth import root_metric
from koopjax.edmd._solve import Solution, compute
from koopjax.edmd._solvers import (
    ReducedRank,
    Ridge,
    TruncatedSVD,
    check_alpha,
    penalty,
)
from koopjax.edmd._statistics import (
    Gram,
    Statistics,
    check_statistics,
    leave_one_out,
    merge_stacked,
)

RULES = ("min", "one_se")
RANKS = 16


@pytree
class CrossValidated:
    """A solver whose ridge or rank is chosen by k-fold cross-validation.

    All grid points of a fold come from one factorisation of the other folds' statistics, and the
    held-out error from the fold's own: no pass over the data is repeated.

    Args:
        solver: `Ridge`, `TruncatedSVD` or `ReducedRank`; what is not in the grid stays as set.
        grid: a vector of values for the solver's own parameter (`alpha` for `Ridge`, `rank` for
            the others), or a dict with vectors for "alpha" and "rank". None: a decade grid of
            ridges relative to the Gram matrix, or ranks in geometric steps.
        rule: "min" takes the least mean held-out error; "one_se" the least rank, then the largest
            ridge, within one standard error of it (static).
        folds: how many `fit` makes (static).

    Reference: Hastie, Tibshirani & Friedman (2009), The Elements of Statistical Learning, 7.10.
    """

    solver: Any
    grid: Any = None
    rule: str = static(default="min")
    folds: int = static(default=5)

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise `ValueError` if settings that are known can't be met."""
        if not isinstance(self.solver, Ridge | TruncatedSVD | ReducedRank):
            raise expected(
                "Ridge, TruncatedSVD or ReducedRank to validate", type(self.solver).__name__
            )
        if self.rule not in RULES:
            raise expected(f"a rule in {RULES}", repr(self.rule))
        as_whole("folds", self.folds, 2)
        if not isinstance(self.solver, TruncatedSVD):
            check_alpha(self.solver.alpha, self.solver.relative)
        if isinstance(self.solver, ReducedRank):
            check_metric("metric", self.solver.metric, sizes[1])
        own = _parameters(self.solver)
        grid = self.grid if isinstance(self.grid, dict) else {own[-1]: self.grid}
        for name, values in grid.items():
            if name not in own:
                raise expected(f"a grid over {own}", repr(name))
            if values is None:
                continue
            values = read_numbers(f"the grid of {name}", values)
            if values.ndim != 1 or values.size == 0:
                raise expected("a vector of grid values", f"shape {values.shape}")
            if not is_tracing(values):
                # A rank beyond what is there would score like the largest one, silently.
                known = np.asarray(values)
                limit = sizes[0] if isinstance(self.solver, TruncatedSVD) else min(sizes)
                if name == "rank":
                    sound = (known >= 1) & (known <= limit) & (known == np.floor(known))
                else:
                    sound = np.isfinite(known) & (known >= 0)
                if not sound.all():
                    raise expected(
                        f"ranks from 1 to {limit}"
                        if name == "rank"
                        else "finite ridges of at least 0",
                        f"{values}",
                    )

    def choose(self, statistics: Statistics, dtype: Any = None) -> Solution:
        """The solution at the chosen grid point, from the statistics of all folds together."""
        check_statistics(statistics)
        if statistics.folds is None or statistics.folds < 2:
            raise expected(
                "statistics stacked by at least two folds",
                "statistics of all samples together",
                "edmd.accumulate(..., folds=5)",
            )
        self.validate(statistics.sizes)
        dtype = None if dtype is None else as_dtype("dtype", dtype)
        with precise(statistics):
            return _choose(statistics, held_leaves(self), dtype=dtype)


def _parameters(solver: Any) -> tuple[str, ...]:
    """What a grid may range over; the last one is the solver's own."""
    if isinstance(solver, Ridge):
        return ("alpha",)
    return ("rank",) if isinstance(solver, TruncatedSVD) else ("alpha", "rank")


def _axes(method: CrossValidated, stats: Statistics) -> tuple[Array, Array]:
    """The grid's ridges and ranks; one of either where it does not vary."""
    solver, own, dtype = method.solver, _parameters(method.solver), stats.dtype
    grid = method.grid if isinstance(method.grid, dict) else {own[-1]: method.grid}
    alphas, ranks = grid.get("alpha"), grid.get("rank")
    if isinstance(solver, TruncatedSVD):
        alphas = jnp.zeros(1, dtype)
    elif alphas is None and (isinstance(solver, Ridge) or "alpha" in grid):
        decades = jnp.arange(-12.0 if dtype == jnp.float64 else -6.0, 2.0, dtype=dtype)
        alphas = penalty(stats, 0.0, 1.0) * 10.0**decades
    elif alphas is None:
        alphas = penalty(stats, solver.alpha, solver.relative)[None]
    largest = stats.sizes[0] if isinstance(solver, TruncatedSVD) else min(stats.sizes)
    if isinstance(solver, Ridge):
        ranks = jnp.full(1, largest)
    elif ranks is None and "rank" in grid:
        ranks = np.unique(np.round(np.geomspace(1, largest, RANKS)).astype(np.int32))
    elif ranks is None:
        ranks = jnp.asarray(solver.rank)[None]
    return jnp.asarray(alphas).astype(dtype), jnp.asarray(ranks).astype(jnp.int32)


def _fold_scores(train: Statistics, held: Gram, solver: Any, alphas: Array, ranks: Array) -> Array:
    """Relative held-out squared error at every grid point, `(alphas, ranks)`."""
    parts = spectral(train)
    keep = parts.s > 0
    a = matmul(parts.v.T, matmul(held.gram, parts.v))
    b = matmul(parts.v.T, held.cross)
    if isinstance(solver, ReducedRank):
        roots = root_metric(solver.metric, train.sizes[1], train.dtype)
        return _reduced_scores(parts, a, b, held.target_gram, roots, alphas, ranks)
    # K = V diag(h) c: the error is a quadratic form in h, so a grid point costs p² operations.
    quadratic = a * matmul(parts.c, parts.c.T)
    linear = jnp.sum(b * parts.c, axis=1)
    whole = jnp.trace(held.target_gram)

    def score(alpha: Array, rank: Array) -> Array:
        used = keep & first(parts.s.shape[0], rank)
        if isinstance(solver, Ridge):
            used = keep
        h = jnp.where(used, parts.s / jnp.where(used, parts.s**2 + alpha, 1), 0)
        error = whole - 2 * jnp.dot(h, linear) + jnp.dot(h, matmul(quadratic, h))
        return error / jnp.where(whole > 0, whole, 1)

    return jax.vmap(lambda alpha: jax.vmap(lambda rank: score(alpha, rank))(ranks))(alphas)


def _reduced_scores(
    parts: Any, a: Array, b: Array, target: Array, roots: Any, alphas: Array, ranks: Array
) -> Array:
    keep = parts.s > 0
    measure = (lambda m: m) if roots is None else (lambda m: matmul(m, roots[0]))
    c, b = measure(parts.c), measure(b)
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


def _pick(scores: Array, alphas: Array, ranks: Array, rule: str) -> tuple[Array, Array]:
    """Indices of the chosen ridge and rank from `(folds, alphas, ranks)` scores."""
    folds = scores.shape[0]
    mean = jnp.mean(scores, axis=0).ravel()
    mean = jnp.where(jnp.isfinite(mean), mean, jnp.inf)
    best = jnp.argmin(mean)
    if rule == "one_se":
        error = jnp.std(scores, axis=0, ddof=1).ravel()[best] / jnp.sqrt(1.0 * folds)
        alpha = jnp.repeat(alphas, ranks.shape[0])
        rank = jnp.tile(ranks, alphas.shape[0])
        order = jnp.lexsort((-alpha, rank))
        best = order[jnp.argmax((mean <= mean[best] + error)[order])]
    return best // ranks.shape[0], best % ranks.shape[0]


@functools.partial(jax.jit, static_argnames="dtype")
def _choose(stats: Statistics, method: CrossValidated, *, dtype: Any) -> Solution:
    finite = is_finite(stats)
    stats = jax.tree.map(lambda a: jnp.where(finite, a, 0), stats)
    whole = merge_stacked(stats)
    solver = method.solver
    alphas, ranks = _axes(method, whole)
    held = stats.to_gram()

    # One fold after the other: the factorisations of all together would multiply the memory.
    def fold(pair: Any) -> Array:
        return _fold_scores(pair[0], pair[1], solver, alphas, ranks)

    scores = jax.lax.map(fold, (leave_one_out(stats), held))
    i, j = _pick(scores, alphas, ranks, method.rule)
    changes: dict[str, Any] = {}
    if not isinstance(solver, TruncatedSVD):
        changes |= {"alpha": alphas[i], "relative": 0.0}
    if not isinstance(solver, Ridge):
        changes |= {"rank": ranks[j]}
    solution = compute(whole, dataclasses.replace(solver, **changes), dtype)
    mean = jnp.mean(scores, axis=0)
    if isinstance(solver, Ridge):
        mean = mean[:, 0]
    elif isinstance(solver, TruncatedSVD):
        mean = mean[0]
    info = dataclasses.replace(solution.info, scores=mean)
    value = jnp.where(finite, solution.value, jnp.nan)
    return Solution(value, jnp.where(finite, solution.result, NONFINITE_DATA), info)
