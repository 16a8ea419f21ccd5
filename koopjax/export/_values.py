"""Values that are few or on a grid, as symbols: codebooks, quantised numbers, codes."""

from collections.abc import Iterator

import numpy as np

from koopjax.export._file import Reader, put_signed
from koopjax.export._symbols import ALPHABET_LIMIT, Lines, get_symbols, put_symbols

PALETTE_LIMIT = 4096  # distinct values of a palette
DIVISORS = 8  # a scale's smallest value is at most this many steps from zero
GRID_LIMIT = 1 << 15  # steps from zero, at most
SAMPLE = 64  # rows and columns that are looked at before the whole matrix is
ULPS = (0, 1, -1, 2, -2)  # two roundings lie between the scale and its smallest value over steps
# The axes along which entries share a scale: all, those of a column, those of a row. The place in
# this list is what the file holds.
GROUPS: list[tuple[int, ...]] = [(0, 1), (0,), (1,)]


def lines_of(mask: np.ndarray) -> Lines:
    """The row and the column of each entry of a mask `(p, q)`, by rows."""
    rows, columns = np.nonzero(mask)
    return rows, columns


def narrow(values: np.ndarray) -> bytes:
    """Integers as offsets from the smallest, each in as few bits as the largest needs."""
    low = int(values.min())
    # modulo 2^64 the differences of any integers are right
    above = values.astype(np.uint64) - np.array(low).astype(np.uint64)
    width = int(above.max()).bit_length()
    bits = (above[:, None] >> np.arange(width, dtype=np.uint64)[None, ::-1]) & np.uint64(1)
    return put_signed(low) + bytes([width]) + np.packbits(bits.astype(np.uint8)).tobytes()


def from_narrow(reader: Reader, size: int) -> list[int]:
    """The integers that `narrow` wrote."""
    low, width = reader.signed(), reader.take(1)[0]
    if width > 64:
        raise IndexError(f"integers of {width} bits")
    data = np.frombuffer(reader.take((size * width + 7) // 8), np.uint8)
    bits = np.unpackbits(data, count=size * width).reshape(size, width)
    weights = np.uint64(1) << np.arange(width, dtype=np.uint64)[::-1]
    return [low + v for v in (bits.astype(np.uint64) @ weights).tolist()]


def palette(values: np.ndarray, lines: Lines) -> bytes | None:
    """Few distinct values (bit patterns): which of them each entry is, then the values.

    None where they are many: more than `PALETTE_LIMIT`, or than half the entries.
    """
    most = min(PALETTE_LIMIT, len(values) // 2)
    if len(np.unique(values[: 2 * PALETTE_LIMIT + 2])) > most:  # sorts less than all of them
        return None
    book, symbols = np.unique(values, return_inverse=True)
    code = put_symbols(symbols, len(book), lines) if 0 < len(book) <= most else None
    return None if code is None else code + _bytes(book)


def from_palette(reader: Reader, lines: Lines, width: int) -> np.ndarray:
    """The values of `width` bytes that `palette` wrote."""
    symbols, size = get_symbols(reader, lines)
    return reader.array(size, f"u{width}")[symbols]


def offsets(values: np.ndarray, lines: Lines) -> bytes | None:
    """Integers as symbols: a lower bound, and their distances from it.

    None where there are none, or the largest is `ALPHABET_LIMIT` or more above the least.
    """
    if not len(values):
        return None
    wide = values if values.dtype == np.uint64 else values.astype(np.int64)
    low, high = int(wide.min()), int(wide.max())
    if high - low >= ALPHABET_LIMIT:
        return None
    half = 1 << max(-low, high - 1, 0).bit_length()
    if low < 0 < high and 2 * half <= 1 << (high - low).bit_length():
        low = 1 - half  # the first bit of a symbol is then the sign
    code = put_symbols((wide - wide.dtype.type(low)).astype(np.int64), high - low + 1, lines)
    return None if code is None else put_signed(low) + code


def from_offsets(reader: Reader, lines: Lines, dtype: np.dtype) -> np.ndarray:
    """The integers that `offsets` wrote."""
    low, (symbols, _) = reader.signed(), get_symbols(reader, lines)
    wide = np.dtype(np.uint64) if dtype == np.uint64 else np.dtype(np.int64)
    return (symbols.astype(wide) + wide.type(low)).astype(dtype)


def grids(matrix: np.ndarray, mask: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Values that are a scale times small integers, to the bit: group, scales and integers.

    Of the floats `(p, q)` those at the mask. With a single scale where there is such, else with a
    scale a column and a row; the first entry is the place in `GROUPS`.
    """
    kept = matrix[mask]
    least = np.finfo(matrix.dtype).smallest_normal  # below, machines may differ
    if not len(kept) or not np.all(np.isfinite(kept)) or np.min(np.abs(kept)) < least:
        return
    for place, axes in enumerate(GROUPS):
        several = place > 0
        if several and (len(kept) < 4 * matrix.shape[2 - place] or 1 in matrix.shape):
            continue
        found = _scales(matrix, mask, axes)
        if found is None:
            continue
        scales, steps = found
        code = offsets(steps[mask], lines_of(mask))
        if code is not None:
            yield place, _bytes(scales) + code
            if not several:
                return


def from_grid(reader: Reader, group: int, mask: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values at the mask that `grids` wrote."""
    shape = tuple(1 if axis in GROUPS[group] else n for axis, n in enumerate(mask.shape))
    scales = reader.array(shape[0] * shape[1], dtype)
    steps = from_offsets(reader, lines_of(mask), np.dtype(np.int64))
    return np.broadcast_to(scales.reshape(shape), mask.shape)[mask] * steps.astype(dtype)


def _scales(
    matrix: np.ndarray, mask: np.ndarray, axes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Scales with kept axes and integer steps that give the matrix to the bit, if any do."""
    magnitude = np.where(mask, np.abs(matrix), np.inf)
    smallest = np.min(magnitude, axis=axes, keepdims=True)
    smallest = np.where(np.isinf(smallest), 0, smallest).astype(matrix.dtype)
    # most matrices are on no grid, which a corner shows
    corner = tuple(slice(None if n == 1 else SAMPLE) for n in smallest.shape)
    part = (slice(SAMPLE), slice(SAMPLE))
    if _near(matrix[part], mask[part], smallest[corner], axes) is None:
        return None
    near = _near(matrix, mask, smallest, axes)
    if near is None:
        return None
    scales = np.full_like(near, np.nan)
    for ulps in ULPS:
        trial = near
        for _ in range(abs(ulps)):
            trial = np.nextafter(trial, np.asarray(np.inf if ulps > 0 else 0, near.dtype))
        steps = np.rint(_ratio(matrix, trial))
        with np.errstate(over="ignore"):  # beyond the largest number nothing is equal
            exact = trial * steps.astype(trial.dtype) == matrix  # as `from_grid` multiplies
        scales = _taken(exact, mask, axes, trial, scales)
        if not np.isnan(scales).any():
            return scales, np.rint(_ratio(matrix, scales)).astype(np.int64)
    return None


def _near(
    matrix: np.ndarray, mask: np.ndarray, smallest: np.ndarray, axes: tuple[int, ...]
) -> np.ndarray | None:
    """Scales whose multiples are near all entries: each group's smallest over 1, 2, ..."""
    scales = np.where(smallest == 0, 0, np.asarray(np.nan, smallest.dtype))
    for divisor in range(1, DIVISORS + 1):
        trial = smallest / smallest.dtype.type(divisor)
        if np.min(trial[np.isnan(scales)], initial=1) < np.finfo(trial.dtype).smallest_normal:
            return None
        ratio = _ratio(matrix, trial)
        steps = np.rint(ratio)
        # three roundings of 2^-24 each move a step below 2^15 by less than this
        fits = (np.abs(ratio - steps) < 1 / 128) & (np.abs(steps) < GRID_LIMIT)
        scales = _taken(fits, mask, axes, trial, scales)
        if not np.isnan(scales).any():
            return scales
    return None


def _taken(
    fits: np.ndarray, mask: np.ndarray, axes: tuple[int, ...], trial: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """The scales, NaN where none was found yet, with the trial where it fits all of a group."""
    good = np.all(fits | ~mask, axis=axes, keepdims=True)
    return np.where(good & np.isnan(scales), trial, scales)


def _ratio(matrix: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Entries over their scales in float64; zero where a group has no entries."""
    wide = scales.astype(np.float64)
    with np.errstate(over="ignore"):  # what overflows is far beyond the limit
        ratio = matrix / np.where(wide == 0, np.inf, wide)
    return np.clip(ratio, -GRID_LIMIT, GRID_LIMIT)


def _bytes(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()
