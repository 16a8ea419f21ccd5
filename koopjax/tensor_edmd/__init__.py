"""EDMD in tensor-train format: Koopman matrices over full product dictionaries."""

from koopjax.tensor_edmd._als import als as als, als_padded as als_padded
from koopjax.tensor_edmd._amuset import TensorSpectrum as TensorSpectrum, amuset as amuset
from koopjax.tensor_edmd._dictionary import FunctionMajor as FunctionMajor, separable as separable
from koopjax.tensor_edmd._kernel import kernel as kernel
from koopjax.tensor_edmd._kernel_result import (
    KernelInfo as KernelInfo,
    KernelKoopman as KernelKoopman,
)
from koopjax.tensor_edmd._latent import (
    latent as latent,
    order_by_correlation as order_by_correlation,
    order_by_mutual_information as order_by_mutual_information,
)
from koopjax.tensor_edmd._latent_training import train_latent as train_latent
from koopjax.tensor_edmd._mandy import mandy as mandy
from koopjax.tensor_edmd._matrix import approximate as approximate
from koopjax.tensor_edmd._matrix_result import (
    MatrixApproximation as MatrixApproximation,
    MatrixInfo as MatrixInfo,
)
from koopjax.tensor_edmd._padded import PaddedKoopman as PaddedKoopman
from koopjax.tensor_edmd._result import (
    TensorInfo as TensorInfo,
    TensorKoopman as TensorKoopman,
)

__all__ = [
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
    "kernel",
    "latent",
    "mandy",
    "order_by_correlation",
    "order_by_mutual_information",
    "separable",
    "train_latent",
]
