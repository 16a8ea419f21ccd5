"""An adaptive arithmetic coder for masks of matrices.

Rows and columns of a pruned weight matrix differ much in density: pixels at the border feed
nothing, some units are dead. Each bit is coded under the densities of its row and its column so
far and the bit above it, which reaches the entropy given those instead of the entropy of the
overall density. Everything is integer arithmetic, so every machine decodes the same.
"""

import numpy as np

LEVELS = 12
TOP = 0xFFFFFFFF


def encode_mask(mask: np.ndarray) -> bytes:
    """The bits of a matrix by rows."""
    coder = _Encoder()
    model = _Model(mask.shape[1])
    for row in mask.astype(np.uint8).tolist():
        model.start_row()
        for j, bit in enumerate(row):
            coder.put(bit, model.predict(j))
            model.update(j, bit)
    return coder.finish()


def decode_mask(data: bytes, rows: int, columns: int) -> np.ndarray:
    """The matrix of bits that `encode_mask` coded."""
    coder = _Decoder(data)
    model = _Model(columns)
    out = []
    for _ in range(rows):
        model.start_row()
        row = []
        for j in range(columns):
            bit = coder.get(model.predict(j))
            model.update(j, bit)
            row.append(bit)
        out.append(row)
    return np.array(out, bool).reshape(rows, columns)


class _Model:
    """Probability that the next bit is set, from counts in contexts of quantised densities."""

    def __init__(self, columns: int):
        self.columns = columns
        self.column_counts = [0] * columns
        self.above = [0] * columns
        self.seen_rows = -1
        self.row_count = 0
        self.last_row_count = 0
        self.ones = [1] * (LEVELS * LEVELS * 2)
        self.total = [4] * (LEVELS * LEVELS * 2)
        self.context = 0

    def start_row(self) -> None:
        self.seen_rows += 1
        self.last_row_count = self.row_count
        self.row_count = 0

    def predict(self, j: int) -> int:
        """Probability of a set bit in 65,536ths, at least 1 and at most 65,535."""
        # the previous row stands in, with the weight of sixteen bits, until this one has shown
        prior = 16 * self.last_row_count // self.columns if self.columns else 0
        row = _level(self.row_count + prior, j + 16)
        column = _level(self.column_counts[j], self.seen_rows)
        c = self.context = (row * LEVELS + column) * 2 + self.above[j]
        p = (self.ones[c] << 16) // self.total[c]
        return min(max(p, 24), 65512)

    def update(self, j: int, bit: int) -> None:
        c = self.context
        self.total[c] += 2
        if bit:
            self.ones[c] += 2
            self.row_count += 1
            self.column_counts[j] += 1
        self.above[j] = bit
        if self.total[c] > 1 << 20:
            self.total[c] >>= 1
            self.ones[c] = max(1, self.ones[c] >> 1)


def _level(count: int, total: int) -> int:
    """A density on a scale of half octaves, 0 for the lowest; small samples near the middle."""
    q = (count * 4 + 2) * 64 // (total * 4 + 8)  # 64ths of a set bit, 16 with nothing seen
    if q < 1:
        return 0
    octave = q.bit_length() - 1
    half = (q >> (octave - 1)) & 1 if octave else 0
    return min(LEVELS - 1, 2 * octave + half)


class _Encoder:
    """Carryless binary arithmetic coder with 32-bit bounds."""

    def __init__(self) -> None:
        self.low, self.high = 0, TOP
        self.out = bytearray()

    def put(self, bit: int, p: int) -> None:
        middle = self.low + ((self.high - self.low) * p >> 16)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while (self.low ^ self.high) < 0x1000000:
            self.out.append(self.high >> 24)
            self.low = self.low << 8 & TOP
            self.high = (self.high << 8 & TOP) | 0xFF

    def finish(self) -> bytes:
        # the decoder reads zeros past the end, so the shortest number within the bounds will do
        for size in range(5):
            step = 1 << (32 - 8 * size) if size else 1 << 32
            value = -(-self.low // step) * step
            if value <= self.high:
                return bytes(self.out) + value.to_bytes(4, "big")[:size]
        raise AssertionError("unreachable: four bytes name every number within the bounds")


class _Decoder:
    """The reverse of `_Encoder`."""

    def __init__(self, data: bytes):
        self.low, self.high = 0, TOP
        self.data = data
        self.at = 4
        self.value = int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def get(self, p: int) -> int:
        middle = self.low + ((self.high - self.low) * p >> 16)
        bit = int(self.value <= middle)
        if bit:
            self.high = middle
        else:
            self.low = middle + 1
        while (self.low ^ self.high) < 0x1000000:
            self.low = self.low << 8 & TOP
            self.high = (self.high << 8 & TOP) | 0xFF
            following = self.data[self.at] if self.at < len(self.data) else 0
            self.value = (self.value << 8 & TOP) | following
            self.at += 1
        return bit
