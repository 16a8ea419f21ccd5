"""From a fitted Koopman operator to a layer."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from koopjax import tt
from koopjax._core import (
    as_flag,
    as_whole,
    expected,
    is_tracing,
    matmul,
    on_device,
    precise_as,
    read_numbers,
)
from koopjax.edmd import Generator
from koopjax.nn._block import KoopmanBlock
from koopjax.nn._operators import PRECISION, Dense, LowRank, check_matrix
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
    precision: Any = PRECISION,
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

    Numerics: powers, product and SVD are computed in float64 on the host where nothing is traced,
    and rounded once to the fit's dtype.
    """
    steps, lifted = as_whole("steps", steps, 1), as_flag("lifted", lifted)
    if isinstance(fit, TensorKoopman):
        if steps > 1 or lifted:
            raise expected(
                "steps=1 and lifted=False for a fit in tensor-train format",
                f"steps={steps}, lifted={lifted}",
                "calling the block several times",
            )
        train = fit.train
        if rank is not None and max(train.ranks) > as_whole("rank", rank, 1):
            train = tt.round(train, max_rank=int(rank))
        operator = TT.from_train(train, precision=precision)
    else:
        arrays = _folded(fit, rank, steps, lifted)
        form = Dense if rank is None else LowRank
        operator = form(*arrays, param_dtype=param_dtype, precision=precision)
    return KoopmanBlock(
        fit.psi, operator, trainable=trainable, dtype=dtype, param_dtype=param_dtype
    )


def _folded(fit: Any, rank: int | None, steps: int, lifted: bool) -> list[Array]:
    """`Kˢ B`, whole or in two factors that share the singular values evenly."""
    parts = all(hasattr(fit, name) for name in ("psi", "matrix", "readout"))
    if not parts or isinstance(fit, Generator):
        raise expected(
            "a fit such as edmd.Koopman", type(fit).__name__, "edmd.fit, or generator.koopman(time)"
        )
    factors: list[Any] = [read_numbers("K", fit.matrix)] * steps
    p, q = check_matrix("K", factors[0])
    # A kernel's columns are outputs, whatever their number; others say so, or are as their shape.
    same = not isinstance(fit, KernelKoopman) and p == q
    if steps > 1 and not getattr(fit, "square", same):
        raise expected(
            "a square K to take several steps",
            f"K of shape {(p, q)} onto another dictionary",
            "steps=1, or a fit without target",
        )
    if fit.readout is not None:
        readout = read_numbers("the readout", fit.readout)
        check_matrix("the readout", readout)
        factors += [] if lifted else [readout]
    rank = None if rank is None else as_whole("rank", rank, 1, min(p, factors[-1].shape[1]))
    dtype, known = factors[0].dtype, not is_tracing(*factors)
    # What is known is multiplied on the host, in double precision wherever the model runs.
    factors = [np.asarray(f).astype(np.float64) for f in factors] if known else factors
    out = functools.reduce(np.matmul if known else matmul, factors)
    arrays = [out]
    if rank is not None:
        u, s, vt = (np if known else jnp).linalg.svd(out, full_matrices=False)
        root = s[:rank] ** 0.5
        arrays = [u[:, :rank] * root[None, :], root[:, None] * vt[:rank]]
    with precise_as(dtype):
        return [on_device(a, dtype) for a in arrays]
