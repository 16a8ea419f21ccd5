"""k-means in scans: k-means++ seeding, Lloyd's steps, distances by a matrix product."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import matmul


def squared_distances(x: Float[Array, "n d"], centers: Float[Array, "p d"]) -> Float[Array, "n p"]:
    """`|x_i - c_j|²`, not negative, by one matrix product.

    Both are moved to the centres' mean first: `|x|² - 2 x·c + |c|²` cancels badly far from zero.
    """
    origin = jax.lax.stop_gradient(jnp.mean(centers, axis=0))[None, :]
    x, centers = x - origin, centers - origin
    inner = matmul(x, centers.T)
    squares = jnp.sum(x**2, axis=1)[:, None] - 2 * inner + jnp.sum(centers**2, axis=1)[None, :]
    return jnp.maximum(squares, 0)


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
    mean = jnp.mean(x, axis=0)
    x = x - mean[None, :]
    centers = _seed(x, key, count)

    def step(centers: Array, _: None) -> tuple[Array, None]:
        nearest = jnp.argmin(squared_distances(x, centers), axis=1)
        sums = jax.ops.segment_sum(x, nearest, count)
        sizes = jax.ops.segment_sum(jnp.ones(len(x), x.dtype), nearest, count)[:, None]
        return jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), centers), None

    centers, _ = jax.lax.scan(step, centers, None, length=iterations)
    return centers + mean[None, :]


def _seed(x: Array, key: Array, count: int) -> Array:
    """k-means++: each next centre is a sample drawn in proportion to its squared distance."""
    squares = jnp.sum(x**2, axis=1)
    first, rest = jax.random.split(key)

    def distance(index: Array) -> Array:
        chosen = x[index]
        away = squares - 2 * matmul(x, chosen) + squares[index]
        # A sample is at distance zero from itself, whatever rounding says, and not drawn again.
        return jnp.maximum(away, 0).at[index].set(0)

    def step(least: Array, key: Array) -> tuple[Array, Array]:
        # With fewer distinct samples than centres all weights vanish: draw any.
        weights = jnp.where(jnp.max(least) > 0, least, jnp.ones_like(least))
        index = jax.random.categorical(key, jnp.log(weights))
        return jnp.minimum(least, distance(index)), index

    start = jax.random.randint(first, (), 0, len(x))
    _, others = jax.lax.scan(step, distance(start), jax.random.split(rest, count - 1))
    return x[jnp.concatenate([start[None], others.astype(start.dtype)])]
