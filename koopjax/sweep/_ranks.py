"""All ranks of a fit in one call."""

from typing import Any

from koopjax import edmd
from koopjax._core import expected
from koopjax.sweep._reduced import reduced_ranks
from koopjax.sweep._table import RankTable
from koopjax.sweep._trains import train_ranks


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
