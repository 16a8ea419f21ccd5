"""Measuring the rungs: scores, numbers and bytes of every replacement."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import export, models, observables, surgery
from koopjax.analysis._fits import Fit, Forms, encode
from koopjax.analysis._flow import Flow
from koopjax.analysis._metrics import evaluate, score_ranks
from koopjax.analysis._rungs import Ladder, Rung, make_block


@dataclasses.dataclass(frozen=True)
class Setting:
    """What stays the same for all rungs."""

    model: Any
    example: Any
    at: tuple[str, str]
    tail: Any
    test: Flow
    labels: Any
    metric: Any
    task: str
    score_fn: Any
    sample_axes: Any
    ranks: tuple[int, ...]
    stored: bool


def nulls_of(setting: Setting, train: Flow) -> dict[str, tuple[Any, Any]]:
    """Rows that the nulls predict for the test samples, and what their blocks are made from."""
    test = setting.test
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


def assemble(setting: Setting, fits: dict[str, Fit], nulls: Any, tolerance: float) -> Ladder:
    """Measure every rung and put the ladder together."""
    answers = {"original": _answers(setting.test.output, setting.task)}
    rungs = []
    for name, (rows, fit) in nulls.items():
        fits = fits if fit is None else {name: fit, **fits}
        scores, output = _measure(setting, rows, jnp.eye(rows.shape[1]), [rows.shape[1]], "state")
        answers[name] = _answers(output, setting.task)
        psi = observables.Identity() if fit is None else fit.psi
        numbers = 0 if fit is None else rows.shape[1]
        rungs.append(_rung(setting, name, None, "none", fit, psi, scores[0], numbers, True))
    if "identity" in nulls:
        fits = {"identity": Fit(observables.Identity(), "state", 0.0, None, 1.0, 0), **fits}
    for name, fit in fits.items():
        if name in nulls:
            continue
        made, output = _climb(setting, name, fit)
        rungs.extend(made)
        answers[name] = _answers(output, setting.task)
    whole = evaluate(
        setting.test.output, setting.test.output, setting.labels, task=setting.task,
        score_fn=setting.score_fn,
    )  # fmt: skip
    original = {
        "accuracy": whole.get("accuracy"),
        "task": setting.task,
        "parameters": surgery.cut_points(setting.model, setting.example)[-1].parameters,
        "stored_bytes": export.stored_bytes(setting.model) if setting.stored else None,
    }
    real = {name: fit for name, fit in fits.items() if name not in nulls}
    return Ladder(
        rungs, original, setting.at, setting.task, tolerance,
        {name: fit.alpha for name, fit in real.items()},
        {name: np.asarray(fit.forms.values) for name, fit in real.items()},
        answers, None if setting.labels is None else np.asarray(setting.labels),
        setting.model, setting.example, fits, setting.sample_axes,
    )  # fmt: skip


def _answers(output: Any, task: str) -> np.ndarray:
    return np.asarray(models.answers(output) if task == "classification" else output)


def _measure(setting, coded, right, ranks, target) -> tuple[list[dict], Array]:
    """Scores of the given ranks of one factored matrix, and the output at the last."""
    state = target == "state"
    found, output = score_ranks(
        setting.tail if state else None,
        coded,
        right,
        jnp.asarray(ranks, jnp.int32),
        setting.test.after if state else setting.test.output,
        setting.test.output,
        setting.labels,
        shape=setting.test.shapes[1],
        sample_axes=setting.sample_axes,
        task=setting.task,
        score_fn=setting.score_fn,
    )
    host = {name: np.asarray(values) for name, values in found.items()}
    return [{name: float(v[i]) for name, v in host.items()} for i in range(len(ranks))], output


def _climb(setting: Setting, name: str, fit: Fit) -> tuple[list[Rung], Array]:
    """All rungs of one fit: the full matrix, then its ranks by both truncations."""
    most = fit.forms.svd[1].shape[0]
    ranks = [r for r in setting.ranks if r < most]
    x = setting.test.before
    extra = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(fit.psi))
    p, q = fit.forms.matrix.shape
    # One pass over Ψ serves both truncations; the plain factors at full rank are K to rounding.
    lefts = [np.asarray(fit.forms.svd[0]), np.asarray(fit.forms.output[0])]
    coded = np.asarray(encode(fit.psi, np.concatenate(lefts, axis=1), x))
    plain, output = _measure(setting, coded[:, :most], fit.forms.svd[1], [*ranks, most], fit.target)
    best, _ = _measure(setting, coded[:, most:], fit.forms.output[1], [*ranks, most], fit.target)
    made = [_rung(setting, name, None, "none", fit, fit.psi, plain[-1], extra + p * q, False)]
    for i, rank in enumerate(ranks):
        numbers = extra + rank * (p + q)
        rung = _rung(setting, name, rank, "output", fit, fit.psi, best[i], numbers, False)
        same = dataclasses.replace(rung, truncation="svd", **_named(plain[i]))
        made.extend([same, rung])
    return made, output


def _named(scores: dict[str, float]) -> dict[str, Any]:
    return {"accuracy": scores.get("accuracy"), **scores}


def _rung(setting, name, rank, truncation, fit, psi, scores, numbers, null) -> Rung:
    stored = None
    if setting.stored:
        block = psi if fit is None else make_block(fit, rank, truncation)
        stop = "output" if fit is not None and fit.target == "logits" else setting.at[1]
        stored = export.stored_bytes(
            surgery.splice(
                setting.model,
                setting.example,
                (setting.at[0], stop),
                block,
                sample_axes=setting.sample_axes,
            )
        )
    return Rung(
        dictionary=name,
        rank=rank,
        truncation=truncation,
        target="state" if fit is None else fit.target,
        null=null,
        observables=psi.size(setting.test.before.shape[1]),
        numbers=numbers,
        stored_bytes=stored,
        alpha=None if null or fit is None else fit.alpha,
        condition=1.0 if fit is None else fit.condition,
        result=0 if fit is None else fit.result,
        **_named(scores),
    )
