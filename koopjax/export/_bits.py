"""Index codings: where the non-zero entries of an array are."""

import lzma
import zlib

import numpy as np

from koopjax.export._file import get_varint, put_varint
from koopjax.export._range import MOST_DECISIONS, decode_mask, encode_mask
from koopjax.export._symbols import get_numbers, put_numbers

LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}]
RANGE_LIMIT = 1 << 21  # entries; the adaptive coder costs about a microsecond each


def bitmask(mask: np.ndarray) -> bytes:
    """One bit an entry."""
    return np.packbits(mask).tobytes()


def from_bitmask(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    """The mask that `bitmask` wrote, and the place behind it."""
    end = at + (size + 7) // 8
    return _unpack(data[at:end], size), end


def rice(mask: np.ndarray) -> bytes:
    """Gaps between non-zeros by Rice's code with the best parameter.

    Their count, then the gaps as `put_numbers` codes them.
    """
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    return put_varint(len(gaps)) + put_numbers(gaps)


def from_rice(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    """The mask that `rice` wrote, and the place behind it."""
    places, at = rice_places(data, at, size)
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask, at


def rice_places(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    """The places of the non-zeros that `rice` wrote, all below `size`, and the place behind."""
    count, at = get_varint(data, at)
    if count > size:
        raise IndexError(f"{count} places in an array of {size}")
    gaps, at = get_numbers(data, at, count, size)
    places = np.cumsum(gaps + 1) - 1
    if len(places) and places[-1] >= size:
        raise IndexError("a place past the array")
    return places, at


def packed(mask: np.ndarray) -> bytes:
    """The bitmask through LZMA, for patterns that repeat; its length first."""
    body = lzma.compress(bitmask(mask), format=lzma.FORMAT_RAW, filters=LZMA)
    return put_varint(len(body)) + body


def from_packed(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    """The mask that `packed` wrote, and the place behind it."""
    part, end = _part(data, at)
    coder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=LZMA)
    return _unpack(coder.decompress(part, max_length=(size + 7) // 8), size), end


def deflated(mask: np.ndarray) -> bytes:
    """The bitmask through raw deflate, shorter than LZMA on small arrays; its length first."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = coder.compress(bitmask(mask)) + coder.flush()
    return put_varint(len(body)) + body


def from_deflated(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    """The mask that `deflated` wrote, and the place behind it."""
    part, end = _part(data, at)
    return _unpack(zlib.decompressobj(-15).decompress(part, max(1, (size + 7) // 8)), size), end


def ranged(matrix: np.ndarray) -> bytes | None:
    """The adaptive coder of `_range`, its length first; none where it would take too long."""
    if matrix.size > RANGE_LIMIT:
        return None
    body = encode_mask(matrix)
    return put_varint(len(body)) + body


def from_ranged(data: bytes, at: int, rows: int, columns: int) -> tuple[np.ndarray, int]:
    """The matrix that `ranged` wrote, and the place behind it."""
    part, end = _part(data, at)
    entries = rows * columns
    if not 0 < entries <= min(RANGE_LIMIT, MOST_DECISIONS * (len(part) + 8)):
        raise IndexError(f"a code of {len(part)} bytes for {entries} entries")
    return decode_mask(part, rows, columns), end


def narrow(values: np.ndarray) -> bytes:
    """Integers as offsets from the smallest, each in as few bits as the largest needs."""
    low = int(values.min())
    # modulo 2^64 the differences of any integers are right
    offsets = values.astype(np.uint64) - np.array(low).astype(np.uint64)
    width = int(offsets.max()).bit_length()
    bits = (offsets[:, None] >> np.arange(width, dtype=np.uint64)[None, ::-1]) & np.uint64(1)
    signed = low << 1 if low >= 0 else (-low << 1) - 1
    return put_varint(signed) + bytes([width]) + np.packbits(bits.astype(np.uint8)).tobytes()


def from_narrow(data: bytes, at: int, size: int) -> tuple[list[int], int]:
    """The integers that `narrow` wrote, and the place behind them."""
    signed, at = get_varint(data, at)
    low = -((signed + 1) >> 1) if signed & 1 else signed >> 1
    width, at = data[at], at + 1
    end = at + (size * width + 7) // 8
    if width > 64 or end > len(data):
        raise IndexError("an array ends past the file")
    bits = np.unpackbits(np.frombuffer(data[at:end], np.uint8), count=size * width)
    weights = np.uint64(1) << np.arange(width, dtype=np.uint64)[::-1]
    offsets = bits.reshape(size, width).astype(np.uint64) @ weights
    return [low + v for v in offsets.tolist()], end


def _part(data: bytes, at: int) -> tuple[bytes, int]:
    """The bytes behind their number, and the place behind them."""
    length, at = get_varint(data, at)
    if at + length > len(data):
        raise IndexError("an array ends past the file")
    return data[at : at + length], at + length


def _unpack(data: bytes, size: int) -> np.ndarray:
    if len(data) != (size + 7) // 8:
        raise IndexError(f"a mask of {len(data)} bytes for {size} entries")
    return np.unpackbits(np.frombuffer(data, np.uint8), count=size).astype(bool)
