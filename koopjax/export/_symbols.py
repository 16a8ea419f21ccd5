"""Entropy coding of small integers: places in a codebook, quantised values, codes.

Two coders of the same order-0 model, the shorter of which is taken. The adaptive one learns the
counts while it goes, as a binary tree of bits, and needs no table: for the few thousand symbols of
a small model. Its first decision (of numbers around zero: the sign) may know that of the symbol
before in the same row or column, as neighbouring inputs of a unit often have weights of one sign.
The other puts the counts first and codes by them (rANS), at a quarter of a microsecond a symbol
whatever the alphabet. Both are integer arithmetic alone, so every machine decodes the same.
"""

import bisect
import collections
from typing import Any

import numpy as np

from koopjax.export._file import get_varint, put_varint
from koopjax.export._range import LEAST, MOST_DECISIONS, TOP, last_bytes

Lines = tuple[np.ndarray, np.ndarray]  # the row and the column of each symbol

ADAPTIVE, COUNTED, BY_ROW, BY_COLUMN = range(4)
ADAPTIVE_LIMIT = 1 << 17  # binary decisions; the adaptive coder costs about half a microsecond each
ALPHABET_LIMIT = 1 << 16
COUNTED_LIMIT = 1 << 24  # symbols

SEEN = 32  # what one decision adds to its count; a fresh node holds this much in all
PRECISION = 16  # bits of the frequencies of the counted coder
LOWEST = 1 << 24  # its state is kept in LOWEST <= x < LOWEST << 16
STATE_BYTES = 5
FEW = 4096  # symbols, below which a table of 2^PRECISION costs more than it saves


def put_symbols(symbols: np.ndarray, size: int, lines: Lines | None = None) -> bytes | None:
    """Symbols in the shorter coding; none where there are too many for either.

    Args:
        symbols: `(n,)` integers, `0 <= s < size`.
        size: of the alphabet, at least 1.
        lines: `(n,)` and `(n,)`, the row and the column of each in a matrix, if it has any.

    Returns:
        A varint of size and coding, then the code; its number of symbols is not in it.
    """
    if size > ALPHABET_LIMIT or symbols.size > COUNTED_LIMIT:
        return None
    depth = (size - 1).bit_length()
    codes = []
    if symbols.size * depth <= ADAPTIVE_LIMIT:
        coding, before = _before(symbols, depth, lines)
        body = _tree(symbols.tolist(), symbols.size, size, b"", before)[0]
        codes.append(put_varint(size << 2 | coding) + put_varint(len(body)) + body)
    if depth and symbols.size:
        codes.append(put_varint(size << 2 | COUNTED) + _counted(symbols, size))
    return min(codes, key=len)


def get_symbols(
    data: bytes, at: int, n: int, lines: Lines | None = None
) -> tuple[np.ndarray, int, int]:
    """The `n` symbols that `put_symbols` wrote at a place, their alphabet, the place behind."""
    head, at = get_varint(data, at)
    size, coding = head >> 2, head & 3
    if not 1 <= size <= ALPHABET_LIMIT:
        raise IndexError(f"an alphabet of {size} symbols")
    if coding == COUNTED:
        symbols, at = _from_counted(data, at, n, size)
    else:
        if coding != ADAPTIVE and lines is None:
            raise IndexError("symbols of rows and columns without these")
        before = None
        if lines is not None and coding != ADAPTIVE:
            before = _last_of_line(lines[coding - BY_ROW])
        length, at = get_varint(data, at)
        decisions = n * (size - 1).bit_length()
        if at + length > len(data) or decisions > min(
            ADAPTIVE_LIMIT, MOST_DECISIONS * (length + 8)
        ):
            raise IndexError(f"a code of {length} bytes for {n} symbols")
        symbols = np.zeros(n, np.int64)
        if decisions:
            symbols[:] = _tree(None, n, size, data[at : at + length], before)[1]
        at += length
    return symbols, size, at


def put_numbers(numbers: np.ndarray) -> bytes:
    """Unsigned integers by Rice's code with the best parameter; their number is not in it.

    Parameter, then all quotients in unary, then all remainders: two streams instead of alternating
    parts, so that both directions are array operations.
    """
    sizes = [int(np.sum(numbers >> k)) + len(numbers) * (1 + k) for k in range(32)]
    k = int(np.argmin(sizes))
    quotients = numbers >> k
    unary = np.ones(int(np.sum(quotients)) + len(numbers), np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 0
    rest = (numbers[:, None] >> np.arange(k)[None, ::-1]) & 1
    bits = np.concatenate([unary, rest.ravel().astype(np.uint8)])
    return bytes([k]) + np.packbits(bits).tobytes()


def get_numbers(data: bytes, at: int, count: int, total: int) -> tuple[np.ndarray, int]:
    """The integers that `put_numbers` wrote, whose sum is at most `total`, and the place behind."""
    k = data[at]
    at += 1
    if k > 31 or count > 8 * (len(data) - at):
        raise IndexError(f"{count} numbers in {len(data) - at} bytes")
    longest = (total >> k) + count  # quotients add up to at most total / 2^k
    ends = _zeros(data, at, count, (longest + 7) // 8)
    quotients = np.diff(ends, prepend=-1) - 1
    first = int(ends[-1]) + 1 if count else 0
    end = at + (first + count * k + 7) // 8
    if end > len(data):
        raise IndexError("numbers end past the file")
    bits = np.unpackbits(np.frombuffer(data[at:end], np.uint8))
    rest = bits[first : first + count * k].reshape(count, k).astype(np.int64)
    numbers = (quotients << k) + rest @ (1 << np.arange(k, dtype=np.int64)[::-1])
    return numbers, end


def _zeros(data: bytes, at: int, count: int, most: int) -> np.ndarray:
    """The places of the first bits that are 0, within so many bytes.

    Looks little further than they are, as a file may hold many such codes.
    """
    length = 64 + count // 4
    while True:
        part = np.frombuffer(data[at : at + min(length, most)], np.uint8)
        ends = np.flatnonzero(np.unpackbits(part) == 0)[:count]
        if len(ends) == count:
            return ends
        if length >= most or len(part) < length:
            raise IndexError("numbers end past the file")
        length *= 4


class _Sparse(dict[int, int]):
    """The counts of `_fresh` at the nodes that are met alone, for few symbols of many."""

    def __init__(self, size: int, depth: int):
        super().__init__()
        self.size, self.depth = size, depth

    def __missing__(self, node: int) -> int:
        node = node if node < 1 << self.depth else 1  # the roots behind the tree
        level = node.bit_length() - 1
        half = 1 << (self.depth - level - 1)
        start = (node - (1 << level)) * 2 * half
        left, right = (min(max(self.size - start - part, 0), half) for part in (0, half))
        return SEEN * right // max(left + right, 1)


def _fresh(size: int, depth: int) -> tuple[list[int], list[int]]:
    """Counts of ones and of all at the nodes of the tree, as if one symbol were spread evenly.

    Behind them the three roots of `_tree`.
    """
    ones = [0]
    for level in range(depth):
        half = 1 << (depth - level - 1)
        start = np.arange(1 << level) * 2 * half
        left, right = (np.clip(size - start - part, 0, half) for part in (0, half))
        ones += (SEEN * right // np.maximum(left + right, 1)).tolist()
    ones += 3 * ones[1:2]
    return ones, [SEEN] * len(ones)


def _last_of_line(line: np.ndarray) -> np.ndarray:
    """For each symbol the place of the one before it in its row or column, or -1."""
    order = np.argsort(line, kind="stable")
    before = np.full(len(line), -1)
    same = line[order[1:]] == line[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


def _before(symbols: np.ndarray, depth: int, lines: Lines | None) -> tuple[int, np.ndarray | None]:
    """Coding and places of the symbols whose first bit tells most about that of each."""
    if not depth or lines is None:
        return ADAPTIVE, None
    first = symbols >> (depth - 1)
    choices: list[tuple[int, np.ndarray | None]] = [(ADAPTIVE, None)]
    choices += [(BY_ROW + k, _last_of_line(line)) for k, line in enumerate(lines)]
    costs = []
    for _, before in choices:
        known = np.zeros_like(first) if before is None else np.where(before < 0, 2, first[before])
        counts = np.bincount(2 * known + first, minlength=6).reshape(3, 2)
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        bits = -np.sum(counts * np.log2(np.where(share > 0, share, 1)))
        # what it takes to learn each share
        costs.append(bits + np.sum(np.log2(1 + counts.sum(axis=1))) / 2)
    return choices[int(np.argmin(costs))]


def _tree(
    symbols: list[int] | None, n: int, size: int, data: bytes, before: np.ndarray | None
) -> tuple[bytes, list[int]]:
    """Encode `symbols`, or decode `data` where there are none: one loop, so that both agree.

    The bits of a symbol from the highest, each under the counts so far of its node, by the
    carryless binary coder of `_range`. With `before`, the first bit has three nodes: by the first
    bit of the symbol at that place, or none.
    """
    depth = (size - 1).bit_length()
    ones: Any
    total: Any
    if size > 16 * n:
        ones, total = _Sparse(size, depth), collections.defaultdict(lambda: SEEN)
    else:
        ones, total = _fresh(size, depth)
    roots, top = 1 << depth, max(0, depth - 1)
    places = None if before is None else before.tolist()
    low, high = 0, TOP
    out, decoded = bytearray(), []
    value, at = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), 4
    shifts = range(depth - 1, -1, -1)
    for i in range(n):
        given = 0 if symbols is None else symbols[i]
        node = at_node = 1
        if places is not None:
            k = places[i]
            at_node = roots + (2 if k < 0 else decoded[k] >> top)
        for shift in shifts:
            p = (ones[at_node] << 16) // total[at_node]
            p = LEAST if p < LEAST else 65536 - LEAST if p > 65536 - LEAST else p
            middle = low + ((high - low) * p >> 16)
            bit = int(value <= middle) if symbols is None else given >> shift & 1
            total[at_node] += SEEN
            if bit:
                high = middle
                ones[at_node] += SEEN
            else:
                low = middle + 1
            node = at_node = node << 1 | bit
            while (low ^ high) < 0x1000000:
                if symbols is None:
                    following = data[at] if at < len(data) else 0
                    value = (value << 8 & TOP) | following
                    at += 1
                else:
                    out.append(high >> 24)
                low = low << 8 & TOP
                high = (high << 8 & TOP) | 0xFF
        decoded.append(node - (1 << depth))
    return bytes(out) + last_bytes(low, high), decoded


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Counts scaled to a sum of `2^PRECISION`, none that occurs to zero. Part of the format."""
    whole = 1 << PRECISION
    scaled = counts.astype(np.int64) * whole // max(1, int(counts.sum()))
    scaled = np.where(counts > 0, np.maximum(scaled, 1), 0)
    scaled[int(np.argmax(scaled))] += max(0, whole - int(scaled.sum()))
    while (excess := int(scaled.sum()) - whole) > 0:
        most = int(np.argmax(scaled))
        scaled[most] -= min(excess, int(scaled[most]) // 2)
    return scaled


def _counted(symbols: np.ndarray, size: int) -> bytes:
    counts = np.bincount(symbols, minlength=size)
    scaled = _frequencies(counts)
    starts = (np.cumsum(scaled) - scaled).tolist()
    frequency = scaled.tolist()
    x = LOWEST
    words: list[int] = []
    for s in reversed(symbols.tolist()):  # the decoder runs forwards
        f = frequency[s]
        if x >= f << 24:  # LOWEST << 16 >> PRECISION times f
            words.append(x & 0xFFFF)
            x >>= 16
        quotient, rest = divmod(x, f)
        x = (quotient << PRECISION) + rest + starts[s]
    stream = np.array(words[::-1], ">u2").tobytes()
    return put_numbers(counts) + x.to_bytes(STATE_BYTES, "big") + stream


def _from_counted(data: bytes, at: int, n: int, size: int) -> tuple[np.ndarray, int]:
    counts, at = get_numbers(data, at, size, n)
    if int(counts.sum()) != n or n == 0:
        raise IndexError("counts of another number of symbols")
    scaled = _frequencies(counts)
    frequency, starts = scaled.tolist(), (np.cumsum(scaled) - scaled).tolist()
    # few symbols are sought where they lie, without a table of all
    few = n < FEW
    symbol_at = [] if few else np.repeat(np.arange(size), scaled).tolist()
    x = int.from_bytes(data[at : at + STATE_BYTES], "big")
    at += STATE_BYTES
    out = []
    for _ in range(n):
        slot = x & 0xFFFF
        s = bisect.bisect_right(starts, slot) - 1 if few else symbol_at[slot]
        out.append(s)
        x = frequency[s] * (x >> PRECISION) + slot - starts[s]
        if x < LOWEST:
            x = x << 16 | data[at] << 8 | data[at + 1]
            at += 2
    return np.array(out, np.int64), at
