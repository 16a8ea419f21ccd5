"""Sums, products, inner products and entries of tensor trains, and products of TT matrices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from koopjax._core import expected, read, traced
from koopjax.tt._checks import as_floating
from koopjax.tt._orthogonal import left_sweep, scaled_norm
from koopjax.tt._padded import as_padded
from koopjax.tt._precision import einsum, precise
from koopjax.tt._range import balanced, even, lifted, shift
from koopjax.tt._trains import (
    PaddedTT,
    T,
    TensorTrain,
    TTMatrix,
    as_train,
    check_same,
    check_train,
    like,
)


def add(a: T, b: T) -> T:
    """The sum of two trains, `A + B`; ranks add.

    Args:
        a, b: two `TensorTrain`, two `TTMatrix` or two `PaddedTT` of equal modes.

    Returns:
        A train of the same kind with ranks `r_k + s_k` inside (padded rank `R + S`); `round` or
        `truncate` brings them down. Costs copies only.

    Raises:
        ValueError: modes that differ, different kinds, NaN cores.

    Example:
        >>> import jax.numpy as jnp
        >>> ones = rank_one([jnp.ones(2), jnp.ones(3)])
        >>> add(ones, ones).ranks
        (1, 2, 1)

    Reference: Oseledets (2011), section 4.1.
    """
    check_same("add", a, b)
    with precise(a, b):
        return _add(a, b)


def subtract(a: T, b: T) -> T:
    """The difference `A - B`, as `add` of a train and a negated one."""
    check_same("subtract", a, b)
    return add(a, scale(b, -1.0))


@jax.jit
def _add(a: Any, b: Any) -> Any:
    if isinstance(a, PaddedTT):
        return _add_padded(even(a), even(b))
    pairs = list(zip(even(as_train(a)).cores, even(as_train(b)).cores, strict=True))
    if len(pairs) == 1:
        return like(TensorTrain((pairs[0][0] + pairs[0][1],)), a)
    (x, y), *inner, (v, w) = pairs
    first, last = jnp.concatenate([x, y], axis=2), jnp.concatenate([v, w], axis=0)
    return like(TensorTrain((first, *(_block_diagonal(*pair) for pair in inner), last)), a)


def _block_diagonal(x: Array, y: Array) -> Array:
    """`(r, n, s)` and `(r', n, s')` to `(r + r', n, s + s')`."""
    dtype = jnp.result_type(x, y)
    x, y = x.astype(dtype), y.astype(dtype)
    top = jnp.pad(x, ((0, 0), (0, 0), (0, y.shape[2])))
    bottom = jnp.pad(y, ((0, 0), (0, 0), (x.shape[2], 0)))
    return jnp.concatenate([top, bottom], axis=0)


def _add_padded(a: PaddedTT, b: PaddedTT) -> PaddedTT:
    size, cores = a.max_rank, jax.vmap(_block_diagonal)(a.cores, b.cores)
    # The two ends are one rank, not two: both blocks of the first core lie in row 0, and both
    # blocks of the last in column 0.
    cores = cores.at[0, 0].add(cores[0, size]).at[0, size].set(0)
    cores = cores.at[-1, :, :, 0].add(cores[-1, :, :, size]).at[-1, :, :, size].set(0)
    rank_mask = jnp.concatenate([a.rank_mask, b.rank_mask.astype(a.rank_mask.dtype)], axis=1)
    rank_mask = rank_mask.at[0, size].set(0).at[-1, size].set(0)
    return PaddedTT(cores, rank_mask, a.mode_mask)


def scale(a: T, factor: Any) -> T:
    """The train times a number, `factor · A`; ranks stay.

    Args:
        a: any train.
        factor: real or complex scalar, traced or not; a leaf. A complex factor makes the cores
            complex.

    Example:
        >>> import jax.numpy as jnp
        >>> scale(rank_one([jnp.ones(2), jnp.ones(2)]), 3.0).to_dense().tolist()
        [[3.0, 3.0], [3.0, 3.0]]
    """
    check_train("the train", a)
    if not isinstance(factor, int | float | complex):
        factor = as_floating("the factor", factor)
    if np.ndim(factor):
        raise expected("one number as factor", f"shape {np.shape(factor)}", "tt.hadamard")
    with precise(a, factor):
        return _scale(a, factor)


@jax.jit
def _scale(a: Any, factor: Any) -> Any:
    factor = jnp.asarray(factor) if isinstance(factor, jax.Array) else factor
    a = even(a)
    if isinstance(a, PaddedTT):
        cores = a.cores.astype(jnp.result_type(a.cores, factor))
        return dataclasses.replace(a, cores=cores.at[0].multiply(factor))
    return type(a)((a.cores[0] * factor, *a.cores[1:]))


def hadamard(a: T, b: T) -> T:
    """The entrywise product of two trains; ranks multiply.

    Args:
        a, b: two trains of one kind and of equal modes.

    Returns:
        A train of the same kind with ranks `r_k s_k` (padded rank `R S`). Costs `Σ n_k r_k² s_k²`.

    Example:
        >>> import jax.numpy as jnp
        >>> twos = rank_one([2 * jnp.ones(2), jnp.ones(2)])
        >>> hadamard(twos, twos).to_dense().tolist()
        [[4.0, 4.0], [4.0, 4.0]]

    Reference: Oseledets (2011), section 4.2.
    """
    check_same("hadamard", a, b)
    with precise(a, b):
        return _hadamard(a, b)


def _kron_cores(x: Array, y: Array) -> Array:
    """`(r, n, s)` and `(r', n, s')` to `(r r', n, s s')`."""
    core = einsum("anb,cnd->acnbd", x, y)
    return core.reshape(x.shape[0] * y.shape[0], x.shape[1], -1)


@jax.jit
def _hadamard(a: Any, b: Any) -> Any:
    if isinstance(a, PaddedTT):
        rank_mask = jax.vmap(jnp.kron)(a.rank_mask, b.rank_mask.astype(a.rank_mask.dtype))
        return PaddedTT(jax.vmap(_kron_cores)(even(a).cores, even(b).cores), rank_mask, a.mode_mask)
    pairs = zip(even(as_train(a)).cores, even(as_train(b)).cores, strict=True)
    return like(TensorTrain(tuple(_kron_cores(x, y) for x, y in pairs)), a)


def dot(a: T, b: T) -> Shaped[Array, ""]:
    """The inner product `⟨A, B⟩ = Σ conj(A) B`, the first train conjugated.

    Args:
        a, b: two trains of one kind and of equal modes.

    Returns:
        A scalar array; infinite or zero only where its own value leaves the dtype, whatever the
        cores. Costs `2 Σ n_k r² s` operations.

    Example:
        >>> import jax.numpy as jnp
        >>> ones = rank_one([jnp.ones(2), jnp.ones(3)])
        >>> float(dot(ones, ones))
        6.0

    Reference: Oseledets (2011), section 4.2.
    """
    check_same("dot", a, b)
    with precise(a, b):
        return _dot(a, b)


@jax.jit
def _dot(a: Any, b: Any) -> Array:
    (a, e), (b, f) = balanced(as_padded(as_train(a))), balanced(as_padded(as_train(b)))
    value, more = _dot_apart(a, b)
    return shift(value, e + f + more)


def _dot_apart(a: PaddedTT, b: PaddedTT) -> tuple[Array, Array]:
    """The inner product of balanced trains as a number and an exponent of two."""
    dtype = jnp.result_type(a.dtype, b.dtype)

    def step(state: Any, pair: Any) -> tuple[Any, None]:
        (left, e), (x, y) = state, pair
        left = einsum("cna,cnb->ab", jnp.conj(x), einsum("cd,dnb->cnb", left, y))
        return lifted(left, e), None

    first = jnp.zeros((a.max_rank, b.max_rank), dtype).at[0, 0].set(1)
    cores = (a.cores.astype(dtype), b.cores.astype(dtype))
    (left, e), _ = jax.lax.scan(step, (first, jnp.zeros((), jnp.int32)), cores)
    return left[0, 0], e


def norm(a: Any) -> Float[Array, ""]:
    """The Frobenius norm of the tensor, `‖A‖`.

    By orthogonalisation, not by the root of `dot(a, a)`, so that the norm of a small difference of
    large trains has its digits and is never NaN. Its derivative is `Re⟨A, dA⟩ / ‖A‖`, and zero
    where the norm is.

    Args:
        a: any train.

    Returns:
        A real scalar array; infinite or zero only where the dtype does not hold the norm.

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{norm(rank_one([jnp.ones(2), jnp.ones(8)])):.3f}")
        4.000
    """
    check_train("the train", a)
    with precise(a):
        return _norm(a)


@jax.jit
def _norm(a: Any) -> Array:
    a, e = balanced(as_padded(as_train(a)))
    value, more = _safe_norm(a)
    return shift(value, e + more.astype(jnp.int32))


@jax.custom_jvp
def _safe_norm(a: PaddedTT) -> tuple[Array, Array]:
    """Norm and exponent of a balanced train; the exponent in a dtype that may have a tangent."""
    _, r, e, _ = left_sweep(a.cores, a.rank_mask, a.mode_mask)
    return scaled_norm(r), e.astype(jnp.float32)


@_safe_norm.defjvp
def _safe_norm_jvp(primals: Any, tangents: Any) -> Any:
    (a,), (da,) = primals, tangents
    value, e = _safe_norm(a)

    def half_square(cores: Any) -> tuple[Array, Array]:
        return _dot_apart(a, dataclasses.replace(a, cores=cores))

    # Re⟨A, A(t)⟩ with the first argument held: its derivative is Re⟨A, dA⟩.
    _, slope, f = jax.jvp(half_square, (a.cores,), (da.cores,), has_aux=True)
    safe = jnp.where(value > 0, value, 1)
    moved = shift(jnp.real(slope).astype(value.dtype) / safe, f - 2 * e.astype(jnp.int32))
    return (value, e), (jnp.where(value > 0, moved, 0), jnp.zeros_like(e))


def entries(train: TensorTrain, indices: Int[Any, "m d"]) -> Shaped[Array, " m"]:
    """Single entries of the tensor, many at a time.

    Args:
        train: `TensorTrain`.
        indices: integers `(m, d)`, a multi-index a row, none negative.

    Returns:
        `(m,)`. Costs `2 m Σ r²` operations.

    Raises:
        ValueError: another shape or dtype; concrete indices outside the modes. Traced indices are
            clipped to the modes, as everywhere in JAX.

    Example:
        >>> import jax.numpy as jnp
        >>> entries(rank_one([jnp.arange(3.0), jnp.arange(4.0)]), jnp.asarray([[2, 3]])).tolist()
        [6.0]
    """
    check_train("the train", train, TensorTrain)
    indices = read("the indices", indices)
    if indices.ndim != 2 or indices.shape[1] != train.order:
        raise expected(f"indices of shape (m, {train.order})", f"shape {tuple(indices.shape)}")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise expected("integer indices", f"dtype {indices.dtype}")
    if not traced(indices) and indices.shape[0]:
        host = np.asarray(indices)
        if (host < 0).any() or (host >= np.asarray(train.modes)[None, :]).any():
            raise expected(
                f"indices inside modes {train.modes}",
                f"values from {host.min(axis=0).tolist()} to {host.max(axis=0).tolist()}",
            )
    with precise(train):
        return _entries(train, jnp.asarray(indices))


@jax.jit
def _entries(train: TensorTrain, indices: Array) -> Array:
    cores, e = even(train).cores, jnp.zeros(len(indices), jnp.int32)
    left = jnp.take(cores[0][0], indices[:, 0], axis=0, mode="clip")
    for k, core in enumerate(cores[1:], start=1):
        left, e = lifted(left, e, axis=1)
        chosen = jnp.take(core, indices[:, k], axis=1, mode="clip")
        left = einsum("sa,asb->sb", left, chosen)
    return shift(left[:, 0], e)


def _require_modes(verb: str, first: Any, second: Any) -> None:
    if first != second:
        raise expected(f"equal modes to be summed over in {verb}", f"{first} and {second}")


def matvec(matrix: TTMatrix, vector: TensorTrain) -> TensorTrain:
    """A TT matrix times a column vector in TT format, `M v`; ranks multiply.

    `M.to_dense() @ v.to_dense().ravel()` as a train. A Koopman matrix acts on row vectors from the
    right: that is `vecmat`.

    Args:
        matrix: `TTMatrix` `(∏ m_k, ∏ n_k)`.
        vector: `TensorTrain` of modes `n_k`.

    Returns:
        `TensorTrain` of modes `m_k` and ranks `r_k s_k`; see `round`.

    Example:
        >>> import jax.numpy as jnp
        >>> matvec(identity((2, 3)), rank_one([jnp.ones(2), jnp.ones(3)])).modes
        (2, 3)
    """
    check_train("the matrix", matrix, TTMatrix)
    check_train("the vector", vector, TensorTrain)
    _require_modes("matvec", matrix.column_modes, vector.modes)
    with precise(matrix, vector):
        return _matvec(matrix, vector)


def vecmat(vector: TensorTrain, matrix: TTMatrix) -> TensorTrain:
    """A row vector in TT format times a TT matrix, `v M`: how a Koopman matrix acts.

    Args:
        vector: `TensorTrain` of modes `m_k`.
        matrix: `TTMatrix` `(∏ m_k, ∏ n_k)`.

    Returns:
        `TensorTrain` of modes `n_k` and ranks `r_k s_k`.

    Example:
        >>> import jax.numpy as jnp
        >>> vecmat(rank_one([jnp.ones(2), jnp.ones(3)]), identity((2, 3))).modes
        (2, 3)
    """
    check_train("the vector", vector, TensorTrain)
    check_train("the matrix", matrix, TTMatrix)
    _require_modes("vecmat", vector.modes, matrix.row_modes)
    with precise(matrix, vector):
        return _matvec(_transpose(matrix), vector)


@jax.jit
def _matvec(matrix: TTMatrix, vector: TensorTrain) -> TensorTrain:
    cores = []
    for a, v in zip(even(matrix).cores, even(vector).cores, strict=True):
        core = einsum("amnb,cnd->acmbd", a, v)
        cores.append(core.reshape(a.shape[0] * v.shape[0], a.shape[1], -1))
    return TensorTrain(tuple(cores))


def matmul(a: TTMatrix, b: TTMatrix) -> TTMatrix:
    """The product of two TT matrices, `A B`; ranks multiply.

    Args:
        a: `TTMatrix` `(∏ m_k, ∏ l_k)`.
        b: `TTMatrix` `(∏ l_k, ∏ n_k)`.

    Example:
        >>> matmul(identity((2, 3)), identity((2, 3))).ranks
        (1, 1, 1)

    Reference: Oseledets (2011), section 4.3.
    """
    check_train("the first matrix", a, TTMatrix)
    check_train("the second matrix", b, TTMatrix)
    _require_modes("matmul", a.column_modes, b.row_modes)
    with precise(a, b):
        return _matmul(a, b)


@jax.jit
def _matmul(a: TTMatrix, b: TTMatrix) -> TTMatrix:
    cores = []
    for x, y in zip(even(a).cores, even(b).cores, strict=True):
        core = einsum("amlb,clnd->acmnbd", x, y)
        cores.append(core.reshape(x.shape[0] * y.shape[0], x.shape[1], y.shape[2], -1))
    return TTMatrix(tuple(cores))


@jax.jit
def _transpose(matrix: TTMatrix) -> TTMatrix:
    return TTMatrix(tuple(jnp.swapaxes(core, 1, 2) for core in matrix.cores))


def transpose(matrix: TTMatrix) -> TTMatrix:
    """The transposed matrix, not conjugated; ranks stay.

    Example:
        >>> import jax.numpy as jnp
        >>> transpose(kronecker([jnp.ones((2, 3))])).shape
        (3, 2)
    """
    check_train("the matrix", matrix, TTMatrix)
    with precise(matrix):
        return _transpose(matrix)
