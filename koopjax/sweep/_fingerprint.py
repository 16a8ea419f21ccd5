"""What makes two sweeps the same: the traced computation, the axes, the data."""

import functools
import hashlib
import re
from typing import Any

import jax
import numpy as np

from koopjax import _core
from koopjax.sweep._points import Points


def digest(tree: Any) -> str:
    """A hash of the structure and the numbers of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    made = hashlib.sha256(_anonymous(str(structure)).encode())
    for leaf in leaves:
        made.update(
            _core.digest(leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)).encode()
        )
    return made.hexdigest()


def _anonymous(text: str) -> str:
    """A text without memory addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+|\bid=\d+", "", text)


def _program(function: Any, data: tuple[Any, ...], points: Points) -> str:
    """A hash of what one lane of every bucket computes, with the constants it holds."""
    made = hashlib.sha256()
    for bucket in points.buckets:
        lane = jax.eval_shape(
            lambda values: jax.tree.map(lambda leaf: leaf[0], values), points.stacked
        )
        closed = jax.make_jaxpr(functools.partial(_call, function, bucket.keywords))(data, lane)
        made.update(_core.fingerprint(closed, anonymous=True).encode())
    return made.hexdigest()


def _call(function: Any, keywords: dict[str, Any], data: tuple[Any, ...], point: Any) -> Any:
    return dict(function(*data, **keywords, **point))


def fingerprint(function: Any, data: tuple[Any, ...], points: Points) -> dict[str, str]:
    """What a sweep is, part by part, the same in every process.

    Args:
        function: of the user.
        data: its leading arguments.
        points: all that are to be computed.

    Returns:
        Texts by part: names, `function` (the operations it traces to and the constants in them),
        `axes` and `data`.
    """
    cells = [(axis.name, axis.static, _anonymous(repr(axis.cells))) for axis in points.axes]
    axes = hashlib.sha256(repr(cells).encode())
    axes.update(digest(points.stacked).encode())
    axes.update(points.positions.astype(np.int64).tobytes())
    return {
        "function": _program(function, data, points),
        "axes": axes.hexdigest(),
        "data": digest(data),
    }
