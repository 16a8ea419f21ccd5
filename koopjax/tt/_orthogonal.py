"""Orthogonalised trains: sweeps of QR factorisations towards a centre.

Sweeps are loops over cores of one shape, so that they compile as fast for 200 cores as for two: a
ragged train is padded on the way in and cut on the way out.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from koopjax._core import as_whole, masked_qr, matmul
from koopjax.tt._padded import as_padded, bounded, cut, prefix_mask
from koopjax.tt._precision import dagger, einsum, factor_dtype, precise, real_dtype
from koopjax.tt._range import balanced, lifted, placed, shift
from koopjax.tt._trains import PaddedTT, T, as_train, check_train, like


def padded_qr(a: Array, rows: Array, mask: Array) -> tuple[Array, Array, Array]:
    """QR of a padded matrix, of exactly the rank that its masks allow.

    `q (m, R)`, `r (R, R)` and the mask of the columns of `q`, from `a (m, R)`.
    """
    dtype = a.dtype
    # Columns beyond the number of rows in use are not factored but projected, R = Qᴴ A: a QR of
    # them would divide by zero in its derivative.
    a = a.astype(factor_dtype(dtype))
    kept = mask * (jnp.cumsum(mask) <= jnp.sum(rows)).astype(mask.dtype)
    q, _ = masked_qr(a, kept)
    q = q * rows.astype(a.dtype)[:, None]
    return q.astype(dtype), matmul(dagger(q), a).astype(dtype), kept


def left_sweep(
    cores: Array, rank_mask: Array, mode_mask: Array
) -> tuple[Array, Array, Array, Array]:
    """Left-orthogonal cores of a padded train, the last triangular factor `(R, R)` with the power
    of two that it is to be multiplied by, and masks `(d + 1, R)`."""
    _, size, n, _ = cores.shape

    def step(carry: Any, inputs: Any) -> Any:
        r, e, left = carry
        core, right, modes = inputs
        a = einsum("ab,bnc->anc", r, core).reshape(size * n, size)
        rows = (left[:, None] * modes[None, :]).reshape(-1)
        q, r, kept = padded_qr(a, rows, right)
        r, e = lifted(r, e)
        return (r, e, kept), (q.reshape(size, n, size), kept)

    first = jnp.diag(rank_mask[0]).astype(cores.dtype)
    start = (first, jnp.zeros((), jnp.int32), rank_mask[0])
    inputs = (cores, rank_mask[1:], mode_mask.astype(rank_mask.dtype))
    (r, e, _), (out, masks) = jax.lax.scan(step, start, inputs)
    return out, r, e, jnp.concatenate([rank_mask[:1], masks])


def flip(cores: Array) -> Array:
    """The mirror image of a padded train's cores, for sweeps from the right."""
    return jnp.transpose(cores[::-1], (0, 3, 2, 1))


def right_sweep(
    cores: Array, rank_mask: Array, mode_mask: Array
) -> tuple[Array, Array, Array, Array]:
    """Right-orthogonal cores, the first factor (to be multiplied from the left) with its exponent,
    and masks."""
    out, r, e, masks = left_sweep(flip(cores), rank_mask[::-1], mode_mask[::-1])
    return flip(out), r.T, e, masks[::-1]


def orthogonalize(train: T, center: int) -> T:
    """The same tensor with orthonormal cores on both sides of a centre.

    Cores left of `center` satisfy `Σ_n G[n]ᴴ G[n] = I`, those right of it `Σ_n G[n] G[n]ᴴ = I`;
    the norm of the tensor is the norm of the core at the centre. Ranks above what the modes allow
    are cut to it, exactly. Where the norm leaves the dtype, the other cores carry the rest of it
    as powers of two.

    Args:
        train: any train; a TT matrix is treated as the train of its merged modes.
        center: index of the core that carries the norm, negative ones from the end (static).

    Returns:
        A train of the same kind. Costs `4 Σ n r³`. The derivative of the cores exists where the
        unfoldings have full rank; that of `truncate`'s tensor needs less.

    Raises:
        ValueError: a centre outside the train, NaN cores.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> train = random(jax.random.key(0), (2, 3, 2), 2)
        >>> bool(jnp.allclose(orthogonalize(train, 1).to_dense(), train.to_dense(), atol=1e-5))
        True
    """
    check_train("the train", train)
    center = as_whole("the centre", center, -train.order, train.order - 1) % train.order
    with precise(train):
        return _orthogonalize(train, center=center)


@functools.partial(jax.jit, static_argnames="center")
def _orthogonalize(given: Any, *, center: int) -> Any:
    train = as_train(given)
    padded, e = balanced(as_padded(train))
    cores, ranks, modes = padded.cores, padded.rank_mask, padded.mode_mask
    left, carry, before, left_masks = left_sweep(
        cores[:center], ranks[: center + 1], modes[:center]
    )
    right, back, behind, right_masks = right_sweep(
        cores[center + 1 :], ranks[center + 1 :], modes[center + 1 :]
    )
    middle, e = lifted(einsum("ab,bnc,cd->and", carry, cores[center], back), e + before + behind)
    masks = jnp.concatenate([left_masks, right_masks])
    out = placed(PaddedTT(jnp.concatenate([left, middle[None], right]), masks, modes), e, center)
    if isinstance(train, PaddedTT):
        return out
    ranks = bounded(train.ranks, train.modes, center, center + 1)
    return like(cut(out, ranks, train.modes), given)


def scaled_norm(a: Array) -> Array:
    """The Euclidean norm, safe where squares would leave the range of the dtype."""
    top = jnp.max(jnp.abs(a))
    safe = jnp.where(top > 0, top, 1)
    return top * jnp.sqrt(jnp.sum(jnp.abs(a / safe.astype(a.dtype)) ** 2))


def singular_values(train: Any) -> tuple[Float[Array, " r"], ...] | Float[Array, "d_minus_1 R"]:
    """The singular values of the unfolding at every bond.

    At bond `k` those of the matrix with rows `(i_1 ... i_k)` and columns `(i_{k+1} ... i_d)`: what
    a truncation at that bond would throw away.

    Args:
        train: any train; a TT matrix is treated as the train of its merged modes.

    Returns:
        For a ragged train a tuple of `d - 1` arrays, descending, as long as the rank that the
        modes allow; for a padded one an array `(d - 1, R)`, zeros at the end of its rows. One scan
        of SVDs after a sweep of QRs; no matrix is squared.

    Example:
        >>> import jax.numpy as jnp
        >>> [s.shape for s in singular_values(rank_one([jnp.ones(2), jnp.ones(3)]))]
        [(1,)]
    """
    check_train("the train", train)
    with precise(train):
        return _singular_values(train)


@jax.jit
def _singular_values(train: Any) -> Any:
    given = as_train(train)
    train, e = balanced(as_padded(given))
    right, first, more, masks = right_sweep(train.cores, train.rank_mask, train.mode_mask)
    size, n = right.shape[1:3]
    dtype = right.dtype

    def step(carry: Any, inputs: Any) -> Any:
        left, count = carry
        core, mask, modes = inputs
        a = einsum("ab,bnc->anc", left, core).reshape(size * n, size)
        _, s, vh = jnp.linalg.svd(a.astype(factor_dtype(dtype)), full_matrices=False)
        # Beyond the rank that the modes allow, the values are rounding noise.
        count = jnp.minimum(count * jnp.sum(modes), jnp.sum(mask))
        s = s * prefix_mask(count, size, s.dtype)
        left = (s[:, None] * vh).astype(dtype)
        return (left, count), s.astype(real_dtype(dtype))

    modes = train.mode_mask.astype(masks.dtype)
    start = (first, jnp.sum(masks[0]))
    _, values = jax.lax.scan(step, start, (right[:-1], masks[1:-1], modes[:-1]))
    values = shift(values, e + more)
    if isinstance(given, PaddedTT):
        return values
    sizes = bounded(given.ranks, given.modes, given.order, 0)[1:-1]
    return tuple(values[k, :r] for k, r in enumerate(sizes))
