"""Least squares over a dictionary small enough to be formed, and its coefficients as a train.

It is formed on a set of multi-indices: all whose degrees sum to at most a total, which is the full
product where the total is as large as all degrees together. Sets of this kind are closed downwards,
so that a change of basis by triangular matrices, one a coordinate, maps a set to itself.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import blocks, expected, matmul, pytree, qr_r
from koopjax.observables import Polynomial1D, Trigonometric
from koopjax.tensor_edmd._dictionary import factors_of, tail_norms

_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class IndexPlan:
    """A set of multi-indices, static: `grades[k][i]` is the degree of function i in mode k.

    Attributes:
        grades: degrees of the functions, mode by mode.
        total: the largest sum of degrees.
    """

    grades: tuple[tuple[int, ...], ...]
    total: int

    @property
    def modes(self) -> tuple[int, ...]:
        """Mode sizes."""
        return tuple(len(g) for g in self.grades)

    @property
    def size(self) -> int:
        """How many multi-indices there are (counted, not listed)."""
        return _count(self.grades, self.total)

    def indices(self) -> np.ndarray:
        """`(p, d)`, in lexicographic order."""
        return _tuples(self.grades, self.total)

    def tails(self, k: int) -> int:
        """Number of distinct tails `(i_k, ..., i_{d-1})`; 1 for k = d."""
        return _count(self.grades[k:], self.total)

    def heads(self, k: int) -> int:
        """Number of distinct beginnings `(i_0, ..., i_{k-1})`."""
        return _count(self.grades[:k], self.total)

    def split(self, k: int) -> np.ndarray:
        """`(n_k, tails of k+1)`: where first index and tail lie among the tails of k.

        An index one beyond the last says that they don't.
        """
        where = _positions(self.grades[k:], self.total)
        tails = _tuples(self.grades[k + 1 :], self.total).tolist()
        first = range(len(self.grades[k]))
        return _looked_up(where, [[(i, *tail) for tail in tails] for i in first])

    def exchange(self, k: int) -> np.ndarray:
        """`(p, n_k)`: where each multi-index lies with its k-th entry replaced by 0, 1, ..."""
        rows, entries = self.indices().tolist(), range(len(self.grades[k]))
        where = _positions(self.grades, self.total)
        return _looked_up(where, [[(*r[:k], i, *r[k + 1 :]) for i in entries] for r in rows])


def full_plan(modes: tuple[int, ...]) -> IndexPlan:
    """All multi-indices."""
    grades = tuple(tuple(range(n)) for n in modes)
    return IndexPlan(grades, sum(n - 1 for n in modes))


def graded_plan(product: Any, total: Any) -> IndexPlan:
    """The multi-indices up to a total degree of a product of polynomials or Fourier series."""
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise expected("total_degree as an integer of at least 0", repr(total), "total_degree=3")
    grades = []
    for factor in getattr(product, "factors", ()):
        if isinstance(factor, Polynomial1D):
            grades.append(tuple(range(factor.degree + 1)))
        elif isinstance(factor, Trigonometric):
            grades.append(tuple((i + 1) // 2 for i in range(2 * factor.order + 1)))
        else:
            raise expected(
                "families with a degree (Polynomial1D, Trigonometric) for total_degree",
                type(factor).__name__,
                "total_degree=None",
            )
    if not grades:
        raise expected(
            "one mode a coordinate for total_degree", type(product).__name__, "form='coordinate'"
        )
    return IndexPlan(tuple(grades), min(total, sum(max(g) for g in grades)))


@functools.lru_cache(maxsize=256)
def _count(grades: tuple[tuple[int, ...], ...], total: int) -> int:
    ways = [1] + [0] * total
    for grade in grades:
        ways = [sum(ways[t - g] for g in grade if g <= t) for t in range(total + 1)]
    return sum(ways)


@functools.lru_cache(maxsize=256)
def _tuples(grades: tuple[tuple[int, ...], ...], total: int) -> np.ndarray:
    if not grades:
        return np.zeros((1, 0), np.int32)
    parts = []
    for i, g in enumerate(grades[0]):
        if g <= total:
            tails = _tuples(grades[1:], total - g)
            parts.append(np.concatenate([np.full((len(tails), 1), i, np.int32), tails], axis=1))
    return np.concatenate(parts)


def _positions(grades: tuple[tuple[int, ...], ...], total: int) -> dict[tuple[int, ...], int]:
    return {tuple(row): j for j, row in enumerate(_tuples(grades, total).tolist())}


def _looked_up(where: dict[tuple[int, ...], int], table: list[list[tuple]]) -> np.ndarray:
    return np.array([[where.get(index, len(where)) for index in row] for row in table], np.int32)


@pytree
class Solved:
    """What both solvers return: padded cores, their ranks, and what was found out on the way."""

    cores: Any
    ranks: Any
    condition: Any
    rank: Any
    finite: Any


def design(factors: list[Array], plan: IndexPlan) -> Array:
    """The columns of a set of multi-indices, `(n, p)`."""
    indices = plan.indices()
    out = jnp.take(factors[0], indices[:, 0], axis=1)
    for k in range(1, len(factors)):
        out = out * jnp.take(factors[k], indices[:, k], axis=1)
    return out


def _triangles(psi: Any, x: Array, y: Array, plan: IndexPlan) -> tuple[Array, list[Array]]:
    """R factors of `[Ψ, y]` and of every mode's functions, merged over blocks of samples."""
    q = y.shape[1]
    p = plan.size
    rows = min(x.shape[0], max(_ROWS, p + q))
    x_blocks, weights = blocks(x, rows)
    y_blocks, _ = blocks(y, rows)

    def step(carry: tuple, block: tuple) -> tuple[tuple, None]:
        r, small = carry
        xb, yb, w = block
        factors = [f.astype(y.dtype) * w[:, None] for f in factors_of(psi, xb)]
        lifted = jnp.concatenate([design(factors, plan), yb * w[:, None]], axis=1)
        r = qr_r(jnp.concatenate([r, lifted]))
        small = [qr_r(jnp.concatenate([s, f])) for s, f in zip(small, factors, strict=True)]
        return (r, small), None

    small = [jnp.zeros((n, n), y.dtype) for n in plan.modes]
    start = jnp.zeros((p + q, p + q), y.dtype), small
    return jax.lax.scan(step, start, (x_blocks, y_blocks, weights))[0]


def _least_squares(r: Array, p: int, alpha: Array, cutoff: Array) -> tuple[Array, ...]:
    """`(coefficients, condition, rank, gain)` by the SVD of R; gain: noise to coefficients."""
    u, s, vt = jnp.linalg.svd(r[:p, :p])
    kept = s > cutoff * s[0]
    safe = jnp.where(kept, s, 1)
    weight = jnp.where(kept, safe / (safe**2 + alpha), 0)
    value = matmul(vt.T, weight[:, None] * matmul(u.T, r[:p, p:]))
    smallest = jnp.min(jnp.where(kept, s, jnp.inf))
    smallest = jnp.where(kept.any(), smallest, 1)
    condition = jnp.sqrt((s[0] ** 2 + alpha) / (smallest**2 + alpha))
    condition = jnp.where(kept.any(), condition, 1)
    return value, condition, jnp.sum(kept), jnp.sqrt(jnp.sum(weight**2))


def _bases(small: list[Array], count: int) -> tuple[list[Array], list[Array]]:
    """Triangular `L` with `f = Q L` for every mode, floored so that it can be inverted.

    Small directions are kept from shrinking below `eps^(1/d)` of the largest, so that what rounding
    leaves in all modes together stays within the range of the dtype.
    """
    dtype = small[0].dtype
    floor = float(jnp.finfo(dtype).eps) ** (1 / max(len(small), 2))
    forward, back = [], []
    for r in small:
        n = r.shape[0]
        scale = jnp.sqrt(jnp.sum(r**2))
        scale = jnp.where(scale > 0, scale, 1)
        eye = jnp.eye(n, dtype=dtype)
        l_k = qr_r(jnp.concatenate([r / scale, floor * eye])) * scale / jnp.sqrt(1.0 * count)
        forward.append(l_k)
        back.append(jax.scipy.linalg.solve_triangular(l_k, eye))
    return forward, back


def _padded(values: Array, where: Any) -> Array:
    """Take along the second axis, with zeros where an index is one beyond the last."""
    zero = jnp.zeros_like(values[:, :1])
    return jnp.take(jnp.concatenate([values, zero], axis=1), where, axis=1)


def _tail_sums(a: Array) -> Array:
    """`out[r] = Σ_{i,j ≥ r} a_ij` for r = 0, ..., n."""
    sums = jnp.flip(jnp.cumsum(jnp.cumsum(jnp.flip(a), 0), 1))
    return jnp.concatenate([jnp.diagonal(sums), jnp.zeros(1, a.dtype)])


def _tail_scales(plan: IndexPlan, back: list[Array]) -> list[Array]:
    """How large coefficients of norm 1 on the data may be plainly, over the tails of every k."""
    scale = jnp.ones(1, back[0].dtype)
    out = [scale[0]]
    for k in reversed(range(len(back))):
        spread = jnp.abs(jnp.diagonal(back[k]))[:, None] * scale[None, :]
        where = plan.split(k)
        size = plan.tails(k)
        scale = jnp.zeros(size + 1, scale.dtype).at[where.ravel()].set(spread.ravel())[:size]
        out.append(jnp.sqrt(jnp.sum(scale**2)))
    return out[::-1]


def units(y: Array) -> Array:
    """A power of two near each output's spread, or near its size where it does not vary."""
    y = jax.lax.stop_gradient(y)
    largest = jnp.max(jnp.abs(y), axis=0)
    # In units of the largest, since squares may leave the range of the dtype.
    spread = largest * jnp.std(y / jnp.where(largest > 0, largest, 1)[None, :], axis=0)
    varies = spread > 4 * jnp.finfo(y.dtype).eps * largest
    size = jnp.where(varies, spread, jnp.where(largest > 0, largest, 1))
    return jnp.ldexp(jnp.ones((), y.dtype), jnp.frexp(size)[1] - 1)


def sparse_train(
    value: Array,
    plan: IndexPlan,
    bases: tuple[list[Array], list[Array]],
    rtol: Array,
    noise: Array,
    max_rank: int | None,
) -> tuple[tuple[Array, ...], Array]:
    """Coefficients `(p, q)` on a set of multi-indices as a train, rounded.

    TT-SVD from the left, of the coefficients in bases that are orthonormal on the data coordinate
    by coordinate: what is cut changes predictions least. A rank is the least at which neither the
    predictions nor the plain coefficients change by more than `rtol`, the former relative to the
    outputs' spread and over all bonds together, the latter only as far as they stand out from
    `noise` (absolute, in the Frobenius norm). Outputs are in units of their spread, `bases` the
    triangular `L_k` and their inverses.

    Returns:
        Cores padded by zeros to ranks that the shapes allow, and the ranks `(d - 1,)`.
    """
    forward, back = bases
    d, q = len(plan.modes), value.shape[1]
    plain = value[None]
    data = value[None]
    for k in range(d):
        entry = plan.indices()[:, k]
        gathered = _padded(data, plan.exchange(k))
        data = jnp.einsum("pj,rpjq->rpq", forward[k][entry], gathered, precision="highest")
    share = 1 / math.sqrt(max(d - 1, 1))
    eps = float(jnp.finfo(value.dtype).eps)
    norm = jnp.sqrt(jnp.sum(data**2))
    data_limit = jnp.maximum(rtol * share * jnp.minimum(norm, math.sqrt(q)), 8 * eps * norm)
    plain_limit = jnp.maximum(rtol * share * jnp.sqrt(jnp.sum(plain**2)), noise)
    scales = _tail_scales(plan, back)
    left_gram = jnp.ones((1, 1), value.dtype)
    cores, ranks = [], []
    for k in range(d - 1):
        r, n = data.shape[0], plan.modes[k]
        where, tails = plan.split(k), plan.tails(k + 1)
        tail = _padded(data, where).reshape(r * n, tails * q)
        tail_plain = jnp.einsum(
            "ij,rjsq->risq", forward[k], _padded(plain, where), precision="highest"
        ).reshape(r * n, tails * q)
        u, s, _ = jnp.linalg.svd(tail, full_matrices=False)
        inner = matmul(back[k].T, back[k])
        left_gram = jnp.einsum("ab,ij->aibj", left_gram, inner).reshape(r * n, r * n)
        rows = matmul(u.T, tail_plain)
        gram_u = matmul(u.T, matmul(left_gram, u))
        cut = jnp.sqrt(jnp.maximum(_tail_sums(gram_u * matmul(rows, rows.T)), 0))
        lost = tail_norms(jnp.append(s, 0) ** 2)
        # What rounding in the SVD alone comes to in plain coefficients says nothing.
        floor = 8 * eps * s[0] * jnp.sqrt(jnp.trace(left_gram)) * scales[k + 1]
        needed = (cut > jnp.maximum(plain_limit, floor)) | (lost > data_limit)
        order = jnp.arange(needed.shape[0])
        rank = jnp.maximum(jnp.max(jnp.where(needed, order + 1, 0)), 1)
        width = min(u.shape[1], plan.heads(k + 1), max_rank or u.shape[1])
        rank = jnp.minimum(rank, width)
        u = u[:, :width] * (order[:width] < rank)[None, :].astype(u.dtype)
        core = jnp.einsum("ij,rjt->rit", back[k], u.reshape(r, n, width), precision="highest")
        cores.append(core[:, :, None, :])
        ranks.append(rank)
        data = matmul(u.T, tail).reshape(width, tails, q)
        plain = matmul(u.T, tail_plain).reshape(width, tails, q)
        left_gram = matmul(u.T, matmul(left_gram, u))
    last = plan.split(d - 1)[:, 0]
    cores.append(_padded(plain, last)[:, :, :, None])
    return tuple(cores), jnp.asarray(ranks, jnp.int32).reshape(d - 1)


@functools.partial(jax.jit, static_argnames=("plan", "max_rank"))
def solve_primal(
    psi: Any,
    x: Array,
    y: Array,
    alpha: Array,
    cutoff: Array,
    rtol: Array,
    *,
    plan: IndexPlan,
    max_rank: int | None,
) -> Solved:
    """Least squares by R factors and an SVD, then the train; all shapes static."""
    m, (p, q) = x.shape[0], (plan.size, y.shape[1])
    unit = units(y)
    y = y / unit[None, :]
    r, small = _triangles(psi, x, y, plan)
    finite = jnp.isfinite(r).all()
    # A factorisation of NaN gives NaN or never ends; the code says what happened.
    r = jnp.where(finite, r, jnp.eye(p + q, dtype=r.dtype))
    small = [jnp.where(finite, s, jnp.eye(s.shape[0], dtype=s.dtype)) for s in small]
    value, condition, rank, gain = _least_squares(r, p, alpha, cutoff)
    misfit = matmul(r[:p, :p], value) - r[:p, p:]
    squared = jnp.sum(misfit**2) + jnp.sum(r[p:, p:] ** 2)
    freedom = jnp.maximum(m - rank, 1) * q
    least = 4 * float(jnp.finfo(y.dtype).eps) * jnp.sqrt(jnp.sum(r[:, p:] ** 2) / (m * q))
    sigma = jnp.maximum(jnp.where(m > rank, jnp.sqrt(squared / freedom), 0), least)
    noise = 2 * sigma * gain * math.sqrt(q)
    cores, ranks = sparse_train(value, plan, _bases(small, m), rtol, noise, max_rank)
    cores = (*cores[:-1], cores[-1] * unit[None, None, :, None])
    cores = tuple(jnp.where(finite, core, jnp.nan) for core in cores)
    return Solved(cores=cores, ranks=ranks, condition=condition, rank=rank, finite=finite)
