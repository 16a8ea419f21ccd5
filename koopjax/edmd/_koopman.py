"""The Koopman operator that a fit returns: prediction, spectrum, modes, residuals."""

import functools
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from koopjax._core import at_least_float32, expected, is_tracing, matmul, pytree
from koopjax.edmd._accumulate import block_rows
from koopjax.edmd._eig import eig, left_vectors
from koopjax.edmd._inputs import batches_of, check_arrays, peek
from koopjax.edmd._statistics import Gram

_eig = jax.jit(eig)
_left = jax.jit(left_vectors)


@jax.jit
def _eigenfunctions(psi: Any, vectors: Array, x: Array) -> Array:
    return matmul(psi(x).astype(vectors.dtype), vectors)


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

    def eigenvalues(self) -> Complex[Array, " p"]:
        """Eigenvalues, complex, by falling modulus."""
        self._square("eigenvalues")
        return self._pairs()[0]

    @property
    def right(self) -> Complex[Array, "p p"]:
        """Right eigenvectors as columns, of unit norm, in the order of `eigenvalues()`."""
        self._square("eigenvectors")
        return self._pairs()[1]

    @property
    def left(self) -> Complex[Array, "p p"]:
        """Left eigenvectors as columns, biorthonormal to `right`: `leftᴴ @ right = I`."""
        return _left(self.right)

    def eigenfunctions(self, x: Float[Array, "n d"]) -> Complex[Array, "n p"]:
        """Eigenfunctions `φ(x) = Ψ(x) V` at states `(n, d)`, one a column."""
        self._square("eigenfunctions")
        return _eigenfunctions(self.psi, self.right, self._states(x))

    def modes(self) -> Complex[Array, "p d"]:
        """Koopman modes, one a row: `x = eigenfunctions(x) @ modes()` as far as Ψ spans x."""
        self._square("modes")
        return _modes(self.left, self.readout)

    def _states(self, x: Any) -> Array:
        x = jnp.asarray(x)
        if x.ndim not in (1, 2):
            raise expected("states of shape (n, d) or (d,)", f"shape {x.shape}")
        check_width("states", self.psi, self.matrix.shape[0], x)
        return x


@jax.jit
def _predict(koopman: Any, x: Array, steps: Array) -> Array:
    z = koopman.psi(x)
    matrix = koopman.matrix.astype(z.dtype)
    z = jax.lax.fori_loop(0, steps, lambda _, z: matmul(z, matrix), z)
    return z if koopman.readout is None else matmul(z, koopman.readout.astype(z.dtype))


@jax.jit
def _predict_once(koopman: Any, x: Array) -> Array:
    z = koopman.psi(x)
    z = matmul(z, koopman.matrix.astype(z.dtype))
    return z if koopman.readout is None else matmul(z, koopman.readout.astype(z.dtype))


@functools.partial(jax.jit, static_argnames="steps")
def _simulate(koopman: Any, x: Array, *, steps: int) -> Array:
    z = koopman.psi(x)
    matrix = koopman.matrix.astype(z.dtype)

    def step(z: Array, _: None) -> tuple[Array, Array]:
        z = matmul(z, matrix)
        return z, matmul(z, koopman.readout.astype(z.dtype))

    return jax.lax.scan(step, z, length=steps)[1]


@functools.partial(jax.jit, static_argnames="batch")
def _residual_sums(
    psi: Any, values: Array, vectors: Array, x: Array, y: Array, weights: Array, *, batch: int
) -> tuple[Array, Array]:
    """`Σ |Ψ(y) v − λ Ψ(x) v|²` and `Σ |Ψ(x) v|²` for every eigenpair, block by block."""
    n = x.shape[0]

    def step(carry: tuple, start: Array) -> tuple[tuple, None]:
        rows = start + jnp.arange(batch)
        w = jnp.where(rows < n, weights[jnp.minimum(rows, n - 1)], 0)[:, None]
        rows = jnp.minimum(rows, n - 1)
        before = matmul(psi(x[rows]).astype(vectors.dtype), vectors)
        after = matmul(psi(y[rows]).astype(vectors.dtype), vectors)
        error = jnp.abs(after - before * values[None, :]) ** 2
        size = jnp.abs(before) ** 2
        return (carry[0] + jnp.sum(w * error, 0), carry[1] + jnp.sum(w * size, 0)), None

    zero = jnp.zeros(values.shape, values.real.dtype)
    return jax.lax.scan(step, (zero, zero), batch * jnp.arange(-(-n // batch)))[0]


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
        if not is_tracing(steps):
            # Also what NumPy and JAX call one step.
            if np.ndim(steps) != 0 or not float(steps).is_integer() or steps < 0:
                raise expected("a whole number of steps, at least 0", f"{steps}")
            if steps == 1:
                return _predict_once(self, x)
        self._square("prediction over several steps")
        return _predict(self, x, jnp.asarray(steps, jnp.int32))

    def simulate(self, x: Float[Array, "n d"], steps: int) -> Float[Array, "steps n d"]:
        """All states on the way, `(steps, n, d)`: `predict(x, 1)`, ..., `predict(x, steps)`."""
        self._square("a simulation")
        if not isinstance(steps, numbers.Integral) or steps < 1:
            raise expected("a whole number of steps, at least 1", f"{steps}")
        return _simulate(self, self._states(x), steps=int(steps))

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
        if batch_size is not None and batch_size < 1:
            raise expected("a batch_size of at least 1", f"{batch_size}")
        p = self.matrix.shape[0]
        if y is None:
            if weights is not None:
                raise expected("weights only beside arrays", "them beside a stream", "triples")
            pairs, probe = peek(x)
            batches = batches_of(pairs, batch_size, 1)
        else:
            x, y, weights, _ = check_arrays(x, y, weights, None)
            probe = x, y
            batches = [(x, y, jnp.ones(x.shape[0], x.dtype) if weights is None else weights)]
        check_width("x", self.psi, p, probe[0])
        check_width("y", self.psi, p, probe[1])
        values, vectors = self._pairs()
        error, size = 0.0, 0.0
        for x_rows, y_rows, w in batches:
            n = x_rows.shape[0]
            batch = min(batch_size or block_rows(n, 4 * p, Gram, None), n)
            w = jnp.asarray(w).astype(values.real.dtype)
            sums = _residual_sums(self.psi, values, vectors, x_rows, y_rows, w, batch=batch)
            error, size = error + sums[0], size + sums[1]
        sound = jnp.isfinite(error + size).all() | ~jnp.isfinite(values).all()
        if not is_tracing(sound) and not bool(sound):
            raise expected(
                "finite observables on finite data",
                "NaN or infinity in the sums over the data",
                "cleaning the snapshots",
            )
        tiny = jnp.finfo(values.real.dtype).tiny
        # An eigenfunction that vanishes on the data is no evidence for its eigenvalue.
        return jnp.where(size > tiny, jnp.sqrt(error / jnp.maximum(size, tiny)), jnp.inf)
