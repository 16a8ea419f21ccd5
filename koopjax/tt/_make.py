"""Trains from vectors, from chance, and from structure."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import as_key, check_finite, expected, precise_as
from koopjax.tt._checks import as_floating, as_ranks, check_dtype, check_modes, feasible_ranks
from koopjax.tt._precision import precise
from koopjax.tt._trains import TensorTrain, TTMatrix, split_modes


def _cores_of(one: str, several: str, shape: str, arrays: Any) -> tuple[Array, ...]:
    """Each of the arrays as a core of rank 1, if they are finite and of that shape."""
    listed = isinstance(arrays, list | tuple | np.ndarray | jax.Array)
    if not listed or getattr(arrays, "ndim", 1) < 1:
        raise expected(f"a list of {several}", f"{arrays!r:.60}")
    cores = []
    for k, given in enumerate(arrays):
        array = as_floating(f"{one} {k}", given)
        if array.ndim != (1 if one == "vector" else 2):
            raise expected(f"{one} {k} of shape {shape}", f"shape {tuple(array.shape)}")
        check_finite(f"{one} {k}", array)
        with precise(array):
            cores.append(array.reshape(1, *array.shape, 1))
    return tuple(cores)


def rank_one(vectors: Sequence[Any]) -> TensorTrain:
    """The outer product of vectors, `A[i_1, ..., i_d] = v_1[i_1] ... v_d[i_d]`.

    Args:
        vectors: `d` arrays `(n_k,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> rank_one([jnp.ones(2), jnp.ones(3)]).modes
        (2, 3)
    """
    return TensorTrain(_cores_of("vector", "vectors", "(n,)", vectors)).validate()


def kronecker(matrices: Sequence[Any]) -> TTMatrix:
    """The Kronecker product of matrices, `M_1 ⊗ ... ⊗ M_d`, as a TT matrix of rank 1.

    Args:
        matrices: `d` arrays `(m_k, n_k)`.

    Example:
        >>> import jax.numpy as jnp
        >>> kronecker([jnp.eye(2), jnp.ones((2, 3))]).shape
        (4, 6)
    """
    return TTMatrix(_cores_of("matrix", "matrices", "(m, n)", matrices)).validate()


def identity(modes: Sequence[int], dtype: Any = jnp.float32) -> TTMatrix:
    """The identity matrix on a tensor space, of rank 1.

    Example:
        >>> identity((2, 3)).shape
        (6, 6)
    """
    with precise_as(check_dtype(dtype)):
        return kronecker([np.eye(n, dtype=dtype) for n in check_modes(modes)])


@functools.partial(jax.jit, static_argnames=("mode", "rank", "dtype"))
def _entries(key: Array, k: Any, *, mode: int, rank: int, dtype: Any) -> Array:
    """Standard normal numbers `(rank, mode, rank)`, entry `(a, i, b)` from a key of its own."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    rows = fold(jax.random.fold_in(key, k), jnp.arange(mode))
    # Both ranks in one 32-bit number: they stay far below 2^16.
    places = (jnp.arange(rank)[:, None] * 65536 + jnp.arange(rank)[None, :]).reshape(-1)
    keys = jax.vmap(lambda one: fold(one, places))(rows).reshape(-1)
    values = jax.vmap(lambda one: jax.random.normal(one, (), dtype))(keys)
    return values.reshape(mode, rank, rank).transpose(1, 0, 2)


@functools.partial(jax.jit, static_argnames=("ranks", "modes"))
def _cut_cores(full: list[Array], *, ranks: tuple[int, ...], modes: tuple[int, ...]) -> TensorTrain:
    return TensorTrain(
        tuple(
            values[: ranks[k], : modes[k], : ranks[k + 1]] / math.sqrt(ranks[k + 1])
            for k, values in enumerate(full)
        )
    )


def random(
    key: Array,
    modes: Sequence[int],
    rank: int | Sequence[int],
    dtype: Any = jnp.float32,
) -> TensorTrain:
    """A random train whose entries have mean 0 and variance 1.

    Independent normal cores, each divided by the root of its right rank. Every number is drawn
    from its own place, so that a train of lower rank is the leading block of one of higher rank,
    up to that factor, and padding changes nothing.

    Args:
        key: `jax.random.key`.
        modes: mode sizes.
        rank: one rank, `d - 1` or `d + 1` of them; ranks above what the modes allow are clipped,
            as `.ranks` shows and `clip_ranks(modes, rank)` says in words.
        dtype: real or complex.

    Example:
        >>> import jax
        >>> random(jax.random.key(0), (2, 3, 2), 5).ranks
        (1, 2, 2, 1)
    """
    key = as_key("tt.random", key)
    dtype = check_dtype(dtype)
    modes = check_modes(modes)
    bounds = feasible_ranks(modes)
    ranks = [min(r, m) for r, m in zip(as_ranks(len(modes), rank), bounds, strict=True)]
    with precise_as(dtype):
        # All cores from one compiled draw; the few that are much smaller waste little.
        size = {"mode": max(modes), "rank": max(ranks), "dtype": np.dtype(dtype)}
        full = [_entries(key, k, **size) for k in range(len(modes))]
        return _cut_cores(full, ranks=tuple(ranks), modes=modes)


def random_matrix(
    key: Array,
    row_modes: Sequence[int],
    column_modes: Sequence[int],
    rank: int | Sequence[int],
    dtype: Any = jnp.float32,
) -> TTMatrix:
    """A random TT matrix whose entries have mean 0 and variance 1; see `random`.

    Example:
        >>> import jax
        >>> random_matrix(jax.random.key(0), (2, 3), (2, 2), 3).shape
        (6, 4)
    """
    rows, columns = check_modes(row_modes), check_modes(column_modes)
    if len(rows) != len(columns):
        raise expected("as many row as column modes", f"{len(rows)} and {len(columns)}")
    train = random(key, [m * n for m, n in zip(rows, columns, strict=True)], rank, dtype)
    with precise(train):
        return TTMatrix(split_modes(train.cores, rows, columns))
