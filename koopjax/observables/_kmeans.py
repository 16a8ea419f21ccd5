"""Squared distances, differences first; k-means in scans."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Coordinates in one pass over a block of distances, and distances in a block: it stays near the
# cache, and the passes are few.
UNROLL = 16
BLOCK = 2**19


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
    """Centres of `count` clusters.

    Args:
        x: data; `count <= n`.
        key: for the seeding.
        count: number of centres.
        iterations: Lloyd steps.

    Returns:
        `(count, d)` centres. A cluster that runs empty keeps its centre.
    """
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
