"""Packages that only some users need, imported where they are used."""

import importlib
from typing import Any


class MissingExtra(ImportError):
    """A package of an extra is not installed."""


def needed(module: str, extra: str) -> Any:
    """A module of a package that an extra of koopjax brings.

    Raises:
        MissingExtra: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise MissingExtra(
            f"expected the package {package!r}, which is not installed; "
            f'try pip install "koopjax[{extra}]"'
        ) from error
