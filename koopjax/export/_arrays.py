"""Arrays as bytes, each in the smallest of a few forms, and back to the bit."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np

from koopjax._core import expected
from koopjax.export import _bits, _values
from koopjax.export._claims import SYMBOL, Claims, sizes
from koopjax.export._file import UnknownName, get_varint, put_varint

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
# Likewise; the form is the low half of a record's first byte.
FORMS = [
    "raw",
    "equal",
    "bitmask",
    "rice",
    "rice by columns",
    "lzma",
    "deflate",
    "arithmetic",
    "arithmetic by columns",
    "increasing",
    "narrow",
    "palette",
    "grid",
    "symbols",
    "same",
]
RAW, EQUAL, BITMASK, RICE, RICE_COLUMNS, PACKED, DEFLATED = range(7)
RANGED, RANGED_COLUMNS, INCREASING, NARROW, PALETTE, GRID, SYMBOLS, SAME = range(7, 15)
# Decoded symbol by symbol, or into Python's integers.
SLOW = (RANGED, RANGED_COLUMNS, INCREASING, NARROW, PALETTE, GRID, SYMBOLS)
INDICES = (BITMASK, RICE, RICE_COLUMNS, PACKED, DEFLATED, RANGED, RANGED_COLUMNS)
HAS_DTYPE, HAS_SHAPE = 0x10, 0x20
RANK_LIMIT = 64  # NumPy's
INDEX_LIMIT = 1 << 24  # indices beyond are not coded by gaps, whose mask would fill the memory


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


def claimed(form: int, size: int, width: int) -> int:
    """What an array takes of a file's `Claims`: its bytes, and more where it is decoded slowly.

    Args:
        form: in the low half of a record's first byte.
        size: entries.
        width: bytes of an entry.
    """
    return size * (width + (SYMBOL if form & 0x0F in SLOW else 0))


def put_same(place: int) -> bytes:
    """One array once more: the record of the array that was stored at this place in the order."""
    return bytes([SAME]) + put_varint(place)


def get_array(
    data: bytes,
    at: int,
    shape: tuple[int, ...] | None,
    dtype: np.dtype[Any],
    earlier: Sequence[Record] = (),
    claims: Claims | None = None,
) -> tuple[Record, int]:
    """The array that `put_array` or `put_same` wrote at a place, and the place behind it.

    Args:
        data, at: the bytes and the place.
        shape, dtype: that the reader expects, as in `put_array`.
        earlier: the records before this one; one array of two names is one object.
        claims: what is left for the arrays of the file.

    Raises:
        UnknownName: a dtype or form of a newer version.
        IndexError: it ends past the data, or its size can't be believed.
    """
    claims = Claims(len(data)) if claims is None else claims
    start = at
    code = data[at]
    at += 1
    if code == SAME:
        place, at = get_varint(data, at)
        value = earlier[place].value
        if shape not in (None, value.shape):
            raise IndexError(f"an array of shape {value.shape} in place of {shape}")
        claims.take(value.nbytes)
        return Record(value, FORMS[SAME], at - start), at
    if code & HAS_DTYPE:
        if data[at] >= len(DTYPES):
            raise UnknownName(f"dtype {data[at]} of an array")
        dtype = jnp.dtype(DTYPES[data[at]])
        at += 1
    if code & HAS_SHAPE or shape is None:
        rank, at = get_varint(data, at)
        if rank > RANK_LIMIT:
            raise IndexError(f"an array of {rank} dimensions")
        found = []
        for _ in range(rank):
            n, at = get_varint(data, at)
            found.append(n)
        shape = tuple(found)
    shape = tuple(sizes(shape, RANK_LIMIT, "sizes of an array"))
    form = code & 0x0F
    if form >= len(FORMS):
        raise UnknownName(f"form {form} of an array")
    size = math.prod(shape)
    if size == 0 and form != RAW:
        raise IndexError("an array without entries in a form for others")
    claims.take(claimed(form, size, np.dtype(dtype).itemsize))
    value, at = _decode(data, at, form, shape, np.dtype(dtype))
    if at > len(data):
        raise IndexError("an array ends past the file")
    return Record(value, FORMS[form], at - start), at


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The entries as rows of bytes, little-endian, so that every bit pattern is kept."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return flat.view(np.uint8).reshape(flat.size, flat.dtype.itemsize)


def _smallest(array: np.ndarray) -> tuple[int, bytes]:
    """The shortest form of an array; the simplest among equals."""
    boolean = array.dtype == np.bool_
    rows = array.reshape(-1, 1).astype(np.uint8) if boolean else _bytes_of(array)
    raw = np.packbits(rows).tobytes() if boolean else rows.tobytes()
    if len(rows) == 0:
        return RAW, raw
    if bool(np.all(rows == rows[:1])) and rows.shape[1] < len(raw):
        return EQUAL, rows[0].tobytes()
    best = RAW, raw
    mask = np.any(rows != 0, axis=1)
    index = None if bool(np.all(mask)) else _shortest_index(mask, array.shape)
    for form, body in (
        *_integer_forms(array),
        *_sparse_forms(array, rows, mask, index),
        *_symbol_forms(array, rows, mask, index),
    ):
        if len(body) < len(best[1]):
            best = form, body
    return best


def _shortest_index(mask: np.ndarray, shape: tuple[int, ...]) -> tuple[int, bytes]:
    """Where the non-zeros are, in the shortest coding; the first of the list among equals."""
    matrix = mask.reshape(_as_matrix(shape))
    forms = {
        BITMASK: _bits.bitmask(mask),
        RICE: _bits.rice(mask),
        RICE_COLUMNS: _bits.rice(matrix.T.ravel()),
        DEFLATED: _bits.deflated(mask),
        PACKED: _bits.packed(mask),
        RANGED: _bits.ranged(matrix),
        RANGED_COLUMNS: _bits.ranged(matrix.T),
    }
    found = [(form, index) for form, index in forms.items() if index is not None]
    return min(found, key=lambda pair: len(pair[1]))


def _sparse_forms(
    array: np.ndarray, rows: np.ndarray, mask: np.ndarray, index: tuple[int, bytes] | None
) -> Iterator[tuple[int, bytes]]:
    """Where the non-zeros are, then their values; of a boolean, where it is true."""
    if index is not None:
        form, places = index
        yield form, places if array.dtype == np.bool_ else places + rows[mask].tobytes()


def _symbol_forms(
    array: np.ndarray, rows: np.ndarray, mask: np.ndarray, index: tuple[int, bytes] | None
) -> Iterator[tuple[int, bytes]]:
    """Where the non-zeros are, then symbols for their values; the head byte says how."""
    if array.dtype == np.bool_:
        return
    width, shape = rows.shape[1], _as_matrix(array.shape)
    coding, places = (RAW, b"") if index is None else index
    every = np.ones(shape, bool)
    kept = mask.reshape(shape)
    if array.dtype.kind in "iu" and array.dtype.name in DTYPES:
        for head, where, chosen in ((RAW, b"", every), (coding, places, kept)):
            code = _values.offsets(array.reshape(shape)[chosen], _values.lines_of(chosen))
            if code is not None:
                yield SYMBOLS, bytes([head]) + where + code
    if width in (2, 4, 8):
        values = rows[mask].reshape(-1).view(f"<u{width}")
        code = _values.palette(values, _values.lines_of(kept))
        if code is not None:
            yield PALETTE, bytes([coding]) + places + code
    if array.dtype.name in ("float32", "float64"):
        for group, code in _values.grids(array.reshape(shape), kept):
            yield GRID, bytes([group << 4 | coding]) + places + code


def _integer_forms(array: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """What indices take: gaps where they increase, few bits where they are small."""
    if array.dtype.kind not in "iu" or array.dtype.name not in DTYPES:
        return
    flat = array.reshape(-1).tolist()
    yield NARROW, _bits.narrow(array.reshape(-1))
    if flat[0] >= 0 and flat[-1] < INDEX_LIMIT and all(a < b for a, b in pairwise(flat)):
        mask = np.zeros(flat[-1] + 1, bool)
        mask[flat] = True
        yield INCREASING, _bits.rice(mask)


def _as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    columns = shape[-1] if shape else 1
    return (math.prod(shape[:-1]), columns)


def _decode(
    data: bytes, at: int, form: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[np.ndarray, int]:
    size, width = math.prod(shape), dtype.itemsize
    if form == RAW and dtype != np.bool_:
        end = at + size * width
        return _from_bytes(data[at:end], shape, dtype), end
    if form == EQUAL:
        one = _from_bytes(data[at : at + width], (), dtype)
        return np.full(shape, one, one.dtype), at + width
    if form == NARROW:
        values, at = _bits.from_narrow(data, at, size)
        return np.array(values, dtype).reshape(shape), at
    if form == INCREASING:
        places, at = _bits.rice_places(data, at, INDEX_LIMIT)
        return places.astype(dtype).reshape(shape), at
    if form in (PALETTE, GRID, SYMBOLS):
        return _from_symbols(data, at, form, shape, dtype)
    mask, at = _index(data, at, form, shape)
    if dtype == np.bool_:
        return mask.reshape(shape), at
    rows = np.zeros((size, width), np.uint8)
    end = at + int(np.count_nonzero(mask)) * width
    rows[mask] = np.frombuffer(data[at:end], np.uint8).reshape(-1, width)
    return _from_bytes(rows.tobytes(), shape, dtype), end


def _from_symbols(
    data: bytes, at: int, form: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[np.ndarray, int]:
    """What `_symbol_forms` wrote, and the place behind it."""
    size, head = math.prod(shape), data[at]
    coding, group = head & 0x0F, head >> 4
    if coding not in (RAW, *INDICES) or group >= len(_values.GROUPS):
        raise UnknownName(f"coding {head} of an array")
    at += 1
    mask = np.ones(size, bool)
    if coding != RAW:
        mask, at = _index(data, at, coding, shape)
    kept = mask.reshape(_as_matrix(shape))
    if form == SYMBOLS:
        values, at = _values.from_offsets(data, at, _values.lines_of(kept), dtype)
    elif form == PALETTE:
        values, at = _values.from_palette(data, at, _values.lines_of(kept), dtype.itemsize)
    else:
        values, at = _values.from_grid(data, at, group, kept, dtype)
    whole = np.zeros(size, values.dtype)
    whole[mask] = values
    return whole.view(dtype).reshape(shape), at


def _index(data: bytes, at: int, form: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """The mask of a sparse array, flat, by rows."""
    rows, columns = _as_matrix(shape)
    size = rows * columns
    if form == RANGED:
        mask, at = _bits.from_ranged(data, at, rows, columns)
    elif form == RANGED_COLUMNS:
        mask, at = _bits.from_ranged(data, at, columns, rows)
        mask = mask.T
    elif form == RICE_COLUMNS:
        mask, at = _bits.from_rice(data, at, size)
        mask = mask.reshape(columns, rows).T
    else:
        readers = {
            RAW: _bits.from_bitmask,  # of booleans
            BITMASK: _bits.from_bitmask,
            RICE: _bits.from_rice,
            PACKED: _bits.from_packed,
            DEFLATED: _bits.from_deflated,
        }
        mask, at = readers[form](data, at, size)
    return mask.reshape(-1), at


def _from_bytes(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise IndexError("an array ends past the file")
    return np.frombuffer(bytearray(data), dtype.newbyteorder("=")).reshape(shape)
