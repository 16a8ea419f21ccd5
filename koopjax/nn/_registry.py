"""The forms of an operator by name."""

from koopjax.nn._clustered import Clustered
from koopjax.nn._operators import Dense, LowRank, Operator
from koopjax.nn._quantized import Quantized
from koopjax.nn._sparse import Sparse
from koopjax.nn._tt import TT

OPERATORS: dict[str, type[Operator]] = {
    "dense": Dense,
    "low_rank": LowRank,
    "tt": TT,
    "sparse": Sparse,
    "clustered": Clustered,
    "quantized": Quantized,
}
