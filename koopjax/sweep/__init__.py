"""Sweeps: a function, or a fit, at many settings in one compiled program, and a table back.

`grid` runs any pure function over a grid of settings: what changes a shape is compiled once a
value, all else is lanes of one vmap, in chunks that fit a memory limit, with a ledger on disk.
`reduced_ranks` fits all ranks of a reduced-rank regression from one set of statistics,
`train_ranks` tensor trains of many ranks padded to a few sizes; `ranks` is either, by what it is
given.
"""

from koopjax.sweep._grid import bytes_of, digest, grid
from koopjax.sweep._reduced import LowRankTable, reduced_ranks
from koopjax.sweep._table import Pivot, RankTable, Table
from koopjax.sweep._trains import TrainTable, ranks, train_ranks

__all__ = [
    "LowRankTable",
    "Pivot",
    "RankTable",
    "Table",
    "TrainTable",
    "bytes_of",
    "digest",
    "grid",
    "ranks",
    "reduced_ranks",
    "train_ranks",
]
