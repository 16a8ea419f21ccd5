"""Local and global kernels as dictionaries: Gaussians about centres, random Fourier features."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import (
    as_dtype,
    as_key,
    as_whole,
    check_integer,
    expected,
    matmul,
    promoted,
    pytree,
    static,
)
from koopjax.observables._base import (
    Observables,
    input_names,
    like,
    near_rows,
    positive,
    require_axes,
    require_dimension,
)

# Coordinates in one pass over a block of distances, and distances in a block: it stays near the
# cache, and the passes are few.
UNROLL = 16
BLOCK = 2**19


@pytree
class GaussianRBF(Observables):
    """Gaussians about centres: `psi_j(x) = exp(-|x - c_j|² / (2 bandwidth²))`.

    No constant and no linear part: use `Concat(Monomials(1), GaussianRBF.fit(...))` for these.

    Args:
        centers: `(p, d)`.
        bandwidth: positive scalar, or `(p,)` for one a centre.

    Numerics:
        Distances by differences, so that no digits are lost wherever the data lie: `3 n p d`
        operations, on CPU twice as long as by a matrix product for 10 coordinates and five times
        for 784. Wide Gaussians are nearly dependent: EDMD needs R factors or float64 for them,
        which `statistics="auto"` sees to.
    """

    centers: Any
    bandwidth: Any
    prefix = "rbf"

    @classmethod
    def fit(
        cls,
        x: Any,
        n_centers: int,
        key: Array,
        bandwidth: Any = None,
        *,
        iterations: int = 20,
        max_samples: int | None = None,
    ) -> "GaussianRBF":
        """Centres by k-means, bandwidth by their spacing.

        Args:
            x: `(n, d)` data.
            n_centers: number of centres, at most `n`.
            key: for the seeding (k-means++) and the subsample.
            bandwidth: positive; by default twice the median distance of a centre to its nearest
                other centre, so that neighbours overlap well in any dimension.
            iterations: steps of Lloyd's algorithm.
            max_samples: fit to a random subsample of so many; by default 64 a centre, at least
                10,000.

        Numerics:
            `O(m n_centers d)` for seeding and for each step, in scans.
        """
        x = near_rows("the data of GaussianRBF.fit", x)
        n = x.shape[0]
        check_integer("n_centers", n_centers, 1)
        if n_centers > n:
            raise expected(f"at most {n} centres, one a sample", f"{n_centers}", "fewer centres")
        most = max(64 * n_centers, 10_000)
        if max_samples is not None:
            most = as_whole("max_samples", max_samples, 1)
        if most < n_centers:
            raise expected(f"max_samples of at least {n_centers}", f"{max_samples}")
        key = as_key("GaussianRBF.fit", key)
        pick, seed = jax.random.split(key)
        if n > most:
            x = x[jax.random.choice(pick, n, (most,), replace=False)]
        wide = x.astype(promoted(x.dtype, jnp.float32))
        centers = k_means(wide, seed, n_centers, as_whole("iterations", iterations, 0))
        bandwidth = spacing(centers, wide) if bandwidth is None else positive(bandwidth)
        return cls(centers.astype(x.dtype), jnp.asarray(bandwidth, x.dtype))

    def size(self, d: int) -> int:
        """The number of centres."""
        p, known = require_axes("the centers of GaussianRBF", self.centers, 2)
        require_dimension("GaussianRBF", d, known)
        if jnp.shape(self.bandwidth) not in {(), (1,), (p,)}:
            raise expected(f"one bandwidth, or {p}", f"shape {jnp.shape(self.bandwidth)}")
        if not isinstance(self.bandwidth, jax.Array):  # those would have to be waited for
            positive(self.bandwidth)
        return p

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        centers = like(self.centers, x)
        widths = jnp.broadcast_to(like(self.bandwidth, x), (centers.shape[0],))
        return jnp.exp(-squared_distances(x, centers, widths) / 2)

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        width = jnp.asarray(self.bandwidth)
        width = jnp.take(width, indices) if width.ndim else width
        return GaussianRBF(jnp.take(jnp.asarray(self.centers), indices, axis=0), width)._evaluate(x)


@pytree
class RandomFourier(Observables):
    """Cosines and sines of random projections: `psi(x)·psi(y) ≈ exp(-|x - y|² / (2 bandwidth²))`.

    With `m = ceil(size / 2)` directions `w_k` the columns are `cos(w_k·x / bandwidth) / √m` for
    all `k`, then `sin(w_k·x / bandwidth) / √m` (the last sine is left out for an odd size). Pairs
    have a lower variance than cosines with random phases, and `|psi(x)| = 1` exactly.

    Args:
        directions: `(d, m)`, standard normal.
        bandwidth: positive scalar; a leaf, so that it can be swept or trained.
        count: number of columns.

    Reference:
        A. Rahimi, B. Recht, "Random features for large-scale kernel machines", NeurIPS 2007.
    """

    directions: Any
    bandwidth: Any
    count: int = static()

    @classmethod
    def create(
        cls, key: Array, d: int, size: int, bandwidth: Any, *, dtype: Any = None
    ) -> "RandomFourier":
        """Draw the directions.

        Args:
            key: random key.
            d: number of coordinates.
            size: number of observables.
            bandwidth: positive length over which the kernel falls off.
            dtype: of the leaves; the default float dtype if left out.
        """
        check_integer("d", d, 1)
        check_integer("size", size, 1)
        bandwidth = positive(bandwidth)
        key = as_key("RandomFourier.create", key)
        dtype = jnp.result_type(float) if dtype is None else as_dtype("dtype", dtype)
        directions = jax.random.normal(key, (d, -(-size // 2)), dtype)
        return cls(directions, jnp.asarray(bandwidth, dtype), size)

    def size(self, d: int) -> int:
        """The number of cosines and sines."""
        require_dimension("RandomFourier", d, jnp.shape(self.directions)[0])
        return self.count

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `cos(w3·x)`."""
        input_names(d, inputs)
        self.size(d)
        m = self.directions.shape[1]
        return [f"{'cos' if k < m else 'sin'}(w{k % m}·x)" for k in range(self.count)]

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        m = self.directions.shape[1]
        angles = matmul(x, like(self.directions, x) / like(self.bandwidth, x))
        pairs = jnp.concatenate([jnp.cos(angles), jnp.sin(angles[:, : self.count - m])], axis=1)
        return pairs / jnp.sqrt(like(m, x))

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        m = self.directions.shape[1]
        chosen = jnp.take(jnp.asarray(self.directions), indices % m, axis=1)
        angles = matmul(x, like(chosen, x) / like(self.bandwidth, x))
        values = jnp.where((indices < m)[None, :], jnp.cos(angles), jnp.sin(angles))
        return values / jnp.sqrt(like(m, x))


@jax.jit
def spacing(centers: Float[Array, "p d"], x: Float[Array, "n d"]) -> Array:
    """Twice the median distance to the nearest other centre; of the data's spread for one centre.

    Centres that coincide to their own rounding don't count; where all do, the spread of the data
    is taken, and 1 where they have none.
    """
    unit = unit_of(x)
    centers, x = centers / unit, x / unit
    squares = squared_distances(centers, centers)
    own = jnp.sum(centers**2, axis=1) * (2 * jnp.finfo(centers.dtype).eps) ** 2
    apart = squares > jnp.maximum(own[:, None], own[None, :])
    nearest = jnp.sqrt(jnp.min(jnp.where(apart, squares, jnp.inf), axis=1))
    typical = 2 * jnp.nanmedian(jnp.where(jnp.isfinite(nearest), nearest, jnp.nan))
    spread = jnp.sqrt(jnp.sum(jnp.var(x, axis=0)))
    width = jnp.where(jnp.isfinite(typical) & (typical > 0), typical, spread)
    return jnp.where(width > 0, width * unit, jnp.ones_like(width))


def squared_distances(
    x: Float[Array, "n d"], centers: Float[Array, "p d"], widths: Float[Array, " p"] | None = None
) -> Float[Array, "n p"]:
    """`|x_i - c_j|² / w_j² = Σ_k ((x_ik - c_jk) / w_j)²`, to the inputs' precision anywhere.

    Not by `|x|² - 2 x·c + |c|²`: that is one matrix product, but its error is a rounding of `|x|²`,
    which is many bandwidths squared where data spread far over a narrow kernel.

    Numerics: `3 n p d` operations, `n p` numbers; on CPU twice (10 coordinates) to five times (784)
    as long as by a product. Recomputed in a backward pass.
    """
    columns = centers.T
    # Differences are divided, not squares, which leave the range of float32 sooner.
    unit = None if widths is None else 1 / jnp.maximum(widths, jnp.finfo(widths.dtype).tiny)

    # A step keeps nothing for its derivative but the coordinates themselves.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def add(squares: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        apart = pair[0] - pair[1] if unit is None else (pair[0] - pair[1]) * unit
        return squares + apart**2, None

    def of_row(row: Array) -> Array:
        zero = jnp.zeros(columns.shape[1], row.dtype)
        return jax.lax.scan(add, zero, (row, columns), unroll=max(1, min(UNROLL, len(row))))[0]

    return jax.lax.map(of_row, x, batch_size=max(1, BLOCK // max(1, columns.shape[1])))


def unit_of(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The power of two next to the largest modulus: in this unit squares stay within range.

    Dividing by it rounds nothing.
    """
    info, exponent = jnp.finfo(x.dtype), jnp.frexp(jnp.max(jnp.abs(x)))[1]
    return jnp.ldexp(jnp.ones((), x.dtype), jnp.clip(exponent, info.minexp, info.maxexp - 1))


@functools.partial(jax.jit, static_argnames=("count", "iterations"))
def k_means(x: Float[Array, "n d"], key: Array, count: int, iterations: int) -> Array:
    """Centres `(count, d)` of clusters by Lloyd's steps; one that runs empty keeps its centre."""
    unit = unit_of(x)
    x = x / unit
    centers = _seed(x, key, count)

    def step(centers: Array, _: None) -> tuple[Array, None]:
        nearest = jnp.argmin(squared_distances(x, centers), axis=1)
        # The mean of what a centre is off by keeps the digits of clusters far from the origin.
        sums = jax.ops.segment_sum(x - centers[nearest], nearest, count)
        sizes = jax.ops.segment_sum(jnp.ones(len(x), x.dtype), nearest, count)[:, None]
        return centers + sums / jnp.maximum(sizes, 1), None

    return unit * jax.lax.scan(step, centers, None, length=iterations)[0]


def _seed(x: Array, key: Array, count: int) -> Array:
    """k-means++: each next centre is a sample drawn in proportion to its squared distance."""
    first, rest = jax.random.split(key)

    def distance(index: Array) -> Array:
        return jnp.sum((x - x[index][None, :]) ** 2, axis=1)

    def step(least: Array, key: Array) -> tuple[Array, Array]:
        # With fewer distinct samples than centres all weights vanish: draw any.
        weights = jnp.where(jnp.max(least) > 0, least, jnp.ones_like(least))
        index = jax.random.categorical(key, jnp.log(weights))
        return jnp.minimum(least, distance(index)), index

    start = jax.random.randint(first, (), 0, len(x))
    _, others = jax.lax.scan(step, distance(start), jax.random.split(rest, count - 1))
    return x[jnp.concatenate([start[None], others.astype(start.dtype)])]
