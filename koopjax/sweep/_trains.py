"""Tensor-train ranks, ridges and seeds in one call: lanes padded to a few sizes."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import cast, check_finite, expected, has_float64, own_rules, working_dtype
from koopjax.sweep._buckets import bucket_sizes
from koopjax.sweep._grid import grid, wide
from koopjax.sweep._reduced import check_ranks, listed_alphas, position
from koopjax.sweep._table import Table
from koopjax.tensor_edmd import PaddedKoopman, TensorKoopman, separable
from koopjax.tensor_edmd._als import BLOCK, MAX_LOCAL, _check_counts, _check_data, _fit
from koopjax.tensor_edmd._padded import feasible

LANES = ("auto", "vmap", "map")


@dataclasses.dataclass(frozen=True)
class TrainTable(Table):
    """A table over tensor-train ranks, with the fits.

    Attributes:
        psi: the dictionary.
        fits: a padded fit's arrays for each row.
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
        fields = self.fits[found]
        double = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(fields))
        with jax.enable_x64(True) if double else wide(self.psi):
            return PaddedKoopman(self.psi, *jax.tree.map(jnp.asarray, fields)).unpad()


@dataclasses.dataclass(frozen=True)
class _Lane:
    """One fit at a padded size; equal for equal settings, so that nothing is compiled twice."""

    sweeps: int
    block: int
    patience: int | None
    narrow: Any
    wide: Any
    score: Callable[..., Any] | None

    def __call__(
        self, psi: Any, x: Array, y: Array, x_val: Any, y_val: Any, metric: Any, keys: Array,
        *, size: int, rank: Array, alpha: Array, seed: Array,
    ) -> dict[str, Any]:  # fmt: skip
        fields = _fit(
            psi, x, y, x_val, y_val, metric, rank, keys[seed], alpha, 0.0, None, size=size,
            sweeps=self.sweeps, block=self.block, adaptive=False, patience=self.patience,
            narrow=self.narrow, wide=self.wide, stored=np.dtype(x.dtype),
        )  # fmt: skip
        fields = cast(fields, x.dtype)
        fit = PaddedKoopman(psi, *fields)
        out = {"error": fit.info.residual}
        if x_val is not None:
            out["validation_error"] = fit.validation
        if self.score is not None:
            made = self.score(fit)
            out.update(made if isinstance(made, Mapping) else {"score": made})
        out["numbers"] = _numbers(fit, separable(psi)[1].modes(), y.shape[1])
        return {**out, "condition": fit.info.condition, "result": fit.result, "fit": fields}


def _numbers(fit: PaddedKoopman, modes: tuple[int, ...], q: int) -> Array:
    """Numbers in the cores at their exact ranks."""
    outputs = jnp.where(jnp.arange(len(modes)) == fit.position, q, 1)
    ranks = fit.ranks.astype(jnp.int32)
    sizes = ranks[:-1] * jnp.asarray(modes, jnp.int32) * ranks[1:] * outputs.astype(jnp.int32)
    return jnp.sum(sizes).astype(jnp.int32)


@own_rules()
def train_ranks(
    psi: Any,
    x: Any,
    y: Any,
    ranks: Any,
    key: Any,
    *,
    alpha: Any = 0.0,
    sweeps: int = 4,
    x_val: Any = None,
    y_val: Any = None,
    metric: Any = None,
    score: Callable[..., Any] | None = None,
    buckets: Any = None,
    batch_size: int | None = None,
    patience: int | None = None,
    dtype: Any = None,
    lanes: str = "auto",
    chunk: int | None = None,
    memory_limit: float | str | None = None,
    ledger: Any = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainTable:
    """The second form of `ranks`; described there."""
    chosen, alphas = check_ranks(ranks), listed_alphas(alpha)
    if lanes not in LANES:
        raise expected(f"lanes in {LANES}", repr(lanes))
    for name, value in (("x", x), ("y", y), ("x_val", x_val), ("y_val", y_val), ("metric", metric)):
        if value is not None:
            with wide(value):
                check_finite(name, value)
    keys = _keys(key)
    with wide((x, y)):
        _check_counts(max(chosen), sweeps, batch_size, patience)
        data, modes = _check_data(psi, x, y, x_val, y_val, metric)
    most = max(feasible(modes, 2**30))
    sizes = bucket_sizes([min(rank, most) for rank in chosen], buckets)
    local = min(max(sizes.values()), most) ** 2 * max(modes)
    if local > MAX_LOCAL:
        raise expected(
            f"at most {MAX_LOCAL:,} unknowns in a local problem", f"{local:,}", "smaller ranks"
        )
    narrow = np.dtype(working_dtype(data[0].dtype if dtype is None else dtype))
    double = has_float64()
    lane = _Lane(
        sweeps, min(batch_size or BLOCK, data[0].shape[0]), patience, narrow,
        np.dtype(np.float64) if double else narrow, score,
    )  # fmt: skip
    if lanes == "auto":
        # On a CPU factorisations of a batch run one after another in any case, and lanes in turn
        # take the memory of one.
        lanes = "map" if jax.default_backend() == "cpu" else "vmap"
    points = list(itertools.product(range(len(alphas)), range(keys.shape[0]), chosen))
    with jax.enable_x64(double):
        made = grid(
            lane,
            {
                "size": [min(sizes[min(rank, most)], most) for _, _, rank in points],
                "rank": np.asarray([rank for _, _, rank in points], np.int32),
                "alpha": jnp.asarray(np.asarray([alphas[at] for at, _, _ in points], lane.wide)),
                "seed": np.asarray([seed for _, seed, _ in points], np.int32),
            },
            data=(psi, *data, keys),
            static=("size",),
            zip=True,
            lanes=lanes,
            chunk=chunk,
            memory_limit=memory_limit,
            ledger=ledger,
            progress=progress,
        )
    return _train_table(psi, made, alphas, points)


def _keys(key: Any) -> Array:
    """A vector of random keys from one or several."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.ndim > 1 or key.size == 0:
        raise expected(
            "a random key, or a vector of them",
            f"{type(key).__name__}",
            "jax.random.split(jax.random.key(0), 5)",
        )
    return key if key.ndim == 1 else key.reshape(1)


def _train_table(
    psi: Any, made: Table, alphas: tuple[float, ...], points: list[tuple[int, int, int]]
) -> TrainTable:
    rows = []
    for row, (at, _, _) in zip(made.rows, points, strict=True):
        place = {"alpha": alphas[at], "seed": row["seed"], "rank": row["rank"]}
        rest = {k: v for k, v in row.items() if k not in ("size", *place)}
        rows.append({**place, **rest})
    fits = made.arrays["fit"]
    arrays = {name: entries for name, entries in made.arrays.items() if name != "fit"}
    return TrainTable(rows, ("alpha", "seed", "rank"), arrays, psi, tuple(fits))
