"""Axes and their points: which of them share one compilation, and which lanes they are."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax._core import expected

PLAIN = (bool, int, float, str, type(None))
#: Static names and values, with the values' types so that 2 and 2.0 differ.
Settings = tuple[tuple[str, Any, type], ...]
NUMERIC = (int, float, complex, np.ndarray, np.generic, jax.Array)


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis: its values (traced: stacked in arrays), and what the table shows of each.

    A cell is a plain value, or the position where the value is an array, a key or a tree.
    """

    name: str
    cells: tuple[Any, ...]
    values: Any
    static: bool


@dataclasses.dataclass(frozen=True)
class Points:
    """All points: `(points, axes)` positions, and the points that share each compilation."""

    axes: tuple[Axis, ...]
    positions: np.ndarray
    buckets: dict[Settings, list[int]]

    @property
    def stacked(self) -> dict[str, Any]:
        """Values of the traced axes."""
        return {axis.name: axis.values for axis in self.axes if not axis.static}

    def lanes(self, points: Sequence[int]) -> dict[str, np.ndarray]:
        """Positions of some points on the traced axes, int32 each."""
        chosen = self.positions[np.asarray(points, np.int64)].astype(np.int32)
        return {a.name: chosen[:, k] for k, a in enumerate(self.axes) if not a.static}

    def cells(self, point: int) -> dict[str, Any]:
        """The beginning of a row of the table: a value for each axis."""
        at = self.positions[point]
        return {a.name: a.cells[int(i)] for a, i in zip(self.axes, at, strict=True)}


def _plain(value: Any) -> Any:
    """A number of any library as Python's own; other values as they are."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, jax.Array) and value.ndim == 0 and not _is_key(value):
        return np.asarray(value).item()
    return value


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _static_axis(name: str, values: list[Any]) -> Axis:
    values = [_plain(value) for value in values]
    for value in values:
        try:
            hash(value)
        except TypeError:
            raise expected(
                f"hashable values on the static axis {name!r}",
                type(value).__name__,
                "a tuple, a string or a number",
            ) from None
    cells = tuple(value if isinstance(value, PLAIN) else str(value) for value in values)
    return Axis(name, cells, tuple(values), True)


def _traced_axis(name: str, values: Any, dtype: Any) -> Axis:
    """Values in one array, or tree of them; Python's floats in the dtype of the data."""
    if _is_key(values):
        return Axis(name, tuple(range(len(values))), values, False)
    if isinstance(values, jax.Array) and values.ndim == 1:
        return Axis(name, tuple(np.asarray(values).tolist()), values, False)
    listed = [_plain(value) for value in values]
    leaves, numbers = jax.tree.leaves(listed), np.empty(0)
    plain = all(isinstance(v, (*PLAIN, complex)) for v in listed)
    sound = bool(leaves) and all(isinstance(leaf, NUMERIC) for leaf in leaves)
    if plain:
        numbers = np.asarray(listed)
        sound = numbers.dtype.kind in "biufc"
    if not sound:
        raise expected(
            f"numbers, arrays or keys on the traced axis {name!r}",
            f"{listed[0]!r:.60}",
            f"static=({name!r},), one compilation a value",
        )
    if plain:
        kind = dtype if numbers.dtype.kind == "f" else numbers.dtype
        return Axis(name, tuple(listed), numbers.astype(kind), False)
    shapes = {
        (jax.tree.structure(v), *(jnp.shape(leaf) for leaf in jax.tree.leaves(v))) for v in listed
    }
    if len(shapes) > 1:
        raise expected(
            f"values of one structure and shape on the traced axis {name!r}",
            f"{len(shapes)} different ones",
            f"static=({name!r},), or padding them to one shape",
        )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *listed)
    return Axis(name, tuple(range(len(listed))), stacked, False)


def float_dtype(data: Any) -> Any:
    """The widest floating dtype of the data; JAX's default where they hold none."""
    found = [
        leaf.dtype
        for leaf in jax.tree.leaves(data)
        if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return np.dtype(jnp.result_type(*found) if found else jnp.result_type(float))


def _check_names(axes: Any, static: Sequence[str]) -> None:
    if not isinstance(axes, Mapping) or not axes:
        raise expected(
            "axes as a dict with at least one name", f"{axes!r}", "{'alpha': [1e-3, 1e-1]}"
        )
    for name, values in axes.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise expected("axes named as keyword arguments are", f"{name!r}")
        try:
            size = -1 if isinstance(values, str | bytes | Mapping) else len(values)
        except TypeError:
            size = -1  # a number, an array without axes, a generator
        if size < 0:
            raise expected(f"a sequence of values on the axis {name!r}", f"{values!r}", "a list")
        if size == 0:
            raise expected(f"at least one value on the axis {name!r}", "an empty sequence")
    for name in static:
        if name not in axes:
            raise expected(f"static names among the axes {list(axes)}", f"{name!r}")


def points_of(axes: Mapping[str, Any], static: Sequence[str], zipped: bool, dtype: Any) -> Points:
    """All points of the product of the axes, or (`zipped`) of the axes in step.

    The dtype is that of floating values that have no JAX dtype of their own.
    """
    static = (static,) if isinstance(static, str) else tuple(static)
    _check_names(axes, static)
    made = tuple(
        _static_axis(name, list(values)) if name in static else _traced_axis(name, values, dtype)
        for name, values in axes.items()
    )
    sizes = [len(axis.cells) for axis in made]
    if zipped and len(set(sizes)) > 1:
        raise expected(
            "axes of equal length, since zip=True takes them in step",
            f"{dict(zip(axes, sizes, strict=True))}",
            "zip=False for all combinations",
        )
    if zipped:
        positions = np.tile(np.arange(sizes[0])[:, None], (1, len(sizes)))
    else:
        positions = np.indices(sizes).reshape(len(sizes), -1).T
    buckets: dict[Settings, list[int]] = {}
    columns = [k for k, axis in enumerate(made) if axis.static]
    for point, at in enumerate(positions):
        chosen = [(made[k].name, made[k].values[int(at[k])]) for k in columns]
        buckets.setdefault(tuple((n, value, type(value)) for n, value in chosen), []).append(point)
    return Points(made, positions, buckets)


def check_function(function: Any, data: Sequence[Any], names: Sequence[str]) -> None:
    """Raise unless a function can be called with the data and a keyword an axis."""
    if not callable(function):
        raise expected("a function(*data, **point)", type(function).__name__)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # some built-in callables have none
    try:
        signature.bind(*data, **dict.fromkeys(names))
    except TypeError as error:
        raise expected(
            f"a function of {len(data)} data arguments and the keywords {list(names)}",
            f"one with the signature {signature} ({error})",
        ) from None
