"""How large a dictionary gets, before anything is allocated, and which sizes would fit."""

import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from koopjax._core import as_dtype, as_whole, check_dictionary, is_tracing
from koopjax.observables._combine import Compose, Concat, Select
from koopjax.observables._polynomials import Identity, Monomials, Orthogonal
from koopjax.observables._project import Project


def bytes_needed(psi: Any, n: int, d: int, dtype: Any = jnp.float32) -> int:
    """Bytes of `psi(x)` for `n` samples of `d` coordinates; exact, allocates nothing.

    Args:
        psi: dictionary.
        n: number of samples.
        d: number of coordinates.
        dtype: of the result.

    Example:
        >>> bytes_needed(Monomials(2), 1_000, 100)
        20604000
    """
    check_dictionary("psi", psi)
    return as_whole("n", n, 0) * psi.size(as_whole("d", d, 1)) * as_dtype("dtype", dtype).itemsize


class Fits(NamedTuple):
    """Whether a dictionary fits, and what would.

    Attributes:
        ok: whether it fits.
        size: its number of observables.
        needed: bytes.
        largest: number of observables that would fit.
        advice: dictionaries that would fit, for an error message; empty where `ok`.
    """

    ok: bool
    size: int
    needed: int
    largest: int
    advice: str


def fits(
    psi: Any, d: int, memory: int, *, rows: int = 0, squares: int = 2, dtype: Any = jnp.float32
) -> Fits:
    """Whether the work arrays of an EDMD fit in memory: `squares · p² + rows · p` numbers.

    Args:
        psi: dictionary.
        d: number of coordinates.
        memory: bytes to be had.
        rows: samples evaluated at a time.
        squares: `p × p` matrices held at a time.
        dtype: of the statistics.

    Example:
        >>> fits(Monomials(3), 100, 2**30).advice
        'Monomials(2) with 5,151 observables, or Project to 39 coordinates first'
    """
    check_dictionary("psi", psi)
    memory, rows = as_whole("memory", memory, 0, 2**63), as_whole("rows", rows, 0, 2**63)
    squares = as_whole("squares", squares, 0)
    size, width = psi.size(as_whole("d", d, 1)), as_dtype("dtype", dtype).itemsize
    needed = (squares * size * size + rows * size) * width
    budget = max(0, memory // width)
    # The positive root of squares p² + rows p = budget, in integers.
    if squares:
        largest = (math.isqrt(rows * rows + 4 * squares * budget) - rows) // (2 * squares)
    else:
        largest = budget // max(rows, 1)
    ok = needed <= memory
    return Fits(ok, size, needed, largest, "" if ok else _suggest(psi, d, largest))


def _suggest(psi: Any, d: int, limit: int) -> str:
    """Dictionaries like `psi` with at most `limit` observables, in words."""
    while isinstance(psi, Compose):
        d, psi = psi.first.size(d), psi.then
    ideas = []
    if isinstance(psi, Monomials | Orthogonal):
        degree = largest_degree(d, limit)
        if degree >= 1:
            size = math.comb(d + degree, degree)
            family = f', "{psi.family}"' if isinstance(psi, Orthogonal) else ""
            ideas.append(f"{type(psi).__name__}({degree}{family}) with {size:,} observables")
        width = largest_dimension(psi.degree, limit)
        if 1 <= width < d:
            ideas.append(f"Project to {width} coordinates first")
    return ", or ".join(ideas) or f"a dictionary of at most {limit:,} observables"


def largest_degree(d: int, limit: int) -> int:
    """Largest total degree with at most `limit` products of `d` coordinates; -1 if none."""
    d, limit = as_whole("d", d, 1), as_whole("limit", limit, 0, 2**63)
    few = (math.comb(d + degree, degree) <= limit for degree in range(65))
    return sum(itertools.takewhile(bool, few)) - 1


def largest_dimension(degree: int, limit: int) -> int:
    """Most coordinates whose products up to a total degree number at most `limit`; 0 if none."""
    degree, limit = as_whole("degree", degree, 1), as_whole("limit", limit, 0, 2**63)
    low, high = 0, max(1, limit)
    while low < high:
        middle = (low + high + 1) // 2
        few = math.comb(middle + degree, degree) <= limit
        low, high = (middle, high) if few else (low, middle - 1)
    return low


def contains_state(psi: Any, d: int) -> np.ndarray | None:
    """The columns in which the state itself occurs, in order, or `None`.

    What a readout can be read off from, where there is no need to regress on the state.

    Args:
        psi: dictionary.
        d: number of coordinates.

    Returns:
        `(d,)` integers `c` with `psi(x)[:, c] = x`, or `None` if that is not certain.

    Example:
        >>> contains_state(Monomials(2), 3)
        array([1, 2, 3])
    """
    d = as_whole("d", d, 1)
    if isinstance(psi, Identity):
        return np.arange(d)
    if isinstance(psi, Monomials):
        return np.arange(1, d + 1) if psi.degree >= 1 else None
    if isinstance(psi, Concat):
        offset = 0
        for part in psi.parts:
            found = contains_state(part, d)
            if found is not None:
                return found + offset
            offset += part.size(d)
    if isinstance(psi, Compose) and not isinstance(psi.first, Project):
        inner, outer = contains_state(psi.first, d), None
        if inner is not None:
            outer = contains_state(psi.then, psi.first.size(d))
        return None if outer is None else outer[inner]
    if isinstance(psi, Select) and not is_tracing(psi.indices):
        found = contains_state(psi.psi, d)
        if found is None:
            return None
        place = {int(column): k for k, column in enumerate(np.asarray(psi.indices))}
        if all(int(column) in place for column in found):
            return np.array([place[int(column)] for column in found])
    return None
