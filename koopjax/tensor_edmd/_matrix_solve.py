"""One core of a TT matrix at a time, in a Kronecker metric; orders in which it fits better."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import matmul

#: Floor of the preconditioner's eigenvalues, relative to the largest: pixels that are always zero
#: have none. Chosen on an MNIST layer, where 1e-2 to 1e-4 need the same number of steps.
DAMPING = 1e-3
#: A swap has to gain this share of the energy of what is approximated.
LEAST_GAIN = 1e-9
Cores = tuple[Array, ...]


def _einsum(spec: str, *operands: Array) -> Array:
    return jnp.einsum(spec, *operands, precision="highest", optimize="optimal")


def kronecker_factors(a: np.ndarray | None, modes: Sequence[int]) -> list[np.ndarray]:
    """Partial traces of a matrix over all modes but one, each scaled to a mean eigenvalue of 1.

    Their Kronecker product is what a separable covariance with these marginals would be; it is
    positive semidefinite wherever `a` is. On the host.
    """
    factors = [np.eye(m) for m in modes]
    for k, m in enumerate(modes if a is not None else ()):
        before, after = math.prod(modes[:k]), math.prod(modes[k + 1 :])
        t = np.asarray(a, np.float64).reshape(before, m, after, before, m, after)
        factor = np.einsum("xiyxjy->ij", t)
        if np.trace(factor) > 0:
            factors[k] = factor * m / np.trace(factor)
    return factors


def weigh(gram: Array | None, e: Array, metric: Array | None) -> Array:
    """`G E M`; None stands for the identity."""
    e = e if gram is None else matmul(gram, e)
    return e if metric is None else matmul(e, metric)


def unfold(e: Array, shapes: Sequence[tuple[int, int]], k: int) -> Array:
    """A matrix as `(modes before, m_k, n_k, modes after)`, row and column modes in pairs."""
    d = len(shapes)
    t = e.reshape([m for m, _ in shapes] + [n for _, n in shapes])
    t = t.transpose([axis for j in range(d) for axis in (j, d + j)])
    return t.reshape(math.prod(m * n for m, n in shapes[:k]), *shapes[k], -1)


def fold(t: Array, shapes: Sequence[tuple[int, int]]) -> Array:
    """What `unfold` does, undone."""
    d = len(shapes)
    t = t.reshape([size for pair in shapes for size in pair])
    t = t.transpose([*range(0, 2 * d, 2), *range(1, 2 * d, 2)])
    return t.reshape(math.prod(m for m, _ in shapes), -1)


def _frame(cores: Cores, k: int) -> tuple[Array, Array]:
    """The product of the cores before core `k`, `(·, r_{k-1})`, and after it, `(r_k, ·)`."""
    dtype = cores[0].dtype
    left = right = jnp.ones((1, 1), dtype)
    for core in cores[:k]:
        left = matmul(left, core.reshape(core.shape[0], -1)).reshape(-1, core.shape[-1])
    for core in cores[:k:-1]:
        right = matmul(core.reshape(-1, core.shape[-1]), right).reshape(core.shape[0], -1)
    return left, right


def _preconditioner(cores: Cores, k: int, rows: Cores, columns: Cores) -> Any:
    """The inverse of the core's normal matrix, had both metrics been Kronecker products."""
    dtype = cores[0].dtype
    left = right = jnp.ones((1, 1), dtype)
    for core, g, m in zip(cores[:k], rows, columns, strict=False):
        left = _einsum("ab,aijc,bkld,ik,jl->cd", left, core, core, g, m)
        left = left / jnp.maximum(jnp.trace(left), jnp.finfo(dtype).tiny)
    for core, g, m in list(zip(cores, rows, columns, strict=True))[:k:-1]:
        right = _einsum("cd,aijc,bkld,ik,jl->ab", right, core, core, g, m)
        right = right / jnp.maximum(jnp.trace(right), jnp.finfo(dtype).tiny)
    pairs = [jnp.linalg.eigh(a) for a in (left, rows[k], columns[k], right)]
    values = [jnp.maximum(e, 0) / jnp.maximum(e[-1], jnp.finfo(dtype).tiny) for e, _ in pairs]
    vectors = [v for _, v in pairs]
    scale = 1 / (_einsum("a,i,j,b->aijb", *values) + DAMPING)

    def apply(z: Array) -> Array:
        z = _einsum("aijb,ap,iq,jr,bs->pqrs", z, *vectors) * scale
        return _einsum("pqrs,ap,iq,jr,bs->aijb", z, *vectors)

    return apply


@functools.partial(jax.jit, static_argnames="k")
def solve_core(
    cores: Cores, k: int, weight: Array, gram: Any, metric: Any, rows: Cores, columns: Cores,
    tol: Any, iterations: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """The core that minimises `tr(M (W − T)ᵀ G (W − T))` with the others held.

    Conjugate gradients on its normal equations from the core there is; each step costs two products
    with the metrics, and the error never rises.

    Returns:
        The core, and the norm of what is left of the normal equations relative to their right-hand
        side, in the norm of the preconditioner.
    """
    shapes = [(int(core.shape[1]), int(core.shape[2])) for core in cores]
    left, right = _frame(cores, k)
    tiny = jnp.finfo(weight.dtype).tiny

    def full(core: Array) -> Array:
        return fold(_einsum("xa,aijb,by->xijy", left, core, right), shapes)

    def pull(e: Array) -> Array:
        return _einsum("xa,xijy,by->aijb", left, unfold(e, shapes, k), right)

    precondition = _preconditioner(cores, k, rows, columns)
    rhs = pull(weigh(gram, weight, metric))
    base = jnp.vdot(rhs, precondition(rhs))
    goal = tol**2 * base
    residual = pull(weigh(gram, weight - full(cores[k]), metric))
    step = precondition(residual)

    def going(state: tuple[Any, ...]) -> Array:
        return (state[3] > goal) & (state[4] < iterations)

    def advance(state: tuple[Any, ...]) -> tuple[Any, ...]:
        core, residual, step, rho, count = state
        image = pull(weigh(gram, full(step), metric))
        length = rho / jnp.maximum(jnp.vdot(step, image), tiny)
        core, residual = core + length * step, residual - length * image
        after = precondition(residual)
        new = jnp.vdot(residual, after)
        return core, residual, after + new / jnp.maximum(rho, tiny) * step, new, count + 1

    start = (cores[k], residual, step, jnp.vdot(residual, step), jnp.zeros((), jnp.int32))
    core, _, _, rho, _ = jax.lax.while_loop(going, advance, start)
    return core, jnp.sqrt(jnp.maximum(rho, 0) / jnp.where(base > 0, base, 1))


@functools.partial(jax.jit, static_argnames="k")
def _move_right(cores: Cores, k: int) -> Cores:
    """Orthonormal columns in core `k`, the rest of it into the next."""
    core = cores[k]
    q, r = jnp.linalg.qr(core.reshape(-1, core.shape[-1]))
    after = _einsum("ab,bijc->aijc", r, cores[k + 1])
    return (*cores[:k], q.reshape(*core.shape[:3], -1), after, *cores[k + 2 :])


@functools.partial(jax.jit, static_argnames="k")
def _move_left(cores: Cores, k: int) -> Cores:
    """Orthonormal rows in core `k`, the rest of it into the one before."""
    core = cores[k]
    q, r = jnp.linalg.qr(core.reshape(core.shape[0], -1).T)
    before = _einsum("aijc,bc->aijb", cores[k - 1], r)
    return (*cores[: k - 1], before, q.T.reshape(-1, *core.shape[1:]), *cores[k + 1 :])


def right_orthogonal(cores: Cores) -> Cores:
    """The same train with orthonormal rows in all cores but the first."""
    for k in range(len(cores) - 1, 0, -1):
        cores = _move_left(cores, k)
    return cores


@jax.jit
def full_matrix(cores: Cores) -> Array:
    """The matrix of a chain of cores."""
    shapes = [(int(core.shape[1]), int(core.shape[2])) for core in cores]
    left, _ = _frame(cores, len(cores))
    return fold(left, shapes)


@jax.jit
def in_order(cores: Cores, rows: Array, columns: Array) -> Array:
    """The matrix with the rows and columns of the chain put back where they come from."""
    return full_matrix(cores)[jnp.argsort(rows)][:, jnp.argsort(columns)]


@functools.partial(jax.jit, static_argnames="columns")
def assignment(
    cores: Cores, weight: Array, gram: Any, metric: Any, *, columns: bool
) -> tuple[Array, ...]:
    """What `search` needs, for rows or (transposed) for columns; and the energy."""
    t = full_matrix(cores)
    if columns:
        t, weight, gram, metric = t.T, weight.T, metric, gram
    a = jnp.eye(t.shape[0], dtype=t.dtype) if gram is None else gram
    right = t.T if metric is None else matmul(metric, t.T)
    energy = jnp.vdot(weight, weigh(gram, weight, metric))
    return a, matmul(t, right), matmul(weigh(gram, weight, None), right), energy


@jax.jit
def error(cores: Cores, weight: Array, gram: Any, metric: Any) -> Array:
    """`‖W − T‖ / ‖W‖` in the norm `‖E‖² = tr(M Eᵀ G E)`; absolute where `‖W‖` is zero."""
    e = weight - full_matrix(cores)
    squared = jnp.maximum(jnp.vdot(e, weigh(gram, e, metric)), 0)
    whole = jnp.maximum(jnp.vdot(weight, weigh(gram, weight, metric)), 0)
    return jnp.sqrt(squared / jnp.where(whole > 0, whole, 1))


def sweep(
    cores: Cores, weight: Array, gram: Any, metric: Any, rows: Cores, columns: Cores, tol: Any,
    iterations: Any,
) -> tuple[Cores, Array, Array]:  # fmt: skip
    """Every core once from left to right and once back, from right-orthogonal cores.

    Returns:
        The cores, the relative error, and the largest residual of the solves.
    """
    d = len(cores)
    settings = (weight, gram, metric, rows, columns, tol, iterations)
    residuals = []
    for k in [*range(max(d - 1, 1)), *range(d - 1, 0, -1)]:
        core, residual = solve_core(cores, k, *settings)
        residuals.append(residual)
        cores = (*cores[:k], core, *cores[k + 1 :])
        if len(residuals) < d:
            cores = _move_right(cores, k)
        elif k:
            cores = _move_left(cores, k)
    return cores, error(cores, weight, gram, metric), jnp.stack(residuals).max()


def _gains(a: np.ndarray, k: np.ndarray, r: np.ndarray) -> np.ndarray:
    """How much `tr(A K) − 2 tr(R)` falls if two items trade slots, for every pair at once.

    `K` and `R` are in the present order of slots. The quadratic part is that of an assignment
    problem: `Σ_l (A_il − A_jl)(K_jl − K_il)` over the items that stay, counted twice for symmetry.
    """
    product = a @ k
    own, da, dk, dr = (np.diag(x) for x in (product, a, k, r))
    stay = product + product.T - own[:, None] - own[None, :]
    stay -= (da[:, None] - a) * (k - dk[:, None]) + (a - da[None, :]) * (dk[None, :] - k)
    change = 2 * stay + (da[:, None] - da[None, :]) * (dk[None, :] - dk[:, None])
    change -= 2 * (r + r.T - dr[:, None] - dr[None, :])
    return -change


def _disjoint(gains: np.ndarray, least: float) -> np.ndarray:
    """Pairs that gain, best first, no item in two of them: `(·, 2)`."""
    n = len(gains)
    first, second = np.triu_indices(n, 1)
    values = gains[first, second]
    best = np.flatnonzero(values > least)
    best = best[np.argsort(-values[best], kind="stable")][: 4 * n]
    used = np.zeros(n, bool)
    pairs = []
    for index in best:
        i, j = first[index], second[index]
        if not (used[i] or used[j]):
            used[[i, j]] = True
            pairs.append((i, j))
    return np.array(pairs, int).reshape(-1, 2)


def search(
    a: np.ndarray, k: np.ndarray, r: np.ndarray, energy: float, rounds: int = 4
) -> tuple[np.ndarray, int]:
    """Slots for items, so that `tr(A K[p, p]) − 2 Σ_i R[i, p_i]` falls: local search by swaps.

    With `A = M`, `K = Tᵀ G T` and `R = M Wᵀ G T` this is the error of `T[:, p]` for the columns of
    `W` in the metric, but for a constant; with `A = G`, `K = T M Tᵀ`, `R = G W M Tᵀ` that of the
    rows. Each round takes the best disjoint swaps, and half as many until the sum falls, in `2 n³`
    operations; swaps that gain less than `LEAST_GAIN` of the energy of the matrix are left.

    Returns:
        The slot of every item, `(n,)`, and how many swaps were made.
    """
    a, k, r = (np.asarray(x, np.float64) for x in (a, k, r))
    items = np.arange(len(a))

    def value(slots: np.ndarray) -> float:
        return float(np.vdot(a, k[np.ix_(slots, slots)]) - 2 * r[items, slots].sum())

    slots, swaps, batch = items.copy(), 0, len(a)
    now = value(slots)
    for _ in range(rounds):
        pairs = _disjoint(_gains(a, k[np.ix_(slots, slots)], r[:, slots]), LEAST_GAIN * energy)
        batch = min(2 * batch, len(pairs))
        trial, after = slots, now
        while batch:
            i, j = pairs[:batch].T
            trial = slots.copy()
            trial[i], trial[j] = slots[j], slots[i]
            after = value(trial)
            if after < now:
                break
            batch //= 2
        if not batch:
            break
        slots, now, swaps = trial, after, swaps + batch
    return slots, swaps
