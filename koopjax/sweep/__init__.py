"""Sweeps: a function, or a fit, at many settings in one compiled program, and a table back.

`grid` runs any pure function over a grid of settings: what changes a shape is compiled once a
value, all else is lanes of one vmap, in chunks that fit a memory limit, with a ledger on disk.
`ranks` fits all ranks of a reduced-rank regression from one set of statistics, or tensor trains of
many ranks padded to a few sizes.
"""

from koopjax.sweep._grid import grid as grid
from koopjax.sweep._ranks import ranks as ranks
from koopjax.sweep._reduced import LowRankTable as LowRankTable
from koopjax.sweep._table import Pivot as Pivot, Table as Table
from koopjax.sweep._trains import TrainTable as TrainTable

__all__ = ["LowRankTable", "Pivot", "Table", "TrainTable", "grid", "ranks"]
