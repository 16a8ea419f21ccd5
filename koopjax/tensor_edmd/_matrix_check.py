"""What can be wrong about a matrix that is to become a TT matrix, said in one line."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from koopjax import tt
from koopjax._core import check_finite, expected


def _modes_of(size: int, d: int) -> tuple[int, ...]:
    """A split of a size into `d` modes that are as equal as its primes allow."""
    modes, rest, factor = [1] * d, size, 2
    primes = []
    while rest > 1:
        while rest % factor == 0:
            primes.append(factor)
            rest //= factor
        factor = factor + 1 if factor * factor <= rest else max(rest, factor + 1)
    for prime in sorted(primes, reverse=True):
        modes[modes.index(min(modes))] *= prime
    return tuple(sorted(modes, reverse=True))


def check_modes(shape: Sequence[int], rows: Any, columns: Any) -> tuple[Any, Any]:
    """Row and column modes as tuples of integers whose products are the shape."""
    out = []
    for name, size, modes in (("row", shape[0], rows), ("column", shape[1], columns)):
        if not isinstance(modes, Sequence | np.ndarray) or isinstance(modes, str):
            raise expected(f"a sequence of {name} modes", f"{modes!r:.60}", f"{_modes_of(size, 2)}")
        whole = all(isinstance(m, int | np.integer) and m >= 1 for m in modes)
        if not whole or not len(modes) or math.prod(modes) != size:
            fits = _modes_of(size, max(len(modes), 1))
            raise expected(
                f"{name} modes of at least 1 that multiply to {size}", f"{tuple(modes)}", f"{fits}"
            )
        out.append(tuple(int(m) for m in modes))
    if len(out[0]) != len(out[1]):
        d = max(map(len, out))
        short = 0 if len(out[0]) < d else 1
        raise expected(
            "as many row modes as column modes", f"{out[0]} and {out[1]}",
            f"{('row', 'column')[short]}_modes={_modes_of(shape[short], d)}",
        )  # fmt: skip
    return out[0], out[1]


def check_matrix(matrix: Any) -> None:
    """Two axes, none of them empty, floating, and finite."""
    shape = tuple(np.shape(matrix))
    if len(shape) != 2 or 0 in shape:
        raise expected("a matrix with two axes, none empty", f"shape {shape}")
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        raise expected("a matrix of real floating-point numbers", f"dtype {matrix.dtype}")
    check_finite("the matrix", matrix)


def check_rank(modes: Sequence[int], rank: Any) -> tuple[tuple[int, ...], str]:
    """All ranks, ones at the ends included, and a sentence on those that were clipped."""
    ranks, reason = tt.clip_ranks(modes, rank)
    return ranks, reason or ""


def check_order(name: str, order: Any, size: int) -> np.ndarray:
    """An order as an array of indices, each once; the natural one for None and "search"."""
    if order is None or (isinstance(order, str) and order == "search"):
        return np.arange(size)
    given = np.asarray(order)
    if given.shape != (size,) or not np.array_equal(np.sort(given), np.arange(size)):
        raise expected(
            f'{name} None, "search", or every index below {size} once',
            repr(order) if isinstance(order, str) else f"an array of shape {given.shape}",
        )
    return given.astype(np.int64)
