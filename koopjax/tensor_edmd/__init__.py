"""EDMD in tensor-train format: Koopman matrices over full product dictionaries."""

from koopjax.tensor_edmd._als import AlsFitter, AlsSettings, als, als_padded
from koopjax.tensor_edmd._amuset import TensorSpectrum, amuset
from koopjax.tensor_edmd._dictionary import FunctionMajor, factors_of, separable
from koopjax.tensor_edmd._kernel import kernel
from koopjax.tensor_edmd._latent import latent, order_by_correlation, order_by_mutual_information
from koopjax.tensor_edmd._mandy import mandy
from koopjax.tensor_edmd._matrix import MatrixApproximation, MatrixInfo, approximate
from koopjax.tensor_edmd._padded import PaddedKoopman
from koopjax.tensor_edmd._result import KernelInfo, KernelKoopman, TensorInfo, TensorKoopman

__all__ = [
    "AlsFitter",
    "AlsSettings",
    "FunctionMajor",
    "KernelInfo",
    "KernelKoopman",
    "MatrixApproximation",
    "MatrixInfo",
    "PaddedKoopman",
    "TensorInfo",
    "TensorKoopman",
    "TensorSpectrum",
    "als",
    "als_padded",
    "amuset",
    "approximate",
    "factors_of",
    "kernel",
    "latent",
    "mandy",
    "order_by_correlation",
    "order_by_mutual_information",
    "separable",
]
