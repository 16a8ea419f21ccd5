"""Chains of cores written out in full, or cut to what an index selects."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import expected, matmul
from koopjax.tt._precision import einsum
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
def dense(train: Any) -> Array:
    """The full tensor of a `TensorTrain`."""
    return _rows(even(train).cores).reshape(train.modes)


@jax.jit
def dense_matrix(matrix: Any) -> Array:
    """The full matrix of a `TTMatrix`."""
    d = matrix.order
    merged = [core.reshape(core.shape[0], -1, core.shape[-1]) for core in even(matrix).cores]
    modes = [size for core in matrix.cores for size in core.shape[1:3]]
    order = [*range(0, 2 * d, 2), *range(1, 2 * d, 2)]
    return jnp.transpose(_rows(merged).reshape(modes), order).reshape(matrix.shape)


@jax.jit
def dense_padded(train: Any) -> Array:
    """The full tensor of a `PaddedTT`, `(N, ..., N)`."""
    cores = even(train).cores
    return _rows([cores[0][:1], *cores[1:-1], cores[-1][:, :, :1]]).reshape(
        (cores.shape[2],) * train.order
    )


@functools.partial(jax.jit, static_argnames="slices")
def part(train: Any, places: Array, *, slices: tuple[Any, ...]) -> Any:
    """The cores that an index keeps, cut to its slices; a scalar if it keeps none.

    The matrix at an integer's place goes to the core on its right, or to the last one that is kept.
    """
    out: list[Any] = []
    carry = jnp.ones((1, 1), train.dtype)
    for core, place, cut in zip(even(train).cores, places, slices, strict=True):
        if cut is None:
            carry = matmul(carry, jnp.take(core, place, axis=1, mode="clip"))
        else:
            out.append(einsum("ab,bnc->anc", carry, core[:, slice(*cut)]))
            carry = jnp.eye(core.shape[2], dtype=core.dtype)
    if not out:
        return carry[0, 0]
    out[-1] = einsum("anb,bc->anc", out[-1], carry)
    return tuple(out)


def parsed(modes: Sequence[int], index: Any) -> tuple[np.ndarray, tuple[Any, ...]]:
    """The place of each integer and the start, stop and step of each slice (None for integers)."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, part in enumerate(parts) if part is Ellipsis]
    d = len(modes)
    if len(dots) > 1 or len(parts) - len(dots) > d:
        raise IndexError(f"expected at most {d} indices and one ellipsis, got {len(parts)}")
    if dots:
        parts[dots[0] : dots[0] + 1] = [slice(None)] * (d - len(parts) + 1)
    parts += [slice(None)] * (d - len(parts))
    pairs = [_parsed(part, n, k) for k, (part, n) in enumerate(zip(parts, modes, strict=True))]
    places, slices = zip(*pairs, strict=True)
    return np.asarray(places, np.int32), slices


def _parsed(part: Any, n: int, k: int) -> tuple[int, Any]:
    if isinstance(part, slice):
        if len(range(*part.indices(n))) == 0:
            raise expected(
                f"a slice of mode {k} that keeps something of its {n} entries", f"{part}"
            )
        return 0, (part.start, part.stop, part.step)
    try:
        i = operator.index(part)
    except TypeError as error:
        raise expected(
            f"an integer or a slice as index of mode {k}",
            type(part).__name__,
            "tt.entries for arrays of indices",
        ) from error
    if not -n <= i < n:
        raise IndexError(f"expected an index of mode {k} between {-n} and {n - 1}, got {i}")
    return i % n, None
