"""A span whose state is read along directions of its axes: a Kronecker projection, closed form."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from koopjax import observables
from koopjax._core import on_device
from koopjax.compress._koopman_block import Job, fixed_bytes
from koopjax.compress._koopman_formats import quantized
from koopjax.compress._projection import axes_of

#: Directions of an axis tried, as shares of its length, the likelier first.
SHARES = (0.5, 0.36)
#: Of the room, what the directions may take: mixing them and K take the rest.
MOST = 0.3
#: Axes with less entries than this hold little that fewer directions could stand for.
SHORT = 12
#: Samples that the directions are found on.
ROWS = 20_000
#: Bits that an entry of a direction has more than the entries behind it.
FINER = 2


def readings(job: Job, bits: int | None = None) -> Iterator[Job]:
    """A job as it is, and behind Kronecker projections of a few sizes where its state has axes.

    A state has axes where it is an array of at least two, or a flat input (784 pixels are 28 x 28);
    whether that is so of its data is for the validation score to say.

    Args:
        job: of a whole span.
        bits: of an entry of the directions; float32 without.
    """
    yield job
    shape = job.span.raw.shape[1:]
    axes = axes_of(shape)
    arranged = sum(n > 1 for n in shape) > 1 or job.ends[0] == "input"
    if not arranged or len(axes) < 2 or min(axes) < SHORT:
        return
    width = 32 if bits is None else bits + FINER
    most = MOST * (8 * job.room / width) / sum(n * n for n in axes)
    chosen = dict.fromkeys(
        tuple(max(1, round(min(share, share / SHARES[0] * most) * n)) for n in axes)
        for share in SHARES
    )
    for ranks in chosen:
        one = behind_axes(job, axes, ranks, bits)
        if one is not None:
            yield one


def behind_axes(
    job: Job, axes: Sequence[int], ranks: Sequence[int], bits: int | None = None
) -> Job | None:
    """A job whose span reads `h (A_1 ⊗ ... ⊗ A_k)` in the place of `h`; None without room for it.

    Args:
        job: as it is.
        axes: sizes of the state's axes, the last one fastest.
        ranks: directions of each.
        bits: of an entry of the directions; float32 without.
    """
    span, problem = job.span, job.problem
    kronecker = observables.Kronecker.fit(span.h[:ROWS], axes, ranks)
    if bits is not None:
        kronecker = observables.Kronecker(
            tuple(_on_grid(a, bits + FINER) for a in kronecker.factors)
        )
    read = lambda h: kronecker(h)
    span = dataclasses.replace(span, h=read(span.h), h_val=read(span.h_val), reader=kronecker)
    room = problem.limit - fixed_bytes(problem, span, job.ends)
    return Job(problem, span, job.ends, room) if room >= span.least else None


def _on_grid(factor: Any, bits: int) -> Any:
    """Directions whose entries are small multiples of a step a column."""
    a = np.asarray(factor)
    codes, scale = quantized(np.eye(len(a)), a, min(bits, 8))
    return on_device(codes * scale, jnp.float32)
