"""What a tensor-train fit returns: a Koopman matrix that is a chain of cores."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax import tt
from koopjax._core import expected, pytree, static
from koopjax.tensor_edmd._dictionary import factors_of


@pytree
class TensorInfo:
    """What a tensor-train fit says about itself.

    Attributes:
        condition: of the worst least-squares problem that was solved on the way.
        residual: `‖Ψ(x) K − y‖ / ‖y‖` on the samples that were fitted.
        alpha: the ridge, absolute.
        count: samples.
        history: one row a half sweep: training error, validation error (NaN without validation);
            None for a direct method.
        method: "mandy", "als", ... (static).
        reason: why it stopped, which rank it clipped, what it fell back to (static).
    """

    condition: Any
    residual: Any
    alpha: Any
    count: Any
    history: Any = None
    method: str = static(default="")
    reason: str = static(default="")


@pytree
class TensorKoopman:
    """A Koopman matrix over a product dictionary as a tensor train: `y ≈ Ψ(x) K`.

    Attributes:
        psi: a `Product`, or a `Compose` that ends in one.
        train: `TTMatrix` with the dictionary's modes as rows; the columns are the outputs, all of
            them in one core.
        info: `TensorInfo`.
        result: int32 result code, as in `edmd.solve`.
    """

    psi: Any
    train: Any
    info: Any
    result: Any

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks, ones at the ends included."""
        return self.train.ranks

    @property
    def numbers(self) -> int:
        """Numbers in the cores."""
        return self.train.numbers

    def predict(self, x: Float[Array, "n d"], steps: int = 1) -> Float[Array, "n q"]:
        """The state after so many steps; lifted again before each of them.

        Args:
            x: `(n, d)`, or `(d,)` for one state.
            steps: at least 1; more than one needs as many outputs as coordinates.
        """
        return self.simulate(x, steps)[-1] if steps != 1 else _predict(self, jnp.asarray(x))

    def simulate(self, x: Float[Array, "n d"], steps: int) -> Float[Array, "steps n d"]:
        """All states on the way, `(steps, n, d)`."""
        x = jnp.asarray(x)
        if isinstance(steps, bool) or int(steps) != steps or steps < 1:
            raise expected("a whole number of steps, at least 1", f"{steps}")
        if steps > 1 and self.train.shape[1] != x.shape[-1]:
            raise expected(
                f"{x.shape[-1]} outputs, the coordinates of the state, to take several steps",
                f"{self.train.shape[1]}",
                "steps=1",
            )
        return _simulate(self, x, steps=int(steps))


@jax.jit
def _predict(fit: TensorKoopman, x: Array) -> Array:
    rows = x if x.ndim == 2 else x[None]
    out = tt.contract(fit.train, factors_of(fit.psi, rows))
    return out if x.ndim == 2 else out[0]


@functools.partial(jax.jit, static_argnames="steps")
def _simulate(fit: TensorKoopman, x: Array, *, steps: int) -> Array:
    def step(state: Array, _: None) -> tuple[Array, Array]:
        after = _predict(fit, state).astype(x.dtype)
        return (after if steps > 1 else state), after

    return jax.lax.scan(step, x, length=steps)[1]
