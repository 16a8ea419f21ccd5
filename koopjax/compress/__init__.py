"""Smaller models within a budget of bytes: Koopman and conventional methods side by side.

A budget is the size of the file that `export.save` writes. Every method has one signature and
returns a model with a report: `METHODS[name](model, calibration, "20x", key=key)`.
"""

from koopjax.compress._budget import Budget as Budget, BudgetTooSmall as BudgetTooSmall
from koopjax.compress._eliminate import select_observables as select_observables
from koopjax.compress._finetune import finetune as finetune
from koopjax.compress._koopman import koopman as koopman
from koopjax.compress._magnitude import magnitude as magnitude
from koopjax.compress._methods import METHODS as METHODS
from koopjax.compress._obs import Removal as Removal, refit as refit, removal_order as removal_order
from koopjax.compress._pruning import obs as obs, wanda as wanda
from koopjax.compress._result import Compressed as Compressed, Report as Report
from koopjax.compress._sparse_updates import (
    keep_zeros as keep_zeros,
    prune_gradually as prune_gradually,
)
from koopjax.compress._table import Row as Row, table as table
from koopjax.compress._whitened_svd import whitened_svd as whitened_svd

__all__ = [
    "METHODS",
    "Budget",
    "BudgetTooSmall",
    "Compressed",
    "Removal",
    "Report",
    "Row",
    "finetune",
    "keep_zeros",
    "koopman",
    "magnitude",
    "obs",
    "prune_gradually",
    "refit",
    "removal_order",
    "select_observables",
    "table",
    "wanda",
    "whitened_svd",
]
