"""Koopman blocks: the layers that carry a state through a dictionary and a Koopman matrix.

A block computes `psi(x) @ K`. The NNX modules here do the work of
the Linen module in `nn.linen`, under the same parameter names: `dictionary/...` for the arrays of
`psi`, `operator/matrix`, `operator/left` and `operator/right`, or `operator/cores/...` for the map
behind it; `operator/values`, `operator/codebook` or `operator/scale` with frozen indices or codes
where it is stored sparse, by a codebook or in small integers.
"""

from koopjax.nn import linen as linen
from koopjax.nn._block import KoopmanBlock as KoopmanBlock
from koopjax.nn._decoded import decoded as decoded
from koopjax.nn._dictionary import Structure as Structure, take_apart as take_apart
from koopjax.nn._from_koopman import from_koopman as from_koopman
from koopjax.nn._operators import Dense as Dense, LowRank as LowRank, Operator as Operator
from koopjax.nn._stack import ACTIVATIONS as ACTIVATIONS, OPERATORS as OPERATORS, Stack as Stack
from koopjax.nn._stored import (
    Clustered as Clustered,
    Quantized as Quantized,
    Sparse as Sparse,
)
from koopjax.nn._tt import TT as TT
from koopjax.nn._tune import Tuned as Tuned, tune as tune, with_form as with_form
from koopjax.nn._variables import Frozen as Frozen, freeze as freeze, unfreeze as unfreeze

__all__ = [
    "ACTIVATIONS",
    "OPERATORS",
    "TT",
    "Clustered",
    "Dense",
    "Frozen",
    "KoopmanBlock",
    "LowRank",
    "Operator",
    "Quantized",
    "Sparse",
    "Stack",
    "Structure",
    "Tuned",
    "decoded",
    "freeze",
    "from_koopman",
    "linen",
    "take_apart",
    "tune",
    "unfreeze",
    "with_form",
]
