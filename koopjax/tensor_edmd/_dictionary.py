"""The separable part of a dictionary, and what stands in front of it."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import expected, pytree
from koopjax.observables import Compose, Observables, Product


@pytree
class FunctionMajor(Observables):
    """Products that take, of every function, the values at all coordinates: one mode a function.

    `psi(x) = ⊗ₘ [1, fₘ(x_0), ..., fₘ(x_{d-1})]` over the functions `m` that are not constant, where
    `Product` has one mode a coordinate, `⊗ᵢ [f_0(x_i), ..., f_{k-1}(x_i)]`. As many cores as
    functions: few for many coordinates, and ranks that say how the functions hang together.

    Args:
        product: `Product` of equal families; a first function named `1` is left out, since every
            mode begins with a one.

    Example:
        >>> from koopjax.observables import Polynomial1D
        >>> FunctionMajor(Product.of(Polynomial1D(2), 3)).modes(3)
        (4, 4)

    Reference: Gelß, Klus, Eisert & Schütte (2019), J. Comput. Nonlinear Dyn. 14 (MANDy).
    """

    product: Any

    def _skip(self) -> int:
        return int(self.product.factors[0].names(1)[0] == "1")

    def modes(self, d: int | None = None) -> tuple[int, ...]:
        """`1 + d` for every function that is not constant."""
        sizes = set(self.product.modes(d))
        if len(sizes) != 1:
            raise expected(
                "families of one size for function-major modes",
                f"sizes {self.product.modes()}",
                "form='coordinate'",
            )
        count = sizes.pop() - self._skip()
        if count < 1:
            raise expected("a function that is not constant", "none", "Polynomial1D(2)")
        return (1 + len(self.product.factors),) * count

    def size(self, d: int) -> int:
        """`(1 + d)` to the number of functions."""
        return math.prod(self.modes(d))

    def names(self, d: int, inputs: Sequence[str] | None = None) -> list[str]:
        """Names such as `x0*x2^2`: one entry of each mode."""
        self.modes(d)
        inputs = [f"x{i}" for i in range(d)] if inputs is None else list(inputs)
        columns = [
            f.names(1, [name])[self._skip() :]
            for f, name in zip(self.product.factors, inputs, strict=True)
        ]
        out = [[]]
        for functions in zip(*columns, strict=True):
            out = [[*row, name] for row in out for name in ("1", *functions)]
        return ["*".join(name for name in row if name != "1") or "1" for row in out]

    def factors_at(self, x: Any) -> list[Array]:
        """One `(n, 1 + d)` array a function: a one, then the function at every coordinate."""
        self.modes(x.shape[-1])
        values = jnp.stack(self.product.factors_at(x), axis=1)[:, :, self._skip() :]
        one = jnp.ones((values.shape[0], 1), values.dtype)
        return [jnp.concatenate([one, values[:, :, m]], axis=1) for m in range(values.shape[2])]

    def _evaluate(self, x: Float[Array, "n d"]) -> Array:
        full = jnp.ones((x.shape[0], 1), x.dtype)
        return functools.reduce(outer, self.factors_at(x), full)


def separable(psi: Any) -> tuple[list[Any], Any]:
    """Take `Compose(first, Compose(..., Product))` apart.

    Args:
        psi: a `Product` (or `FunctionMajor`), or a `Compose` whose last part is one (a projection,
            a standardisation or an ordering of coordinates in front).

    Returns:
        The maps in front, in the order in which they are applied, and the product.
    """
    front: list[Any] = []
    while isinstance(psi, Compose):
        inner, psi = psi.first, psi.then
        front.append(inner)
    if not isinstance(psi, Product | FunctionMajor):
        raise expected(
            "a Product dictionary, or a Compose that ends in one",
            type(psi).__name__,
            "Product.of(Polynomial1D(2), d)",
        )
    return front, psi


def through(front: list[Any], x: Array) -> Array:
    """States past the maps in front."""
    for part in front:
        x = part(x)
    return x


def factors_of(psi: Any, x: Array) -> list[Array]:
    """What tensor trains need of a dictionary at states `(n, d)`: `(n, m_k)` for every mode."""
    front, product = separable(psi)
    return product.factors_at(through(front, x))


def modes_of(psi: Any) -> tuple[int, ...]:
    """Mode sizes of the product in which a dictionary ends."""
    return separable(psi)[1].modes()


def with_product(psi: Any, product: Any) -> Any:
    """The same maps in front of another product."""
    if isinstance(psi, Compose):
        return Compose(psi.first, with_product(psi.then, product))
    return product


def check_states(psi: Any, x: Any) -> None:
    """Raise `ValueError` unless states `(n, d)` fit a dictionary and there is at least one."""
    if x.ndim != 2:
        raise expected(
            "states of shape (n, d) or (d,)", f"shape {tuple(x.shape)}", "a row for each sample"
        )
    if x.shape[0] == 0:
        raise expected("at least one state", "an empty batch", "checking how the data were read")
    front, product = separable(psi)
    d = x.shape[1]
    for part in front:
        d = part.size(d)
    wanted = len(getattr(product, "product", product).factors)
    if d != wanted:
        raise expected(
            f"states with {wanted} coordinates, one for each factor of the product",
            f"{d}",
            "a Product over as many coordinates as the states have",
        )


@jax.jit
def evaluated(psi: Any, x: Array) -> list[Array]:
    """`factors_of` in one compiled call."""
    return factors_of(psi, x)


def outer(a: Array, b: Array) -> Array:
    """Row by row, `(n, p)` and `(n, m)` to `(n, p m)`, the second running fastest."""
    return (a[:, :, None] * b[:, None, :]).reshape(a.shape[0], a.shape[1] * b.shape[1])


def tail_norms(squares: Array) -> Array:
    """`(Σ_{j ≥ k} squares_j)^{1/2}`: what is lost where the values from k on are cut off."""
    return jnp.sqrt(jnp.flip(jnp.cumsum(jnp.flip(squares))))
