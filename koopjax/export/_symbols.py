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
from collections.abc import Generator, Iterable

import numpy as np

from koopjax.export._file import Reader, put_varint

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

LEAST = 16  # smallest chance of either bit, in 65,536ths
TOP = 0xFFFFFFFF
MOST_DECISIONS = 22_714  # in a byte: 8 over the bits of the likeliest, -log2(1 - LEAST / 2^16)

#: What the bits so far say of the next: yields the chance of a one, in 65,536ths; is sent the bit.
Model = Generator[int, int, None]


def code_bits(
    model: Model, bits: Iterable[int] | None, data: bytes = b""
) -> tuple[bytes, list[int]]:
    """Encode `bits`, or decode `data` where there are none: one loop, so that both agree.

    A carryless binary coder with 32-bit bounds; the code, and the bits.
    """
    given = None if bits is None else iter(bits)
    low, high = 0, TOP
    out, coded = bytearray(), []
    value, at = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), 4
    chance = next(model, None)
    while chance is not None:
        chance = LEAST if chance < LEAST else 65536 - LEAST if chance > 65536 - LEAST else chance
        middle = low + ((high - low) * chance >> 16)
        bit = int(value <= middle) if given is None else next(given)
        if bit:
            high = middle
        else:
            low = middle + 1
        coded.append(bit)
        while (low ^ high) < 0x1000000:
            if given is None:
                value = (value << 8 & TOP) | (data[at] if at < len(data) else 0)
                at += 1
            else:
                out.append(high >> 24)
            low = low << 8 & TOP
            high = (high << 8 & TOP) | 0xFF
        try:
            chance = model.send(bit)
        except StopIteration:
            break
    return bytes(out) + _last_bytes(low, high), coded


def _last_bytes(low: int, high: int) -> bytes:
    """The shortest number within the bounds; the decoder reads zeros past the end."""
    for size in range(4):
        step = 1 << (32 - 8 * size)
        value = -(-low // step) * step
        if value <= high:
            return value.to_bytes(4, "big")[:size]
    return low.to_bytes(4, "big")


def put_symbols(symbols: np.ndarray, size: int, lines: Lines) -> bytes | None:
    """Symbols `0 <= s < size` in the shorter coding; none where there are too many for either.

    A varint of size and coding, then the code; the number of symbols is not in it.
    """
    if size > ALPHABET_LIMIT or symbols.size > COUNTED_LIMIT:
        return None
    depth = (size - 1).bit_length()
    codes = []
    if symbols.size * depth <= ADAPTIVE_LIMIT:
        coding, before = _before(symbols, depth, lines)
        bits = (symbols[:, None] >> np.arange(depth)[None, ::-1]) & 1
        body = code_bits(_tree(symbols.size, size, before), bits.ravel().tolist())[0]
        codes.append(put_varint(size << 2 | coding) + put_varint(len(body)) + body)
    if depth and symbols.size:
        codes.append(put_varint(size << 2 | COUNTED) + _counted(symbols, size))
    return min(codes, key=len)


def get_symbols(reader: Reader, lines: Lines) -> tuple[np.ndarray, int]:
    """The symbols that `put_symbols` wrote, one for each of `lines`, and the alphabet's size."""
    head, n = reader.varint(), len(lines[0])
    size, coding = head >> 2, head & 3
    if not 1 <= size <= ALPHABET_LIMIT:
        raise IndexError(f"an alphabet of {size} symbols")
    if coding == COUNTED:
        return _from_counted(reader, n, size), size
    part, depth = reader.part(), (size - 1).bit_length()
    if n * depth > min(ADAPTIVE_LIMIT, MOST_DECISIONS * (len(part) + 8)):
        raise IndexError(f"a code of {len(part)} bytes for {n} symbols")
    before = None if coding == ADAPTIVE else _last_of_line(lines[coding - BY_ROW])
    bits = code_bits(_tree(n, size, before), None, part)[1]
    return np.array(bits, np.int64).reshape(n, depth) @ (1 << np.arange(depth)[::-1]), size


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


def get_numbers(reader: Reader, count: int, total: int) -> np.ndarray:
    """The integers that `put_numbers` wrote, whose sum is at most `total`."""
    k = reader.take(1)[0]
    left = len(reader.data) - reader.at
    if k > 31 or count > 8 * left:
        raise IndexError(f"{count} numbers in {left} bytes")
    longest = (total >> k) + count  # quotients add up to at most total / 2^k
    ends = _zeros(reader.data, reader.at, count, (longest + 7) // 8)
    quotients = np.diff(ends, prepend=-1) - 1
    first = int(ends[-1]) + 1 if count else 0
    bits = np.unpackbits(np.frombuffer(reader.take((first + count * k + 7) // 8), np.uint8))
    rest = bits[first : first + count * k].reshape(count, k).astype(np.int64)
    return (quotients << k) + rest @ (1 << np.arange(k, dtype=np.int64)[::-1])


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


class _Fresh(dict[int, int]):
    """Counts of ones at the nodes of the tree, made as they are met.

    As if one symbol were spread evenly; behind the tree are the three roots of `_tree`.
    """

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


def _last_of_line(line: np.ndarray) -> np.ndarray:
    """For each symbol the place of the one before it in its row or column, or -1."""
    order = np.argsort(line, kind="stable")
    before = np.full(len(line), -1)
    same = line[order[1:]] == line[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


def _before(symbols: np.ndarray, depth: int, lines: Lines) -> tuple[int, np.ndarray | None]:
    """Coding and places of the symbols whose first bit tells most about that of each."""
    if not depth:
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


def _tree(n: int, size: int, before: np.ndarray | None) -> Model:
    """The bits of `n` symbols from the highest, each under the counts so far of its node.

    With `before`, the first bit has three nodes: by the first bit of the symbol at that place, or
    none.
    """
    depth = (size - 1).bit_length()
    if not depth:
        return
    ones, total = _Fresh(size, depth), collections.defaultdict(lambda: SEEN)
    places = [-1] * n if before is None else before.tolist()
    firsts: list[int] = []
    for place in places:
        node, counted = 1, 1
        if before is not None:
            counted = (1 << depth) + (2 if place < 0 else firsts[place])
        for _ in range(depth):
            seen, all_seen = ones[counted], total[counted]
            bit = yield (seen << 16) // all_seen
            total[counted] = all_seen + SEEN
            ones[counted] = seen + SEEN * bit
            node = counted = node << 1 | bit
        firsts.append(node >> (depth - 1) & 1)


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


def _from_counted(reader: Reader, n: int, size: int) -> np.ndarray:
    counts = get_numbers(reader, size, n)
    if int(counts.sum()) != n or n == 0:
        raise IndexError("counts of another number of symbols")
    scaled = _frequencies(counts)
    frequency, starts = scaled.tolist(), (np.cumsum(scaled) - scaled).tolist()
    # few symbols are sought where they lie, without a table of all
    few = n < FEW
    symbol_at = [] if few else np.repeat(np.arange(size), scaled).tolist()
    x, data, at = int.from_bytes(reader.take(STATE_BYTES), "big"), reader.data, reader.at
    out = []
    for _ in range(n):
        slot = x & 0xFFFF
        s = bisect.bisect_right(starts, slot) - 1 if few else symbol_at[slot]
        out.append(s)
        x = frequency[s] * (x >> PRECISION) + slot - starts[s]
        if x < LOWEST:
            x = x << 16 | data[at] << 8 | data[at + 1]
            at += 2
    reader.at = at
    return np.array(out, np.int64)
