"""Errors on held-out statistics of all points of a grid, from one factorisation of the others."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import matmul
from koopjax.edmd._factor import Spectral, first
from koopjax.edmd._smooth import root_metric
from koopjax.edmd._statistics import Gram


def of_any(solver: Any, train: Any, held: Gram, alphas: Array, ranks: Array) -> Array:
    """Of a solver of whatever kind: one solution a grid point."""
    whole = jnp.trace(held.target_gram)

    def score(alpha: Array, rank: Array) -> Array:
        k = solver.at(alpha, rank).compute(train).value
        error = whole + jnp.sum(k * (matmul(held.gram, k) - 2 * held.cross))
        return error / jnp.where(whole > 0, whole, 1)

    return jax.lax.map(lambda alpha: jax.lax.map(lambda rank: score(alpha, rank), ranks), alphas)


def of_filters(parts: Spectral, held: Gram, alphas: Array, ranks: Array) -> Array:
    """Of a ridge or a truncation, `K = V diag(h) c`."""
    a = matmul(parts.v.T, matmul(held.gram, parts.v))
    b = matmul(parts.v.T, held.cross)
    # The error is a quadratic form in h, so a grid point costs p² operations.
    quadratic = a * matmul(parts.c, parts.c.T)
    linear = jnp.sum(b * parts.c, axis=1)
    whole = jnp.trace(held.target_gram)

    def score(alpha: Array, rank: Array) -> Array:
        used = (parts.s > 0) & first(parts.s.shape[0], rank)
        h = jnp.where(used, parts.s / jnp.where(used, parts.s**2 + alpha, 1), 0)
        error = whole - 2 * jnp.dot(h, linear) + jnp.dot(h, matmul(quadratic, h))
        return error / jnp.where(whole > 0, whole, 1)

    return jax.vmap(lambda alpha: jax.vmap(lambda rank: score(alpha, rank))(ranks))(alphas)


def of_ranks(
    parts: Spectral, held: Gram, metric: Array | None, alphas: Array, ranks: Array
) -> Array:
    """Of reduced ranks in a metric of the targets."""
    roots = root_metric(metric, parts.c.dtype)
    keep = parts.s > 0
    measure = (lambda m: m) if roots is None else (lambda m: matmul(m, roots[0]))
    a = matmul(parts.v.T, matmul(held.gram, parts.v))
    c, b = measure(parts.c), measure(matmul(parts.v.T, held.cross))
    target = held.target_gram
    whole = jnp.trace(target if roots is None else matmul(matmul(roots[0], target), roots[0]))

    def scores(alpha: Array) -> Array:
        root = jnp.sqrt(jnp.where(keep, parts.s**2 + alpha, 1))
        w = jnp.linalg.svd((parts.s / root)[:, None] * c, full_matrices=False)[2].T
        z = matmul((parts.s / root**2)[:, None] * c, w)
        # The prediction's share along each direction: ranks are partial sums.
        gain = 2 * jnp.sum(matmul(b, w) * z, axis=0) - jnp.sum(z * matmul(a, z), axis=0)
        error = whole - jnp.cumsum(gain)[jnp.minimum(ranks, gain.shape[0]) - 1]
        return error / jnp.where(whole > 0, whole, 1)

    return jax.lax.map(scores, alphas)
