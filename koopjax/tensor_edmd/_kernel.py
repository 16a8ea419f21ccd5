"""The kernel form of tensor-based EDMD: regression on inner products with centres."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_SOLUTION,
    RANK_DEFICIENT,
    SUCCESS,
    as_pair,
    cast,
    check_finite,
    expected,
    gram,
    has_float64,
    has_x64,
    own_rules,
    precise_as,
    read_numbers,
    traced,
    worst,
)
from koopjax.observables import ProductKernel
from koopjax.tensor_edmd import _kernel_solve as solver
from koopjax.tensor_edmd._dictionary import separable, through, with_product
from koopjax.tensor_edmd._kernel_plan import (
    PRECONDITIONER,
    Plan,
    check_settings,
    landmarks_of,
    plan_for,
)
from koopjax.tensor_edmd._result import KernelInfo, KernelKoopman, kernel_times

# Share of the digits that the ridge has to leave a factor in single precision.
SINGLE = 1e-2
# Largest number of samples for which a singular kernel without ridge is taken by eigenvalues.
LARGEST_SPECTRAL = 3_000
# How much a damping is raised when a factor fails, and how often at most.
RAISE, ATTEMPTS = 10.0, 8


@own_rules()
def kernel(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    *,
    alpha: Any = 0.0,
    centers: Any = None,
    method: str = "auto",
    x_val: Any = None,
    y_val: Any = None,
    tolerance: float = 1e-4,
    max_iterations: int = 100,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    key: Array | None = None,
) -> KernelKoopman:
    """Regression on a full product dictionary with ridge, in its kernel form.

    With `k(x, c) = Ψ(x) · Ψ(c)`, the product of small inner products, the solution of
    `min ‖Ψ(x) Θ − y‖² + alpha ‖Θ‖²` is `Θ = Ψ(x)ᵀ K`, `(k(x, x) + alpha I) K = y`: `n` unknowns
    an output however many functions the dictionary has.

    Args:
        psi: a `Product`, or a `Compose` that ends in one.
        x: samples.
        y: targets: next states, or one-hot labels.
        alpha: ridge, absolute; or a list of them, of which the one with the least error on
            `x_val`, `y_val` is taken. 0: the solution of least norm.
        centers: landmarks `c` for fewer unknowns: how many to draw, or the points `(m, d)`; None:
            all samples, as far as `method` and memory allow.
        method: "cholesky" (direct), "cg" (all samples by conjugate gradients, the kernel block by
            block), "nystrom" (landmarks), or "auto": direct up to 20,000 samples where the matrix
            fits, else landmarks.
        x_val, y_val: samples to choose the ridge by.
        tolerance: relative residual at which conjugate gradients stop.
        max_iterations: of conjugate gradients.
        batch_size: rows of the kernel evaluated at a time; None chooses by size.
        memory_limit: bytes beside the data; None: what the machine has free.
        key: random key for the landmarks.

    Returns:
        KernelKoopman: in the dtype of `x`, with `info` and result code. RANK_DEFICIENT: singular
        without ridge. ILL_CONDITIONED: the damping was raised, the iteration did not reach its
        tolerance, or predictions lose more than half of their digits.

    Numerics:
        Direct: `n² d` for the kernel, `n³ / 3` for the factor, with iterative refinement. Samples
        in float32 are solved in float32 where the ridge allows, else in float64 if the memory
        does. A factor that fails is tried again with more damping; `info.reason` says so.
        Landmarks: `m³` for the preconditioner and `4 n m q` an iteration, on whitened coordinates
        (the condition of the kernel is not squared); kernel values are stored between iterations
        if memory allows. Under jit, vmap or grad: the direct method in the caller's dtype.

    Raises:
        ValueError: wrong shapes, no samples, NaN or infinity, a memory limit in which no method
            fits (with what would).

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import tensor_edmd
        >>> from koopjax.observables import Polynomial1D, Product
        >>> x = jnp.linspace(-1.0, 1.0, 24).reshape(12, 2)
        >>> psi = Product.of(Polynomial1D(1), 2)
        >>> fit = tensor_edmd.kernel(psi, x, x[:, :1] * x[:, 1:], alpha=1e-4)
        >>> round(float(fit.predict(jnp.array([0.5, 0.5]))[0]), 2)
        0.25

    Reference: Klus & Gelß (2019), "Tensor-based algorithms for image classification",
    Algorithms 12; Rudi, Carratino & Rosasco (2017) for the landmarks.
    """
    front, product = separable(psi)
    x, y = as_pair(x, y)
    if not has_x64() and np.float64 in (x.dtype, y.dtype):
        raise expected(
            "snapshots whose spread float32 holds",
            "float64 numbers far from the origin",
            "Standardize.fit(x)(x) in place of x",
        )
    if traced(psi, x, y, alpha):
        return _traced(psi, x, y, alpha, centers, method)
    check_finite("x", x)
    check_finite("y", y)
    check_settings(alpha, batch_size, centers, len(x))
    grid = [float(a) for a in np.atleast_1d(np.asarray(alpha, np.float64))]
    if len(grid) > 1 and (x_val is None or y_val is None):
        raise expected("x_val and y_val to choose a ridge by", "none", "one alpha")
    if not (centers is None or isinstance(centers, int)):
        centers = read_numbers("centers", centers)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    plan = plan_for(method, len(x), centers, jnp.dtype(wide).itemsize, memory_limit)
    z = through(front, x.astype(wide))
    part = ProductKernel.fit(product, landmarks_of(front, x, z, centers, plan, key))
    problem = _Problem(
        part, z, y.astype(wide), plan, batch_size, tolerance, max_iterations, memory_limit, key
    )
    attempts, dtype, why = problem.solve(grid)
    psi = with_product(psi, part)
    index, scores = _choose(psi, attempts, x_val, y_val, x, y, batch_size)
    return _result(psi, attempts[index], plan, dtype, why, scores, x)


def _traced(psi: Any, x: Array, y: Array, alpha: Any, centers: Any, method: str) -> KernelKoopman:
    """The direct method, all of it traceable, in the dtype of `x`."""
    if centers is not None or method not in ("auto", "cholesky") or jnp.ndim(alpha) != 0:
        raise expected(
            "the direct method with one ridge under jit, vmap or grad",
            f"method {method!r}" + ("" if centers is None else " with landmarks"),
            "the call outside, or vmap over alpha",
        )
    front, product = separable(psi)
    # Factor by factor: a series would have to be chosen by values.
    part = ProductKernel(product, through(front, x), 0)
    k = solver.kernel_matrix(part, part.centers)
    largest = solver.largest_eigenvalue(jax.lax.stop_gradient(k))
    eps = jnp.finfo(k.dtype).eps
    used = jnp.maximum(jnp.asarray(alpha, k.dtype), len(x) * eps * largest)
    lower = solver.factor(k, used)
    c, solved = solver.solve_factored(k, lower, y.astype(k.dtype), used)
    residual, _ = solver.fitted(k, c, y)
    code = jnp.where((solved > eps**0.5), ILL_CONDITIONED, SUCCESS)
    code = worst(code, jnp.where(jnp.isfinite(c).all(), SUCCESS, NONFINITE_SOLUTION))
    info = KernelInfo(
        solver.condition(lower, largest), residual, solved, used, len(x), len(x), 0,
        method="cholesky", dtype=jnp.dtype(k.dtype).name, reason="traced: the caller's dtype",
    )  # fmt: skip
    return KernelKoopman(with_product(psi, part), c.astype(x.dtype), None, info, code)


@dataclasses.dataclass
class _Attempt:
    """The coefficients for one ridge, and what was found out on the way."""

    matrix: Array
    alpha: float
    condition: Any
    solved: Any
    residual: Any
    terms: Any
    iterations: Any = 0
    code: int = SUCCESS
    method: str = ""
    notes: tuple[str, ...] = ()


def _choose(
    psi: Any, attempts: list[_Attempt], x_val: Any, y_val: Any, x: Array, y: Array, rows: int | None
) -> tuple[int, Any]:
    """The attempt with the least error on validation samples, and all of these errors."""
    if x_val is None or y_val is None:
        return 0, None
    x_val, y_val = as_pair(x_val, y_val)
    if x_val.shape[1] != x.shape[1] or y_val.shape[1] != y.shape[1]:
        raise expected(
            f"validation samples with {x.shape[1]} and {y.shape[1]} coordinates",
            f"{x_val.shape[1]} and {y_val.shape[1]}",
        )
    check_finite("x_val", x_val)
    check_finite("y_val", y_val)
    # One pass over the kernel for the whole grid.
    with precise_as(attempts[0].matrix.dtype):
        stacked = jnp.concatenate([a.matrix for a in attempts], axis=1)
    stacked = cast(stacked, jnp.promote_types(x.dtype, jnp.float32))
    predicted = kernel_times(psi, x_val, stacked, rows=rows)
    scores = solver.errors(predicted, y_val).astype(stacked.dtype)
    return int(np.argmin(np.where(np.isfinite(scores), scores, np.inf))), scores


def _result(
    psi: Any, found: _Attempt, plan: Plan, dtype: Any, why: str, scores: Any, x: Array
) -> KernelKoopman:
    """The fit of the chosen attempt, judged by the digits that its predictions keep."""
    out = jnp.promote_types(x.dtype, jnp.float32)
    eps = float(jnp.finfo(out).eps)
    code, notes = found.code, found.notes
    if eps * float(found.terms) > eps**0.5:
        code = max(code, ILL_CONDITIONED)
        notes = (*notes, f"predictions cancel terms {float(found.terms):.1g} times the target")
    with precise_as(dtype):
        finite = bool(np.isfinite(np.asarray(found.matrix)).all())
    code = code if finite else NONFINITE_SOLUTION
    names = ("condition", "residual", "solved", "alpha")
    info = KernelInfo(
        **{name: jnp.asarray(float(getattr(found, name)), out) for name in names},
        count=jnp.asarray(len(x), jnp.int32),
        landmarks=jnp.asarray(plan.landmarks, jnp.int32),
        iterations=jnp.asarray(int(found.iterations), jnp.int32),
        scores=scores,
        method=found.method,
        dtype=jnp.dtype(dtype).name,
        reason="; ".join((why, *notes)),
    )
    matrix = cast(found.matrix, x.dtype)
    return KernelKoopman(psi, matrix, None, info, jnp.asarray(code, jnp.int32))


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A kernel regression made ready; concrete. Samples on the product's coordinates are `z`."""

    part: ProductKernel
    z: Array
    y: Array
    plan: Plan
    rows: int | None
    tolerance: float
    most: int
    memory_limit: int | None
    key: Any

    def solve(self, grid: list[float]) -> tuple[list[_Attempt], Any, str]:
        """An attempt for each ridge, the dtype of all of them, and why."""
        dtype, why = self.z.dtype, self.plan.reason
        if self.plan.method != "cholesky":
            return self._iterated(grid), dtype, why
        k = solver.kernel_matrix(self.part, self.z)
        largest = float(solver.largest_eigenvalue(k))
        small = float(jnp.finfo(dtype).eps) * largest > SINGLE * min(grid)
        if small and dtype == jnp.float32 and has_float64():
            try:
                plan_for("cholesky", len(self.z), None, 8, self.memory_limit)
            except ValueError:
                why = f"{why}; float32: float64 exceeds the memory limit"
            else:
                del k
                with jax.enable_x64(True):
                    centers, y = cast((self.part.centers, self.y), jnp.float64)
                    k = solver.kernel_matrix(ProductKernel.fit(self.part.product, centers), centers)
                    attempts = [_factored(k, y, a, largest) for a in grid]
                return attempts, jnp.float64, f"{why}; float64: the ridge is small for float32"
        return [_factored(k, self.y, a, largest) for a in grid], dtype, why

    def _iterated(self, grid: list[float]) -> list[_Attempt]:
        """By conjugate gradients: on landmarks, or on all samples with a few as preconditioner."""
        n, landmarks = len(self.z), self.plan.method == "nystrom"
        points, chosen = self.part.centers, None
        if not landmarks:
            if self.key is None:
                raise expected(
                    "a random key for the preconditioner", "none", "key=jax.random.key(0)"
                )
            chosen = solver.drawn(self.key, n, min(PRECONDITIONER, n))
            points = self.z[chosen]
        k = solver.kernel_matrix(dataclasses.replace(self.part, centers=points), points)
        largest = float(solver.largest_eigenvalue(k))
        # Landmarks may be nearly dependent: a damping at rounding level costs nothing.
        unit = float(jnp.finfo(k.dtype).eps) * largest
        lower, used, _, notes = _damped(k, unit, unit)
        condition = solver.condition(lower, jnp.asarray(largest + used, k.dtype))
        # The samples' largest eigenvalue is that of the landmarks times their ratio, about.
        least = unit * n / len(points)
        # The square serves all ridges.
        run, beside = solver.solve_iteratively, chosen
        if landmarks:
            run, beside = solver.solve_landmarks, gram(lower)
        stored = solver.kernel_matrix(self.part, self.z) if self.plan.stored else None
        kept = "stored" if self.plan.stored else "computed in every iteration"
        found = []
        for alpha in grid:
            used, code, said = max(alpha, least), SUCCESS, (f"kernel {kept}", *notes)
            c, solved, count, residual, terms = run(
                self.part, self.z, self.y, stored, lower, beside, jnp.asarray(used, self.z.dtype),
                rows=self.rows, most=self.most, tolerance=self.tolerance,
            )  # fmt: skip
            if used > alpha:
                code = RANK_DEFICIENT if alpha == 0 else ILL_CONDITIONED
                said = (*said, f"ridge raised from {alpha:.2g} to {used:.2g}")
            if not float(solved) <= self.tolerance:
                code = ILL_CONDITIONED
                said = (*said, f"stopped after {self.most} iterations")
            found.append(
                _Attempt(
                    c, used, condition, solved, residual, terms, count, code, self.plan.method, said
                )
            )
        return found


def _factored(k: Array, y: Array, alpha: float, largest: float) -> _Attempt:
    """`(k + alpha I)⁻¹ y` by Cholesky, or of least norm where that is singular without a ridge."""
    eps = float(jnp.finfo(k.dtype).eps)
    lower, used, code, notes = _damped(k, alpha, len(k) * eps * largest)
    condition = solver.condition(lower, jnp.asarray(largest + used, k.dtype))
    singular = used > alpha or float(condition) * eps > 0.1
    if alpha == 0 and singular and len(k) <= LARGEST_SPECTRAL:
        c, rank, condition = solver.solve_least_norm(k, y)
        used, solved, code, method = 0.0, 0.0, RANK_DEFICIENT, "eigh"
        notes = (f"singular: least norm on {int(rank)} of {len(k)} eigenvalues",)
    else:
        c, solved = solver.solve_factored(k, lower, y, jnp.asarray(used, k.dtype))
        method = "cholesky"
        if float(solved) > eps**0.5:
            code = max(code, ILL_CONDITIONED)
    residual, terms = solver.fitted(k, c, y)
    return _Attempt(c, used, condition, solved, residual, terms, 0, code, method, notes)


def _damped(k: Array, alpha: float, least: float) -> tuple[Array, float, int, tuple[str, ...]]:
    """Cholesky factor of `k + alpha I`, with more damping, from `least` on, where it takes it.

    Also the damping, a result code, and a note if it was raised.
    """
    used = alpha
    lower = k
    for _ in range(ATTEMPTS):
        lower = solver.factor(k, jnp.asarray(used, k.dtype))
        if bool(solver.sound(lower)):
            if used == alpha:
                return lower, used, SUCCESS, ()
            code = RANK_DEFICIENT if alpha == 0 else ILL_CONDITIONED
            return lower, used, code, (f"damping raised from {alpha:.2g} to {used:.2g}",)
        used = max(least, RAISE * used)
    return lower, used, NONFINITE_SOLUTION, ("no damping made it positive definite",)
