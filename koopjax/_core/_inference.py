"""How a model is told that it is not being trained."""

import inspect
from collections.abc import Callable
from typing import Any

#: Arguments by which a model is told so, with the value that says it.
INFERENCE = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "inference": True,
}


def inference_arguments(function: Callable[..., Any]) -> dict[str, bool]:
    """Those of the arguments that a function takes, set for inference.

    Args:
        function: for a module, its `type(module).__call__`.
    """
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature takes none of them
        return {}
    return {name: value for name, value in INFERENCE.items() if name in names}
