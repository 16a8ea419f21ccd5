"""AMUSEt: eigenvalues and eigenfunctions of EDMD over a full product dictionary, as trains."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from koopjax import tt
from koopjax._core import (
    blocks,
    cast,
    eig,
    expected,
    left_vectors,
    matmul,
    message,
    on_device,
    own_rules,
    precise,
    precise_as,
    pytree,
    read_numbers,
    traced,
)
from koopjax.tensor_edmd._dictionary import check_states, evaluated, modes_of, outer, tail_norms
from koopjax.tensor_edmd._mandy import (
    MOST_SAMPLES,
    as_snapshots,
    check_settings,
    relative,
    verdict,
    work_dtype,
)
from koopjax.tensor_edmd._mandy_dual import (
    bucket,
    canonical_train,
    cross_product,
    restrict,
    sliced,
)
from koopjax.tensor_edmd._result import TensorInfo, Trained, block_size, evaluate_train


@pytree
class TensorSpectrum(Trained):
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
            return _after(self, x, steps=int(steps))

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
        return (
            f"{self.info.method}: {len(self.values)} eigenpairs over "
            f"{self.train.shape[0]:,} products, ranks {self.ranks}, {self.numbers:,} numbers\n"
            f"eigenvalues {leading}\n{self.info.words()}\nresult: {message(self.result)}"
        )

    __str__ = describe

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


@functools.partial(jax.jit, static_argnames="steps")
def _after(fit: TensorSpectrum, x: Array, *, steps: int) -> Array:
    weighted = (fit.values**steps)[:, None] * _modes(fit.vectors, fit.readout)
    return matmul(_functions(fit, x), weighted).real.astype(x.dtype)


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
    a = outer(left, factor)
    r = jnp.linalg.qr(weight[:, None] * a, mode="r")
    _, s, vt = jnp.linalg.svd(r, full_matrices=False)
    return a, vt.T, s, tail_norms(s**2)


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

    `rtol` is that of `Ψ(x)` in the Frobenius norm, all bonds together, and of singular values.

    Returns:
        Cores of V with its r outputs in the last, ranks (the last is r), `Ψ(x) V` `(m, r)`,
        and its singular values.
    """
    d, m, known = len(factors), factors[0].shape[0], not traced(factors)
    # What is known is looked at on the host, where nothing is compiled for it.
    xp: Any = np if known else jnp
    weights = _tail_norms(factors)
    left = values = jnp.ones((m, 1), factors[0].dtype)
    cores, ranks = [], []
    for k, factor in enumerate(factors):
        a, vectors, values, tails = _right_vectors(left, factor, weights[k])
        kept, last = xp.asarray(values if k == d - 1 else tails), k == d - 1
        limit = rtol * (kept[0] if last else kept[0] / math.sqrt(d))
        most = min(vectors.shape[1], max_rank or m)
        rank = xp.clip(xp.sum(kept > limit), 1, most)
        width = bucket(int(rank), most) if known else most
        v, after = restrict(a, vectors, rank, width=width)
        ends = (width, 1) if last else (1, width)
        cores.append(v.reshape(left.shape[1], factor.shape[1], *ends))
        ranks.append(rank)
        left = after
    return tuple(cores), ranks, left, values


@jax.jit
def _reduced(before: Array, after: Array, s: Array, rank: Array, x: Array) -> tuple[Array, ...]:
    """What comes of `Ψ(x) V = U S` and `Ψ(y) V` in the first singular tensors.

    Eigenvalues and vectors of `M`, the readout, the residual, the condition, and whether all came
    of finite numbers.
    """
    s = s * (jnp.arange(len(s)) < rank)
    inverse = jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1) ** 2, 0)
    pseudo = inverse[:, None] * before.T
    matrix = matmul(pseudo, after)
    values, vectors = eig(jnp.where(jnp.isfinite(matrix).all(), matrix, jnp.nan))
    residual = relative(after - matmul(before, matrix), after)
    least = jnp.min(jnp.where(s > 0, s, s[0]))
    condition = jnp.where(least > 0, s[0] / jnp.where(least > 0, least, 1), 1)
    finite = jnp.isfinite(before).all() & jnp.isfinite(after).all()
    return values, vectors, matmul(pseudo, x), residual, condition, finite


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


def sample_train(
    factors: list[Array], rtol: float, max_rank: int | None
) -> tuple[tuple[Array, ...], list[Any], Array, Array, Array]:
    """As `data_train`, from Gram matrices over the samples: V is `Ψ(x)ᵀ w`, and w comes last."""
    gram = cross_product(factors, factors)
    w, s, rank = _by_samples(gram, jnp.asarray(rtol, gram.dtype))
    count = min(len(s), max_rank or len(s))
    if not traced(factors):
        count = min(count, max(1, int(rank)))
    w, s = w[:, :count], s[:count]
    cores, ranks, _ = canonical_train(factors, w, rtol, max_rank)
    return cores, [*ranks, count], matmul(gram, w), s, w


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
    known = not traced(psi, x, y)
    if not known and max_rank is None:
        raise expected("max_rank under jit, where ranks are shapes", "None", "max_rank=50")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    work = work_dtype(dtype, known)
    m, p, eps = x.shape[0], math.prod(modes_of(psi)), float(jnp.finfo(work).eps)
    with precise_as(work):
        wide = cast(psi, work) if known else psi
        x, y = jnp.asarray(x, work), jnp.asarray(y, work)
        factors, after = evaluated(wide, x), None
        if method == "hosvd":
            cores, ranks, before, s = data_train(factors, rtol, max_rank)
        else:
            cores, ranks, before, s, w = sample_train(factors, rtol, max_rank)
            after = matmul(cross_product(evaluated(wide, y), factors), w)
        if known:
            cores = sliced(cores, ranks[:-1])
            cores = (*cores[:-1], cores[-1][:, :, : int(ranks[-1])])
        train = lambda dtype: tt.TTMatrix(tuple(on_device(core, dtype) for core in cores))
        after = evaluate_train(wide, train(work), y) if after is None else after
        r = after.shape[1]
        found = _reduced(before[:, :r], after, s[:r], ranks[-1], x)
        values, vectors, readout, residual, condition, finite = found
        limited = max_rank is not None and max_rank < min(m, p)
        deficient = (ranks[-1] < min(m, p)) & (not limited)
        code = verdict(deficient, condition, m < p, jnp.isfinite(values).all(), finite, eps=eps)
        info = TensorInfo(
            condition=condition,
            residual=residual,
            alpha=jnp.zeros((), work),
            count=jnp.asarray(float(m), work),
            method=f"amuset ({method})",
            reason=f"ranks limited to {max_rank}" if limited else "",
        )
        kind = jnp.promote_types(dtype, jnp.complex64)
        return TensorSpectrum(
            psi=psi,
            train=train(dtype),
            values=values.astype(kind),
            vectors=vectors.astype(kind),
            readout=cast(readout, dtype),
            info=cast(info, dtype),
            result=code,
        )
