"""The Fermi-Pasta-Ulam chain, whose coefficient tensor has a low tensor-train rank."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import as_numbers, as_whole, check_number, expected, pytree, static
from koopjax.data.systems._flow import states, uniform

#: A dense coefficient tensor of more entries than this is refused.
_MOST_ENTRIES = 2**24


@pytree
class FermiPastaUlam:
    """Chain of `d` masses between fixed walls, cubic springs:
    `ẍᵢ = (xᵢ₊₁ - 2xᵢ + xᵢ₋₁) + β [(xᵢ₊₁ - xᵢ)³ - (xᵢ - xᵢ₋₁)³]`.

    The accelerations are a polynomial of degree 3 in the positions, so a regression of them on
    monomials has an exact answer (Gelß, Klus, Eisert and Schütte 2019, the example of MANDy).

    Args:
        d: number of masses.
        beta: strength of the cubic part.
    """

    d: int = static(default=10)
    beta: Any = 0.7

    def acceleration(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Accelerations at given positions."""
        x = as_numbers("systems.FermiPastaUlam: positions", x)
        if x.ndim == 0 or x.shape[-1] != self.d:
            raise expected(
                f"systems.FermiPastaUlam: positions of {self.d} masses",
                f"shape {x.shape}",
                f"FermiPastaUlam(d={x.shape[-1] if x.ndim else 1})",
            )
        wall = jnp.zeros_like(x[..., :1])
        stretch = jnp.diff(x, axis=-1, prepend=wall, append=wall)
        force = stretch + self._cubic(x.dtype) * stretch**3
        return jnp.diff(force, axis=-1)

    def _cubic(self, dtype: Any) -> Array:
        check_number("systems.FermiPastaUlam: beta", self.beta, -math.inf)
        return as_numbers("systems.FermiPastaUlam: beta", self.beta).astype(dtype)

    def drift(self, x: Float[Array, "... 2d"]) -> Float[Array, "... 2d"]:
        """Right-hand side of the first-order equation, state `(positions, velocities)`."""
        q, v = x[..., : self.d], x[..., self.d :]
        return jnp.concatenate([v, self.acceleration(q)], axis=-1)

    def energy(self, x: Float[Array, "... 2d"]) -> Float[Array, "..."]:
        """Total energy of states `(positions, velocities)`, constant along the flow."""
        d = as_whole("systems.FermiPastaUlam: masses d", self.d, 1)
        x = states("FermiPastaUlam", x, 2 * d)
        q, v = x[..., : self.d], x[..., self.d :]
        wall = jnp.zeros_like(q[..., :1])
        stretch = jnp.diff(q, axis=-1, prepend=wall, append=wall)
        springs = stretch**2 / 2 + self._cubic(x.dtype) * stretch**4 / 4
        return jnp.sum(v**2, axis=-1) / 2 + jnp.sum(springs, axis=-1)

    def snapshots(
        self, key: Array, n: int, *, low: float = -0.1, high: float = 0.1, dtype: Any = jnp.float32
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """`n` positions, uniform in a box, and their accelerations."""
        x = uniform("FermiPastaUlam", key, n, self.d, low, high, dtype)
        return x, self.acceleration(x)

    def coefficients(self) -> dict[tuple[int, ...], np.ndarray]:
        """The accelerations as a polynomial: exponents of the positions -> `(d,)` coefficients.

        A cubed difference is expanded, `(a - b)³ = a³ - 3a²b + 3ab² - b³`, and like monomials are
        added; a mass beside a wall has no neighbour there.
        """
        terms: dict[tuple[int, ...], np.ndarray] = {}
        beta = float(self.beta)

        def add(powers: dict[int, int], i: int, value: float) -> None:
            if any(j < 0 or j >= self.d for j in powers):
                return  # a wall stands at zero
            exponents = tuple(powers.get(j, 0) for j in range(self.d))
            terms.setdefault(exponents, np.zeros(self.d))[i] += value

        for i in range(self.d):
            add({i: 1}, i, -2.0)
            add({i: 3}, i, -2.0 * beta)
            for j in (i - 1, i + 1):
                add({j: 1}, i, 1.0)
                add({j: 3}, i, beta)
                add({j: 2, i: 1}, i, -3.0 * beta)
                add({j: 1, i: 2}, i, 3.0 * beta)
        return terms

    def coefficient_tensor(self) -> np.ndarray:
        """The coefficients over products of `(1, x, x², x³)`, a dense `(4, ..., 4, d)`.

        Raises:
            ValueError: too large to be dense; `coefficients` has the same numbers sparsely.
        """
        entries = 4**self.d * self.d
        if entries > _MOST_ENTRIES:
            raise expected(
                f"systems.FermiPastaUlam: a tensor of at most {_MOST_ENTRIES:,} entries",
                f"{entries:,} for d={self.d}",
                "coefficients()",
            )
        tensor = np.zeros((4,) * self.d + (self.d,))
        for exponents, values in self.coefficients().items():
            tensor[exponents] = values
        return tensor
