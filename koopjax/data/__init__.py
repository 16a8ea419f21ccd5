"""Datasets in fixed splits, and dynamical systems with closed-form answers."""

from koopjax.data import systems as systems
from koopjax.data._dataset import Dataset as Dataset, MissingData as MissingData
from koopjax.data._files import read_idx as read_idx, read_npz as read_npz, write_idx as write_idx
from koopjax.data._load import (
    DatasetInfo as DatasetInfo,
    available as available,
    load as load,
)
from koopjax.data._tfds import prepare_tfds as prepare_tfds

__all__ = [
    "Dataset",
    "DatasetInfo",
    "MissingData",
    "available",
    "load",
    "prepare_tfds",
    "read_idx",
    "read_npz",
    "systems",
    "write_idx",
]
