"""Kernel regression by one factorisation of the samples' kernel matrix."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from koopjax._core import matmul
from koopjax.observables import ProductKernel

# Steps of power iteration; the largest eigenvalue of a positive kernel stands out.
POWER_STEPS = 10
# Corrections by the residual after a solve with the factor.
REFINEMENTS = 2


@jax.jit
def kernel_matrix(psi: ProductKernel, x: Float[Array, "n d"]) -> Float[Array, "n m"]:
    """The kernel's values at states, in their dtype."""
    return psi(x)


@jax.jit
def largest_eigenvalue(k: Float[Array, "m m"]) -> Array:
    """Of a symmetric matrix without negative eigenvalues, from below, to a few per cent."""

    def step(v: Array, _: None) -> tuple[Array, Array]:
        w = matmul(k, v)
        size = jnp.sqrt(jnp.sum(w**2))
        return w / jnp.where(size > 0, size, 1), size

    start = jnp.full(k.shape[0], k.shape[0] ** -0.5, k.dtype)
    return jax.lax.scan(step, start, length=POWER_STEPS)[1][-1]


@jax.jit
def factor(k: Float[Array, "m m"], damping: Array) -> Float[Array, "m m"]:
    """Lower Cholesky factor of `k + damping I`; NaN where that is not positive."""
    diagonal = jnp.arange(k.shape[0])
    damped = k.at[diagonal, diagonal].add(jnp.asarray(damping, k.dtype))
    return jax.lax.linalg.cholesky(damped, symmetrize_input=False)


@jax.jit
def square_of(lower: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """`Lᵀ L`."""
    return matmul(lower.T, lower)


def substitute(lower: Array, b: Array) -> Array:
    """`(L Lᵀ)⁻¹ b`."""
    half = solve_triangular(lower, b, lower=True)
    return solve_triangular(lower, half, lower=True, trans=1)


def condition(lower: Float[Array, "m m"], largest: Array) -> Array:
    """The largest eigenvalue over the smallest pivot: a lower estimate of the condition number."""
    return largest / jnp.min(jnp.diagonal(lower)) ** 2


def norm(a: Array) -> Array:
    """Frobenius norm."""
    return jnp.sqrt(jnp.sum(a**2))


def ratio(a: Array, b: Array) -> Array:
    """`‖a‖ / ‖b‖`, with `‖b‖` taken as one where it vanishes."""
    size = norm(b)
    return norm(a) / jnp.where(size > 0, size, 1)


@jax.jit
def solve_factored(k: Array, lower: Array, y: Array, alpha: Array) -> tuple[Array, Array]:
    """`(k + alpha I)⁻¹ y` with refinement, and its relative residual."""
    alpha = jnp.asarray(alpha, k.dtype)
    c = substitute(lower, y)
    rest = y - matmul(k, c) - alpha * c
    for _ in range(REFINEMENTS):
        after = c + substitute(lower, rest)
        rest_after = y - matmul(k, after) - alpha * after
        # A factor without correct digits would make it worse.
        better = ratio(rest_after, y) < ratio(rest, y)
        c, rest = jnp.where(better, after, c), jnp.where(better, rest_after, rest)
    return c, ratio(rest, y)


@jax.jit
def solve_least_norm(k: Array, y: Array) -> tuple[Array, Array, Array]:
    """The solution of least norm over the full dictionary, by eigenvalues.

    Returns:
        Coefficients, the numerical rank, and the condition over it.
    """
    values, vectors = jnp.linalg.eigh(k)
    cutoff = k.shape[0] * jnp.finfo(k.dtype).eps * values[-1]
    kept = values > cutoff
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    c = matmul(vectors, inverse[:, None] * matmul(vectors.T, y))
    rank = jnp.sum(kept)
    return c, rank, values[-1] * jnp.max(inverse)


@jax.jit
def fitted(k: Array, c: Array, y: Array) -> tuple[Array, Array]:
    """Relative residual on the samples, and how much larger the terms are than the target."""
    return ratio(matmul(k, c) - y, y), ratio(matmul(jnp.abs(k), jnp.abs(c)), y)
