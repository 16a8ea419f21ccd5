"""Saving, loading and describing models: the verbs of the room."""

import contextlib
import dataclasses
import lzma
import os
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import errors, nnx

from koopjax._core import firsts
from koopjax.export._arrays import Record, claimed, get_array, put_array, put_same
from koopjax.export._file import (
    VERSION,
    Claims,
    FileError,
    Reader,
    UnknownName,
    frame,
    padding,
    read,
    split_header,
    unframe,
    write,
)
from koopjax.export._named import Unknown
from koopjax.export._nodes import TEMPLATE, build_node, built_beside, describe_node
from koopjax.export._walk import Entry, Path, arrays_of, fill, spell, to_jax, to_numpy


def save(model: Any, path: str | os.PathLike[str]) -> int:
    """Store a model in one lean file, whole or not at all.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` or any pytree of
            arrays. Example models, `nn.KoopmanBlock` on the library's dictionaries, `nn.Stack`,
            operators and dictionaries are stored by name and load without a template; of others
            the file holds the arrays, and a fingerprint of their paths. Functions and strings among
            the leaves of a callable are code, as its class is.
        path: where to; an existing file is replaced.

    Returns:
        The size of the file in bytes.

    Numerics:
        Lossless: dtypes and bits are kept. An array that two names share (tied weights) is stored
        once, and shared again by `load`. Each array takes the smallest of its forms: raw; one
        value; sparse with the cheapest index coding; few values, or a scale (one, one a column or
        a row) times small integers, entropy-coded. Minus zero is a value of its own, costs as much
        as any and is on no grid: prune by `jnp.where(mask, w, 0)`, not by `w * mask`, and round by
        `jnp.rint(w / s) + 0.0`. Random streams are not stored.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: nothing can be written there; nothing is
            left behind.
        ValueError: a leaf that is no array of numbers.
    """
    data = _encode(model)
    write(path, data)
    return len(data)


def stored_bytes(model: Any) -> int:
    """The size of the file that `save` writes, without writing it.

    Args:
        model: as in `save`.
    """
    return len(_encode(model))


def load(path: str | os.PathLike[str], model: Any = None) -> Any:
    """Read a model that `save` wrote.

    Args:
        path: the file.
        model: a model of the same structure whose arrays the file replaces in a copy; needed
            where the file does not know its architecture by name.

    Returns:
        A runnable model: an `nnx.Module` (or dictionary) by name, or a copy of `model` in its own
        form, such as `(linen_module, variables)`.

    Raises:
        FileError: not a koopjax file, truncated, corrupt, newer, of another model, or of an
            architecture that needs `model=`.
        FileNotFoundError, IsADirectoryError: no file there.
    """
    body = unframe(read(path), path)
    node, at = split_header(body, path)
    if node[0] == TEMPLATE:
        if model is None:
            raise FileError(
                f"expected a template for {path}, which holds the arrays of {node[1]}, got none; "
                "try load(path, model=...) with a model of the same structure"
            )
        return _load_template(body, at, node, model, path)
    made, take = read_named(body, at, node, path)
    if model is None:
        return made
    arrays = _values(take)
    if isinstance(made, nnx.Module):  # a record may stand for other arrays
        arrays = {name: np.asarray(value) for name, value in arrays_of(made).items()}
    _same_model(model, {k: a.shape for k, a in arrays.items()}, path)
    return fill(model, arrays)


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """One array of a file.

    Attributes:
        path: where in the model; a number where the file does not know.
        shape: of the array.
        dtype: of the array.
        form: how it is stored: `raw`, `equal`, `bitmask`, `rice`, ...
        nonzero: entries whose bits are not all zero.
        bytes: that it takes in the file.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    form: str
    nonzero: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Description:
    """A stored file in figures; `str` gives a table.

    Attributes:
        architecture: name and settings, nested as in the file.
        named: whether `load` needs no template.
        version: of the format.
        bytes: of the whole file.
        overhead: bytes that are no array's data: frame, header, forms and shapes are counted
            with their arrays.
        arrays: each array.
    """

    architecture: Any
    named: bool
    version: int
    bytes: int
    overhead: int
    arrays: tuple[StoredArray, ...]

    def __str__(self) -> str:
        rows = [("array", "shape", "dtype", "form", "nonzero", "bytes")]
        rows += [
            (a.path, str(a.shape), a.dtype, a.form, str(a.nonzero), str(a.bytes))
            for a in self.arrays
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        head = f"{self.architecture}: {self.bytes} bytes, {self.overhead} of them frame and header"
        return "\n".join([head, *lines])


def describe(path: str | os.PathLike[str]) -> Description:
    """What a file holds, array by array.

    Args:
        path: a file that `save` wrote.

    Raises:
        FileError, FileNotFoundError, IsADirectoryError: as `load`.
    """
    data = read(path)
    body = unframe(data, path)
    node, at = split_header(body, path)
    named = node[0] != TEMPLATE
    if named:
        take = read_named(body, at, node, path)[1]
        records = list(zip(take.names, take.records, strict=True))
    else:
        records = [(str(i), r) for i, r in enumerate(read_template(body, at, node, path))]
    arrays = tuple(
        StoredArray(name, r.value.shape, r.value.dtype.name, r.form, r.nonzero, r.size)
        for name, r in records
    )
    overhead = len(data) - sum(a.bytes for a in arrays)
    architecture = node if named else f"arrays of {node[1]}"
    return Description(architecture, named, VERSION, len(data), overhead, arrays)


#: What a setting or an array that does not fit makes of the code that builds a model of it.
MALFORMED = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    errors.FlaxError, lzma.LZMAError, zlib.error, Unknown,
)  # fmt: skip


@contextlib.contextmanager
def understood(path: object, what: str, advice: str) -> Iterator[None]:
    """Around what reads a body: contents that do not fit together are the file's fault.

    `what` a newer version may know and this one does not, and the advice then.
    """
    say = lambda error: " ".join(str(error).split())[:200]
    try:
        yield
    except UnknownName as error:
        raise FileError(
            f"expected {what} that this koopjax knows in {path}, got {say(error)}; try {advice}"
        ) from None
    except MALFORMED as error:
        raise FileError(
            f"expected a model in {path}, got contents that do not fit together "
            f"({type(error).__name__}: {say(error)}); try saving it again"
        ) from error


class Taker:
    """Hands out the arrays of a body in their order and remembers them by name."""

    def __init__(self, body: bytes, at: int):
        self.reader = Reader(body, at)
        self.claims = Claims(len(body))
        self.dtype = np.dtype(np.float32)
        self.names: list[str] = []
        self.records: list[Record] = []

    def __call__(self, path: Path, shape: Any, dtype: Any) -> jax.Array:
        like = self.dtype if dtype is None else np.dtype(dtype)
        record = get_array(self.reader, shape, like, self.records, self.claims)
        self.names.append(spell(path))
        self.records.append(record)
        self.dtype = record.value.dtype
        return to_jax(record.value)

    def end(self) -> None:
        """Behind the arrays there is nothing, or what `padding` put there."""
        body, at = self.reader.data, self.reader.at
        if body.count(0, at) != len(body) - at:
            raise IndexError(f"{len(body) - at} bytes behind the last array")


def read_named(body: bytes, at: int, node: list[Any], path: object) -> tuple[Any, Taker]:
    """The model of a file that knows its architecture, and its arrays as stored."""
    take = Taker(body, at)
    with understood(path, "an architecture", "a newer koopjax, or load(path, model=...)"):
        take.claims.take(built_beside(node))
        made = build_node(node, (), take)
        take.end()
        # once more, as constructors may have cut 64-bit arrays to the default precision
        return fill(made, _values(take)), take


def _values(take: Taker) -> dict[str, np.ndarray]:
    values = (record.value for record in take.records)
    return dict(zip(take.names, values, strict=True))


def _encode(model: Any) -> bytes:
    try:
        node, entries = describe_node(model)
    except Unknown as reason:
        entries = [Entry(name, value) for name, value in arrays_of(model).items()]
        names = [entry.name for entry in entries]
        node = [TEMPLATE, str(reason), _marks(names), zlib.crc32("\n".join(names).encode())]
    body: list[Any] = [msgpack.packb(node)]
    dtype = np.dtype(np.float32)
    claims = built_beside(node)
    arrays = [to_numpy(entry.name, entry.value) for entry in entries]
    for entry, array, first in zip(entries, arrays, firsts(arrays), strict=True):
        like = dtype if entry.dtype is None else np.dtype(entry.dtype)
        place = len(body) - 1
        body.append(put_array(array, entry.shape, like) if first == place else put_same(first))
        claims += claimed(body[-1][0], array.size, array.dtype.itemsize)
        dtype = array.dtype
    whole = b"".join(body)
    return frame(whole + padding(claims, len(whole)))


def _marks(names: list[str]) -> bytes:
    """A byte for each path, to say which is the first that differs."""
    return bytes(zlib.crc32(name.encode()) & 0xFF for name in names)


def read_template(body: bytes, at: int, node: list[Any], path: object) -> Iterator[Record]:
    """The arrays of a file that does not know its architecture, each as it is asked for."""
    take = Taker(body, at)
    with understood(path, "arrays", "a newer koopjax"):
        for place in range(len(_template(node)[0])):
            take((place,), None, None)
            yield take.records[-1]
        take.end()


def _template(node: list[Any]) -> tuple[bytes, int]:
    """A byte for each path and the checksum of all, of a file that holds arrays alone."""
    if len(node) != 4 or not isinstance(node[2], bytes) or type(node[3]) is not int:
        raise IndexError("a header of arrays without their marks")
    return node[2], node[3]


def _load_template(body: bytes, at: int, node: list[Any], model: Any, path: object) -> Any:
    with understood(path, "arrays", "a newer koopjax"):
        marks, checksum = _template(node)
    held = arrays_of(model)
    names, arrays = list(held), {}
    # the records come first, so that the file is read to its end
    for record, name, mark in zip(read_template(body, at, node, path), names, marks, strict=False):
        shape = tuple(jnp.shape(held[name]))
        if _marks([name])[0] != mark:
            raise _other(path, f"no {name} at its place in the file")
        if shape != record.value.shape:
            raise _other(path, f"{name} of shape {shape}, {record.value.shape} in the file")
        arrays[name] = record.value
    if len(names) != len(marks):
        extra = f", {names[len(marks)]} is too many" if len(names) > len(marks) else ""
        raise _other(path, f"{len(names)} arrays, {len(marks)} in the file{extra}")
    if zlib.crc32("\n".join(names).encode()) != checksum:
        raise _other(path, "other paths of parameters")
    return fill(model, arrays)


def _same_model(model: Any, shapes: dict[str, tuple[int, ...]], path: object) -> None:
    held = {name: tuple(jnp.shape(value)) for name, value in arrays_of(model).items()}
    for name, shape in shapes.items():
        if name not in held:
            raise _other(path, f"no {name}, {shape} in the file")
        if held[name] != shape:
            raise _other(path, f"{name} of shape {held[name]}, {shape} in the file")
    for name in held:
        if name not in shapes:
            raise _other(path, f"{name}, which the file lacks")


def _other(path: object, difference: str) -> FileError:
    return FileError(
        f"expected the model that {path} was saved from, got one with {difference}; "
        "try the model of that file"
    )
