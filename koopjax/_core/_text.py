"""Results as text: the values that JSON has, and columns."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from koopjax._core._arrays import expected


def plain(value: Any) -> Any:
    """The value in JSON's own types; numbers that JSON lacks (NaN, infinities) become null."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (str, bool)) or value is None:
        return value
    if isinstance(value, pathlib.Path):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    array = np.asarray(value)
    if array.dtype == object and array.ndim == 0:
        raise expected("results of numbers, text, lists and mappings", type(value).__name__)
    return plain(array.tolist())


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = ()) -> str:
    """Lines of cells in columns, those of `left` from the left and the others from the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = lambda i, cell: (cell.ljust if i in left else cell.rjust)(widths[i])
    return "\n".join("  ".join(pad(*each) for each in enumerate(line)).rstrip() for line in lines)
