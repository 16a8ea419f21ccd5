"""Statistics stacked by fold: merged into one, and for each fold those of all the others."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from koopjax._core import expected, precise
from koopjax.edmd._statistics import Gram, RFactor, Statistics, check_statistics


def merge_stacked(stacked: Any) -> Any:
    """Merge statistics stacked along the leading axis, pairwise, as a tree.

    The depth is logarithmic and each level is one batched merge, so it serves for folds and for
    what an `all_gather` over devices brings together.
    """
    if isinstance(stacked, Gram):
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), stacked)
    size = stacked.r.shape[0]
    while size > 1:
        half = size // 2
        lower = jax.tree.map(lambda a, h=half: a[:h], stacked)
        upper = jax.tree.map(lambda a, h=half: a[h : 2 * h], stacked)
        merged = jax.vmap(lambda a, b: a.merge(b))(lower, upper)
        rest = jax.tree.map(lambda a, h=half: a[2 * h :], stacked)
        stacked = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), merged, rest)
        size = size - half
    return jax.tree.map(lambda a: a[0], stacked)


def _check_stacked(stacked: Any) -> None:
    check_statistics(stacked)
    if stacked.folds is None:
        got = type(stacked).__name__
        raise expected("statistics stacked by fold", got, "edmd.accumulate(..., folds=5)")


def total(stacked: Statistics) -> Statistics:
    """All folds of stacked statistics merged into one."""
    _check_stacked(stacked)
    with precise(stacked):
        return merge_stacked(stacked)


def leave_one_out(stacked: Statistics) -> Statistics:
    """For each fold the statistics of all the others, stacked alike.

    Gram matrices are subtracted from their sum. R factors can't be taken away stably, so the
    others are merged: prefixes with suffixes, about three merges a fold.
    """
    _check_stacked(stacked)
    with precise(stacked):
        if isinstance(stacked, Gram):
            return jax.tree.map(lambda a: jnp.sum(a, axis=0)[None] - a, stacked)
        folds, size = stacked.r.shape[0], stacked.r.shape[-1]
        unit = dataclasses.replace(
            stacked, r=jnp.zeros((size, size), stacked.dtype), count=jnp.zeros((), stacked.dtype)
        )

        def step(carry: RFactor, fold: RFactor) -> tuple[RFactor, RFactor]:
            return carry.merge(fold), carry

        # Exclusive prefixes and suffixes: what lies before and what lies behind each fold.
        _, before = jax.lax.scan(step, unit, stacked, length=folds)
        _, after = jax.lax.scan(step, unit, stacked, length=folds, reverse=True)
        return jax.vmap(lambda a, b: a.merge(b))(before, after)
