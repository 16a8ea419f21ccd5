"""Smaller models within a budget of bytes: Koopman and conventional methods side by side.

A budget is the size of the file that `export.save` writes. Every method has one signature and
returns a model with a report: `METHODS[name](model, calibration, "20x", key=key)`.
"""

from koopjax.compress._koopman.fit import (
    select_entries as select_entries,
    softmax_moments as softmax_moments,
)
from koopjax.compress._koopman.method import koopman as koopman
from koopjax.compress._koopman.trained import koopman_trained as koopman_trained
from koopjax.compress._problem import Problem as Problem, Score as Score, posed as posed
from koopjax.compress._result import (
    Budget as Budget,
    BudgetTooSmall as BudgetTooSmall,
    Compressed as Compressed,
    Inapplicable as Inapplicable,
    Report as Report,
)
from koopjax.compress.contest._contest import Point as Point, Rules as Rules
from koopjax.compress.contest._pareto import Pareto as Pareto, pareto as pareto
from koopjax.compress.gram import formats as koopman_formats
from koopjax.compress.gram._obs import (
    Removal as Removal,
    matrix_curves as matrix_curves,
    refit as refit,
    removal_order as removal_order,
)
from koopjax.compress.gram._select import (
    select_forward as select_forward,
    select_observables as select_observables,
)
from koopjax.compress.methods._deep_compression import deep_compression as deep_compression
from koopjax.compress.methods._few_values import int4 as int4, int8 as int8, kmeans as kmeans
from koopjax.compress.methods._pruning import magnitude as magnitude, obs as obs, wanda as wanda
from koopjax.compress.methods._registry import (
    ANY_BITS as ANY_BITS,
    METHODS as METHODS,
    Method as Method,
)
from koopjax.compress.methods._svd import svd as svd, whitened_svd as whitened_svd
from koopjax.compress.methods._tensor_train import tensor_train as tensor_train
from koopjax.compress.training._finetune import Training as Training, finetune as finetune
from koopjax.compress.training._recipes import (
    RECIPES as RECIPES,
    Recipe as Recipe,
    finetuned as finetuned,
)
from koopjax.compress.training._students import (
    koopman_student as koopman_student,
    small_student as small_student,
)
from koopjax.compress.training._to_size import constrained as constrained

__all__ = [
    "ANY_BITS",
    "METHODS",
    "RECIPES",
    "Budget",
    "BudgetTooSmall",
    "Compressed",
    "Inapplicable",
    "Method",
    "Pareto",
    "Point",
    "Problem",
    "Recipe",
    "Removal",
    "Report",
    "Rules",
    "Score",
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
    "posed",
    "refit",
    "removal_order",
    "select_entries",
    "select_forward",
    "select_observables",
    "small_student",
    "softmax_moments",
    "svd",
    "tensor_train",
    "wanda",
    "whitened_svd",
]
