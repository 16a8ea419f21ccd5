"""TT-SVD, rounding to a tolerance, digits of modes: outside jit, since ranks come from the data.

All run on the host in double precision whatever the dtype of the data, so that what is cut is
what the tolerance says and not rounding noise; the cores come back in the dtype that came in.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax._core import as_whole, check_finite, expected, on_device, precise_as, traced
from koopjax.tt._checks import (
    RoundInfo,
    as_floating,
    as_ranks,
    check_modes,
    check_rtol,
    feasible_ranks,
    was_clipped,
)
from koopjax.tt._padded import pad, unpad
from koopjax.tt._range import balanced, lifted, placed
from koopjax.tt._trains import (
    PaddedTT,
    T,
    TensorTrain,
    TTMatrix,
    as_train,
    check_train,
    split_modes,
)

Host = np.ndarray


class Budget:
    """How much of the squared norm may still be cut, shared out evenly over the bonds to come.

    The cuts are orthogonal to each other, so their squares add; what a bond does not use, the next
    ones may. Storing `d` cores in their dtype costs some digits too, which are kept back.
    """

    def __init__(self, rtol: float, norm: float, bonds: int, dtype: Any) -> None:
        eps = float(jnp.finfo(dtype).eps)
        self.eps = eps
        self.norm = norm
        self.left = (max(rtol - (bonds + 1) * eps, 0.0) * norm) ** 2
        self.bonds = bonds
        self.spent = 0.0

    def rank(self, s: Host, most: int) -> int:
        """The least rank at this bond, from its descending singular values."""
        tails = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
        # With nothing left to spend, only what rounding itself has put there is cut.
        rounding = self.eps + 4 * math.sqrt(len(s)) * float(np.finfo(s.dtype).eps)
        noise = (rounding * self.norm) ** 2 if self.left == 0 else 0.0
        allowed = max(self.left / max(self.bonds, 1), noise)
        rank = max(1, min(int(np.argmax(tails <= allowed)), most))
        self.bonds -= 1
        self.left = max(self.left - tails[rank], 0.0) if self.left else 0.0
        self.spent += float(tails[rank])
        return rank

    @property
    def error(self) -> float:
        """Relative error so far."""
        return math.sqrt(self.spent) / self.norm if self.norm else 0.0


def svd(a: Host) -> tuple[Host, Host, Host]:
    """Thin SVD on the host; by way of a QR where the divide-and-conquer routine gives up."""
    try:
        return np.linalg.svd(a, full_matrices=False)
    except np.linalg.LinAlgError:
        q, r = np.linalg.qr(a)
        u, s, vh = np.linalg.svd(r, full_matrices=False)
        return q @ u, s, vh


def wide(array: Any) -> Host:
    """An array on the host in double precision."""
    host = np.asarray(jax.device_get(array))
    if host.dtype.kind == "V":  # bfloat16 and the like
        host = host.astype(np.float32)
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)


def to_device(cores: Sequence[Host], dtype: Any) -> tuple[Any, ...]:
    """Host cores as arrays of a dtype."""
    with precise_as(dtype):
        return tuple(on_device(core, dtype) for core in cores)


def _require_concrete(verb: str, *trees: Any) -> None:
    if traced(*trees):
        raise expected(
            f"concrete values in {verb}, which takes its ranks from them",
            "a call under jit, vmap or grad",
            "tt.truncate on a PaddedTT, where ranks are masks",
        )


def from_dense(
    a: Any, max_rank: Any = None, rtol: float = 0.0, *, return_info: bool = False
) -> Any:
    """TT-SVD: a tensor as a train, `‖A − Ã‖ ≤ rtol ‖A‖` in the Frobenius norm.

    Args:
        a: `(n_1, ..., n_d)`, real or complex; integers become the default float.
        max_rank: an upper bound on the ranks, one or `d - 1`; none by default. It wins over
            `rtol`: where it bites, the error may be larger, and the info says how large. A bound
            above what the modes allow changes nothing, and the info says so.
        rtol: relative tolerance; 0 keeps all but rounding noise.
        return_info: also return a `RoundInfo`.

    Returns:
        `TensorTrain` in the dtype of `a`, left-orthogonal but for the last core; with
        `return_info` a pair. Costs SVDs of the unfoldings, in double precision on the host.

    Raises:
        ValueError: a scalar, an empty axis, NaN, rtol below 0, a rank below 1, a call under jit.

    Example:
        >>> import numpy as np
        >>> from_dense(np.ones((2, 3, 4))).ranks
        (1, 1, 1, 1)

    Reference: Oseledets (2011), algorithm 1 and theorem 2.2.
    """
    _require_concrete("from_dense", a)
    a = as_floating("the tensor", a)
    check_finite("the tensor", a)
    modes = check_modes(a.shape)
    cores, info = rounded([wide(a).reshape(1, -1, 1)], rtol, max_rank, a.dtype, [modes])
    train = TensorTrain(to_device(cores, a.dtype))
    return (train, info) if return_info else train


def matrix_from_dense(
    a: Any,
    row_modes: Sequence[int],
    column_modes: Sequence[int],
    max_rank: Any = None,
    rtol: float = 0.0,
    *,
    return_info: bool = False,
) -> Any:
    """TT-SVD of a matrix between tensor spaces, modes merged pairwise.

    Args:
        a: `(∏ m_k, ∏ n_k)`.
        row_modes, column_modes: `d` sizes each; multi-indices in C order.
        max_rank, rtol, return_info: as in `from_dense`; the norm is the Frobenius norm.

    Returns:
        `TTMatrix`; with `return_info` a pair.

    Raises:
        ValueError: modes whose products are not the shape, and what `from_dense` raises.

    Example:
        >>> import numpy as np
        >>> matrix_from_dense(np.eye(6), (2, 3), (2, 3)).ranks
        (1, 1, 1)
    """
    _require_concrete("matrix_from_dense", a)
    rows, columns = check_modes(row_modes), check_modes(column_modes)
    a = as_floating("the matrix", a)
    check_finite("the matrix", a)
    shape = (math.prod(rows), math.prod(columns))
    if len(rows) != len(columns) or tuple(a.shape) != shape:
        raise expected(
            f"as many row as column modes and a matrix of shape {shape}, their products",
            f"{len(rows)} row modes, {len(columns)} column modes and shape {tuple(a.shape)}",
            "modes of 1 to fill up the shorter list",
        )
    d = len(rows)
    order = [axis for k in range(d) for axis in (k, d + k)]
    merged = tuple(m * n for m, n in zip(rows, columns, strict=True))
    tensor = wide(a).reshape(*rows, *columns).transpose(order).reshape(merged)
    cores, info = rounded([tensor.reshape(1, -1, 1)], rtol, max_rank, a.dtype, [merged])
    matrix = TTMatrix(to_device(split_modes(cores, rows, columns), a.dtype))
    return (matrix, info) if return_info else matrix


def right_orthogonal(cores: Sequence[Host]) -> tuple[list[Host], Any]:
    """Cores with the norm in the first one, up to an exponent of two, on the host."""
    cores, e = balanced(cores)
    out = list(cores)
    for k in range(len(out) - 1, 0, -1):
        r, n, s = out[k].shape
        q, rest = np.linalg.qr(out[k].reshape(r, n * s).T)
        out[k] = q.T.reshape(-1, n, s)
        rest, e = lifted(rest, e)
        out[k - 1] = np.einsum("anb,cb->anc", out[k - 1], rest)
    out[0], e = lifted(out[0], e)
    return out, e


def round_cores(
    cores: Sequence[Host], rtol: float, wanted: Any, dtype: Any, modes: Any = None
) -> tuple[list[Host], Budget]:
    """Rounding of host cores: QR from the right, SVD from the left.

    `modes` says for each core the modes that it is split into; a single core `(1, n, 1)` is a
    tensor as a whole. `dtype` is that which the cores will have.
    """
    modes = [[core.shape[1]] for core in cores] if modes is None else modes
    whole, e = right_orthogonal(cores)
    bonds = sum(map(len, modes)) - 1
    budget = Budget(rtol, float(np.linalg.norm(whole[0])), bonds, dtype)
    out, carry = [], np.ones((1, 1))
    for core, sizes in zip(whole, modes, strict=True):
        rest = np.einsum("ab,bnc->anc", carry, core) if out else core
        for n in sizes:
            r = len(rest)
            if len(out) == bonds:
                out.append(rest.reshape(r, n, -1))
                break
            u, values, vh = svd(rest.reshape(r * n, -1))
            rank = budget.rank(values, len(values) if wanted is None else wanted[len(out) + 1])
            out.append(u[:, :rank].reshape(r, n, rank))
            rest = values[:rank, None] * vh[:rank]
        carry = rest
    return list(placed(out, e, bonds, dtype)), budget


def rounded(
    host: Sequence[Host], rtol: float, max_rank: Any, dtype: Any, modes: Any = None
) -> tuple[list[Host], RoundInfo]:
    """`round_cores` with a user's settings, and what was lost."""
    sizes = [n for one in modes for n in one] if modes else [core.shape[1] for core in host]
    wanted = None if max_rank is None else as_ranks(len(sizes), max_rank)
    cores, budget = round_cores(host, check_rtol(rtol), wanted, dtype, modes)
    ranks = np.asarray([*(len(core) for core in cores), 1], np.int32)
    most = feasible_ranks(sizes)
    clipped = wanted is not None and was_clipped(max_rank, wanted, most)
    return cores, RoundInfo(budget.error, ranks, np.asarray(most), np.asarray(clipped))


def round(train: T, rtol: float = 0.0, max_rank: Any = None, *, return_info: bool = False) -> Any:
    """The train of least ranks within a tolerance: `‖A − Ã‖ ≤ rtol ‖A‖`.

    Args:
        train: any train; a `TTMatrix` is rounded as the train of its merged modes.
        rtol: relative tolerance in the Frobenius norm, never exceeded unless `max_rank` bites;
            0 cuts only what is rounding noise.
        max_rank: an upper bound on the ranks, one or `d - 1`.
        return_info: also return a `RoundInfo` with the error and whether a bound was clipped.

    Returns:
        A train of the same kind and dtype (a `PaddedTT` keeps its padding), left-orthogonal but
        for the last core; with `return_info` a pair. Costs `Σ n r³`, in double precision on the
        host. Not differentiable: see `truncate`.

    Raises:
        ValueError: rtol below 0, a rank below 1, NaN cores, a call under jit.

    Example:
        >>> import jax.numpy as jnp
        >>> ones = rank_one([jnp.ones(2), jnp.ones(3)])
        >>> round(add(ones, ones), rtol=1e-6).ranks
        (1, 1, 1)

    Reference: Oseledets (2011), algorithm 2.
    """
    _require_concrete("round", train)
    check_train("the train", train)
    plain = unpad(train) if isinstance(train, PaddedTT) else as_train(train)
    cores, info = rounded([wide(core) for core in plain.cores], rtol, max_rank, plain.dtype)
    if isinstance(train, TTMatrix):
        cores = split_modes(cores, train.row_modes, train.column_modes)
    out = (TTMatrix if isinstance(train, TTMatrix) else TensorTrain)(to_device(cores, plain.dtype))
    if isinstance(train, PaddedTT):
        out = pad(out, train.max_rank, int(train.mode_mask.shape[1]))
    return (out, info) if return_info else out


def _sizes(row: int, column: int, base: int) -> tuple[list[int], list[int]]:
    """Row and column sizes of the cores that one mode is split into."""
    counts = [next(k for k in range(size) if base**k >= size) for size in (row, column)]
    powers = all(base**k == size for k, size in zip(counts, (row, column), strict=True))
    if not powers or (counts[0] != counts[1] and 0 not in counts):
        raise expected(
            f"modes that are powers of {base} (rows and columns of one power, or one of them 1)",
            f"a mode of {row}" + (f" x {column}" if column != 1 else ""),
            "another base, or padding the mode with zeros",
        )
    length = max(*counts, 1)
    return [base if counts[0] else 1] * length, [base if counts[1] else 1] * length


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
    check_train("the train", train, TensorTrain, TTMatrix)
    base = as_whole("the base", base, 2)
    matrix = isinstance(train, TTMatrix)
    joined, rows, columns, merged = [], [], [], []
    for core in train.cores:
        r, m, *one, s = core.shape
        some, others = _sizes(m, one[0] if matrix else 1, base)
        # Digits of row and column interleaved, so that each new core has one of both.
        order = [axis for j in range(len(some)) for axis in (1 + j, 1 + len(some) + j)]
        digits = wide(core).reshape(r, *some, *others, s)
        joined.append(digits.transpose(0, *order, -1).reshape(r, -1, s))
        merged.append([m * n for m, n in zip(some, others, strict=True)])
        rows, columns = [*rows, *some], [*columns, *others]
    cores, _ = rounded(joined, rtol, None, train.dtype, merged)
    cores = split_modes(cores, rows, columns) if matrix else cores
    kind: Any = type(train)
    return kind(to_device(cores, train.dtype))
