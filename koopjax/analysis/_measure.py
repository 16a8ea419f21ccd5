"""Measuring the rungs: scores, numbers and bytes of every replacement."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import models, observables
from koopjax.analysis._fits import Fit, Forms, encode
from koopjax.analysis._metrics import score_ranks
from koopjax.analysis._rungs import Ladder, Rung, make_block
from koopjax.analysis._span import Span


def _nulls(span: Span) -> dict[str, tuple[Any, Any]]:
    """Rows that the nulls predict for the test samples, and what their blocks are made from."""
    train, test = span.train, span.test
    q = test.after.shape[1]
    found = {}
    if test.shapes[0] == test.shapes[1]:
        found["identity"] = (test.before, None)
    mean = jnp.mean(train.after, axis=0)
    rows = jnp.broadcast_to(mean[None, :], test.after.shape)
    one = jnp.ones((1, 1), mean.dtype)
    forms = Forms(mean[None, :], jnp.linalg.norm(mean)[None], (one, mean[None]), (one, mean[None]))
    fit = Fit(observables.Monomials(0), "state", 0.0, forms, 1.0, 0)
    found["mean"] = (rows, fit) if q else (rows, None)
    return found


def assemble(
    span: Span, fits: dict[str, Fit], ranks: tuple[int, ...], stored: bool, tolerance: float
) -> Ladder:
    """Measure every rung, each fit at each rank, and put the ladder together.

    Args:
        span: prepared.
        fits: by name, in order of richness.
        ranks: ascending.
        stored: whether to measure bytes.
        tolerance: of the finding.
    """
    answers = {"original": _answers(span.test.output, span.task)}
    nulls = _nulls(span)
    rungs = []
    for name, (rows, fit) in nulls.items():
        fits = fits if fit is None else {name: fit, **fits}
        scores, output = _measure(span, rows, jnp.eye(rows.shape[1]), [rows.shape[1]], "state")
        answers[name] = _answers(output, span.task)
        psi = observables.Identity() if fit is None else fit.psi
        numbers = 0 if fit is None else rows.shape[1]
        rungs.append(_rung(span, stored, name, None, "none", fit, psi, scores[0], numbers, True))
    if "identity" in nulls:
        fits = {"identity": Fit(observables.Identity(), "state", 0.0, None, 1.0, 0), **fits}
    for name, fit in fits.items():
        if name in nulls:
            continue
        made, output = _climb(span, ranks, stored, name, fit)
        rungs.extend(made)
        answers[name] = _answers(output, span.task)
    real = {name: fit for name, fit in fits.items() if name not in nulls}
    return Ladder(
        rungs, span.original(stored), span.at, span.task, tolerance,
        {name: fit.alpha for name, fit in real.items()},
        {name: np.asarray(fit.forms.values) for name, fit in real.items()},
        answers, None if span.labels is None else np.asarray(span.labels),
        span.model, span.example, fits, span.sample_axes,
    )  # fmt: skip


def _answers(output: Any, task: str) -> np.ndarray:
    return np.asarray(models.answers(output) if task == "classification" else output)


def _measure(span, coded, right, ranks, target) -> tuple[list[dict], Array]:
    """Scores of the given ranks of one factored matrix, and the output at the last."""
    state = target == "state"
    found, output = score_ranks(
        span.parts[2] if state else None,
        coded,
        right,
        jnp.asarray(ranks, jnp.int32),
        span.test.after if state else span.test.output,
        span.test.output,
        span.labels,
        shape=span.test.shapes[1],
        sample_axes=span.sample_axes,
        task=span.task,
        score_fn=span.score_fn,
    )
    host = {name: np.asarray(values) for name, values in found.items()}
    return [{name: float(v[i]) for name, v in host.items()} for i in range(len(ranks))], output


def _climb(
    span: Span, ranks: tuple[int, ...], stored: bool, name: str, fit: Fit
) -> tuple[list[Rung], Array]:
    """All rungs of one fit: the full matrix, then its ranks by both truncations."""
    most = fit.forms.svd[1].shape[0]
    kept = [r for r in ranks if r < most]
    x = span.test.before
    extra = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(fit.psi))
    p, q = fit.forms.matrix.shape
    # One pass over Ψ serves both truncations; the plain factors at full rank are K to rounding.
    lefts = [np.asarray(fit.forms.svd[0]), np.asarray(fit.forms.output[0])]
    coded = np.asarray(encode(fit.psi, np.concatenate(lefts, axis=1), x))
    plain, output = _measure(span, coded[:, :most], fit.forms.svd[1], [*kept, most], fit.target)
    best, _ = _measure(span, coded[:, most:], fit.forms.output[1], [*kept, most], fit.target)
    made = [_rung(span, stored, name, None, "none", fit, fit.psi, plain[-1], extra + p * q)]
    for i, rank in enumerate(kept):
        numbers = extra + rank * (p + q)
        rung = _rung(span, stored, name, rank, "output", fit, fit.psi, best[i], numbers)
        same = dataclasses.replace(rung, truncation="svd", **_named(plain[i]))
        made.extend([same, rung])
    return made, output


def _named(scores: dict[str, float]) -> dict[str, Any]:
    return {"accuracy": scores.get("accuracy"), **scores}


def _rung(span, stored, name, rank, truncation, fit, psi, scores, numbers, null=False) -> Rung:
    size = None
    if stored:
        block = psi if fit is None else make_block(fit, rank, truncation)
        stop = "output" if fit is not None and fit.target == "logits" else None
        size = span.stored_bytes(block, stop)
    return Rung(
        dictionary=name,
        rank=rank,
        truncation=truncation,
        target="state" if fit is None else fit.target,
        null=null,
        observables=psi.size(span.test.before.shape[1]),
        numbers=numbers,
        stored_bytes=size,
        alpha=None if null or fit is None else fit.alpha,
        condition=1.0 if fit is None else fit.condition,
        result=0 if fit is None else fit.result,
        **_named(scores),
    )
