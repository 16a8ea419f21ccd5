"""All ranks of a fit in one call."""

import os
from collections.abc import Callable, Sequence
from typing import Any, overload

from jaxtyping import Array, Float

from koopjax import edmd
from koopjax._core import expected
from koopjax.sweep._reduced import LowRankTable, reduced_ranks
from koopjax.sweep._trains import TrainTable, train_ranks


@overload
def ranks(
    statistics: edmd.Gram | edmd.RFactor,
    ranks: Sequence[int] | None = None,
    /,
    *,
    metric: Float[Array, "q q"] | None = None,
    alpha: float | Sequence[float] = 0.0,
    relative: float = 0.0,
    validation: edmd.Gram | edmd.RFactor | None = None,
    score: Callable[..., Any] | None = None,
    lanes: str = "vmap",
    memory_limit: float | str | None = None,
) -> LowRankTable: ...


@overload
def ranks(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    ranks: Sequence[int],
    key: Array,
    /,
    *,
    alpha: float | Sequence[float] = 0.0,
    sweeps: int = 4,
    x_val: Any = None,
    y_val: Any = None,
    metric: Any = None,
    score: Callable[..., Any] | None = None,
    buckets: Sequence[int] | None = None,
    batch_size: int | None = None,
    patience: int | None = None,
    dtype: Any = None,
    lanes: str = "auto",
    chunk: int | None = None,
    memory_limit: float | str | None = None,
    ledger: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrainTable: ...


def ranks(first: Any, /, *arguments: Any, **settings: Any) -> LowRankTable | TrainTable:
    """Fits of many ranks, ridges and seeds in one call: how much of the error each rank is worth.

    `ranks(statistics, ranks)`: reduced-rank regression from one set of EDMD statistics. The factors
    of all ranks are leading columns of those of the largest, so one factorisation a ridge serves
    all of them, and their errors are cumulative sums of one product.

    `ranks(psi, x, y, ranks, key)`: tensor trains by `tensor_edmd.als`. Each fit is a lane of a
    compiled program, padded to one of a few sizes; one compilation a size.

    Args:
        first: `edmd.Gram` or `edmd.RFactor`; or the dictionary, a `Product` or a `Compose` that
            ends in one, followed by `x` `(n, d)` and `y` `(n, q)`.
        *arguments: the ranks (with statistics: None for all); with a dictionary also a key, or a
            vector of keys for as many seeds.
        **settings: for both forms:
            `alpha`: a ridge, or several; absolute.
            `metric`: `(q, q)`, what an error in the outputs costs.
            `score`: a function of the fit returning a scalar or a dict of them, which become
            columns. With statistics it is called as `score(left, right)`, factors `(p, k)` and
            `(k, q)` masked to the rank; with a dictionary as `score(fit)`, a `PaddedKoopman`.
            `lanes`, `memory_limit`: as for `grid`; with a dictionary `lanes="auto"` is "map" on a
            CPU and "vmap" elsewhere.
            With statistics: `relative`, a ridge in units of the mean squared column norm;
            `validation`, statistics of held-out samples.
            With a dictionary: `sweeps`, `x_val`, `y_val`, `batch_size`, `patience`, `dtype` as for
            `als`; `buckets`, the sizes that lanes are padded to (None: the fewest that cost at most
            a third more work than no padding, 7, 11, 14 and 16 for ranks 1 to 16); `chunk`,
            `ledger`, `progress` as for `grid`.

    Returns:
        A `Table` with a row for each rank at each ridge (and seed), ranks running fastest: `error`,
        relative, on the samples of the fit; `validation_error`; `numbers` that the fit stores;
        `condition`; `result`, an int32 code. Its `.fit(rank, ...)` gives a fit: the thin factors
        `(left, right)`, or a `TensorKoopman`.

    Numerics:
        With statistics: what `edmd.solve` costs for one rank, and `2 p² min(p, q)` operations. From
        a Gram matrix errors below the root of the rounding unit are lost in cancellation; from an R
        factor they are not. With a dictionary: as many single fits, of the padded sizes. Sums over
        samples and factorisations are in float64 where the backend has it.

    Raises:
        ValueError: no ranks, a rank of zero, broken or too large; a negative ridge; shapes that do
            not match; NaN or infinity in `x` or `y`; a memory limit below what one lane takes.

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
