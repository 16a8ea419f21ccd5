"""What a stored file holds and how many bytes each part takes."""

import dataclasses
import os
from typing import Any

from koopjax.export._file import VERSION, read, unframe
from koopjax.export._header import split_header
from koopjax.export._nodes import TEMPLATE
from koopjax.export._store import read_named, read_template


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
        records = read_named(body, at, node, path)[1]
    else:
        records = [(str(i), r) for i, r in enumerate(read_template(body, at, node, path))]
    arrays = tuple(
        StoredArray(
            name,
            record.value.shape,
            record.value.dtype.name,
            record.form,
            record.nonzero,
            record.size,
        )
        for name, record in records
    )
    overhead = len(data) - sum(a.bytes for a in arrays)
    architecture = node if named else f"arrays of {node[1]}"
    return Description(architecture, named, VERSION, len(data), overhead, arrays)
