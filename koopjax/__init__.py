"""How much of a network is really nonlinear, and how small can it get?

A layer stack is a dynamical system in depth. koopjax lifts its activations with a dictionary of
observables, fits the linear map between the lifted states (the Koopman matrix, by extended dynamic
mode decomposition), measures how rich the dictionary has to be, puts the matrix in the layers'
place and compresses it.

The rooms load when they are first named: `koopjax.edmd`, `koopjax.surgery`, and so on.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from koopjax import (
        analysis as analysis,
        compress as compress,
        data as data,
        edmd as edmd,
        export as export,
        models as models,
        nn as nn,
        observables as observables,
        plot as plot,
        report as report,
        surgery as surgery,
        sweep as sweep,
        tensor_edmd as tensor_edmd,
        tt as tt,
    )

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "analysis",
    "compress",
    "data",
    "edmd",
    "export",
    "models",
    "nn",
    "observables",
    "plot",
    "report",
    "surgery",
    "sweep",
    "tensor_edmd",
    "tt",
]
_ROOMS = tuple(__all__[1:])


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"koopjax.{name}")
    raise AttributeError(f"module 'koopjax' has no attribute {name!r}; its rooms are {_ROOMS}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
