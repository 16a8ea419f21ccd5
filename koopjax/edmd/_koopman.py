"""The Koopman operator that a fit returns: prediction, spectrum, modes, residuals."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from koopjax._core import (
    as_states,
    as_whole,
    at_least_float32,
    eig,
    expected,
    held_leaves,
    is_tracing,
    is_wide,
    leave,
    left_vectors,
    matmul,
    precise,
    precise_for,
    promoted,
    pytree,
)
from koopjax.edmd._accumulate import block_rows
from koopjax.edmd._inputs import batches_of, check_arrays, check_sound, peek
from koopjax.edmd._statistics import Gram

_eig = jax.jit(eig)
_left = jax.jit(left_vectors)


@jax.jit
def _eigenfunctions(psi: Any, vectors: Array, x: Array) -> Array:
    return _along(psi, vectors, _as_fitted(x, vectors))


def _as_fitted(x: Array, *fitted: Any) -> Array:
    """States in float64 where what they meet was fitted in it."""
    return x.astype(jnp.float64) if is_wide(fitted) else x


def _along(psi: Any, vectors: Array, x: Array) -> Array:
    """`Ψ(x) V`, complex, in the wider precision of both."""
    z = psi(x)
    dtype = promoted(z.dtype, vectors.dtype)
    return matmul(z.astype(dtype), vectors.astype(dtype))


@jax.jit
def _modes(left: Array, readout: Array) -> Array:
    return matmul(jnp.conj(left).T, readout.astype(left.dtype))


def check_width(name: str, psi: Any, p: int, x: Any) -> None:
    """Raise unless states have as many coordinates as those of the fit, as far as sizes tell.

    A dictionary without arrays of its own takes any number, and would fail in the product only.
    """
    d = x.shape[-1]
    size = psi.size(d)
    if size != p:
        raise expected(
            f"{name} with the coordinates of the fit, which give {p} observables",
            f"{d} coordinates, which give {size}",
            "the states as they were fitted",
        )


class Spectrum:
    """What a square matrix on a dictionary says about the dynamics; shared by both operators.

    Conventions: the matrix K acts from the right, `Ψ(y) ≈ Ψ(x) K`. With `K v = λ v` the function
    `φ(x) = Ψ(x) v` is an eigenfunction, `φ(y) = λ φ(x)`. With left vectors `wᴴ K = λ wᴴ`,
    `wᵢᴴ vⱼ = δᵢⱼ`, and a readout `x = Ψ(x) B`, the state is `x = Σⱼ φⱼ(x) mⱼ`, `mⱼ = wⱼᴴ B`.
    """

    psi: Any
    matrix: Any
    readout: Any

    def _square(self, what: str) -> None:
        p, q = self.matrix.shape
        if p != q or getattr(self, "target", None) is not None:
            raise expected(
                f"a square K on one dictionary for {what}",
                f"a ({p}, {q}) matrix onto another dictionary",
                "edmd.fit(psi, x, y) without target",
            )

    def _pairs(self) -> tuple[Array, Array]:
        return _eig(at_least_float32(self.matrix))

    def _read(self, what: str, take: Callable[[Array, Array], Array]) -> Any:
        self._square(what)
        with precise(self.matrix, self.readout):
            found = take(*self._pairs())
        return leave(found)

    def eigenvalues(self) -> Complex[Array, " p"]:
        """Eigenvalues, complex, by falling modulus."""
        return self._read("eigenvalues", lambda values, _: values)

    @property
    def right(self) -> Complex[Array, "p p"]:
        """Right eigenvectors as columns, of unit norm, in the order of `eigenvalues()`."""
        return self._read("eigenvectors", lambda _, vectors: vectors)

    @property
    def left(self) -> Complex[Array, "p p"]:
        """Left eigenvectors as columns, biorthonormal to `right`: `leftᴴ @ right = I`."""
        return self._read("eigenvectors", lambda _, vectors: _left(vectors))

    def eigenfunctions(self, x: Float[Array, "n d"]) -> Complex[Array, "n p"]:
        """Eigenfunctions `φ(x) = Ψ(x) V` at states `(n, d)`, one a column."""
        self._square("eigenfunctions")
        x = self._states(x)
        with precise_for(x, self):
            held = held_leaves(self)
            values = _eigenfunctions(held.psi, held._pairs()[1], jnp.asarray(x))
        return leave(values)

    def modes(self) -> Complex[Array, "p d"]:
        """Koopman modes, one a row: `x = eigenfunctions(x) @ modes()` as far as Ψ spans x."""
        return self._read("modes", lambda _, vectors: _modes(_left(vectors), self.readout))

    def _states(self, x: Any) -> Any:
        x = as_states("the states", x, self)
        if x.ndim not in (1, 2):
            raise expected("states of shape (n, d) or (d,)", f"shape {x.shape}")
        check_width("states", self.psi, self.matrix.shape[0], x)
        return x


def _lifted(koopman: Any, x: Array) -> tuple[Array, Array, Any, Any]:
    """`Ψ(x)`, K and the readout in one dtype, and the dtype to answer in: that of the states."""
    wide = _as_fitted(x, koopman)
    z = koopman.psi(wide)
    readout = None if koopman.readout is None else koopman.readout.astype(z.dtype)
    return z, koopman.matrix.astype(z.dtype), readout, z.dtype if wide is x else x.dtype


@jax.jit
def _predict(koopman: Any, x: Array, steps: Array | None) -> Array:
    """After so many steps of a square matrix; None for one of whatever matrix."""
    z, matrix, readout, dtype = _lifted(koopman, x)
    if steps is None:
        z = matmul(z, matrix)
    else:
        z = jax.lax.fori_loop(0, steps, lambda _, z: matmul(z, matrix), z)
    return (z if readout is None else matmul(z, readout)).astype(dtype)


@functools.partial(jax.jit, static_argnames="steps")
def _simulate(koopman: Any, x: Array, *, steps: int) -> Array:
    z, matrix, readout, dtype = _lifted(koopman, x)

    def step(z: Array, _: None) -> tuple[Array, Array]:
        z = matmul(z, matrix)
        return z, matmul(z, readout).astype(dtype)

    return jax.lax.scan(step, z, length=steps)[1]


@functools.partial(jax.jit, static_argnames="batch")
def _residual_sums(
    psi: Any, values: Array, vectors: Array, x: Array, y: Array, weights: Array, *, batch: int
) -> tuple[Array, Array]:
    """`Σ |Ψ(y) v − λ Ψ(x) v|²` and `Σ |Ψ(x) v|²` for every eigenpair, block by block."""
    n = x.shape[0]
    dtype = promoted(values.real.dtype, x.dtype)
    weights = weights.astype(dtype)

    def step(carry: tuple, start: Array) -> tuple[tuple, None]:
        rows = start + jnp.arange(batch)
        w = jnp.where(rows < n, weights[jnp.minimum(rows, n - 1)], 0)[:, None]
        rows = jnp.minimum(rows, n - 1)
        before = _along(psi, vectors, _as_fitted(x[rows], vectors))
        after = _along(psi, vectors, _as_fitted(y[rows], vectors))
        error = jnp.abs(after - before * values[None, :].astype(before.dtype)) ** 2
        size = jnp.abs(before) ** 2
        sums = (jnp.sum(w * a.astype(dtype), 0) for a in (error, size))
        return tuple(c + s for c, s in zip(carry, sums, strict=True)), None

    zero = jnp.zeros(values.shape, dtype)
    return jax.lax.scan(step, (zero, zero), batch * jnp.arange(-(-n // batch)))[0]


@jax.jit
def _residuals(error: Array, size: Array, values: Array) -> tuple[Array, Array]:
    """Residuals from both sums, and whether the data gave finite ones."""
    sound = jnp.isfinite(error + size).all() | ~jnp.isfinite(values).all()
    tiny = jnp.finfo(values.real.dtype).tiny
    # An eigenfunction that vanishes on the data is no evidence for its eigenvalue.
    return jnp.where(size > tiny, jnp.sqrt(error / jnp.maximum(size, tiny)), jnp.inf), sound


@pytree
class Koopman(Spectrum):
    """A Koopman matrix with its dictionaries: `Ψ_target(y) ≈ Ψ(x) K`.

    Attributes:
        psi: dictionary of the snapshots before.
        target: dictionary of the snapshots after; None for the same.
        matrix: `(p, q)`, acting from the right.
        readout: `(q, d)` linear map from the lifted space to the state; None where the target is
            the state itself.
        info: what the solver found out: rank, condition, residual, ridge, statistics and why.
        result: int32 result code.
    """

    psi: Any
    target: Any
    matrix: Any
    readout: Any
    info: Any
    result: Any

    @property
    def square(self) -> bool:
        """Whether the same dictionary is on both sides, so that K can be iterated."""
        return self.target is None

    def predict(self, x: Float[Array, "n d"], steps: Any = 1) -> Float[Array, "n d_out"]:
        """The state after so many steps, propagated in the lifted space: `Ψ(x) K^steps B`.

        Args:
            x: `(n, d)`, or `(d,)` for one state.
            steps: number of steps, at least 0; a leaf, so another number does not recompile. Other
                than 1 only for a square K.

        Returns:
            `(n, d_out)` in the dtype of the observables. Not lifted again between steps: the error
            over many steps is that of K's invariant subspace, see `residuals`.
        """
        x = self._states(x)
        one = not is_tracing(steps) and as_whole("steps", steps, 0) == 1
        if not one:
            self._square("prediction over several steps")
        with precise_for(x, self):
            count = None if one else jnp.int32(steps)
            out = _predict(held_leaves(self), jnp.asarray(x), count)
        return leave(out)

    def simulate(self, x: Float[Array, "n d"], steps: int) -> Float[Array, "steps n d"]:
        """All states on the way, `(steps, n, d)`: `predict(x, 1)`, ..., `predict(x, steps)`."""
        self._square("a simulation")
        steps, x = as_whole("steps", steps, 1), self._states(x)
        with precise_for(x, self):
            states = _simulate(held_leaves(self), jnp.asarray(x), steps=steps)
        return leave(states)

    def residuals(
        self, x: Any, y: Any = None, weights: Any = None, *, batch_size: int | None = None
    ) -> Float[Array, " p"]:
        """ResDMD residual of every eigenpair: which of them to trust.

        `res_j = ‖(Ψ(Y) − λ_j Ψ(X)) v_j‖ / ‖Ψ(X) v_j‖`. Small means that the pair is close to one
        of the infinite-dimensional operator; a spurious eigenvalue of the matrix has a large one.

        Args:
            x: snapshots before `(n, d)`, fresh ones for choice, or an iterable of pairs.
            y: snapshots after; None with an iterable.
            weights: `(n,)` quadrature weights, not negative; with an iterable None (its triples
                carry them).
            batch_size: rows lifted at a time.

        Returns:
            `(p,)` in the order of `eigenvalues()`. Computed from the vectors themselves, not from
            Gram matrices, so that small residuals are not lost in cancellation.

        Raises:
            ValueError: wrong shapes, NaN or infinity in concrete data, weights as for `fit`.

        Reference: Colbrook & Townsend (2024), Comm. Pure Appl. Math. 77 (ResDMD).
        """
        self._square("residuals")
        batch_size = None if batch_size is None else as_whole("batch_size", batch_size, 1)
        p = self.matrix.shape[0]
        if y is None:
            if weights is not None:
                raise expected("weights only beside arrays", "them beside a stream", "triples")
            pairs, probe = peek(x, self)
            batches = batches_of(pairs, batch_size, 1, self)
        else:
            x, y, weights, _ = check_arrays(x, y, weights, None, self)
            probe = x, y
            batches = [(x, y, np.ones(x.shape[0], np.float32) if weights is None else weights)]
        check_width("x", self.psi, p, probe[0])
        check_width("y", self.psi, p, probe[1])
        with precise_for(probe[0], self):
            residuals = self._from_batches(batches, batch_size)
        return leave(residuals)

    def _from_batches(self, batches: Any, batch_size: int | None) -> Array:
        """The residuals of checked batches, in the precision that they were found to need."""
        held, p = held_leaves(self), self.matrix.shape[0]
        values, vectors = held._pairs()
        error: Any = None
        size: Any = None
        for x_rows, y_rows, w in batches:
            n = x_rows.shape[0]
            batch = min(batch_size or block_rows(n, 4 * p, Gram, None), n)
            with precise_for(x_rows, self):
                x_rows, y_rows, w = jnp.asarray(x_rows), jnp.asarray(y_rows), jnp.asarray(w)
                sums = _residual_sums(held.psi, values, vectors, x_rows, y_rows, w, batch=batch)
                error, size = sums if error is None else (error + sums[0], size + sums[1])
        with precise(error):
            residuals, sound = _residuals(error, size, values)
            check_sound(sound, "sums over the data")
            return residuals
