"""All ranks of a fit in one call; those of tensor trains as lanes padded to a few sizes."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import edmd
from koopjax._core import expected, has_float64, on_device, own_rules
from koopjax.sweep._grid import grid, wide
from koopjax.sweep._reduced import check_ranks, listed_alphas, position, reduced_ranks
from koopjax.sweep._table import RankTable
from koopjax.tensor_edmd import AlsFitter, AlsSettings, TensorKoopman

LANES = ("auto", "vmap", "map")
#: Settings of `als` that a sweep takes; its ranks are fixed, so `adaptive` is none of them.
FITTING = ("sweeps", "batch_size", "patience", "dtype")
#: The work of a local problem grows with the fourth power of the rank, measured for ranks 6 to 16.
POWER = 4
#: How much more work than without padding is allowed, as the model counts it.
WASTE = 1.35


@dataclasses.dataclass(frozen=True)
class TrainTable(RankTable):
    """A table over tensor-train ranks, with the fits.

    Attributes:
        psi: the dictionary.
        fits: a `PaddedKoopman` without its dictionary for each row.
    """

    psi: Any = None
    fits: tuple[Any, ...] = ()

    @own_rules()
    def fit(self, rank: int, alpha: float | None = None, seed: int | None = None) -> TensorKoopman:
        """One of the fits, with its exact ranks.

        Args:
            rank: one of those that were swept.
            alpha, seed: the same; may be left out where there is one.
        """
        wanted = {"alpha": alpha, "seed": seed, "rank": rank}
        for name, value in wanted.items():
            known = list(dict.fromkeys(row[name] for row in self.rows))
            wanted[name] = known[position(name, value, known)]
        found = next(
            i for i, row in enumerate(self.rows) if all(row[k] == v for k, v in wanted.items())
        )
        fit = self.fits[found]
        double = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(fit))
        with jax.enable_x64(True) if double else wide(self.psi):
            return dataclasses.replace(jax.tree.map(jnp.asarray, fit), psi=self.psi).unpad()


@dataclasses.dataclass(frozen=True)
class _Lane:
    """One fit at a padded size; equal for equal scores, so that nothing is compiled twice."""

    score: Callable[..., Any] | None

    def __call__(
        self, fitter: AlsFitter, keys: Array, *, size: int, rank: Array, alpha: Array, seed: Array
    ) -> dict[str, Any]:
        fit = fitter.fit(rank, keys[seed], max_rank=size, alpha=alpha)
        out = {"error": fit.info.residual}
        if fitter.x_val is not None:
            out["validation_error"] = fit.validation
        if self.score is not None:
            made = self.score(fit)
            out.update(made if isinstance(made, Mapping) else {"score": made})
        bare = dataclasses.replace(fit, psi=None)
        out.update(numbers=fit.numbers, condition=fit.info.condition, result=fit.result, fit=bare)
        return out


@own_rules()
def train_ranks(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    ranks: Sequence[int],
    key: Array,
    *,
    alpha: float | Sequence[float] = 0.0,
    x_val: Any = None,
    y_val: Any = None,
    metric: Any = None,
    score: Callable[..., Any] | None = None,
    buckets: Sequence[int] | None = None,
    lanes: str = "auto",
    **settings: Any,
) -> TrainTable:
    """Tensor trains of many ranks, ridges and seeds by `tensor_edmd.als`, in one call.

    Each fit is a lane of a compiled program, padded to one of a few sizes; one compilation a size.

    Args:
        psi: a `Product`, or a `Compose` that ends in one.
        x: `(n, d)`.
        y: `(n, q)`.
        ranks: TT ranks; clipped to what the modes allow, which the fit's `info.reason` says.
        key: of the random starts, or a vector of keys for as many seeds.
        alpha: a ridge, or several; absolute.
        x_val, y_val, metric: as for `als`.
        score: a function of the fit, a `PaddedKoopman`, returning a scalar or a dict of them,
            which become columns.
        buckets: the sizes that lanes are padded to (None: the fewest that cost at most a third more
            work than no padding, 7, 11, 14 and 16 for ranks 1 to 16).
        lanes: as for `grid`; "auto" is "map" on a CPU and "vmap" elsewhere.
        **settings: `sweeps`, `batch_size`, `patience` and `dtype` as for `als`; `chunk`,
            `memory_limit`, `ledger` and `progress` as for `grid`.

    Returns:
        A row for each rank at each ridge and seed, ranks running fastest, as `ranks` says.

    Numerics: as many single fits, of the padded sizes.

    Raises:
        ValueError: what `ranks` raises; NaN or infinity in `x` or `y`; a memory limit below what
            one lane takes.
    """
    chosen, alphas, keys = check_ranks(ranks), listed_alphas(alpha), _keys(key)
    if lanes not in LANES:
        raise expected(f"lanes in {LANES}", repr(lanes))
    how = AlsSettings(**{name: settings.pop(name) for name in FITTING if name in settings})
    fitter = AlsFitter.of(psi, x, y, how, x_val, y_val, metric)
    fitter.require_finite()
    most = fitter.largest_rank
    sizes = bucket_sizes([min(rank, most) for rank in chosen], buckets)
    fitter.size(max(sizes.values()))
    if lanes == "auto":
        # On a CPU factorisations of a batch run one after another in any case, and lanes in turn
        # take the memory of one.
        lanes = "map" if jax.default_backend() == "cpu" else "vmap"
    points = list(itertools.product(range(len(alphas)), range(keys.shape[0]), chosen))
    with jax.enable_x64(has_float64()):
        made = grid(
            _Lane(score),
            {
                "size": [min(sizes[min(rank, most)], most) for _, _, rank in points],
                "rank": np.asarray([rank for _, _, rank in points], np.int32),
                "alpha": on_device(np.asarray([alphas[at] for at, _, _ in points]), fitter.wide),
                "seed": np.asarray([seed for _, seed, _ in points], np.int32),
            },
            data=(fitter, keys),
            static=("size",),
            zip=True,
            lanes=lanes,
            **settings,
        )
    rows = []
    for row, (at, _, _) in zip(made.rows, points, strict=True):
        place = {"alpha": alphas[at], "seed": row["seed"], "rank": row["rank"]}
        rows.append(place | {k: v for k, v in row.items() if k not in ("size", *place)})
    arrays = {name: entries for name, entries in made.arrays.items() if name != "fit"}
    fits = tuple(made.arrays["fit"])
    return TrainTable(rows, ("alpha", "seed", "rank"), arrays, psi, fits)


def _keys(key: Any) -> Array:
    """A vector of random keys from one or several."""
    if getattr(key, "dtype", None) == np.uint32:
        with contextlib.suppress(TypeError, ValueError):
            key = jax.random.wrap_key_data(jnp.asarray(key))
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.ndim > 1 or key.size == 0:
        raise expected(
            "a random key, or a vector of them",
            f"{type(key).__name__}",
            "jax.random.split(jax.random.key(0), 5)",
        )
    return key if key.ndim == 1 else key.reshape(1)


def _cheapest(ranks: Sequence[int], count: int) -> tuple[int, ...]:
    """Sizes of at most so many buckets that cover sorted ranks with the least work.

    Dynamic programming over where a bucket ends: each pads all of its lanes to its last rank.
    """

    @functools.cache
    def best(end: int, count: int) -> tuple[float, tuple[int, ...]]:
        """Of the first `end` ranks."""
        if not end or not count:
            return (math.inf if end else 0.0), ()
        options = []
        for start in range(end):
            work, sizes = best(start, count - 1)
            work += (end - start) * float(ranks[end - 1]) ** POWER
            options.append((work, (*sizes, ranks[end - 1])))
        return min(options)

    return best(len(ranks), count)[1]


def bucket_sizes(ranks: Sequence[int], buckets: Any = None) -> dict[int, int]:
    """The size that each rank is padded to: of those given, or the fewest sizes of little waste."""
    known = sorted(set(ranks))
    covered = lambda sizes: {rank: min(size for size in sizes if size >= rank) for rank in known}
    if buckets is None:
        work = lambda sizes: sum(float(size) ** POWER for size in sizes)
        plans = (covered(_cheapest(known, count)) for count in range(1, len(known) + 1))
        return next(plan for plan in plans if work(plan.values()) <= WASTE * work(known))
    sizes = check_ranks(buckets)
    if max(sizes) < known[-1]:
        got = f"sizes {sorted(sizes)}"
        raise expected(f"a bucket for rank {known[-1]}", got, f"adding {known[-1]}")
    return covered(sizes)


def ranks(first: Any, /, *arguments: Any, **settings: Any) -> RankTable:
    """Fits of many ranks, ridges and seeds in one call: how much of the error each rank is worth.

    `ranks(statistics, ranks)` is `reduced_ranks`, regression from one set of EDMD statistics;
    `ranks(psi, x, y, ranks, key)` is `train_ranks`, tensor trains over a product dictionary.

    Args:
        first: `edmd.Gram` or `edmd.RFactor`; or a dictionary.
        *arguments: the ranks; with a dictionary `x`, `y`, the ranks and a key.
        **settings: as for `reduced_ranks` or `train_ranks`.

    Returns:
        A table with a row for each rank at each ridge (and seed): `error`, relative, on the samples
        of the fit; `validation_error`; `numbers` that the fit stores; `condition`; `result`, an
        int32 code. Its `.fit(rank, ...)` gives a fit.

    Raises:
        ValueError: no ranks, a rank of zero, broken or too large; a negative ridge; shapes that do
            not match.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.random.normal(jax.random.key(0), (100, 4))
        >>> statistics = edmd.Gram.from_batch(x, x * jnp.array([1.0, 0.1, 0.01, 0.0]))
        >>> table = ranks(statistics, [1, 2, 3])
        >>> table.best("error", within=0.02, least="numbers")["rank"]
        2
    """
    if isinstance(first, edmd.Gram | edmd.RFactor):
        if len(arguments) > 1:
            raise expected(
                "ranks(statistics, ranks, alpha=...), all else by name",
                f"{len(arguments)} arguments after the statistics",
            )
        return reduced_ranks(first, *arguments, **settings)
    if len(arguments) + len({"x", "y", "ranks", "key"} & set(settings)) != 4:
        raise expected(
            "statistics and ranks, or a dictionary, x, y, ranks and a key",
            f"{type(first).__name__} and {len(arguments)} more",
        )
    return train_ranks(first, *arguments, **settings)
