"""Tensor trains: tensors and matrices as chains of small cores."""

from koopjax.tt._algebra import (
    add,
    dot,
    entries,
    hadamard,
    matmul,
    matvec,
    norm,
    scale,
    subtract,
    transpose,
    vecmat,
)
from koopjax.tt._checks import RoundInfo, clip_ranks, feasible_ranks
from koopjax.tt._contract import apply_matrix, contract
from koopjax.tt._contraction_order import FORMS, ContractionOrder, contraction_order
from koopjax.tt._cross import CrossInfo, cross
from koopjax.tt._make import identity, kronecker, random, random_matrix, rank_one
from koopjax.tt._orthogonal import orthogonalize, singular_values
from koopjax.tt._padded import pad, unpad
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
    "contraction_order",
    "cross",
    "dot",
    "entries",
    "feasible_ranks",
    "from_dense",
    "hadamard",
    "identity",
    "kronecker",
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
    "subtract",
    "transpose",
    "truncate",
    "unpad",
    "vecmat",
]
