"""Entries of a Koopman matrix to the logits, chosen and fitted in the metric of the softmax."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from koopjax._core import (
    as_number,
    as_numbers,
    check_finite,
    expected,
    matmul,
    read_numbers,
    ridge_solve,
)
from koopjax.compress.gram._select import backward, sizes_of, unit_diagonal

#: Rows whose products are formed at a time.
ROWS = 4096
#: The inverse is formed anew when this share of the entries is left, since downdates lose digits.
ANEW = 0.75
#: Ridge of the fits, relative to each diagonal entry.
ALPHA = 1e-4


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
        Products of float32, summed in float64 every `ROWS` samples; `n p² q²` operations and about
        `12 p² q²` bytes.

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
    for start in range(0, len(unsure), ROWS):
        rows = unsure[start : start + ROWS]
        # One shape for all blocks: rows beyond the last count nothing.
        rows = np.pad(rows, (0, -len(rows) % min(ROWS, len(unsure))), constant_values=-1)
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
    for start in range(0, len(x), ROWS):
        part, moved = _products(x[start : start + ROWS], t[start : start + ROWS])
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
    """Sums over some rows: a Gram matrix `(p, p)` for each pair of classes, and `(p, q)`.

    Row -1 counts nothing.
    """
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
