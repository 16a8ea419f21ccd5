"""Example networks in NNX and Linen, and their training."""

from koopjax.forms import form_of as form_of, named_leaves as named_leaves
from koopjax.models import linen as linen
from koopjax.models._cnn import CNN as CNN
from koopjax.models._evaluate import (
    accuracy as accuracy,
    apply as apply,
    output_like as output_like,
    predict as predict,
    score as score,
)
from koopjax.models._mlp import MLP as MLP, ResidualMLP as ResidualMLP
from koopjax.models._recipes import RECIPES as RECIPES, Recipe as Recipe, recipe as recipe
from koopjax.models._registry import REGISTRY as REGISTRY, build as build, name_of as name_of
from koopjax.models._scores import (
    TASKS as TASKS,
    answers as answers,
    compare as compare,
    divergence as divergence,
    r_squared as r_squared,
    read_task as read_task,
)
from koopjax.models._step import cross_entropy as cross_entropy, squared_error as squared_error
from koopjax.models._train import (
    TrainResult as TrainResult,
    train as train,
    train_lanes as train_lanes,
)
from koopjax.models._vit import ViT as ViT

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
