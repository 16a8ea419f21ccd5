"""From one pass over the snapshots to every ridge, target, truncation and rank."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import _core, edmd, observables
from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_SOLUTION,
    SUCCESS,
    has_float64,
    matmul,
    precise,
    pytree,
    semidefinite_root,
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
        forms: `Forms` of the Koopman matrix, in the dtype of the snapshots.
        condition: bound on the condition number of the ridge problem.
        result: result code.
    """

    psi: Any
    target: str
    alpha: float
    forms: Any
    condition: float
    result: int


def _truncations(k: Array, cross: Array, metric: Array | None) -> Forms:
    """All truncations of K from K, `Ψxᵀ Ψy` and the metric (None: the identity).

    With a ridge `(G + αI) K = C`, so `Kᵀ C` is the Gram matrix of the (augmented) prediction: its
    eigenvectors in the metric are those of reduced-rank regression, without G.
    """
    u, s, vt = jnp.linalg.svd(k, full_matrices=False)
    metric = jnp.eye(k.shape[1], dtype=k.dtype) if metric is None else metric
    # Directions that the metric ignores keep a small weight of their own.
    found = semidefinite_root(metric, float(jnp.finfo(metric.dtype).eps) ** 0.75)
    root, inverse = found.symmetric, found.inverse
    energy = matmul(matmul(root, matmul(k.T, cross)), root)
    w = jnp.linalg.eigh((energy + energy.T) / 2)[1][:, ::-1][:, : s.shape[0]]
    output = (matmul(matmul(k, root), w), matmul(w.T, inverse))
    return Forms(k, s, (u * s[None, :], vt), output)


def _condition(gram: Array, ridge: Array) -> Array:
    """Condition number of the ridge problem, in singular values; an upper bound for large p."""
    p = gram.shape[0]
    if p <= EXACT:
        values = jnp.linalg.eigvalsh(gram)
        low, high = jnp.maximum(values[0], 0), values[-1]
    else:
        # Power iteration: accurate to a few per cent, which is enough for a condition number.
        tiny = jnp.finfo(gram.dtype).tiny
        step = lambda _, v: (w := matmul(gram, v)) / jnp.maximum(jnp.linalg.norm(w), tiny)
        v = jax.lax.fori_loop(0, 20, step, jnp.ones((p, 1), gram.dtype))
        low, high = jnp.zeros((), gram.dtype), jnp.linalg.norm(matmul(gram, v))
    return jnp.sqrt((high + ridge) / jnp.maximum(low + ridge, jnp.finfo(gram.dtype).tiny))


def _ridge(gram: Array, cross: Array, alpha: Array) -> tuple[Array, Array]:
    """`(G + αI)⁻¹ C` for a ridge relative to the mean squared column norm, and the absolute ridge.

    Without the diagnosis of `edmd.solve`: a ladder solves for many ridges, and the singular values
    of thousands of observables for each would cost more than everything else together. Columns
    are scaled to unit norm for the Cholesky factor; NaN where it breaks down, which is flagged.
    """
    ridge = alpha * jnp.mean(jnp.diagonal(gram))
    d = jax.lax.rsqrt(jnp.diagonal(gram) + ridge)
    scaled = d[:, None] * gram * d[None, :] + jnp.diag(ridge * d * d)
    factor = (jnp.linalg.cholesky(scaled, symmetrize_input=False), True)
    return d[:, None] * jax.scipy.linalg.cho_solve(factor, d[:, None] * cross), ridge


@functools.partial(jax.jit, static_argnames=("size", "dtype"))
def _solve(stats: edmd.Gram, alpha: Array, *, size: int, dtype: Any) -> Array:
    return _ridge(stats.gram[:size, :size], stats.cross[:size], alpha)[0].astype(dtype)


def solve(stats: edmd.Gram, size: int, alpha: float, dtype: Any) -> Array:
    """K of the leading `size` observables for all targets, for a relative ridge above zero."""
    with precise(stats):
        return _solve(stats, jnp.asarray(alpha, stats.dtype), size=size, dtype=dtype)


@functools.partial(jax.jit, static_argnames=("size", "columns", "dtype"))
def _fit(
    stats: edmd.Gram, alphas: Array, metric: Array, *, size: int, columns: tuple, dtype: Any
) -> tuple[list[Forms], list[Array], list[Array]]:
    gram = stats.gram[:size, :size]
    forms, conditions, finite = [], [], []
    for i, (target, start, stop) in enumerate(columns):
        cross = stats.cross[:size, start:stop]
        k, ridge = _ridge(gram, cross, alphas[i])
        own = metric.astype(k.dtype) if target == "state" else None
        forms.append(jax.tree.map(lambda a: a.astype(dtype), _truncations(k, cross, own)))
        conditions.append(_condition(gram, ridge))
        finite.append(jnp.isfinite(k).all())
    return forms, conditions, finite


def fit(
    psi: Any,
    stats: edmd.Gram,
    size: int,
    alphas: dict[str, float],
    columns: dict[str, slice],
    metric: Any,
    dtype: Any,
    sums: Any,
) -> dict[str, Fit]:
    """One dictionary for every target, with all truncations and result codes.

    Args:
        psi: the dictionary.
        stats: whose leading `size` observables are its own.
        size: number of its observables.
        alphas: target → relative ridge.
        columns: target → its columns.
        metric: on the states after the span.
        dtype: what the results are rounded to, once.
        sums: dtype in which the products were summed, which the result codes judge by.
    """
    spans = tuple((t, c.start, c.stop) for t, c in columns.items())
    with precise(stats):
        ridges = jnp.asarray([alphas[t] for t in columns], stats.dtype)
        found = _fit(stats, ridges, metric, size=size, columns=spans, dtype=dtype)
    forms, conditions, finite = found[0], jax.device_get(found[1]), jax.device_get(found[2])
    eps = float(jnp.finfo(sums).eps)
    fits = {}
    for i, target in enumerate(columns):
        condition = float(conditions[i])
        code = SUCCESS if condition**2 * eps <= eps**0.5 else ILL_CONDITIONED
        code = code if finite[i] else NONFINITE_SOLUTION
        fits[target] = Fit(psi, target, alphas[target], forms[i], condition, code)
    return fits


@jax.jit
def _lift(psi: Any, x: Array) -> Array:
    return psi(x)


def _is_leading(child: Any, parent: Any, x: Any) -> bool:
    """Whether a dictionary's columns are the first ones of another, as far as samples tell."""
    size = child.size(x.shape[1])
    if size >= parent.size(x.shape[1]):
        return False
    some = x[:: max(1, x.shape[0] // 16)][:16]
    first, second = (np.asarray(_lift(psi, some)) for psi in (child, parent))
    return np.array_equal(first, second[:, :size])


def sources(psis: Mapping[str, Any], x: Any) -> dict[str, str]:
    """For each dictionary the one whose statistics hold its own as a leading submatrix.

    Polynomials of rising degree are nested, so one pass for the richest answers all of them.
    """
    order = sorted(psis, key=lambda name: -psis[name].size(x.shape[1]))
    found: dict[str, str] = {}
    for name in order:
        parents = [n for n in found if found[n] == n and _is_leading(psis[name], psis[n], x)]
        found[name] = parents[0] if parents else name
    return found


def accumulate(psi: Any, x: Any, targets: Any, weights: Any, dtype: Any, limit: Any) -> Any:
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
    wide = has_float64() and stats.dtype != jnp.float64
    return stats.astype(jnp.float64) if wide else stats


@jax.jit
def _merge(first: edmd.Gram, second: edmd.Gram) -> edmd.Gram:
    return first.merge(second)


def merge(first: edmd.Gram, second: edmd.Gram) -> edmd.Gram:
    """Statistics of both sets of samples."""
    with precise(first):
        return _merge(first, second)


def encode(psi: Any, left: Any, x: Any, batch: int = 4096) -> Array:
    """`Ψ(x) L`, a block of samples at a time, so that Ψ never exists whole."""
    blocks, _ = _core.blocks(jnp.asarray(x), min(batch, x.shape[0]))
    return _encode(psi, left, blocks)[: x.shape[0]]


@jax.jit
def _encode(psi: Any, left: Array, blocks: Array) -> Array:
    rows = jax.lax.map(lambda x: matmul(psi(x), left), blocks)
    return rows.reshape(-1, left.shape[1])
