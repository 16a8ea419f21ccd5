"""What a tensor-train fit returns: a Koopman matrix that is a chain of cores."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import tt
from koopjax._core import (
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
        with precise(self.train.cores):
            return list(_bond_values(self.train.cores))

    def describe(self) -> str:
        """Ranks, size, conditioning, residual and the result code in words."""
        p, q = self.train.shape
        parts = [
            f"{self.info.method or 'tensor train'}: {q} outputs over {p:,} products in "
            f"{self.train.order} cores, ranks {self.ranks}, {self.numbers:,} numbers"
        ]
        if not is_tracing(self.info, self.result):
            parts.append(
                f"{int(self.info.count):,} samples, relative residual "
                f"{float(self.info.residual):.3g}, condition {float(self.info.condition):.3g}, "
                f"ridge {float(self.info.alpha):.3g}"
            )
            parts.append(f"result: {message(self.result)}")
        if self.info.reason:
            parts.append(f"note: {self.info.reason}")
        return "\n".join(parts)

    def __str__(self) -> str:
        """As `describe`."""
        return self.describe()

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
    if steps == 1:
        return _predict(fit, x)[None]

    def step(state: Array, _: None) -> tuple[Array, Array]:
        after = _predict(fit, state)
        return after, after

    return jax.lax.scan(step, x, length=steps)[1]


@jax.jit
def _bond_values(cores: tuple[Array, ...]) -> tuple[Array, ...]:
    """Right-orthogonalise, then go left to right: the R factor met at a bond has its values."""
    cores = tuple(c.reshape(c.shape[0], -1, c.shape[-1]) for c in cores)
    dot = functools.partial(jnp.matmul, precision="highest")
    kept = [cores[-1].reshape(cores[-1].shape[0], -1)]
    for core in cores[-2::-1]:
        q, r = jnp.linalg.qr(kept[-1].T)
        kept[-1] = q.T
        r0, n, _ = core.shape
        kept.append(dot(core.reshape(r0 * n, -1), r.T).reshape(r0, -1))
    kept = kept[::-1]
    carry = jnp.eye(1, dtype=cores[0].dtype)
    values = []
    for core, first in zip(kept[:-1], cores[:-1], strict=True):
        block = dot(carry, core).reshape(carry.shape[0] * first.shape[1], -1)
        carry = jnp.linalg.qr(block, mode="r")
        values.append(jnp.linalg.svd(carry, compute_uv=False))
    return tuple(values)
