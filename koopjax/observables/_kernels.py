"""Local and global kernels as dictionaries: Gaussians about centres, random Fourier features."""

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
from koopjax.observables._kmeans import k_means, squared_distances, unit_of


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

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names `rbf0`, `rbf1`, ..."""
        input_names(d, inputs)
        return [f"rbf{j}" for j in range(self.size(d))]

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
