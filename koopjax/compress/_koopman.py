"""The Koopman method: a span replaced by projection, dictionary and K within a budget of bytes."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax import edmd, export, observables
from koopjax._core import SUCCESS, UNDERDETERMINED
from koopjax.compress._koopman_block import Task, koopman_block, prepare, wrap
from koopjax.compress._koopman_span import Found, Span
from koopjax.compress._problem import Score
from koopjax.compress._result import Compressed, finish
from koopjax.compress._search import search
from koopjax.compress._setting import Setting

#: Calibration samples an observable below which the result is flagged.
FEW = 3


def koopman(
    model: Any,
    calibration: ArrayLike,
    budget: Any,
    *,
    at: Any = None,
    labels: ArrayLike | None = None,
    validation: Any = None,
    key: Array,
) -> Compressed:
    """Replace a span by few coordinates, their products, and a Koopman matrix.

    `block(h) = psi(W h[kept] - shift) K`: some entries of the state, projected by `W` to an active
    subspace, lifted by the products of the coordinates up to a degree (or the most useful of them),
    and mapped linearly to the span's output. How many entries, coordinates and products, which
    degree, which rank of K and which ridge is chosen on validation data, such that the file fits.
    No training and no labels: three passes for covariance, Jacobians and a pilot, then one pass for
    each number of entries, whose Gram matrix answers all numbers of coordinates, products, ranks
    and ridges as submatrices.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` or any callable
            pytree.
        calibration: `(n, ...)` samples as the model takes them, unlabelled; thousands where there
            are that many.
        budget: `"30x"`, `"64KiB"`, bytes, or a `Budget`; of the whole model's file.
        at: a cut to start from, or a pair of cuts, as for `surgery.split`; from the input to the
            output without. What lies outside the span stays and takes its bytes.
        labels: `(n,)` classes of `calibration`, to choose settings by accuracy; without, by
            agreement with the original. Never used in the fit.
        validation: `x_val` or `(x_val, y_val)`; without, some of `calibration` are held out.
        key: draws held-out samples and those for the Jacobians.

    Returns:
        `Compressed`: the model, an `nn.KoopmanBlock` where the span is the whole of a model of
        vectors, else a `surgery.Spliced`; and the report.

    Numerics:
        Statistics in float64 where the backend has it, eigenvectors and eliminations in float64 on
        the host, parameters float32. `O(n p² + d³)` for states of `d` entries and `p` products, `p`
        at most about a thousand. With few samples the ridge rises by itself, as validation asks for
        it, and dictionaries of more than half as many observables are left out; the report says so
        with code UNDERDETERMINED.

    Raises:
        ValueError: bad data, an unknown cut, or a budget that no form fits, with the least that one
            does.

    Reference:
        Sugishita, Kinjo & Ohkubo (2024), arXiv:2402.11740; Constantine, "Active Subspaces" (2015).
    """
    task = prepare("koopman", model, calibration, budget, at, labels, validation, key)
    found = search(task.problem, task.span, task.room)
    return account("koopman", task, found, build(task, found))


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
    """

    model: nnx.Module
    setting: Setting
    matrix: np.ndarray
    shift: np.ndarray
    k: Any
    clean: Any
    score: Score
    code: int


def build(task: Task, found: Found) -> Built:
    """Fit on all samples, held-out ones included, and give up observables until the file fits.

    The score is that of a fit without the held-out samples.
    """
    setting, moment = found.setting, found.moment
    full = found.full
    return build_from(task, setting, full[setting.kept], moment.mean @ full)


def build_from(task: Task, setting: Setting, matrix: np.ndarray, shift: np.ndarray) -> Built:
    """`build` for any projection `(m, r)` of the kept entries; `shift` is taken off behind it."""
    problem, span = task.problem, task.span
    some = lambda columns: observables.Select(psi, jnp.asarray(columns))
    read = lambda h: h[:, setting.kept]
    psi = _dictionary(matrix, shift, setting.degree)
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
        model = wrap(problem, span, task.ends, block)
        over = export.stored_bytes(model) - problem.limit
        if over <= 0 or setting.observables <= 2:
            break
        setting, stay = setting.fewer(whole, max(1, over // (4 * setting.rank)))
        stats, whole = stats.select(jnp.asarray(stay)), whole.select(jnp.asarray(stay))
    clean = _solve(stats, setting, span)[0] if problem.held_out else k
    lifted = np.asarray(some(setting.columns)(read(span.h_val)))
    for factor in clean if isinstance(clean, tuple) else (clean,):
        lifted = lifted @ np.asarray(factor)
    score = problem.score(span.outputs_of(lifted))
    return Built(model, setting, matrix, shift, k, clean, score, code)


def _dictionary(matrix: np.ndarray, shift: np.ndarray, degree: int) -> Any:
    """All products of the coordinates `h[kept] @ matrix - shift`."""
    mean = jnp.asarray(shift, jnp.float32)
    first = observables.Compose(
        observables.Project(jnp.asarray(matrix, jnp.float32)),
        observables.Standardize(mean, jnp.ones_like(mean)),
    )
    return observables.Compose(first, observables.Monomials(degree))


def account(
    method: str, task: Task, found: Found, built: Built, *, why: str | None = None, **chosen: Any
) -> Compressed:
    """The account of a block.

    Args:
        method, task, found, built: as they are.
        why: in place of the sentence on the closed form.
        chosen: further settings.
    """
    problem, span, setting = task.problem, task.span, built.setting
    notes, code = [], built.code
    unused = export.stored_bytes(built.model) < 0.8 * problem.limit
    if setting.observables * FEW > span.count or (unused and found.limited):
        code = UNDERDETERMINED
        notes.append(
            f"{span.count} calibration samples are few: the dictionary was kept to "
            f"{setting.observables} observables and the ridge set to {setting.ridge:g} of their "
            "number; give more samples, which need no labels"
        )
    if found.skipped:
        notes.append(f"the time was over with {found.skipped} passes of the search left out")
    return finish(
        built.model,
        method=method,
        budget=problem.budget,
        original_bytes=problem.original_bytes,
        settings={"at": list(task.ends), **setting.as_dict(span.d), **chosen},
        why=why
        or (
            f"of {found.tried} settings that fit, the best validation {problem.measure}; "
            f"directions from the {setting.directions.name} metric"
        ),
        candidates=found.tried,
        result=code,
        notes=tuple(notes),
        **problem.account(built.score),
    )


def _solve(stats: Any, setting: Setting, span: Span) -> tuple[Any, int]:
    """K, or its two factors, by the room of EDMD, with its result code."""
    alpha = setting.ridge * float(stats.count)
    f32 = lambda a: jnp.asarray(np.asarray(a), jnp.float32)
    if setting.rank < span.q:
        solver = edmd.ReducedRank(setting.rank, metric=span.metric, alpha=alpha)
        left, right = edmd.low_rank(stats, solver)
        return (f32(left), f32(right)), SUCCESS
    solution = edmd.solve(stats, edmd.Ridge(alpha))
    return f32(edmd.unwrap(solution, allow=(1, 2, 3))), int(solution.result)
