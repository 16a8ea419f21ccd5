"""MANDy: least squares over a full product dictionary, with the coefficients as a tensor train."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from koopjax import tt
from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_DATA,
    NONFINITE_SOLUTION,
    RANK_DEFICIENT,
    SUCCESS,
    UNDERDETERMINED,
    as_whole,
    cast,
    check_finite,
    check_number,
    expected,
    has_float64,
    matmul,
    on_device,
    own_rules,
    precise_as,
    read_numbers,
    traced,
    worst,
)
from koopjax.tensor_edmd._dictionary import (
    FunctionMajor,
    check_states,
    evaluated,
    separable,
    with_product,
)
from koopjax.tensor_edmd._mandy_dual import (
    FLOOR,
    all_finite,
    canonical_train,
    cross_product,
    dual_weights,
    sliced,
    suffixes,
)
from koopjax.tensor_edmd._mandy_primal import (
    IndexPlan,
    Solved,
    full_plan,
    graded_plan,
    solve_primal,
    units,
)
from koopjax.tensor_edmd._result import TensorInfo, TensorKoopman, evaluate_train

#: The most functions that are formed, and the most where they outnumber the samples.
MOST_FUNCTIONS = 4096
MOST_WIDE = 512
#: The most samples of a Gram matrix over samples: 1.2 GB in float64.
MOST_SAMPLES = 12_000
#: Change of an output by rounding a train, in units of its spread, beyond which a code says so.
CHANGE = 0.01


def as_snapshots(psi: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Checked snapshots `(n, d)` and `(n, q)`, floating; one clear `ValueError` a mistake."""
    arrays = []
    for name, value in (("x", x), ("y", y)):
        array = read_numbers(name, value)
        if array.ndim == 1 and name == "y":
            array = array[:, None]
        if array.ndim != 2:
            raise expected(
                f"{name} of shape (n, d), a row for each sample", f"shape {tuple(array.shape)}"
            )
        arrays.append(array)
    x, y = arrays
    check_states(psi, x)
    if x.shape[0] != y.shape[0] or y.shape[1] == 0:
        raise expected(
            "as many rows in y as in x, and at least one column",
            f"shapes {tuple(x.shape)} and {tuple(y.shape)}",
        )
    for name, array in (("x", x), ("y", y)):
        with precise_as(array.dtype), jax.ensure_compile_time_eval():
            check_finite(name, array)
    return x, y


def work_dtype(dtype: Any, known: bool) -> Any:
    """float64 where the backend has it and nothing is traced; else what came, at least float32."""
    if known and has_float64():
        return jnp.float64
    return jnp.promote_types(dtype, jnp.float32)


def check_settings(rtol: Any, max_rank: Any, alpha: Any = 0.0, cutoff: Any = None) -> None:
    """Raise `ValueError` unless tolerances and ranks make sense."""
    for name, value in (("rtol", rtol), ("alpha", alpha), ("cutoff", cutoff)):
        if value is None or traced(value):
            continue
        check_number(name, value, 0, np.inf if name == "alpha" else np.nextafter(1, 0))
    if max_rank is not None:
        as_whole("max_rank", max_rank, 1)


@jax.jit
def _misfit(psi: Any, train: Any, x: Array, y: Array) -> Array:
    return relative(evaluate_train(psi, train, x).astype(y.dtype) - y, y)


def relative(error: Array, y: Array) -> Array:
    """`‖error‖ / ‖y‖`, with `‖y‖` taken as one where it vanishes."""
    size = jnp.sqrt(jnp.sum(y**2))
    return jnp.sqrt(jnp.sum(error**2)) / jnp.where(size > 0, size, 1)


def _method(plan: IndexPlan, m: int, restricted: bool) -> str:
    """How to solve: with the functions formed, or by Gram matrices over the samples."""
    p = plan.size
    if p <= MOST_WIDE or (p <= m and p <= MOST_FUNCTIONS):
        return "formed"
    if not restricted and m <= MOST_SAMPLES:
        return "samples"
    raise expected(
        f"at most {MOST_FUNCTIONS:,} functions"
        + ("" if restricted else f", or at most {MOST_SAMPLES:,} samples"),
        f"{p:,} functions and {m:,} samples",
        "a lower total_degree, fewer coordinates, or als",
    )


@functools.partial(jax.jit, static_argnames="exact")
def _weights(gram: Array, y: Array, alpha: Array, cutoff: Array, *, exact: bool) -> Any:
    """What `dual_weights` finds, for outputs in units of their spread, those units, and the share
    of the coefficients' norm that belongs to what varies."""
    unit = units(y)
    scaled = y / unit[None, :]
    sides = jnp.concatenate([scaled, jnp.ones_like(scaled[:, :1])], axis=1)
    w, condition, rank = dual_weights(gram, sides, alpha, cutoff, exact=exact)
    w, constant = w[:, :-1], w[:, -1:]

    def norm(w: Array) -> Array:
        square = jnp.sum(w * matmul(gram, w))
        return jnp.sqrt(jnp.where(square > 0, square, 1))

    share = norm(w - constant * jnp.mean(scaled, axis=0)[None, :]) / norm(w)
    finite = jnp.isfinite(gram).all() & jnp.isfinite(y).all()
    return w, condition, rank, finite, unit, share


@jax.jit
def _rounded(
    core: Array, fitted: Array, gram: Array, w: Array, unit: Array, y: Array
) -> tuple[Array, Array, Array]:
    """The last core in the outputs' own units, the residual, and what rounding cost an output."""
    change = jnp.max(jnp.std(fitted - matmul(gram, w), axis=0))
    residual = relative(fitted * unit[None, :] - y, y)
    return core * unit[None, None, :, None], residual, change


def _formed(
    psi: Any, x: Array, y: Array, alpha: Array, cutoff: Any, rtol: Any, max_rank: int | None,
    plan: IndexPlan,
) -> Solved:  # fmt: skip
    """Solve with the functions of a plan formed."""
    eps = float(jnp.finfo(y.dtype).eps)
    limit = eps * max(len(x), plan.size) if cutoff is None else cutoff
    limit, rtol = jnp.asarray(limit, y.dtype), jnp.asarray(rtol, y.dtype)
    return solve_primal(psi, x, y, alpha, limit, rtol, plan=plan, max_rank=max_rank)


def _wide(
    psi: Any, x: Array, y: Array, alpha: Array, cutoff: Any, rtol: Any, max_rank: int | None
) -> tuple[Solved, Array, Any]:
    """Solve over the samples: also the residual, and whether rounding cost an output too much."""
    factors = evaluated(psi, x)
    kept = suffixes(factors)
    gram = cross_product(factors, factors) if kept is None else kept[0]
    limit = jnp.asarray(0.0 if cutoff is None else cutoff, y.dtype)
    w, condition, rank, finite, unit, share = _weights(
        gram, y, alpha, limit, exact=cutoff is not None
    )
    (*cores, core), ranks, fitted = canonical_train(factors, w, rtol, max_rank, kept, share)
    core, residual, change = _rounded(core, fitted, gram, w, unit, y)
    lost = change > max(CHANGE, 10 * rtol) if max_rank is None else False
    return Solved((*cores, core), ranks, condition, rank, finite), residual, lost


@functools.partial(jax.jit, static_argnames="eps")
def verdict(
    deficient: Any, condition: Any, few: Any, sound: Any, finite: Any, lost: Any = False, *,
    eps: float,
) -> Array:  # fmt: skip
    """The result code of a fit over a product dictionary."""
    flag = lambda condition, code: jnp.where(condition, code, SUCCESS)
    return worst(
        flag(deficient, RANK_DEFICIENT),
        flag((eps * condition > eps**0.5) | lost, ILL_CONDITIONED),
        flag(few, UNDERDETERMINED),
        flag(~jnp.asarray(sound), NONFINITE_SOLUTION),
        flag(~jnp.asarray(finite), NONFINITE_DATA),
    )


@own_rules()
def mandy(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n q"],
    *,
    rtol: float = 1e-6,
    max_rank: int | None = None,
    form: str = "coordinate",
    alpha: Any = 0.0,
    total_degree: int | None = None,
    cutoff: float | None = None,
) -> TensorKoopman:
    """Multidimensional approximation of nonlinear dynamics: `min ‖Ψ(x) K − y‖`, K a tensor train.

    Over all `∏ k_i` products of a `Product` dictionary, none of which need be formed. Of all
    minimisers the one whose plain coefficients have the least Frobenius norm:
    `K = Ψ⁺ y = Ψᵀ (Ψ Ψᵀ)⁺ y`.

    Args:
        psi: `Product`, or `Compose(front, Product)`.
        x: states `(n, d)`.
        y: what is to be predicted, `(n, q)`: states after, or derivatives; `(n,)` for one output.
        rtol: how much rounding the train may change it, relative; each output in units of its
            spread (of its size where it does not vary), whatever its units and its mean. Where the
            functions are formed, neither the predictions (over the product of the coordinates' own
            distributions) nor the coefficients change by more, save for what in these is noise
            anyway; else the coefficients of what varies, and not below 1e-7 of all of them.
        max_rank: largest TT rank; what it cuts shows in `info.residual`.
        form: `"coordinate"`: a core a coordinate. `"function"`: a core a function, applied to all
            coordinates, over the products of `FunctionMajor`.
        alpha: ridge on the coefficients, absolute.
        total_degree: a prior: only products of at most this total degree (of `Polynomial1D` and
            `Trigonometric` families) have coefficients.
        cutoff: singular values of Ψ below this times the largest are taken for zero; None is
            `eps · max(n, p)`, and for more functions than samples what Cholesky can resolve.

    Returns:
        TensorKoopman: in the dtype of `x`. Codes: UNDERDETERMINED for fewer samples than functions,
        RANK_DEFICIENT, ILL_CONDITIONED (half of the digits of float64 are lost, or 1 % of an
        output's spread by rounding at 1e-7), NONFINITE_*. The outputs are in the last core.

    Numerics:
        In float64, unless traced. Up to 4,096 functions: R factors merged over blocks of samples,
        then an SVD, `O(n p² + p³)`. Beyond: Gram matrices over the samples,
        `O(n³ + n² Σ r_k k_k)` with memory `O(n²)`, up to 12,000 samples. Under jit shapes come from
        `max_rank`, and a rank found lower leaves zeros.

    Raises:
        ValueError: shapes, an empty batch, NaN or infinity in concrete data, a problem too large.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from koopjax.observables import Polynomial1D, Product
        >>> x = jax.random.uniform(jax.random.key(0), (100, 2))
        >>> fit = mandy(Product.of(Polynomial1D(2), 2), x, x[:, :1] * x[:, 1:] ** 2)
        >>> fit.ranks
        (1, 1, 1)

    Reference: Gelß, Klus, Eisert & Schütte (2019), J. Comput. Nonlinear Dyn. 14 (MANDy).
    """
    if form not in ("coordinate", "function"):
        raise expected("form 'coordinate' or 'function'", repr(form))
    check_settings(rtol, max_rank, alpha, cutoff)
    product = separable(psi)[1]
    if form == "function" and not isinstance(product, FunctionMajor):
        product = FunctionMajor(product)
        psi = with_product(psi, product)
    x, y = as_snapshots(psi, x, y)
    whole = full_plan(product.modes())
    plan = whole if total_degree is None else graded_plan(product, total_degree)
    method = _method(plan, x.shape[0], total_degree is not None)
    known = not traced(psi, x, y, alpha, rtol, cutoff)
    if method == "samples" and not known and max_rank is None:
        raise expected("max_rank under jit, where ranks are shapes", "None", "max_rank=50")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    work = work_dtype(dtype, known)
    m, p, eps = x.shape[0], plan.size, float(jnp.finfo(work).eps)
    with precise_as(work):
        wide = cast(psi, work) if known else psi
        x, y, alpha = (jnp.asarray(a, work) for a in (x, y, alpha))
        residual, lost = None, False
        if method == "formed":
            solved = _formed(wide, x, y, alpha, cutoff, rtol, max_rank, plan)
            reason = "functions formed, merged R factors"
        else:
            solved, residual, lost = _wide(wide, x, y, alpha, cutoff, rtol, max_rank)
            reason = "Gram matrices over the samples, minimum norm of the plain coefficients"
            if known and rtol < FLOOR:
                reason += f", rounded at {FLOOR:g}, which they resolve, instead of {rtol:g}"
        cores, sound = solved.cores, all_finite(solved.cores)
        if known:
            cores = sliced(cores, solved.ranks)
            if max_rank is not None and max(map(int, solved.ranks), default=1) == max_rank:
                reason += f"; ranks limited to {max_rank}"
        if p < whole.size:
            reason += f"; prior: total degree at most {plan.total}"
        train = lambda dtype: tt.TTMatrix(tuple(on_device(core, dtype) for core in cores))
        info = TensorInfo(
            condition=solved.condition,
            residual=_misfit(wide, train(work), x, y) if residual is None else residual,
            alpha=alpha,
            count=jnp.asarray(float(m), work),
            method="mandy",
            reason=reason,
        )
        deficient, few = (alpha == 0) & (solved.rank < min(m, p)), (alpha == 0) & (m < p)
        code = verdict(deficient, solved.condition, few, sound, solved.finite, lost, eps=eps)
        return TensorKoopman(psi=psi, train=train(dtype), info=cast(info, dtype), result=code)
