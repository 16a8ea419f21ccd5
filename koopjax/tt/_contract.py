"""A TT matrix applied to rank-one tensors: the product dictionary, never formed."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import expected

PRECISION = "highest"


def contract(
    matrix: Any, factors: Sequence[Any], *, precision: Any = PRECISION
) -> Float[Array, "n q"]:
    """Row vectors `f_1 ⊗ f_2 ⊗ ... ⊗ f_d` times a TT matrix, sample by sample.

    `out[s] = (f_1[s] ⊗ ... ⊗ f_d[s]) M`, contracted core by core from both ends towards the core
    with the output, so that no tensor of the dictionary's size exists.

    Args:
        matrix: `TTMatrix` `(∏ m_k, q)`.
        factors: `d` arrays `(n, m_k)`, as `Product.factors_at(x)` gives.
        precision: of the products, as `jax.lax.Precision` takes it.

    Returns:
        `(n, q)`. Costs `2 n Σ r_{k-1} m_k r_k` operations, `q` times that in the output's core.
    """
    shapes = [tuple(f.shape) for f in factors]
    if [s[-1] for s in shapes] != list(matrix.row_modes):
        raise expected(
            f"factors of widths {matrix.row_modes}", f"shapes {shapes}", "the fit's own dictionary"
        )
    columns = matrix.column_modes
    middle = max(range(matrix.order), key=lambda k: columns[k])
    n = shapes[0][0]
    left = jnp.ones((n, 1, 1), factors[0].dtype)
    for core, f in zip(matrix.cores[:middle], factors[:middle], strict=True):
        left = jnp.einsum("sar,si,rijt->sajt", left, f, core, precision=precision)
        left = left.reshape(n, -1, core.shape[-1])
    right = jnp.ones((n, 1, 1), factors[0].dtype)
    pairs = zip(reversed(matrix.cores[middle + 1 :]), reversed(factors[middle + 1 :]), strict=True)
    for core, f in pairs:
        right = jnp.einsum("rijt,si,sbt->sjbr", core, f, right, precision=precision)
        right = right.reshape(n, -1, core.shape[0])
    out = jnp.einsum(
        "sar,si,rijt,sbt->sajb", left, factors[middle], matrix.cores[middle], right,
        precision=precision, optimize="optimal",
    )  # fmt: skip
    return out.reshape(n, -1)
