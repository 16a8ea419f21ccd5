"""The Koopman method: a span replaced by projection, dictionary and K within a budget of bytes."""

import dataclasses
from typing import Any

from jax.typing import ArrayLike
from jaxtyping import Array

from koopjax import export
from koopjax._core import UNDERDETERMINED
from koopjax.compress._budget import BudgetTooSmall
from koopjax.compress._koopman_block import Job, on_span
from koopjax.compress._koopman_build import Built
from koopjax.compress._koopman_span import Clock, Found
from koopjax.compress._koopman_spans import Fitted, candidates, check_extras, fit, pairs_of, several
from koopjax.compress._problem import ScoreFn, pose, untouched
from koopjax.compress._result import Compressed, finish

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
    task: str | None = None,
    score_fn: ScoreFn | None = None,
    bits: str = "float32",
    seconds: float | None = None,
    spans: str | None = None,
) -> Compressed:
    """Replace a span by few coordinates, their products, and a Koopman matrix.

    `block(h) = psi(W h[kept] - shift) K`: some entries of the state, or of what directions of its
    axes read from it (`observables.Kronecker`), projected by `W` to an active subspace, lifted by
    the products of the coordinates up to a degree (or the most useful of them), and mapped linearly
    to the span's output. How it is read, how many entries, coordinates and products, which degree,
    which rank of K and which ridge is chosen on validation data, such that the file fits.
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
            output without. What lies outside the span stays and takes its bytes. A list of pairs:
            a block for each, fitted one after another, the later ones on what the earlier deliver;
            they share the budget as the spans share the original's parameters.
        labels: `(n,)` classes of `calibration`, to choose settings by accuracy; without, by what
            the original answers, as for a regression always. Never used in the fit.
        validation: `x_val` or `(x_val, y_val)`; without, some of `calibration` are held out.
        task: "classification" or "regression"; found from outputs and labels where left out. One
            without labels is judged by R² of its outputs unless it is said to be a classifier,
            whose answers alone then count (agreement), and no shift that all logits share.
        score_fn: `score_fn(outputs, labels)`, a scalar, larger is better, in place of accuracy and
            R²; the same object again compiles nothing.
        key: draws held-out samples and those for the Jacobians.
        bits: "float32", or "any" to try projections and K of few bits an entry as well.
        seconds: after which no further choice is tried; the best so far is returned, and the report
            says how much was left out.
        spans: "search" to try several pairs of cuts, beginning with the whole network; not with
            `at`.

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
    check_extras(bits, seconds, spans, at)
    clock = Clock(seconds)
    problem = pose("koopman", model, calibration, budget, labels, validation, key, task, score_fn)
    if problem.is_met:
        return untouched("koopman", problem)
    if pairs_of(at) is not None:
        return _account_several(problem, several(problem, pairs_of(at), bits, clock, key))
    made: list[Fitted] = []
    small: BudgetTooSmall | None = None
    skipped = 0
    for ends in candidates(problem) if spans else [at]:
        if made and clock.over():
            skipped += 1
            continue
        try:
            job = on_span("koopman", problem, ends, key)
        except BudgetTooSmall as error:  # another span may leave less of the original in the file
            small = small or error
            continue
        made.append(fit(job, bits, clock))
    if not made:
        raise small or AssertionError("no span was tried")
    best = max(made, key=lambda fitted: fitted.built.score)
    tried = sum(fitted.found.tried for fitted in made)
    skipped += sum(fitted.found.skipped for fitted in made)
    found = dataclasses.replace(best.found, tried=tried, skipped=skipped)
    return account("koopman", best.job, found, best.built)


def _account_several(problem: Any, made: tuple[Any, list[Fitted], Any]) -> Compressed:
    model, blocks, score = made
    settings: dict[str, Any] = {"at": [list(fitted.job.ends) for fitted in blocks]}
    for number, (job, _, built) in enumerate(blocks):
        settings[f"span {number}"] = job.span.reading() | built.setting.as_dict(job.span.d)
    return finish(
        model, method="koopman", budget=problem.budget, original_bytes=problem.original_bytes,
        settings=settings, why=f"each span by the best validation {problem.measure}, in order",
        candidates=sum(fitted.found.tried for fitted in blocks),
        result=max(fitted.built.code for fitted in blocks), **problem.account(score),
    )  # fmt: skip


def account(
    method: str, job: Job, found: Found, built: Built, *, why: str | None = None, **chosen: Any
) -> Compressed:
    """The account of a block.

    Args:
        method, job, found, built: as they are.
        why: in place of the sentence on the closed form.
        chosen: further settings.
    """
    problem, span, setting = job.problem, job.span, built.setting
    advice, code = [], built.code
    unused = export.stored_bytes(built.model) < 0.8 * problem.limit
    if setting.observables * FEW > span.count or (unused and found.limited):
        code = UNDERDETERMINED
        advice.append(
            f"{span.count} calibration samples are few: the dictionary was kept to "
            f"{setting.observables} observables and the ridge set to {setting.ridge:g} of their "
            "number; give more samples, which need no labels"
        )
    if found.skipped:
        advice.append(f"the time was over with {found.skipped} passes of the search left out")
    return finish(
        built.model,
        method=method,
        budget=problem.budget,
        original_bytes=problem.original_bytes,
        settings={"at": list(job.ends), **span.reading(), **setting.as_dict(span.d), **chosen},
        why=why
        or (
            f"of {found.tried} settings that fit, the best validation {problem.measure}; "
            f"directions from the {setting.directions.name} metric"
        ),
        candidates=found.tried,
        result=code,
        advice=tuple(advice),
        **problem.account(built.score),
    )
