"""Sweeps: a function, or a fit, at many settings in one compiled program, and a table back.

`grid` runs any pure function over a grid of settings: what changes a shape is compiled once a
value, all else is lanes of one vmap, in chunks that fit a memory limit, with a ledger on disk.
"""

from koopjax.sweep._grid import grid as grid
from koopjax.sweep._table import Pivot as Pivot, Table as Table

__all__ = ["Pivot", "Table", "grid"]
