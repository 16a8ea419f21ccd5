"""A function at every point of a grid, in one compiled program a shape."""

import base64
import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from koopjax import _core
from koopjax._core import Ledger, as_array, as_whole, expected, in_float64, is_wide
from koopjax.sweep._lanes import LANES, Program, bytes_of
from koopjax.sweep._points import Points, check_function, float_dtype, points_of
from koopjax.sweep._table import Table


def wide(tree: Any) -> contextlib.AbstractContextManager:
    """A context in which float64 arrays of the data stay float64; else one that does nothing."""
    return in_float64(is_wide(tree))


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
    if lanes not in LANES:
        raise expected(f"lanes in {LANES}", repr(lanes))
    if chunk is not None:
        as_whole("chunk", chunk, 1)
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
                what = _fingerprint(function, held, points)
                book = stack.enter_context(Ledger(ledger, what, "sweep"))
            return _run(function, held, points, lanes, chunk, limit, book, progress)


def _run(function, data, points: Points, lanes, chunk, limit, book, progress) -> Table:
    """Compute what the ledger lacks, chunk by chunk, each on disk before the next begins."""
    tell = progress or (lambda done, total: None)
    finished = {} if book is None else _finished(book)
    entries: list[Any] = [None] * len(points.positions)
    done = len(finished)
    if done:
        tell(done, len(entries))
    for settings, places in points.buckets.items():
        program = Program(function, data, points.stacked, settings, lanes)
        missing = [point for point in places if point not in finished]
        size = min(len(missing), int(chunk or len(missing)))
        if limit is not None and missing:
            size = program.chunk(size, limit)
        for start in range(0, len(missing), max(size, 1)):
            chosen = missing[start : start + size]
            out = program(points.lanes(chosen), size, len(chosen))
            if book is not None:
                leaves = [_encode(leaf) for leaf in jax.tree.leaves(out)]
                book.add("chunk", {"points": chosen, "leaves": leaves})
            for lane, point in enumerate(chosen):
                entries[point] = jax.tree.map(lambda leaf, i=lane: leaf[i], out)
            done += len(chosen)
            tell(done, len(entries))
        if len(missing) < len(places):
            # What the ledger held already, in the structure that the function returns.
            structure = program.structure()
            for point in set(places) - set(missing):
                entries[point] = jax.tree.unflatten(structure, finished[point])
    return _table(points, entries)


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


def _encode(leaf: Any) -> dict[str, Any]:
    array = np.asarray(leaf)
    text = base64.b64encode(array.tobytes()).decode()
    # Names instead of codes, since bfloat16 and its like have no code of NumPy's own.
    return {"dtype": array.dtype.name, "shape": list(array.shape), "base64": text}


def _decode(item: dict[str, Any]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(item["base64"]), np.dtype(item["dtype"]))
    return flat.reshape(item["shape"]).copy()


def _finished(book: Ledger) -> dict[int, list[np.ndarray]]:
    """Leaves of the outputs at the points that a ledger holds."""
    found = {}
    for row in book.of("chunk"):
        leaves = [_decode(item) for item in row["leaves"]]
        for lane, point in enumerate(row["points"]):
            found[point] = [leaf[lane] for leaf in leaves]
    return found


def digest(tree: Any) -> str:
    """A hash of the structure and the numbers of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    made = hashlib.sha256(_anonymous(str(structure)).encode())
    for leaf in leaves:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        made.update(_core.digest(array).encode())
    return made.hexdigest()


def _anonymous(text: str) -> str:
    """A text without memory addresses, which differ from process to process."""
    return re.sub(r" at 0x[0-9a-f]+|\bid=\d+", "", text)


def _call(function: Any, keywords: dict[str, Any], data: tuple[Any, ...], point: Any) -> Any:
    return dict(function(*data, **keywords, **point))


def _fingerprint(function: Any, data: tuple[Any, ...], points: Points) -> dict[str, str]:
    """What a sweep is, part by part, the same in every process.

    The `function` is the operations that one lane of every bucket traces to, with the constants in
    them.
    """
    cells = [(axis.name, axis.static, _anonymous(repr(axis.cells))) for axis in points.axes]
    axes = hashlib.sha256(repr(cells).encode())
    axes.update(digest(points.stacked).encode())
    axes.update(points.positions.astype(np.int64).tobytes())
    first = lambda values: jax.tree.map(lambda leaf: leaf[0], values)
    lane, program = jax.eval_shape(first, points.stacked), hashlib.sha256()
    for settings in points.buckets:
        keywords = {name: value for name, value, _ in settings}
        closed = jax.make_jaxpr(functools.partial(_call, function, keywords))(data, lane)
        program.update(_core.fingerprint(closed, anonymous=True).encode())
    return {"function": program.hexdigest(), "axes": axes.hexdigest(), "data": digest(data)}
