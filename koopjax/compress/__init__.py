"""Smaller models within a budget of bytes: Koopman and conventional methods side by side.

A budget is the size of the file that `export.save` writes. Every method has one signature and
returns a model with a report: `METHODS[name](model, calibration, "20x", key=key)`.
"""

from koopjax.compress import _koopman_formats as koopman_formats
from koopjax.compress._budget import Budget as Budget, BudgetTooSmall as BudgetTooSmall
from koopjax.compress._constraint import constrained as constrained
from koopjax.compress._eliminate import select_observables as select_observables
from koopjax.compress._finetune import Training as Training, finetune as finetune
from koopjax.compress._forward import select_forward as select_forward
from koopjax.compress._koopman import koopman as koopman
from koopjax.compress._koopman_trained import koopman_trained as koopman_trained
from koopjax.compress._magnitude import magnitude as magnitude
from koopjax.compress._matrix_curves import matrix_curves as matrix_curves
from koopjax.compress._methods import METHODS as METHODS
from koopjax.compress._obs import Removal as Removal, refit as refit, removal_order as removal_order
from koopjax.compress._pareto import Pareto as Pareto, Point as Point, pareto as pareto
from koopjax.compress._output_metric import (
    select_entries as select_entries,
    softmax_moments as softmax_moments,
)
from koopjax.compress._pruning import obs as obs, wanda as wanda
from koopjax.compress._recipes import RECIPES as RECIPES, Recipe as Recipe, finetuned as finetuned
from koopjax.compress._result import Compressed as Compressed, Report as Report
from koopjax.compress._students import (
    koopman_student as koopman_student,
    small_student as small_student,
)
from koopjax.compress._table import Row as Row, table as table
from koopjax.compress._whitened_svd import whitened_svd as whitened_svd

__all__ = [
    "METHODS",
    "RECIPES",
    "Budget",
    "BudgetTooSmall",
    "Compressed",
    "Pareto",
    "Point",
    "Recipe",
    "Removal",
    "Report",
    "Row",
    "Training",
    "constrained",
    "finetune",
    "finetuned",
    "koopman",
    "koopman_formats",
    "koopman_trained",
    "koopman_student",
    "magnitude",
    "matrix_curves",
    "obs",
    "pareto",
    "refit",
    "removal_order",
    "select_entries",
    "select_forward",
    "select_observables",
    "softmax_moments",
    "small_student",
    "table",
    "wanda",
    "whitened_svd",
]
