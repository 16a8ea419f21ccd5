"""Tensor trains: tensors and matrices as chains of small cores."""

from koopjax.tt._contract import contract as contract
from koopjax.tt._trains import TensorTrain as TensorTrain, TTMatrix as TTMatrix

__all__ = ["TTMatrix", "TensorTrain", "contract"]
