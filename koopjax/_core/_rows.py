"""Snapshots as rows: one state each, as many before as after, in float64 where they need it."""

from typing import Any

import numpy as np

from koopjax._core._arrays import expected
from koopjax._core._door import held, needs_float64, read_numbers


def _rows(name: str, x: Any) -> Any:
    """Real floating numbers `(n, d)` at full width."""
    array = read_numbers(name, x)
    if array.ndim != 2:
        raise expected(
            f"{name} of shape (n, d), a row for each sample",
            f"shape {tuple(array.shape)}",
            "x.reshape(len(x), -1), or x[:, None] for one coordinate",
        )
    if array.shape[0] == 0:
        raise expected(
            f"at least one sample in {name}", "an empty batch", "checking how the data were read"
        )
    return array


def as_rows(x: Any, *trees: Any) -> Any:
    """States `(n, d)`; in float64 where they or the dictionaries that they meet need it."""
    array = _rows("x", x)
    return array if needs_float64("x", array, *trees) else held("x", array)


def as_pair(x: Any, y: Any, *trees: Any) -> tuple[Any, Any]:
    """Snapshots before and after: as many of one as of the other; identity is kept.

    Args:
        x: snapshots before.
        y: snapshots after.
        *trees: dictionaries. Where these or either of the snapshots need float64, both keep it.
    """
    same = y is x
    x = _rows("x", x)
    y = x if same else _rows("y", y)
    if x.shape[0] != y.shape[0]:
        raise expected(
            "as many rows in y as in x",
            f"{x.shape[0]} and {y.shape[0]}",
            "pairing each snapshot with its successor: x = s[:-1], y = s[1:]",
        )
    wide = needs_float64("x", x, *trees) or (not same and needs_float64("y", y, *trees))
    keep = lambda name, a: a if wide and a.dtype == np.float64 else held(name, a)
    x_held = keep("x", x)
    return x_held, x_held if same else keep("y", y)
