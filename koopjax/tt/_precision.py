"""Where 64-bit cores come in, 64-bit cores go out; the global configuration stays as it is."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax._core import expected, has_float64, has_x64, in_float64


def precise(*trees: Any) -> contextlib.AbstractContextManager:
    """A context in which 64-bit leaves keep their digits; one that does nothing without them.

    NumPy's float64 takes the dtype that it meets, unless float32 does not hold its numbers.

    Raises:
        ValueError: there are such numbers, and the backend has no float64.
    """
    return in_float64(not has_x64() and any(map(_is_wide, jax.tree.leaves(trees))))


def _is_wide(leaf: Any) -> bool:
    if getattr(leaf, "dtype", None) not in (np.dtype(np.float64), np.dtype(np.complex128)):
        return False
    if not isinstance(leaf, np.ndarray):
        return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    if _fits_float32(leaf.real) and _fits_float32(leaf.imag):
        return False
    if not has_float64():
        raise expected(
            "numbers that float32 holds, as this backend has no float64",
            f"{np.abs(leaf).max():.3g} and less",
            "cores of order 1, with the scale in one of them",
        )
    return True


def _fits_float32(a: np.ndarray) -> bool:
    """Whether no number becomes infinite or, as XLA takes subnormal ones, zero."""
    size, info = np.abs(a), np.finfo(np.float32)
    small = (size > 0) & (size < info.tiny)
    return not (small | ((size > info.max) & (size < np.inf))).any()


def floating_dtype(*arrays: Any) -> np.dtype:
    """The dtype that arrays are computed in: promoted to a common one, integers as floats."""
    with precise(arrays):
        dtype = jnp.result_type(*arrays)
        return np.dtype(dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.result_type(float))


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
