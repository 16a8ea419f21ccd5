"""Trains written out in full."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import matmul


def dense(train: Any) -> Array:
    """The full tensor of a `TensorTrain`."""
    out = train.cores[0][0]
    for core in train.cores[1:]:
        r, n, s = core.shape
        out = matmul(out.reshape(-1, r), core.reshape(r, n * s)).reshape(-1, s)
    return out.reshape(train.modes)


def dense_matrix(matrix: Any) -> Array:
    """The full matrix of a `TTMatrix`."""
    d = matrix.order
    out = matrix.cores[0].reshape(-1, matrix.cores[0].shape[-1])
    for core in matrix.cores[1:]:
        r = core.shape[0]
        out = matmul(out, core.reshape(r, -1)).reshape(-1, core.shape[-1])
    modes = [size for core in matrix.cores for size in core.shape[1:3]]
    order = [*range(0, 2 * d, 2), *range(1, 2 * d, 2)]
    return jnp.transpose(out.reshape(modes), order).reshape(matrix.shape)
