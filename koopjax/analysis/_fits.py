"""From one pass over the snapshots to every ridge, target, truncation and rank."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import edmd, observables
from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_SOLUTION,
    SUCCESS,
    has_float64,
    matmul,
    pytree,
    worst,
)

# Up to this many observables the least eigenvalue is computed; above, zero bounds it from below.
EXACT = 1024


@pytree
class Forms:
    """A Koopman matrix in factors whose leading parts are its truncations.

    Attributes:
        matrix: `(p, q)`.
        values: singular values of K.
        svd: `(left, right)` by plain singular values.
        output: `(left, right)` by the prediction in the output's metric.
    """

    matrix: Any
    values: Any
    svd: Any
    output: Any


@dataclasses.dataclass(frozen=True)
class Fit:
    """One dictionary solved for one target.

    Attributes:
        psi: the dictionary.
        target: "state" or "logits".
        alpha: relative ridge.
        forms: the Koopman matrix and its factors, in the dtype of the snapshots.
        condition: bound on the condition number of the ridge problem.
        result: result code.
    """

    psi: Any
    target: str
    alpha: float
    forms: Forms
    condition: float
    result: int


def _roots(metric: Array) -> tuple[Array, Array]:
    """`M^{1/2}` and its inverse; directions that M ignores keep a small weight of their own."""
    values, vectors = jnp.linalg.eigh((metric + metric.T) / 2)
    top = jnp.maximum(values[-1], jnp.finfo(metric.dtype).tiny)
    root = jnp.sqrt(jnp.maximum(values, jnp.finfo(metric.dtype).eps ** 0.75 * top))
    return matmul(vectors * root[None, :], vectors.T), matmul(vectors / root[None, :], vectors.T)


@jax.jit
def _forms(k: Array, cross: Array, metric: Array) -> Forms:
    """All truncations of K from K, `Ψxᵀ Ψy` and the metric.

    With a ridge `(G + αI) K = C`, so `Kᵀ C` is the Gram matrix of the (augmented) prediction: its
    eigenvectors in the metric are those of reduced-rank regression, without G.
    """
    u, s, vt = jnp.linalg.svd(k, full_matrices=False)
    root, inverse = _roots(metric)
    energy = matmul(matmul(root, matmul(k.T, cross)), root)
    w = jnp.linalg.eigh((energy + energy.T) / 2)[1][:, ::-1][:, : s.shape[0]]
    output = (matmul(matmul(k, root), w), matmul(w.T, inverse))
    return Forms(k, s, (u * s[None, :], vt), output)


@jax.jit
def _condition(gram: Array, alpha: Array) -> Array:
    """Condition number of the ridge problem, in singular values; an upper bound for large p."""
    p = gram.shape[0]
    if p <= EXACT:
        values = jnp.linalg.eigvalsh(gram)
        low, high = jnp.maximum(values[0], 0), values[-1]
    else:
        # Power iteration: accurate to a few per cent, which is enough for a condition number.
        step = lambda _, v: (w := matmul(gram, v)) / jnp.maximum(jnp.linalg.norm(w), 1e-300)
        v = jax.lax.fori_loop(0, 20, step, jnp.ones((p, 1), gram.dtype))
        low, high = jnp.zeros((), gram.dtype), jnp.linalg.norm(matmul(gram, v))
    tiny = jnp.finfo(gram.dtype).tiny
    return jnp.sqrt((high + alpha) / jnp.maximum(low + alpha, tiny))


def double(tree: Any) -> Any:
    """A context that keeps float64 where the tree holds it; see `edmd`."""
    wide = any(getattr(leaf, "dtype", None) == jnp.float64 for leaf in jax.tree.leaves(tree))
    return jax.enable_x64(wide or bool(jax.config.jax_enable_x64))  # pyright: ignore


@jax.jit
def _ridge(gram: Array, cross: Array, alpha: Array) -> tuple[Array, Array]:
    """`(G + αI)⁻¹ C` for a ridge relative to the mean squared column norm, and the absolute ridge.

    Columns are scaled to unit norm for the Cholesky factor. NaN where it breaks down, which
    `result_of` flags.
    """
    ridge = alpha * jnp.mean(jnp.diagonal(gram))
    d = jax.lax.rsqrt(jnp.diagonal(gram) + ridge)
    scaled = d[:, None] * gram * d[None, :] + jnp.diag(ridge * d * d)
    factor = (jnp.linalg.cholesky(scaled, symmetrize_input=False), True)
    return d[:, None] * jax.scipy.linalg.cho_solve(factor, d[:, None] * cross), ridge


def solve(stats: edmd.Gram, alpha: float) -> Array:
    """K for a relative ridge above zero; without the diagnosis of `edmd.solve`.

    A ladder solves for many ridges, and the singular values of thousands of observables for each
    would cost more than everything else together.
    """
    with double(stats):
        return _ridge(stats.gram, stats.cross, jnp.asarray(alpha, stats.dtype))[0]


def result_of(stats: edmd.Gram, k: Array, alpha: float, sums: Any) -> tuple[float, int]:
    """Condition number of the ridge problem, and the result code of its solution.

    Args:
        stats: what was solved.
        k: the solution.
        alpha: relative ridge.
        sums: dtype in which the products were summed, which the code judges by.
    """
    with double(stats):
        ridge = alpha * jnp.mean(jnp.diagonal(stats.gram))
        condition = float(_condition(stats.gram, ridge))
        finite = bool(jnp.isfinite(k).all())
    eps = float(jnp.finfo(sums).eps)
    code = worst(
        ILL_CONDITIONED if not condition**2 * eps <= eps**0.5 else SUCCESS,
        SUCCESS if finite else NONFINITE_SOLUTION,
    )
    return condition, int(code)


def forms_of(stats: edmd.Gram, k: Array, columns: slice, metric: Any, dtype: Any) -> Forms:
    """The truncations of some columns of K, rounded once to the dtype of the snapshots."""
    with double(stats):
        forms = _forms(k[:, columns], stats.cross[:, columns], jnp.asarray(metric).astype(k.dtype))
        return jax.tree.map(lambda a: a.astype(dtype), forms)


@jax.jit
def _lift(psi: Any, x: Array) -> Array:
    return psi(x)


def _is_leading(child: Any, parent: Any, x: Any) -> bool:
    """Whether a dictionary's columns are the first ones of another, as far as samples tell."""
    size = child.size(x.shape[1])
    if size >= parent.size(x.shape[1]):
        return False
    some = x[:: max(1, x.shape[0] // 16)][:16]
    return bool(np.array_equal(np.asarray(_lift(child, some)), np.asarray(_lift(parent, some))[:, :size]))


def sources(psis: dict[str, Any], x: Any) -> dict[str, str]:
    """For each dictionary the one whose statistics hold its own as a leading submatrix.

    Polynomials of rising degree are nested, so one pass for the richest answers all of them.
    """
    order = sorted(psis, key=lambda name: -psis[name].size(x.shape[1]))
    found: dict[str, str] = {}
    for name in order:
        parents = [n for n in found if found[n] == n and _is_leading(psis[name], psis[n], x)]
        found[name] = parents[0] if parents else name
    return found


def accumulate(psi: Any, x: Any, targets: Any, weights: Any, dtype: Any, limit: Any) -> edmd.Gram:
    """Gram statistics of a dictionary against all targets, in float64 where there is float64."""
    stats = edmd.accumulate(
        psi,
        x,
        targets,
        target=observables.Identity(),
        weights=weights,
        accumulate_dtype=dtype,
        memory_limit=limit,
    )
    return stats.astype(jnp.float64) if has_float64() else stats


def leading_part(stats: edmd.Gram, size: int) -> edmd.Gram:
    """The statistics of the first observables alone."""
    return stats if stats.sizes[0] == size else stats.select(jnp.arange(size))


def encode(psi: Any, left: Any, x: Any, batch: int = 4096) -> Array:
    """`Ψ(x) L`, a block of samples at a time, so that Ψ never exists whole."""
    parts = [_encode(psi, left, x[i : i + batch]) for i in range(0, x.shape[0], batch)]
    return jnp.concatenate(parts)


@jax.jit
def _encode(psi: Any, left: Array, x: Array) -> Array:
    return matmul(psi(x), left)
