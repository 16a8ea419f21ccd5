"""Derivatives of least-squares solutions, from the solution itself and not through its algorithm.

Eigenvectors and singular vectors have no derivative where values coincide, and the pieces of a
rank-deficient factorisation are NaN; what is solved for has one. Each rule here is the implicit
derivative of a normal equation or a divided difference that stays finite in clusters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import matmul, semidefinite_root
from koopjax.edmd._factor import (
    EXACT,
    Spectral,
    blocks_of,
    column_scale,
    cut,
    first,
    least_norm,
    noise,
    singular_values,
    tied,
    triangle,
)
from koopjax.edmd._statistics import Gram, Statistics


def _moments(stats: Statistics) -> tuple[Array, Array]:
    """`(ΨxᵀΨx, ΨxᵀΨy)`."""
    g, rhs = blocks_of(stats)
    return (g, rhs) if isinstance(stats, Gram) else (matmul(g.T, g), matmul(g.T, rhs))


def decides(stats: Statistics, largest: Array, alpha: Any) -> Array:
    """Whether a ridge stands out from rounding, so that the solution is unique with it."""
    return alpha > max(cut(stats), noise(stats) ** 2) * largest**2


def _ridge_primal(stats: Statistics, alpha: Any) -> Array:
    """Triangular solve; pseudo-inverse where the triangle is singular to rounding."""
    t, rhs, d = triangle(stats, alpha)
    return jax.lax.cond(
        _healthy(stats, alpha, t),
        lambda: d[:, None] * jax.scipy.linalg.solve_triangular(t, rhs),
        lambda: least_norm(stats, alpha)[0],
    )


def _healthy(stats: Statistics, alpha: Any, t: Array) -> Array:
    """Whether a triangular factor of scaled columns is far enough from singular to solve with.

    A breakdown shows in the pivots, at no cost; what they hide show the singular values, which a
    diagnosis takes too, so that the compiler finds them once.
    """
    pivots = jnp.min(jnp.abs(jnp.diagonal(t)))
    limit = 4 * cut(stats)
    sound = jnp.isfinite(t).all()
    if stats.observed and stats.sizes[0] <= EXACT:
        d = column_scale(stats)
        largest = singular_values(stats, jnp.ones_like(d))[0]
        sound &= ~tied(stats, singular_values(stats, d)) | decides(stats, largest, alpha)
    elif stats.observed:
        sound &= pivots > 2 * noise(stats)
    if isinstance(stats, Gram):
        return sound & (pivots**2 > limit)
    # Where columns depend on each other, the factor's rows hold rounding on the left and anything
    # on the right; a ridge must outweigh that product, not the rounding alone.
    own = jnp.min(jnp.abs(jnp.diagonal(stats.r)[: stats.p]) * column_scale(stats))
    return sound & (pivots > limit) & ((own > limit) | (pivots**2 > limit))


@jax.custom_jvp
def ridge(stats: Statistics, alpha: Any) -> Array:
    """`argmin ‖Ψx K − Ψy‖² + α ‖K‖²`, the one of least norm where it is not unique; `(p, q)`."""
    return _ridge_primal(stats, alpha)


@ridge.defjvp
def _ridge_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # (G + αI) dK = dC − (dG + dα I) K, from differentiating the normal equations.
    stats, alpha = primals
    k = ridge(stats, alpha)
    (g, _), (dg, dc) = jax.jvp(_moments, (stats,), (tangents[0],))
    dalpha = jnp.asarray(tangents[1], k.dtype)
    return k, shifted_solve(g, alpha, dc - matmul(dg, k) - dalpha * k, stats.observed)


def shifted_solve(g: Array, alpha: Any, b: Array, observed: str = "") -> Array:
    """`(G + αI)⁻¹ b` for symmetric G, pseudo-inverse where singular; derivatives of any order."""
    fixed = jax.lax.stop_gradient(g)
    level = jax.lax.stop_gradient(jnp.asarray(alpha, g.dtype))

    def solve(_: Any, rhs: Array) -> Array:
        zero = jnp.zeros((rhs.shape[1], rhs.shape[1]), rhs.dtype)
        return _ridge_primal(Gram(fixed, rhs, zero, jnp.zeros((), rhs.dtype), observed), level)

    return jax.lax.custom_linear_solve(
        lambda z: matmul(g, z) + jnp.asarray(alpha, g.dtype) * z, b, solve, symmetric=True
    )


@jax.custom_jvp
def truncated(stats: Statistics, parts: Spectral, rank: Any) -> Array:
    """Least squares on the leading `rank` singular vectors of Ψx; `(p, q)`.

    Differentiated in the statistics; their singular values and vectors `parts` are constants.
    """
    keep = first(parts.s.shape[0], rank) & (parts.s > 0)
    inverse = jnp.where(keep, 1 / jnp.where(keep, parts.s, 1), 0)
    return matmul(parts.v, inverse[:, None] * parts.c)


@truncated.defjvp
def _truncated_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # K = f(G) C with f(λ) = 1/λ on the kept values and 0 on the others. The derivative of f(G) is
    # V (Φ ∘ Vᵀ dG V) Vᵀ with Φ the divided differences of f: −1/(λi λj) inside, 1/(λi (λi − λj))
    # across the cut, 0 outside. Only a tie across the cut is singular.
    stats, parts, rank = primals
    (_, c), (dg, dc) = jax.jvp(_moments, (stats,), (tangents[0],))
    keep = first(parts.s.shape[0], rank) & (parts.s > 0)
    values = parts.s**2
    inverse = jnp.where(keep, 1 / jnp.where(keep, values, 1), 0)
    across = inverse[:, None] * _across(values, keep)
    phi = -inverse[:, None] * inverse[None, :] + across + across.T
    v = parts.v
    inner = phi * matmul(v.T, matmul(dg, v))
    dk = matmul(v, matmul(inner, matmul(v.T, c)) + inverse[:, None] * matmul(v.T, dc))
    return truncated(stats, parts, rank), dk


def _across(values: Array, keep: Array) -> Array:
    """`1 / (λi − λj)` for i kept and j not; zero elsewhere and where they are equal."""
    gap = values[:, None] - values[None, :]
    used = keep[:, None] & ~keep[None, :] & (gap != 0)
    return jnp.where(used, 1 / jnp.where(used, gap, 1), 0)


def prediction_root(stats: Statistics, alpha: Any) -> Array:
    """A `(p, q)` matrix b with `bᵀb = Kᵀ (G + αI) K`: the ridge prediction up to a rotation.

    Where Ψ is deficient the ridge is below rounding, and b is the prediction alone.
    """
    t, rhs, _ = triangle(stats, alpha)
    return jax.lax.cond(_healthy(stats, alpha, t), lambda: rhs, lambda: least_norm(stats, alpha)[1])


def leading_vectors(stats: Statistics, alpha: Any, rank: Any, roots: Any) -> Array:
    """Leading right singular vectors of the prediction in the metric; `(q, min(p, q))`.

    Those past `rank`, and those of no energy (which would be arbitrary), are zero.
    """
    b = prediction_root(stats, alpha)
    b = b if roots is None else matmul(b, roots[0])
    _, s, wt = jnp.linalg.svd(b, full_matrices=False)
    live = s > jnp.finfo(b.dtype).eps * max(b.shape) * s[0]
    keep = first(s.shape[0], rank) & live
    return wt.T * keep[None, :].astype(b.dtype)


def _project(k: Array, p: Array, roots: Any) -> Array:
    """`K M^{1/2} P M^{-1/2}`."""
    return matmul(k, p) if roots is None else matmul(matmul(matmul(k, roots[0]), p), roots[1])


@jax.custom_jvp
def reduced(stats: Statistics, alpha: Any, rank: Any, roots: Any) -> Array:
    """The ridge solution with its prediction cut to `rank` in a metric; `(p, q)`.

    Among all K of that rank it is the minimiser of `‖(Ψx K − Ψy) M^{1/2}‖² + α ‖K M^{1/2}‖²`:
    the part of the target that the ridge solution leaves does not depend on K, so the best K of
    a rank is the best approximation of its prediction (augmented by √α K), an SVD.
    """
    w = leading_vectors(stats, alpha, rank, roots)
    return _project(ridge(stats, alpha), matmul(w, w.T), roots)


@reduced.defjvp
def _reduced_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # dP = W (Φ ∘ Wᵀ dH W) Wᵀ with H = M^{1/2} Kᵀ C M^{1/2} and Φ = 1/(λi − λj) across the cut.
    stats, alpha, rank, roots = primals

    def product(stats: Statistics, alpha: Any) -> tuple[Array, Array]:
        k = ridge(stats, alpha)
        h = matmul(k.T, _moments(stats)[1])
        h = h if roots is None else matmul(matmul(roots[0], h), roots[0])
        return k, (h + h.T) / 2

    (k, h), (dk, dh) = jax.jvp(product, (stats, alpha), tangents[:2])
    values, w = jnp.linalg.eigh(h)
    live = values > jnp.finfo(h.dtype).eps * h.shape[0] * values[-1]
    keep = first(h.shape[0], rank)[::-1] & live
    across = _across(values, keep)
    p = matmul(w * keep[None, :].astype(w.dtype), w.T)
    dp = matmul(w, matmul((across + across.T) * matmul(w.T, matmul(dh, w)), w.T))
    return reduced(stats, alpha, rank, roots), _project(dk, p, roots) + _project(k, dp, roots)


def root_metric(metric: Array | None, dtype: Any) -> tuple[Array, Array] | None:
    """`M^{1/2}` and its inverse, the spectrum floored; None for the identity.

    The floor `ε^{3/4} λ_max` gives directions that M does not see a small weight of their own:
    ranks that M has no use for go to the plain prediction error, and the full rank gives back the
    unconstrained solution instead of its projection on the range of M.
    """
    if metric is None:
        return None
    fixed = jax.lax.stop_gradient(jnp.asarray(metric, dtype))
    root = semidefinite_root(fixed, float(jnp.finfo(dtype).eps) ** 0.75)
    return root.symmetric, root.inverse
