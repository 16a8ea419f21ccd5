"""Tensor trains: tensors and matrices as chains of small cores."""

from koopjax.tt._algebra import add, dot, hadamard, log_norm, norm, scale, subtract
from koopjax.tt._contract import apply_matrix, contract
from koopjax.tt._contraction_order import FORMS, ContractionOrder, contraction_order
from koopjax.tt._cross import CrossInfo, cross
from koopjax.tt._make import identity, kronecker, random, random_matrix, rank_one
from koopjax.tt._matrices import (
    diagonal,
    diagonal_matrix,
    kron,
    kronecker_factors,
    matmul,
    matvec,
    transpose,
    vecmat,
)
from koopjax.tt._orthogonal import orthogonalize, singular_values
from koopjax.tt._padded import pad, unpad
from koopjax.tt._parts import contract_modes, entries, slice_
from koopjax.tt._ranks import RoundInfo, clip_ranks, feasible_ranks
from koopjax.tt._round import from_dense, matrix_from_dense, quantize, round
from koopjax.tt._trains import PaddedTT, TensorTrain, TTMatrix
from koopjax.tt._truncate import truncate

__all__ = [
    "FORMS",
    "ContractionOrder",
    "CrossInfo",
    "PaddedTT",
    "RoundInfo",
    "TTMatrix",
    "TensorTrain",
    "add",
    "apply_matrix",
    "clip_ranks",
    "contract",
    "contract_modes",
    "contraction_order",
    "cross",
    "diagonal",
    "diagonal_matrix",
    "dot",
    "entries",
    "feasible_ranks",
    "from_dense",
    "hadamard",
    "identity",
    "kron",
    "kronecker",
    "kronecker_factors",
    "log_norm",
    "matmul",
    "matrix_from_dense",
    "matvec",
    "norm",
    "orthogonalize",
    "pad",
    "quantize",
    "random",
    "random_matrix",
    "rank_one",
    "round",
    "scale",
    "singular_values",
    "slice_",
    "subtract",
    "transpose",
    "truncate",
    "unpad",
    "vecmat",
]
