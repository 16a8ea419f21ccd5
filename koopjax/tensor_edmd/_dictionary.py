"""The separable part of a dictionary, and what stands in front of it."""

from typing import Any

from jaxtyping import Array

from koopjax._core import expected
from koopjax.observables import Compose, Product


def separable(psi: Any) -> tuple[list[Any], Product]:
    """Take `Compose(first, Compose(..., Product))` apart.

    Args:
        psi: a `Product`, or a `Compose` whose last part is one (a projection, a standardisation
            or an ordering of coordinates in front).

    Returns:
        The maps in front, in the order in which they are applied, and the product.
    """
    front: list[Any] = []
    while isinstance(psi, Compose):
        inner, psi = psi.first, psi.then
        front.append(inner)
    if not isinstance(psi, Product):
        raise expected(
            "a Product dictionary, or a Compose that ends in one",
            type(psi).__name__,
            "Product.of(Polynomial1D(2), d)",
        )
    return front, psi


def factors_of(psi: Any, x: Array) -> list[Array]:
    """What tensor trains need of a dictionary at states `(n, d)`: `(n, m_k)` for every mode."""
    front, product = separable(psi)
    for part in front:
        x = part(x)
    return product.factors_at(x)
