"""Kernel regression: one factorisation where the kernel matrix fits, else conjugate gradients.

All outputs are iterated together, each with its own step lengths, so that one evaluation of a
block of the kernel serves all of them.
"""

import functools
from collections.abc import Callable
from typing import Any

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
# Rows in a block: the block is read while it is in the cache, the product long enough.
BLOCK = 2**22


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


def substitute(lower: Array, b: Array) -> Array:
    """`(L Lᵀ)⁻¹ b`."""
    half = solve_triangular(lower, b, lower=True)
    return solve_triangular(lower, half, lower=True, trans=1)


@jax.jit
def sound(lower: Array) -> Array:
    """Whether a Cholesky factor has pivots: it is NaN from the first one that is not positive."""
    return jnp.isfinite(jnp.sum(jnp.diagonal(lower)))


@jax.jit
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
    """The solution of least norm by eigenvalues, the numerical rank, and the condition over it."""
    values, vectors = jnp.linalg.eigh(k)
    cutoff = k.shape[0] * jnp.finfo(k.dtype).eps * values[-1]
    kept = values > cutoff
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    c = matmul(vectors, inverse[:, None] * matmul(vectors.T, y))
    rank = jnp.sum(kept)
    return c, rank, values[-1] * jnp.max(inverse)


@jax.jit
def errors(stacked: Array, y: Array) -> Array:
    """Relative errors of predictions that stand side by side."""
    return jnp.stack(
        [ratio(p - y, y) for p in jnp.split(stacked, stacked.shape[1] // y.shape[1], 1)]
    )


@jax.jit
def fitted(k: Array, c: Array, y: Array) -> tuple[Array, Array]:
    """Relative residual on the samples, and how much larger the terms are than the target."""
    return ratio(matmul(k, c) - y, y), ratio(matmul(jnp.abs(k), jnp.abs(c)), y)


def conjugate_gradients(
    apply: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    b: Float[Array, "m q"],
    tolerance: float,
    most: int,
) -> tuple[Array, Array, Array]:
    """`A x = b` for every column: x, the worst relative residual, the number of iterations.

    `apply` multiplies by the positive definite `A`, `precondition` by about its inverse. Columns
    below the tolerance wait for the others.
    """
    size = jnp.sqrt(jnp.sum(b**2, axis=0))
    size = jnp.where(size > 0, size, 1)
    worst = lambda r: jnp.max(jnp.sqrt(jnp.sum(r**2, axis=0)) / size)
    z = precondition(b)
    start = jnp.zeros_like(b), b, z, jnp.sum(b * z, axis=0), jnp.zeros((), jnp.int32)

    def unfinished(state: tuple) -> Array:
        return (worst(state[1]) > tolerance) & (state[-1] < most)

    def step(state: tuple) -> tuple:
        x, r, p, rz, count = state
        ap = apply(p)
        curvature = jnp.sum(p * ap, axis=0)
        length = jnp.where(curvature > 0, rz / jnp.where(curvature > 0, curvature, 1), 0)
        x, r = x + length[None, :] * p, r - length[None, :] * ap
        z = precondition(r)
        after = jnp.sum(r * z, axis=0)
        turn = jnp.where(rz > 0, after / jnp.where(rz > 0, rz, 1), 0)
        return x, r, z + turn[None, :] * p, after, count + 1

    x, r, _, _, count = jax.lax.while_loop(unfinished, step, start)
    return x, worst(r), count


def over_blocks(
    psi: ProductKernel, x: Array, stored: Array | None, use: Any, start: Any, rows: int | None
) -> Any:
    """A sum over blocks of rows of `psi(x)`, from what is stored or computed again.

    `use` takes a block, the numbers of its rows and their weights (zero for rows that were seen
    before) to the block's term.
    """
    n, m = x.shape[0], psi.centers.shape[0]
    rows = max(128, BLOCK // m) if rows is None else rows
    rows = min(n, rows)
    source = x if stored is None else stored

    def step(total: Any, first: Array) -> tuple[Any, None]:
        begin = jnp.minimum(first, n - rows)
        block = jax.lax.dynamic_slice_in_dim(source, begin, rows)
        block = psi(block) if stored is None else block
        numbers = begin + jnp.arange(rows)
        weights = (numbers >= first).astype(x.dtype)
        return jax.tree.map(jnp.add, total, use(block, numbers, weights)), None

    return jax.lax.scan(step, start, rows * jnp.arange(-(-n // rows)))[0]


@functools.partial(jax.jit, static_argnames=("n", "count"))
def drawn(key: Array, n: int, count: int) -> Array:
    """So many of `n` indices, each at most once."""
    return jax.random.choice(key, n, (count,), replace=False)


@functools.partial(jax.jit, static_argnames=("rows", "most", "tolerance"))
def solve_landmarks(
    psi: ProductKernel, x: Array, y: Array, stored: Array | None, lower: Array, square: Array,
    alpha: Array, *, rows: int | None, most: int, tolerance: float,
) -> tuple[Array, ...]:  # fmt: skip
    """`min ‖k(x, c) K − y‖² + alpha Kᵀ k(c, c) K` over the coefficients of landmarks.

    With `k(c, c) = L Lᵀ` and `A Aᵀ = (n/m) Lᵀ L + alpha I`, which stands for the samples by the
    landmarks, `K = L⁻ᵀ A⁻ᵀ β` leaves a system for β that is close to the identity. The normal
    equations are never formed, so the condition of the kernel is not squared. `stored` is `psi(x)`,
    or None to compute its blocks in every iteration; `lower` is `L`, `square` is `Lᵀ L`.

    Returns:
        `(m, q)` coefficients; relative residual of the iteration, iterations; relative residual
        on the samples, and how much larger the terms of a prediction are than the target.

    Reference: Rudi, Carratino & Rosasco (2017), "FALKON: an optimal large scale kernel method".
    """
    alpha = jnp.asarray(alpha, x.dtype)
    n, m = x.shape[0], lower.shape[0]
    inner = factor((n / m) * square, alpha)
    forth = lambda b: solve_triangular(inner, solve_triangular(lower, b, lower=True), lower=True)

    def back(beta: Array) -> tuple[Array, Array]:
        half = solve_triangular(inner, beta, lower=True, trans=1)
        return solve_triangular(lower, half, lower=True, trans=1), half

    def normal(v: Array) -> Array:
        use = lambda k, _, w: matmul(k.T, w[:, None] * matmul(k, v))
        return over_blocks(psi, x, stored, use, jnp.zeros_like(v), rows)

    def apply(beta: Array) -> Array:
        v, half = back(beta)
        return forth(normal(v)) + alpha * solve_triangular(inner, half, lower=True)

    zero = jnp.zeros((m, y.shape[1]), x.dtype)
    cross = lambda k, numbers, w: matmul(k.T, w[:, None] * y[numbers])
    b = forth(over_blocks(psi, x, stored, cross, zero, rows))
    beta, solved, count = conjugate_gradients(apply, lambda r: r, b, tolerance, most)
    c = back(beta)[0]

    def squares(k: Array, numbers: Array, w: Array) -> tuple[Array, Array]:
        error = w[:, None] * (matmul(k, c) - y[numbers])
        terms = w[:, None] * matmul(jnp.abs(k), jnp.abs(c))
        return jnp.sum(error**2), jnp.sum(terms**2)

    start = jnp.zeros((), x.dtype), jnp.zeros((), x.dtype)
    error, terms = over_blocks(psi, x, stored, squares, start, rows)
    whole = norm(y)
    whole = jnp.where(whole > 0, whole, 1)
    return c, solved, count, jnp.sqrt(error) / whole, jnp.sqrt(terms) / whole


@functools.partial(jax.jit, static_argnames=("rows", "most", "tolerance"))
def solve_iteratively(
    psi: ProductKernel, x: Array, y: Array, stored: Array | None, lower: Array, chosen: Array,
    alpha: Array, *, rows: int | None, most: int, tolerance: float,
) -> tuple[Array, ...]:  # fmt: skip
    """`(k(x, x) + alpha I)⁻¹ y` by conjugate gradients, the kernel matrix block by block.

    Preconditioned by the kernel of the samples that are `chosen`, with the Cholesky factor `lower`:
    by `B Bᵀ + alpha I` with `B = k(x, z) L⁻ᵀ`. Arguments and results as of `solve_landmarks`.
    """
    alpha = jnp.asarray(alpha, x.dtype)
    few = ProductKernel(psi.product, x[chosen], psi.degree, psi.rank)
    thin = solve_triangular(lower, few(x).T, lower=True).T
    inner = factor(matmul(thin.T, thin), alpha)
    precondition = lambda r: r - matmul(thin, substitute(inner, matmul(thin.T, r)))

    def kernel_times(v: Array) -> Array:
        return psi.times(x, v, rows=rows) if stored is None else matmul(stored, v)

    apply = lambda v: kernel_times(v) + alpha * v
    c, solved, count = conjugate_gradients(apply, precondition, y, tolerance, most)
    predicted = kernel_times(c)
    # As large as the terms where the kernel is positive.
    return c, solved, count, ratio(predicted - y, y), ratio(kernel_times(jnp.abs(c)), y)
