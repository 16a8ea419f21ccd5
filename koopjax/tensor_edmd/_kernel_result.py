"""What a kernel fit returns: coefficients of inner products with centres."""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from koopjax._core import as_numbers, expected, pytree, static
from koopjax.observables import Compose, ProductKernel


@pytree
class KernelInfo:
    """What a kernel fit says about itself.

    Attributes:
        condition: estimate for the matrix that was factored, its damping counted in: the samples'
            kernel matrix, or that of the landmarks.
        residual: `‖k(x, c) K − y‖ / ‖y‖` on the samples.
        solved: relative residual of the linear system; that of the iteration for "cg" and
            "nystrom".
        alpha: the ridge that was used, absolute.
        count: samples.
        landmarks: centres.
        iterations: of conjugate gradients; 0 for a direct solve.
        scores: `‖k(x_val, c) K − y_val‖ / ‖y_val‖` for each ridge of a grid, else None.
        method: "cholesky", "eigh", "cg" or "nystrom" (static).
        dtype: in which it was solved (static).
        reason: why that method and dtype, and what was changed on the way (static).
    """

    condition: Any
    residual: Any
    solved: Any
    alpha: Any
    count: Any
    landmarks: Any
    iterations: Any
    scores: Any = None
    method: str = static(default="")
    dtype: str = static(default="")
    reason: str = static(default="")


@pytree
class KernelKoopman:
    """A Koopman matrix over a product dictionary in its kernel form: `y ≈ k(x, c) K`.

    The coefficients over the full dictionary are `Ψ(c)ᵀ K`; they are never formed.

    Attributes:
        psi: `ProductKernel`, or a `Compose` that ends in one.
        matrix: `(m, q)`, a row a centre.
        readout: None, as for any fit onto the state itself.
        info: `KernelInfo`.
        result: int32 result code.
    """

    psi: Any
    matrix: Any
    readout: Any
    info: Any
    result: Any

    @property
    def numbers(self) -> int:
        """Numbers in the centres and the coefficients."""
        return int(kernel_part(self.psi).centers.size + self.matrix.size)

    def predict(
        self, x: Float[Array, "n d"], steps: int = 1, *, batch_size: int | None = None
    ) -> Float[Array, "n q"]:
        """The state after so many steps; lifted again before each of them.

        Args:
            x: `(n, d)`, or `(d,)` for one state.
            steps: at least 1; more than one needs as many outputs as coordinates.
            batch_size: rows evaluated at a time; None chooses by size. Kernel values are held for
                one batch only.
        """
        if steps != 1:
            return self.simulate(x, steps, batch_size=batch_size)[-1]
        x = self._states(x)
        return _predict(self.psi, self.matrix, x, rows=batch_size)

    def simulate(
        self, x: Float[Array, "n d"], steps: int, *, batch_size: int | None = None
    ) -> Float[Array, "steps n d"]:
        """All states on the way, `(steps, n, d)`."""
        x = self._states(x)
        if isinstance(steps, bool) or int(steps) != steps or steps < 1:
            raise expected("a whole number of steps, at least 1", f"{steps}")
        if steps > 1 and self.matrix.shape[1] != x.shape[-1]:
            raise expected(
                f"{x.shape[-1]} outputs, the coordinates of the state, to take several steps",
                f"{self.matrix.shape[1]}",
                "steps=1",
            )
        return _simulate(self.psi, self.matrix, x, steps=int(steps), rows=batch_size)

    def _states(self, x: Any) -> Array:
        x = as_numbers("the states", x)
        if x.ndim not in (1, 2):
            raise expected("states of shape (n, d) or (d,)", f"shape {x.shape}")
        self.psi.size(x.shape[-1])
        return x


def kernel_part(psi: Any) -> ProductKernel:
    """The kernel at the end of a chain of dictionaries."""
    while isinstance(psi, Compose):
        psi = psi.then
    return psi


def times(psi: Any, x: Array, matrix: Array, rows: int | None) -> Array:
    """`psi(x) @ matrix` by blocks of rows, for a kernel with maps in front."""
    while isinstance(psi, Compose):
        x, psi = psi.first(x), psi.then
    return psi.times(x, matrix, rows=rows)


@functools.partial(jax.jit, static_argnames="rows")
def _predict(psi: Any, matrix: Array, x: Array, *, rows: int | None) -> Array:
    out = times(psi, x if x.ndim == 2 else x[None], matrix, rows)
    return out if x.ndim == 2 else out[0]


@functools.partial(jax.jit, static_argnames=("steps", "rows"))
def _simulate(psi: Any, matrix: Array, x: Array, *, steps: int, rows: int | None) -> Array:
    def step(state: Array, _: None) -> tuple[Array, Array]:
        after = _predict(psi, matrix, state, rows=rows).astype(x.dtype)
        return (after if steps > 1 else state), after

    return jax.lax.scan(step, x, length=steps)[1]
