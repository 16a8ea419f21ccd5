"""Dynamical systems with closed-form answers, for tests and teaching.

Each is a frozen pytree: `step` (a map, or the flow over `dt`) or `drift`, `snapshots(key, n)` of
pairs `(x, y)` with samples in rows, and whatever is known exactly (eigenvalues, eigenfunctions,
coefficients, densities), computed on the host in float64.
"""

import itertools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import (
    as_dtype,
    as_key,
    as_numbers,
    as_whole,
    check_number,
    expected,
    matmul,
    pytree,
    static,
)
from koopjax.data._flow import MOST_SAMPLES, runge_kutta, trajectory

__all__ = [
    "Duffing",
    "FermiPastaUlam",
    "Linear",
    "Logistic",
    "SlowManifold",
    "VanDerPol",
    "runge_kutta",
    "trajectory",
]

#: A dense coefficient tensor of more entries than this is refused.
_MOST_ENTRIES = 2**24


class System:
    """What all systems share: `snapshots` of `step`, drawn from a box of the system's own."""

    _box: ClassVar[tuple[float, float]] = (-2.0, 2.0)

    @property
    def _width(self) -> int:
        """Coordinates of a state."""
        return 2

    def _states(self, x: Any) -> Array:
        """States as a user gives them, each of as many numbers as the system has."""
        name = f"systems.{type(self).__name__}: states"
        x = as_numbers(name, x)
        if x.ndim == 0 or x.shape[-1] != self._width:
            raise expected(f"{name} (..., {self._width})", f"shape {x.shape}")
        return x

    def _pair(self, x: Any) -> tuple[Array, Array]:
        """Both coordinates of checked states."""
        x = self._states(x)
        return x[..., 0], x[..., 1]

    def step(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """The state after one step."""
        raise NotImplementedError

    def snapshots(
        self,
        key: Array,
        n: int,
        *,
        low: float | None = None,
        high: float | None = None,
        dtype: Any = jnp.float32,
    ) -> tuple[Float[Array, "n d"], Float[Array, "n d"]]:
        """`n` pairs of states before and after a step, the former uniform in a box.

        Args:
            key: random key.
            n: pairs.
            low, high: bounds of every coordinate; None for the system's own: [0, 1] for
                `Logistic`, [-1, 1] for `Linear`, [-0.1, 0.1] for `FermiPastaUlam`, else [-2, 2].
            dtype: of the states.
        """
        name = f"systems.{type(self).__name__}"
        n = as_whole(f"{name}: at least one sample, n", n, 1, MOST_SAMPLES)
        bounds = []
        for side, given, own in zip(("low", "high"), (low, high), self._box, strict=True):
            bound = own if given is None else given
            check_number(f"{name}: the bound {side}", bound, -math.inf)
            bounds.append(as_numbers(f"{name}: the bound {side}", bound))
        shape = (n, self._width)
        x = jax.random.uniform(as_key(name, key), shape, as_dtype("dtype", dtype), *bounds)
        return x, self.step(x)


@pytree
class Linear(System):
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
    _box = (-1.0, 1.0)

    @property
    def _width(self) -> int:
        return np.shape(self.matrix)[0]

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
class SlowManifold(System):
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
        x1, x2 = self._pair(x)
        return jnp.stack([self.mu * x1, self.lam * (x2 - x1**2)], axis=-1)

    def step(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """The state after a time `dt`, exact."""
        x1, x2 = self._pair(x)
        dt, b = jnp.asarray(self.dt, x1.dtype), self._b()
        y1 = x1 * jnp.exp(self.mu * dt)
        y2 = (x2 - b * x1**2) * jnp.exp(self.lam * dt) + b * y1**2
        return jnp.stack([y1, y2], axis=-1)

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


class Oscillator(System):
    """Two coordinates, position and velocity, integrated over `dt`."""

    dt: Any
    substeps: int

    def drift(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """Right-hand side of the differential equation."""
        raise NotImplementedError

    def step(self, x: Float[Array, "... 2"]) -> Float[Array, "... 2"]:
        """The state after a time `dt`."""
        return runge_kutta(self.drift, self._states(x), self.dt, self.substeps)


@pytree
class Duffing(Oscillator):
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
        q, v = self._pair(x)
        return jnp.stack([v, -self.delta * v - self.alpha * q - self.beta * q**3], axis=-1)

    def energy(self, x: Float[Array, "... 2"]) -> Float[Array, "..."]:
        """`ẋ²/2 + α x²/2 + β x⁴/4`: constant for δ = 0, else it falls at the rate `δ ẋ²`."""
        q, v = self._pair(x)
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
class VanDerPol(Oscillator):
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
        q, v = self._pair(x)
        return jnp.stack([v, self.mu * (1.0 - q**2) * v - q], axis=-1)

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


@pytree
class FermiPastaUlam(System):
    """Chain of `d` masses between fixed walls, cubic springs:
    `ẍᵢ = (xᵢ₊₁ - 2xᵢ + xᵢ₋₁) + β [(xᵢ₊₁ - xᵢ)³ - (xᵢ - xᵢ₋₁)³]`.

    The accelerations are a polynomial of degree 3 in the positions, so a regression of them on
    monomials has an exact answer (Gelß, Klus, Eisert and Schütte 2019, the example of MANDy).
    `snapshots` pairs positions with their accelerations.

    Args:
        d: number of masses.
        beta: strength of the cubic part.
    """

    d: int = static(default=10)
    beta: Any = 0.7
    _box = (-0.1, 0.1)

    @property
    def _width(self) -> int:
        return self.d

    def acceleration(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Accelerations at given positions."""
        x = as_numbers("systems.FermiPastaUlam: positions", x)
        if x.ndim == 0 or x.shape[-1] != self.d:
            raise expected(
                f"systems.FermiPastaUlam: positions of {self.d} masses",
                f"shape {x.shape}",
                f"FermiPastaUlam(d={x.shape[-1] if x.ndim else 1})",
            )
        stretch, beta = self._springs(x)
        return jnp.diff(stretch + beta * stretch**3, axis=-1)

    def step(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """The accelerations, which are regressed on the positions."""
        return self.acceleration(x)

    def _springs(self, q: Array) -> tuple[Array, Array]:
        """By how much each spring is stretched, those at the walls too; and `β`."""
        check_number("systems.FermiPastaUlam: beta", self.beta, -math.inf)
        wall = jnp.zeros_like(q[..., :1])
        beta = as_numbers("systems.FermiPastaUlam: beta", self.beta).astype(q.dtype)
        return jnp.diff(q, axis=-1, prepend=wall, append=wall), beta

    def drift(self, x: Float[Array, "... 2d"]) -> Float[Array, "... 2d"]:
        """Right-hand side of the first-order equation, state `(positions, velocities)`."""
        q, v = x[..., : self.d], x[..., self.d :]
        return jnp.concatenate([v, self.acceleration(q)], axis=-1)

    def energy(self, x: Float[Array, "... 2d"]) -> Float[Array, "..."]:
        """Total energy of states `(positions, velocities)`, constant along the flow."""
        d = as_whole("systems.FermiPastaUlam: masses d", self.d, 1)
        x = as_numbers("systems.FermiPastaUlam: states", x)
        if x.ndim == 0 or x.shape[-1] != 2 * d:
            raise expected(f"systems.FermiPastaUlam: states (..., {2 * d})", f"shape {x.shape}")
        stretch, beta = self._springs(x[..., :d])
        springs = stretch**2 / 2 + beta * stretch**4 / 4
        return jnp.sum(x[..., d:] ** 2, axis=-1) / 2 + jnp.sum(springs, axis=-1)

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


@pytree
class Logistic(System):
    """`y = r x (1 - x)` on [0, 1].

    At r = 4 it is the tent map in disguise: the orbit, the invariant density and the way the
    shifted Chebyshev polynomials are carried are known in closed form.

    Args:
        r: growth rate, in [0, 4].
    """

    r: Any = 4.0
    _box = (0.0, 1.0)

    @property
    def _width(self) -> int:
        return 1

    def step(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The state after one step."""
        x = as_numbers("systems.Logistic: states", x)
        return self.r * x * (1.0 - x)

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
