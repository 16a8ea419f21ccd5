"""One core of a tensor train at a time: its normal equations, their solution, and its split.

The core that is solved lies between a *near* interface `(n, r)`, which the sweep has just passed,
and a *far* one, so that the same code serves both directions. All arrays are padded: columns
beyond a rank and functions beyond a mode are zero, and so are the unknowns that belong to them.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import masked_qr, matmul, semidefinite_root
from koopjax.tensor_edmd._dictionary import outer, tail_norms

#: How often the damping of a Cholesky factorisation is raised before it is given up.
TRIES = 8
#: By how much, each time.
RAISE = 100.0
#: Sizes down to which, and up to which, a Cholesky factorisation is cut in halves.
LEAF = 32
LARGE = 1024


class Solved(NamedTuple):
    """A solution `(p, q)` of local normal equations.

    Attributes:
        value: `(p, q)`.
        condition: of the equations scaled to a unit diagonal, from the pivots: a lower bound.
        damping: what was added to that unit diagonal; 0 where the factorisation went through.
    """

    value: Array
    condition: Array
    damping: Array


def accumulate(parts: tuple[Array, ...], y: Array, wide: Any) -> tuple[Array, Array]:
    """`Zᵀ Z` and `Zᵀ y` for the row-wise product `Z` of parts `(blocks, size, m_i)`.

    Products within a block stay in the dtype of the data, sums over blocks are in `wide`.
    """

    def step(total: Any, block: Any) -> tuple[Any, None]:
        z = functools.reduce(outer, block[0])
        new = matmul(z.T, z), matmul(z.T, block[1])
        return jax.tree.map(lambda t, a: t + a.astype(wide), total, new), None

    width = math.prod(part.shape[-1] for part in parts)
    empty = jnp.zeros((width, width), wide), jnp.zeros((width, y.shape[-1]), wide)
    return jax.lax.scan(step, empty, (parts, y))[0]


def moments(part: Array, other: Array | None, wide: Any) -> Array:
    """`Aᵀ A` for the row-wise product of one or two parts `(blocks, size, m)`."""
    parts = (part,) if other is None else (part, other)
    nothing = jnp.zeros((*part.shape[:2], 0), part.dtype)
    return accumulate(parts, nothing, wide)[0]


def solve_damped(gram: Array, cross: Array, alpha: Array, eps: float) -> Solved:
    """`(G + α I) w = c` by Cholesky, unknowns without data set to zero.

    The equations are scaled to a unit diagonal, which leaves the solution as it is. Where a pivot
    falls below the rounding `eps` of the products in `gram`, the diagonal is damped by that
    rounding, then by a hundred times more, until the factorisation holds.
    """
    size, dtype = gram.shape[0], gram.dtype
    live = jnp.diagonal(gram) > 0
    diagonal = jnp.where(live, jnp.diagonal(gram) + alpha, 1)
    scale = jnp.where(live, 1 / jnp.sqrt(diagonal), 0)
    scaled = gram * scale[:, None] * scale[None, :]
    shift = jnp.where(live, alpha * scale**2, 1)
    floor, zero = jnp.asarray(eps * size, dtype), jnp.zeros((), dtype)

    def unfinished(state: Any) -> Array:
        count, _, _, _, good = state
        return ~good & (count <= TRIES)

    # The first attempt is one of the loop's, so that a factorisation is compiled once.
    def attempt(state: Any) -> Any:
        count, damping, *_ = state
        factor = cholesky(scaled + jnp.diag(shift + damping))
        least = jnp.min(jnp.diagonal(factor)) ** 2
        after = jnp.where(damping > 0, RAISE * damping, 2 * floor)
        return count + 1, after, damping, factor, jnp.isfinite(least) & (least > floor)

    start = jnp.int32(0), zero, zero, jnp.zeros_like(gram), jnp.asarray(False)
    _, _, damping, factor, _ = jax.lax.while_loop(unfinished, attempt, start)
    value = scale[:, None] * jax.scipy.linalg.cho_solve((factor, True), scale[:, None] * cross)
    pivots = jnp.where(live, jnp.diagonal(factor), 1)
    return Solved(value, (jnp.max(pivots) / jnp.min(pivots)) ** 2, damping)


def cholesky(a: Array) -> Array:
    """Lower Cholesky factor, by halves down to sizes that LAPACK factors on one thread.

    Threaded factorisations of a few hundred rows wait for each other: on a busy machine they took
    hundreds of times as long.
    """
    return jnp.linalg.cholesky(a) if a.shape[0] > LARGE else _factor(a)[0]


def _factor(a: Array) -> tuple[Array, Array]:
    """The factor and its inverse, which takes the place of triangular solves."""
    n = a.shape[0]
    if n <= LEAF:
        factor = jnp.linalg.cholesky(a)
        return factor, _inverse(factor)
    h = n // 2
    top, top_inverse = _factor(a[:h, :h])
    side = matmul(a[h:, :h], top_inverse.T)
    last, last_inverse = _factor(a[h:, h:] - matmul(side, side.T))
    corner = -matmul(last_inverse, matmul(side, top_inverse))
    return _lower(top, side, last), _lower(top_inverse, corner, last_inverse)


def _inverse(factor: Array) -> Array:
    n = factor.shape[0]
    if n <= LEAF // 2:
        return jax.scipy.linalg.solve_triangular(factor, jnp.eye(n, dtype=factor.dtype), lower=True)
    h = n // 2
    top, last = _inverse(factor[:h, :h]), _inverse(factor[h:, h:])
    return _lower(top, -matmul(last, matmul(factor[h:, :h], top)), last)


def _lower(top: Array, side: Array, last: Array) -> Array:
    zeros = jnp.zeros((top.shape[0], last.shape[0]), top.dtype)
    return jnp.block([[top, zeros], [side, last]])


def root(gram: Array) -> Array:
    """Symmetric square root of a positive semidefinite matrix, up to a common factor."""
    trace = jnp.trace(gram)
    return semidefinite_root(gram / jnp.where(trace > 0, trace, 1)).symmetric


def orthonormal(columns: Array, spare: Array, good: Array, rows: Array, mask: Array) -> Array:
    """An orthonormal basis of the good ones of columns `(m, r)`, made up to the rank with spare.

    `rows` `(m,)` and `mask` `(r,)` are ones and zeros: which rows exist, and the rank.
    """
    norm = jnp.linalg.norm(columns, axis=0)
    safe = jnp.where(norm > 0, norm, 1)
    columns = jnp.where(good[None, :] & (norm > 0)[None, :], columns / safe[None, :], spare)
    q, r = masked_qr(columns * rows[:, None], mask)
    signs = jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(q.dtype)
    return q * signs[None, :] * rows[:, None]


def split(
    core: Array, near: Array, far: Array, metric: Array, most: Array, rtol: Array
) -> tuple[Array, Array, Array]:
    """What of a core to keep in the bond ahead: its leading directions, weighted by the data.

    The core as a matrix `C`, near rows and columns with the outputs and the far side, is cut where
    `‖A^(1/2) C (M ⊗ B)^(1/2)‖` loses least; `A` and `B` are the second moments of what it meets on
    both sides (`near` and `far`) and `M` is the output metric, given by its root. With unit moments
    this is the plain SVD of the core `(m, q, m')`. The tail that is cut off may hold the share
    `rtol` of the norm; 0 keeps the largest rank.

    Returns:
        `(m, k)` directions by falling weight, `(k,)` which carry something, and the rank.
    """
    m, q, far_size = core.shape
    weighted = jnp.einsum("aqb,qj,bc->ajc", core, metric, root(far), precision="highest")
    weighted = weighted.reshape(m, q * far_size)
    _, values, right = jnp.linalg.svd(matmul(root(near), weighted), full_matrices=False)
    columns = matmul(weighted, right.T)
    eps = jnp.finfo(core.dtype).eps
    good = values > 4 * eps * m * values[0]
    tails = tail_norms(values**2)
    needed = jnp.sum((tails > rtol * tails[0]) & good)
    rank = jnp.where(rtol > 0, jnp.clip(needed, 1, most), most)
    return columns, good, rank.astype(jnp.int32)
