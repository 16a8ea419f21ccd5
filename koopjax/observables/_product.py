"""Separable dictionaries: one univariate family a coordinate, the full one their outer product."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import (
    as_states,
    as_whole,
    check_dictionary,
    check_integer,
    expected,
    leave,
    precise_as,
    pytree,
    read_numbers,
    static,
)
from koopjax.observables._base import (
    Observables,
    evaluate,
    input_names,
    like,
    positive,
    require_axes,
    require_dimension,
)
from koopjax.observables._polynomials import (
    FAMILIES,
    power_name,
    require_addressable,
    univariate,
)

# Beyond this a full product is refused: 2^27 columns are half a gigabyte a sample.
MAX_FULL = 2**27
#: Factors are Python objects: more than these are a mistake, not a state.
MOST_FACTORS = 2**20


class Univariate(Observables):
    """A family of functions of one coordinate; a dictionary on `d = 1`."""

    def evaluate(self, t: Any) -> Float[Array, "*rows k"]:
        """All functions at points `t` of any shape, on a new last axis."""
        return self(read_numbers("the points", t)[..., None])

    def size(self, d: int = 1) -> int:
        """The number of functions."""
        require_dimension(type(self).__name__, d, 1)
        return self._count()

    def names(self, d: int = 1, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `x0^2`, `he2(x0)`, `cos(2s·x0)` or `rbf2(x0)`."""
        self.size(d)
        (name,) = input_names(d, inputs)
        return self._named(name)

    def _count(self) -> int:
        raise NotImplementedError

    def _named(self, name: str) -> list[str]:
        raise NotImplementedError


@pytree
class Polynomial1D(Univariate):
    """Powers or orthonormal polynomials of one coordinate, degree 0 to `degree`.

    Args:
        degree: at least 0.
        family: `"monomial"`, `"hermite"`, `"legendre"` or `"chebyshev"`; see `Orthogonal`.

    Example:
        >>> Polynomial1D(2).names(1)
        ['1', 'x0', 'x0^2']
    """

    degree: int = static()
    family: str = static(default="monomial")

    def _count(self) -> int:
        check_integer("the degree of Polynomial1D", self.degree, 0)
        if self.family not in ("monomial", *FAMILIES):
            raise expected(f"a family in {sorted(['monomial', *FAMILIES])}", repr(self.family))
        return self.degree + 1

    def _named(self, name: str) -> list[str]:
        return [power_name(self.family, name, k) for k in range(self.degree + 1)]

    def _evaluate(self, x: Array) -> Array:
        return univariate(x[:, 0], self.degree, self.family)


@pytree
class Trigonometric(Univariate):
    """A Fourier series: `1, cos(s t), sin(s t), ..., cos(order s t), sin(order s t)`.

    Args:
        order: highest harmonic, at least 0.
        scale: `s`, a leaf; `2π / period`.
    """

    order: int = static()
    scale: Any = 1.0

    def _count(self) -> int:
        check_integer("the order of Trigonometric", self.order, 0)
        require_axes("the scale of Trigonometric", self.scale, 0)
        return 2 * self.order + 1

    def _named(self, name: str) -> list[str]:
        harmonics = range(1, self.order + 1)
        return ["1", *(f"{f}({k}s·{name})" for k in harmonics for f in ("cos", "sin"))]

    def _evaluate(self, x: Array) -> Array:
        angles = x * like(self.scale, x) * jnp.arange(1, self.order + 1, dtype=x.dtype)[None, :]
        pairs = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1).reshape(
            len(x), 2 * self.order
        )
        return jnp.concatenate([jnp.ones((len(x), 1), x.dtype), pairs], axis=1)


@pytree
class CosSin(Univariate):
    """`cos(s t), sin(s t)`: a unit vector for each coordinate, as used for pixels in [0, 1].

    Args:
        scale: `s`, a leaf; `π / 2` sends 0 and 1 to orthogonal vectors.
    """

    scale: Any = math.pi / 2

    def _count(self) -> int:
        require_axes("the scale of CosSin", self.scale, 0)
        return 2

    def _named(self, name: str) -> list[str]:
        return [f"cos(s·{name})", f"sin(s·{name})"]

    def _evaluate(self, x: Array) -> Array:
        angle = x * like(self.scale, x)
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)


@pytree
class Gaussian1D(Univariate):
    """`1` and Gaussians of one coordinate, `exp(-(t - c_j)² / (2 bandwidth²))`.

    Args:
        centers: `(k,)`.
        bandwidth: positive scalar or `(k,)`.
    """

    centers: Any
    bandwidth: Any = 1.0

    def _count(self) -> int:
        if not isinstance(self.bandwidth, jax.Array):  # those would have to be waited for
            positive(self.bandwidth)
        return require_axes("the centres of Gaussian1D", self.centers, 1)[0] + 1

    def _named(self, name: str) -> list[str]:
        return ["1", *(f"rbf{j}({name})" for j in range(self._count() - 1))]

    def _evaluate(self, x: Array) -> Array:
        centers = like(self.centers, x)
        width = jnp.broadcast_to(like(self.bandwidth, x), centers.shape)
        bumps = jnp.exp(-(((x - centers[None, :]) / width[None, :]) ** 2) / 2)
        return jnp.concatenate([jnp.ones((len(x), 1), x.dtype), bumps], axis=1)


@pytree
class Product(Observables):
    """All products of one function from each coordinate's family.

    `psi(x) = f_0(x_0) ⊗ f_1(x_1) ⊗ ... ⊗ f_{d-1}(x_{d-1})`, the last coordinate running fastest:
    column `(k_0, ..., k_{d-1})` is entry `[k_0, ..., k_{d-1}]` of a tensor flattened in C order.
    Tensor-train methods use `factors_at` and never form it.

    Args:
        factors: one dictionary on a single coordinate for each coordinate: `Polynomial1D`,
            `Trigonometric`, `CosSin`, `Gaussian1D`, or any other on `d = 1`.

    Example:
        >>> Product([Polynomial1D(1), Polynomial1D(1)]).names(2)
        ['1', 'x1', 'x0', 'x0*x1']
    """

    factors: Any

    def __post_init__(self) -> None:
        """Take a list as a tuple, so that equal products have equal tree structures."""
        if isinstance(self.factors, list):
            object.__setattr__(self, "factors", tuple(self.factors))

    @classmethod
    def of(cls, factor: Any, d: int) -> "Product":
        """The same family for all of `d` coordinates."""
        check_dictionary("the factor of Product", factor)
        return cls((factor,) * as_whole("d", d, 1, MOST_FACTORS))

    def modes(self, d: int | None = None) -> tuple[int, ...]:
        """The families' sizes: the mode sizes of the tensor."""
        if not isinstance(self.factors, tuple):
            raise expected(
                "a sequence of factors in Product", f"{self.factors!r:.60}", "Product.of(factor, d)"
            )
        if not self.factors:
            raise expected("at least one factor in Product", "none")
        if d is not None:
            require_dimension("Product", d, len(self.factors))
        for factor in self.factors:
            check_dictionary("a factor of Product", factor)
        return tuple(factor.size(1) for factor in self.factors)

    def size(self, d: int) -> int:
        """The product of the families' sizes (exact, however large)."""
        return math.prod(self.modes(d))

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `he1(x0)*he2(x3)`."""
        self._require_small(d)
        inputs = input_names(d, inputs)
        parts = [f.names(1, [name]) for f, name in zip(self.factors, inputs, strict=True)]
        return [
            "*".join(name for name in row if name != "1") or "1"
            for row in itertools.product(*parts)
        ]

    def factors_at(self, x: Any) -> list[Array]:
        """What a tensor train needs: each family at its own coordinate.

        Args:
            x: `(n, d)`.

        Returns:
            `d` arrays `(n, k_i)`, in the dtype of `x`.
        """
        x = as_states("the states", x, self)
        if x.ndim != 2:
            raise expected("states of shape (n, d)", f"shape {x.shape}")
        require_dimension("Product", x.shape[1], len(self.factors))
        # All columns in one dtype, whatever each of them alone would need.
        with precise_as(x.dtype):
            x = jnp.asarray(x)
            values = [factor(x[:, i : i + 1]) for i, factor in enumerate(self.factors)]
        return leave(values)

    def _require_small(self, d: int) -> None:
        size = self.size(d)
        require_addressable(size)
        if size > MAX_FULL:
            raise expected(
                f"at most {MAX_FULL:,} products to be formed",
                f"{size:,}",
                "factors_at with the tensor-train methods, or fewer coordinates",
            )

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        n, d = x.shape
        self._require_small(d)
        full = jnp.ones((n, 1), x.dtype)
        for i, factor in enumerate(self.factors):
            values = evaluate(factor, x[:, i : i + 1])
            full = (full[:, :, None] * values[:, None, :]).reshape(
                n, full.shape[1] * values.shape[1]
            )
        return full

    def _columns(self, x: Float[Array, "n d"], indices: Array) -> Array:
        modes = self.modes(x.shape[1])
        require_addressable(math.prod(modes))
        product = jnp.ones((x.shape[0], indices.shape[0]), x.dtype)
        rest = indices
        for i in reversed(range(len(modes))):
            values = evaluate(self.factors[i], x[:, i : i + 1])
            product = product * jnp.take(values, rest % modes[i], axis=1)
            rest = rest // modes[i]
        return product
