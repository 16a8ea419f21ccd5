"""Nonlinear oscillators: polynomial right-hand sides whose coefficients are known exactly."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import pytree, static
from koopjax.data.systems._flow import runge_kutta, states, uniform


@pytree
class Duffing:
    """`ẍ = -δ ẋ - α x - β x³`, state `(x, ẋ)`; with α < 0 < β two wells.

    Args:
        alpha, beta, delta: stiffness, cubic stiffness, damping.
        dt: time between the snapshots of a pair.
        substeps: Runge-Kutta steps in `dt`.
    """

    alpha: Any = -1.0
    beta: Any = 1.0
    delta: Any = 0.5
    dt: Any = 0.1
    substeps: int = static(default=10)

    def drift(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """Right-hand side of the differential equation."""
        x = states("Duffing", x, 2)
        q, v = x[..., 0], x[..., 1]
        return jnp.stack([v, -self.delta * v - self.alpha * q - self.beta * q**3], axis=-1)

    def step(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """The state after a time `dt`."""
        return runge_kutta(self.drift, states("Duffing", x, 2), self.dt, self.substeps)

    def snapshots(
        self, key: Array, n: int, *, low: float = -2.0, high: float = 2.0, dtype: Any = jnp.float32
    ) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"]]:
        """`n` pairs of states a time `dt` apart, the former uniform in a box."""
        x = uniform("Duffing", key, n, 2, low, high, dtype)
        return x, self.step(x)

    def energy(self, x: Float[Array, "... 2"]) -> Float[Array, "..."]:
        """`ẋ²/2 + α x²/2 + β x⁴/4`: constant for δ = 0, else it falls at the rate `δ ẋ²`."""
        x = states("Duffing", x, 2)
        q, v = x[..., 0], x[..., 1]
        return v**2 / 2 + self.alpha * q**2 / 2 + self.beta * q**4 / 4

    def fixed_points(self) -> np.ndarray:
        """Equilibria `(m, 2)`: the origin, and the wells where α and β differ in sign."""
        ratio = -float(self.alpha) / float(self.beta)
        wells = [[-np.sqrt(ratio), 0.0], [np.sqrt(ratio), 0.0]] if ratio > 0 else []
        return np.array([[0.0, 0.0], *wells])

    def coefficients(self) -> dict[tuple[int, int], np.ndarray]:
        """The drift as a polynomial: exponents of `(x, ẋ)` -> coefficient in each component."""
        return {
            (1, 0): np.array([0.0, -self.alpha]),
            (0, 1): np.array([1.0, -self.delta]),
            (3, 0): np.array([0.0, -self.beta]),
        }

    def generator_eigenvalues(self, point: int = 0) -> np.ndarray:
        """The two principal eigenvalues at a fixed point: of the linearised drift there.

        Args:
            point: row of `fixed_points`; eigenvalues are `(-δ ± √(δ² - 4 (α + 3 β x²))) / 2`.
        """
        stiffness = self.alpha + 3.0 * self.beta * self.fixed_points()[point, 0] ** 2
        root = np.sqrt(complex(self.delta**2 - 4.0 * stiffness))
        return np.array([(-self.delta + root) / 2.0, (-self.delta - root) / 2.0])


@pytree
class VanDerPol:
    """`ẍ = μ (1 - x²) ẋ - x`, state `(x, ẋ)`: a limit cycle around an unstable origin.

    Args:
        mu: strength of the nonlinear damping.
        dt: time between the snapshots of a pair.
        substeps: Runge-Kutta steps in `dt`.
    """

    mu: Any = 1.0
    dt: Any = 0.1
    substeps: int = static(default=10)

    def drift(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """Right-hand side of the differential equation."""
        x = states("VanDerPol", x, 2)
        q, v = x[..., 0], x[..., 1]
        return jnp.stack([v, self.mu * (1.0 - q**2) * v - q], axis=-1)

    def step(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """The state after a time `dt`."""
        return runge_kutta(self.drift, states("VanDerPol", x, 2), self.dt, self.substeps)

    def snapshots(
        self, key: Array, n: int, *, low: float = -2.0, high: float = 2.0, dtype: Any = jnp.float32
    ) -> tuple[Float[Array, "n 2"], Float[Array, "n 2"]]:
        """`n` pairs of states a time `dt` apart, the former uniform in a box."""
        x = uniform("VanDerPol", key, n, 2, low, high, dtype)
        return x, self.step(x)

    def coefficients(self) -> dict[tuple[int, int], np.ndarray]:
        """The drift as a polynomial: exponents of `(x, ẋ)` -> coefficient in each component."""
        return {
            (1, 0): np.array([0.0, -1.0]),
            (0, 1): np.array([1.0, self.mu]),
            (2, 1): np.array([0.0, -self.mu]),
        }

    def generator_eigenvalues(self) -> np.ndarray:
        """The two principal eigenvalues at the origin, `(μ ± √(μ² - 4)) / 2`."""
        root = np.sqrt(complex(self.mu**2 - 4.0))
        return np.array([(self.mu + root) / 2.0, (self.mu - root) / 2.0])
