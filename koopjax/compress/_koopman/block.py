"""What a Koopman block is made of: directions of a state, products, the form, and its bytes."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax import edmd, nn, observables
from koopjax._core import blocks, matmul, on_device, ridge_solve, semidefinite_root
from koopjax.compress._result import entropy
from koopjax.compress.gram._select import backward

#: Eigenvalues of the covariance below this share of the largest are damped when whitening.
FLOOR = 1e-3
#: Most leading coordinates that the pilot's quadratic dictionary is put on.
PILOT = 32
#: Rows of Jacobians in the metric; its leading eigenvectors are stable long before.
JACOBIANS = 4096
#: More outputs than this are replaced by as many random combinations of them.
COTANGENTS = 32


class Directions(NamedTuple):
    """Uncorrelated coordinates `(h - mean) @ matrix` of unit variance, the most important first."""

    name: str  # of the metric that they are from
    matrix: np.ndarray
    importance: np.ndarray  # mean squared derivative of the outputs along each


def jacobian_metric(
    parts: tuple[Any, ...], state: Float[Array, "n ..."], outputs: int, key: Array, *,
    centred: bool,
) -> Float[np.ndarray, "d d"]:  # fmt: skip
    """`C = E[Jᵀ P J]` of the outputs of parts run one after another, `d` entries flattened.

    Where a softmax reads several (`centred`), `P` takes out what all have in common. Of many
    outputs random combinations are taken, whose mean squared derivative is unbiased.
    """
    draw, mix = jax.random.split(key)
    rows = jax.random.permutation(draw, state.shape[0])[:JACOBIANS]
    if outputs > COTANGENTS:
        vectors = jax.random.rademacher(mix, (COTANGENTS, outputs), jnp.float32)
        vectors = vectors / np.sqrt(COTANGENTS)
    else:
        vectors = np.eye(outputs, dtype=np.float32)
    vectors = np.asarray(vectors)
    if centred:
        vectors = vectors - np.mean(vectors, axis=1, keepdims=True)
    return np.asarray(_metric(parts, jnp.take(state, rows, axis=0), vectors), np.float64)


@jax.jit
def _metric(parts: tuple[Any, ...], state: Array, vectors: Array) -> Array:
    cut, weights = blocks(state, min(512, state.shape[0]))
    through = lambda h: functools.reduce(lambda state, part: part(state), parts, h)

    def one(total: Array, block: Any) -> tuple[Array, None]:
        h, weight = block
        out, pull = jax.vjp(through, h)
        shape = (len(vectors), *(1,) * (out.ndim - 1), out.shape[-1])
        cotangents = vectors.reshape(shape).astype(out.dtype)
        cotangents = jnp.broadcast_to(cotangents, (len(vectors), *out.shape))
        (slopes,) = jax.vmap(pull)(cotangents)
        slopes = slopes.astype(jnp.float32).reshape(len(vectors), len(h), -1)
        slopes = (slopes * weight.astype(jnp.float32)[None, :, None]).reshape(-1, len(total))
        return total + matmul(slopes.T, slopes), None

    size = int(np.prod(state.shape[1:]))
    total, _ = jax.lax.scan(one, jnp.zeros((size, size), jnp.float32), (cut, weights))
    return total / state.shape[0]


def active(covariance: np.ndarray, metric: np.ndarray, rank: int) -> Directions:
    """Active subspace in whitened coordinates: of the covariance `S = R Rᵀ` and `h = mean + R z`.

    The eigenvectors of `Rᵀ C R` are the directions of `z` along which the outputs change most;
    whitening keeps those along which the data hardly vary from counting.
    """
    root = semidefinite_root(covariance)
    weights, turn = np.linalg.eigh(root.half.T @ metric @ root.half)
    turn = turn[:, ::-1][:, :rank]
    damped = np.hypot(root.scale, np.sqrt(FLOOR) * (root.scale[-1] or 1.0))
    matrix = (root.vectors / damped) @ turn
    # The nearest uncorrelated coordinates of unit variance (symmetric whitening).
    matrix = matrix @ semidefinite_root(matrix.T @ covariance @ matrix, 1e-8).inverse
    return Directions("jacobian", matrix, weights[::-1][:rank])


def of_pilot(
    mean: np.ndarray, first: Directions, state: Array, target: Array, root: np.ndarray, rank: int
) -> Directions:
    """The active subspace of a Koopman operator in place of the network's.

    A quadratic dictionary on the leading coordinates `z` is fitted to the target, of whose metric
    `root` is the square root. The derivative of output c of its Koopman operator is `a_c + H_c z`,
    so that with white `z` its mean square is `Σ_c a_c a_cᵀ + H_c H_cᵀ`, in closed form: the best
    for a dictionary of this kind, where the network's own Jacobians also count what it can't
    express.
    """
    # Five samples an observable are few, but enough for leading directions.
    size = first.matrix.shape[1]
    while size > 2 and (size + 1) * (size + 2) // 2 > state.shape[0] // 3:
        size -= 1
    size = min(size, PILOT)
    psi = lift(first.matrix[:, :size], mean @ first.matrix[:, :size], 2)
    stats = edmd.accumulate(psi, state, target, target=observables.Identity()).to_gram()
    gram, cross = (np.asarray(a, np.float64) for a in (stats.gram, stats.cross))
    n = float(stats.count)
    k = ridge_solve(gram, cross, 1e-3 * n) @ root
    slopes = k[1 : size + 1]
    i, j = np.triu_indices(size)
    curves = np.zeros((size, size, k.shape[1]))
    curves[i, j] += k[size + 1 :]
    curves[j, i] += k[size + 1 :]
    squared = slopes @ slopes.T + np.einsum("ijc,kjc->ik", curves, curves)
    weights, turn = np.linalg.eigh(squared)
    matrix, importance = first.matrix[:, :size] @ turn[:, ::-1], weights[::-1]
    if size < rank:
        rest = first.matrix[:, size:]
        matrix = np.concatenate([matrix, rest], axis=1)
        importance = np.append(importance, np.full(rest.shape[1], 0.5 * importance[-1]))
    return Directions("koopman", matrix, importance)


def product_factors(r: int, degree: int) -> Int[np.ndarray, "degree p"]:
    """The factors of the products in `Monomials(degree)`, as places in `[1, z]`, ones behind."""
    factors = [[i + 1 for i in one] for one in observables.Monomials(degree).factors(r)]
    return np.array([one + [0] * (degree - len(one)) for one in factors]).T


def products(z: Float[np.ndarray, "n r"], table: Int[np.ndarray, "degree p"]) -> np.ndarray:
    """`(n, p)` products of coordinates, on the host; `table` from `product_factors`."""
    ones = np.concatenate([np.ones((len(z), 1), z.dtype), z], axis=1)
    out = ones[:, table[0]]
    for places in table[1:]:
        out = out * ones[:, places]
    return out


def entries(
    covariance: np.ndarray, directions: Directions, rank: int, sizes: Sequence[int]
) -> list[Int[np.ndarray, " m"]]:
    """For each number of entries of the state, which to read for the `rank` leading directions.

    Backward elimination in the regression of the coordinates on the entries.
    """
    # A direction counts by what it does to the outputs; the least still counts a little.
    weights = np.sqrt(np.maximum(directions.importance[:rank], 0))
    weights = np.sqrt(weights / (weights[0] or 1.0) + 0.05)
    targets = directions.matrix[:, :rank] * weights[None, :]
    found = backward(covariance, covariance @ targets, sizes, _ridge(covariance))
    return [found[size][0] for size in sizes]


def read_from(
    covariance: np.ndarray, directions: Directions, kept: Int[np.ndarray, " m"]
) -> np.ndarray:
    """`(d, r)` matrix, zero but for the kept rows, of the nearest coordinates of unit variance."""
    if len(kept) == len(covariance):
        return directions.matrix
    block = covariance[np.ix_(kept, kept)]
    rows = ridge_solve(block, covariance[kept] @ directions.matrix, _ridge(covariance))
    deviation = np.sqrt(np.maximum(np.einsum("ir,ij,jr->r", rows, block, rows), 1e-12))
    out = np.zeros_like(directions.matrix)
    out[kept] = rows / deviation[None, :]
    return out


def _ridge(covariance: np.ndarray) -> float:
    return 1e-4 * np.trace(covariance) / len(covariance)


def axes_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Axes of a state: its own longer than one, or the nearest to a square where it is flat."""
    own = tuple(n for n in shape if n > 1)
    if len(own) != 1:
        return own or (1,)
    (d,) = own
    low = next(n for n in range(math.isqrt(d), 0, -1) if d % n == 0)
    return (low, d // low)


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """One choice of everything."""

    directions: Any  # the coordinates, before entries of the state are given up
    kept: np.ndarray  # which of these are read
    coordinates: int
    degree: int  # of their products
    columns: np.ndarray  # which of the products
    rank: int  # of K
    ridge: float  # relative to the number of samples
    bits: int | None = None  # of an entry of projection and K on a grid; None for float32
    entries: int | None = None  # of K that are kept; None for all of the kept products
    limited: bool = False  # whether the number of samples bounded the dictionaries tried

    @property
    def observables(self) -> int:
        """How many products are kept."""
        return len(self.columns)

    def as_dict(self, d: int) -> dict[str, Any]:
        """For the report."""
        return {
            "entries": f"{len(self.kept)} of {d}", "coordinates": self.coordinates,
            "degree": self.degree, "observables": self.observables, "rank": self.rank,
            "ridge": self.ridge, **({} if self.bits is None else {"bits": self.bits}),
            **({} if self.entries is None else {"entries of K": self.entries}),
        }  # fmt: skip


def lift(
    matrix: Any, shift: Any, degree: int, columns: Any = None, before: tuple[Any, ...] = ()
) -> observables.Compose:
    """The dictionary of a block: project `(m, r)`, take off a shift, form products (or some).

    The dictionaries `before` read the state first.
    """
    # A scale would say what the projection says already, and fill the file once it is trained.
    coordinates: Any = observables.Compose(
        observables.Project(on_device(matrix, jnp.float32)),
        observables.Standardize(on_device(shift, jnp.float32)),
    )
    for read in reversed(before):
        coordinates = observables.Compose(read, coordinates)
    products: Any = observables.Monomials(degree)
    if columns is not None:
        products = observables.Select(products, columns)
    return observables.Compose(coordinates, products)


def koopman_block(
    d: int, reader: Any, setting: Setting, matrix: np.ndarray, shift: Any, k: Any
) -> nn.KoopmanBlock:
    """A Koopman block for `d` entries, as the reader gives them; K is `(p, q)` or two factors."""
    before = () if reader is None else (reader,)
    if len(setting.kept) < d:
        before += (observables.Select(observables.Identity(), _small(setting.kept, d)),)
    total = math.comb(setting.coordinates + setting.degree, setting.degree)
    columns = _small(setting.columns, total) if setting.observables < total else None
    operator = nn.LowRank(*k) if isinstance(k, tuple) else nn.Dense(k)
    return nn.KoopmanBlock(lift(matrix, shift, setting.degree, columns, before), operator)


def least_block(d: int, q: int, reader: Any) -> nn.KoopmanBlock:
    """A block of the smallest form: one entry, one coordinate, and a line in it."""
    least = Setting(None, np.arange(1), 1, 1, np.arange(2), q, 0.0)
    # Numbers in general position: equal ones, and those on a grid, would take less of the file.
    k = np.random.default_rng(0).normal(size=(2, q)).astype(np.float32)
    return koopman_block(d, reader, least, np.ones((1, 1)), np.zeros(1), k)


def least_bytes(d: int, q: int) -> int:
    """Bytes of the arrays of the smallest form."""
    return array_bytes(d, q, 1, 1, 2, 2, q)


def _small(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices in the least unsigned type that holds `size` of them."""
    kinds = (np.uint8, np.uint16, np.uint32)
    return np.asarray(indices, next(k for k in kinds if size <= np.iinfo(k).max + 1))


def index_bytes(count: int, size: int) -> int:
    """Bytes of a sorted choice of `count` out of `size`: its entropy, and a little more."""
    if count in (0, size):
        return 0
    return math.ceil(1.05 * size * entropy(count / size) / 8) + 12


def array_bytes(d: int, q: int, m: int, r: int, p: int, total: int, rank: int) -> int:
    """Bytes of a block: m of d entries, r coordinates, p of all observables; rank `q` is dense."""
    k = p * rank + (rank * q if rank < q else 0)
    return 4 * (m * r + r + k) + index_bytes(m, d) + index_bytes(p, total)


def most_observables(limit: int, d: int, q: int, m: int, r: int, total: int, rank: int) -> int:
    """The largest number of observables that a number of bytes allows."""
    if array_bytes(d, q, m, r, total, total, rank) <= limit:
        return total
    p = min(total - 1, max(0, limit - array_bytes(d, q, m, r, 0, total, rank)) // (4 * rank))
    while p > 0 and array_bytes(d, q, m, r, p, total, rank) > limit:
        p -= 1
    return p
