"""Where 64-bit cores come in, 64-bit cores go out; the global configuration stays as it is."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def precise(*trees: Any) -> contextlib.AbstractContextManager:
    """A context in which 64-bit leaves keep their digits; one that does nothing without them."""
    wide = any(
        isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        and leaf.dtype in (jnp.float64, jnp.complex128)
        for leaf in jax.tree.leaves(trees)
    )
    if wide and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return jax.enable_x64(True)
    return contextlib.nullcontext()


def precise_as(dtype: Any) -> contextlib.AbstractContextManager:
    """As `precise`, for arrays of a dtype that are about to be made."""
    return precise(jax.ShapeDtypeStruct((), np.dtype(dtype)))


def einsum(pattern: str, *operands: Any) -> Array:
    """Contraction at the highest precision of the dtype."""
    return jnp.einsum(pattern, *operands, precision=jax.lax.Precision.HIGHEST)


def dagger(a: Array) -> Array:
    """Conjugate transpose of the last two axes."""
    return jnp.conj(jnp.swapaxes(a, -1, -2))


def factor_dtype(dtype: Any) -> Any:
    """The dtype of QR and SVD: at least float32, since LAPACK has no half types."""
    return jnp.promote_types(dtype, jnp.float32)


def real_dtype(dtype: Any) -> Any:
    """The dtype of magnitudes: float32 for complex64 and so on."""
    return jnp.finfo(dtype).dtype
