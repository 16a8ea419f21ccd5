"""Products at full precision, QR with masked columns, and the merging of R factors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core._arrays import check_finite, expected, is_tracing
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


def merge_r(first: Float[Array, "p p"], second: Float[Array, "p p"]) -> Float[Array, "p p"]:
    """R factor of two stacked R factors, so that `RᵀR = R₁ᵀR₁ + R₂ᵀR₂`.

    Backward stable: the product is never formed, so the condition number is not squared.
    """
    return qr_r(jnp.concatenate([first, second]))


def masked_qr(
    a: Float[Array, "n r"], mask: Float[Array, " r"]
) -> tuple[Float[Array, "n r"], Float[Array, "r r"]]:
    """Reduced QR of the columns that a mask keeps, with zeros in place of the others.

    Factors `[A; diag(1 - mask)]` and keeps the top rows of Q: the kept columns get exactly the
    values and gradients of the QR without the masked ones, where a QR of zero columns would give
    junk and NaN gradients. vmaps over masks.

    Args:
        a: matrix; columns with `mask == 0` are taken as zero.
        mask: 1 for columns that are kept, 0 for padding.

    Returns:
        `q` with orthonormal kept columns and zero masked ones, and `r` with zero masked rows and
        columns.
    """
    rank = a.shape[1]
    mask = mask.astype(a.dtype)
    stacked = jnp.concatenate([a * mask[None, :], jnp.diag(1 - mask)])
    q, r = jnp.linalg.qr(stacked)
    outer = mask[:, None] * mask[None, :]
    return q[: a.shape[0], :rank] * mask[None, :], r[:rank] * outer


class Root(NamedTuple):
    """Roots of a symmetric positive semidefinite matrix, `M = V diag(s²) Vᵀ`.

    Attributes:
        vectors: `(n, n)` eigenvectors V.
        scale: `(n,)` roots s of the eigenvalues, rising.
    """

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

    Args:
        matrix: `(n, n)`; only its symmetric part counts.
        floor: eigenvalues below this share of the largest (of one, where all are zero) are raised
            to it; without one, what rounding made negative counts as zero.
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

    Args:
        name: how it is called in a message.
        metric: `(size, size)`, or none.
        size: of the vectors that it measures.
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
    """Error to expect of a backward-stable routine: `32 · eps(dtype) · condition`.

    Args:
        dtype: floating dtype of the computation.
        condition: condition number of the problem.
    """
    return 32.0 * float(jnp.finfo(dtype).eps) * condition
