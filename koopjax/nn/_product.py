"""Product dictionaries as the factors that tensor trains are contracted with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import tensor_edmd
from koopjax._core import expected
from koopjax.observables import Compose, Product

STACKED_FROM = 8  # equal families from which they are evaluated as one


def ends_in_product(psi: Any) -> bool:
    """Whether a dictionary is a `Product`, or a `Compose` that ends in one."""
    while isinstance(psi, Compose):
        psi = psi.then
    return isinstance(psi, Product)


def check_modes(psi: Any, row_modes: tuple[int, ...]) -> None:
    """Raise where a product dictionary has other modes than a TT operator behind it."""
    _, product = tensor_edmd.separable(psi)
    modes = product.modes()
    if modes != tuple(row_modes):
        raise expected(
            f"a TT operator of row modes {modes}, the sizes of the dictionary's families",
            f"{tuple(row_modes)}",
        )


def product_factors(psi: Any, x: Array, dtype: Any = None) -> list[Array] | Array:
    """Each family at its coordinate: `d` arrays `(n, m_k)`, or one `(d, n, m)` for equal families.

    Many equal families (of one class and one shape of parameters) are evaluated as one, by `vmap`,
    which compiles as fast as one of them.

    Args:
        psi: a `Product`, or a `Compose` that ends in one.
        x: `(n, d)`.
        dtype: of the result; none keeps it.
    """
    front, product = tensor_edmd.separable(psi)
    for part in front:
        x = part(x)
    if x.ndim == 2 and len(product.factors) == x.shape[1] and _alike(product.factors):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *product.factors)
        factors = jax.vmap(lambda family, t: family(t[:, None]))(stacked, x.T)
        return factors if dtype is None else factors.astype(dtype)
    several = product.factors_at(x)
    return several if dtype is None else [f.astype(dtype) for f in several]


def _alike(factors: Any) -> bool:
    if len(factors) < STACKED_FROM:
        return False
    first = jax.tree.structure(factors[0])
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(factors[0])]
    return all(
        jax.tree.structure(f) == first and [np.shape(v) for v in jax.tree.leaves(f)] == shapes
        for f in factors[1:]
    )
