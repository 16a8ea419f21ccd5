"""Trains written out in full."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import matmul
from koopjax.tt._precision import precise
from koopjax.tt._range import even, lifted, shift


def _rows(cores: Any) -> Array:
    """All rows of the product of cores `(r, n, s)`, `(∏ n, s)`, each scaled by itself."""
    out, e = jnp.ones((1, cores[0].shape[0]), cores[0].dtype), jnp.zeros(1, jnp.int32)
    for core in cores:
        r, n, s = core.shape
        out = matmul(out, core.reshape(r, n * s)).reshape(-1, s)
        out, e = lifted(out, jnp.repeat(e, n), axis=1)
    return shift(out, e[:, None])


@jax.jit
def _dense(train: Any) -> Array:
    """The full tensor of a `TensorTrain`."""
    return _rows(even(train).cores).reshape(train.modes)


@jax.jit
def _dense_matrix(matrix: Any) -> Array:
    """The full matrix of a `TTMatrix`."""
    d = matrix.order
    merged = [core.reshape(core.shape[0], -1, core.shape[-1]) for core in even(matrix).cores]
    modes = [size for core in matrix.cores for size in core.shape[1:3]]
    order = [*range(0, 2 * d, 2), *range(1, 2 * d, 2)]
    return jnp.transpose(_rows(merged).reshape(modes), order).reshape(matrix.shape)


@jax.jit
def _dense_padded(train: Any) -> Array:
    """The full tensor of a `PaddedTT`, `(N, ..., N)`."""
    cores = even(train).cores
    return _rows([cores[0][:1], *cores[1:-1], cores[-1][:, :, :1]]).reshape(
        (cores.shape[2],) * train.order
    )


def dense(train: Any) -> Array:
    """Dispatches to the jitted contraction, in the precision of the cores."""
    train.validate()
    with precise(train):
        return _dense(train)


def dense_matrix(matrix: Any) -> Array:
    """As `dense`, of a `TTMatrix`."""
    matrix.validate()
    with precise(matrix):
        return _dense_matrix(matrix)


def dense_padded(train: Any) -> Array:
    """As `dense`, of a `PaddedTT`."""
    train.validate()
    with precise(train):
        return _dense_padded(train)
