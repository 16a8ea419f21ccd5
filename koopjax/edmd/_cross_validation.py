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
    as_whole,
    expected,
    held_leaves,
    is_tracing,
    precise,
    pytree,
    read_numbers,
    static,
)
from koopjax.edmd._factor import is_finite
from koopjax.edmd._factorisation import Factorisation, Info, Solution, factorised
from koopjax.edmd._solvers import Solver, solved
from koopjax.edmd._statistics import (
    Statistics,
    check_statistics,
    leave_one_out,
    merge_stacked,
)

RULES = ("min", "one_se")
RANKS = 16


@pytree
class CrossValidated(Solver):
    """A solver whose ridge or rank is chosen by k-fold cross-validation.

    All grid points of a fold come from one factorisation of the other folds' statistics, and the
    held-out error from the fold's own: no pass over the data is repeated.

    Args:
        solver: `Ridge`, `TruncatedSVD`, `ReducedRank` or one of your own that names its
            `parameters`; what is not in the grid stays as set.
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
    folds: int | None = static(default=5)

    def validate(self, sizes: tuple[int, int]) -> None:
        """Raise `ValueError` if settings that are known can't be met."""
        inner: Any = self.solver
        if not isinstance(self.solver, Solver) or not inner.parameters:
            raise expected("a solver with parameters to validate", f"{inner!r:.60}", "edmd.Ridge()")
        if self.rule not in RULES:
            raise expected(f"a rule in {RULES}", repr(self.rule))
        as_whole("folds", self.folds, 2)
        # With whatever rank: those of the grid are looked at below.
        ranked = "rank" in inner.parameters
        (dataclasses.replace(inner, rank=1) if ranked else inner).validate(sizes)
        for name, values in self._axes().items():
            if name not in inner.parameters:
                raise expected(f"a grid over {inner.parameters}", repr(name))
            if values is None:
                continue
            values = read_numbers(f"the grid of {name}", values)
            if values.ndim != 1 or values.size == 0:
                raise expected("a vector of grid values", f"shape {values.shape}")
            if not is_tracing(values):
                # A rank beyond what is there would score like the largest one, silently.
                known = np.asarray(values)
                limit = inner.largest(sizes)
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

    def _axes(self) -> dict[str, Any]:
        """The grid's values by parameter."""
        own = self.solver.parameters[-1]
        return self.grid if isinstance(self.grid, dict) else {own: self.grid}

    def points(self, made: Factorisation) -> tuple[Array, Array]:
        """The grid's ridges and ranks; one of either where it does not vary."""
        solver, grid, dtype = self.solver, self._axes(), made.statistics.dtype
        alphas, ranks = grid.get("alpha"), grid.get("rank")
        if "alpha" not in grid:
            alphas = made.penalty(solver.alpha, solver.relative)[None]
        elif alphas is None:
            decades = jnp.arange(-12.0 if dtype == jnp.float64 else -6.0, 2.0, dtype=dtype)
            alphas = made.penalty(0.0, 1.0) * 10.0**decades
        if "rank" not in solver.parameters:
            ranks = jnp.full(1, made.sizes[0])
        elif "rank" not in grid:
            ranks = jnp.asarray(solver.rank)[None]
        elif ranks is None:
            largest = solver.largest(made.sizes)
            ranks = np.unique(np.round(np.geomspace(1, largest, RANKS)).astype(np.int32))
        return jnp.asarray(alphas).astype(dtype), jnp.asarray(ranks).astype(jnp.int32)

    def readout(self, info: Info) -> Solver:
        """That of the solver at the chosen point."""
        return self.solver.readout(info)

    def solve(self, source: Statistics | Factorisation, dtype: Any = None) -> Solution:
        """The solution at the chosen grid point, from the statistics of all folds together."""
        stats: Any = source
        check_statistics(stats)
        if stats.folds is None or stats.folds < 2:
            raise expected(
                "statistics stacked by at least two folds",
                "statistics of all samples together",
                "edmd.accumulate(..., folds=5)",
            )
        self.validate(stats.sizes)
        with precise(stats):
            return _choose(stats, held_leaves(self), dtype=dtype)


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
    whole = factorised(merge_stacked(stats))
    alphas, ranks = method.points(whole)

    # One fold after the other: the factorisations of all together would multiply the memory.
    def fold(pair: Any) -> Array:
        return method.solver.held_out(factorised(pair[0]), pair[1], alphas, ranks)

    scores = jax.lax.map(fold, (leave_one_out(stats), stats.to_gram()))
    i, j = _pick(scores, alphas, ranks, method.rule)
    solution = solved(whole, method.solver.at(alphas[i], ranks[j]), dtype)
    mean = jnp.mean(scores, axis=0)
    own = method.solver.parameters
    if "rank" not in own:
        mean = mean[:, 0]
    elif "alpha" not in own:
        mean = mean[0]
    info = dataclasses.replace(solution.info, scores=mean)
    value = jnp.where(finite, solution.value, jnp.nan)
    return Solution(value, jnp.where(finite, solution.result, NONFINITE_DATA), info)
