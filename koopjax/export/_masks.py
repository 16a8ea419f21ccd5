"""Where the non-zero entries of a matrix are, in the shortest of a few codings."""

import lzma
import zlib

import numpy as np

from koopjax.export._file import Reader, put_varint
from koopjax.export._symbols import MOST_DECISIONS, Model, code_bits, get_numbers, put_numbers

LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}]
RANGE_LIMIT = 1 << 21  # entries; the adaptive coder costs about a microsecond each
LEVELS = 12
UNITS = 64  # densities are measured in this many parts
# The level of a density: half octaves, level 0 for the lowest. Part of the format.
LEVEL = [0] + [
    min(LEVELS - 1, 2 * (q.bit_length() - 1) + (2 * q >> q.bit_length() - 1) % 2)
    for q in range(1, UNITS + 1)
]
BORROWED = 32  # bits of the row above that stand in until a row has shown its own density
TURNED = " by columns"


def put_mask(matrix: np.ndarray) -> tuple[str, bytes]:
    """The shortest coding of a mask `(rows, columns)` and its bytes; the first among equals."""
    found = []
    for name, (write, _) in CODINGS.items():
        code = write(matrix.T if name.endswith(TURNED) else matrix)
        if code is not None:
            found.append((name, code))
    return min(found, key=lambda pair: len(pair[1]))


def get_mask(coding: str, reader: Reader, rows: int, columns: int) -> np.ndarray:
    """The mask `(rows, columns)` that `put_mask` wrote."""
    read = CODINGS[coding][1]
    turned = coding.endswith(TURNED)
    return read(reader, columns, rows).T if turned else read(reader, rows, columns)


def _bitmask(mask: np.ndarray) -> bytes:
    return np.packbits(mask).tobytes()


def _from_bitmask(reader: Reader, rows: int, columns: int) -> np.ndarray:
    return _unpack(reader.take((rows * columns + 7) // 8), rows, columns)


def _unpack(data: bytes, rows: int, columns: int) -> np.ndarray:
    if len(data) != (rows * columns + 7) // 8:
        raise IndexError(f"a mask of {len(data)} bytes for {rows * columns} entries")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=rows * columns)
    return bits.astype(bool).reshape(rows, columns)


def put_places(mask: np.ndarray) -> bytes:
    """The number of non-zeros, then the gaps between them by Rice's code."""
    gaps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    return put_varint(len(gaps)) + put_numbers(gaps)


def get_places(reader: Reader, size: int) -> np.ndarray:
    """The places of the non-zeros that `put_places` wrote, all below `size`."""
    count = reader.varint()
    if count > size:
        raise IndexError(f"{count} places in an array of {size}")
    places = np.cumsum(get_numbers(reader, count, size) + 1) - 1
    if len(places) and places[-1] >= size:
        raise IndexError("a place past the array")
    return places


def _from_rice(reader: Reader, rows: int, columns: int) -> np.ndarray:
    mask = np.zeros(rows * columns, bool)
    mask[get_places(reader, rows * columns)] = True
    return mask.reshape(rows, columns)


def _deflated(mask: np.ndarray) -> bytes:
    """The bitmask through raw deflate, shorter than LZMA on small arrays; its length first."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = coder.compress(_bitmask(mask)) + coder.flush()
    return put_varint(len(body)) + body


def _from_deflated(reader: Reader, rows: int, columns: int) -> np.ndarray:
    most = max(1, (rows * columns + 7) // 8)
    return _unpack(zlib.decompressobj(-15).decompress(reader.part(), most), rows, columns)


def _packed(mask: np.ndarray) -> bytes:
    """The bitmask through LZMA, for patterns that repeat; its length first."""
    body = lzma.compress(_bitmask(mask), format=lzma.FORMAT_RAW, filters=LZMA)
    return put_varint(len(body)) + body


def _from_packed(reader: Reader, rows: int, columns: int) -> np.ndarray:
    coder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=LZMA)
    most = (rows * columns + 7) // 8
    return _unpack(coder.decompress(reader.part(), max_length=most), rows, columns)


def _ranged(matrix: np.ndarray) -> bytes | None:
    """The adaptive coder, its length first; none where it would take too long."""
    if matrix.size > RANGE_LIMIT:
        return None
    bits = matrix.astype(np.uint8).ravel().tolist()
    body = code_bits(_densities(*matrix.shape), bits)[0]
    return put_varint(len(body)) + body


def _from_ranged(reader: Reader, rows: int, columns: int) -> np.ndarray:
    part, entries = reader.part(), rows * columns
    if not 0 < entries <= min(RANGE_LIMIT, MOST_DECISIONS * (len(part) + 8)):
        raise IndexError(f"a code of {len(part)} bytes for {entries} entries")
    bits = code_bits(_densities(rows, columns), None, part)[1]
    return np.array(bits, bool).reshape(rows, columns)


def _densities(rows: int, columns: int) -> Model:
    """The chance of each entry of a mask, by rows.

    Rows and columns of a pruned weight matrix differ much in density: pixels at the border feed
    nothing, some units are dead. Each bit is coded under the densities of its row and its column so
    far and the bit above it, which reaches the entropy given those instead of the entropy of the
    overall density.
    """
    ones = [1] * (LEVELS * LEVELS * 2)
    total = [4] * (LEVELS * LEVELS * 2)
    column_counts, above, row_count = [0] * columns, [0] * columns, 0
    for i in range(rows):
        borrowed, row_count = BORROWED * row_count // columns, 0
        column_total = 4 * i + 8
        for j in range(columns):
            by_row = LEVEL[(4 * (row_count + borrowed) + 2) * UNITS // (4 * (j + BORROWED) + 8)]
            by_column = LEVEL[(4 * column_counts[j] + 2) * UNITS // column_total]
            context = (by_row * LEVELS + by_column) * 2 + above[j]
            above[j] = bit = yield (ones[context] << 16) // total[context]
            total[context] += 2
            if bit:
                ones[context] += 2
                row_count += 1
                column_counts[j] += 1


#: By name, how a mask is written and read again.
CODINGS = {
    "bitmask": (_bitmask, _from_bitmask),
    "rice": (put_places, _from_rice),
    "rice" + TURNED: (put_places, _from_rice),
    "deflate": (_deflated, _from_deflated),
    "lzma": (_packed, _from_packed),
    "arithmetic": (_ranged, _from_ranged),
    "arithmetic" + TURNED: (_ranged, _from_ranged),
}
