"""Single entries of K in the place of whole observables, chosen in the softmax's metric."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from koopjax import edmd, export, observables
from koopjax._core import on_device, ridge_solve
from koopjax.compress._eliminate import backward
from koopjax.compress._koopman_block import Job, koopman_block, wrap
from koopjax.compress._koopman_build import Built, dictionary
from koopjax.compress._koopman_span import Found
from koopjax.compress._output_metric import select_entries, softmax_moments
from koopjax.compress._units import unit_diagonal

#: Entries that are looked at, at most; choosing among them takes the cube of their number.
MOST = 1000
#: Coordinates tried, as multiples of those of a K that is stored whole.
WIDER = (1.0, 1.3)
#: Kept entries tried, as shares of the numbers that the bytes have room for.
SHARES = np.arange(0.6, 1.0, 0.02)
#: Of the entries left, what goes in one step.
SHARE = 0.05
#: Ridge of the refit, relative to each diagonal entry.
ALPHA = 1e-4


def with_entries(job: Job, found: Found) -> Built | None:
    """The best block of a found projection whose K has lost entries; None where there is none.

    All products of the coordinates (the most useful of them where they are many), and of their K
    the entries that the logits' softmax can least do without, the others refitted at every step.

    Args:
        job, found: a span that ends at logits, and what the search found for it in float32.
    """
    span, setting = job.span, found.setting
    if not span.logits:
        return None
    read = found.entries.read(setting.directions, len(setting.kept))
    widths = {min(read.shape[1], math.ceil(wide * setting.coordinates)) for wide in WIDER}
    made = [_of_width(job, found, read[setting.kept, :r]) for r in sorted(widths)]
    return max((one for one in made if one is not None), key=lambda b: b.score, default=None)


def _of_width(job: Job, found: Found, matrix: np.ndarray) -> Built | None:
    """The same for a projection `(m, r)` of the kept entries."""
    span, problem, setting = job.span, job.problem, found.setting
    room = job.room - 4 * (matrix.size + matrix.shape[1])
    if room < 8 * span.q:
        return None
    kept = setting.kept
    shift = found.moment.mean[kept] @ matrix
    psi = dictionary(matrix, shift, setting.degree)
    columns = _useful(job, setting, psi)
    lifted = lambda h: _lifted(psi, columns, kept, h)
    hessian, cross = softmax_moments(lifted(span.h), span.y)
    most = min(len(columns) * span.q, room // 4)
    sizes = sorted({max(span.q, int(share * most)) for share in SHARES})
    clean = dict(
        zip(sizes, select_entries(hessian, cross, sizes, alpha=ALPHA, share=SHARE), strict=True)
    )
    if problem.held_out:
        held = softmax_moments(lifted(span.h_val), span.y_val)
        hessian, cross = hessian + held[0], cross + held[1]

    def make(size: int) -> tuple[Any, Any, np.ndarray]:
        k = refit(hessian, cross, clean[size] != 0) if problem.held_out else clean[size]
        live = np.any(k != 0, axis=1)
        chosen = dataclasses.replace(
            setting, coordinates=matrix.shape[1], columns=columns[live], rank=span.q, entries=size
        )
        block = koopman_block(span, chosen, matrix, shift, on_device(k[live], jnp.float32))
        return wrap(problem, span, job.ends, block), chosen, k[live]

    size = _largest(sizes, lambda n: export.stored_bytes(make(n)[0]) <= problem.limit)
    if size is None:
        return None
    model, chosen, k = make(size)
    score = problem.score(span.outputs_of(np.asarray(lifted(span.h_val)) @ clean[size]))
    live = np.any(clean[size] != 0, axis=1)
    return Built(model, chosen, matrix, shift, k, clean[size][live], score, 0)


@jax.jit
def _lifted(
    psi: Any, columns: Int[Array, " p"], kept: Int[Array, " m"], h: Float[Array, "n d"]
) -> Float[Array, "n p"]:
    """Some products of the coordinates of some entries; indices are arguments, not constants."""
    return observables.Select(psi, columns)(h[:, kept])


def _useful(job: Job, setting: Any, psi: Any) -> np.ndarray:
    """As many products as `MOST` allows, those that least squares can least do without."""
    span, total = job.span, psi.size(len(setting.kept))
    count = max(2, MOST // span.q)
    if total <= count:
        return np.arange(total)
    target = observables.Identity()
    stats: Any = edmd.accumulate(psi, span.h[:, setting.kept], span.y, target=target).to_gram()
    gram, cross = np.asarray(stats.gram, np.float64), np.asarray(stats.cross, np.float64)
    return backward(gram, cross, [count], setting.ridge * float(stats.count), (0,), 0.05)[count][0]


def refit(hessian: np.ndarray, cross: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The solution of `H K = R` whose entries outside a mask are zero.

    Args:
        hessian, cross: `(p, q, p, q)` and `(p, q)`, as from `softmax_moments`.
        mask: `(p, q)`.
    """
    live = np.flatnonzero(mask)
    h, unit = unit_diagonal(hessian.reshape(cross.size, cross.size)[np.ix_(live, live)])
    out = np.zeros(cross.size)
    right = unit * cross.ravel()[live]
    out[live] = unit * ridge_solve(h, right, ALPHA)
    return out.reshape(cross.shape)


def _largest(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of rising sizes that fits, by bisection."""
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else None
