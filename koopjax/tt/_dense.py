"""Trains written out in full."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import matmul
from koopjax.tt._precision import precise


@jax.jit
def _dense(train: Any) -> Array:
    """The full tensor of a `TensorTrain`."""
    out = train.cores[0][0]
    for core in train.cores[1:]:
        r, n, s = core.shape
        out = matmul(out.reshape(-1, r), core.reshape(r, n * s)).reshape(-1, s)
    return out.reshape(train.modes)


@jax.jit
def _dense_matrix(matrix: Any) -> Array:
    """The full matrix of a `TTMatrix`."""
    d = matrix.order
    out = matrix.cores[0].reshape(-1, matrix.cores[0].shape[-1])
    for core in matrix.cores[1:]:
        r = core.shape[0]
        out = matmul(out, core.reshape(r, -1)).reshape(-1, core.shape[-1])
    modes = [size for core in matrix.cores for size in core.shape[1:3]]
    order = [*range(0, 2 * d, 2), *range(1, 2 * d, 2)]
    return jnp.transpose(out.reshape(modes), order).reshape(matrix.shape)


@jax.jit
def _dense_padded(train: Any) -> Array:
    """The full tensor of a `PaddedTT`, `(N, ..., N)`."""
    out = train.cores[0][0]
    for core in train.cores[1:]:
        r, n, s = core.shape
        out = matmul(out.reshape(-1, r), core.reshape(r, n * s)).reshape(-1, s)
    return out[:, 0].reshape((train.cores.shape[2],) * train.order)


def dense(train: Any) -> Array:
    """Dispatches to the jitted contraction, in the precision of the cores."""
    with precise(train):
        return _dense(train)


def dense_matrix(matrix: Any) -> Array:
    """As `dense`, of a `TTMatrix`."""
    with precise(matrix):
        return _dense_matrix(matrix)


def dense_padded(train: Any) -> Array:
    """As `dense`, of a `PaddedTT`."""
    with precise(train):
        return _dense_padded(train)
