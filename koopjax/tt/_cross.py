"""Cross approximation: a train from few entries of a tensor that is only known as a function.

Each core is known on rows of large volume and on the columns behind its bond. Where entries drawn
at random between the two cores of a bond lie off what these rows and columns say, a row and a
column more are evaluated. Points all over the tensor keep it honest; those where the train is wrong
join the index sets.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import (
    NOT_CONVERGED,
    SUCCESS,
    as_key,
    as_whole,
    expected,
    pytree,
    read,
    static,
    traced,
)
from koopjax.tt._checks import as_ranks, check_modes, check_rtol
from koopjax.tt._round import Host, round_cores, to_device
from koopjax.tt._trains import TensorTrain, check_core_dtype

SAMPLES = 8  # entries drawn to find a pivot
CHECKED = 100  # fresh points of the final check
CUT = 2.0  # times the tolerance: residual at which a pivot is added, shared out over the bonds


@pytree
class CrossInfo:
    """What a cross approximation says about itself.

    Attributes:
        error: estimated relative error, on random points that the train was not made from.
        evaluations: rows that the function was given, all of them different but for those that
            fill up a batch.
        sweeps: half sweeps, in one direction each.
        ranks: TT ranks `(d + 1,)`.
        converged: whether `error` came down to the tolerance.
        result: result code: success, or that a bound ended the search.
        reason: why it stopped, in words (static).
    """

    error: Any
    evaluations: Any
    sweeps: Any
    ranks: Any
    converged: Any
    result: Any
    reason: str = static(default="")


def maxvol(a: Host, limit: float = 1.05, steps: int = 200) -> tuple[Host, Host]:
    """Rows of a tall matrix whose square submatrix has a large determinant: `r` row indices, and
    `a @ inv(a[rows])`, with no entry above `limit` in modulus."""
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


class Spent(Exception):
    """The next values would exceed `max_evaluations`."""


class Sampler:
    """The function: checked, counted, bounded, and never asked twice for one entry."""

    def __init__(self, function: Callable[..., Any], batch_size: int | None, limit: int) -> None:
        self.function, self.batch_size, self.limit = function, batch_size, limit
        self.first = limit // (batch_size or 1) * (batch_size or 1)
        self.count = 0
        self.known: dict[bytes, Any] = {}
        self.dtype: Any = None

    def _call(self, indices: Host) -> Host:
        self.count += len(indices)
        values = np.asarray(read("the values of the function", self.function(indices)))
        if values.shape != (len(indices),):
            raise expected(
                f"{len(indices)} values of the function, one for each row of indices",
                f"shape {values.shape}",
                "a function of an index array (m, d) that returns (m,)",
            )
        if self.dtype is None:
            floating = jnp.issubdtype(values.dtype, jnp.inexact)
            self.dtype = np.dtype(values.dtype if floating else jnp.result_type(float))
            check_core_dtype("train", self.dtype)
        if values.dtype.kind == "V":  # bfloat16 and the like
            values = values.astype(np.float32)
        if not np.isfinite(values).all():
            where = indices[int(np.argmin(np.isfinite(values)))].tolist()
            raise expected("finite values of the function", f"NaN or infinity at index {where}")
        return values.astype(np.complex128 if np.iscomplexobj(values) else np.float64)

    def _evaluate(self, indices: Host) -> Host:
        size = self.batch_size or len(indices)
        padding = -len(indices) % size
        if self.count + len(indices) + padding > self.limit:
            raise Spent
        full = np.concatenate([indices, np.repeat(indices[-1:], padding, axis=0)])
        parts = [self._call(full[i : i + size]) for i in range(0, len(full), size)]
        return np.concatenate(parts)[: len(indices)]

    def __call__(self, indices: Host) -> Host:
        indices = np.ascontiguousarray(indices, np.int32)
        keys = [row.tobytes() for row in indices]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        if new:
            found = self._evaluate(indices[list(new.values())])
            self.known.update(zip(new, found.tolist(), strict=True))
        return np.asarray([self.known[key] for key in keys])


def evaluate(cores: Sequence[Host], indices: Host) -> Host:
    """Entries of a host train at `(m, d)` indices."""
    left = cores[0][0, indices[:, 0]]
    for k, core in enumerate(cores[1:], start=1):
        left = np.einsum("sa,asb->sb", left, core[:, indices[:, k]])
    return left[:, 0]


def _pairs(first: Host, second: Host) -> Host:
    """All rows of one array followed by those of another, the second running fastest."""
    left = np.repeat(first, len(second), axis=0)
    return np.concatenate([left, np.tile(second, (len(first), 1))], axis=1).astype(np.int32)


def _digits(n: int) -> Host:
    return np.arange(n, dtype=np.int32)[:, None]


def _independent(a: Host, floor: float, most: int) -> list[int]:
    """Columns that span the others to within a floor, by elimination with complete pivoting."""
    rest, columns = a.copy(), []
    while len(columns) < min(most, *a.shape):
        i, j = np.unravel_index(int(np.argmax(np.abs(rest))), rest.shape)
        if np.abs(rest[i, j]) <= floor:
            break
        columns.append(int(j))
        rest = rest - np.outer(rest[:, j] / rest[i, j], rest[i])
    return columns or [0]


class _Cross:
    """Index sets behind every bond, and the train that they give.

    A half sweep goes from left to right; the next one finds everything mirrored.
    """

    def __init__(
        self, sample: Sampler, modes: tuple[int, ...], rtol: float, most: Any, rng: Any
    ) -> None:
        self.sample, self.modes, self.rtol, self.rng = sample, modes, rtol, rng
        self.most = most
        self.mirrored = False
        #: Suffixes `(s_k, d - k)` behind bond k.
        d = len(modes)
        self.behind = [np.zeros((int(k == d), d - k), np.int32) for k in range(d + 1)]
        self.cores: list[Host] | None = None
        self.points = _draw(rng, modes, min(SAMPLES, sample.first))
        self.scale = 0.0

    def __call__(self, indices: Host) -> Host:
        return self.sample(indices[:, ::-1] if self.mirrored else indices)

    def join(self, points: Host) -> None:
        """Let whole multi-indices take part in the next half sweep."""
        points = points[:, ::-1] if self.mirrored else points
        for k in range(1, len(self.modes)):
            self.behind[k] = np.unique(np.concatenate([self.behind[k], points[:, k:]]), axis=0)

    def sweep(self, grow: bool) -> bool:
        """One half sweep; whether all that was seen lay within the tolerance of the train."""
        d, quiet = len(self.modes), True
        ahead, cores = [np.zeros((1, 0), np.int32)], []
        for k in range(1, d):
            rows = _pairs(ahead[-1], _digits(self.modes[k - 1]))
            columns = _pairs(_digits(self.modes[k]), self.behind[k + 1])
            most = min(len(rows), len(columns), 2**30 if self.most is None else self.most[k])
            chosen, factor, found = self._split(rows, columns, k, most, grow)
            quiet = quiet and found
            cores.append(factor.reshape(len(ahead[-1]), self.modes[k - 1], -1))
            ahead.append(rows[chosen])
        last = self(_pairs(ahead[-1], _digits(self.modes[-1])))
        cores.append(last.reshape(len(ahead[-1]), self.modes[-1], 1))
        self._turn(ahead, cores)
        return quiet

    def _turn(self, ahead: list[Host], cores: list[Host]) -> None:
        size = np.ones((1, 1))
        for core in cores:  # the mean square of the train
            size = np.einsum("ab,anc,bnd->cd", size, core, core.conj()) / core.shape[1]
        self.scale = math.sqrt(abs(size[0, 0]))
        self.cores = [core.transpose(2, 1, 0) for core in cores[::-1]] if self.mirrored else cores
        empty = np.zeros((1, 0), np.int32)
        self.behind = [empty, *(sets[:, ::-1] for sets in ahead[:0:-1]), empty]
        self.modes, self.mirrored = self.modes[::-1], not self.mirrored
        self.most = None if self.most is None else self.most[::-1]

    def _split(
        self, rows: Host, columns: Host, k: int, most: int, grow: bool
    ) -> tuple[Any, Host, bool]:
        """Rows that stand for all, the factor that interpolates between them, and the verdict.

        The block of all rows and columns is never evaluated: only the columns behind the bond, the
        rows that were chosen, and a row and a column for every pivot that is added, where entries
        drawn at random show the largest residual.
        """
        some = self(_pairs(rows, self.behind[k])).reshape(len(rows), -1)
        top = float(np.max(np.abs(some)))
        noise = 8 * float(jnp.finfo(self.sample.dtype).eps) * top
        cut = max(CUT * self.rtol * self.scale / math.sqrt(len(self.modes)), noise)
        kept = _independent(some, 0.1 * cut if self.scale else noise, most)
        chosen, factor = maxvol(np.linalg.qr(some[:, kept])[0])
        if not grow:
            return chosen, factor, True
        lines = self(_pairs(rows[chosen], columns)).reshape(len(chosen), -1)
        limit, quiet = min(most, 2 * len(chosen)), True
        while True:
            i = self.rng.integers(0, len(rows), SAMPLES)
            j = self.rng.integers(0, len(columns), SAMPLES)
            values = self(np.concatenate([rows[i], columns[j]], axis=1))
            rest = np.abs(values - np.sum(factor[i] * lines[:, j].T, axis=1))
            at = int(np.argmax(rest))
            if rest[at] <= cut:
                break
            quiet = False
            if len(chosen) >= limit:
                break
            column = self(_pairs(rows, columns[j[at]][None]))
            gap = column - factor @ lines[:, j[at]]
            row = int(np.argmax(np.abs(gap)))
            line = self(_pairs(rows[row][None], columns))
            step = (gap / gap[row])[:, None]
            factor = np.concatenate([factor - step * factor[row][None], step], axis=1)
            lines = np.concatenate([lines, line[None]])
            chosen = np.append(chosen, row)
        return chosen, factor, quiet

    def rounded(self, dtype: Any, wanted: Any) -> list[Host]:
        """Cores of least ranks: what was chosen greedily has a few too many."""
        assert self.cores is not None
        return round_cores(self.cores, 0.1 * self.rtol, wanted, dtype)[0]

    def error(self, cores: list[Host], fresh: int) -> tuple[float, Host]:
        """Relative error on all points drawn so far and some fresh ones, and the worst of them."""
        modes = self.modes[::-1] if self.mirrored else self.modes
        if fresh:
            drawn = _draw(self.rng, modes, fresh)
            self.sample(drawn)
            self.points = np.concatenate([self.points, drawn])
        values = self.sample(self.points)
        difference = values - evaluate(cores, self.points)
        order = np.argsort(-np.abs(difference))[:2]
        bad = np.abs(difference[order]) > self.rtol * float(np.sqrt(np.mean(np.abs(values) ** 2)))
        size, lost = float(np.linalg.norm(values)), float(np.linalg.norm(difference))
        relative = lost / size if size else (0.0 if lost == 0 else math.inf)
        return relative, self.points[order[bad]]


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

    Interpolation between rows of maximal volume; pivots are added where entries drawn at random
    lie off the train, until they lie within the tolerance. No entry is asked for twice.

    Args:
        function: maps an index array `(m, d)` (int32, NumPy) to `(m,)` values, real or complex.
        modes: mode sizes.
        key: draws the first index sets and the points that the error is estimated on.
        rtol: relative tolerance of the estimated error.
        max_rank: an upper bound on the ranks, one or `d - 1`.
        max_sweeps: most half sweeps.
        max_evaluations: bound on the rows that the function is given in all, those of the check
            and those that fill up a batch included. Where it ends the search, the train of the last
            complete half sweep is returned, `info.converged` is false and `info.result` not zero.
        batch_size: call the function with exactly so many rows (the last ones repeated where there
            are fewer), so that a jitted function compiles once; all at once by default.

    Returns:
        `TensorTrain` in the dtype of the function's values (integers become the default float),
        and `CrossInfo`. Takes some `2 Σ n_k r_{k-1} r_k` evaluations, all of which are remembered
        (about 150 bytes each). The error is an estimate: a peak that no index has touched stays
        unseen.

    Raises:
        ValueError: values of another shape, NaN, infinite or masked ones, rtol below 0, a call
            under jit.

    Example:
        >>> import jax, numpy as np
        >>> train, info = cross(lambda i: 1.0 / (1.0 + i.sum(axis=1)), (8,) * 6, jax.random.key(0))
        >>> bool(info.converged), int(info.evaluations) < 8**6 // 4
        (True, True)

    Reference: Dolgov & Savostyanov (2020), Comput. Phys. Commun. 246, for pivots found by samples;
    maximal volume: Goreinov et al. (2010).
    """
    modes, rtol = check_modes(modes), check_rtol(rtol)
    if traced(key):
        raise expected("a concrete key", "a traced one", "calling cross outside jit")
    key = as_key("tt.cross", key)
    if not callable(function):
        raise expected("a function of index arrays (m, d)", f"{function!r:.60}")
    max_sweeps = as_whole("max_sweeps", max_sweeps, 1)
    max_evaluations = as_whole("max_evaluations", max_evaluations, 1)
    batch_size = None if batch_size is None else as_whole("batch_size", batch_size, 1)
    if max_evaluations < (batch_size or 1):
        raise expected(f"max_evaluations of at least one batch, {batch_size}", f"{max_evaluations}")
    most = None if max_rank is None else as_ranks(len(modes), max_rank)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    sample = Sampler(function, batch_size, int(max_evaluations))
    state = _Cross(sample, modes, rtol, most, rng)
    cores, error, sweeps, reason = None, math.inf, 0, ""
    try:
        values = sample(state.points)
        state.join(state.points[[int(np.argmax(np.abs(values)))]])
        while not reason:
            sweeps += 1
            quiet = state.sweep(grow=sweeps > 1)
            cores = state.rounded(sample.dtype, most)
            error, wrong = state.error(cores, 0)
            if quiet and error <= rtol:
                error, wrong = state.error(cores, CHECKED)
            if quiet and error <= rtol:
                reason = "the estimated error is within the tolerance"
            elif sweeps >= max_sweeps:
                reason = f"max_sweeps={max_sweeps} reached"
            else:
                state.join(wrong)
    except Spent:
        reason = f"max_evaluations={max_evaluations} reached"
    if cores is None:  # not one sweep: the mean of what is known
        mean = np.mean(list(sample.known.values())) if sample.known else 0.0
        cores = [np.full((1, n, 1), mean if k == 0 else 1.0) for k, n in enumerate(modes)]
    train = TensorTrain(to_device(cores, sample.dtype or jnp.result_type(float)))
    converged = "tolerance" in reason
    code = SUCCESS if converged else NOT_CONVERGED
    ranks = np.asarray(train.ranks, np.int32)
    return train, CrossInfo(error, sample.count, sweeps, ranks, converged, code, reason)


def _draw(rng: np.random.Generator, modes: tuple[int, ...], count: int) -> Host:
    return np.stack([rng.integers(0, n, count) for n in modes], axis=1).astype(np.int32)
