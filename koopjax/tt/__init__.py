"""Tensor trains: tensors and matrices as chains of small cores."""

from koopjax.tt._algebra import (
    add as add,
    dot as dot,
    hadamard as hadamard,
    log_norm as log_norm,
    norm as norm,
    scale as scale,
    subtract as subtract,
)
from koopjax.tt._contract import apply_matrix as apply_matrix, contract as contract
from koopjax.tt._contraction_order import (
    FORMS as FORMS,
    ContractionOrder as ContractionOrder,
    contraction_order as contraction_order,
)
from koopjax.tt._cross import CrossInfo as CrossInfo, cross as cross
from koopjax.tt._make import (
    identity as identity,
    kronecker as kronecker,
    random as random,
    random_matrix as random_matrix,
    rank_one as rank_one,
)
from koopjax.tt._matrices import (
    diagonal as diagonal,
    diagonal_matrix as diagonal_matrix,
    kron as kron,
    kronecker_factors as kronecker_factors,
    matmul as matmul,
    matvec as matvec,
    transpose as transpose,
    vecmat as vecmat,
)
from koopjax.tt._orthogonal import (
    orthogonalize as orthogonalize,
    singular_values as singular_values,
)
from koopjax.tt._padded import PaddedTT as PaddedTT, pad as pad, unpad as unpad
from koopjax.tt._parts import (
    contract_modes as contract_modes,
    entries as entries,
    slice_ as slice_,
)
from koopjax.tt._quantize import dequantize as dequantize, quantize as quantize
from koopjax.tt._ranks import (
    RoundInfo as RoundInfo,
    clip_ranks as clip_ranks,
    feasible_ranks as feasible_ranks,
)
from koopjax.tt._round import (
    from_dense as from_dense,
    matrix_from_dense as matrix_from_dense,
    round as round,
)
from koopjax.tt._trains import TensorTrain as TensorTrain, TTMatrix as TTMatrix
from koopjax.tt._truncate import truncate as truncate

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
    "dequantize",
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
