"""What fits return: a Koopman matrix that is a chain of cores, or coefficients of a kernel."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import tt
from koopjax._core import (
    as_numbers,
    blocks,
    expected,
    held,
    is_tracing,
    message,
    precise,
    pytree,
    read_numbers,
    static,
)
from koopjax.observables import Compose
from koopjax.tensor_edmd._dictionary import check_states, factors_of, modes_of

# Numbers that one block of samples may hold while it is contracted: 32 MB in float64.
_BLOCK_NUMBERS = 2**22


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

    def words(self) -> str:
        """Samples, residual and condition, as `describe` tells them."""
        residual, condition = float(self.residual), float(self.condition)
        samples = f"{int(self.count):,} samples"
        return f"{samples}, relative residual {residual:.3g}, condition {condition:.3g}"


def check_outputs(x: Any, outputs: int, steps: Any) -> int:
    """The number of steps as an int; raises unless it is one that can be taken."""
    whole = isinstance(steps, int | np.integer) and not isinstance(steps, bool)
    if not whole or not 1 <= steps < 2**31:
        raise expected("a whole number of steps, at least 1", f"{steps!r:.60}")
    if steps > 1 and outputs != x.shape[-1]:
        raise expected(
            f"{x.shape[-1]} outputs, the coordinates of the state, to take several steps",
            f"{outputs}",
            "steps=1",
        )
    return int(steps)


class Trained:
    """What is a tensor train with something around it."""

    train: Any

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks of the train, ones at the ends included."""
        return self.train.ranks

    @property
    def numbers(self) -> int:
        """Numbers in the cores."""
        return self.train.numbers


@pytree
class TensorKoopman(Trained):
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

    def predict(self, x: Float[Array, "n d"], steps: int = 1) -> Float[Array, "n q"]:
        """The state after so many steps; lifted again before each of them.

        Args:
            x: `(n, d)`, or `(d,)` for one state.
            steps: at least 1; more than one needs as many outputs as coordinates.

        Returns:
            `(n, q)` in the dtype of `x`. Large batches go through in blocks, so that memory beside
            the data and the answer stays bounded.
        """
        x = self._states(x)
        steps = check_outputs(x, self.train.shape[1], steps)
        with precise(x):
            return _predict(self, x) if steps == 1 else _last(self, x, jnp.int32(steps))

    def simulate(self, x: Float[Array, "n d"], steps: int) -> Float[Array, "steps n d"]:
        """All states on the way, `(steps, n, d)`."""
        x = self._states(x)
        steps = check_outputs(x, self.train.shape[1], steps)
        with precise(x):
            return _simulate(self, x, steps=steps)

    def singular_values(self) -> list[Array]:
        """Singular values at every inner bond, largest first: how much each rank carries.

        Of the coefficient tensor with the outputs in their core: bond k parts the modes up to k
        from the others. `d - 1` arrays; an empty list for a single mode.
        """
        return list(tt.singular_values(self.train))

    def describe(self) -> str:
        """Ranks, size, conditioning, residual and the result code in words."""
        p, q = self.train.shape
        parts = [
            f"{self.info.method or 'tensor train'}: {q} outputs over {p:,} products in "
            f"{self.train.order} cores, ranks {self.ranks}, {self.numbers:,} numbers"
        ]
        if not is_tracing(self.info, self.result):
            parts.append(f"{self.info.words()}, ridge {float(self.info.alpha):.3g}")
            parts.append(f"result: {message(self.result)}")
        if self.info.reason:
            parts.append(f"note: {self.info.reason}")
        return "\n".join(parts)

    __str__ = describe

    def _states(self, x: Any) -> Array:
        listed = not hasattr(x, "dtype")
        x = read_numbers("the states", x)
        x = held("the states", x) if listed else x
        if x.ndim not in (1, 2):
            raise expected("states of shape (n, d) or (d,)", f"shape {tuple(x.shape)}")
        check_states(self.psi, x if x.ndim == 2 else x[None])
        if tuple(modes_of(self.psi)) != tuple(self.train.row_modes):
            raise expected(
                f"a train with the dictionary's modes {modes_of(self.psi)}",
                f"modes {self.train.row_modes}",
                "the dictionary of the fit",
            )
        with precise(x):
            return jnp.asarray(x)


def block_size(train: Any) -> int:
    """Samples contracted at a time."""
    widest = max(core.shape[0] * core.shape[1] + math.prod(core.shape[2:]) for core in train.cores)
    return max(64, _BLOCK_NUMBERS // (widest * max(train.column_modes)))


def evaluate_train(psi: Any, train: Any, x: Array) -> Array:
    """`Ψ(x) K` at states `(n, d)`, block by block; real or complex trains."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    complex_train = jnp.issubdtype(train.dtype, jnp.complexfloating)
    kind = jnp.promote_types(dtype, jnp.complex64) if complex_train else dtype
    train = tt.TTMatrix(tuple(jnp.asarray(core, kind) for core in train.cores))

    def values(rows: Array) -> Array:
        return tt.contract(train, [f.astype(kind) for f in factors_of(psi, rows)])

    size = block_size(train)
    wide = x.astype(dtype)
    if x.shape[0] <= size:
        return values(wide)
    parts, _ = blocks(wide, size)
    out = jax.lax.map(values, parts)
    return out.reshape(-1, out.shape[-1])[: x.shape[0]]


@jax.jit
def _predict(fit: TensorKoopman, x: Array) -> Array:
    rows = x if x.ndim == 2 else x[None]
    out = evaluate_train(fit.psi, fit.train, rows).astype(x.dtype)
    return out if x.ndim == 2 else out[0]


@jax.jit
def _last(fit: TensorKoopman, x: Array, steps: Array) -> Array:
    return jax.lax.fori_loop(0, steps, lambda _, state: _predict(fit, state), x)


@functools.partial(jax.jit, static_argnames="steps")
def _simulate(fit: TensorKoopman, x: Array, *, steps: int) -> Array:
    return _walked(lambda state: _predict(fit, state), x, steps)


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
        psi = self.psi
        while isinstance(psi, Compose):
            psi = psi.then
        return int(psi.centers.size + self.matrix.size)

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
        return kernel_times(self.psi, self._states(x), self.matrix, rows=batch_size)

    def simulate(
        self, x: Float[Array, "n d"], steps: int, *, batch_size: int | None = None
    ) -> Float[Array, "steps n d"]:
        """All states on the way, `(steps, n, d)`."""
        x = self._states(x)
        steps = check_outputs(x, self.matrix.shape[1], steps)
        return _simulate_kernel(self.psi, self.matrix, x, steps=steps, rows=batch_size)

    def _states(self, x: Any) -> Array:
        x = as_numbers("the states", x)
        if x.ndim not in (1, 2):
            raise expected("states of shape (n, d) or (d,)", f"shape {x.shape}")
        self.psi.size(x.shape[-1])
        return x


@functools.partial(jax.jit, static_argnames="rows")
def kernel_times(psi: Any, x: Array, matrix: Array, *, rows: int | None) -> Array:
    """`psi(x) @ matrix` by blocks of rows, at one or many states; maps may stand in front."""
    states = x if x.ndim == 2 else x[None]
    while isinstance(psi, Compose):
        states, psi = psi.first(states), psi.then
    out = psi.times(states, matrix, rows=rows)
    return out if x.ndim == 2 else out[0]


@functools.partial(jax.jit, static_argnames=("steps", "rows"))
def _simulate_kernel(psi: Any, matrix: Array, x: Array, *, steps: int, rows: int | None) -> Array:
    return _walked(lambda s: kernel_times(psi, s, matrix, rows=rows).astype(x.dtype), x, steps)


def _walked(after: Any, x: Array, steps: int) -> Array:
    """All states on the way; one step may lead elsewhere than to a state."""
    if steps == 1:
        return after(x)[None]
    return jax.lax.scan(lambda state, _: (after(state),) * 2, x, length=steps)[1]
