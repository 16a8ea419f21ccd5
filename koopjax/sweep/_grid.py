"""A function at every point of a grid, in one compiled program a shape."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from koopjax._core import as_array, as_whole, expected, in_float64, is_wide
from koopjax.sweep._fingerprint import fingerprint
from koopjax.sweep._lanes import LANES, Program, bytes_of
from koopjax.sweep._ledger import Ledger
from koopjax.sweep._points import Bucket, Points, check_function, float_dtype, points_of
from koopjax.sweep._table import Table


def wide(tree: Any) -> contextlib.AbstractContextManager:
    """A context in which float64 arrays of the data stay float64; else one that does nothing."""
    return in_float64(is_wide(tree))


def _check(lanes: str, chunk: Any) -> None:
    if lanes not in LANES:
        raise expected(f"lanes in {LANES}", repr(lanes))
    if chunk is not None:
        as_whole("chunk", chunk, 1)


def grid(
    function: Callable[..., Mapping[str, Any]],
    axes: Mapping[str, Any],
    *,
    data: Sequence[Any] = (),
    static: str | Sequence[str] = (),
    zip: bool = False,
    lanes: str = "vmap",
    chunk: int | None = None,
    memory_limit: float | str | None = None,
    ledger: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Call `function(*data, **point)` at every point of a grid, vmapped, and make a table.

    All points that agree on the `static` axes form one program, compiled once; the other axes are
    traced, and run as lanes of one vmap. A second sweep with the same function object and the same
    shapes compiles nothing.

    Args:
        function: pure, of arrays that JAX can trace, returning a dict: scalars become columns,
            other arrays (or trees of them) go to `Table.arrays`. A column `result` is added where
            it returns none: 0, or the code of a non-finite solution where a scalar is NaN or
            infinite.
        axes: name to values: numbers, arrays or trees of one shape, an array of random keys; on
            static axes anything hashable. Python's and NumPy's floats take the dtype of the data.
        data: leading arguments, the same at all points.
        static: names of the axes that change shapes (degree, family, padded rank).
        zip: take the axes in step (all of one length) instead of in all combinations.
        lanes: "vmap" (all lanes of a chunk at once), or "map" (one after the other inside the same
            compiled program: the memory of one lane, and little lost on a CPU, where factorisations
            of a batch run one after another in any case).
        chunk: at most so many lanes in a call.
        memory_limit: bytes, or such as "2GiB", for what the compiled program takes: the data, the
            lanes' results and all temporaries, as the compiler states them. Chunks are as large as
            fit; the last is filled up so that it has their shape.
        ledger: file to which each finished chunk goes before the next begins. Called again after
            an interruption, the sweep computes what is missing.
        progress: called as `progress(done, total)` with numbers of points.

    Returns:
        Table: a row a point in the order of the product (the last axis fastest).

    Numerics: one compilation a static combination; under a memory limit that not all lanes meet,
    two or more trial compilations besides. Without a ledger nothing is traced twice. A lane may
    differ in the last bits from a call of its own, since batched products sum in another order.

    Raises:
        ValueError: no axes, an empty one, an unknown static name; a function that doesn't take the
            axes or returns no dict; a memory limit below what one lane takes (said how much); a
            ledger of another sweep, or in use.

    Example:
        >>> import jax.numpy as jnp
        >>> def ridge(x, y, alpha):
        ...     k = jnp.sum(x * y) / (jnp.sum(x * x) + alpha)
        ...     return {"error": jnp.mean((k * x - y) ** 2)}
        >>> x = jnp.arange(4.0)
        >>> table = grid(ridge, {"alpha": [0.0, 14.0]}, data=(x, 2 * x))
        >>> table["error"].tolist()
        [0.0, 3.5]
    """
    _check(lanes, chunk)
    limit = bytes_of(memory_limit)
    with wide((list(data), axes)):
        # On the device once, not again for each chunk.
        known = jax.Array | bool | int | float | complex
        move = lambda leaf: leaf if isinstance(leaf, known) else as_array("data", leaf)
        held = jax.tree.map(move, tuple(data))
        points = points_of(axes, static, zip, float_dtype(held))
        check_function(function, held, list(axes))
        with contextlib.ExitStack() as stack:
            book = None
            if ledger is not None:
                book = stack.enter_context(Ledger(ledger, fingerprint(function, held, points)))
            return _run(function, held, points, lanes, chunk, limit, book, progress)


def _run(
    function: Any,
    data: tuple[Any, ...],
    points: Points,
    lanes: str,
    chunk: int | None,
    limit: int | None,
    book: Ledger | None,
    progress: Callable[[int, int], None] | None,
) -> Table:
    total = len(points.positions)
    entries: list[Any] = [None] * total
    done = 0 if book is None else len(book.finished)
    if progress is not None and done:
        progress(done, total)
    for bucket in points.buckets:
        program = Program(function, data, points.stacked, bucket.settings, lanes)
        for chosen, out in _chunks(program, points, bucket, chunk, limit, book):
            for lane, point in enumerate(chosen):
                entries[point] = jax.tree.map(lambda leaf, i=lane: leaf[i], out)
            done += len(chosen)
            if progress is not None:
                progress(done, total)
        _restore(program, points, bucket, book, entries)
    return _table(points, entries)


def _chunks(
    program: Program,
    points: Points,
    bucket: Bucket,
    chunk: int | None,
    limit: int | None,
    book: Ledger | None,
) -> Any:
    """Compute what is missing of a bucket, chunk by chunk, each on disk before it is handed on."""
    finished = {} if book is None else book.finished
    missing = [point for point in bucket.points if point not in finished]
    if not missing:
        return
    names = list(points.stacked)
    size = len(missing) if chunk is None else min(int(chunk), len(missing))
    if limit is not None:
        size = program.chunk(names, size, limit)
    for start in range(0, len(missing), size):
        chosen = missing[start : start + size]
        out = program(points.lanes(chosen), size, len(chosen))
        if book is not None:
            book.append(chosen, jax.tree.leaves(out))
        yield chosen, out


def _restore(
    program: Program, points: Points, bucket: Bucket, book: Ledger | None, entries: list[Any]
) -> None:
    """Put what the ledger held already into the structure that the function returns."""
    if book is None or not any(point in book.finished for point in bucket.points):
        return
    structure = jax.tree.structure(program.shapes(list(points.stacked)))
    for point in bucket.points:
        if point in book.finished:
            entries[point] = jax.tree.unflatten(structure, book.finished[point])


def _table(points: Points, entries: list[Any]) -> Table:
    rows, arrays = [], {}
    scalars = [
        {k for k, v in out.items() if hasattr(v, "shape") and np.shape(v) == ()} for out in entries
    ]
    # A name that is a scalar at some points and an array at others is an array.
    common = set.intersection(*scalars)
    for point, out in enumerate(entries):
        row = points.cells(point)
        for name, value in out.items():
            if name in common:
                row[name] = np.asarray(value).item()
            else:
                arrays.setdefault(name, [None] * len(entries))[point] = value
        rows.append(row)
    return Table(rows, tuple(axis.name for axis in points.axes), arrays)
