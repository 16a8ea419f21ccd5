"""The generator of the Koopman semigroup from drift and diffusion (gEDMD), by autodiff."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Complex, Float

from koopjax._core import (
    NONFINITE_SOLUTION,
    SUCCESS,
    as_numbers,
    as_rows,
    at_least_float32,
    check_dictionary,
    check_finite,
    eig,
    expected,
    held_leaves,
    leave,
    matmul,
    precise,
    precise_as,
    precise_for,
    pytree,
    static,
    worst,
)
from koopjax.edmd._accumulate import Lift
from koopjax.edmd._fit import regress
from koopjax.edmd._koopman import Koopman, Spectrum

#: Squarings at most: of `exp(time · L)` with a longer time rounding leaves only what is exact.
SQUARINGS = 64
#: Steps of balancing.
BALANCING = 32


@pytree
class Derivatives:
    """`L ψ` as a dictionary of `[x, b(x), σ(x)]`, so that the statistics need nothing special.

    `(L ψ)(x) = b · ∇ψ + ½ Σ_k σ_kᵀ ∇²ψ σ_k`: a directional derivative for the drift, a second one
    for each column of the diffusion, all forward mode.
    """

    psi: Any
    d: int = static()  # coordinates
    noises: int = static(default=0)  # columns of the diffusion

    def size(self, d: int) -> int:
        """As many as the dictionary has on the state alone."""
        del d
        return self.psi.size(self.d)

    def __call__(self, rows: Float[Array, "n m"]) -> Float[Array, "n p"]:
        """`(n, d + d + d·noises)` to `(n, p)`."""
        x, drift = rows[:, : self.d], rows[:, self.d : 2 * self.d]
        _, value = jax.jvp(self.psi, (x,), (drift,))
        if not self.noises:
            return value
        columns = rows[:, 2 * self.d :].reshape(-1, self.d, self.noises)

        def second(total: Array, column: Array) -> tuple[Array, None]:
            along = lambda z: jax.jvp(self.psi, (z,), (column,))[1]
            return total + 0.5 * jax.jvp(along, (x,), (column,))[1], None

        return jax.lax.scan(second, value, jnp.moveaxis(columns, -1, 0))[0]


@jax.jit
def _ordered(matrix: Array) -> tuple[Array, Array]:
    values, vectors = eig(matrix)
    order = jnp.lexsort((-values.imag, -values.real))
    return values[order], vectors[:, order]


def _balance(matrix: Array) -> Array:
    """Exponents `e` for which rows and columns of `2^-e A 2^e` are about as large.

    Entries that are nothing but rounding, zeros too, count as rounding squared, which bounds the
    exponents. All indices move at once, by half of what each would on its own.
    """
    size = jnp.log(jnp.abs(jax.lax.stop_gradient(matrix)))
    diagonal = jnp.eye(len(matrix), dtype=bool)
    floor = jnp.max(jnp.where(diagonal, -jnp.inf, size)) + 2 * jnp.log(jnp.finfo(size.dtype).eps)
    floor = jnp.where(jnp.isfinite(floor), floor, 0)
    size = jnp.where(diagonal, floor, jnp.maximum(size, floor))

    def step(_: Any, e: Array) -> Array:
        moved = size + e[None, :] - e[:, None]
        rows, columns = (jax.nn.logsumexp(moved, axis=k) for k in (1, 0))
        return e + (rows - columns) / 4

    e = jax.lax.fori_loop(0, BALANCING, step, jnp.zeros_like(size[0]))
    return jnp.round(e / jnp.log(2.0)).astype(jnp.int32)


def _norm(matrix: Array) -> Array:
    return jnp.max(jnp.sum(jnp.abs(matrix), axis=0))


@jax.jit
def _flow(matrix: Array, time: Array) -> Array:
    """`exp(time · L)` by scaling and squaring of the balanced matrix; infinity beyond the range.

    JAX's own gives up after some squarings, and meets `0 · ∞` where what grows overflows.
    """
    wide = at_least_float32(matrix)
    time = time.astype(jnp.abs(wide).dtype)
    e = _balance(wide)
    shift = jnp.ldexp(jnp.ones((), time.dtype), e[None, :] - e[:, None])
    shift = jnp.where(_norm(wide * shift) < _norm(wide), shift, 1)
    wide = wide * shift
    halvings = jnp.ceil(jnp.log2(_norm(wide)) + jnp.log2(jnp.abs(time)))
    halvings = jax.lax.stop_gradient(jnp.maximum(halvings, 0)).astype(jnp.int32)
    start = jax.scipy.linalg.expm(wide * jnp.ldexp(time, -halvings), max_squarings=1)
    most = (float(jnp.finfo(time.dtype).max) / (4 * len(matrix))) ** 0.5

    def squared(flow: Array) -> Array:
        held = flow * (most / jnp.maximum(jnp.abs(flow), most))
        return matmul(held, held)

    def step(flow: Array, k: Array) -> tuple[Array, None]:
        return jax.lax.cond(k < halvings, squared, lambda same: same, flow), None

    flow, _ = jax.lax.scan(step, start, jnp.arange(SQUARINGS))
    flow = jnp.where(jnp.abs(flow) > most**2 / 4, jnp.sign(flow) * jnp.inf, flow)
    return (flow / shift).astype(matrix.dtype)


@jax.jit
def _flow_and_code(matrix: Array, time: Array, result: Array) -> tuple[Array, Array]:
    flow = _flow(matrix, time)
    return flow, worst(result, jnp.where(jnp.isfinite(flow).all(), SUCCESS, NONFINITE_SOLUTION))


def _product(a: Array, b: Array) -> Array:
    """`a @ b` where `b` may have infinities, which zeros in `a` do not meet."""
    lost = jnp.isinf(b)
    beyond = matmul(a, jnp.where(lost, jnp.sign(b), 0))
    return jnp.where(beyond == 0, matmul(a, jnp.where(lost, 0, b)), jnp.sign(beyond) * jnp.inf)


@jax.jit
def _predict(operator: Any, x: Array, time: Array) -> Array:
    z = operator.psi(x)
    flow = _flow(operator.matrix, time).astype(z.dtype)
    # The readout first: sums over the states then meet no infinity that it leaves out.
    return _product(z, _product(operator.readout.T, flow.T).T)


@pytree
class Generator(Spectrum):
    """The generator on a dictionary: `d/dt E[Ψ(x_t)] ≈ Ψ(x) L`, L acting from the right.

    Eigenvalues are those of continuous time, the slowest first (by falling real part);
    eigenfunctions, left and right vectors and modes are as for `Koopman`.

    Attributes:
        psi: dictionary.
        matrix: `(p, p)`.
        readout: `(p, d)` linear map from the lifted space to the state.
        info: what the solver found out.
        result: int32 result code.
    """

    psi: Any
    matrix: Any
    readout: Any
    info: Any
    result: Any

    def _pairs(self) -> tuple[Array, Array]:
        return _ordered(at_least_float32(self.matrix))

    def eigenvalues(self) -> Complex[Array, " p"]:
        """Eigenvalues of continuous time, complex, by falling real part."""
        return super().eigenvalues()

    def koopman(self, time: Any) -> Koopman:
        """The Koopman operator of a time step: `K = exp(time · L)`.

        Its result code is `NONFINITE_SOLUTION` where the exponential overflows.
        """
        with precise(self.matrix):
            at = _instant(time, self.matrix.dtype)
            matrix, code = _flow_and_code(self.matrix, at, self.result)
        return Koopman(self.psi, None, matrix, self.readout, self.info, code)

    def predict(self, x: Float[Array, "n d"], time: Any) -> Float[Array, "n d"]:
        """The expected state after a time: `Ψ(x) exp(time · L) B`; time is a leaf.

        Infinite where it overflows. Beyond `2^64 / ‖L‖` a time counts as that long.
        """
        x = self._states(x)
        with precise_for(x, self):
            at = _instant(time, self.matrix.dtype)
            states = _predict(held_leaves(self), jnp.asarray(x), at)
        return leave(states)


def _instant(time: Any, dtype: Any) -> Array:
    """A finite time as a scalar."""
    time = as_numbers("time", time)
    if time.ndim:
        raise expected("one time, a number", f"shape {time.shape}", "jax.vmap over times")
    check_finite("time", time)
    return time.astype(dtype)


def _field(name: str, field: Any, x: Array, shapes: tuple[tuple[int, ...], ...]) -> Array:
    """A vector field at the samples: a function of the batch, or its values."""
    values = as_numbers(name, field(x) if callable(field) else field)
    if len(values.shape) not in {len(s) for s in shapes} or not any(
        len(s) == values.ndim and all(a in (-1, b) for a, b in zip(s, values.shape, strict=True))
        for s in shapes
    ):
        text = " or ".join(str(s).replace("-1", "k") for s in shapes)
        raise expected(f"{name} of shape {text}", f"{values.shape}", "one row for each sample")
    return values.astype(x.dtype)


def generator(
    psi: Any,
    x: Float[Array, "n d"],
    drift: Callable | Any,
    diffusion: Callable | Any = None,
    *,
    solver: Any = None,
    statistics: Any = "auto",
    weights: Any = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    accumulate_dtype: Any = None,
    memory_limit: int | None = None,
) -> Generator:
    """gEDMD: the generator `L` with `(b · ∇Ψ + ½ tr(σσᵀ ∇²Ψ))(x) ≈ Ψ(x) L`.

    For `dx = b(x) dt + σ(x) dW` (Itô); without diffusion the Liouville generator of an ordinary
    differential equation. Derivatives of the dictionary are taken by forward-mode autodiff.

    Args:
        psi: dictionary; smooth where the data lie (twice, with diffusion).
        x: `(n, d)` states.
        drift: function of the batch `(n, d)` to `(n, d)`, or the values themselves.
        diffusion: None; function of the batch to `(n, d, k)`; values; or one constant `(d, k)`.
        solver: as for `fit`, and so are all other arguments.
        statistics: "auto", "gram" or "rfactor".
        weights: `(n,)`.
        batch_size: rows lifted at a time.
        mesh: divide the rows over its devices.
        accumulate_dtype: dtype of the sums.
        memory_limit: bytes.

    Returns:
        Generator: eigenvalues of continuous time, eigenfunctions, modes, prediction.

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import edmd, observables
        >>> x = jnp.linspace(-1.0, 1.0, 20)[:, None]
        >>> operator = edmd.generator(observables.Monomials(2), x, lambda x: -0.5 * x)
        >>> [round(float(v), 4) for v in abs(operator.eigenvalues().real)]
        [0.0, 0.5, 1.0]

    Reference: Klus, Nüske, Peitz, Niemann, Clementi & Schütte (2020), Physica D 406 (gEDMD).
    """
    check_dictionary("psi", psi)
    x = as_rows(x, psi)
    n, d = x.shape
    noises = 0
    with precise_as(x.dtype):
        x = jnp.asarray(x)
        parts = [x, _field("drift", drift, x, ((n, d),))]
        if diffusion is not None:
            sigma = _field("diffusion", diffusion, x, ((n, d, -1), (d, -1)))
            noises = sigma.shape[-1]
            parts.append(jnp.broadcast_to(sigma.reshape(-1, d * noises), (n, d * noises)))
        rows = jnp.concatenate(parts, axis=1)
    lift = Lift(psi, Derivatives(psi, d, noises), "x")
    solution, readout = regress(
        lift, x, rows, weights, solver, statistics, None, batch_size=batch_size, mesh=mesh,
        accumulate_dtype=accumulate_dtype, memory_limit=memory_limit,
    )  # fmt: skip
    return Generator(psi, solution.value, readout, solution.info, solution.result)
