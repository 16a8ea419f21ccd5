"""Index codings: where the non-zero entries of an array are."""

import lzma
import zlib

import numpy as np

from koopjax.export._file import get_varint, put_varint
from koopjax.export._range import decode_mask, encode_mask

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

    Count and parameter, then all quotients in unary, then all remainders: two streams instead of
    alternating parts, so that both directions are array operations.
    """
    places = np.flatnonzero(mask)
    gaps = np.diff(places, prepend=-1) - 1
    sizes = [int(np.sum(gaps >> k)) + len(gaps) * (1 + k) for k in range(32)]
    k = int(np.argmin(sizes))
    quotients = gaps >> k
    unary = np.ones(int(np.sum(quotients)) + len(gaps), np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 0
    rest = (gaps[:, None] >> np.arange(k)[None, ::-1]) & 1
    bits = np.concatenate([unary, rest.ravel().astype(np.uint8)])
    return put_varint(len(gaps)) + bytes([k]) + np.packbits(bits).tobytes()


def from_rice(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    """The mask that `rice` wrote, and the place behind it."""
    count, at = get_varint(data, at)
    k = data[at]
    at += 1
    longest = (size >> k) + count * (1 + k)  # quotients add up to at most size / 2^k
    bits = _unpack(data[at : at + (longest + 7) // 8], None)
    ends = np.flatnonzero(~bits)[:count]
    quotients = np.diff(ends, prepend=-1) - 1
    first = int(ends[-1]) + 1 if count else 0
    rest = bits[first : first + count * k].reshape(count, k).astype(np.int64)
    gaps = (quotients << k) + rest @ (1 << np.arange(k, dtype=np.int64)[::-1])
    mask = np.zeros(size, bool)
    mask[np.cumsum(gaps + 1) - 1] = True
    return mask, at + (first + count * k + 7) // 8


def packed(mask: np.ndarray) -> bytes:
    """The bitmask through LZMA, for patterns that repeat; its length first."""
    body = lzma.compress(bitmask(mask), format=lzma.FORMAT_RAW, filters=LZMA)
    return put_varint(len(body)) + body


def from_packed(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    """The mask that `packed` wrote, and the place behind it."""
    length, at = get_varint(data, at)
    body = lzma.decompress(data[at : at + length], format=lzma.FORMAT_RAW, filters=LZMA)
    return _unpack(body, size), at + length


def deflated(mask: np.ndarray) -> bytes:
    """The bitmask through raw deflate, shorter than LZMA on small arrays; its length first."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = coder.compress(bitmask(mask)) + coder.flush()
    return put_varint(len(body)) + body


def from_deflated(data: bytes, at: int, size: int) -> tuple[np.ndarray, int]:
    """The mask that `deflated` wrote, and the place behind it."""
    length, at = get_varint(data, at)
    return _unpack(zlib.decompress(data[at : at + length], -15), size), at + length


def ranged(mask: np.ndarray, shape: tuple[int, ...]) -> bytes | None:
    """The adaptive coder of `_range`, its length first; none where it would take too long."""
    if mask.size > RANGE_LIMIT:
        return None
    body = encode_mask(mask.reshape(-1, shape[-1] if shape else 1))
    return put_varint(len(body)) + body


def from_ranged(data: bytes, at: int, size: int, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """The mask that `ranged` wrote, and the place behind it."""
    length, at = get_varint(data, at)
    columns = shape[-1] if shape else 1
    mask = decode_mask(data[at : at + length], size // columns, columns)
    return mask.ravel(), at + length


def _unpack(data: bytes, size: int | None) -> np.ndarray:
    return np.unpackbits(np.frombuffer(data, np.uint8), count=size).astype(bool)
