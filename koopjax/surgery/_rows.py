"""States that are no vectors: which axes count samples, and which make up the vector."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax._core import as_array, expected
from koopjax.surgery._cuts import Layout
from koopjax.surgery._parts import Part

#: `None` (leave the array as it is), `"flatten"`, `"positions"`, or the axes that count samples.
SampleAxes = str | int | tuple[int, ...] | None


def axes_of(sample_axes: SampleAxes, ndim: int) -> tuple[int, ...]:
    """The axes that count samples, as non-negative numbers in order.

    `"flatten"` is the batch axis alone, `"positions"` all but the last, otherwise the axes
    themselves.
    """
    if ndim < 1:
        raise expected("states of at least one axis (n, ...)", "shape ()", "x[None]")
    if isinstance(sample_axes, str):
        named = {"flatten": (0,), "positions": tuple(range(ndim - 1))}
        if sample_axes not in named:
            raise expected(
                "sample_axes", repr(sample_axes), "'flatten', 'positions' or axes (0, 1)"
            )
        return named[sample_axes]
    given = sample_axes if isinstance(sample_axes, list | tuple) else (sample_axes,)
    whole = [int(a) for a in given if isinstance(a, int | np.integer) and not isinstance(a, bool)]
    axes = sorted({axis % ndim for axis in whole if -ndim <= axis < ndim})
    if len(axes) != len(given) or not axes or (len(axes) == ndim and ndim > 1):
        raise expected(
            f"sample_axes among the {ndim} axes of the state, at least one of them left for its "
            "entries",
            repr(sample_axes),
            "'flatten' or 'positions'",
        )
    return tuple(axes)


def to_rows(x: jax.Array, sample_axes: SampleAxes) -> jax.Array:
    """A state as rows `(m, d)`: one row a position along the sample axes.

    Args:
        x: the state, batch included, such as `(n, height, width, channels)`.
        sample_axes: `"flatten"` gives `(n, height * width * channels)`, `"positions"` gives
            `(n * height * width, channels)`, axes are taken as they are, and `None` returns `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> to_rows(jnp.ones((5, 7, 7, 3)), "positions").shape
        (245, 3)
    """
    x = as_array("the states", x)
    if sample_axes is None:
        return x
    axes = axes_of(sample_axes, x.ndim)
    front = jnp.moveaxis(x, axes, range(len(axes)))
    count = math.prod(front.shape[: len(axes)])
    return front.reshape(count, math.prod(front.shape[len(axes) :]))


def from_rows(rows: jax.Array, shape: tuple[int, ...], sample_axes: SampleAxes) -> jax.Array:
    """The reverse of `to_rows`: rows as a state of the given shape.

    Args:
        rows: `(m, d)`.
        shape: shape of the state, batch included.
        sample_axes: as for `to_rows`.

    Raises:
        ValueError: the rows do not make up that shape.
    """
    rows = as_array("the rows", rows)
    if sample_axes is None:
        return rows
    if not isinstance(shape, list | tuple) or not all(isinstance(size, int) for size in shape):
        raise expected("the shape of the states (n, ...)", repr(shape), "states.shape")
    axes = axes_of(sample_axes, len(shape))
    counts = [shape[axis] for axis in axes]
    entries = [size for axis, size in enumerate(shape) if axis not in axes]
    if rows.shape != (math.prod(counts), math.prod(entries)):
        raise expected(
            f"rows of shape {(math.prod(counts), math.prod(entries))} to make up {shape}",
            f"{tuple(rows.shape)}",
            "a block with that many outputs, or sample_axes='flatten' where positions differ",
        )
    return jnp.moveaxis(rows.reshape(*counts, *entries), range(len(axes)), axes)


def check_axes(sample_axes: SampleAxes, entry: Layout, end: Layout) -> None:
    """Refuse `sample_axes` that mix the samples of a batch, or differ between a span's two ends.

    Under `None` rows are samples too, so the batch has to be on axis 0.
    """
    for layout in (entry, end):
        axes = (0,) if sample_axes is None else axes_of(sample_axes, len(layout.shape))
        if layout.axis is not None and layout.axis not in axes:
            raise expected(
                f"states with the batch on axis 0 under sample_axes={sample_axes!r}",
                f"{layout}, where axis {layout.axis} counts the n samples",
                f"sample_axes={layout.axis}, or another cut",
            )
    lengths = [
        [layout.length(axis) for axis in axes_of(sample_axes, len(layout.shape))]
        for layout in (entry, end)
        if sample_axes is not None
    ]
    if lengths[1:] != lengths[:-1]:
        raise expected(
            f"the same positions at both ends of the span under sample_axes={sample_axes!r}",
            f"{entry} and {end}",
            "sample_axes='flatten', or other cuts",
        )


def check_rows(part: Any, sample_axes: SampleAxes = None) -> None:
    """Refuse a span whose states at either end, taken as rows, would mix the samples of a batch.

    Args:
        part: from `split`.
        sample_axes: as for `to_rows`.

    Raises:
        ValueError: the batch is on another axis than the first, as where time comes first.

    Example:
        >>> import jax.numpy as jnp
        >>> net = lambda p, x: jnp.tanh(x.T * p).T
        >>> from koopjax import surgery
        >>> _, span, _ = surgery.split((net, jnp.ones(())), jnp.ones((5, 3)), ("input", "output"))
        >>> check_rows(span)
    """
    if not isinstance(part, Part):
        raise expected("a part from surgery.split", type(part).__name__, "part(x)")
    check_axes(sample_axes, part.segment.entry, part.segment.exit)
