"""Example networks in NNX and Linen, and their training."""

from koopjax.forms import form_of, named_leaves
from koopjax.models import linen
from koopjax.models._evaluate import accuracy, apply, output_like, predict, score
from koopjax.models._networks import (
    CNN,
    MLP,
    RECIPES,
    REGISTRY,
    Recipe,
    ResidualMLP,
    ViT,
    build,
    name_of,
    recipe,
)
from koopjax.models._scores import TASKS, answers, compare, divergence, r_squared, read_task
from koopjax.models._step import cross_entropy, squared_error
from koopjax.models._train import TrainResult, train, train_lanes

__all__ = [
    "CNN",
    "MLP",
    "RECIPES",
    "REGISTRY",
    "TASKS",
    "Recipe",
    "ResidualMLP",
    "TrainResult",
    "ViT",
    "accuracy",
    "answers",
    "apply",
    "build",
    "compare",
    "cross_entropy",
    "divergence",
    "form_of",
    "linen",
    "name_of",
    "named_leaves",
    "output_like",
    "predict",
    "r_squared",
    "read_task",
    "recipe",
    "score",
    "squared_error",
    "train",
    "train_lanes",
]
