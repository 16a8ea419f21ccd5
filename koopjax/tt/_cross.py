"""Cross approximation: a train from few entries of a tensor that is only known as a function.

Two neighbouring cores at a time: all entries between the index sets on both sides are evaluated,
their singular values choose the rank, and rows of large volume become the next index set. What a
sweep sees is compared with what the train said before, and points drawn afresh after every sweep
keep it honest; points where the train is wrong join the index sets.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import expected, pytree, static, traced
from koopjax.tt._ranks import as_ranks
from koopjax.tt._round import Host, svd, to_device
from koopjax.tt._support import check_modes, check_rtol
from koopjax.tt._trains import TensorTrain


@pytree
class CrossInfo:
    """What a cross approximation says about itself.

    Attributes:
        error: estimated relative error: the larger of that on the last sweep's entries and on
            fresh random ones, before they were used.
        evaluations: entries of the function that were computed.
        sweeps: half sweeps, in one direction each.
        ranks: TT ranks `(d + 1,)`.
        converged: whether `error` came down to the tolerance.
        reason: why it stopped, in words (static).
    """

    error: Any
    evaluations: Any
    sweeps: Any
    ranks: Any
    converged: Any
    reason: str = static(default="")


def maxvol(a: Host, limit: float = 1.05, steps: int = 200) -> tuple[Host, Host]:
    """Rows of a tall matrix whose square submatrix has a large determinant.

    Args:
        a: `(m, r)` of full column rank, `m >= r`.
        limit: a swap must enlarge the volume by this factor.
        steps: most swaps.

    Returns:
        `r` row indices, and `a @ inv(a[rows])`, with no entry above `limit` in modulus.
    """
    m, r = a.shape
    rest, rows = a.copy(), np.empty(r, int)
    free = np.ones(m, bool)
    for j in range(r):  # Gaussian elimination with row pivots
        rows[j] = int(np.argmax(np.abs(rest[:, j]) * free))
        free[rows[j]] = False
        pivot = rest[rows[j], j]
        if pivot != 0:
            rest[:, j + 1 :] -= np.outer(rest[:, j] / pivot, rest[rows[j], j + 1 :])
    b = np.linalg.lstsq(a[rows].T, a.T, rcond=None)[0].T
    for _ in range(steps):
        i, j = np.unravel_index(int(np.argmax(np.abs(b))), b.shape)
        if np.abs(b[i, j]) <= limit:
            break
        row = b[i].copy()
        row[j] -= 1
        b = b - np.outer(b[:, j] / b[i, j], row)
        rows[j] = i
    return rows, np.linalg.lstsq(a[rows].T, a.T, rcond=None)[0].T


class _Sampler:
    """The function, checked, counted, and called with arrays of one shape where that is wanted."""

    def __init__(self, function: Callable[..., Any], batch_size: int | None) -> None:
        self.function = function
        self.batch_size = batch_size
        self.count = 0
        self.dtype: Any = None

    def _call(self, indices: Host) -> Host:
        values = self.function(indices)
        kept = isinstance(values, jax.Array)
        values = np.asarray(jax.device_get(values))
        if values.shape != (len(indices),):
            raise expected(
                f"{len(indices)} values of the function, one for each row of indices",
                f"shape {values.shape}",
                "a function of an index array (m, d) that returns (m,)",
            )
        if self.dtype is None:
            floating = jnp.issubdtype(values.dtype, jnp.inexact)
            dtype = values.dtype if floating else jnp.result_type(float)
            # NumPy's float64 becomes what JAX makes of it; an array of JAX keeps its digits.
            self.dtype = np.dtype(dtype if kept else jax.dtypes.canonicalize_dtype(dtype))
        return values

    def __call__(self, indices: Host) -> Host:
        indices = np.ascontiguousarray(indices, np.int32)
        size = self.batch_size
        if size is None:
            values = self._call(indices)
        else:
            padding = -len(indices) % size
            full = np.concatenate([indices, np.repeat(indices[-1:], padding, axis=0)])
            parts = [self._call(full[i : i + size]) for i in range(0, len(full), size)]
            values = np.concatenate(parts)[: len(indices)]
        self.count += len(indices)
        if values.dtype.kind == "V":  # bfloat16 and the like
            values = values.astype(np.float32)
        if not np.isfinite(values).all():
            where = indices[int(np.argmin(np.isfinite(values)))].tolist()
            raise expected("finite values of the function", f"NaN or infinity at index {where}")
        return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)


def evaluate(cores: Sequence[Host], indices: Host) -> Host:
    """Entries of a host train at `(m, d)` indices."""
    left = cores[0][0, indices[:, 0]]
    for k, core in enumerate(cores[1:], start=1):
        left = np.einsum("sa,asb->sb", left, core[:, indices[:, k]])
    return left[:, 0]


def _block(left: Host, n: int, m: int, right: Host) -> Host:
    """All multi-indices `left × n × m × right`, `(r n m s, d)`, the right ones running fastest."""
    grids = np.meshgrid(
        np.arange(len(left)), np.arange(n), np.arange(m), np.arange(len(right)), indexing="ij"
    )
    a, i, j, b = (grid.reshape(-1) for grid in grids)
    return np.concatenate([left[a], i[:, None], j[:, None], right[b]], axis=1).astype(np.int32)


def _relative(difference: Host, values: Host) -> float:
    size, lost = float(np.linalg.norm(values)), float(np.linalg.norm(difference))
    return lost / size if size else (0.0 if lost == 0 else math.inf)


class _Cross:
    """Index sets on both sides of every bond, and the train that they give."""

    def __init__(self, sample: _Sampler, modes: tuple[int, ...], rtol: float, most: Any) -> None:
        d = len(modes)
        self.sample, self.modes, self.d = sample, modes, d
        self.cut = 0.1 * rtol / math.sqrt(max(d - 1, 1))
        self.most = most
        empty = np.zeros((1, 0), np.int32)
        self.left: list[Host] = [empty] + [np.zeros((0, k), np.int32) for k in range(1, d + 1)]
        self.right: list[Host] = [np.zeros((0, d - k), np.int32) for k in range(d)] + [empty]
        self.cores: list[Host] | None = None

    def join(self, points: Host) -> None:
        """Let whole multi-indices take part in all index sets."""
        for k in range(1, self.d):
            self.left[k] = np.unique(np.concatenate([self.left[k], points[:, :k]]), axis=0)
            self.right[k] = np.unique(np.concatenate([self.right[k], points[:, k:]]), axis=0)

    def _split(self, k: int) -> tuple[Host, Host, Host, float, Host]:
        n, m = self.modes[k], self.modes[k + 1]
        indices = _block(self.left[k], n, m, self.right[k + 2])
        values = self.sample(indices)
        error = math.inf
        if self.cores is not None:
            error = _relative(values - evaluate(self.cores, indices), values)
        a = values.reshape(len(self.left[k]) * n, m * len(self.right[k + 2]))
        u, s, vh = svd(a)
        tails = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
        noise = 4 * np.finfo(s.dtype).eps * math.sqrt(len(s))
        rank = int(np.argmax(tails <= max(self.cut, noise) * tails[0]))
        rank = max(1, min(rank, len(s) if self.most is None else self.most[k + 1]))
        return u[:, :rank], s[:rank], vh[:rank], error, indices

    def forward(self) -> float:
        """One half sweep from left to right; the largest error seen."""
        cores, worst, rest = [], 0.0, np.zeros((1, 1))
        for k in range(self.d - 1):
            u, s, vh, error, _ = self._split(k)
            worst = max(worst, error)
            rows, core = maxvol(u)
            r, n = len(self.left[k]), self.modes[k]
            grid = _block(self.left[k], n, 1, np.zeros((1, 0), np.int32))[:, : k + 1]
            cores.append(core.reshape(r, n, -1))
            rest = (u[rows] * s[None, :]) @ vh
            self.left[k + 1] = grid[rows]
        cores.append(rest.reshape(-1, self.modes[-1], 1))
        self.cores = cores
        return worst

    def backward(self) -> float:
        """One half sweep from right to left."""
        cores, worst, rest = [], 0.0, np.zeros((1, 1))
        for k in range(self.d - 2, -1, -1):
            u, s, vh, error, _ = self._split(k)
            worst = max(worst, error)
            columns, core = maxvol(vh.T)
            m, right = self.modes[k + 1], self.right[k + 2]
            grid = _block(np.zeros((1, 0), np.int32), 1, m, right)[:, 1:]
            cores.append(core.T.reshape(-1, m, len(right)))
            rest = (u * s[None, :]) @ vh[:, columns]
            self.right[k + 1] = grid[columns]
        cores.append(rest.reshape(1, self.modes[0], -1))
        self.cores = cores[::-1]
        return worst


def cross(
    function: Callable[..., Any],
    modes: Sequence[int],
    key: Array,
    *,
    rtol: float = 1e-6,
    max_rank: Any = None,
    max_sweeps: int = 20,
    max_evaluations: int = 10_000_000,
    batch_size: int | None = None,
) -> tuple[TensorTrain, CrossInfo]:
    """A train of a tensor that is given entry by entry, from few of its entries.

    Two-site cross approximation with rows of maximal volume; ranks adapt to the tolerance.

    Args:
        function: maps an index array `(m, d)` (int32, NumPy) to `(m,)` values, real or complex.
        modes: mode sizes.
        key: draws the first index sets and the points that the error is estimated on.
        rtol: relative tolerance of the estimated error.
        max_rank: an upper bound on the ranks, one or `d - 1`.
        max_sweeps: most half sweeps.
        max_evaluations: no new sweep begins beyond so many.
        batch_size: call the function with exactly so many rows (the last ones repeated where there
            are fewer), so that a jitted function compiles once; all at once by default.

    Returns:
        `TensorTrain` in the dtype of the function's values, and `CrossInfo`. Takes about
        `sweeps · Σ n_k n_{k+1} r_{k-1} r_{k+1}` evaluations. The error is an estimate: a peak that
        no index has touched stays unseen.

    Raises:
        ValueError: values of another shape, NaN or infinite ones, rtol below 0, a call under jit.

    Example:
        >>> import jax, numpy as np
        >>> train, info = cross(lambda i: 1.0 / (1.0 + i.sum(axis=1)), (8,) * 6, jax.random.key(0))
        >>> bool(info.converged), int(info.evaluations) < 8**6 // 4
        (True, True)

    Reference: Savostyanov & Oseledets (2011); maximal volume: Goreinov et al. (2010).
    """
    modes, rtol = check_modes(modes), check_rtol(rtol)
    if traced(key):
        raise expected("a concrete key", "a traced one", "calling cross outside jit")
    for name, value in (("max_sweeps", max_sweeps), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise expected(f"{name} of at least 1", f"{value}")
    d = len(modes)
    most = None if max_rank is None else as_ranks(d, max_rank)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    sample = _Sampler(function, batch_size)
    if d == 1:
        core = sample(np.arange(modes[0])[:, None]).reshape(1, -1, 1)
        train = TensorTrain(to_device([core], sample.dtype))
        return train, CrossInfo(0.0, sample.count, 1, np.ones(2, int), True, "every entry taken")

    state = _Cross(sample, modes, rtol, most)
    state.join(_draw(rng, modes, 3))
    error, sweeps, reason = math.inf, 0, ""
    while not reason:
        seen = state.forward() if sweeps % 2 == 0 else state.backward()
        sweeps += 1
        error, wrong = _check(state, rng, rtol)
        # The first sweep has nothing to compare with.
        error = max(error, seen)
        if error <= rtol:
            reason = "the estimated error is within the tolerance"
        elif sweeps >= max_sweeps:
            reason = f"max_sweeps={max_sweeps} reached"
        elif sample.count >= max_evaluations:
            reason = f"max_evaluations={max_evaluations} reached"
        else:
            state.join(wrong)
    assert state.cores is not None
    train = TensorTrain(to_device(state.cores, sample.dtype))
    ranks = np.asarray(train.ranks, np.int32)
    return train, CrossInfo(error, sample.count, sweeps, ranks, error <= rtol, reason)


def _draw(rng: np.random.Generator, modes: tuple[int, ...], count: int) -> Host:
    return np.stack([rng.integers(0, n, count) for n in modes], axis=1).astype(np.int32)


def _check(state: _Cross, rng: np.random.Generator, rtol: float) -> tuple[float, Host]:
    """Relative error at fresh random points, and those of them that should join."""
    assert state.cores is not None
    points = _draw(rng, state.modes, 100)
    values = state.sample(points)
    difference = values - evaluate(state.cores, points)
    order = np.argsort(-np.abs(difference))[:2]
    bad = np.abs(difference[order]) > rtol * float(np.sqrt(np.mean(np.abs(values) ** 2)))
    return _relative(difference, values), points[order[bad]]
