"""Values that are few or on a grid, as symbols: codebooks, quantised numbers, codes."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from koopjax.export._file import get_varint, put_varint
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


def palette(values: np.ndarray, lines: Lines) -> bytes | None:
    """Few distinct values: which of them each entry is, then the values as they are.

    Args:
        values: `(n,)` bit patterns, as unsigned integers.
        lines: the row and the column of each.

    Returns:
        None where they are many: more than `PALETTE_LIMIT`, or than half the entries.
    """
    most = min(PALETTE_LIMIT, len(values) // 2)
    if len(np.unique(values[: 2 * PALETTE_LIMIT + 2])) > most:  # sorts less than all of them
        return None
    book, symbols = np.unique(values, return_inverse=True)
    code = put_symbols(symbols, len(book), lines) if 0 < len(book) <= most else None
    return None if code is None else code + _bytes(book)


def from_palette(data: bytes, at: int, lines: Lines, width: int) -> tuple[np.ndarray, int]:
    """The values of `width` bytes that `palette` wrote, and the place behind them."""
    symbols, size, at = get_symbols(data, at, len(lines[0]), lines)
    book, at = _array(data, at, size, np.dtype(f"u{width}"))
    return book[symbols], at


def offsets(values: np.ndarray, lines: Lines) -> bytes | None:
    """Integers as symbols: a lower bound, zigzag, and their distances from it.

    Args:
        values: `(n,)` integers.
        lines: the row and the column of each.

    Returns:
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
    zigzag = low << 1 if low >= 0 else (-low << 1) - 1
    return None if code is None else put_varint(zigzag) + code


def from_offsets(
    data: bytes, at: int, lines: Lines, dtype: np.dtype[Any]
) -> tuple[np.ndarray, int]:
    """The integers that `offsets` wrote, and the place behind them."""
    zigzag, at = get_varint(data, at)
    low = -((zigzag + 1) >> 1) if zigzag & 1 else zigzag >> 1
    symbols, _, at = get_symbols(data, at, len(lines[0]), lines)
    wide = np.dtype(np.uint64) if dtype == np.uint64 else np.dtype(np.int64)
    return (symbols.astype(wide) + wide.type(low)).astype(dtype), at


def grids(matrix: np.ndarray, mask: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Values that are a scale times small integers, to the bit: group, scales and integers.

    Args:
        matrix: `(p, q)` of float32 or float64.
        mask: `(p, q)`, the entries that are stored.

    Yields:
        The place in `GROUPS` and the code: one with a single scale where there is such, else those
        with a scale a column and a row.
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


def from_grid(
    data: bytes, at: int, group: int, mask: np.ndarray, dtype: np.dtype[Any]
) -> tuple[np.ndarray, int]:
    """The values at the mask that `grids` wrote, and the place behind them."""
    axes = GROUPS[group]
    shape = tuple(1 if axis in axes else n for axis, n in enumerate(mask.shape))
    scales, at = _array(data, at, shape[0] * shape[1], dtype)
    steps, at = from_offsets(data, at, lines_of(mask), np.dtype(np.int64))
    spread = np.broadcast_to(scales.reshape(shape), mask.shape)[mask]
    return spread * steps.astype(dtype), at


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
    scales = np.zeros_like(near)
    done = np.zeros(near.shape, bool)
    for ulps in ULPS:
        trial = near
        for _ in range(abs(ulps)):
            trial = np.nextafter(trial, np.asarray(np.inf if ulps > 0 else 0, near.dtype))
        exact = _product(trial, _steps(matrix, trial)) == matrix
        good = np.all(exact | ~mask, axis=axes, keepdims=True)
        scales = np.where(good & ~done, trial, scales)
        done |= good
        if np.all(done):
            return scales, _steps(matrix, scales)
    return None


def _near(
    matrix: np.ndarray, mask: np.ndarray, smallest: np.ndarray, axes: tuple[int, ...]
) -> np.ndarray | None:
    """Scales whose multiples are near all entries: each group's smallest over 1, 2, ..."""
    scales = np.zeros_like(smallest)
    done = smallest == 0
    for divisor in range(1, DIVISORS + 1):
        trial = smallest / smallest.dtype.type(divisor)
        if np.min(trial[~done], initial=1) < np.finfo(trial.dtype).smallest_normal:
            return None
        ratio = _ratio(matrix, trial)
        steps = np.rint(ratio)
        # three roundings of 2^-24 each move a step below 2^15 by less than this
        near = (np.abs(ratio - steps) < 1 / 128) & (np.abs(steps) < GRID_LIMIT)
        good = np.all(near | ~mask, axis=axes, keepdims=True)
        scales = np.where(good & ~done, trial, scales)
        done = done | good
        if np.all(done):
            return scales
    return None


def _ratio(matrix: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Entries over their scales in float64; zero where a group has no entries."""
    wide = scales.astype(np.float64)
    with np.errstate(over="ignore"):  # what overflows is far beyond the limit
        ratio = matrix / np.where(wide == 0, np.inf, wide)
    return np.clip(ratio, -GRID_LIMIT, GRID_LIMIT)


def _steps(matrix: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.rint(_ratio(matrix, scales)).astype(np.int64)


def _product(scales: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """As `from_grid` multiplies; beyond the largest number nothing is equal."""
    with np.errstate(over="ignore"):
        return scales * steps.astype(scales.dtype)


def _bytes(array: np.ndarray) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def _array(data: bytes, at: int, n: int, dtype: np.dtype[Any]) -> tuple[np.ndarray, int]:
    end = at + n * dtype.itemsize
    if end > len(data):
        raise IndexError("an array ends past the file")
    return np.frombuffer(data[at:end], dtype.newbyteorder("<")).astype(dtype), end
