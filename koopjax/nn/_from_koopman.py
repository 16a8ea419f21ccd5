"""From a fitted Koopman operator to a layer."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from koopjax import tt
from koopjax._core import (
    as_flag,
    as_whole,
    expected,
    has_float64,
    is_tracing,
    matmul,
    read_numbers,
)
from koopjax.edmd import Generator
from koopjax.nn import functional
from koopjax.nn._block import KoopmanBlock
from koopjax.nn._operators import Dense, LowRank, check_matrix
from koopjax.nn._tt import TT
from koopjax.tensor_edmd import KernelKoopman, TensorKoopman


def from_koopman(
    fit: Any,
    rank: int | None = None,
    *,
    steps: int = 1,
    lifted: bool = False,
    trainable: bool | str | tuple[str, ...] = False,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    precision: Any = functional.PRECISION,
) -> KoopmanBlock:
    """The layer that a fit predicts with: `block(x) == fit.predict(x, steps)` to rounding.

    The readout `B` is folded into the operator, so one matrix `Kˢ B` carries state to state.

    A fit in tensor-train format becomes a block on `TT`, which contracts the cores with the factors
    of the product dictionary.

    Args:
        fit: an `edmd.Koopman`: `psi`, `matrix` `(p, q)` and `readout` `(q, d)` or none; or a
            `tensor_edmd.TensorKoopman`.
        rank: store the folded matrix in two factors of this rank, cut by a plain SVD (exact where
            the fit already has that rank, as after `edmd.ReducedRank`, whose cut is the better
            one for a prediction). Of a tensor-train fit: its largest TT rank, cut by `tt.round`.
        steps: how many steps one pass takes; more than one needs a square K.
        lifted: return the observables after the step(s), `psi(x) Kˢ`, without the readout.
        trainable: which parts train, as in `KoopmanBlock`; nothing by default.
        dtype: dtype to compute in, as in `KoopmanBlock`.
        param_dtype: dtype to store in; none keeps that of the fit.
        precision: of the operator's products.

    Returns:
        A block that holds the fit's dictionary and `Dense`, `LowRank` or `TT`.

    Numerics: powers, product and SVD are computed in float64 where the backend has it and nothing
    is traced, and rounded once to the fit's dtype.
    """
    steps, lifted = as_whole("steps", steps, 1), as_flag("lifted", lifted)
    if isinstance(fit, TensorKoopman):
        if steps > 1 or lifted:
            raise expected(
                "steps=1 and lifted=False for a fit in tensor-train format",
                f"steps={steps}, lifted={lifted}",
                "calling the block several times",
            )
        operator = TT.from_train(_rounded(fit.train, rank), precision=precision)
        return KoopmanBlock(
            fit.psi, operator, trainable=trainable, dtype=dtype, param_dtype=param_dtype
        )
    parts = all(hasattr(fit, name) for name in ("psi", "matrix", "readout"))
    if not parts or isinstance(fit, Generator):
        raise expected(
            "a fit such as edmd.Koopman", type(fit).__name__, "edmd.fit, or generator.koopman(time)"
        )
    matrix = read_numbers("K", fit.matrix)
    readout = None if fit.readout is None else read_numbers("the readout", fit.readout)
    check_matrix("K", matrix)
    if readout is not None:
        check_matrix("the readout", readout)
    # A kernel's columns are outputs, whatever their number; others say so, or are as their shape.
    same = not isinstance(fit, KernelKoopman) and matrix.shape[0] == matrix.shape[1]
    if steps > 1 and not getattr(fit, "square", same):
        raise expected(
            "a square K to take several steps",
            f"K of shape {tuple(matrix.shape)} onto another dictionary",
            "steps=1, or a fit without target",
        )
    folded_readout = None if lifted else readout
    q = matrix.shape[1] if folded_readout is None else folded_readout.shape[1]
    rank = None if rank is None else as_whole("rank", rank, 1, min(matrix.shape[0], q))
    kind = matrix.dtype
    if not is_tracing(matrix, readout) and has_float64():
        with jax.enable_x64(True):
            wide = jnp.asarray(matrix, jnp.float64)
            read = None if folded_readout is None else jnp.asarray(folded_readout, jnp.float64)
            arrays = tuple(a.astype(kind) for a in _fold(wide, read, steps, rank))
    else:
        arrays = _fold(matrix, folded_readout, steps, rank)
    form = Dense if rank is None else LowRank
    operator = form(*arrays, param_dtype=param_dtype, precision=precision)
    return KoopmanBlock(
        fit.psi, operator, trainable=trainable, dtype=dtype, param_dtype=param_dtype
    )


def _rounded(train: Any, rank: int | None) -> Any:
    """A train of at most this rank; the error is that of TT rounding, in the plain norm."""
    if rank is None:
        return train
    rank = as_whole("rank", rank, 1)
    return train if max(train.ranks) <= rank else tt.round(train, max_rank=rank)


@partial(jax.jit, static_argnames=("steps", "rank"))
def _fold(matrix: Array, readout: Array | None, steps: int, rank: int | None) -> tuple[Array, ...]:
    """`Kˢ B`, whole or in two factors that share the singular values evenly."""
    out = matrix
    for _ in range(steps - 1):
        out = matmul(out, matrix)
    out = out if readout is None else matmul(out, readout)
    if rank is None:
        return (out,)
    u, s, vt = jnp.linalg.svd(out, full_matrices=False)
    root = jnp.sqrt(s[:rank])
    return u[:, :rank] * root[None, :], root[:, None] * vt[:rank]
