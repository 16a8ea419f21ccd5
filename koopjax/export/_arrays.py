"""Arrays as bytes, each in the smallest of a few forms, and back to the bit."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from koopjax._core import expected
from koopjax.export import _bits
from koopjax.export._file import get_varint, put_varint

# The place in this list is what the file holds: append only.
DTYPES = [
    "float32",
    "bfloat16",
    "float16",
    "float64",
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
]
FORMS = ["raw", "equal", "bitmask", "rice", "rice_columns", "lzma", "deflate", "range"]
RAW, EQUAL, BITMASK, RICE, RICE_COLUMNS, PACKED, DEFLATED, RANGED = range(8)
HAS_DTYPE, HAS_SHAPE = 0x10, 0x20


@dataclasses.dataclass(frozen=True)
class Record:
    """One stored array: its value, the name of its form and the bytes that it took."""

    value: np.ndarray
    form: str
    size: int

    @property
    def nonzero(self) -> int:
        """Entries whose bits are not all zero; minus zero is one of them."""
        if self.value.dtype == np.bool_:
            return int(np.count_nonzero(self.value))
        return int(np.count_nonzero(np.any(_bytes_of(self.value) != 0, axis=1)))


def put_array(array: np.ndarray, shape: tuple[int, ...] | None, dtype: np.dtype[Any]) -> bytes:
    """An array as a record: a byte of form, dtype and shape where they aren't known, the data.

    Args:
        array: any array of a supported dtype.
        shape: the shape that the reader will expect; none if it can't know.
        dtype: the dtype that the reader will expect.
    """
    name = array.dtype.name
    if name not in DTYPES:
        raise expected(f"arrays of a dtype among {', '.join(DTYPES)}", name)
    form, body = _smallest(array)
    head = b""
    if array.dtype != dtype:
        form |= HAS_DTYPE
        head += bytes([DTYPES.index(name)])
    if array.shape != shape:
        form |= HAS_SHAPE
        head += put_varint(array.ndim) + b"".join(put_varint(n) for n in array.shape)
    return bytes([form]) + head + body


def get_array(
    data: bytes, at: int, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> tuple[Record, int]:
    """The array that `put_array` wrote at a place, and the place behind it."""
    start = at
    code = data[at]
    at += 1
    if code & HAS_DTYPE:
        dtype = jnp.dtype(DTYPES[data[at]])
        at += 1
    if code & HAS_SHAPE or shape is None:
        rank, at = get_varint(data, at)
        sizes = []
        for _ in range(rank):
            n, at = get_varint(data, at)
            sizes.append(n)
        shape = tuple(sizes)
    form = code & 0x0F
    value, at = _decode(data, at, form, shape, np.dtype(dtype))
    return Record(value, FORMS[form], at - start), at


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The entries as rows of bytes, little-endian, so that every bit pattern is kept."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return flat.view(np.uint8).reshape(flat.size, flat.dtype.itemsize)


def _smallest(array: np.ndarray) -> tuple[int, bytes]:
    """The shortest form of an array; the simplest among equals."""
    if array.dtype == np.bool_:
        rows = array.reshape(-1, 1).astype(np.uint8)
        raw = np.packbits(rows).tobytes()
    else:
        rows = _bytes_of(array)
        raw = rows.tobytes()
    size, width = rows.shape
    best = (RAW, raw)
    if size == 0:
        return best
    if bool(np.all(rows == rows[:1])):
        return (EQUAL, rows[0].tobytes()) if width < len(raw) else best
    mask = np.any(rows != 0, axis=1)
    count = int(np.count_nonzero(mask))
    # values alone are sparse's lower bound; a boolean's values are its mask
    values = b"" if array.dtype == np.bool_ else rows[mask].tobytes()
    if count == size or len(values) >= len(raw):
        return best
    bits = mask.reshape(array.shape)
    columns = bits.reshape(-1, bits.shape[-1]).T if bits.ndim > 1 else None
    forms = [
        (BITMASK, _bits.bitmask(mask)),
        (RICE, _bits.rice(mask)),
        (RICE_COLUMNS, None if columns is None else _bits.rice(columns.ravel())),
        (DEFLATED, _bits.deflated(mask)),
        (PACKED, _bits.packed(mask)),
        (RANGED, _bits.ranged(mask, array.shape)),
    ]
    for form, index in forms:
        if index is not None and len(index) + len(values) < len(best[1]):
            best = (form, index + values)
    return best


def _decode(
    data: bytes, at: int, form: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[np.ndarray, int]:
    size = int(np.prod(shape, dtype=np.int64))
    boolean = dtype == np.bool_
    width = dtype.itemsize
    if form == RAW:
        if boolean:
            mask, at = _bits.from_bitmask(data, at, size)
            return mask.reshape(shape), at
        end = at + size * width
        return _from_bytes(data[at:end], shape, dtype), end
    if form == EQUAL:
        return _from_bytes(data[at : at + width] * size, shape, dtype), at + width
    mask, at = _index(data, at, form, size, shape)
    if boolean:
        return mask.reshape(shape), at
    rows = np.zeros((size, width), np.uint8)
    end = at + int(np.count_nonzero(mask)) * width
    rows[mask] = np.frombuffer(data[at:end], np.uint8).reshape(-1, width)
    return _from_bytes(rows.tobytes(), shape, dtype), end


def _index(
    data: bytes, at: int, form: int, size: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, int]:
    if form == RANGED:
        return _bits.from_ranged(data, at, size, shape)
    if form == RICE_COLUMNS:
        mask, at = _bits.from_rice(data, at, size)
        return mask.reshape(shape[-1], -1).T.ravel(), at
    readers = {
        BITMASK: _bits.from_bitmask,
        RICE: _bits.from_rice,
        PACKED: _bits.from_packed,
        DEFLATED: _bits.from_deflated,
    }
    return readers[form](data, at, size)


def _from_bytes(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if len(data) != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
        raise IndexError("an array ends past the file")
    return np.frombuffer(bytearray(data), dtype.newbyteorder("=")).reshape(shape)
