"""Least squares of least norm where functions outnumber samples: Gram matrices over the samples.

The solution is `K = Ψᵀ w` with `(Ψ Ψᵀ + α) w = y`, and `Ψ Ψᵀ` is the entrywise product of the
modes' own Gram matrices. So K is a sum of rank-one tensors, `f_1(x_s) ⊗ ... ⊗ f_d(x_s) ⊗ w_s`
over the samples, which is rounded to a train from the left: the Gram matrix of an unfolding of it
comes from the same entrywise products.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import matmul, traced
from koopjax.tensor_edmd._dictionary import outer, tail_norms

#: Below this, relative to the largest, eigenvectors of a Gram matrix mean nothing.
FLOOR = 1e-7
# Unfoldings with fewer rows are taken apart whole, others within a subspace of so many more rows
# than the rank of the bond before has.
_WHOLE = 192
# All products from the right are kept while they take no more than this.
_KEPT_BYTES = 2**30


@jax.jit
def products(factors: list[Array]) -> list[Array]:
    """`Π_{j ≥ k} f_j f_jᵀ`, entrywise, for every k: `(m, m)` each."""
    out = [matmul(factors[-1], factors[-1].T)]
    for f in factors[-2::-1]:
        out.append(out[-1] * matmul(f, f.T))
    return out[::-1]


def suffixes(factors: list[Array]) -> list[Array] | None:
    """`products`, where they take little memory; None where not."""
    m = factors[0].shape[0]
    small = len(factors) * m * m * factors[0].dtype.itemsize <= _KEPT_BYTES
    return products(factors) if small else None


@jax.jit
def cross_product(first: list[Array], second: list[Array]) -> Array:
    """`Π_j f_j g_jᵀ`, entrywise: the Gram matrix between two sets of samples."""
    parts = [matmul(f, g.T) for f, g in zip(first, second, strict=True)]
    return math.prod(parts[1:], start=parts[0])


def _extremes(gram: Array, solve: Any, steps: int = 12) -> tuple[Array, Array]:
    """Largest and least eigenvalue by power and inverse iteration, to a digit or so."""
    m = gram.shape[0]
    start = jnp.cos(jnp.arange(m, dtype=gram.dtype) * 1.7) + 0.1
    unit = lambda v: v / jnp.sqrt(jnp.sum(v**2))

    def both(_: Any, pair: tuple) -> tuple:
        return unit(matmul(gram, pair[0])), unit(solve(pair[1]))

    top, low = jax.lax.fori_loop(0, steps, both, (unit(start), unit(start)))
    return jnp.vdot(top, matmul(gram, top)), 1 / jnp.vdot(low, solve(low))


def dual_weights(
    gram: Array, y: Array, alpha: Array, cutoff: Array, *, exact: bool
) -> tuple[Array, Array, Array]:
    """`(w, condition of Ψ, numerical rank)`.

    Cholesky where it goes through with digits to spare; it keeps the small eigenvalues of a matrix
    whose scales are graded better than an eigendecomposition does. Else, and where it is to be
    exact, the eigenvectors of singular values of Ψ beyond the cutoff, relative.
    """
    m = gram.shape[0]
    eps = float(jnp.finfo(gram.dtype).eps)
    shifted = gram + alpha * jnp.eye(m, dtype=gram.dtype)

    def spectral() -> tuple[Array, Array, Array]:
        values, vectors = jnp.linalg.eigh(gram)
        top = values[-1]
        kept = values > jnp.maximum(cutoff**2, m * eps) * top
        weight = jnp.where(kept, 1 / (jnp.where(kept, values, 1) + alpha), 0)
        least = jnp.min(jnp.where(kept, values, top))
        ratio = jnp.where(top > 0, jnp.sqrt((top + alpha) / (least + alpha)), 1)
        w = matmul(vectors, weight[:, None] * matmul(vectors.T, y))
        return w, ratio, jnp.sum(kept).astype(jnp.int32)

    if exact:
        return spectral()
    factor = jnp.linalg.cholesky(shifted)
    solve = functools.partial(jax.scipy.linalg.cho_solve, (factor, True))
    top, least = _extremes(shifted, lambda v: solve(v))
    w = solve(y)
    misfit = jnp.sqrt(jnp.sum((matmul(shifted, w) - y) ** 2) / jnp.sum(y**2))
    good = jnp.isfinite(w).all() & (least > 4 * eps * top) & (misfit < eps**0.5)
    return jax.lax.cond(
        good, lambda: (w, jnp.sqrt(top / least), jnp.asarray(m, jnp.int32)), spectral
    )


@jax.jit
def _basis(left: Array, factor: Array, right: Array, w: Array) -> tuple[Array, Array, Array]:
    """Eigenvectors of an unfolding's Gram matrix, the largest first, and norms of the tails."""
    a = outer(left, factor)
    weighted = matmul(right * matmul(w, w.T), a)
    values, vectors = jnp.linalg.eigh(matmul(a.T, weighted))
    values = jnp.maximum(values[::-1], 0)
    return a, vectors[:, ::-1], tail_norms(values)


@functools.partial(jax.jit, static_argnames="width")
def _sketched_basis(
    left: Array, factor: Array, right: Array, w: Array, before: Array, *, width: int
) -> tuple[Array, Array, Array]:
    """As `_basis`, within a subspace that one power of the Gram matrix finds.

    What the subspace misses is known, `before² - trace`, and counted into every tail.
    """
    a = outer(left, factor)
    weights = right * matmul(w, w.T)
    # Fixed numbers in general position: their part in the answer is measured, not trusted.
    probe = jnp.cos(jnp.arange(a.shape[1] * width, dtype=a.dtype) ** 2 * 0.7548776662)
    found = matmul(a.T, matmul(weights, matmul(a, probe.reshape(a.shape[1], width))))
    q = jnp.linalg.qr(found)[0]
    inside = matmul(a, q)
    values, vectors = jnp.linalg.eigh(matmul(inside.T, matmul(weights, inside)))
    values = jnp.maximum(values[::-1], 0)
    missed = jnp.maximum(before**2 - jnp.sum(values), 0)
    return a, matmul(q, vectors[:, ::-1]), tail_norms(jnp.append(values, missed))


@functools.partial(jax.jit, static_argnames="width")
def restrict(a: Array, vectors: Array, rank: Array, *, width: int) -> tuple[Array, Array]:
    """The first columns up to a rank, zeros beyond, and what samples have along them."""
    kept = (jnp.arange(width) < rank).astype(a.dtype)
    u = vectors[:, :width] * kept[None, :]
    return u, matmul(a, u)


@jax.jit
def _last(left: Array, factor: Array, w: Array) -> tuple[Array, Array]:
    a = outer(left, factor)
    core = matmul(a.T, w)
    shape = (left.shape[1], factor.shape[1], w.shape[1], 1)
    return core.reshape(shape), matmul(a, core)


def bucket(rank: int, most: int) -> int:
    """A width for a rank: one of few, so that ranks from other data meet compiled shapes."""
    step = max(1, 2 ** (max(rank - 1, 1).bit_length() - 3))
    return min(-(-rank // step) * step, most)


def canonical_train(
    factors: list[Array],
    w: Array,
    rtol: float,
    max_rank: int | None,
    kept: list[Array] | None = None,
    share: Any = 1.0,
) -> tuple[tuple[Array, ...], Any, Array]:
    """`Σ_s f_1[s] ⊗ ... ⊗ f_d[s] ⊗ w_s` as a train with the outputs in the last core, rounded.

    `rtol` is of the Frobenius norm, all bonds together: of a `share` of it, and at least `FLOOR` of
    the whole. While tracing `max_rank` is the rank of every core.

    Returns:
        Cores (padded by zeros beyond the ranks), the ranks, and `(m, q)` the train at the samples.

    Numerics:
        Operations `O(m² Σ r_k n_k + Σ (r_k n_k)³)`; memory `O(m²)`, `d m²` where that is small.
    """
    d, m, known = len(factors), w.shape[0], not traced(factors, w)
    # What is known is looked at on the host, where nothing is compiled for it.
    xp: Any = np if known else jnp
    kept = suffixes(factors) if kept is None else kept
    left = jnp.ones((m, 1), w.dtype)
    limit: Any = None
    held: Any = None
    cores, ranks = [], []
    for k, factor in enumerate(factors[:-1]):
        right = cross_product(factors[k + 1 :], factors[k + 1 :]) if kept is None else kept[k + 1]
        rows, enough = left.shape[1] * factor.shape[1], False
        parts: Any = None
        guess = bucket(left.shape[1] + left.shape[1] // 2 + 32, rows)
        if known and k and rows > _WHOLE and guess < 0.75 * rows:
            parts = _sketched_basis(left, factor, right, w, held, width=guess)
            enough = float(parts[2][guess - 4]) <= limit
        a, vectors, tails = parts if enough else _basis(left, factor, right, w)
        tails = xp.asarray(tails)
        if k == 0:
            most = xp.maximum(rtol * xp.asarray(share), FLOOR) * tails[0]
            limit = most / math.sqrt(max(d - 1, 1))
        most = min(a.shape[1], max_rank or a.shape[1])
        rank = xp.clip(xp.sum(tails > limit), 1, most)
        held = xp.sqrt(xp.maximum(tails[0] ** 2 - xp.append(tails, 0)[rank] ** 2, 0))
        width = bucket(int(rank), most) if known else most
        u, after = restrict(a, vectors, rank, width=width)
        cores.append(u.reshape(left.shape[1], -1, 1, width))
        ranks.append(rank)
        left = after
    core, values = _last(left, factors[-1], w)
    return (*cores, core), ranks, values


def sliced(cores: tuple[Array, ...], ranks: Any) -> tuple[np.ndarray, ...]:
    """Padded cores cut to their ranks, on the host."""
    sizes = [1, *(int(r) for r in ranks), 1]
    return tuple(np.asarray(core)[: sizes[k], :, :, : sizes[k + 1]] for k, core in enumerate(cores))


@jax.jit
def all_finite(cores: tuple[Array, ...]) -> Array:
    """Whether all numbers are."""
    return jnp.stack([jnp.isfinite(core).all() for core in cores]).all()
