"""An adaptive arithmetic coder for masks of matrices.

Rows and columns of a pruned weight matrix differ much in density: pixels at the border feed
nothing, some units are dead. Each bit is coded under the densities of its row and its column so
far and the bit above it, which reaches the entropy given those instead of the entropy of the
overall density. Everything is integer arithmetic, so every machine decodes the same.
"""

import numpy as np

LEVELS = 12
UNITS = 64  # densities are measured in this many parts
# The level of a density: half octaves, level 0 for the lowest. Part of the format.
LEVEL = [0] + [
    min(LEVELS - 1, 2 * (q.bit_length() - 1) + (2 * q >> q.bit_length() - 1) % 2)
    for q in range(1, UNITS + 1)
]
BORROWED = 32  # bits of the row above that stand in until a row has shown its own density
LEAST = 16  # smallest probability of either value, in 65,536ths
TOP = 0xFFFFFFFF
MOST_DECISIONS = 22_714  # in a byte: 8 over the bits of the likeliest, -log2(1 - LEAST / 2^16)


def encode_mask(mask: np.ndarray) -> bytes:
    """The bits of a matrix by rows.

    Args:
        mask: `(rows, columns)` booleans.
    """
    return _code(mask.shape[0], mask.shape[1], mask.astype(np.uint8).tolist(), b"")[0]


def decode_mask(data: bytes, rows: int, columns: int) -> np.ndarray:
    """The matrix of bits that `encode_mask` coded.

    Args:
        data: the code.
        rows: of the matrix.
        columns: of the matrix.
    """
    return np.array(_code(rows, columns, None, data)[1], bool).reshape(rows, columns)


def _code(
    rows: int, columns: int, bits: list[list[int]] | None, data: bytes
) -> tuple[bytes, list[list[int]]]:
    """Encode `bits`, or decode `data` where there are none: one loop, so that both agree.

    A carryless binary coder with 32-bit bounds. It is one function with everything in local names
    because it runs once an entry of a matrix, in Python.
    """
    ones = [1] * (LEVELS * LEVELS * 2)
    total = [4] * (LEVELS * LEVELS * 2)
    column_counts = [0] * columns
    above = [0] * columns
    row_count, low, high = 0, 0, TOP
    out, decoded = bytearray(), []
    value, at = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), 4
    for i in range(rows):
        borrowed = BORROWED * row_count // columns
        row_count = 0
        given = bits[i] if bits is not None else above
        row = []
        column_total = 4 * i + 8
        for j in range(columns):
            by_row = LEVEL[(4 * (row_count + borrowed) + 2) * UNITS // (4 * (j + BORROWED) + 8)]
            by_column = LEVEL[(4 * column_counts[j] + 2) * UNITS // column_total]
            c = (by_row * LEVELS + by_column) * 2 + above[j]
            p = (ones[c] << 16) // total[c]
            p = LEAST if p < LEAST else 65536 - LEAST if p > 65536 - LEAST else p
            middle = low + ((high - low) * p >> 16)
            bit = int(value <= middle) if bits is None else given[j]
            total[c] += 2
            if bit:
                high = middle
                ones[c] += 2
                row_count += 1
                column_counts[j] += 1
            else:
                low = middle + 1
            above[j] = bit
            row.append(bit)
            while (low ^ high) < 0x1000000:
                if bits is None:
                    following = data[at] if at < len(data) else 0
                    value = (value << 8 & TOP) | following
                    at += 1
                else:
                    out.append(high >> 24)
                low = low << 8 & TOP
                high = (high << 8 & TOP) | 0xFF
        decoded.append(row)
    return bytes(out) + last_bytes(low, high), decoded


def last_bytes(low: int, high: int) -> bytes:
    """The shortest number within the bounds; the decoder reads zeros past the end."""
    for size in range(4):
        step = 1 << (32 - 8 * size)
        value = -(-low // step) * step
        if value <= high:
            return value.to_bytes(4, "big")[:size]
    return low.to_bytes(4, "big")
