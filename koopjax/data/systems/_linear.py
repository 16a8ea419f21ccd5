"""Systems whose flow and Koopman spectrum are known in closed form."""

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import as_numbers, expected, matmul, pytree
from koopjax.data.systems._flow import states, uniform


@pytree
class Linear:
    """`y = x A`: rows are states, as everywhere in koopjax.

    Every product of eigenvalues of A is a Koopman eigenvalue, so monomials of total degree up to k
    span an invariant space whose spectrum is known.

    Args:
        matrix: A, `(d, d)`, acting from the right.

    Example:
        >>> import numpy as np
        >>> Linear(np.diag([0.9, 0.5])).eigenvalues(2).round(3).tolist()
        [1.0, 0.9, 0.5, 0.81, 0.45, 0.25]
    """

    matrix: Any

    def step(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """The state after one step."""
        x = as_numbers("systems.Linear: states", x)
        matrix = as_numbers("systems.Linear: the matrix", self.matrix).astype(x.dtype)
        d = x.shape[-1:]
        if x.ndim == 0 or matrix.shape != (*d, *d):
            raise expected(
                "systems.Linear: states (..., d) and a matrix (d, d)",
                f"{x.shape} and {matrix.shape}",
                "a square matrix of the size of a state",
            )
        return matmul(x, matrix)

    def snapshots(
        self, key: Array, n: int, *, low: float = -1.0, high: float = 1.0, dtype: Any = jnp.float32
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """`n` pairs of states before and after a step, the former uniform in a box."""
        x = uniform("Linear", key, n, np.shape(self.matrix)[0], low, high, dtype)
        return x, self.step(x)

    def eigenvalues(self, degree: int = 1) -> np.ndarray:
        """Koopman eigenvalues on monomials of total degree at most `degree`, by degree.

        Args:
            degree: 1 gives the constant's 1 and the eigenvalues of the matrix.

        Returns:
            One a monomial, real where all are, sorted by degree as products of the matrix's
            eigenvalues in order of falling modulus.
        """
        base = np.linalg.eigvals(np.asarray(self.matrix, np.float64))
        base = base[np.argsort(-np.abs(base), kind="stable")]
        values = [
            math.prod(combination)
            for k in range(degree + 1)
            for combination in itertools.combinations_with_replacement(base.tolist(), k)
        ]
        return np.asarray(values)


@pytree
class SlowManifold:
    """`ẋ₁ = μ x₁`, `ẋ₂ = λ (x₂ - x₁²)`: for λ ≪ μ < 0 a fast fall onto the parabola.

    With `b = λ / (λ - 2μ)` the function `x₂ - b x₁²` is an eigenfunction to λ, so the flow is known
    exactly and `(x₁, x₂, x₁²)` spans an invariant space.

    Args:
        mu: slow rate.
        lam: fast rate; must differ from `2 mu`.
        dt: time between the snapshots of a pair.
    """

    mu: Any = -0.05
    lam: Any = -1.0
    dt: Any = 0.1

    def _b(self) -> Any:
        if isinstance(self.lam, float) and self.lam == 2 * self.mu:
            raise expected(
                "systems.SlowManifold: lam that differs from 2 mu",
                f"lam={self.lam}, mu={self.mu}",
                "another lam: at 2 mu the linear part cannot be diagonalised",
            )
        return self.lam / (self.lam - 2 * self.mu)

    def drift(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """Right-hand side of the differential equation."""
        x = states("SlowManifold", x, 2)
        x1, x2 = x[..., 0], x[..., 1]
        return jnp.stack([self.mu * x1, self.lam * (x2 - x1**2)], axis=-1)

    def step(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """The state after a time `dt`, exact."""
        x = states("SlowManifold", x, 2)
        dt = jnp.asarray(self.dt, x.dtype)
        x1, x2 = x[..., 0], x[..., 1]
        b = self._b()
        y1 = x1 * jnp.exp(self.mu * dt)
        y2 = (x2 - b * x1**2) * jnp.exp(self.lam * dt) + b * y1**2
        return jnp.stack([y1, y2], axis=-1)

    def snapshots(
        self, key: Array, n: int, *, low: float = -2.0, high: float = 2.0, dtype: Any = jnp.float32
    ) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"]]:
        """`n` pairs of states a time `dt` apart, the former uniform in a box."""
        x = uniform("SlowManifold", key, n, 2, low, high, dtype)
        return x, self.step(x)

    def invariant(self, x: Float[Array, "... 2"]) -> Float[Array, "... 3"]:
        """The observables `(x₁, x₂, x₁²)`, closed under the flow."""
        return jnp.concatenate([x, x[..., :1] ** 2], axis=-1)

    def eigenfunctions(self, x: Float[Array, "... 2"]) -> Float[Array, "... 3"]:
        """`(x₁, x₂ - b x₁², x₁²)`, of which each is multiplied by its eigenvalue in a step."""
        x1, x2 = x[..., 0], x[..., 1]
        return jnp.stack([x1, x2 - self._b() * x1**2, x1**2], axis=-1)

    def generator_eigenvalues(self) -> np.ndarray:
        """`(μ, λ, 2μ)`: of the generator on `invariant`."""
        return np.array([self.mu, self.lam, 2 * self.mu], np.float64)

    def eigenvalues(self) -> np.ndarray:
        """`exp` of `dt` times `(μ, λ, 2μ)`: of the Koopman operator on `invariant`."""
        return np.exp(np.float64(self.dt) * self.generator_eigenvalues())
