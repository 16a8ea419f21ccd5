"""Kernels of product dictionaries: the logarithm of each factor as a short Chebyshev series.

A product kernel is `exp Σ_k g_k(x_k, c_k)` wherever every factor `exp g_k` is positive. With
`g_k(s, t) ≈ Σ_ij C_kij T_i(s) T_j(t)` the sum over coordinates is one matrix product.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import expected, in_float64, matmul, pytree, static
from koopjax.observables._base import evaluate, like

# The interval of a series is that of the centres and this share of it on either side.
MARGIN = 0.05
# Nodes beyond the degree, whose coefficients show what a series leaves out.
CHECK = 3
# Beyond these the kernel is as fast factor by factor, and quicker to compile.
LARGEST_DEGREE = 10
LARGEST_RANK = 6


def tolerance(dtype: Any) -> float:
    """Largest coefficient that a series may leave out: the rounding error of a factor."""
    return max(float(jnp.finfo(dtype).eps), 1e-14)


def pick(x: Float[Array, "n d"], indices: tuple[int, ...]) -> Float[Array, "n k"]:
    """Some coordinates; a slice where they are neighbours, since gathers are slow."""
    first, last = indices[0], indices[-1]
    if indices == tuple(range(first, last + 1)):
        return x[:, first : last + 1]
    return jnp.take(x, np.array(indices), axis=1)


def families(product: Any, x: Float[Array, "n d"]) -> list[tuple[tuple[int, ...], Any]]:
    """The coordinates of one family together: indices, and the family with stacked leaves."""
    found: dict[Any, list[tuple[int, list[Any]]]] = {}
    for k, factor in enumerate(product.factors):
        leaves, tree = jax.tree.flatten(factor)
        if not all(hasattr(leaf, "dtype") or isinstance(leaf, float | int) for leaf in leaves):
            raise expected("factors whose leaves are arrays", f"{type(factor).__name__}")
        kind = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        found.setdefault((tree, kind), []).append((k, leaves))
    result = []
    for (tree, _), members in found.items():
        columns = zip(*(leaves for _, leaves in members), strict=True)
        stacked = [_stack(column, x) for column in columns]
        indices = tuple(k for k, _ in members)
        result.append((indices, jax.tree_util.tree_unflatten(tree, stacked)))
    return result


def _stack(column: tuple[Any, ...], x: Array) -> Array:
    """The leaves of several factors on a new first axis."""
    floating = jnp.issubdtype(jnp.result_type(column[0]), jnp.floating)
    cast = (lambda leaf: like(leaf, x)) if floating else jnp.asarray
    if all(leaf is column[0] for leaf in column):
        one = cast(column[0])
        return jnp.broadcast_to(one[None], (len(column), *one.shape))
    return jnp.stack([cast(leaf) for leaf in column])


def values_of(family: Any, points: Float[Array, "k n"]) -> Float[Array, "k n f"]:
    """Each coordinate's functions at its own points."""
    count = points.shape[0]
    leaves = jax.tree.leaves(family)
    if leaves:
        return jax.vmap(lambda factor, t: evaluate(factor, t[:, None]))(family, points)
    flat = evaluate(family, points.reshape(-1, 1))
    return flat.reshape(count, points.shape[1], flat.shape[1])


@pytree
class Series:
    """The logarithms of one family's factors on an interval.

    `g_k(s, t) = constant_k + alone_k · (T(s) + T(t)) + Σ_r pivots_kr v_kr(s) v_kr(t)` with
    `v_kr = vectors_kr · T` and `T = (T_1, ..., T_degree)` at points scaled to [-1, 1]. `error` is
    the largest coefficient left out, relative to the largest logarithm where that is above one;
    infinite where a factor is not positive.
    """

    middle: Any
    half: Any
    constant: Any  # (k,), for each coordinate
    alone: Any  # (k, degree)
    vectors: Any  # (k, degree, rank)
    pivots: Any  # (k, rank)
    error: Any

    def scaled(self, x: Array) -> Array:
        """Points on the interval as points in [-1, 1]."""
        return (x - self.middle) / self.half


def coefficients_of(family: Any, points: Float[Array, "n k"], count: int) -> tuple[Array, ...]:
    """Chebyshev coefficients `(k, count, count)` of a family's logarithmic kernels.

    Then the largest logarithm, one at least, or infinity where a factor is not positive; middle
    and half width of the interval of the points.
    """
    angles = (np.arange(count) + 0.5) * np.pi / count
    transform = 2 / count * np.cos(np.arange(count)[:, None] * angles[None, :])
    transform[0] /= 2
    transform = jnp.asarray(transform, points.dtype)
    low, high = jax.lax.stop_gradient((jnp.min(points), jnp.max(points)))
    middle, half = (low + high) / 2, (1 + 2 * MARGIN) * (high - low) / 2
    half = jnp.where(half > 0, half, jnp.ones_like(half))
    nodes = middle + half * jnp.asarray(np.cos(angles), points.dtype)
    values = values_of(family, jnp.broadcast_to(nodes[None, :], (points.shape[1], count)))
    kernels = jnp.einsum("kaf,kbf->kab", values, values, precision="highest")
    logarithms = jnp.log(jnp.where(kernels > 0, kernels, 1))
    c = jnp.einsum("ia,kab,jb->kij", transform, logarithms, transform, precision="highest")
    largest = jnp.maximum(1, jnp.max(jnp.abs(logarithms)))
    return c, jnp.where(jnp.all(kernels > 0), largest, jnp.inf), middle, half


def eliminate(rest: Float[Array, "k p p"], rank: int) -> tuple[Array, Array, Array]:
    """`rest = Σ_r pivots_r v_r v_rᵀ` by elimination in order, and what is left of it.

    The coefficients of a smooth kernel fall off so fast from the first that no search for pivots
    is needed, and the result stays differentiable.
    """
    vectors, pivots = [], []
    for r in range(rank):
        pivot = rest[:, r, r]
        safe = jnp.where(pivot == 0, 1, pivot)
        v = jnp.where(pivot[:, None] == 0, 0, rest[:, :, r] / safe[:, None])
        rest = rest - pivot[:, None, None] * v[:, :, None] * v[:, None, :]
        vectors.append(v)
        pivots.append(pivot)
    return jnp.stack(vectors, axis=-1), jnp.stack(pivots, axis=-1), rest


def series_of(family: Any, points: Float[Array, "n k"], degree: int, rank: int) -> Series:
    """The series of a family, differentiable in its leaves, with the error that it makes."""
    c, largest, middle, half = coefficients_of(family, points, degree + 1 + CHECK)
    kept = c[:, 1 : degree + 1, 1 : degree + 1]
    vectors, pivots, rest = eliminate(kept, rank)
    beyond = jnp.maximum(jnp.max(jnp.abs(c[:, degree + 1 :])), jnp.max(jnp.abs(rest)))
    error = jnp.where(jnp.isinf(largest), jnp.inf, beyond / largest)
    alone = c[:, 1 : degree + 1, 0]
    error = jax.lax.stop_gradient(error)
    return Series(middle, half, c[:, 0, 0], alone, vectors, pivots, error)


def chebyshev(t: Array, degree: int) -> list[Array]:
    """`T_1, ..., T_degree` at points in [-1, 1]."""
    values = [t, 2 * t * t - 1]
    while len(values) < degree:
        values.append(2 * t * values[-1] - values[-2])
    return values[:degree]


@jax.jit
def _errors(product: Any, centers: Array) -> tuple[Array, Array]:
    """What series leave out at degree 1, 2, ... and at rank 1, 2, ..., `(LARGEST_DEGREE,)` each."""
    by_degree = by_rank = jnp.zeros(LARGEST_DEGREE, centers.dtype)
    for indices, family in families(product, centers):
        count = LARGEST_DEGREE + 2
        c, largest, _, _ = coefficients_of(family, pick(centers, indices), count)
        rows = jnp.max(jnp.abs(c), axis=(0, 2))
        beyond = jax.lax.cummax(rows, reverse=True)[2:]
        rest = eliminate(c[:, 1:-1, 1:-1], 1)[2]

        def step(rest: Array, _: None) -> tuple[Array, Array]:
            # Eliminated rows are zero up to rounding, so the first pivot is always the next one.
            after = eliminate(jnp.roll(rest, (-1, -1), (1, 2)), 1)[2]
            return after, jnp.max(jnp.abs(rest))

        _, ranks = jax.lax.scan(step, rest, length=LARGEST_DEGREE)
        infinite = jnp.isinf(largest)
        by_degree = jnp.maximum(by_degree, jnp.where(infinite, jnp.inf, beyond / largest))
        by_rank = jnp.maximum(by_rank, ranks / largest)
    return by_degree, by_rank


def orders_for(product: Any, centers: Any, dtype: Any) -> tuple[int, int]:
    """The least degree and rank whose series are as good as a dtype; zeros where there are none."""
    values = np.asarray(centers, np.float64)
    # The ends of the interval are all that matters, and their shape that of any centres.
    ends = np.stack([values.min(axis=0), values.max(axis=0)])
    with in_float64(True):
        errors = _errors(product, jnp.asarray(ends))
    good = [np.flatnonzero(np.asarray(e) <= tolerance(dtype) / 4) for e in errors]
    if not (good[0].size and good[1].size):
        return 0, 0
    degree = int(good[0][0]) + 1
    rank = min(degree, int(good[1][0]) + 1)
    return (degree, rank) if rank <= LARGEST_RANK else (0, 0)


@pytree
class Exponent:
    """A kernel's exponent as a matrix product: `features(x) · (weights features(c)) + sums`.

    From the features of each part their mean over the centres is taken, its origin, so that large
    terms do not cancel.
    """

    parts: Any  # `Series`, one a family
    origins: Any  # (rank, k) of each
    coordinates: tuple[tuple[int, ...], ...] = static()
    degree: int = static()

    @property
    def weights(self) -> Float[Array, " width"]:
        """What the products of features are weighted by."""
        return jnp.concatenate([series.pivots.T.reshape(-1) for series in self.parts])

    def features(self, x: Float[Array, "n d"]) -> tuple[Array, Array]:
        """Features `(n, rank · d)`, and the part of the exponent that is the state's alone."""
        features, sums = [], jnp.zeros(x.shape[0], x.dtype)
        for indices, series, origin in zip(self.coordinates, self.parts, self.origins, strict=True):
            basis, mixed = _mixed(series, pick(x, indices), self.degree)
            # Summed over functions first, where the terms cancel, and over coordinates then.
            alone = _combine(basis, series.alone)
            rest = series.constant / 2
            for r, values in enumerate(mixed):
                weight = series.pivots[:, r] * origin[r]
                alone = alone + weight[None, :] * values
                rest = rest - weight * origin[r] / 2
                features.append(values - origin[r][None, :])
            # By a product: a reduction would compute its terms again, and one at a time.
            alone = jax.lax.optimization_barrier(alone + rest[None, :])
            sums = sums + matmul(alone, jnp.ones_like(rest))
        return jnp.concatenate(features, axis=1), sums

    def holds(self, x: Float[Array, "n d"]) -> Array:
        """Whether all states lie in the intervals, and the series are as good as their dtype."""
        good = [
            jnp.all(jnp.abs(series.scaled(pick(x, indices))) <= 1)
            & (series.error <= tolerance(x.dtype))
            for indices, series in zip(self.coordinates, self.parts, strict=True)
        ]
        return jnp.all(jnp.stack(good))


def _combine(basis: list[Array], weights: Float[Array, "k degree"]) -> Float[Array, "n k"]:
    """Each coordinate's own sum of polynomials; elementwise, so that it fuses with them."""
    terms = [value * weights[None, :, p] for p, value in enumerate(basis)]
    return sum(terms[1:], terms[0])


def _mixed(series: Series, x: Float[Array, "n k"], degree: int) -> tuple[list[Array], list[Array]]:
    """Chebyshev polynomials, and the functions that the series makes of them, `(n, k)` each."""
    basis = chebyshev(jnp.clip(series.scaled(x), -1, 1), degree)
    rank = series.vectors.shape[-1]
    return basis, [_combine(basis, series.vectors[:, :, r]) for r in range(rank)]


def exponent_of(groups: Any, centers: Float[Array, "m d"], degree: int, rank: int) -> Exponent:
    """The exponent of a kernel with its centres, of the `families` of its product."""
    picked = [pick(centers, indices) for indices, _ in groups]
    pairs = list(zip(groups, picked, strict=True))
    parts = [series_of(family, x, degree, rank) for (_, family), x in pairs]
    origins = [
        jnp.stack([jnp.mean(values, axis=0) for values in _mixed(series, x, degree)[1]])
        for series, x in zip(parts, picked, strict=True)
    ]
    coordinates = tuple(indices for indices, _ in groups)
    return Exponent(parts, jax.lax.stop_gradient(origins), coordinates, degree)
