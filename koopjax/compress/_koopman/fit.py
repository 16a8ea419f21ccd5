"""A chosen setting fitted on all samples, within the budget: whole observables or entries of K."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from koopjax import edmd, observables
from koopjax._core import (
    SUCCESS,
    as_number,
    as_numbers,
    check_finite,
    expected,
    matmul,
    on_device,
    read_numbers,
    ridge_solve,
)
from koopjax.compress._koopman.block import Setting, lift, read_from
from koopjax.compress._koopman.span import Span
from koopjax.compress._problem import Score
from koopjax.compress.gram._select import backward, sizes_of, unit_diagonal
from koopjax.compress.gram.formats import quantized
from koopjax.compress.layers._allocation import largest

#: Entries of K that are looked at, at most; choosing among them takes the cube of their number.
MOST = 1000
#: Coordinates tried for a K of single entries, as multiples of those of a K stored whole.
WIDER = (1.0, 1.3)
#: Kept entries tried, as shares of the numbers that the bytes have room for.
SHARES = np.arange(0.6, 1.0, 0.02)
#: Of the entries or observables left, what goes in one step.
SHARE = 0.05
#: Rows whose products are formed at a time.
BLOCK_ROWS = 4096
#: The inverse is formed anew when this share of the entries is left, since downdates lose digits.
ANEW = 0.75
#: Ridge of the fits, relative to each diagonal entry.
ALPHA = 1e-4


class Fitted(NamedTuple):
    """A block fitted on all samples, and the model with it."""

    span: Span
    setting: Setting  # what is left of the choice after observables had to go
    model: nnx.Module
    matrix: np.ndarray  # (m, r), projection of the kept entries
    shift: np.ndarray  # what is taken off behind it
    clean: Any  # K or its two factors, fitted without the held-out samples
    score: Score  # of the block with these, on the validation samples
    code: int  # of the solve

    @property
    def over(self) -> int:
        """By how many bytes the file is too large, if above 0."""
        return self.span.over(self.model)


def fit(span: Span, setting: Setting) -> Fitted:
    """Fit on all samples, held-out ones included, and give up observables until the file fits."""
    kept, (mean, covariance) = setting.kept, span.moments
    matrix = read_from(covariance, setting.directions, kept)[kept, : setting.coordinates]
    if setting.bits is not None:  # K is fitted to what the coarser projection reads
        codes, scale = quantized(covariance[np.ix_(kept, kept)], matrix, setting.bits)
        matrix = codes * scale
    return fit_behind(span, setting, matrix, mean[kept] @ matrix)


def fit_behind(span: Span, setting: Setting, matrix: np.ndarray, shift: np.ndarray) -> Fitted:
    """`fit` for any projection `(m, r)` of the kept entries; `shift` is taken off behind it."""
    psi, kept = lift(matrix, shift, setting.degree), setting.kept
    chosen = observables.Select(psi, jnp.asarray(setting.columns))
    summed = lambda h, y: edmd.accumulate(chosen, h[:, kept], y, target=observables.Identity())
    stats: Any = summed(span.h, span.y)
    held_out = span.problem.held_out
    whole = stats.merge(summed(span.h_val, span.y_val)) if held_out else stats
    while True:
        k, code = _solve(whole, setting, span)
        model = span.fitted(setting, matrix, shift, k)
        over = span.over(model)
        if over <= 0 or setting.observables <= 2:
            break
        gone = max(1, over * 8 // ((setting.bits or 32) * setting.rank))
        size, gram = max(2, setting.observables - gone), whole.to_gram()
        stay, _ = backward(
            np.asarray(gram.gram, np.float64), np.asarray(gram.cross, np.float64), [size],
            setting.ridge * float(gram.count), (0,),
        )[size]  # fmt: skip
        setting = dataclasses.replace(setting, columns=setting.columns[stay])
        stats, whole = stats.select(jnp.asarray(stay)), whole.select(jnp.asarray(stay))
    clean = _solve(stats, setting, span)[0] if held_out else k
    some = observables.Select(psi, jnp.asarray(setting.columns))
    states = np.asarray(some(span.h_val[:, kept]))
    for factor in clean if isinstance(clean, tuple) else (clean,):
        states = states @ np.asarray(factor)
    return Fitted(span, setting, model, matrix, shift, clean, span.score(states), code)


def _solve(stats: Any, setting: Setting, span: Span) -> tuple[Any, int]:
    """K, or its two factors, by the room of EDMD, with its result code; on a grid if so wished."""
    k, code = _least_squares(stats, setting, span)
    if setting.bits is None:
        return k, code
    gram = np.asarray(stats.to_gram().gram, np.float64)
    coarse = []
    for factor in k if isinstance(k, tuple) else (k,):
        codes, scale = quantized(gram, np.asarray(factor), setting.bits)
        coarse.append(codes * scale)
        gram = coarse[-1].T @ gram @ coarse[-1]  # what the next factor takes in
    return (tuple(coarse) if len(coarse) > 1 else coarse[0]), code


def _least_squares(stats: Any, setting: Setting, span: Span) -> tuple[Any, int]:
    alpha = setting.ridge * float(stats.count)
    f32 = lambda a: jnp.asarray(np.asarray(a), jnp.float32)
    # With fewer observables than ranks the factors would be larger than their product.
    if setting.rank < min(span.q, setting.observables):
        solver = edmd.ReducedRank(setting.rank, metric=span.metric, alpha=alpha)
        left, right = edmd.low_rank(stats, solver)
        return (f32(left), f32(right)), SUCCESS
    solution = edmd.solve(stats, edmd.Ridge(alpha))
    return f32(edmd.unwrap(solution, allow=(1, 2, 3))), int(solution.result)


def fit_entries(span: Span, setting: Setting) -> Fitted | None:
    """The best block of a found projection whose K has lost entries; None where there is none."""
    if not span.logits:
        return None
    read = read_from(span.moments[1], setting.directions, setting.kept)[setting.kept]
    widths = {min(read.shape[1], math.ceil(wide * setting.coordinates)) for wide in WIDER}
    made = [_of_width(span, setting, read[:, :r]) for r in sorted(widths)]
    return max((one for one in made if one is not None), key=lambda b: b.score, default=None)


def _of_width(span: Span, setting: Setting, matrix: np.ndarray) -> Fitted | None:
    """The same for a projection `(m, r)` of the kept entries."""
    room = span.room - 4 * (matrix.size + matrix.shape[1])
    if room < 8 * span.q:
        return None
    kept, held_out = setting.kept, span.problem.held_out
    shift = span.moments[0][kept] @ matrix
    psi = lift(matrix, shift, setting.degree)
    columns = _useful(span, setting, psi)
    lifted = lambda h: _lifted(psi, columns, kept, h)
    hessian, cross = softmax_moments(lifted(span.h), span.y)
    most = min(len(columns) * span.q, room // 4)
    sizes = sorted({max(span.q, int(share * most)) for share in SHARES})
    clean = dict(zip(sizes, select_entries(hessian, cross, sizes, share=SHARE), strict=True))
    if held_out:
        held = softmax_moments(lifted(span.h_val), span.y_val)
        hessian, cross = hessian + held[0], cross + held[1]

    def make(size: int) -> tuple[Any, Any]:
        k = refit_entries(hessian, cross, clean[size] != 0) if held_out else clean[size]
        live = np.any(k != 0, axis=1)
        chosen = dataclasses.replace(
            setting, coordinates=matrix.shape[1], columns=columns[live], rank=span.q, entries=size
        )
        k = on_device(k[live], jnp.float32)
        return span.fitted(chosen, matrix, shift, k), chosen

    fits = lambda count: span.over(make(sizes[count - 1])[0]) <= 0
    if not (count := largest(0, len(sizes), fits, 1)):
        return None
    size = sizes[count - 1]
    model, chosen = make(size)
    score = span.score(np.asarray(lifted(span.h_val)) @ clean[size])
    live = np.any(clean[size] != 0, axis=1)
    return Fitted(span, chosen, model, matrix, shift, clean[size][live], score, SUCCESS)


@jax.jit
def _lifted(
    psi: Any, columns: Int[Array, " p"], kept: Int[Array, " m"], h: Float[Array, "n d"]
) -> Float[Array, "n p"]:
    """Some products of the coordinates of some entries; indices are arguments, not constants."""
    return observables.Select(psi, columns)(h[:, kept])


def _useful(span: Span, setting: Setting, psi: Any) -> np.ndarray:
    """As many products as `MOST` allows, those that least squares can least do without."""
    total, count = psi.size(len(setting.kept)), max(2, MOST // span.q)
    if total <= count:
        return np.arange(total)
    target = observables.Identity()
    stats: Any = edmd.accumulate(psi, span.h[:, setting.kept], span.y, target=target).to_gram()
    gram, cross = np.asarray(stats.gram, np.float64), np.asarray(stats.cross, np.float64)
    alpha = setting.ridge * float(stats.count)
    return backward(gram, cross, [count], alpha, (0,), SHARE)[count][0]


def softmax_moments(
    psi_x: Float[ArrayLike, "n p"],
    logits: Float[ArrayLike, "n q"],
    *,
    temperature: float = 3.0,
    floor: float = 0.03,
    certain: float = 0.98,
) -> tuple[Float[np.ndarray, "p q p q"], Float[np.ndarray, "p q"]]:
    """Moments of the least squares `min Σ (K'ψ − t)ᵀ W (K'ψ − t)` with the softmax's own metric.

    `W_n = F(π_n) + ε M`, where `π = softmax(t / T)` for the logits `t` of sample `n`,
    `F(π) = diag(π) − π πᵀ` is the second derivative of the softmax's divergence (Fisher's metric)
    and `M = I − 1 1ᵀ / q` takes out what all logits have in common. So errors count where they
    could change the answer. The moments are `H[i, a, j, b] = Σ ψ_i ψ_j W[a, b]` and
    `R[i, a] = Σ ψ_i (W t)_a`; `K` solves `H K = R`, up to the same number in all columns of a row,
    which changes no softmax.

    Args:
        psi_x: observables.
        logits: of the original network.
        temperature: `T`, above 0; the higher, the more samples count.
        floor: `ε`, what every sample counts at least, above 0.
        certain: samples whose largest `π` is above count by the floor alone.

    Returns:
        `H` and `R`, float64.

    Numerics:
        Products of float32, summed in float64 every `BLOCK_ROWS` samples; `n p² q²` operations and
        about `12 p² q²` bytes.

    Raises:
        ValueError: shapes that do not fit or settings out of range.

    Reference: Martens (2020), JMLR 21(146) (Fisher and Gauss-Newton matrices of the softmax).
    """
    x, t = (
        as_numbers(name, a).astype(jnp.float32)
        for name, a in (("psi_x", psi_x), ("logits", logits))
    )
    if x.ndim != 2 or t.ndim != 2 or len(x) != len(t) or len(x) == 0 or t.shape[1] < 2:
        raise expected("observables (n, p) and logits (n, q), q > 1", f"{x.shape} and {t.shape}")
    as_number("certain", certain)
    if not (as_number("temperature", temperature) > 0 and as_number("floor", floor) > 0):
        raise expected("a temperature and a floor above 0", f"{temperature} and {floor}")
    check_finite("psi_x", x)
    check_finite("logits", t)
    p, q = x.shape[1], t.shape[1]
    t, probability, surest = _answers(t, temperature)
    gram, cross = _plain(x, t)
    first, second = np.triu_indices(q)
    pairs, r = np.zeros((len(first), p, p)), floor * cross
    unsure = np.flatnonzero(np.asarray(surest) <= certain)
    for start in range(0, len(unsure), BLOCK_ROWS):
        rows = unsure[start : start + BLOCK_ROWS]
        # One shape for all blocks: rows beyond the last count nothing.
        rows = np.pad(rows, (0, -len(rows) % min(BLOCK_ROWS, len(unsure))), constant_values=-1)
        part, moved = _fisher(x, t, probability, rows)
        pairs += np.asarray(part, np.float64)
        r += np.asarray(moved, np.float64)
    h = np.empty((p, q, p, q))
    for k, (i, j) in enumerate(zip(first, second, strict=True)):
        h[:, i, :, j] = pairs[k] + floor * ((i == j) - 1 / q) * gram
        h[:, j, :, i] = h[:, i, :, j]
    return h, r


def _plain(x: Array, t: Array) -> tuple[np.ndarray, np.ndarray]:
    gram, cross = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], t.shape[1]))
    for start in range(0, len(x), BLOCK_ROWS):
        part, moved = _products(x[start : start + BLOCK_ROWS], t[start : start + BLOCK_ROWS])
        gram += np.asarray(part, np.float64)
        cross += np.asarray(moved, np.float64)
    return gram, cross


@jax.jit
def _answers(t: Array, temperature: float) -> tuple[Array, Array, Array]:
    """Logits without their mean, the softmax's probabilities, and the largest of each sample."""
    t = t - jnp.mean(t, axis=1, keepdims=True)
    probability = jax.nn.softmax(t / temperature, axis=1)
    return t, probability, jnp.max(probability, axis=1)


@jax.jit
def _products(x: Array, t: Array) -> tuple[Array, Array]:
    return matmul(x.T, x), matmul(x.T, t)


@jax.jit
def _fisher(x: Array, t: Array, probability: Array, rows: Array) -> tuple[Array, Array]:
    """Sums over some rows (-1: none): a Gram matrix `(p, p)` a pair of classes, and `(p, q)`."""
    x, t = x[rows], t[rows]
    probability = jnp.where((rows >= 0)[:, None], probability[rows], 0)
    first, second = np.triu_indices(t.shape[1])
    weights = -probability[:, first] * probability[:, second]
    weights = weights.at[:, first == second].add(probability)
    products = jax.lax.map(lambda w: matmul((x * w[:, None]).T, x), weights.T)
    moved = probability * t
    moved = moved - probability * jnp.sum(moved, axis=1, keepdims=True)
    return products, matmul(x.T, moved)


def select_entries(
    hessian: Float[np.ndarray, "p q p q"],
    cross: Float[np.ndarray, "p q"],
    sizes: int | Sequence[int],
    *,
    alpha: float = ALPHA,
    share: float = 0.03,
) -> Any:
    """The matrix with the entries that a least-squares fit can least do without, refitted.

    Optimal brain surgeon in a metric that couples the columns: entry `e` goes where
    `K_e² / [H⁻¹]_ee` is least, all other entries of all columns refitted at once. Where the metric
    does not see what the columns have in common, each row finds the offset that makes it sparse.

    Args:
        hessian, cross: `H` and `R`, as from `softmax_moments`.
        sizes: numbers of entries to keep; several come out of one run, and are nested.
        alpha: ridge relative to each diagonal entry of `H`.
        share: of the remaining entries that go in one step.

    Returns:
        `(p, q)`, zero elsewhere, float64; or a list of them in the order of `sizes`.

    Numerics:
        Float64 on the host, `O((p q)³)` operations and three arrays of the size of `H`.

    Raises:
        ValueError: shapes that do not fit, or a size that is not in `[1, p q]`.

    Reference: Hassibi & Stork (1993), NeurIPS 5.
    """
    cross = np.asarray(read_numbers("cross", cross), np.float64)
    hessian = np.asarray(read_numbers("hessian", hessian), np.float64)
    check_finite("cross", cross)
    check_finite("hessian", hessian)
    if not as_number("alpha", alpha) >= 0 or not 0 < as_number("share", share) <= 1:
        raise expected("alpha of at least 0 and a share above 0, at most 1", f"{alpha}, {share}")
    shape = (*cross.shape, *cross.shape)
    if np.shape(hessian) != shape or cross.ndim != 2:
        raise expected(f"moments of shapes {shape} and {cross.shape}", f"{np.shape(hessian)}")
    many = sizes_of(sizes, 1, cross.size, "entries")
    h, unit = unit_diagonal(hessian.reshape(cross.size, cross.size))
    right = cross.reshape(-1, 1) * unit[:, None]
    kept, found = np.arange(cross.size), {}
    while True:
        # One inverse serves all sizes down to the next.
        aim = max(min(many), int(ANEW * len(kept)))
        here = {aim, *(size for size in many if aim <= size <= len(kept))}
        stages = backward(h, right, sorted(here), alpha, (), share)
        for size in here & set(many):
            stay, value = stages[size]
            matrix = np.zeros(cross.size)
            matrix[kept[stay]] = value[:, 0] * unit[kept[stay]]
            found[size] = matrix.reshape(cross.shape)
        if aim == min(many):
            break
        stay, _ = stages[aim]
        kept, h, right = kept[stay], h[np.ix_(stay, stay)], right[stay]
    return found[many[0]] if np.ndim(sizes) == 0 else [found[size] for size in many]


def refit_entries(
    hessian: Float[np.ndarray, "p q p q"], cross: Float[np.ndarray, "p q"], mask: np.ndarray
) -> Float[np.ndarray, "p q"]:
    """The solution of `H K = R`, as from `softmax_moments`, that is zero outside a mask."""
    live = np.flatnonzero(mask)
    h, unit = unit_diagonal(hessian.reshape(cross.size, cross.size)[np.ix_(live, live)])
    out = np.zeros(cross.size)
    out[live] = unit * ridge_solve(h, unit * cross.ravel()[live], ALPHA)
    return out.reshape(cross.shape)
