"""Tensor trains with stacked cores of one shape, and masks in place of ranks and mode sizes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import as_whole, expected, traced
from koopjax.tt._precision import floating_dtype, precise, real_dtype
from koopjax.tt._trains import PaddedTT, TensorTrain, check_train


def prefix_mask(count: Any, size: int, dtype: Any) -> Array:
    """1 for the first `count` of `size` entries, the counts being an array of any shape."""
    count = jnp.asarray(count)
    places = jnp.arange(size).reshape((1,) * count.ndim + (size,))
    return (places < count[..., None]).astype(dtype)


@functools.partial(jax.jit, static_argnames=("rank", "mode"))
def padded(train: TensorTrain, *, rank: int, mode: int) -> PaddedTT:
    """`pad` without its checks."""
    dtype, cores = floating_dtype(*train.cores), []
    for core in train.cores:
        r, n, s = core.shape
        widths = ((0, rank - r), (0, mode - n), (0, rank - s))
        cores.append(jnp.pad(jnp.asarray(core, dtype), widths))
    real = real_dtype(dtype)
    ranks = prefix_mask(np.asarray(train.ranks), rank, real)
    return PaddedTT(jnp.stack(cores), ranks, prefix_mask(np.asarray(train.modes), mode, real))


def as_padded(train: Any) -> PaddedTT:
    """A ragged train in the least padding; a padded one as it is."""
    if isinstance(train, PaddedTT):
        return train
    return padded(train, rank=max(train.ranks), mode=max(train.modes))


def cut(train: PaddedTT, ranks: Sequence[int], modes: Sequence[int]) -> TensorTrain:
    """The leading blocks of padded cores, whose ranks and modes are known: inside jit."""
    blocks = zip(train.cores, ranks[:-1], modes, ranks[1:], strict=True)
    return TensorTrain(tuple(core[:r, :n, :s] for core, r, n, s in blocks))


def bounded(ranks: Sequence[int], modes: Sequence[int], left: int, right: int) -> tuple[int, ...]:
    """Ranks after exact sweeps from the left over `left` cores and from the right down to `right`.

    A QR of `(r n, s)` leaves at most `r n` columns.
    """
    out = list(ranks)
    for k in range(left):
        out[k + 1] = min(out[k + 1], out[k] * modes[k])
    for k in range(len(modes) - 1, right - 1, -1):
        out[k] = min(out[k], out[k + 1] * modes[k])
    return tuple(out)


def pad(train: Any, rank: int, mode: int | None = None) -> PaddedTT:
    """A ragged train as a padded one; the tensor is the same.

    Args:
        train: `TensorTrain`.
        rank: padded rank `R`, at least the largest TT rank (static).
        mode: padded mode size `N`; the largest mode by default (static).

    Returns:
        `PaddedTT` with cores `(d, R, N, R)`. To stack lanes of several trains, pad them to the
        same sizes and `jax.tree.map(lambda *a: jnp.stack(a), *lanes)`.

    Example:
        >>> import jax.numpy as jnp
        >>> pad(TensorTrain([jnp.ones((1, 2, 3)), jnp.ones((3, 4, 1))]), 5).ranks
        (1, 3, 1)
    """
    check_train("the train to pad", train, TensorTrain)
    rank = as_whole("the padded rank", rank, 1)
    mode = max(train.modes) if mode is None else as_whole("the padded mode", mode, 1)
    if rank < max(train.ranks) or mode < max(train.modes):
        raise expected(
            f"a padded rank of at least {max(train.ranks)} and mode of at least {max(train.modes)}",
            f"{rank} and {mode}",
            "tt.round(train, max_rank=...) first",
        )
    with precise(train):
        return padded(train, rank=rank, mode=mode)


def unpad(train: PaddedTT) -> TensorTrain:
    """A padded train with its masked entries cut away; outside jit, since shapes come from masks.

    Args:
        train: `PaddedTT` with concrete masks; of vmapped lanes, take one by
            `jax.tree.map(lambda a: a[i], lanes)`.

    Example:
        >>> import jax.numpy as jnp
        >>> unpad(pad(TensorTrain([jnp.ones((1, 2, 1))] * 2), 4)).ranks
        (1, 1, 1)
    """
    check_train("the train to unpad", train, PaddedTT)
    if traced(train.rank_mask, train.mode_mask):
        raise expected(
            "concrete masks, which give unpad its shapes",
            "traced ones",
            "unpad outside jit and vmap, or staying with the padded train inside",
        )
    keep = [np.flatnonzero(row) for row in np.asarray(train.rank_mask)]
    kept_modes = [np.flatnonzero(row) for row in np.asarray(train.mode_mask)]
    with precise(train):
        host = jax.device_get(train.cores)
        return TensorTrain(
            tuple(
                jnp.asarray(host[k][np.ix_(keep[k], kept_modes[k], keep[k + 1])])
                for k in range(train.order)
            )
        )
