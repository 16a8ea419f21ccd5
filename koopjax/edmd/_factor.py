"""Factorisations that all solvers share, of either kind of statistics, with their diagnosis."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import matmul, pytree, qr_r
from koopjax.edmd._statistics import Gram, Statistics

# Up to this many observables the singular values are computed for the diagnosis; above, a block
# iteration on the triangular factor estimates the two extreme ones, at a small part of the cost.
EXACT = 1024
BLOCK = 8
ITERATIONS = 24
# Columns of unit norm that depend on each other differ by this many roundings of their dtype.
ROUNDINGS = 2


@pytree
class Spectral:
    """`Ψx = U diag(s) Vᵀ` with the targets in the basis U, as far as statistics hold them."""

    v: Any  # (p, p), right singular vectors
    s: Any  # (p,), singular values, falling; zero beyond the numerical rank
    c: Any  # (p, q), coordinates Uᵀ Ψy; zero beyond the numerical rank


@pytree
class Diagnosis:
    """How well the statistics determine a solution, before any ridge.

    Attributes:
        rank: numerical rank of Ψx.
        condition: largest over least retained singular value of Ψx.
        scaled: the same with the columns of Ψx scaled to unit norm, on which the error of a
            triangular solve depends (no scaling of observables changes a full-rank solution).
        largest: largest singular value of Ψx.
        tied: whether columns depend on each other, beyond those that are zero: a ridge alone then
            stands between their differences and rounding.
    """

    rank: Any
    condition: Any
    scaled: Any
    largest: Any
    tied: Any


def cut(stats: Statistics) -> float:
    """Relative size below which a squared singular value (Gram) or one itself (R) is rounding.

    `ε max(m, n)` of the matrix that is decomposed, as for a pseudo-inverse.
    """
    p = max(stats.sizes[0], 2)
    return float(jnp.finfo(stats.dtype).eps) * p


def noise(stats: Statistics) -> float:
    """Size of a singular value, with columns of unit norm, that rounded observables leave of none.

    Sums in float64 resolve what float32 observables do not: columns that depend on each other come
    out independent by their own rounding, and a solution that follows it means nothing.
    """
    return ROUNDINGS * float(jnp.finfo(stats.observed).eps) if stats.observed else 0.0


def count_of(marks: Array) -> Array:
    """How many are true, in 32 bits also where x64 is on."""
    return jnp.sum(marks, dtype=jnp.int32)


def first(n: int, count: Any) -> Array:
    """A mask of the first `count` of n."""
    return jnp.arange(n, dtype=jnp.int32) < jnp.asarray(count).astype(jnp.int32)


def blocks_of(stats: Statistics) -> tuple[Array, Array]:
    """What is factorised and its right-hand side: `(G, C)`, or `(Rxx, Rxy)`."""
    if isinstance(stats, Gram):
        return stats.gram, stats.cross
    p = stats.p
    return stats.r[:p, :p], stats.r[:p, p:]


def target_energy(stats: Statistics) -> Array:
    """`‖Ψy‖²`, the trace of the target's Gram matrix."""
    if isinstance(stats, Gram):
        return jnp.trace(stats.target_gram)
    return jnp.sum(stats.r[:, stats.p :] ** 2)


def energy(stats: Statistics) -> Array:
    """`‖Ψx‖²`, the trace of the Gram matrix."""
    if isinstance(stats, Gram):
        return jnp.trace(stats.gram)
    return jnp.sum(stats.r[:, : stats.p] ** 2)


@jax.jit
def is_finite(stats: Statistics) -> Array:
    """Whether the statistics hold no NaN or infinity."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(stats)]
    return jnp.stack(finite).all()


def column_scale(stats: Statistics, alpha: Any = 0.0) -> Array:
    """`1 / ‖ψ_i‖` with the ridge counted in, and 1 for columns that are zero."""
    squares = _column_squares(stats) + alpha
    positive = squares > 0
    return jnp.where(positive, jax.lax.rsqrt(jnp.where(positive, squares, 1)), 1)


def spectral(stats: Statistics) -> Spectral:
    """Singular values, right vectors and target coordinates of Ψx.

    Where the observables are less precise than the sums no more are kept than there are
    independent columns.
    """
    s, v, c = _decomposed(stats, jnp.ones(stats.sizes[0], stats.dtype))
    keep = _resolved(stats, s)
    if stats.observed:
        scaled = singular_values(stats, column_scale(stats))
        keep = keep & first(s.shape[0], count_of(scaled > noise(stats)))
    return Spectral(v, jnp.where(keep, s, 0), jnp.where(keep[:, None], c, 0))


def _decomposed(stats: Statistics, d: Array) -> tuple[Array, Array, Array]:
    """`Ψx diag(d) = U diag(s) Vᵀ` as `(s, V, Uᵀ Ψy)`, s falling."""
    g, rhs = blocks_of(stats)
    if isinstance(stats, Gram):
        values, v = jnp.linalg.eigh(d[:, None] * g * d[None, :])
        s, v = jnp.sqrt(jnp.maximum(values, 0))[::-1], v[:, ::-1]
        return s, v, matmul(v.T, d[:, None] * rhs) / jnp.where(s > 0, s, 1)[:, None]
    u, s, vt = jnp.linalg.svd(g * d[None, :])
    return s, vt.T, matmul(u.T, rhs)


def _resolved(stats: Statistics, s: Array) -> Array:
    """Which singular values stand out from the rounding of the sums."""
    relative = s / jnp.where(s[0] > 0, s[0], 1)
    return (relative**2 if isinstance(stats, Gram) else relative) > cut(stats)


def triangle(stats: Statistics, alpha: Any) -> tuple[Array, Array, Array]:
    """The scaled ridge problem as a triangular one: `T z = rhs`, `K = d z`.

    For a Gram matrix T is the Cholesky factor of `D (G + αI) D`; for an R factor the rows `√α I`
    are merged in, so that nothing is squared. NaN where the Cholesky factorisation breaks down.
    """
    g, rhs = blocks_of(stats)
    p = g.shape[0]
    alpha = jnp.asarray(alpha, g.dtype)
    d = column_scale(stats, alpha)
    # Columns that are zero get a one on the diagonal; their right-hand side is zero.
    dead = (~(_column_squares(stats) + alpha > 0)).astype(g.dtype)
    if isinstance(stats, Gram):
        a = d[:, None] * g * d[None, :]
        a = a + jnp.diag(alpha * d * d + dead)
        t = jnp.linalg.cholesky(a, symmetrize_input=False).T
        z = jax.scipy.linalg.solve_triangular(t, d[:, None] * rhs, trans=1)
        return t, z, d
    ridge = jnp.sqrt(alpha) * d + dead
    left = jnp.concatenate([g * d[None, :], jnp.diag(ridge)])
    right = jnp.concatenate([rhs, jnp.zeros_like(rhs)])
    r = qr_r(jnp.concatenate([left, right], axis=1))
    return r[:p, :p], r[:p, p:], d


def least_norm(stats: Statistics, alpha: Any) -> tuple[Array, Array]:
    """The ridge solution on the numerical rank of Ψx, the one of least norm, and its prediction.

    The rank is that of columns scaled to unit norm: units say nothing on which of them depend on
    each other. With `Ψx ≈ U S Vᵀ D⁻¹` on it, `K = D⁻¹V (VᵀD⁻²V + α S⁻²)⁻¹ S⁻¹ UᵀΨy`, whose
    inverse is taken by QR, so that neither S nor D is squared. The prediction `Ψx K` comes as
    `(p, q)` coordinates in the basis U.
    """
    d = column_scale(stats)
    s, v, c = _decomposed(stats, d)
    keep = first(s.shape[0], independent(stats, s))
    inverse = jnp.where(keep, 1 / jnp.where(keep, s, 1), 0)
    basis = jnp.where(keep[None, :], v / d[:, None], 0)
    below = jnp.where(keep, jnp.sqrt(alpha) * inverse, 1)
    r = qr_r(jnp.concatenate([basis, jnp.diag(below)]))
    solve = jax.scipy.linalg.solve_triangular
    k = matmul(basis, solve(r, solve(r, inverse[:, None] * c, trans=1)))
    return k, jnp.where(keep, s, 0)[:, None] * matmul(basis.T, k)


def _column_squares(stats: Statistics) -> Array:
    g, _ = blocks_of(stats)
    return jnp.diagonal(g) if isinstance(stats, Gram) else jnp.sum(g**2, axis=0)


def extremes(t: Float[Array, "p p"]) -> tuple[Array, Array]:
    """Least and largest singular value of a triangular matrix; estimates above `EXACT` rows.

    Block power iteration on `TᵀT` and its inverse, with a Rayleigh-Ritz step at the end. The least
    one is never underestimated. Infinite or NaN factors give a least value of zero.
    """
    p = t.shape[0]
    if p <= EXACT:
        values = jnp.linalg.svd(jnp.where(jnp.isfinite(t), t, 0), compute_uv=False)
        least = jnp.where(jnp.isfinite(t).all(), values[-1], 0)
        return least, values[0]
    # A fixed start without structure: the same answer on every call, no key needed.
    rows = jnp.arange(1, p + 1, dtype=t.dtype)[:, None]
    columns = jnp.arange(1, BLOCK + 1, dtype=t.dtype)[None, :]
    start = jnp.linalg.qr(jnp.cos(rows * jnp.sqrt(columns + 0.3)))[0]
    solve = jax.scipy.linalg.solve_triangular

    def up(_: int, q: Array) -> Array:
        return jnp.linalg.qr(matmul(t.T, matmul(t, q)))[0]

    def down(_: int, q: Array) -> Array:
        z = solve(t, solve(t, q, trans=1))
        return jnp.linalg.qr(jnp.where(jnp.isfinite(z), z, 0))[0]

    top = jax.lax.fori_loop(0, ITERATIONS, up, start)
    bottom = jax.lax.fori_loop(0, ITERATIONS, down, start)
    largest = jnp.linalg.svd(matmul(t, top), compute_uv=False)[0]
    least = jnp.linalg.svd(matmul(t, bottom), compute_uv=False)[-1]
    finite = jnp.isfinite(least) & jnp.isfinite(largest)
    return jnp.where(finite, least, 0), jnp.where(finite, largest, 1)


def singular_values(stats: Statistics, d: Array) -> Array:
    """Singular values of `Ψx diag(d)`, falling."""
    g, _ = blocks_of(stats)
    if isinstance(stats, Gram):
        values = jnp.linalg.eigvalsh(d[:, None] * g * d[None, :])[::-1]
        return jnp.sqrt(jnp.maximum(values, 0))
    return jnp.linalg.svd(g * d[None, :], compute_uv=False)


def independent(stats: Statistics, scaled: Array) -> Array:
    """How many columns are independent, by the singular values of scaled ones; dead ones aside."""
    return count_of(_resolved(stats, scaled) & (scaled > noise(stats)))


def tied(stats: Statistics, scaled: Array) -> Array:
    """Whether columns depend on each other, beyond those that are zero."""
    dead = count_of(~(_column_squares(stats) > 0))
    return independent(stats, scaled) + dead < stats.sizes[0]


def _from_values(stats: Statistics, scaled: Array, raw: Array) -> Diagnosis:
    rank = independent(stats, scaled)
    last = jnp.maximum(rank - 1, 0)
    # Scaled units decide on the rank; raw values beneath their own rounding can't be divided by.
    floor = jnp.finfo(stats.dtype).eps * raw[0]
    ratio = lambda s, low: jnp.where(rank > 0, s[0] / jnp.maximum(s[last], low), 1)
    tiny = jnp.finfo(stats.dtype).tiny
    return Diagnosis(
        rank.astype(jnp.int32),
        ratio(raw, jnp.maximum(floor, tiny)),
        ratio(scaled, tiny),
        raw[0],
        tied(stats, scaled),
    )


def diagnose(stats: Statistics) -> Diagnosis:
    """Numerical rank and condition of Ψx from its statistics.

    Numerics: the singular values up to `EXACT` observables, of scaled columns and of raw ones;
    above, a Cholesky factor and a few solves, and the values if that one breaks down.
    """
    p = stats.sizes[0]
    d = column_scale(stats)

    def values() -> Diagnosis:
        raw = singular_values(stats, jnp.ones_like(d))
        return _from_values(stats, singular_values(stats, d), raw)

    if p <= EXACT:
        return values()
    t, _, _ = triangle(stats, 0.0)
    least, largest = extremes(t)
    power = 2 if isinstance(stats, Gram) else 1
    healthy = ((least / largest) ** power > cut(stats)) & (least > noise(stats))

    def estimate() -> Diagnosis:
        low, high = extremes(t / d[None, :])
        return Diagnosis(
            jnp.asarray(p, jnp.int32), high / low, largest / least, high, jnp.asarray(False)
        )

    return jax.lax.cond(healthy, estimate, values)
