"""Arrays of a pure function taken in by the door."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from koopjax._core import as_array


def by_door(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function so that these arguments of it are arrays; a bias may be none.

    Args:
        *names: of arguments, those that the function has.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            for name, value in bound.arguments.items():
                if name in names and not (name == "bias" and value is None):
                    bound.arguments[name] = as_array(name, value)
            return function(*bound.args, **bound.kwargs)

        return call

    return wrap
