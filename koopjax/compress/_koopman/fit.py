"""A chosen setting fitted on all samples, within the budget: whole observables or entries of K."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from koopjax import edmd, observables
from koopjax._core import SUCCESS, on_device
from koopjax.compress._koopman.block import Setting, lift
from koopjax.compress._koopman.directions import read_from
from koopjax.compress._koopman.entries import refit_entries, select_entries, softmax_moments
from koopjax.compress._koopman.span import Span
from koopjax.compress._problem import Score
from koopjax.compress.gram._select import backward
from koopjax.compress.gram.formats import quantized

#: Entries of K that are looked at, at most; choosing among them takes the cube of their number.
MOST = 1000
#: Coordinates tried for a K of single entries, as multiples of those of a K stored whole.
WIDER = (1.0, 1.3)
#: Kept entries tried, as shares of the numbers that the bytes have room for.
SHARES = np.arange(0.6, 1.0, 0.02)
#: Of the entries or observables left, what goes in one step.
SHARE = 0.05


class Fitted(NamedTuple):
    """A block fitted on all samples, and the model with it.

    Attributes:
        setting: what is left of the choice after observables had to go.
        matrix, shift: `(m, r)` projection of the kept entries, and what is taken off behind it.
        clean: the Koopman matrix or its two factors, fitted without the held-out samples.
        score: of the block with `clean`, on the validation samples.
        code: result code of the solve.
    """

    span: Span
    setting: Setting
    model: nnx.Module
    matrix: np.ndarray
    shift: np.ndarray
    clean: Any
    score: Score
    code: int

    @property
    def over(self) -> int:
        """By how many bytes the file is too large, if above 0."""
        return self.span.over(self.model)


def fit(span: Span, setting: Setting) -> Fitted:
    """Fit on all samples, held-out ones included, and give up observables until the file fits.

    The score is that of a fit without the held-out samples.
    """
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
    """The best block of a found projection whose K has lost entries; None where there is none.

    All products of the coordinates (the most useful of them where they are many), and of their K
    the entries that the logits' softmax can least do without, the others refitted at every step.
    """
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

    size = _largest(sizes, lambda n: span.over(make(n)[0]) <= 0)
    if size is None:
        return None
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


def _largest(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of rising sizes that fits, by bisection."""
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(sizes[middle]) else (low, middle)
    return sizes[low - 1] if low else None
