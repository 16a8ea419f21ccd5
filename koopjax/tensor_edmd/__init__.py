"""EDMD in tensor-train format: Koopman matrices over full product dictionaries."""

from koopjax.tensor_edmd._als import als as als, als_padded as als_padded
from koopjax.tensor_edmd._dictionary import separable as separable
from koopjax.tensor_edmd._padded import PaddedKoopman as PaddedKoopman
from koopjax.tensor_edmd._result import (
    TensorInfo as TensorInfo,
    TensorKoopman as TensorKoopman,
)

__all__ = ["PaddedKoopman", "TensorInfo", "TensorKoopman", "als", "als_padded", "separable"]
