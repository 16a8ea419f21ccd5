"""Truncation to given ranks inside jit, with derivatives that stay finite.

A truncated SVD has no derivative where singular values coincide or vanish, but the truncated
tensor has one wherever the last value kept differs from the first one cut. So each basis of kept
singular vectors moves only out of its span (its rotation inside cancels in the tensor), and QR
factors are constants: with right-orthogonal interfaces `Q` held fixed, `F = W Qᴴ` carries the
derivative of the original interface `W` that the singular vectors see.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from koopjax._core import as_whole, expected, matmul, read, traced
from koopjax.tt._checks import (
    MOST_SIZE,
    RoundInfo,
    as_ranks,
    feasible_ranks,
    requested,
    was_clipped,
)
from koopjax.tt._orthogonal import flip, left_sweep, scaled_norm
from koopjax.tt._padded import as_padded, bounded, cut, prefix_mask
from koopjax.tt._precision import dagger, einsum, factor_dtype, precise, real_dtype
from koopjax.tt._range import balanced, lifted, placed
from koopjax.tt._trains import PaddedTT, T, as_train, check_train, like


@jax.custom_jvp
def kept_basis(x: Array, keep: Array) -> tuple[Array, Array]:
    """The left singular vectors of `x` that a mask keeps, and all singular values.

    Zero columns stand for what is cut. The derivative of the basis is the part that leaves its
    span; that of the values is the usual one.
    """
    u, s, _ = jnp.linalg.svd(x, full_matrices=False)
    return u * keep.astype(x.dtype)[None, :], s


@kept_basis.defjvp
def _kept_basis_jvp(primals: Any, tangents: Any) -> Any:
    (x, keep), (dx, _) = primals, tangents
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    # U^H dX V, and what of dX V lies outside the span of all of U.
    moved = matmul(dx, dagger(vh))
    c = matmul(dagger(u), moved)
    outside = moved - matmul(u, c)
    floor = 8 * jnp.finfo(s.dtype).eps * s[0] * jnp.sqrt(jnp.asarray(s.shape[0], s.dtype))
    alive = keep * (s > floor)
    inverse = alive / jnp.where(alive > 0, s, 1)
    # Pairs (j cut, i kept): (s_i c_ji + s_j conj(c_ij)) / (s_i^2 - s_j^2), with everything divided
    # by the largest value, since squares leave the range of float32 on long trains.
    top = jnp.where(s[0] > 0, s[0], 1)
    unit, small = s / top, c / top.astype(c.dtype)
    gap = (unit[None, :] - unit[:, None]) * (unit[None, :] + unit[:, None])
    pair = (1 - keep)[:, None] * alive[None, :] * (gap > (floor / top) ** 2)
    weight = pair / jnp.where(pair > 0, gap, 1)
    right = small * unit[None, :].astype(c.dtype)
    mixed = (right + dagger(small) * unit[:, None].astype(c.dtype)) * weight
    du = matmul(u, mixed.astype(u.dtype)) + outside * inverse.astype(u.dtype)[None, :]
    ds = jnp.real(jnp.diagonal(c))
    return (u * keep.astype(x.dtype)[None, :], s), (du, ds)


def basis(a: Array, f: Array, keep: Array) -> tuple[Array, Array]:
    """`kept_basis` of `a f` in a dtype that LAPACK has."""
    wide = factor_dtype(a.dtype)
    u, s = kept_basis(matmul(a, f).astype(wide), keep.astype(real_dtype(wide)))
    return u.astype(a.dtype), s


def truncate(train: T, rank: Any, *, max_rank: int | None = None, return_info: bool = False) -> Any:
    """The train cut to given ranks by orthogonal projections: inside jit, ranks are a mask.

    Bond by bond the leading `rank` left singular vectors are kept; the error is at most `√(d - 1)`
    times that of the best train of these ranks.

    Args:
        train: any train. Of a `PaddedTT` shapes stay and only masks change, so that this jits,
            vmaps over `rank` and has gradients; of a ragged one the ranks are shapes.
        rank: for a `PaddedTT` an integer scalar, `(d - 1,)` or `(d + 1,)`, traced or not; for a
            ragged train the same as Python integers. Ranks above what the train or the modes allow
            are cut to it (`return_info` says so); traced ranks below 1 are taken as 1.
        max_rank: padded rank of the result of a `PaddedTT` (static); that of the train by default.
            Ranks above it are cut to it. Brings a padded sum or product back to its size.
        return_info: also return a `RoundInfo`.

    Returns:
        A train of the same kind, left-orthogonal but for the last core; with `return_info` a pair.
        Costs a QR and an SVD of `(R N, R)` a core. Values lose nothing to squaring. Gradients are
        those of the truncated tensor, finite wherever there are repeated or zero singular values,
        and exact where the cut does not run through a group of equal ones.

    Raises:
        ValueError: a concrete rank below 1, NaN cores.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> padded = pad(random(jax.random.key(0), (2, 3, 2), 2), 4)
        >>> errors = jax.vmap(lambda r: norm(subtract(truncate(padded, r), padded)))
        >>> bool(errors(jnp.arange(1, 4))[1] < 1e-5)
        True

    Reference: Oseledets (2011), algorithm 2.
    """
    check_train("the train", train)
    rank = rank if isinstance(rank, jax.Array) else read("the rank", rank)
    known = not isinstance(rank, jax.Array) or not traced(rank)
    ranks = as_ranks(train.order, rank) if known else None
    if isinstance(train, PaddedTT):
        size = train.max_rank if max_rank is None else as_whole("max_rank", max_rank, 1)
        size, ranks = min(size, train.max_rank), None
    elif ranks is None:
        raise expected(
            "whole numbers as ranks of a ragged train",
            "traced ones",
            "tt.pad(train, R), whose ranks are masks",
        )
    elif max_rank is not None:
        raise expected("max_rank with a PaddedTT", f"a {type(train).__name__}", "rank alone")
    else:
        size = min(max(ranks), max(train.ranks))
    with precise(train):
        out, info = _truncate(train, jnp.asarray(rank), size=size, ranks=ranks)
    return (out, info) if return_info else out


def _lost(total: Array, cut: Array) -> Array:
    """Relative error, from the norm at each bond before it was cut and the norm of what was cut.

    Each bond has a scale of its own: what came before left `1 - share` of the squared norm.
    """
    total, cut = jax.lax.stop_gradient((total, cut))
    share = (cut / jnp.where(total > 0, total, 1)) ** 2
    before = jnp.cumprod(jnp.concatenate([jnp.ones_like(share[:1]), 1 - share[:-1]]))
    return jnp.sqrt(jnp.sum(share * before))


def feasible_counts(modes: Array, size: int) -> Array:
    """`feasible_ranks` of masked modes, capped at `size` (far below an overflow)."""

    def step(count: Array, n: Array) -> tuple[Array, Array]:
        count = jnp.minimum(count * n, size)
        return count, count

    one = jnp.ones((), jnp.int32)
    left = jnp.concatenate([one[None], jax.lax.scan(step, one, modes)[1]])
    right = jnp.concatenate([one[None], jax.lax.scan(step, one, modes[::-1])[1]])[::-1]
    return jnp.minimum(left, right)


def _mixed_interfaces(train: PaddedTT) -> Array:
    """`F_k = W_k Q_kᴴ` for every bond `(d + 1, R, R)` up to their scales, `Q` held fixed."""
    held = jax.lax.stop_gradient((train.cores, train.rank_mask, train.mode_mask))
    q, *_ = left_sweep(flip(held[0]), held[1][::-1], held[2][::-1])
    q = jax.lax.stop_gradient(flip(q))
    last = jnp.diag(train.rank_mask[-1]).astype(train.cores.dtype)

    def step(mixed: Array, pair: Any) -> tuple[Array, Array]:
        core, fixed = pair
        mixed, _ = lifted(einsum("anb,bc,dnc->ad", core, mixed, jnp.conj(fixed)), 0)
        return mixed, mixed

    _, mixed = jax.lax.scan(step, last, (train.cores, q), reverse=True)
    return jnp.concatenate([mixed, last[None]])


@functools.partial(jax.jit, static_argnames=("size", "ranks"))
def _truncate(given: Any, rank: Array, *, size: int, ranks: tuple[int, ...] | None) -> Any:
    """The train cut to `rank` in padded cores of rank `size`; a ragged one has `ranks` besides."""
    plain = as_train(given)
    train, e = balanced(as_padded(plain))
    cores, d, full = train.cores, train.order, train.max_rank
    n = cores.shape[2]
    real = train.rank_mask.dtype
    modes = jnp.sum(train.mode_mask.astype(jnp.int32), axis=1, dtype=jnp.int32)
    most = feasible_counts(modes, full * n + 1)
    wanted = requested(d, rank, size)
    own = jnp.sum(train.rank_mask.astype(jnp.int32), axis=1, dtype=jnp.int32)

    # The rank of a bond is also bounded by its right neighbour's own rank times the mode.
    def from_right(count: Array, pair: Any) -> tuple[Array, Array]:
        count = jnp.minimum(pair[0], jnp.minimum(count * pair[1], full))
        return count, count

    one = jnp.ones((), jnp.int32)
    _, bounds = jax.lax.scan(from_right, one, (own[1:-1], modes[1:]), reverse=True)
    targets = jnp.minimum(bounds, wanted[1:-1])
    interfaces = _mixed_interfaces(train)

    def step(carry: Any, inputs: Any) -> Any:
        left, e, count = carry
        core, f, target, mode = inputs
        a = einsum("ab,bnc->anc", left, core).reshape(size * n, full)
        new = jnp.minimum(target, count * jnp.sum(mode).astype(jnp.int32))
        thin = min(size * n, full)
        u, s = basis(a, f, prefix_mask(new, thin, real))
        u = jnp.pad(u, ((0, 0), (0, max(0, size - thin))))[:, :size]
        # Vectors of zero singular values may point into the padding: they carry nothing.
        rows = (prefix_mask(count, size, real)[:, None] * mode[None, :]).reshape(-1)
        u = u * rows.astype(u.dtype)[:, None]
        gone = scaled_norm(s * (1 - prefix_mask(new, thin, s.dtype)))
        outputs = (u.reshape(size, n, size), new, gone, scaled_norm(s))
        return (*lifted(matmul(dagger(u), a), e), new), outputs

    start = (jnp.zeros((size, full), cores.dtype).at[0, 0].set(1), e, one)
    inputs = (cores[:-1], interfaces[1:-1], targets, train.mode_mask[:-1].astype(real))
    (left, e, _), (out, counts, lost, total) = jax.lax.scan(step, start, inputs)
    last, e = lifted(einsum("ab,bnc->anc", left, cores[-1])[:, :, :size], e)
    counts = jnp.concatenate([one[None], counts, one[None]])
    done = PaddedTT(
        jnp.concatenate([out, last[None]]), prefix_mask(counts, size, real), train.mode_mask
    )
    done = placed(done, e, d - 1)
    asked = requested(d, rank, jnp.iinfo(jnp.int32).max)[1:-1]
    beyond = asked > (jnp.max(most[1:-1], initial=1) if rank.ndim == 0 else most[1:-1])
    clipped = jnp.any(beyond)
    info = RoundInfo(_lost(total, lost), counts, most, clipped)
    if ranks is None:
        return done, info
    # The same again in numbers, which shapes are made from and which no padding bounds.
    feasible = feasible_ranks(plain.modes)
    clipped = was_clipped(max(ranks) if rank.ndim == 0 else ranks, ranks, feasible)
    feasible = jnp.asarray([min(r, MOST_SIZE) for r in feasible])
    info = dataclasses.replace(info, feasible=feasible, clipped=jnp.asarray(clipped))
    own = bounded(plain.ranks, plain.modes, 0, 0)
    ranks = bounded([min(pair) for pair in zip(own, ranks, strict=True)], plain.modes, d, d)
    return like(cut(done, ranks, plain.modes), given), info
