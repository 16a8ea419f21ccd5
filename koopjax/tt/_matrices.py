"""TT matrices: products, transpose, diagonals and Kronecker structure."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import expected
from koopjax.tt._precision import einsum, precise
from koopjax.tt._range import even
from koopjax.tt._round import round
from koopjax.tt._support import check_rtol
from koopjax.tt._trains import TensorTrain, TTMatrix, check_train

Kind = TypeVar("Kind", TensorTrain, TTMatrix)


def _require(name: str, train: Any, kind: type) -> None:
    if not isinstance(train, kind):
        raise expected(
            f"a {kind.__name__} as {name}",
            type(train).__name__,
            "tt.unpad for padded trains, tt.diagonal_matrix for a train as a diagonal",
        )
    check_train(name, train)


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
    _require("the matrix", matrix, TTMatrix)
    _require("the vector", vector, TensorTrain)
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
    _require("the vector", vector, TensorTrain)
    _require("the matrix", matrix, TTMatrix)
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
    _require("the first matrix", a, TTMatrix)
    _require("the second matrix", b, TTMatrix)
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
    _require("the matrix", matrix, TTMatrix)
    with precise(matrix):
        return _transpose(matrix)


def diagonal(matrix: TTMatrix) -> TensorTrain:
    """The main diagonal of a TT matrix with equal row and column modes, as a train.

    Example:
        >>> diagonal(identity((2, 2))).to_dense().tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    _require("the matrix", matrix, TTMatrix)
    _require_modes("diagonal", matrix.row_modes, matrix.column_modes)
    with precise(matrix):
        return TensorTrain(tuple(jnp.einsum("annb->anb", core) for core in matrix.cores))


def diagonal_matrix(vector: TensorTrain) -> TTMatrix:
    """The TT matrix with a train on its diagonal; ranks stay.

    Example:
        >>> import jax.numpy as jnp
        >>> diagonal_matrix(rank_one([jnp.ones(2)])).to_dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    _require("the vector", vector, TensorTrain)
    with precise(vector):
        return TTMatrix(
            tuple(
                einsum("anb,nm->anmb", core, jnp.eye(core.shape[1], dtype=core.dtype))
                for core in vector.cores
            )
        )


def kron(a: Kind, b: Kind) -> Kind:
    """The Kronecker product `A ⊗ B`: the chain of both, with a rank of 1 where they meet.

    Args:
        a, b: two `TensorTrain` (the outer product: modes of `a`, then of `b`) or two `TTMatrix`
            (`np.kron` of the matrices).

    Example:
        >>> import jax.numpy as jnp
        >>> kron(rank_one([jnp.ones(2)]), rank_one([jnp.ones(3), jnp.ones(4)])).modes
        (2, 3, 4)
    """
    if not isinstance(a, TensorTrain | TTMatrix) or type(a) is not type(b):
        raise expected(
            "two TensorTrain or two TTMatrix in kron", f"{type(a).__name__}, {type(b).__name__}"
        )
    check_train("the first factor", a)
    check_train("the second factor", b)
    return type(a)((*a.cores, *b.cores))


def kronecker_factors(matrix: TTMatrix, rtol: float = 1e-6) -> tuple[Array, ...] | None:
    """The factors of a TT matrix that is a Kronecker product within a tolerance, else None.

    `M = M_1 ⊗ ... ⊗ M_d` exactly where all TT ranks are 1. The factors are scaled to equal norms.

    Args:
        matrix: `TTMatrix` with concrete cores (outside jit: it is rounded).
        rtol: how far the product may be from the matrix, relative, in the Frobenius norm.

    Returns:
        `d` arrays `(m_k, n_k)`, or None.

    Example:
        >>> import jax.numpy as jnp
        >>> [m.shape for m in kronecker_factors(kronecker([jnp.eye(2), jnp.ones((2, 3))]))]
        [(2, 2), (2, 3)]
    """
    _require("the matrix", matrix, TTMatrix)
    one, info = round(matrix, max_rank=1, return_info=True)
    if float(info.error) > check_rtol(rtol):
        return None
    with precise(one):
        factors = [core[0, :, :, 0] for core in one.cores]
        sizes = np.asarray([float(jnp.linalg.norm(f)) for f in factors])
        if not sizes.all():
            return tuple(factors)
        goal = np.exp(np.mean(np.log(sizes)))
        return tuple(
            f * jnp.asarray(goal / size, f.dtype) for f, size in zip(factors, sizes, strict=True)
        )
