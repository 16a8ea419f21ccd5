"""AMUSEt: eigenvalues and eigenfunctions of EDMD over a full product dictionary, as trains."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float

from koopjax import tt
from koopjax._core import (
    ILL_CONDITIONED,
    NONFINITE_DATA,
    NONFINITE_SOLUTION,
    RANK_DEFICIENT,
    SUCCESS,
    UNDERDETERMINED,
    blocks,
    cast,
    eig,
    expected,
    left_vectors,
    matmul,
    message,
    own_rules,
    precise,
    precise_as,
    pytree,
    read_numbers,
    worst,
)
from koopjax.tensor_edmd._dictionary import check_states, concrete, evaluated, modes_of
from koopjax.tensor_edmd._mandy import MOST_SAMPLES, as_snapshots, check_settings, work_dtype
from koopjax.tensor_edmd._mandy_dual import (
    bucket,
    canonical_train,
    cross_product,
    product_of,
    restrict,
    sliced,
)
from koopjax.tensor_edmd._result import TensorInfo, block_size, evaluate_train


@pytree
class TensorSpectrum:
    """Koopman eigenpairs in the span of the data's leading singular tensors.

    With `Ψ(x) ≈ U S Vᵀ`, V a train with one orthonormal tensor for each of r outputs, EDMD is the
    matrix `M = S⁻¹ Uᵀ Ψ(y) V`; from `M a = λ a` comes the eigenfunction `φ(x) = Ψ(x) V a`.

    Attributes:
        psi: a `Product`, or a `Compose` that ends in one.
        train: V, `TTMatrix` with r outputs in its last core.
        values: `(r,)` complex eigenvalues, by falling modulus.
        vectors: `(r, r)`, the `a` as columns, of unit norm.
        readout: `(r, d)`: `x ≈ Ψ(x) V readout`.
        info: `TensorInfo`; the residual is that of `Ψ(y) V ≈ Ψ(x) V M`.
        result: int32 result code.
    """

    psi: Any
    train: Any
    values: Any
    vectors: Any
    readout: Any
    info: Any
    result: Any

    @property
    def ranks(self) -> tuple[int, ...]:
        """TT ranks of V, ones at the ends included."""
        return self.train.ranks

    @property
    def numbers(self) -> int:
        """Numbers in the cores of V."""
        return self.train.numbers

    def eigenvalues(self) -> Complex[Array, " r"]:
        """Eigenvalues, complex, by falling modulus."""
        return self.values

    def eigenfunctions(self, x: Float[Array, "n d"]) -> Complex[Array, "n r"]:
        """`φ(x) = Ψ(x) V a`, one a column, at states `(n, d)`; in the order of `eigenvalues()`."""
        x = self._states(x)
        with precise(x, self.vectors):
            return _functions(self, x)

    def eigentensors(self) -> Any:
        """Coefficients of the eigenfunctions, `V a`: complex `TTMatrix` with r outputs."""
        with precise(self.train.cores, self.vectors):
            return _tensors(self.train, self.vectors)

    def modes(self) -> Complex[Array, "r d"]:
        """Koopman modes, one a row: `x ≈ eigenfunctions(x) @ modes()`."""
        with precise(self.readout, self.vectors):
            return _modes(self.vectors, self.readout)

    def predict(self, x: Float[Array, "n d"], steps: int = 1) -> Float[Array, "n d"]:
        """The state after so many steps, `Re Σⱼ φⱼ(x) λⱼ^steps mⱼ`: not lifted again between."""
        if isinstance(steps, bool) or int(steps) != steps or steps < 0:
            raise expected("a whole number of steps, at least 0", f"{steps}")
        x = self._states(x)
        with precise(x, self.vectors):
            powers = self.values ** int(steps)
            weighted = powers[:, None] * _modes(self.vectors, self.readout)
            return matmul(_functions(self, x), weighted).real.astype(x.dtype)

    def residuals(self, x: Float[Array, "n d"], y: Float[Array, "n d"]) -> Float[Array, " r"]:
        """ResDMD residual of every eigenpair, `‖φⱼ(y) − λⱼ φⱼ(x)‖ / ‖φⱼ(x)‖`: which to trust.

        Args:
            x: snapshots before `(n, d)`, fresh ones for choice.
            y: snapshots after.

        Reference: Colbrook & Townsend (2024), Comm. Pure Appl. Math. 77 (ResDMD).
        """
        x, y = as_snapshots(self.psi, x, y)
        check_states(self.psi, y)
        with precise(x, y, self.vectors):
            return _residuals(self, jnp.asarray(x), jnp.asarray(y))

    def describe(self) -> str:
        """Size, ranks, leading eigenvalues, conditioning and the result code in words."""
        leading = ", ".join(f"{complex(v):.4g}" for v in self.values[:5])
        return "\n".join(
            [
                f"{self.info.method}: {len(self.values)} eigenpairs over "
                f"{self.train.shape[0]:,} products, ranks {self.ranks}, {self.numbers:,} numbers",
                f"eigenvalues {leading}",
                f"{int(self.info.count):,} samples, relative residual "
                f"{float(self.info.residual):.3g}, condition {float(self.info.condition):.3g}",
                f"result: {message(self.result)}",
            ]
        )

    def __str__(self) -> str:
        """As `describe`."""
        return self.describe()

    def _states(self, x: Any) -> Array:
        x = read_numbers("the states", x)
        with precise(x):
            x = jnp.asarray(x)
        check_states(self.psi, x)
        return x


@jax.jit
def _functions(fit: TensorSpectrum, x: Array) -> Array:
    return matmul(evaluate_train(fit.psi, fit.train, x).astype(fit.vectors.dtype), fit.vectors)


@jax.jit
def _tensors(train: Any, vectors: Array) -> Any:
    cores = [core.astype(vectors.dtype) for core in train.cores]
    cores[-1] = jnp.einsum("rnqo,qj->rnjo", cores[-1], vectors, precision="highest")
    return tt.TTMatrix(tuple(cores))


@jax.jit
def _modes(vectors: Array, readout: Array) -> Array:
    return matmul(jnp.conj(left_vectors(vectors)).T, readout.astype(vectors.dtype))


@jax.jit
def _residuals(fit: TensorSpectrum, x: Array, y: Array) -> Array:
    size = min(block_size(fit.train), x.shape[0])
    x_blocks, weights = blocks(x, size)
    y_blocks, _ = blocks(y, size)

    def step(sums: tuple, block: tuple) -> tuple[tuple, None]:
        before, after = (_functions(fit, rows) for rows in block[:2])
        w = block[2].astype(before.real.dtype)[:, None]
        error = jnp.sum(w * jnp.abs(after - before * fit.values[None, :]) ** 2, 0)
        return (sums[0] + error, sums[1] + jnp.sum(w * jnp.abs(before) ** 2, 0)), None

    zero = jnp.zeros(fit.values.shape, fit.values.real.dtype)
    error, norm = jax.lax.scan(step, (zero, zero), (x_blocks, y_blocks, weights))[0]
    # An eigenfunction that vanishes on the data is no evidence for its eigenvalue.
    return jnp.where(norm > 0, jnp.sqrt(error / jnp.where(norm > 0, norm, 1)), jnp.inf)


@jax.jit
def _right_vectors(left: Array, factor: Array, weight: Array) -> tuple[Array, Array, Array, Array]:
    """SVD of `left ⊗ factor`, samples weighted: right vectors, values, norms of the tails."""
    a = (left[:, :, None] * factor[:, None, :]).reshape(left.shape[0], -1)
    r = jnp.linalg.qr(weight[:, None] * a, mode="r")
    _, s, vt = jnp.linalg.svd(r, full_matrices=False)
    return a, vt.T, s, jnp.sqrt(jnp.flip(jnp.cumsum(jnp.flip(s**2))))


@jax.jit
def _tail_norms(factors: list[Array]) -> list[Array]:
    """For every mode, the norm of what the later modes multiply a sample's row by."""
    out = [jnp.ones(factors[0].shape[0], factors[0].dtype)]
    for f in factors[:0:-1]:
        out.append(out[-1] * jnp.sqrt(jnp.sum(f**2, axis=1)))
    return out[::-1]


def data_train(
    factors: list[Array], rtol: float, max_rank: int | None
) -> tuple[tuple[Array, ...], list[Any], Array, Array]:
    """Leading right singular tensors of `Ψ(x)` (HOSVD of the transformed data).

    Args:
        factors: `d` arrays `(m, n_k)`.
        rtol: of `Ψ(x)` in the Frobenius norm, all bonds together; and of singular values.
        max_rank: largest rank, the number of singular tensors included.

    Returns:
        Cores of V with its r outputs in the last, ranks (the last is r), `Ψ(x) V` `(m, r)`,
        and its singular values.
    """
    d, m = len(factors), factors[0].shape[0]
    known = concrete(factors)
    weights = _tail_norms(factors)
    left = jnp.ones((m, 1), factors[0].dtype)
    cores, ranks, values = [], [], left[0]
    for k in range(d):
        a, vectors, values, tails = _right_vectors(left, factors[k], weights[k])
        limit = rtol * (values[0] if k == d - 1 else tails[0] / math.sqrt(d))
        most = min(vectors.shape[1], max_rank or m)
        rank = jnp.clip(jnp.sum((values if k == d - 1 else tails) > limit), 1, most)
        width = bucket(int(rank), most) if known else most
        v, after = restrict(a, vectors, rank, width=width)
        shape = (left.shape[1], factors[k].shape[1])
        cores.append(v.reshape(*shape, width, 1) if k == d - 1 else v.reshape(*shape, 1, width))
        ranks.append(rank)
        left = after
    return tuple(cores), ranks, left, values


@jax.jit
def _reduced(before: Array, after: Array, s: Array, x: Array) -> tuple[Array, ...]:
    """`(M, eigenvalues, vectors, readout, residual)` from `Ψ(x) V = U S` and `Ψ(y) V`."""
    inverse = jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1) ** 2, 0)
    pseudo = inverse[:, None] * before.T
    matrix = matmul(pseudo, after)
    values, vectors = eig(jnp.where(jnp.isfinite(matrix).all(), matrix, jnp.nan))
    misfit = jnp.sqrt(jnp.sum((after - matmul(before, matrix)) ** 2))
    size = jnp.sqrt(jnp.sum(after**2))
    return matrix, values, vectors, matmul(pseudo, x), misfit / jnp.where(size > 0, size, 1)


@jax.jit
def _by_samples(gram: Array, cutoff: Array) -> tuple[Array, Array, Array]:
    """`(U S⁻¹, S, rank)` of Ψ from its Gram matrix over the samples, largest first."""
    values, vectors = jnp.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    eps = float(jnp.finfo(gram.dtype).eps)
    kept = values > jnp.maximum(cutoff**2, gram.shape[0] * eps) * values[0]
    s = jnp.sqrt(jnp.where(kept, values, 0))
    weight = jnp.where(kept, 1 / jnp.where(kept, s, 1), 0)
    return vectors * weight[None, :], s, jnp.sum(kept)


def _kernel(
    psi: Any, x: Array, y: Array, rtol: float, max_rank: int | None
) -> tuple[Any, list[Any], Array, Array, Array]:
    """As `data_train`, from Gram matrices; with `Ψ(y) V` too."""
    fx, fy = evaluated(psi, x), evaluated(psi, y)
    gram = product_of(fx)
    w, s, rank = _by_samples(gram, jnp.asarray(rtol, x.dtype))
    count = min(len(s), max_rank or len(s))
    if concrete(x, y):
        count = min(count, max(1, int(rank)))
    w, s = w[:, :count], s[:count]
    cores, ranks, _ = canonical_train(fx, w, rtol, max_rank)
    return cores, [*ranks, jnp.int32(count)], matmul(gram, w), s, matmul(cross_product(fy, fx), w)


@own_rules()
def amuset(
    psi: Any,
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    rtol: float = 1e-10,
    max_rank: int | None = None,
    method: str = "hosvd",
) -> TensorSpectrum:
    """Koopman eigenvalues and eigenfunctions over all products of a `Product` dictionary.

    EDMD with `K = Ψ(x)⁺ Ψ(y)`, in the basis of the leading right singular tensors V of `Ψ(x)`,
    which are found as a tensor train core by core: `M = S⁻¹ Uᵀ Ψ(y) V`, `M a = λ a`, `φ = Ψ V a`.
    Complex pairs are kept as such, values, functions and modes.

    Args:
        psi: `Product`, or `Compose(front, Product)`.
        x: snapshots before, `(n, d)`.
        y: snapshots after, `(n, d)`.
        rtol: what the data tensor may lose, relative; singular values below this times the largest
            are dropped.
        max_rank: largest TT rank, and the most eigenpairs.
        method: `"hosvd"`: SVDs of the data tensor in train format, no condition squared.
            `"kernel"`: the same space from Gram matrices over the samples, `O(n³)`, which resolve
            singular values down to about 1e-7; faster where ranks come near the number of samples.

    Returns:
        TensorSpectrum: r eigenpairs, complex, in the precision of `x`.

    Numerics:
        In float64, unless traced. `"hosvd"` costs `O(n Σ (r_k k_k)²)` and holds `(n, r k)` numbers.
        Under jit `max_rank` is needed; what is found lower leaves zeros in the cores and zero
        eigenvalues.

    Raises:
        ValueError: shapes, an empty batch, NaN or infinity in concrete data, too many samples.

    Reference: Nüske, Gelß, Klus & Clementi (2021), Physica D 427 (tensor-based EDMD, AMUSEt).
    """
    if method not in ("hosvd", "kernel"):
        raise expected("method 'hosvd' or 'kernel'", repr(method))
    check_settings(rtol, max_rank)
    x, y = as_snapshots(psi, x, y)
    check_states(psi, y)
    if method == "kernel" and x.shape[0] > MOST_SAMPLES:
        raise expected(f"at most {MOST_SAMPLES:,} samples", f"{x.shape[0]:,}", "method='hosvd'")
    known = concrete(psi, x, y)
    if not known and max_rank is None:
        raise expected("max_rank under jit, where ranks are shapes", "None", "max_rank=50")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    work = work_dtype(dtype, known)
    with precise_as(work):
        wide = cast(psi, work) if known else psi
        train, parts, info, code = _fit(
            wide, jnp.asarray(x, work), jnp.asarray(y, work), rtol, max_rank, method, known
        )
        values, vectors = (p.astype(jnp.promote_types(dtype, jnp.complex64)) for p in parts[:2])
    return TensorSpectrum(
        psi=psi,
        train=cast(train, dtype),
        values=values,
        vectors=vectors,
        readout=cast(parts[2], dtype),
        info=cast(info, dtype),
        result=code,
    )


def _fit(
    psi: Any, x: Array, y: Array, rtol: float, max_rank: int | None, method: str, known: bool
) -> tuple[Any, tuple[Array, ...], TensorInfo, Array]:
    """Reduce, solve the eigenproblem, judge; in the working dtype."""
    m, p = x.shape[0], math.prod(modes_of(psi))
    if method == "hosvd":
        cores, ranks, before, s = data_train(evaluated(psi, x), rtol, max_rank)
        after = None
    else:
        cores, ranks, before, s, after = _kernel(psi, x, y, rtol, max_rank)
    if known:
        r = int(ranks[-1])
        cores = sliced(cores, ranks[:-1])
        cores = (*(jnp.asarray(c) for c in cores[:-1]), jnp.asarray(cores[-1][:, :, :r]))
    train = tt.TTMatrix(tuple(cores))
    r = train.column_modes[-1]
    before, s = before[:, :r], s[:r] * (jnp.arange(r) < ranks[-1])
    after = evaluate_train(psi, train, y) if after is None else after
    _, values, vectors, readout, residual = _reduced(before, after, s, x)
    least = jnp.min(jnp.where(s > 0, s, s[0]))
    condition = jnp.where(least > 0, s[0] / jnp.where(least > 0, least, 1), 1)
    flag = lambda condition, code: jnp.where(condition, code, SUCCESS)
    limited = max_rank is not None and max_rank < min(m, p)
    eps = float(jnp.finfo(x.dtype).eps)
    code = worst(
        flag((ranks[-1] < min(m, p)) & (not limited), RANK_DEFICIENT),
        flag(eps * condition > eps**0.5, ILL_CONDITIONED),
        flag(jnp.asarray(m < p), UNDERDETERMINED),
        flag(~jnp.isfinite(values).all(), NONFINITE_SOLUTION),
        flag(~(jnp.isfinite(before).all() & jnp.isfinite(after).all()), NONFINITE_DATA),
    )
    info = TensorInfo(
        condition=condition,
        residual=residual,
        alpha=jnp.zeros((), x.dtype),
        count=jnp.asarray(float(m), x.dtype),
        method=f"amuset ({method})",
        reason=f"ranks limited to {max_rank}" if limited else "",
    )
    return train, (values, vectors, readout), info, code
