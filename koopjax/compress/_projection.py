"""Few coordinates of a state that matter to what follows, read from few of its entries."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax import edmd, observables
from koopjax._core import blocks, matmul, on_device, ridge_solve, semidefinite_root
from koopjax.compress._eliminate import backward
from koopjax.observables._graded import tuples

#: Eigenvalues of the covariance below this share of the largest are damped when whitening.
FLOOR = 1e-3
#: Most leading coordinates that the pilot's quadratic dictionary is put on.
PILOT = 32
#: Rows of Jacobians in the metric; its leading eigenvectors are stable long before.
JACOBIANS = 4096
#: More outputs than this are replaced by as many random combinations of them.
COTANGENTS = 32


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of the state, in float64 on the host.

    Attributes:
        mean: `(d,)`.
        covariance: `(d, d)`.
    """

    mean: np.ndarray
    covariance: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
    """Uncorrelated coordinates of unit variance, the most important first.

    Attributes:
        name: "jacobian" or "koopman", where the metric came from.
        matrix: `(d, r)`: coordinates are `(h - mean) @ matrix`.
        importance: `(r,)` mean squared derivative of the outputs along each.
    """

    name: str
    matrix: np.ndarray
    importance: np.ndarray


def moments(state: Float[Array, "n d"]) -> Moments:
    """Mean and covariance of the rows, in one pass."""
    stats = edmd.accumulate(observables.Monomials(1), state, state).to_gram()
    gram = np.asarray(stats.gram, np.float64) / float(stats.count)
    mean = gram[0, 1:]
    return Moments(mean, gram[1:, 1:] - np.outer(mean, mean))


def jacobian_metric(
    parts: tuple[Any, ...], state: Float[Array, "n ..."], outputs: int, key: Array, *,
    centred: bool,
) -> Float[np.ndarray, "d d"]:  # fmt: skip
    """`C = E[Jᵀ P J]` of the model's outputs with respect to the state, `d` entries flattened.

    `P` takes out what all outputs have in common where a softmax reads them, which does not see it;
    else it is the identity.

    Args:
        parts: callables from the state to the outputs, one after another.
        state: samples at the cut.
        outputs: width of the output.
        key: draws samples and, for many outputs, random combinations of them (their mean squared
            derivative is unbiased).
        centred: whether a softmax reads the outputs, several of them.
    """
    draw, mix = jax.random.split(key)
    rows = jax.random.permutation(draw, state.shape[0])[:JACOBIANS]
    if outputs > COTANGENTS:
        vectors = jax.random.rademacher(mix, (COTANGENTS, outputs), jnp.float32)
        vectors = vectors / np.sqrt(COTANGENTS)
    else:
        vectors = jnp.eye(outputs, dtype=jnp.float32)
    if centred:
        vectors = vectors - jnp.mean(vectors, axis=1, keepdims=True)
    return np.asarray(_metric(parts, state[rows], vectors), np.float64)


@jax.jit
def _metric(parts: tuple[Any, ...], state: Array, vectors: Array) -> Array:
    cut, weights = blocks(state, min(512, state.shape[0]))

    def through(h: Array) -> Array:
        for part in parts:
            h = part(h)
        return h

    def one(total: Array, block: Any) -> tuple[Array, None]:
        h, weight = block
        out, pull = jax.vjp(through, h)
        shape = (vectors.shape[0],) + (1,) * (out.ndim - 1) + (vectors.shape[1],)
        cotangents = jnp.broadcast_to(
            vectors.reshape(shape), (vectors.shape[0], *out.shape)
        ).astype(out.dtype)
        (slopes,) = jax.vmap(pull)(cotangents)
        weight = weight.astype(jnp.float32).reshape(1, -1, *(1,) * (h.ndim - 1))
        slopes = slopes.astype(jnp.float32) * weight
        slopes = slopes.reshape(-1, total.shape[0])
        return total + matmul(slopes.T, slopes), None

    size = int(np.prod(state.shape[1:]))
    total, _ = jax.lax.scan(one, jnp.zeros((size, size), jnp.float32), (cut, weights))
    return total / state.shape[0]


def active(moment: Moments, metric: np.ndarray, rank: int) -> Directions:
    """Active subspace in whitened coordinates.

    With `S = R Rᵀ` the covariance and `h = mean + R z`, the eigenvectors of `Rᵀ C R` are the
    directions of `z` along which the outputs change most; whitening keeps those along which the
    data hardly vary from counting.
    """
    root = semidefinite_root(moment.covariance)
    weights, turn = np.linalg.eigh(root.half.T @ metric @ root.half)
    turn = turn[:, ::-1][:, :rank]
    damped = np.hypot(root.scale, np.sqrt(FLOOR) * (root.scale[-1] or 1.0))
    return Directions(
        "jacobian", _whiten(moment, (root.vectors / damped) @ turn), weights[::-1][:rank]
    )


def _whiten(moment: Moments, matrix: np.ndarray) -> np.ndarray:
    """The nearest uncorrelated coordinates of unit variance (symmetric whitening)."""
    covariance = matrix.T @ moment.covariance @ matrix
    return matrix @ semidefinite_root(covariance, 1e-8).inverse


def of_pilot(
    moment: Moments, first: Directions, state: Array, target: Array, metric: np.ndarray
) -> Directions:
    """The active subspace of a Koopman operator in place of the network's.

    A quadratic dictionary on the leading coordinates `z` is fitted to the target; the derivative
    of output c of its Koopman operator is `a_c + H_c z`, so that with white `z` its mean square is
    `Σ_c a_c a_cᵀ + H_c H_cᵀ`, in closed form. These directions are the best for a dictionary of
    this kind, where the network's own Jacobians also count what it can't express.

    Args:
        moment, first: of the state.
        state, target: `(n, d)` and `(n, q)`.
        metric: `(q, q)` of the target, positive semidefinite.
    """
    # Five samples an observable are few, but enough for leading directions.
    size = first.matrix.shape[1]
    while size > 2 and (size + 1) * (size + 2) // 2 > state.shape[0] // 3:
        size -= 1
    size = min(size, PILOT)
    psi = lift(first.matrix[:, :size], moment.mean, 2)
    stats = edmd.accumulate(psi, state, target, target=observables.Identity()).to_gram()
    gram, cross = (np.asarray(a, np.float64) for a in (stats.gram, stats.cross))
    n = float(stats.count)
    k = ridge_solve(gram, cross, 1e-3 * n) @ semidefinite_root(metric).symmetric
    slopes = k[1 : size + 1]
    i, j = np.triu_indices(size)
    curves = np.zeros((size, size, k.shape[1]))
    curves[i, j] += k[size + 1 :]
    curves[j, i] += k[size + 1 :]
    squared = slopes @ slopes.T + np.einsum("ijc,kjc->ik", curves, curves)
    weights, turn = np.linalg.eigh(squared)
    return Directions("koopman", first.matrix[:, :size] @ turn[:, ::-1], weights[::-1])


def lift(matrix: np.ndarray, mean: np.ndarray, degree: int, dtype: Any = jnp.float32) -> Any:
    """Dictionary of coordinates `(h - mean) @ matrix`; the mean is taken off behind the product."""
    first = observables.Compose(
        observables.Project(on_device(matrix, dtype)),
        observables.Standardize(on_device(mean @ matrix, dtype)),
    )
    return observables.Compose(first, observables.Monomials(degree))


def product_factors(r: int, degree: int) -> Int[np.ndarray, "degree p"]:
    """The factors of the products in `Monomials(degree)` of `r` coordinates, as places in `[1, z]`.

    Products of fewer factors have ones behind them, at place 0.
    """
    factors = [[i + 1 for i in one] for one in tuples(r, degree)]
    return np.array([one + [0] * (degree - len(one)) for one in factors]).T


def products(z: Float[np.ndarray, "n r"], table: Int[np.ndarray, "degree p"]) -> np.ndarray:
    """`(n, p)` products of coordinates, on the host; `table` from `product_factors`."""
    ones = np.concatenate([np.ones((len(z), 1), z.dtype), z], axis=1)
    out = ones[:, table[0]]
    for places in table[1:]:
        out = out * ones[:, places]
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """The order in which entries of the state are given up, and how to do without them.

    Attributes:
        moment: of the state.
        kept: by number of entries, which.
    """

    moment: Moments
    kept: dict[int, Int[np.ndarray, " m"]]

    def read(self, directions: Directions, size: int) -> np.ndarray:
        """`(d, r)` matrix with `size` non-zero rows whose coordinates come nearest to the given.

        The regression of the coordinates on the kept entries, scaled to unit variance again.
        """
        kept, s = self.kept[size], self.moment.covariance
        if size == len(s):
            return directions.matrix
        block = s[np.ix_(kept, kept)]
        ridge = 1e-4 * np.trace(s) / len(s)
        rows = ridge_solve(block, s[kept] @ directions.matrix, ridge)
        deviation = np.sqrt(np.maximum(np.einsum("ir,ij,jr->r", rows, block, rows), 1e-12))
        out = np.zeros_like(directions.matrix)
        out[kept] = rows / deviation[None, :]
        return out


def entries(moment: Moments, directions: Directions, rank: int, sizes: Any) -> Entries:
    """Which entries of the state to read, for the leading `rank` directions.

    Backward elimination on the regression of the coordinates on the entries: the covariance is its
    Gram matrix. Entries that never vary go first, at no loss.
    """
    s = moment.covariance
    d = len(s)
    # A direction counts by what it does to the outputs; the least still counts a little.
    weights = np.sqrt(np.maximum(directions.importance[:rank], 0))
    weights = np.sqrt(weights / (weights[0] or 1.0) + 0.05)
    targets = directions.matrix[:, :rank] * weights[None, :]
    ridge = 1e-4 * np.trace(s) / d
    found = backward(s, s @ targets, sizes, ridge)
    return Entries(moment, {size: kept for size, (kept, _) in found.items()})


def axes_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Axes of a state: its own longer than one, or the nearest to a square where it is flat."""
    own = tuple(n for n in shape if n > 1)
    if len(own) != 1:
        return own or (1,)
    (d,) = own
    low = next(n for n in range(math.isqrt(d), 0, -1) if d % n == 0)
    return (low, d // low)
