"""Polynomial dictionaries: the state itself, monomials, orthonormal families."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import check_integer, expected, pytree, static
from koopjax.observables._base import Observables, atom, input_names
from koopjax.observables._graded import (
    graded_size,
    pick,
    pick_rows,
    power_plan,
    require_addressable,
    table_plan,
    tuples,
    unrank,
)

Family = Literal["hermite", "legendre", "chebyshev"]
FAMILIES: dict[str, str] = {"hermite": "he", "legendre": "P", "chebyshev": "T"}


@pytree
class Identity(Observables):
    """The state itself: `psi(x) = x`, without a constant.

    Example:
        >>> Identity().names(2)
        ['x0', 'x1']
    """

    def size(self, d: int) -> int:
        """`d`."""
        return d

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """The names of the coordinates."""
        return input_names(d, inputs)

    def _evaluate(self, x: Array) -> Array:
        return x

    def _columns(self, x: Array, indices: Array) -> Array:
        return jnp.take(x, indices, axis=1)


@pytree
class Monomials(Observables):
    """All products of coordinates up to a total degree, the constant included.

    `psi(x) = [1, x_0, ..., x_{d-1}, x_0², x_0 x_1, ..., x_{d-1}^degree]`, by degree and within a
    degree lexicographically; the input is taken as it is.

    Args:
        degree: total degree, at least 0.

    Numerics:
        One product a column. The condition number of the Gram matrix grows exponentially with the
        degree; from degree 3 on prefer `Compose(Standardize.fit(x), Orthogonal(degree))`.

    Example:
        >>> Monomials(2).names(2)
        ['1', 'x0', 'x1', 'x0^2', 'x0*x1', 'x1^2']
        >>> Monomials(2).size(100)
        5151
    """

    degree: int = static()

    def size(self, d: int) -> int:
        """`C(d + degree, degree)`."""
        check_integer("the degree of Monomials", self.degree, 0)
        return graded_size(d, self.degree)

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `1`, `x0`, `x0*x1`, `x0^2`."""
        self.size(d)
        names = [atom(name) for name in input_names(d, inputs)]
        return [self._name(factors, names) for factors in tuples(d, self.degree)]

    def _name(self, factors: tuple[int, ...], names: list[str]) -> str:
        powers = Counter(factors).items()
        return "*".join(names[i] if m == 1 else f"{names[i]}^{m}" for i, m in powers) or "1"

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        n, d = x.shape
        require_addressable(self.size(d))
        # Coordinates as rows: rows are gathered whole, and their gradients scattered whole, which
        # takes half the time of columns on a CPU.
        rows = [jnp.ones((1, n), x.dtype)]
        if self.degree >= 1:
            rows.append(x.T)
        for left, right in power_plan(d, self.degree):
            rows.append(pick_rows(x.T, left) * pick_rows(rows[-1], right))
        return jnp.concatenate(rows, axis=0).T

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        n, d = x.shape
        require_addressable(self.size(d))
        padded = jnp.concatenate([x, jnp.ones((n, 1), x.dtype)], axis=1)
        factors = unrank(indices, d, self.degree)
        product = jnp.ones((n, factors.shape[0]), x.dtype)
        for k in range(self.degree):
            product = product * pick(padded, factors[:, k])
        return product


@pytree
class Orthogonal(Observables):
    """Products of orthonormal polynomials, up to a total degree, the constant included.

    `psi_a(x) = h_{a_0}(x_0) ... h_{a_{d-1}}(x_{d-1})` with `a_0 + ... + a_{d-1} <= degree`, in the
    order of `Monomials`. Each family is normalised to `E[h_j h_k] = delta_jk` under its own
    probability measure: the standard normal (hermite, the probabilists'), the uniform one on
    [-1, 1] (legendre), the arcsine one on [-1, 1] (chebyshev).

    Args:
        degree: total degree, at least 0.
        family: `"hermite"`, `"legendre"` or `"chebyshev"`.

    Numerics:
        Three-term recurrence for the orthonormal polynomials themselves: no factorials, no
        cancellation between powers. Legendre and Chebyshev polynomials are bounded on [-1, 1] only
        and grow like `(2 |x|)^degree` outside, where they are evaluated all the same; bring data
        there with `Standardize.fit_range(x)`. Hermite wants `Standardize.fit(x)`.

    Example:
        >>> Orthogonal(2).names(2)
        ['1', 'he1(x0)', 'he1(x1)', 'he2(x0)', 'he1(x0)*he1(x1)', 'he2(x1)']
    """

    degree: int = static()
    family: str = static(default="hermite")

    def size(self, d: int) -> int:
        """`C(d + degree, degree)`."""
        check_integer("the degree of Orthogonal", self.degree, 0)
        if self.family not in FAMILIES:
            raise expected(f"a family in {sorted(FAMILIES)}", repr(self.family))
        return graded_size(d, self.degree)

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `he2(x0)*he1(x3)`."""
        self.size(d)
        names = input_names(d, inputs)
        return [self._name(factors, names) for factors in tuples(d, self.degree)]

    def _name(self, factors: tuple[int, ...], names: list[str]) -> str:
        letter = FAMILIES[self.family]
        return "*".join(f"{letter}{m}({names[i]})" for i, m in Counter(factors).items()) or "1"

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        n, d = x.shape
        require_addressable(self.size(d))
        table = univariate(x, self.degree, self.family)
        columns = [jnp.ones((n, 1), x.dtype)]
        if self.degree >= 1:
            columns.append(table[:, :, 1])
        flat = table.reshape(n, d * (self.degree + 1))
        done = jnp.concatenate(columns, axis=1)
        for left, right in table_plan(d, self.degree):
            block = pick(flat, left) * pick(done, right)
            done = jnp.concatenate([done, block], axis=1)
        return done

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        n, d = x.shape
        require_addressable(self.size(d))
        table = univariate(x, self.degree, self.family).reshape(n, d * (self.degree + 1))
        factors = unrank(indices, d, self.degree)
        m = factors.shape[0]
        product = jnp.ones((n, m), x.dtype)
        run = jnp.zeros(m, jnp.int32)
        after = jnp.concatenate([factors[:, 1:], jnp.full((m, 1), d, jnp.int32)], axis=1)
        for k in range(self.degree):
            # A coordinate that occurs several times counts once, at the end of its run.
            run = run + 1
            ends = factors[:, k] != after[:, k]
            power = jnp.where(ends & (factors[:, k] < d), run, 0)
            place = jnp.minimum(factors[:, k], d - 1) * (self.degree + 1) + power
            product = product * pick(table, place)
            run = jnp.where(ends, 0, run)
        return product


def recurrence(family: str, degree: int) -> list[tuple[float, float]]:
    """`(a_k, b_k)` of `h_{k+1} = a_k x h_k - b_k h_{k-1}` for the orthonormal polynomials."""
    if family == "hermite":
        return [(1 / math.sqrt(k + 1), math.sqrt(k / (k + 1))) for k in range(degree)]
    if family == "legendre":
        return [
            (
                math.sqrt((2 * k + 1) * (2 * k + 3)) / (k + 1),
                k / (k + 1) * math.sqrt((2 * k + 3) / (2 * k - 1)) if k else 0.0,
            )
            for k in range(degree)
        ]
    # The constant has another norm than the rest, which the first two steps carry.
    first = [(math.sqrt(2.0), 0.0), (2.0, math.sqrt(2.0))]
    return [*first, *[(2.0, 1.0)] * max(0, degree - 2)][:degree]


def univariate(x: Array, degree: int, family: str) -> Float[Array, "*shape values"]:
    """`h_0(x), ..., h_degree(x)` for every entry, on a new last axis."""
    values = [jnp.ones_like(x)]
    for k, (a, b) in enumerate(recurrence(family, degree)):
        step = a * x * values[-1]
        values.append(step - b * values[-2] if k else step)
    return jnp.stack(values, axis=-1)
