"""Arrays as bytes, each in the smallest of a few forms, and back to the bit."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from koopjax._core import expected
from koopjax.export import _values
from koopjax.export._file import SYMBOL, Claims, Reader, UnknownName, count, put_varint, sizes
from koopjax.export._masks import CODINGS, get_mask, get_places, put_mask, put_places

# The place in this list is what the file holds: append only.
DTYPES = [
    "float32", "bfloat16", "float16", "float64", "bool", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "complex64", "complex128", "float8_e4m3fn",
    "float8_e5m2",
]  # fmt: skip
# Likewise; the form is the low half of a record's first byte.
FORMS = [
    "raw", "equal", "bitmask", "rice", "rice by columns", "lzma", "deflate", "arithmetic",
    "arithmetic by columns", "increasing", "narrow", "palette", "grid", "symbols", "same",
]  # fmt: skip
SAME = FORMS.index("same")
# Decoded symbol by symbol, or into Python's integers.
SLOW = (
    "arithmetic", "arithmetic by columns", "increasing", "narrow", "palette", "grid", "symbols",
)  # fmt: skip
HAS_DTYPE, HAS_SHAPE = 0x10, 0x20
RANK_LIMIT = 64  # NumPy's
INDEX_LIMIT = 1 << 24  # indices beyond are not coded by gaps, whose mask would fill the memory

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """One stored array: its value, the name of its form and the bytes that it took."""

    value: np.ndarray
    form: str
    size: int

    @property
    def nonzero(self) -> int:
        """Entries whose bits are not all zero; minus zero is one of them."""
        return int(np.count_nonzero(np.any(_bytes_of(self.value) != 0, axis=1)))


def put_array(array: np.ndarray, shape: Shape | None, dtype: np.dtype) -> bytes:
    """An array as a record: a byte of form, dtype and shape where they aren't known, the data.

    `shape` and `dtype` are those that the reader will expect; no shape if it can't know.
    """
    name = array.dtype.name
    if name not in DTYPES:
        raise expected(f"arrays of a dtype among {', '.join(DTYPES)}", name)
    form, body = _smallest(array)
    code, head = FORMS.index(form), b""
    if array.dtype != dtype:
        code |= HAS_DTYPE
        head += bytes([DTYPES.index(name)])
    if array.shape != shape:
        code |= HAS_SHAPE
        head += b"".join(map(put_varint, (array.ndim, *array.shape)))
    return bytes([code]) + head + body


def claimed(code: int, size: int, width: int) -> int:
    """What an array takes of a file's `Claims`: its bytes, and more where it is decoded slowly.

    Of `size` entries of `width` bytes, in the form that the low half of a record's first byte says.
    """
    return size * (width + (SYMBOL if FORMS[code & 0x0F] in SLOW else 0))


def put_same(place: int) -> bytes:
    """One array once more: the record of the array that was stored at this place in the order."""
    return bytes([SAME]) + put_varint(place)


def get_array(
    reader: Reader,
    shape: Shape | None,
    dtype: np.dtype,
    earlier: Sequence[Record] = (),
    claims: Claims | None = None,
) -> Record:
    """The array that `put_array` or `put_same` wrote.

    `earlier` are the records before this one, as one array of two names is one object; `claims` is
    what is left for the arrays of the file. An `UnknownName` for a dtype or form of a newer
    version, an `IndexError` if it ends past the data, or its size can't be believed.
    """
    claims = Claims(len(reader.data)) if claims is None else claims
    start, code = reader.at, reader.take(1)[0]
    if code == SAME:
        value = earlier[reader.varint()].value
        if shape not in (None, value.shape):
            raise IndexError(f"an array of shape {value.shape} in place of {shape}")
        claims.take(value.nbytes)
        return Record(value, "same", reader.at - start)
    if code & HAS_DTYPE:
        place = reader.take(1)[0]
        if place >= len(DTYPES):
            raise UnknownName(f"dtype {place} of an array")
        dtype = jnp.dtype(DTYPES[place])
    if code & HAS_SHAPE or shape is None:
        rank = count(reader.varint(), "dimensions of an array", RANK_LIMIT)
        shape = tuple(reader.varint() for _ in range(rank))
    shape = tuple(sizes(shape, RANK_LIMIT, "sizes of an array"))
    if code & 0x0F >= len(FORMS):
        raise UnknownName(f"form {code & 0x0F} of an array")
    form, size = FORMS[code & 0x0F], math.prod(shape)
    if size == 0 and form != "raw":
        raise IndexError("an array without entries in a form for others")
    claims.take(claimed(code, size, np.dtype(dtype).itemsize))
    value = _decode(reader, form, shape, np.dtype(dtype))
    return Record(value, form, reader.at - start)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    """The entries as rows of bytes, little-endian, so that every bit pattern is kept."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.byteorder == ">":
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    return flat.view(np.uint8).reshape(flat.size, flat.dtype.itemsize)


def _smallest(array: np.ndarray) -> tuple[str, bytes]:
    """The shortest form of an array; the simplest among equals."""
    rows = _bytes_of(array)
    raw = (np.packbits(rows) if array.dtype == np.bool_ else rows).tobytes()
    if len(rows) == 0:
        return "raw", raw
    if bool(np.all(rows == rows[:1])) and rows.shape[1] < len(raw):
        return "equal", rows[0].tobytes()
    return min((("raw", raw), *_forms(array, rows)), key=lambda pair: len(pair[1]))


def _forms(array: np.ndarray, rows: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The forms that an array of several values may have, the simplest first.

    Of indices gaps where they increase, few bits where they are small; of sparse arrays where the
    non-zeros are, then their values; symbols for the values, behind a byte that says how.
    """
    mask = np.any(rows != 0, axis=1)
    kept = mask.reshape(_as_matrix(array.shape))
    coding, places = ("raw", b"") if bool(np.all(mask)) else put_mask(kept)
    head, boolean = FORMS.index(coding), array.dtype == np.bool_
    if array.dtype.kind in "iu":
        flat = array.reshape(-1)
        yield "narrow", _values.narrow(flat)
        if flat[0] >= 0 and flat[-1] < INDEX_LIMIT and bool(np.all(flat[:-1] < flat[1:])):
            found = np.zeros(int(flat[-1]) + 1, bool)
            found[flat.astype(np.int64)] = True
            yield "increasing", put_places(found)
    if places:
        yield coding, places if boolean else places + rows[mask].tobytes()
    if boolean:
        return
    if array.dtype.kind in "iu":
        for start, chosen in ((bytes(1), np.ones_like(kept)), (bytes([head]) + places, kept)):
            code = _values.offsets(array.reshape(kept.shape)[chosen], _values.lines_of(chosen))
            if code is not None:
                yield "symbols", start + code
    width = rows.shape[1]
    if width in (2, 4, 8):
        values = rows[mask].reshape(-1).view(f"<u{width}")
        code = _values.palette(values, _values.lines_of(kept))
        if code is not None:
            yield "palette", bytes([head]) + places + code
    if array.dtype.name in ("float32", "float64"):
        for group, code in _values.grids(array.reshape(kept.shape), kept):
            yield "grid", bytes([group << 4 | head]) + places + code


def _as_matrix(shape: Shape) -> tuple[int, int]:
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def _decode(reader: Reader, form: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
    size, width, matrix = math.prod(shape), dtype.itemsize, _as_matrix(shape)
    if form == "raw" and dtype != np.bool_:
        return _from_bytes(reader.take(size * width), shape, dtype)
    if form == "equal":
        one = _from_bytes(reader.take(width), (), dtype)
        return np.full(shape, one, one.dtype)
    if form == "narrow":
        return np.array(_values.from_narrow(reader, size), dtype).reshape(shape)
    if form == "increasing":
        return get_places(reader, INDEX_LIMIT).astype(dtype).reshape(shape)
    if form in ("palette", "grid", "symbols"):
        return _from_symbols(reader, form, matrix, dtype).view(dtype).reshape(shape)
    mask = get_mask("bitmask" if form == "raw" else form, reader, *matrix)
    if dtype == np.bool_:
        return np.ascontiguousarray(mask).reshape(shape)
    rows = np.zeros((size, width), np.uint8)
    values = reader.take(int(np.count_nonzero(mask)) * width)
    rows[mask.reshape(-1)] = np.frombuffer(values, np.uint8).reshape(-1, width)
    return _from_bytes(rows.tobytes(), shape, dtype)


def _from_symbols(reader: Reader, form: str, shape: Shape, dtype: np.dtype) -> np.ndarray:
    """The matrix, or its bits, whose values are symbols."""
    head = reader.take(1)[0]
    coding, group = head & 0x0F, head >> 4
    known = coding < len(FORMS) and FORMS[coding] in ("raw", *CODINGS)
    if not known or group >= len(_values.GROUPS):
        raise UnknownName(f"coding {head} of an array")
    mask = get_mask(FORMS[coding], reader, *shape) if coding else np.ones(shape, bool)
    if form == "symbols":
        values = _values.from_offsets(reader, _values.lines_of(mask), dtype)
    elif form == "palette":
        values = _values.from_palette(reader, _values.lines_of(mask), dtype.itemsize)
    else:
        values = _values.from_grid(reader, group, mask, dtype)
    whole = np.zeros(shape, values.dtype)
    whole[mask] = values
    return whole


def _from_bytes(data: bytes, shape: Shape, dtype: np.dtype) -> np.ndarray:
    return np.frombuffer(bytearray(data), dtype.newbyteorder("=")).reshape(shape)
