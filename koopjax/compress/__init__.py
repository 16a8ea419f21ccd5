"""Smaller models within a budget of bytes: Koopman and conventional methods side by side.

A budget is the size of the file that `export.save` writes. Every method has one signature and
returns a model with a report: `METHODS[name](model, calibration, "20x", key=key)`.
"""

from koopjax.compress._budget import (
    Budget as Budget,
    BudgetTooSmall as BudgetTooSmall,
    Inapplicable as Inapplicable,
)
from koopjax.compress._clustering import kmeans as kmeans
from koopjax.compress._constraint import constrained as constrained
from koopjax.compress._deep_compression import deep_compression as deep_compression
from koopjax.compress._eliminate import select_observables as select_observables
from koopjax.compress._finetune import Training as Training, finetune as finetune
from koopjax.compress._forward import select_forward as select_forward
from koopjax.compress._koopman import formats as koopman_formats
from koopjax.compress._koopman.entries import (
    select_entries as select_entries,
    softmax_moments as softmax_moments,
)
from koopjax.compress._koopman.method import koopman as koopman
from koopjax.compress._koopman.trained import koopman_trained as koopman_trained
from koopjax.compress._magnitude import magnitude as magnitude
from koopjax.compress._matrix_curves import matrix_curves as matrix_curves
from koopjax.compress._methods import ANY_BITS as ANY_BITS, METHODS as METHODS
from koopjax.compress._obs import Removal as Removal, refit as refit, removal_order as removal_order
from koopjax.compress._pareto import pareto as pareto
from koopjax.compress._points import Pareto as Pareto, Point as Point
from koopjax.compress._pruning import obs as obs, wanda as wanda
from koopjax.compress._recipes import RECIPES as RECIPES, Recipe as Recipe, finetuned as finetuned
from koopjax.compress._result import Compressed as Compressed, Report as Report
from koopjax.compress._rounding import int4 as int4, int8 as int8
from koopjax.compress._students import (
    koopman_student as koopman_student,
    small_student as small_student,
)
from koopjax.compress._svd import svd as svd
from koopjax.compress._table import Row as Row, table as table
from koopjax.compress._tensor_train import tensor_train as tensor_train
from koopjax.compress._whitened_svd import whitened_svd as whitened_svd

__all__ = [
    "ANY_BITS",
    "METHODS",
    "RECIPES",
    "Budget",
    "BudgetTooSmall",
    "Compressed",
    "Inapplicable",
    "Pareto",
    "Point",
    "Recipe",
    "Removal",
    "Report",
    "Row",
    "Training",
    "constrained",
    "deep_compression",
    "finetune",
    "finetuned",
    "int4",
    "int8",
    "kmeans",
    "koopman",
    "koopman_formats",
    "koopman_student",
    "koopman_trained",
    "magnitude",
    "matrix_curves",
    "obs",
    "pareto",
    "refit",
    "removal_order",
    "select_entries",
    "select_forward",
    "select_observables",
    "small_student",
    "softmax_moments",
    "svd",
    "table",
    "tensor_train",
    "wanda",
    "whitened_svd",
]
