"""The kernel form of tensor-based EDMD: regression on inner products with centres."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_SOLUTION,
    SUCCESS,
    as_pair,
    cast,
    check_finite,
    expected,
    has_x64,
    own_rules,
    precise_as,
    read_numbers,
    traced,
    worst,
)
from koopjax.observables import Product, ProductKernel
from koopjax.tensor_edmd import _kernel_direct as direct
from koopjax.tensor_edmd._dictionary import separable, with_product
from koopjax.tensor_edmd._kernel_plan import Plan, check_settings, landmarks_of, plan_for
from koopjax.tensor_edmd._kernel_problem import Attempt, Problem
from koopjax.tensor_edmd._kernel_result import KernelInfo, KernelKoopman, times


@own_rules()
def kernel(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    *,
    alpha: Any = 0.0,
    centers: Any = None,
    method: str = "auto",
    x_val: Any = None,
    y_val: Any = None,
    tolerance: float = 1e-4,
    max_iterations: int = 100,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    key: Array | None = None,
) -> KernelKoopman:
    """Regression on a full product dictionary with ridge, in its kernel form.

    With `k(x, c) = Ψ(x) · Ψ(c)`, the product of small inner products, the solution of
    `min ‖Ψ(x) Θ − y‖² + alpha ‖Θ‖²` is `Θ = Ψ(x)ᵀ K`, `(k(x, x) + alpha I) K = y`: `n` unknowns
    an output however many functions the dictionary has.

    Args:
        psi: a `Product`, or a `Compose` that ends in one.
        x: samples.
        y: targets: next states, or one-hot labels.
        alpha: ridge, absolute; or a list of them, of which the one with the least error on
            `x_val`, `y_val` is taken. 0: the solution of least norm.
        centers: landmarks `c` for fewer unknowns: how many to draw, or the points `(m, d)`; None:
            all samples, as far as `method` and memory allow.
        method: "cholesky" (direct), "cg" (all samples by conjugate gradients, the kernel block by
            block), "nystrom" (landmarks), or "auto": direct up to 20,000 samples where the matrix
            fits, else landmarks.
        x_val, y_val: samples to choose the ridge by.
        tolerance: relative residual at which conjugate gradients stop.
        max_iterations: of conjugate gradients.
        batch_size: rows of the kernel evaluated at a time; None chooses by size.
        memory_limit: bytes beside the data; None: what the machine has free.
        key: random key for the landmarks.

    Returns:
        KernelKoopman: in the dtype of `x`, with `info` and result code. RANK_DEFICIENT: singular
        without ridge. ILL_CONDITIONED: the damping was raised, the iteration did not reach its
        tolerance, or predictions lose more than half of their digits.

    Numerics:
        Direct: `n² d` for the kernel, `n³ / 3` for the factor, with iterative refinement. Samples
        in float32 are solved in float32 where the ridge allows, else in float64 if the memory
        does. A factor that fails is tried again with more damping; `info.reason` says so.
        Landmarks: `m³` for the preconditioner and `4 n m q` an iteration, on whitened coordinates
        (the condition of the kernel is not squared); kernel values are stored between iterations
        if memory allows. Under jit, vmap or grad: the direct method in the caller's dtype.

    Raises:
        ValueError: wrong shapes, no samples, NaN or infinity, a memory limit in which no method
            fits (with what would).

    Example:
        >>> import jax.numpy as jnp
        >>> from koopjax import tensor_edmd
        >>> from koopjax.observables import Polynomial1D, Product
        >>> x = jnp.linspace(-1.0, 1.0, 24).reshape(12, 2)
        >>> psi = Product.of(Polynomial1D(1), 2)
        >>> fit = tensor_edmd.kernel(psi, x, x[:, :1] * x[:, 1:], alpha=1e-4)
        >>> round(float(fit.predict(jnp.array([0.5, 0.5]))[0]), 2)
        0.25

    Reference: Klus & Gelß (2019), "Tensor-based algorithms for image classification",
    Algorithms 12; Rudi, Carratino & Rosasco (2017) for the landmarks.
    """
    front, product = separable(psi)
    x, y = as_pair(x, y)
    if not has_x64() and np.float64 in (x.dtype, y.dtype):
        raise expected(
            "snapshots whose spread float32 holds",
            "float64 numbers far from the origin",
            "Standardize.fit(x)(x) in place of x",
        )
    if traced(psi, x, y, alpha):
        return _traced(psi, front, product, x, y, alpha, centers, method)
    check_finite("x", x)
    check_finite("y", y)
    check_settings(alpha, batch_size, centers, len(x), key)
    grid = [float(a) for a in np.atleast_1d(np.asarray(alpha, np.float64))]
    if len(grid) > 1 and (x_val is None or y_val is None):
        raise expected("x_val and y_val to choose a ridge by", "none", "one alpha")
    given = (
        centers if centers is None or isinstance(centers, int) else read_numbers("centers", centers)
    )
    wide = jnp.promote_types(x.dtype, jnp.float32)
    plan = plan_for(method, len(x), given, jnp.dtype(wide).itemsize, memory_limit)
    z = _through(front, x.astype(wide))
    chosen = landmarks_of(front, x, z, given, plan, key)
    part = ProductKernel.fit(product, chosen)
    problem = Problem(product, part, z, y.astype(wide), plan, batch_size, tolerance,
                      max_iterations, memory_limit, key)  # fmt: skip
    attempts, dtype, why = problem.solve(grid)
    psi = with_product(psi, part)
    index, scores = _choose(psi, attempts, x_val, y_val, x, y, batch_size)
    return _result(psi, attempts[index], plan, dtype, why, scores, x)


def _through(front: list[Any], x: Array) -> Array:
    for part in front:
        x = part(x)
    return x


def _traced(
    psi: Any, front: list[Any], product: Product, x: Array, y: Array, alpha: Any, centers: Any,
    method: str,
) -> KernelKoopman:  # fmt: skip
    """The direct method, all of it traceable, in the dtype of `x`."""
    if centers is not None or method not in ("auto", "cholesky") or jnp.ndim(alpha) != 0:
        raise expected(
            "the direct method with one ridge under jit, vmap or grad",
            f"method {method!r}" + ("" if centers is None else " with landmarks"),
            "the call outside, or vmap over alpha",
        )
    # Factor by factor: a series would have to be chosen by values.
    part = ProductKernel(product, _through(front, x), 0)
    k = direct.kernel_matrix(part, part.centers)
    largest = direct.largest_eigenvalue(jax.lax.stop_gradient(k))
    least = len(x) * jnp.finfo(k.dtype).eps * largest
    used = jnp.maximum(jnp.asarray(alpha, k.dtype), least)
    lower = direct.factor(k, used)
    c, solved = direct.solve_factored(k, lower, y.astype(k.dtype), used)
    residual, _ = direct.fitted(k, c, y)
    code = jnp.where((solved > jnp.finfo(k.dtype).eps ** 0.5), ILL_CONDITIONED, SUCCESS)
    code = worst(code, jnp.where(jnp.isfinite(c).all(), SUCCESS, NONFINITE_SOLUTION))
    info = KernelInfo(
        direct.condition(lower, largest), residual, solved, used, len(x), len(x), 0,
        method="cholesky", dtype=jnp.dtype(k.dtype).name, reason="traced: the caller's dtype",
    )  # fmt: skip
    return KernelKoopman(with_product(psi, part), c.astype(x.dtype), None, info, code)


def _choose(
    psi: Any, attempts: list[Attempt], x_val: Any, y_val: Any, x: Array, y: Array, rows: int | None
) -> tuple[int, Any]:
    """The attempt with the least error on validation samples, and all of these errors."""
    if x_val is None or y_val is None:
        return 0, None
    x_val, y_val = as_pair(x_val, y_val)
    if x_val.shape[1] != x.shape[1] or y_val.shape[1] != y.shape[1]:
        raise expected(
            f"validation samples with {x.shape[1]} and {y.shape[1]} coordinates",
            f"{x_val.shape[1]} and {y_val.shape[1]}",
        )
    check_finite("x_val", x_val)
    check_finite("y_val", y_val)
    # One pass over the kernel for the whole grid.
    with precise_as(attempts[0].matrix.dtype):
        stacked = jnp.concatenate([a.matrix for a in attempts], axis=1)
    stacked = cast(stacked, jnp.promote_types(x.dtype, jnp.float32))
    predicted = _times(psi, x_val, stacked, rows=rows)  # fmt: skip
    q = y.shape[1]
    scores = [
        float(direct.ratio(predicted[:, i * q : (i + 1) * q] - y_val, y_val))
        for i in range(len(attempts))
    ]
    ranked = np.where(np.isfinite(scores), scores, np.inf)
    return int(np.argmin(ranked)), jnp.asarray(scores, jnp.promote_types(x.dtype, jnp.float32))


_times = jax.jit(times, static_argnames="rows")


def _result(
    psi: Any, found: Attempt, plan: Plan, dtype: Any, why: str, scores: Any, x: Array
) -> KernelKoopman:
    """The fit of the chosen attempt, judged by the digits that its predictions keep."""
    out = jnp.promote_types(x.dtype, jnp.float32)
    eps = float(jnp.finfo(out).eps)
    code, notes = found.code, found.notes
    if eps * float(found.terms) > eps**0.5:
        code = max(code, ILL_CONDITIONED)
        notes = (*notes, f"predictions cancel terms {float(found.terms):.1g} times the target")
    with precise_as(dtype):
        finite = bool(jnp.all(jnp.isfinite(found.matrix)))
    code = code if finite else NONFINITE_SOLUTION
    number = lambda value: cast(jnp.asarray(value, out), out)
    info = KernelInfo(
        condition=number(float(found.condition)),
        residual=number(float(found.residual)),
        solved=number(float(found.solved)),
        alpha=number(found.alpha),
        count=jnp.asarray(len(x), jnp.int32),
        landmarks=jnp.asarray(plan.landmarks, jnp.int32),
        iterations=jnp.asarray(int(found.iterations), jnp.int32),
        scores=scores,
        method=found.method,
        dtype=jnp.dtype(dtype).name,
        reason="; ".join((why, *notes)),
    )
    matrix = cast(found.matrix, x.dtype)
    return KernelKoopman(psi, matrix, None, info, jnp.asarray(code, jnp.int32))
