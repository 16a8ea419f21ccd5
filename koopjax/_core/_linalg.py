"""Products at full precision, QR with masked columns, roots, ridges, eigenvalues."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from koopjax._core._arrays import check_finite, expected, is_tracing, promoted
from koopjax._core._door import read_numbers


def matmul(a: Array, b: Array) -> Array:
    """Matrix product at the highest precision of the dtype.

    On TPU and on tensor cores the default would cut float32 factors to bfloat16 or TF32, which a
    least-squares problem does not survive.
    """
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def gram(a: Array) -> Array:
    """`aᵀ a` (conjugated for complex `a`) at the highest precision; `(n, p)` to `(p, p)`."""
    return matmul(jnp.conj(a).T if jnp.iscomplexobj(a) else a.T, a)


def qr_r(a: Float[Array, "n p"]) -> Float[Array, "k p"]:
    """The upper-triangular factor of `a = Q R`; `k = min(n, p)`."""
    return jnp.linalg.qr(a, mode="r")


def masked_qr(
    a: Float[Array, "n r"], mask: Float[Array, " r"]
) -> tuple[Float[Array, "n r"], Float[Array, "r r"]]:
    """Reduced QR of the columns that a mask keeps, with zeros in place of the others.

    Factors `[A; diag(1 - mask)]` and keeps the top rows of Q: the kept columns get exactly the
    values and gradients of the QR without the masked ones, where a QR of zero columns would give
    junk and NaN gradients. vmaps over masks. Masked columns of Q, rows and columns of R are zero.
    """
    rank = a.shape[1]
    mask = mask.astype(a.dtype)
    stacked = jnp.concatenate([a * mask[None, :], jnp.diag(1 - mask)])
    q, r = jnp.linalg.qr(stacked)
    outer = mask[:, None] * mask[None, :]
    return q[: a.shape[0], :rank] * mask[None, :], r[:rank] * outer


class Root(NamedTuple):
    """Roots of a symmetric positive semidefinite matrix, `M = V diag(s²) Vᵀ`, s rising."""

    vectors: Any
    scale: Any

    @property
    def half(self) -> Any:
        """`A = V diag(s)`, with `A Aᵀ = M`."""
        return self.vectors * self.scale[None, :]

    @property
    def symmetric(self) -> Any:
        """`M^{1/2}`."""
        return _product(self.half, self.vectors.T)

    @property
    def inverse(self) -> Any:
        """`M^{-1/2}`; finite where the eigenvalues were given a floor."""
        return _product(self.vectors / self.scale[None, :], self.vectors.T)


def _product(a: Any, b: Any) -> Any:
    return matmul(a, b) if isinstance(a, jax.Array) else a @ b


def semidefinite_root(matrix: Any, floor: float = 0.0) -> Root:
    """The root of a positive semidefinite matrix: NumPy's on the host, JAX's where it is.

    Only the symmetric part counts. Eigenvalues below the share `floor` of the largest (of one,
    where all are zero) are raised to it; without, what rounding made negative counts as zero.
    """
    xp: Any = jnp if isinstance(matrix, jax.Array) else np
    values, vectors = xp.linalg.eigh((matrix + matrix.T) / 2)
    top = xp.where(values[-1] > 0, values[-1], 1)
    return Root(vectors, xp.sqrt(xp.maximum(values, floor * top)))


def ridge_solve(gram: Any, right: Any, ridge: float) -> np.ndarray:
    """`(G + ridge · I)⁻¹ R` of matrices on the host, in their own units."""
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), right)


def check_metric(name: str, metric: Any, size: int) -> None:
    """Raise unless what an error costs is a metric: finite, symmetric, positive semidefinite.

    Up to rounding of its dtype; a metric that is being traced is asked for its shape alone.
    """
    if metric is None:
        return
    metric = metric if is_tracing(metric) else read_numbers(name, metric)
    if metric.shape != (size, size):
        raise expected(f"a {name} of shape ({size}, {size})", f"shape {metric.shape}")
    if is_tracing(metric):
        return
    check_finite(name, metric)
    host = np.asarray(metric, np.float64)
    grain = float(np.sqrt(jnp.finfo(metric.dtype).eps)) * np.abs(host).max(initial=0)
    if np.abs(host - host.T).max(initial=0) > grain:
        raise expected(
            f"a symmetric {name}", "one that differs from its transpose", "(A + A.T) / 2"
        )
    try:
        np.linalg.cholesky(host + (grain or 1) * np.eye(size))
    except np.linalg.LinAlgError as error:
        raise expected(
            f"a positive semidefinite {name}",
            f"an eigenvalue of {np.linalg.eigvalsh(host)[0]:.3g}",
            "x.T @ x / n, or an average of Jacobians' outer products",
        ) from error


def tol(dtype: Any, condition: float = 1.0) -> float:
    """Error to expect of a backward-stable routine: `32 · eps(dtype) · condition`."""
    return 32.0 * float(jnp.finfo(dtype).eps) * condition


# Eigenvalues of a non-symmetric matrix on any backend, sorted, with derivatives.


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
