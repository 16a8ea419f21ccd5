"""Integration in time, shared by the systems that have no closed-form flow."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import as_numbers, as_whole, check_number, expected, read

MOST_SAMPLES = 1 << 31


def runge_kutta(
    drift: Callable[[Float[Array, "... d"]], Float[Array, "... d"]],
    x: Array,
    dt: Array | float,
    substeps: int,
) -> Array:
    """State after a time `dt` by `substeps` classical fourth-order steps; dtype kept.

    Args:
        drift: the right-hand side, of states `(..., d)`.
        x: states `(..., d)`.
        dt: time, one or of a shape that broadcasts against the states'.
        substeps: static.
    """
    x = as_numbers("systems.runge_kutta: states", x)
    if jnp.ndim(dt) == 0:
        check_number("systems.runge_kutta: the time dt", dt, -math.inf)
    dt = as_numbers("systems.runge_kutta: the time dt", dt).astype(x.dtype)
    pairs = zip(dt.shape[::-1], x.shape[::-1], strict=False)
    if dt.ndim > x.ndim or any(m not in (1, n) for m, n in pairs):
        wanted = f"systems.runge_kutta: one time dt, or some that go with states {x.shape}"
        raise expected(wanted, f"shape {dt.shape}", "dt[:, None] for one a state")
    h = dt / as_whole("systems.runge_kutta: substeps", substeps, 1)
    _require_alike("systems.runge_kutta: a drift", drift, x)

    def advance(x: Array, _: None) -> tuple[Array, None]:
        k1 = drift(x)
        k2 = drift(x + 0.5 * h * k1)
        k3 = drift(x + 0.5 * h * k2)
        k4 = drift(x + h * k3)
        return x + (h / 6.0) * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    return jax.lax.scan(advance, x, None, length=substeps)[0]


def trajectory(
    step: Callable[[Array], Array], x: Float[Array, "... d"], steps: int
) -> Float[Array, "steps+1 ... d"]:
    """States at times 0, 1, ..., `steps`, the initial one included.

    Args:
        step: one step, such as `system.step`.
        x: initial state or states.
        steps: static.
    """
    x = as_numbers("systems.trajectory: states", x)
    steps = as_whole("systems.trajectory: steps", steps, 0, MOST_SAMPLES)
    _require_alike("systems.trajectory: a step", step, x)

    def advance(x: Array, _: None) -> tuple[Array, Array]:
        y = step(x)
        return y, y

    later = jax.lax.scan(advance, x, None, length=steps)[1]
    return jnp.concatenate([x[None], later])


def _require_alike(name: str, function: Callable[[Array], Array], x: Array) -> None:
    """Raise unless a function of states gives an array like them."""
    if not callable(function):
        raise expected(f"{name} that can be called", f"{function!r:.60}")
    after = jax.eval_shape(lambda x: read(f"the value of {name}", function(x)), x)
    if (after.shape, after.dtype) != (x.shape, x.dtype):
        wanted = f"{name} from states {x.dtype}{x.shape} to such"
        raise expected(wanted, f"{after.dtype}{after.shape}")
