"""Integration in time, shared by the systems that have no closed-form flow."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import expected

Drift = Callable[[Float[Array, "... d"]], Float[Array, "... d"]]


def runge_kutta(drift: Drift, x: Array, dt: Array | float, substeps: int) -> Array:
    """State after a time `dt` by `substeps` classical fourth-order steps; dtype kept.

    Args:
        drift: the right-hand side, of states `(..., d)`.
        x: states `(..., d)`.
        dt: time.
        substeps: static.
    """
    h = jnp.asarray(dt, x.dtype) / substeps

    def advance(x, _):
        k1 = drift(x)
        k2 = drift(x + 0.5 * h * k1)
        k3 = drift(x + 0.5 * h * k2)
        k4 = drift(x + h * k3)
        return x + (h / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    return jax.lax.scan(advance, x, None, length=substeps)[0]


def uniform(
    system: str, key: Array, n: int, d: int, low: float, high: float, dtype: jnp.dtype | type
) -> Float[Array, "n d"]:
    """Initial states, independent and uniform in a box."""
    if n < 1:
        raise expected(f"systems.{system}: at least one sample", f"n={n}", "n=1000")
    return jax.random.uniform(key, (n, d), dtype, low, high)


def trajectory(
    step: Callable[[Array], Array], x: Float[Array, "... d"], steps: int
) -> Float[Array, "steps+1 ... d"]:
    """States at times 0, 1, ..., `steps`, the initial one included.

    Args:
        step: one step, such as `system.step`.
        x: initial state or states.
        steps: static.
    """

    def advance(x, _):
        y = step(x)
        return y, y

    later = jax.lax.scan(advance, x, None, length=steps)[1]
    return jnp.concatenate([x[None], later])
