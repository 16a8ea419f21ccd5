"""Eigenvalues of a non-symmetric matrix on any backend, sorted, with derivatives."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from koopjax._core._linalg import matmul
from koopjax._core._precision import promoted


def _on_host(k: Array) -> tuple[Array, Array]:
    """Through NumPy on the host, where the backend has no routine of its own (GPU, TPU)."""
    complex_dtype = promoted(k.dtype, jnp.complex64)
    shapes = (
        jax.ShapeDtypeStruct(k.shape[:-1], complex_dtype),
        jax.ShapeDtypeStruct(k.shape, complex_dtype),
    )

    def call(matrix: Any) -> tuple[Any, Any]:
        matrix = np.asarray(matrix)
        good = np.isfinite(matrix).all()
        values, vectors = np.linalg.eig(matrix if good else np.zeros_like(matrix))
        values = values if good else np.full_like(values, np.nan)
        return values.astype(complex_dtype), vectors.astype(complex_dtype)

    return jax.pure_callback(call, shapes, k, vmap_method="expand_dims")


def _on_cpu(k: Array) -> tuple[Array, Array]:
    values, vectors = jax.lax.linalg.eig(k, compute_left_eigenvectors=False)
    return values, vectors


@jax.custom_jvp
def eig(k: Float[Array, "p p"]) -> tuple[Complex[Array, " p"], Complex[Array, "p p"]]:
    """Eigenvalues by falling modulus (conjugates: positive imaginary part first) and right vectors.

    Derivatives exist where the eigenvalues are distinct; directions within a cluster, in which
    eigenvectors turn arbitrarily, are given none.
    """
    values, vectors = jax.lax.platform_dependent(k, cpu=_on_cpu, default=_on_host)
    # Rounding must not decide the order of a conjugate pair: compare moduli to a few digits less.
    modulus = jnp.abs(values)
    grain = 64 * jnp.finfo(k.dtype).eps * jnp.max(modulus)
    rounded = jnp.round(modulus / jnp.where(grain > 0, grain, 1))
    order = jnp.lexsort((-values.imag, -values.real, -rounded))
    return values[order], vectors[:, order]


@eig.defjvp
def _eig_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    values, vectors = eig(primals[0])
    inner = jnp.linalg.solve(vectors, matmul(tangents[0].astype(vectors.dtype), vectors))
    gap = values[None, :] - values[:, None]
    distinct = gap != 0
    turn = jnp.where(distinct, 1 / jnp.where(distinct, gap, 1), 0)
    dvectors = matmul(vectors, turn * inner)
    # LAPACK keeps columns at unit norm: the change along the column itself is taken out.
    along = jnp.sum(jnp.conj(vectors) * dvectors, axis=0).real
    return (values, vectors), (jnp.diagonal(inner), dvectors - vectors * along[None, :])


def left_vectors(vectors: Complex[Array, "p p"]) -> Complex[Array, "p p"]:
    """Left eigenvectors biorthonormal to right ones: `leftᴴ right = I`; columns.

    The pseudo-inverse, so that a defective matrix gives finite, least-squares modes.
    """
    eps = jnp.finfo(vectors.dtype).eps
    return jnp.conj(jnp.linalg.pinv(vectors, rtol=eps * vectors.shape[0])).T
