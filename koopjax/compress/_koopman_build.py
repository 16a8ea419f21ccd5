"""Fitting the block of a choice on all samples, within the budget."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from koopjax import edmd, export, observables
from koopjax._core import SUCCESS, on_device
from koopjax.compress._koopman_block import Job, koopman_block, wrap
from koopjax.compress._koopman_formats import quantized
from koopjax.compress._koopman_span import Found, Span
from koopjax.compress._problem import Score
from koopjax.compress._setting import Setting


class Built(NamedTuple):
    """A block fitted on all samples, within the budget.

    Attributes:
        model: with the block in it.
        setting: what is left of the choice after observables had to go.
        matrix: `(m, r)` projection of the kept entries.
        shift: `(r,)` coordinates of the mean.
        k: the Koopman matrix or its two factors.
        clean: the same, fitted without the held-out samples.
        score: of the block with `clean`, on the validation samples.
        code: result code of the solve.
        fits: whether the file is within the budget.
    """

    model: nnx.Module
    setting: Setting
    matrix: np.ndarray
    shift: np.ndarray
    k: Any
    clean: Any
    score: Score
    code: int
    fits: bool = True


def build(job: Job, found: Found) -> Built:
    """Fit on all samples, held-out ones included, and give up observables until the file fits.

    The score is that of a fit without the held-out samples.
    """
    setting, moment = found.setting, found.moment
    matrix, kept = found.full[setting.kept], setting.kept
    if setting.bits is not None:  # K is fitted to what the coarser projection reads
        codes, scale = quantized(moment.covariance[np.ix_(kept, kept)], matrix, setting.bits)
        matrix = codes * scale
    return build_from(job, setting, matrix, moment.mean[kept] @ matrix)


def build_from(job: Job, setting: Setting, matrix: np.ndarray, shift: np.ndarray) -> Built:
    """`build` for any projection `(m, r)` of the kept entries; `shift` is taken off behind it."""
    problem, span = job.problem, job.span
    some = lambda columns: observables.Select(psi, jnp.asarray(columns))
    read = lambda h: h[:, setting.kept]
    psi = dictionary(matrix, shift, setting.degree)
    chosen = some(setting.columns)
    identity = observables.Identity()
    stats: Any = edmd.accumulate(chosen, read(span.h), span.y, target=identity)
    whole = stats
    if problem.held_out:
        held: Any = edmd.accumulate(chosen, read(span.h_val), span.y_val, target=identity)
        whole = stats.merge(held)
    while True:
        k, code = _solve(whole, setting, span)
        block = koopman_block(span, setting, matrix, shift, k)
        model = wrap(problem, span, job.ends, block)
        over = export.stored_bytes(model) - problem.limit
        if over <= 0 or setting.observables <= 2:
            break
        setting, stay = setting.fewer(
            whole, max(1, over * 8 // ((setting.bits or 32) * setting.rank))
        )
        stats, whole = stats.select(jnp.asarray(stay)), whole.select(jnp.asarray(stay))
    clean = _solve(stats, setting, span)[0] if problem.held_out else k
    lifted = np.asarray(some(setting.columns)(read(span.h_val)))
    for factor in clean if isinstance(clean, tuple) else (clean,):
        lifted = lifted @ np.asarray(factor)
    score = problem.score(span.outputs_of(lifted))
    return Built(model, setting, matrix, shift, k, clean, score, code, over <= 0)


def dictionary(matrix: np.ndarray, shift: np.ndarray, degree: int) -> Any:
    """All products of the coordinates `h[kept] @ matrix - shift`."""
    first = observables.Compose(
        observables.Project(on_device(matrix, jnp.float32)),
        observables.Standardize(on_device(shift, jnp.float32)),
    )
    return observables.Compose(first, observables.Monomials(degree))


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
