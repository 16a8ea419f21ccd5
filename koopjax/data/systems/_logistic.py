"""The logistic map: chaos with closed-form answers."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import as_numbers, expected, pytree
from koopjax.data.systems._flow import uniform


@pytree
class Logistic:
    """`y = r x (1 - x)` on [0, 1].

    At r = 4 it is the tent map in disguise: the orbit, the invariant density and the way the
    shifted Chebyshev polynomials are carried are known in closed form.

    Args:
        r: growth rate, in [0, 4].
    """

    r: Any = 4.0

    def step(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The state after one step."""
        x = as_numbers("systems.Logistic: states", x)
        return self.r * x * (1.0 - x)

    def snapshots(
        self, key: Array, n: int, *, low: float = 0.0, high: float = 1.0, dtype: Any = jnp.float32
    ) -> tuple[Float[Array, "n 1"], Float[Array, "n 1"]]:
        """`n` pairs of states before and after a step, the former uniform in an interval."""
        x = uniform("Logistic", key, n, 1, low, high, dtype)
        return x, self.step(x)

    def _chaotic(self, what: str) -> None:
        if float(self.r) != 4.0:
            raise expected(
                f"systems.Logistic.{what}: r=4, where it is known", f"r={self.r}", "Logistic(4.0)"
            )

    def orbit(self, x: Float[Array, "..."], steps: int) -> Float[Array, "..."]:
        """The state after `steps` steps at r = 4, `sin²(2ᵏ arcsin √x)`.

        Errors double with every step, as those of the map itself.
        """
        self._chaotic("orbit")
        return jnp.sin(2**steps * jnp.arcsin(jnp.sqrt(x))) ** 2

    def invariant_density(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`1 / (π √(x (1 - x)))`, the density that the map at r = 4 leaves as it is."""
        self._chaotic("invariant_density")
        return 1.0 / (jnp.pi * jnp.sqrt(x * (1.0 - x)))

    def moment(self, k: int) -> float:
        """Mean of `xᵏ` under the invariant density at r = 4: `binom(2k, k) / 4ᵏ`."""
        self._chaotic("moment")
        return math.comb(2 * k, k) / 4**k

    def lyapunov(self) -> float:
        """The Lyapunov exponent at r = 4: log 2."""
        self._chaotic("lyapunov")
        return math.log(2.0)

    def eigenvalues(self, count: int) -> np.ndarray:
        """The transfer operator's eigenvalues `4⁻ᵏ` at r = 4, largest first.

        Those on densities that are smooth in the angle of the tent map; the Koopman operator on
        square-integrable functions has no eigenvalue but 1.
        """
        self._chaotic("eigenvalues")
        return 4.0 ** -np.arange(count, dtype=np.float64)

    def koopman_matrix(self, degree: int) -> np.ndarray:
        """How monomials are carried: `(1, y, ..., y^k) = (1, x, ..., x^2k) K`, exact at any r.

        From `(r x (1 - x))ʲ = rʲ Σᵢ binom(j, i) (-1)ⁱ xʲ⁺ⁱ`.

        Args:
            degree: k, of the target.

        Returns:
            K of shape `(2k + 1, k + 1)`, float64.
        """
        matrix = np.zeros((2 * degree + 1, degree + 1))
        for j in range(degree + 1):
            for i in range(j + 1):
                matrix[j + i, j] = float(self.r) ** j * math.comb(j, i) * (-1) ** i
        return matrix
