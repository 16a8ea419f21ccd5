"""Quantised trains (QTT): each mode split into the digits of its index, and put together again."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from koopjax._core import as_whole, expected
from koopjax.tt._precision import precise
from koopjax.tt._range import even, placed
from koopjax.tt._round import Budget, _require_concrete, right_orthogonal, svd, to_device, wide
from koopjax.tt._support import T, check_modes, check_rtol, check_train
from koopjax.tt._trains import TensorTrain, TTMatrix


def _digits(n: int, base: int) -> int | None:
    """How many digits to the base index `n` values, or None if it is no power of it."""
    count, size = 0, 1
    while size < n:
        size, count = size * base, count + 1
    return count if size == n else None


def _sizes(row: int, column: int, base: int) -> list[tuple[int, int]]:
    """Row and column sizes of the cores that one mode is split into."""
    counts = [_digits(row, base), _digits(column, base)]
    if None in counts or (counts[0] != counts[1] and 0 not in counts):
        raise expected(
            f"modes that are powers of {base} (rows and columns of one power, or one of them 1)",
            f"a mode of {row}" + (f" x {column}" if column != 1 else ""),
            "another base, or padding the mode with zeros",
        )
    length = max(counts[0] or 0, counts[1] or 0, 1)
    rows = [base if counts[0] else 1] * length
    columns = [base if counts[1] else 1] * length
    return list(zip(rows, columns, strict=True))


def quantize(train: T, base: int = 2, rtol: float = 0.0) -> T:
    """Every mode of size `base^L` split into `L` modes of size `base` (QTT).

    `A[..., i, ...] = Q[..., i_1, ..., i_L, ...]` with `i = Σ i_j base^(L - j)`: the most
    significant digit first, so that a dense reshape in C order is the same thing.

    Args:
        train: `TensorTrain`, or `TTMatrix` whose row and column modes are split alike (a mode of 1
            stays 1 in all of its cores).
        base: at least 2.
        rtol: relative tolerance in the Frobenius norm of the whole tensor; 0 cuts rounding noise.

    Returns:
        A train of the same kind with ranks from the data, as `round` gives; outside jit.

    Raises:
        ValueError: a mode that is no power of the base, NaN cores, a call under jit.

    Example:
        >>> import jax.numpy as jnp
        >>> quantize(rank_one([2.0 ** jnp.arange(8)])).ranks
        (1, 1, 1, 1)
    """
    _require_concrete("quantize", train)
    rtol = check_rtol(rtol)
    check_train("the train", train)
    if not isinstance(train, TensorTrain | TTMatrix):
        raise expected("a TensorTrain or TTMatrix", type(train).__name__, "tt.unpad")
    base = as_whole("the base", base, 2)
    matrix = isinstance(train, TTMatrix)
    shapes = [core.shape if matrix else (*core.shape[:2], 1, core.shape[2]) for core in train.cores]
    groups = [_sizes(shape[1], shape[2], base) for shape in shapes]
    host, e = right_orthogonal(
        [wide(c).reshape(s[0], s[1] * s[2], s[3]) for c, s in zip(train.cores, shapes, strict=True)]
    )
    budget = Budget(rtol, float(np.linalg.norm(host[0])), sum(map(len, groups)) - 1, train.dtype)
    cores: list[np.ndarray] = []
    for k, (core, shape, sizes) in enumerate(zip(host, shapes, groups, strict=True)):
        # Digits of row and column interleaved, so that each new core has one of both.
        rest = core.reshape(-1, *(m for m, _ in sizes), *(n for _, n in sizes), core.shape[-1])
        length = len(sizes)
        order = [0, *(a for j in range(length) for a in (1 + j, 1 + length + j)), 1 + 2 * length]
        rest, r = rest.transpose(order), core.shape[0]
        for j, (m, n) in enumerate(sizes):
            last = j == length - 1
            if last and k == len(host) - 1:
                cores.append(rest.reshape(r, m, n, shape[3]))
                break
            a = rest.reshape(r * m * n, -1)
            u, s, vh = svd(a)
            rank = budget.rank(s, len(s))
            cores.append(u[:, :rank].reshape(r, m, n, rank))
            rest, r = s[:rank, None] * vh[:rank], rank
            if last:
                host[k + 1] = np.einsum("ab,bnc->anc", rest, host[k + 1])
    cores = list(placed(cores, e, len(cores) - 1, train.dtype))
    if matrix:
        return TTMatrix(to_device(cores, train.dtype))  # pyright: ignore[reportReturnType]
    plain = [core[:, :, 0] for core in cores]
    return TensorTrain(to_device(plain, train.dtype))  # pyright: ignore[reportReturnType]


def dequantize(train: T, lengths: Sequence[int]) -> T:
    """Neighbouring modes merged into one: the inverse of `quantize`.

    Args:
        train: `TensorTrain` or `TTMatrix`.
        lengths: how many cores make up each mode of the result; they add up to `d` (static).

    Returns:
        A train of the same kind, `len(lengths)` cores; works under jit.

    Example:
        >>> import jax.numpy as jnp
        >>> dequantize(rank_one([jnp.ones(2)] * 5), (3, 2)).modes
        (8, 4)
    """
    check_train("the train", train)
    if not isinstance(train, TensorTrain | TTMatrix):
        raise expected("a TensorTrain or TTMatrix", type(train).__name__, "tt.unpad")
    lengths = list(check_modes(lengths))
    if not lengths or min(lengths) < 1 or sum(lengths) != train.order:
        raise expected(f"lengths of 1 or more that add up to {train.order}", f"{lengths}")
    merged: list[Any] = []
    with precise(train):
        start = 0
        cores = even(train).cores
        for length in lengths:
            core = cores[start]
            for following in cores[start + 1 : start + length]:
                joined = jnp.tensordot(core, following, axes=1, precision="highest")
                if isinstance(train, TTMatrix):
                    joined = jnp.swapaxes(joined, 2, 3)
                    r, m, i, n, j, s = joined.shape
                    core = joined.reshape(r, m * i, n * j, s)
                else:
                    core = joined.reshape(joined.shape[0], -1, joined.shape[-1])
            merged.append(core)
            start += length
    return type(train)(tuple(merged))
