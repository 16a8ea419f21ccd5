"""Tensor trains with stacked cores of one shape, and masks in place of ranks and mode sizes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from koopjax._core import as_whole, expected, pytree, traced
from koopjax.tt._precision import floating_dtype, precise, real_dtype
from koopjax.tt._trains import TensorTrain, check_core_dtype, read_core


@pytree
class PaddedTT:
    """A tensor train whose cores are stacked in one array: what vmap and scan run over.

    `A[i_1, ..., i_d] = G_1[i_1] ... G_d[i_d]` as in `TensorTrain`, with every core padded to
    `(R, N, R)`. Invariant: zero outside the masks, so sums over the padding add nothing. Ranks are
    data (masks), hence a vmap axis; only `R`, `N` and `d` are shapes.

    Args:
        cores: `(d, R, N, R)`, zero outside the masks.
        rank_mask: `(d + 1, R)`: 1 for ranks in use. The first and last rows are `(1, 0, ..., 0)`.
        mode_mask: `(d, N)`: 1 for indices in use.

    Example:
        >>> import jax.numpy as jnp
        >>> pad(TensorTrain([jnp.ones((1, 2, 1))] * 3), 4).cores.shape
        (3, 4, 2, 4)
    """

    cores: Any
    rank_mask: Any
    mode_mask: Any

    def __post_init__(self) -> None:
        """Read what was written down in NumPy."""
        for name in ("cores", "rank_mask", "mode_mask"):
            object.__setattr__(self, name, read_core(name, getattr(self, name)))

    def validate(self) -> "PaddedTT":
        """Raise `ValueError` unless the shapes fit and no rank or mode is zero; returns itself."""
        arrays = (self.cores, self.rank_mask, self.mode_mask)
        if not all(hasattr(array, "dtype") for array in arrays):
            kinds = ", ".join(type(array).__name__ for array in arrays)
            raise expected("arrays as cores and masks of a PaddedTT", kinds, "tt.pad(train, rank)")
        check_core_dtype("PaddedTT", self.cores.dtype)
        shapes = [tuple(jnp.shape(array)) for array in arrays]
        core = shapes[0]
        if len(core) != 4 or 0 in core or core[1] != core[3]:
            raise expected(
                "stacked cores (d, R, N, R), none of the sizes zero",
                f"shape {core}",
                "jax.vmap where there is a leading axis of lanes",
            )
        d, rank, size, _ = core
        if shapes[1:] != [(d + 1, rank), (d, size)]:
            raise expected(
                f"rank_mask {(d + 1, rank)} and mode_mask {(d, size)} for cores {core}",
                f"{shapes[1]} and {shapes[2]}",
                "tt.pad(train, rank)",
            )
        if not traced(self.rank_mask, self.mode_mask):
            if 0 in self.ranks or 0 in self.modes:
                raise expected(
                    "ranks and modes of at least 1", f"ranks {self.ranks}, modes {self.modes}"
                )
            if self.ranks[0] != 1 or self.ranks[-1] != 1:
                raise expected("ranks of 1 at both ends", f"{self.ranks[0]} and {self.ranks[-1]}")
        return self

    @property
    def order(self) -> int:
        """Number of cores, `d`."""
        return int(self.cores.shape[0])

    @property
    def max_rank(self) -> int:
        """The padded rank `R`."""
        return int(self.cores.shape[1])

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks in use `(r_0, ..., r_d)`; needs concrete masks."""
        return tuple(int(r) for r in np.asarray(self.rank_mask).astype(bool).sum(axis=1))

    @property
    def modes(self) -> tuple[int, ...]:
        """Mode sizes in use; needs concrete masks."""
        return tuple(int(n) for n in np.asarray(self.mode_mask).astype(bool).sum(axis=1))

    @property
    def numbers(self) -> int:
        """How many numbers the cores hold inside the masks; needs concrete masks."""
        ranks = self.ranks
        pairs = zip(ranks[:-1], self.modes, ranks[1:], strict=True)
        return sum(r * n * s for r, n, s in pairs)

    @property
    def dtype(self) -> Any:
        """The dtype of the cores, as that of a `TensorTrain`."""
        return floating_dtype(self.cores)

    def to_dense(self) -> Shaped[Array, "..."]:
        """The full tensor of the padded shape `(N, ..., N)`, zero where a mode is masked.

        The shape does not depend on the masks, so that this works under jit and vmap;
        `tt.unpad(train).to_dense()` has the shape `modes`.
        """
        from koopjax.tt._dense import dense_padded

        return dense_padded(self)


def prefix_mask(count: Any, size: int, dtype: Any) -> Array:
    """1 for the first `count` of `size` entries, the counts being an array of any shape."""
    count = jnp.asarray(count)
    places = jnp.arange(size).reshape((1,) * count.ndim + (size,))
    return (places < count[..., None]).astype(dtype)


def pad_cores(cores: Sequence[Any], rank: int, mode: int) -> Array:
    """Ragged cores as one array `(d, R, N, R)`, filled up with zeros."""
    dtype = floating_dtype(*cores)
    padded = []
    for core in cores:
        r, n, s = core.shape
        widths = ((0, rank - r), (0, mode - n), (0, rank - s))
        padded.append(jnp.pad(jnp.asarray(core, dtype), widths))
    return jnp.stack(padded)


@functools.partial(jax.jit, static_argnames=("rank", "mode"))
def padded(train: TensorTrain, *, rank: int, mode: int) -> PaddedTT:
    """`pad` without its checks."""
    cores = pad_cores(train.cores, rank, mode)
    real = real_dtype(cores.dtype)
    ranks = jnp.asarray(train.ranks, jnp.int32)
    modes = jnp.asarray(train.modes, jnp.int32)
    return PaddedTT(cores, prefix_mask(ranks, rank, real), prefix_mask(modes, mode, real))


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
    from koopjax.tt._support import check_train

    if not isinstance(train, TensorTrain):
        raise expected("a TensorTrain to pad", type(train).__name__, "tt.from_dense(array)")
    check_train("the train", train)
    rank = as_whole("the padded rank", rank, 1)
    mode = max(train.modes) if mode is None else as_whole("the padded mode", mode, 1)
    if rank < max(train.ranks) or mode < max(train.modes):
        raise expected(
            f"a padded rank of at least {max(train.ranks)} and mode of at least {max(train.modes)}",
            f"{rank} and {mode}",
            "tt.round(train, max_rank=...) first",
        )
    with precise(train):
        cores = pad_cores(train.cores, int(rank), mode)
        real = real_dtype(cores.dtype)
        ranks = jnp.asarray(train.ranks, jnp.int32)
        modes = jnp.asarray(train.modes, jnp.int32)
        return PaddedTT(cores, prefix_mask(ranks, int(rank), real), prefix_mask(modes, mode, real))


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
    from koopjax.tt._support import check_train

    if not isinstance(train, PaddedTT):
        raise expected("a PaddedTT", type(train).__name__)
    if traced(train.rank_mask, train.mode_mask):
        raise expected(
            "concrete masks, which give unpad its shapes",
            "traced ones",
            "unpad outside jit and vmap, or staying with the padded train inside",
        )
    check_train("the train", train)
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
