"""All ranks of a reduced-rank regression from one factorisation of one set of statistics."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import edmd
from koopjax._core import (
    check_metric,
    expected,
    matmul,
    own_rules,
    precise,
    pytree,
    read_numbers,
    semidefinite_root,
)
from koopjax.sweep._grid import grid
from koopjax.sweep._table import RankTable

Statistics = edmd.Gram | edmd.RFactor


@pytree
class Family:
    """The fits of every rank at one ridge (a leading axis stacks several).

    Leading columns of `left`, `(p, k)`, and rows of `right`, `(k, q)`, with `k = min(p, q)` are the
    factors of any smaller rank; `error` and `held` (validation, NaN without) are of each rank.
    """

    left: Any
    right: Any
    error: Any
    held: Any
    condition: Any
    result: Any


@dataclasses.dataclass(frozen=True)
class LowRankTable(RankTable):
    """A table over ranks, with the factors of all of them.

    Attributes:
        family: the factors, stacked over the ridges.
        alphas: the ridges.
    """

    family: Any = None
    alphas: tuple[float, ...] = ()

    def fit(
        self, rank: int, alpha: float | None = None
    ) -> tuple[Float[Array, "p r"], Float[Array, "r q"]]:
        """The thin factors of one fit, `K = left @ right`, as `edmd.low_rank` gives them.

        Args:
            rank: any up to min(p, q), in the table or not.
            alpha: one of the ridges; may be left out where there is one.
        """
        which = position("alpha", alpha, self.alphas)
        (k,) = check_ranks([rank], self.family.right.shape[1])
        # Cut on the host: on the device each rank would be a program of its own.
        left, right = np.asarray(self.family.left), np.asarray(self.family.right)
        with precise(self.family):
            return jax.device_put(left[which, :, :k]), jax.device_put(right[which, :k])


def position(name: str, value: Any, known: Sequence[Any]) -> int:
    """Where a value stands among those that were swept; None where there is only one."""
    if value is None and len(known) == 1:
        return 0
    if value not in known:
        raise expected(f"{name} among {list(known)}", f"{value}")
    return list(known).index(value)


def check_ranks(ranks: Any, largest: int | None = None) -> tuple[int, ...]:
    """Ranks as Python numbers, or an error: none, zero, broken or too large ones."""
    try:
        listed = list(ranks)
    except TypeError:
        raise expected("a sequence of ranks", f"{ranks!r}", "range(1, 9)") from None
    if not listed:
        raise expected("at least one rank", "an empty sequence")
    for rank in listed:
        number = rank if isinstance(rank, int | float | np.number) else 0
        whole = not isinstance(rank, bool) and int(number) == number
        if not whole or number < 1 or (largest is not None and number > largest):
            limit = "" if largest is None else f" to {largest}"
            raise expected(f"whole ranks from 1{limit}", f"{rank}")
    return tuple(int(rank) for rank in listed)


def listed_alphas(alpha: Any) -> tuple[float, ...]:
    """A ridge or several as Python numbers, or an error."""
    values = np.asarray(alpha, np.float64)
    if values.ndim > 1 or values.size == 0 or not (np.isfinite(values) & (values >= 0)).all():
        raise expected("ridges alpha of at least 0, and finite", f"{alpha}")
    return tuple(float(a) for a in values.ravel())


def _gram_errors(stats: Statistics, left: Array, right: Array, metric: Array | None) -> Array:
    """`‖(Ψx K_r − Ψy) M^{1/2}‖² / ‖Ψy M^{1/2}‖²` of all leading ranks, from second moments.

    With `K_r = Σ_{i≤r} l_i r_iᵀ` each rank adds its own row of `LᵀGL ∘ RMRᵀ` and a linear term, so
    that all ranks are cumulative sums of what the largest one needs anyway.
    """
    moments = stats.to_gram()
    weighted = right if metric is None else matmul(right, metric)
    quadratic = matmul(left.T, matmul(moments.gram, left)) * matmul(weighted, right.T)
    linear = jnp.sum(matmul(left.T, moments.cross) * weighted, axis=1)
    target = moments.target_gram
    whole = jnp.trace(target) if metric is None else jnp.sum(target * metric)
    added = 2 * jnp.sum(jnp.triu(quadratic, 1), axis=0) + jnp.diagonal(quadratic) - 2 * linear
    return _ratio(whole + jnp.cumsum(added), whole)


def _factor_errors(stats: edmd.RFactor, left: Array, right: Array, metric: Array | None) -> Array:
    """The same from an R factor, by residuals, so that small errors keep their digits."""
    r, p = stats.r, stats.p
    if metric is not None:
        root = semidefinite_root(metric).half
        r = jnp.concatenate([r[:, :p], matmul(r[:, p:], root)], axis=1)
        right = matmul(right, root)
    below = jnp.sum(r[p:, p:] ** 2)
    columns = matmul(r[:p, :p], left)

    def add(rest: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        rest = rest - pair[0][:, None] * pair[1][None, :]
        return rest, jnp.sum(rest**2)

    _, squared = jax.lax.scan(add, r[:p, p:], (columns.T, right))
    return _ratio(squared + below, jnp.sum(r[:, p:] ** 2))


def _ratio(squared: Array, whole: Array) -> Array:
    positive = (squared > 0) & (whole > 0)
    ratio = jnp.where(positive, squared, 1) / jnp.where(whole > 0, whole, 1)
    return jnp.where(positive, jnp.sqrt(ratio), 0)


@jax.jit
def _families(
    stats: Statistics, alphas: Array, relative: Array, metric: Array | None, held: Any
) -> Family:
    errors = _factor_errors if isinstance(stats, edmd.RFactor) else _gram_errors

    # One factorisation for all ridges and ranks.
    made = edmd.factorise(stats)

    def one(alpha: Array) -> Family:
        outcome = edmd.Ridge(alpha, relative).compute(made)
        judged = made.judged(outcome)
        left, right = made.factors(outcome.alpha, metric)
        error = errors(made.statistics, left, right, metric)  # pyright: ignore[reportArgumentType]
        held_error = jnp.full_like(error, jnp.nan)
        if held is not None:
            held_error = _gram_errors(held, left, right, metric)
        known = lambda a: jnp.where(made.finite, a, jnp.nan)
        return Family(
            left=known(left),
            right=known(right),
            error=known(error),
            held=known(held_error),
            condition=judged.info.condition,
            result=judged.result,
        )

    return jax.lax.map(one, alphas)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A user's score of the factors at masked ranks; equal for equal scores, as jit needs it."""

    score: Callable[..., Any]

    def __call__(self, left: Array, right: Array, *, at: Array, rank: Array) -> dict[str, Any]:
        mask = jnp.arange(right.shape[1]) < rank
        kept = mask.astype(left.dtype)
        made = self.score(left[at] * kept[None, :], right[at] * kept[:, None])
        return dict(made) if isinstance(made, Mapping) else {"score": made}


@own_rules()
def reduced_ranks(
    statistics: Statistics,
    ranks: Sequence[int] | None = None,
    *,
    metric: Float[Array, "q q"] | None = None,
    alpha: float | Sequence[float] = 0.0,
    relative: float = 0.0,
    validation: Statistics | None = None,
    score: Callable[..., Any] | None = None,
    lanes: str = "vmap",
    memory_limit: float | str | None = None,
) -> LowRankTable:
    """Reduced-rank regressions of all ranks from one set of EDMD statistics.

    The factors of all ranks are leading columns of those of the largest, so one factorisation a
    ridge serves all of them, and their errors are cumulative sums of one product.

    Args:
        statistics: `edmd.Gram` or `edmd.RFactor`.
        ranks: from 1 to `min(p, q)`; None for all.
        metric: `(q, q)`, what an error in the outputs costs.
        alpha: a ridge, or several; absolute.
        relative: a ridge in units of the mean squared column norm.
        validation: statistics of held-out samples.
        score: called as `score(left, right)` on factors `(p, k)` and `(k, q)` masked to the rank;
            returns a scalar or a dict of them, which become columns.
        lanes, memory_limit: of the scores, as for `grid`.

    Returns:
        A row for each rank at each ridge, ranks running fastest, as `ranks` says.

    Numerics:
        What `edmd.solve` costs for one rank, and `2 p² min(p, q)` operations. From a Gram matrix
        errors below the root of the rounding unit are lost in cancellation; from an R factor they
        are not.
    """
    if statistics.folds is not None:
        raise expected(
            "statistics of all samples together",
            f"{statistics.folds} folds",
            "edmd.total(statistics), with validation= for a score",
        )
    p, q = statistics.sizes
    chosen = check_ranks(range(1, min(p, q) + 1) if ranks is None else ranks, min(p, q))
    alphas = listed_alphas(alpha)
    metric = None if metric is None else read_numbers("the metric", metric)
    check_metric("metric", metric, q)
    if validation is not None and getattr(validation, "sizes", None) != (p, q):
        got = f"{getattr(validation, 'sizes', type(validation).__name__)}"
        raise expected(f"validation statistics of sizes {(p, q)}", got)
    with precise(statistics):
        dtype = statistics.dtype
        family = _families(
            statistics,
            np.asarray(alphas, dtype),
            np.asarray(relative, dtype),
            None if metric is None else jnp.asarray(metric).astype(dtype),
            None if validation is None else validation.astype(dtype),
        )
        scores = None
        if score is not None:
            scores = grid(
                _Scored(score), {"at": range(len(alphas)), "rank": chosen},
                data=(family.left, family.right), lanes=lanes, memory_limit=memory_limit,
            )  # fmt: skip
    found = jax.device_get((family.error, family.held, family.condition, family.result))
    error, held, condition, result = found
    rows = []
    for i, (at, rank) in enumerate(itertools.product(range(len(alphas)), chosen)):
        row: dict[str, Any] = {"alpha": alphas[at], "rank": rank}
        row["error"] = float(error[at, rank - 1])
        if validation is not None:
            row["validation_error"] = float(held[at, rank - 1])
        row |= {"numbers": rank * (p + q), "condition": float(condition[at])}
        scored = {} if scores is None else scores.rows[i]
        row |= {k: v for k, v in scored.items() if k not in ("at", "rank", "result")}
        row["result"] = max(int(result[at]), scored.get("result", 0))
        rows.append(row)
    arrays = {} if scores is None else scores.arrays
    return LowRankTable(rows, ("alpha", "rank"), arrays, family, alphas)
