"""Polynomial dictionaries: the state itself, monomials, orthonormal families.

A product of coordinates is a sorted tuple `i1 <= i2 <= ... <= ik`. Columns are ordered by degree
`k`, within a degree lexicographically by that tuple, so the products whose first index is at least
`i` are a suffix of their block: columns are built from earlier ones, and found by rank, on this.
"""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax._core import as_whole, check_integer, expected, pytree, static
from koopjax.observables._base import Observables, atom, input_names

Family = Literal["hermite", "legendre", "chebyshev"]
FAMILIES: dict[str, str] = {"hermite": "he", "legendre": "P", "chebyshev": "T"}
MAX_COLUMNS = 2**31 - 1


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


class _Graded(Observables):
    """Products of functions of one coordinate each, up to a total degree, in graded order."""

    degree: int
    family: Any

    def size(self, d: int) -> int:
        """`C(d + degree, degree)`."""
        check_integer(f"the degree of {type(self).__name__}", self.degree, 0)
        d = as_whole("the number of coordinates", d, 0)
        return math.comb(d + self.degree, self.degree)

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `1`, `x0`, `x0*x1`, `x0^2`; `he2(x0)*he1(x3)` of an orthonormal family."""
        names = input_names(d, inputs)
        return [
            "*".join(power_name(self.family, names[i], m) for i, m in Counter(factors).items())
            or "1"
            for factors in self.factors(d)
        ]

    def factors(self, d: int) -> list[tuple[int, ...]]:
        """The coordinates that each column multiplies: `()`, `(0,)`, ..., `(0, 0)`, `(0, 1)`."""
        self.size(d)
        return [
            factors
            for k in range(self.degree + 1)
            for factors in itertools.combinations_with_replacement(range(d), k)
        ]

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


@pytree
class Monomials(_Graded):
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
        >>> Monomials(2).factors(2)
        [(), (0,), (1,), (0, 0), (0, 1), (1, 1)]
    """

    degree: int = static()
    family = "monomial"

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        n, d = x.shape
        require_addressable(self.size(d))
        # Coordinates as rows: rows are gathered whole, and their gradients scattered whole, which
        # takes half the time of columns on a CPU.
        rows = [jnp.ones((1, n), x.dtype)]
        if self.degree >= 1:
            rows.append(x.T)
        for left, right in power_plan(d, self.degree):
            rows.append(_rows(x.T, left) * _rows(rows[-1], right))
        return jnp.concatenate(rows, axis=0).T


@pytree
class Orthogonal(_Graded):
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
        if self.family not in FAMILIES:
            raise expected(f"a family in {sorted(FAMILIES)}", repr(self.family))
        return super().size(d)

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


def recurrence(family: str, degree: int) -> list[tuple[float, float]]:
    """`(a_k, b_k)` of `h_{k+1} = a_k x h_k - b_k h_{k-1}`: orthonormal polynomials, or powers."""
    if family == "monomial":
        return [(1.0, 0.0)] * degree
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
    for a, b in recurrence(family, degree):
        step = values[-1] * x if family == "monomial" else a * x * values[-1]
        values.append(step - b * values[-2] if b else step)
    return jnp.stack(values, axis=-1)


def power_name(family: str, name: str, power: int) -> str:
    """The name of one function of a coordinate: `x0^2`, `he2(x0)`; `1` for the constant."""
    if power == 0:
        return "1"
    if family != "monomial":
        return f"{FAMILIES[family]}{power}({name})"
    return atom(name) if power == 1 else f"{atom(name)}^{power}"


def require_addressable(size: int) -> None:
    """Raise where columns can't be counted in 32 bits, long after memory has run out."""
    if size > MAX_COLUMNS:
        raise expected(
            f"at most {MAX_COLUMNS:,} observables",
            f"{size:,}",
            "a lower degree, or Project to fewer coordinates first",
        )


def _suffix_sizes(d: int, k: int) -> np.ndarray:
    """`s[i]`: how many products of degree `k` have no index below `i`, for `i = 0, ..., d`."""
    if k == 0:
        return np.ones(d + 1, np.int64)
    return np.array([math.comb(d - i + k - 1, k) for i in range(d)] + [0], np.int64)


@functools.lru_cache(maxsize=64)
def power_plan(d: int, degree: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For each degree from 2 on: which coordinate times which column of the block before.

    `x_i` multiplies the suffix of the previous block that has no index below `i`.
    """
    plan = []
    for k in range(2, degree + 1):
        lengths = _suffix_sizes(d, k - 1)[:d]
        left = np.repeat(np.arange(d), lengths)
        # Position within each run, moved to where that suffix starts in the previous block.
        starts = np.cumsum(lengths) - lengths
        within = np.arange(len(left)) - np.repeat(starts, lengths)
        right = within + np.repeat(lengths[0] - lengths if d else lengths, lengths)
        plan.append((left.astype(np.int32), right.astype(np.int32)))
    return tuple(plan)


@functools.lru_cache(maxsize=64)
def table_plan(d: int, degree: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For each degree from 2 on: which univariate value times which column of lower degree.

    The product that begins with index `i` taken `m` times is `h_m(x_i)` times a product of degree
    `k - m` in later coordinates. The first array points into a table `(d, degree + 1)` of
    univariate values, the second into all columns of degree below `k`.
    """
    offsets = [0] + [math.comb(d + k, k) for k in range(degree + 1)]
    suffixes = [_suffix_sizes(d, k) for k in range(degree + 1)]
    plan = []
    for k in range(2, degree + 1):
        left, right = [], []
        for i in range(d):
            for m in range(k, 0, -1):
                rest = k - m
                count = int(suffixes[rest][i + 1])
                end = offsets[rest + 1]
                left.append(np.full(count, i * (degree + 1) + m, np.int32))
                right.append(np.arange(end - count, end, dtype=np.int32))
        empty = np.zeros(0, np.int32)
        plan.append((np.concatenate([empty, *left]), np.concatenate([empty, *right])))
    return tuple(plan)


@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def unrank(indices: Array, d: int, degree: int) -> Int[Array, "m degree"]:
    """The sorted index tuples of the columns `indices`, filled up with `d`.

    Works on traced indices, in `O(m degree log d)`, without listing the dictionary.
    """
    sizes = np.stack([_suffix_sizes(d, k) for k in range(degree + 1)]).astype(np.int32)
    starts = np.array([0] + [math.comb(d + k, k) for k in range(degree)], np.int32)
    suffix = jnp.asarray(sizes)
    indices = jnp.asarray(indices, jnp.int32)
    k = jnp.searchsorted(jnp.asarray(starts), indices, side="right").astype(jnp.int32) - 1
    # `left`: how many products, this one included, come from here to the end of its suffix.
    left = suffix[k, 0] - (indices - jnp.asarray(starts)[k])
    find = jax.vmap(lambda row, count: jnp.searchsorted(-row, -count, side="right"))
    columns = []
    for _ in range(degree):
        first = find(suffix[k], left).astype(jnp.int32) - 1
        columns.append(first)
        lower = jnp.maximum(k - 1, 0)
        left = jnp.where(k > 0, suffix[lower, first] - (suffix[k, first] - left), 1)
        k = lower
    if not columns:
        return jnp.zeros((indices.shape[0], 0), jnp.int32)
    return jnp.stack(columns, axis=1)


def _rows(rows: Array, indices: np.ndarray | Array) -> Array:
    """Rows by indices that are known to be in range."""
    return rows.at[indices].get(mode="promise_in_bounds")


def pick(columns: Array, indices: np.ndarray | Array) -> Array:
    """Columns by indices that are known to be in range."""
    return columns.at[:, indices].get(mode="promise_in_bounds")
