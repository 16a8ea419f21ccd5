"""What flows into a span and out of it, batch by batch; states that are no vectors as rows."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax._core import as_array, check_integer, expected, read
from koopjax.surgery._cuts import Layout, locate_pair, traced
from koopjax.surgery._parts import Part, parts

_BATCH_SIZE = 1024

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


def capture(
    model: Any,
    batches: Any,
    at: Any,
    *,
    batch_size: int | None = None,
    sample_axes: SampleAxes = None,
    unroll: bool = False,
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """The values at two cuts, for each batch: the snapshots `x`, `y` of a span.

    Memory does not grow with the number of batches. One function is compiled for each size of a
    batch: each runs as it comes, nothing is filled up, which would change the states of a model
    that couples the samples of a batch (capacities, statistics). Such a model's states depend on
    how the samples are divided into batches. A model that takes one size alone has a smaller batch
    filled up and cut back, unless it couples the samples.

    Args:
        model: as for `split`.
        batches: an array `(n, ...)`, a tuple of two arrays `(inputs, labels)`, or an
            iterable of batches (such as a list), each an array or a tuple whose first entry is one.
        at: names or indices `(a, b)` of two cuts.
        batch_size: samples at a time out of an array (default 1,024); an iterable has its own.
        sample_axes: `None` leaves the values in their shape; `"flatten"` makes each sample a
            vector, `"positions"` each position (pixel, token), axes those positions along them.
        unroll: write scans out, for cuts between their steps.

    Returns:
        An iterator of `(x, y)`: the values at `a` and at `b`.

    Raises:
        ValueError: no batch, an unknown cut, positions that differ between the cuts, or states
            whose batch is not on axis 0 (as where time comes first) unless the axis is among
            `sample_axes`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"a": {"w": jnp.ones((3, 4))}, "b": {"w": jnp.ones((4, 2))}}
        >>> net = lambda p, x: jax.nn.relu(x @ p["a"]["w"]) @ p["b"]["w"]
        >>> pairs = capture((net, params), jnp.ones((5, 3)), at=("a", "output"), batch_size=4)
        >>> [(x.shape, y.shape) for x, y in pairs]
        [((4, 4), (4, 2)), ((1, 4), (1, 2))]
    """
    stream = iter(_batches(batches, batch_size))
    first = next(stream, None)
    if first is None:
        raise expected("at least one batch", "none", "an iterable that is not used up")
    found = traced(model, first, unroll)
    head, span, _ = parts(found, *locate_pair(found, at))
    check_rows(span, sample_axes)
    entry, end = span.segment.entry, span.segment.exit
    # Without a batch axis at both ends there is nothing to cut back to.
    fixed = found.second is None and entry.shape[:1] == end.shape[:1] == first.shape[:1]
    return _run(itertools.chain([first], stream), (head, span), fixed, sample_axes)


def _run(
    stream: Iterable[Any], pair: tuple[Part, Part], fixed: bool, sample_axes: SampleAxes
) -> Iterator[tuple[jax.Array, jax.Array]]:
    axes = tuple(sample_axes) if isinstance(sample_axes, list) else sample_axes
    size = 0
    for batch in stream:
        size = size or batch.shape[0]
        small = fixed and batch.shape[0] < size
        x, y = _filled(pair, batch, size) if small else _both(*pair, batch)
        yield (x, y) if sample_axes is None else (_rows(x, axes), _rows(y, axes))


def _filled(pair: tuple[Part, Part], batch: Any, size: int) -> list[jax.Array]:
    """The states of a batch smaller than the only size that a model takes.

    It is filled up with its last sample and with its first, which shows whether the samples of a
    batch are coupled.
    """
    count = batch.shape[0]
    filled = [
        np.concatenate([batch, np.repeat(batch[row][None], size - count, axis=0)])
        for row in (-1, 0)
    ]
    states, others = ([value[:count] for value in _both(*pair, x)] for x in filled)
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(states, others, strict=True)):
        raise expected(
            f"batches of {size} samples, the only size of a model that couples them",
            f"{count}",
            "leaving out the samples that are left over",
        )
    return states


_rows = jax.jit(to_rows, static_argnums=1)


@jax.jit
def _both(head: Part, span: Part, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    before = head(x)
    return before, span(before)


def _batches(batches: Any, batch_size: int | None) -> Iterable[Any]:
    if batch_size is not None:
        check_integer("batch_size", batch_size, 1)
    if hasattr(batches, "to_numpy"):  # a frame is one array, by whose columns it is iterated
        batches = read("batches", batches)
    if isinstance(batches, tuple) and len(batches) == 2 and all(map(_is_array, batches)):
        batches = batches[0]
    if _is_array(batches):
        whole = _some("batches", batches)
        size = min(batch_size or _BATCH_SIZE, whole.shape[0])
        starts = range(0, whole.shape[0], size)
        return (as_array("batches", whole[start : start + size]) for start in starts)
    if isinstance(batches, str | dict) or not isinstance(batches, Iterable):
        raise expected(
            "an array (n, ...) or an iterable of batches",
            type(batches).__name__,
            "a list of arrays",
        )
    return (as_array("a batch", _input_of(batch)) for batch in batches)


def _input_of(batch: Any) -> Any:
    x = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not _is_array(x):
        raise expected(
            "batches that are arrays or tuples whose first entry is one",
            type(x).__name__,
            "(batch['image'] for batch in batches)",
        )
    return _some("a batch", x)


def _some(name: str, x: Any) -> Any:
    if not x.ndim or not x.shape[0]:
        raise expected(f"at least one sample (n, ...) in {name}", f"shape {x.shape}")
    return x


def _is_array(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("shape", "dtype", "ndim"))
