"""EDMD in tensor-train format: Koopman matrices over full product dictionaries."""

from koopjax.tensor_edmd._dictionary import separable as separable
from koopjax.tensor_edmd._result import (
    TensorInfo as TensorInfo,
    TensorKoopman as TensorKoopman,
)

__all__ = ["TensorInfo", "TensorKoopman", "separable"]
