"""Kernel regression made ready, and its solvers run for a grid of ridges."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_SOLUTION,
    RANK_DEFICIENT,
    SUCCESS,
    cast,
    expected,
    has_float64,
)
from koopjax.observables import Product, ProductKernel
from koopjax.tensor_edmd import _kernel_direct as direct, _kernel_iterate as iterate
from koopjax.tensor_edmd._kernel_plan import PRECONDITIONER, Plan, plan_for

# Share of the digits that the ridge has to leave a factor in single precision.
SINGLE = 1e-2
# Largest number of samples for which a singular kernel without ridge is taken by eigenvalues.
LARGEST_SPECTRAL = 3_000
# How much a damping is raised when a factor fails, and how often at most.
RAISE, ATTEMPTS = 10.0, 8


@dataclasses.dataclass
class Attempt:
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


@dataclasses.dataclass(frozen=True)
class Problem:
    """A kernel regression made ready; concrete.

    Attributes:
        product: the dictionary.
        part: its kernel with the centres.
        z: samples on the product's coordinates.
        y: targets.
        plan: which solver.
        rows: rows of the kernel at a time, or None.
        tolerance: of the iteration.
        most: iterations.
        memory_limit: bytes, or None.
        key: random key, or None.
    """

    product: Product
    part: ProductKernel
    z: Array
    y: Array
    plan: Plan
    rows: int | None
    tolerance: float
    most: int
    memory_limit: int | None
    key: Any

    def solve(self, grid: list[float]) -> tuple[list[Attempt], Any, str]:
        """An attempt for each ridge, the dtype of all of them, and why."""
        if self.plan.method == "nystrom":
            return self._landmarks(grid), self.z.dtype, self.plan.reason
        if self.plan.method == "cg":
            return self._iterations(grid), self.z.dtype, self.plan.reason
        return self._direct(grid)

    def _direct(self, grid: list[float]) -> tuple[list[Attempt], Any, str]:
        dtype, why = self.z.dtype, self.plan.reason
        k = direct.kernel_matrix(self.part, self.z)
        largest = float(direct.largest_eigenvalue(k))
        wanted = float(jnp.finfo(dtype).eps) * largest > SINGLE * min(grid)
        if not (wanted and dtype == jnp.float32 and has_float64()):
            return [self._factored(k, self.y, a, largest) for a in grid], dtype, why
        n = len(self.z)
        try:
            plan_for("cholesky", n, None, 8, self.memory_limit)
        except ValueError:
            why = f"{why}; float32: float64 exceeds the memory limit"
            return [self._factored(k, self.y, a, largest) for a in grid], dtype, why
        del k
        with jax.enable_x64(True):
            centers = cast(self.part.centers, jnp.float64)
            k = direct.kernel_matrix(ProductKernel.fit(self.product, centers), centers)
            y = cast(self.y, jnp.float64)
            attempts = [self._factored(k, y, a, largest) for a in grid]
        return attempts, jnp.float64, f"{why}; float64: the ridge is small for float32"

    def _factored(self, k: Array, y: Array, alpha: float, largest: float) -> Attempt:
        least = len(k) * float(jnp.finfo(k.dtype).eps) * largest
        lower, used, code, notes = damped(k, alpha, least)
        condition = direct.condition(lower, jnp.asarray(largest + used, k.dtype))
        singular = used > alpha or float(condition) * float(jnp.finfo(k.dtype).eps) > 0.1
        if alpha == 0 and singular and len(k) <= LARGEST_SPECTRAL:
            c, rank, condition = direct.solve_least_norm(k, y)
            residual, terms = direct.fitted(k, c, y)
            note = f"singular: least norm on {int(rank)} of {len(k)} eigenvalues"
            return Attempt(c, 0.0, condition, 0.0, residual, terms, 0, RANK_DEFICIENT, "eigh",
                           (note,))  # fmt: skip
        c, solved = direct.solve_factored(k, lower, y, jnp.asarray(used, k.dtype))
        residual, terms = direct.fitted(k, c, y)
        if float(solved) > float(jnp.finfo(k.dtype).eps) ** 0.5:
            code = max(code, ILL_CONDITIONED)
        return Attempt(c, used, condition, solved, residual, terms, 0, code, "cholesky", notes)

    def _landmarks(self, grid: list[float]) -> list[Attempt]:
        lower, condition, least, notes = self._factor_of(self.part.centers)
        square = direct.square_of(lower)
        stored = direct.kernel_matrix(self.part, self.z) if self.plan.stored else None
        kept = "kernel stored" if self.plan.stored else "kernel computed in every iteration"
        found = []
        for alpha in grid:
            used = max(alpha, least)
            outcome = iterate.solve_landmarks(
                self.part, self.z, self.y, stored, lower, square, jnp.asarray(used, self.z.dtype),
                rows=self.rows, most=self.most, tolerance=self.tolerance,
            )  # fmt: skip
            found.append(self._attempt(outcome, alpha, used, condition, (kept, *notes)))
        return found

    def _iterations(self, grid: list[float]) -> list[Attempt]:
        n = len(self.z)
        if self.key is None:
            raise expected("a random key for the preconditioner", "none", "key=jax.random.key(0)")
        chosen = jax.random.choice(self.key, n, (min(PRECONDITIONER, n),), replace=False)
        lower, condition, least, notes = self._factor_of(self.z[chosen])
        stored = direct.kernel_matrix(self.part, self.z) if self.plan.stored else None
        found = []
        for alpha in grid:
            used = max(alpha, least)
            outcome = iterate.solve_iteratively(
                self.part, self.z, self.y, stored, chosen, lower, jnp.asarray(used, self.z.dtype),
                rows=self.rows, most=self.most, tolerance=self.tolerance,
            )  # fmt: skip
            found.append(self._attempt(outcome, alpha, used, condition, notes))
        return found

    def _factor_of(self, points: Array) -> tuple[Array, Array, float, tuple[str, ...]]:
        """Cholesky factor of the landmarks' kernel matrix, its condition, least ridge, notes."""
        few = dataclasses.replace(self.part, centers=points)
        k = direct.kernel_matrix(few, points)
        largest = float(direct.largest_eigenvalue(k))
        # Landmarks may be nearly dependent: a damping at rounding level costs nothing.
        unit = float(jnp.finfo(k.dtype).eps) * largest
        lower, used, _, notes = damped(k, unit, unit)
        condition = direct.condition(lower, jnp.asarray(largest + used, k.dtype))
        # The samples' largest eigenvalue is that of the landmarks times their ratio, about.
        return lower, condition, unit * len(self.z) / len(points), notes

    def _attempt(
        self, outcome: tuple[Array, ...], alpha: float, used: float, condition: Array,
        notes: tuple[str, ...],
    ) -> Attempt:  # fmt: skip
        """What conjugate gradients gave, with what is to be said about it."""
        c, solved, count, residual, terms = outcome
        code = SUCCESS
        if used > alpha:
            code = RANK_DEFICIENT if alpha == 0 else ILL_CONDITIONED
            notes = (*notes, f"ridge raised from {alpha:.2g} to {used:.2g}")
        if not float(solved) <= self.tolerance:
            code = ILL_CONDITIONED
            notes = (*notes, f"stopped after {self.most} iterations")
        return Attempt(
            c, used, condition, solved, residual, terms, count, code, self.plan.method, notes
        )


def damped(k: Array, alpha: float, least: float) -> tuple[Array, float, int, tuple[str, ...]]:
    """Cholesky factor of `k + alpha I`, with more damping where it takes it.

    Args:
        k: kernel matrix, concrete.
        alpha: ridge.
        least: the smallest damping to try where that fails.

    Returns:
        The factor, the damping, a result code, and a note if it was raised.
    """
    used = alpha
    lower = k
    for _ in range(ATTEMPTS):
        lower = direct.factor(k, jnp.asarray(used, k.dtype))
        if bool(jnp.isfinite(jnp.sum(jnp.diagonal(lower)))):
            if used == alpha:
                return lower, used, SUCCESS, ()
            code = RANK_DEFICIENT if alpha == 0 else ILL_CONDITIONED
            return lower, used, code, (f"damping raised from {alpha:.2g} to {used:.2g}",)
        used = max(least, RAISE * used)
    return lower, used, NONFINITE_SOLUTION, ("no damping made it positive definite",)
