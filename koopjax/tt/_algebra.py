"""Sums, products and inner products of tensor trains, ragged and padded."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from koopjax._core import expected
from koopjax.tt._orthogonal import interface_norm
from koopjax.tt._precision import einsum, precise, real_dtype
from koopjax.tt._range import balanced, even, lifted, lifts, shift
from koopjax.tt._support import as_floating
from koopjax.tt._trains import PaddedTT, T, TensorTrain, as_train, check_same, check_train, like


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
        if isinstance(a, PaddedTT):
            return _add_padded(a, b)
        return like(_add(as_train(a), as_train(b)), a)


def subtract(a: T, b: T) -> T:
    """The difference `A - B`, as `add` of a train and a negated one."""
    check_same("subtract", a, b)
    return add(a, scale(b, -1.0))


@jax.jit
def _add(a: TensorTrain, b: TensorTrain) -> TensorTrain:
    a, b, last = even(a), even(b), a.order - 1
    if last == 0:
        return TensorTrain((a.cores[0] + b.cores[0],))
    cores = []
    for k, (x, y) in enumerate(zip(a.cores, b.cores, strict=True)):
        dtype = jnp.result_type(x, y)
        x, y = x.astype(dtype), y.astype(dtype)
        if k == 0:
            cores.append(jnp.concatenate([x, y], axis=2))
        elif k == last:
            cores.append(jnp.concatenate([x, y], axis=0))
        else:
            cores.append(_block_diagonal(x, y))
    return TensorTrain(tuple(cores))


def _block_diagonal(x: Array, y: Array) -> Array:
    """`(r, n, s)` and `(r', n, s')` to `(r + r', n, s + s')`."""
    top = jnp.pad(x, ((0, 0), (0, 0), (0, y.shape[2])))
    bottom = jnp.pad(y, ((0, 0), (0, 0), (x.shape[2], 0)))
    return jnp.concatenate([top, bottom], axis=0)


@jax.jit
def _add_padded(a: PaddedTT, b: PaddedTT) -> PaddedTT:
    a, b, size = even(a), even(b), a.max_rank
    dtype = jnp.result_type(a.cores, b.cores)
    x, y = a.cores.astype(dtype), b.cores.astype(dtype)
    cores = jax.vmap(_block_diagonal)(x, y)
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
        dtype = jnp.result_type(a.cores, factor)
        cores = a.cores.astype(dtype)
        return PaddedTT(cores.at[0].multiply(factor), a.rank_mask, a.mode_mask)
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
        if isinstance(a, PaddedTT):
            return _hadamard_padded(a, b)
        return like(_hadamard(as_train(a), as_train(b)), a)


def _kron_cores(x: Array, y: Array) -> Array:
    r, n, s = x.shape
    t, _, u = y.shape
    return einsum("anb,cnd->acnbd", x, y).reshape(r * t, n, s * u)


@jax.jit
def _hadamard(a: TensorTrain, b: TensorTrain) -> TensorTrain:
    pairs = zip(even(a).cores, even(b).cores, strict=True)
    return TensorTrain(tuple(_kron_cores(x, y) for x, y in pairs))


@jax.jit
def _hadamard_padded(a: PaddedTT, b: PaddedTT) -> PaddedTT:
    rank_mask = jax.vmap(jnp.kron)(a.rank_mask, b.rank_mask.astype(a.rank_mask.dtype))
    cores = jax.vmap(_kron_cores)(even(a).cores, even(b).cores)
    return PaddedTT(cores, rank_mask, a.mode_mask)


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


def _meet(left: Array, x: Array, y: Array) -> Array:
    """One step of the contraction of two trains from the left."""
    return einsum("cna,cnb->ab", jnp.conj(x), einsum("cd,dnb->cnb", left, y))


@jax.jit
def _dot(a: Any, b: Any) -> Array:
    (a, e), (b, f) = balanced(as_train(a)), balanced(as_train(b))
    value, more = _dot_apart(a, b)
    return shift(value, e + f + more)


def _dot_apart(a: Any, b: Any) -> tuple[Array, Array]:
    """The inner product of balanced trains as a number and an exponent of two."""
    dtype = jnp.result_type(a.dtype, b.dtype)
    e = jnp.zeros((), jnp.int32)
    if isinstance(a, PaddedTT):
        first = jnp.zeros((a.max_rank, b.max_rank), dtype).at[0, 0].set(1)
        steps = (a.cores.astype(dtype), b.cores.astype(dtype))
        step = lambda state, pair: (lifted(_meet(state[0], *pair), state[1]), None)
        (left, e), _ = jax.lax.scan(step, (first, e), steps)
        return left[0, 0], e
    left = jnp.ones((1, 1), dtype)
    for x, y, due in zip(a.cores, b.cores, lifts(a, b), strict=True):
        left = _meet(left, x.astype(dtype), y.astype(dtype))
        left, e = lifted(left, e) if due else (left, e)
    return left[0, 0], e


def norm(a: Any) -> Float[Array, ""]:
    """The Frobenius norm of the tensor, `‖A‖`.

    By orthogonalisation, not by the root of `dot(a, a)`, so that the norm of a small difference of
    large trains has its digits and is never NaN. Its derivative is `Re⟨A, dA⟩ / ‖A‖`, and zero
    where the norm is.

    Args:
        a: any train.

    Returns:
        A real scalar array; infinite where the dtype does not hold the norm, which `log_norm` does.

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{norm(rank_one([jnp.ones(2), jnp.ones(8)])):.3f}")
        4.000
    """
    check_train("the train", a)
    with precise(a):
        return _norm(a)


def log_norm(a: Any) -> Float[Array, ""]:
    """The natural logarithm of the norm, also where the norm leaves the dtype; `-inf` of zeros.

    Args:
        a: any train.

    Example:
        >>> import jax.numpy as jnp
        >>> print(f"{log_norm(rank_one([jnp.full(1, 1e30)] * 3)) / jnp.log(10.0):.3f}")
        90.000
    """
    check_train("the train", a)
    with precise(a):
        return _log_norm(a)


@jax.jit
def _norm(a: Any) -> Array:
    return shift(*_norm_apart(a))


@jax.jit
def _log_norm(a: Any) -> Array:
    value, e = _norm_apart(a)
    safe = jnp.where(value > 0, value, 1)
    found = jnp.log(safe) + e.astype(value.dtype) * math.log(2)
    return jnp.where(value > 0, found, -jnp.inf)


def _norm_apart(a: Any) -> tuple[Array, Array]:
    """The norm as a number and an exponent of two."""
    a, e = balanced(as_train(a))
    value, more = _safe_norm(a)
    return value, e + more.astype(jnp.int32)


@functools.partial(jax.custom_jvp)
def _safe_norm(a: Any) -> tuple[Array, Array]:
    """Norm and exponent of a balanced train; the exponent in a dtype that may have a tangent."""
    value, e = interface_norm(a)
    return value.astype(real_dtype(a.dtype)), e.astype(jnp.float32)


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
