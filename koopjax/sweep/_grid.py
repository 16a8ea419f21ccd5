"""A function at every point of a grid: one compiled program a shape, lanes as memory allows."""

import base64
import contextlib
import functools
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import _core
from koopjax._core import (
    NONFINITE_SOLUTION,
    SUCCESS,
    Ledger,
    as_array,
    as_whole,
    expected,
    in_float64,
    is_wide,
)
from koopjax.sweep._points import Points, Settings, check_function, float_dtype, points_of
from koopjax.sweep._table import Table

LANES = ("vmap", "map")
UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 1e3, "mb": 1e6, "gb": 1e9}


def bytes_of(limit: Any) -> int | None:
    """A memory limit as a number of bytes: 2**30, "1GiB", "512 MiB"; None for none."""
    if limit is None:
        return None
    if isinstance(limit, str):
        found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)(e\d+)?\s*([a-z]*)\s*", limit.lower())
        if found and found[3] in UNITS:
            return int(float(found[1] + (found[2] or "")) * UNITS[found[3]])
    elif not isinstance(limit, bool) and np.isfinite(limit) and limit > 0:
        return int(limit)
    raise expected("a memory limit in bytes, or such as '2GiB'", f"{limit!r}")


def words(size: float) -> str:
    """A number of bytes in the unit that suits it."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{int(size)} bytes"


def _flag(out: dict[str, Any]) -> Array:
    """SUCCESS, or NONFINITE_SOLUTION where a scalar of the output is NaN or infinite."""
    scalars = [v for v in out.values() if isinstance(v, jax.Array) and v.ndim == 0]
    inexact = [v for v in scalars if jnp.issubdtype(v.dtype, jnp.inexact)]
    sound = functools.reduce(jnp.logical_and, map(jnp.isfinite, inexact), jnp.asarray(True))
    return jnp.where(sound, SUCCESS, NONFINITE_SOLUTION).astype(jnp.int32)


def _outputs(made: Any, taken: frozenset[str]) -> dict[str, Any]:
    """What the function returned as a dict of arrays, with a result code."""
    if not isinstance(made, Mapping) or not made or not all(isinstance(k, str) for k in made):
        raise expected(
            "a dict of scalars or arrays from the function", type(made).__name__, "{'error': error}"
        )
    clash = sorted(taken & set(made))
    if clash:
        raise expected("outputs named differently from the axes", f"both named {clash}")
    # Plain dicts come out of jit sorted by name; ordered ones as the function wrote them.
    out = OrderedDict((name, jax.tree.map(jnp.asarray, value)) for name, value in made.items())
    if "result" not in out:
        out["result"] = _flag(out)
    return out


@functools.partial(jax.jit, static_argnames=("function", "settings", "lanes"))
def run_lanes(
    data: tuple[Any, ...],
    values: dict[str, Any],
    at: dict[str, Any],
    index: Any,
    *,
    function: Any,
    settings: Settings,
    lanes: str,
) -> dict[str, Any]:
    """The function at many points: `index` and each entry of `at` hold one number a lane.

    Values of the axes come whole and each lane picks its own, so that nothing is gathered on the
    host and what is large on an axis (data of several seeds) is not copied.
    """
    fixed = {name: value for name, value, _ in settings}
    taken = frozenset(values) | frozenset(fixed)

    def one(lane: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
        point = {
            name: jax.tree.map(lambda leaf, i=lane[1][name]: leaf[i], stacked)
            for name, stacked in values.items()
        }
        try:
            made = function(*data, **fixed, **point)
        except TypeError as error:  # JAX's own for traced shapes and branches are of this kind
            if values:
                error.add_note(
                    f"the sweep traces the axes {list(values)}; an axis that sets a shape or a "
                    "branch belongs in static="
                )
            raise
        return _outputs(made, taken)

    if lanes == "map":
        return jax.lax.map(one, (index, at))
    return jax.vmap(lambda i, a: one((i, a)))(index, at)


class Program:
    """A bucket's function with everything but the points set."""

    def __init__(self, function: Any, data: Any, values: Any, settings: Any, lanes: str) -> None:
        """Hold what all chunks have in common; nothing is traced yet."""
        self.arguments = (data, values)
        self.static = {"function": function, "settings": settings, "lanes": lanes}

    def __call__(self, at: dict[str, np.ndarray], size: int, count: int) -> dict[str, Any]:
        """Outputs at `count` points, the last one repeated to fill up a chunk of `size`."""
        fill = np.minimum(np.arange(size), count - 1)
        index = np.arange(size, dtype=np.int32)
        chunk = {name: positions[fill] for name, positions in at.items()}
        out = run_lanes(*self.arguments, chunk, index, **self.static)
        return jax.tree.map(lambda leaf: leaf[:count], jax.device_get(out))

    def _lanes(self, size: int) -> tuple[Any, ...]:
        index = np.zeros(size, np.int32)
        return *self.arguments, dict.fromkeys(self.arguments[1], index), index

    def structure(self) -> Any:
        """How the outputs are nested."""
        return jax.tree.structure(run_lanes.eval_shape(*self._lanes(1), **self.static))

    def bytes(self, size: int) -> int:
        """What the compiled program of so many lanes takes: arguments, results, temporaries."""
        found = run_lanes.lower(*self._lanes(size), **self.static).compile().memory_analysis()
        if found is None:
            raise expected(
                "a backend that says what memory a program takes",
                f"{jax.default_backend()}, which does not",
                "chunk= instead of memory_limit=",
            )
        return int(
            found.temp_size_in_bytes
            + found.argument_size_in_bytes
            + found.output_size_in_bytes
            - found.alias_size_in_bytes
        )

    def chunk(self, points: int, limit: int) -> int:
        """How many lanes of a bucket fit within a limit of bytes.

        All of them are tried first: where they fit, that compilation is the one that runs. Else
        the bytes are a line through one lane and all lanes, and what the line promises is checked.
        """
        whole = self.bytes(points)
        if whole <= limit:
            return points
        single = self.bytes(1) if points > 1 else whole
        if single > limit:
            raise expected(
                f"a memory limit of at least {words(single)} ({single} bytes), which one lane "
                f"takes with the data",
                f"{words(limit)} ({limit} bytes)",
                "a larger limit, or smaller data",
            )
        size = 1 + int((limit - single) * (points - 1) // max(whole - single, 1))
        size = max(1, min(size, points - 1))
        while size > 1 and self.bytes(size) > limit:
            size = max(1, size * 3 // 4)
        return size


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
