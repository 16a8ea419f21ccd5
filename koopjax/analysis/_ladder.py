"""How nonlinear is a span: every dictionary and every rank in its place, measured."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from koopjax import models, observables
from koopjax._core import expected, on_device
from koopjax.analysis._dictionaries import Snapshots, build, default_dictionaries
from koopjax.analysis._fits import Fit, Fitting, Forms, encode, fit_all
from koopjax.analysis._results import Ladder, Rung, make_block
from koopjax.analysis._scores import score_ranks
from koopjax.analysis._span import Flow, Span, prepare, taken

RANKS = (1, 2, 4, 6, 8, 9, 10, 12, 16, 24, 32)


def ladder(
    model: Any,
    x_train: Any,
    x_val: Any = None,
    y_val: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    *,
    key: Array,
    **settings: Any,
) -> Ladder:
    """Replace a span by Koopman matrices on ever richer dictionaries, and by their truncations.

    `Ψ(x) K ≈ y` for the states x before and y after the span. The rungs: the identity and the mean
    (nulls), then each dictionary with its full K, with K to the output itself ("to the logits"),
    and with K cut to each rank by its plain singular values ("svd") and by reduced-rank regression
    in the metric of the model's output ("output").

    Args:
        model, x_train, x_val, y_val, x_test, y_test: as of `prepare`; the ridge of each dictionary
            is chosen on the validation samples, rungs are measured on the test samples.
        key: random key, for centres and random features.
        **settings: `at`, `task`, `score_fn`, `metric`, `sample_axes`, `batch_size` of `prepare`,
            and all of `ladder_of`.

    Returns:
        A `Ladder`.

    Raises:
        ValueError: wrong shapes, no samples, NaN, unknown names, ranks below 1, a dictionary too
            large for memory, labels that do not fit the output or leave the task open.
        TypeError: a setting of another name.

    Reference: Sugishita, Kinjo & Ohkubo (2024), arXiv 2402.11740 (Koopman matrices in place of
        layers, and their singular values).
    """
    own, rest = taken(settings, ladder_of, Fitting)
    span = prepare(model, x_train, x_val, y_val, x_test, y_test, **own)
    return ladder_of(span, key=key, **rest)


def ladder_of(
    span: Span,
    *,
    key: Array,
    dictionaries: Mapping[str, Any] | None = None,
    ranks: Sequence[int] = RANKS,
    logits: bool = True,
    tolerance: float = 0.003,
    stored: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
    **fitting: Any,
) -> Ladder:
    """`ladder` of a span that `prepare` made.

    Args:
        span: prepared, once for this ladder, others and planes.
        key: random key, for centres and random features.
        dictionaries: name → observables, or → a function of `Snapshots` that returns them; the
            `default_dictionaries()` if left out. In order of richness.
        ranks: of the rank ladder; those beyond a matrix's own rank are left out.
        logits: whether to add the rungs that map to the output itself.
        tolerance: accuracy that the sentence lets go of.
        stored: whether to measure the bytes of each rung's file.
        progress: called as `progress(done, total, what)`.
        **fitting: `alphas`, ridges to choose from, relative to the mean squared column norm;
            `choose`, "kl" (the least divergence from the original on `x_val`) or "accuracy";
            `choices`, ridges that are chosen already, the `.choices` of another ladder;
            `refit`, whether to fit the chosen ridge anew on `x_train` and `x_val` together (True);
            `weights`, `(n,)` of the training samples, not negative;
            `accumulate_dtype` of the sums, float64 where the backend has it: float32 is several
            times faster and shows in the result codes;
            `memory_limit`, bytes for the statistics, see `edmd.accumulate`.

    Numerics:
        One pass over the data for each family of nested dictionaries answers all of its ridges,
        targets, truncations and ranks: `2 n p²` operations, `p²` numbers. Ranks are masks: nothing
        compiles anew for another rank, nor for another model of the same structure.

    Raises:
        ValueError: as `ladder`.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from koopjax import analysis, models
        >>> x = jax.random.normal(jax.random.key(0), (90, 3))
        >>> model = models.MLP((3, 4, 4, 2), rngs=nnx.Rngs(0))
        >>> span = analysis.prepare(model, x[:60], x_test=x[60:], task="classification")
        >>> analysis.ladder_of(span, key=jax.random.key(1), ranks=(), stored=False).span
        ('layers.0/relu', 'layers.1/relu')
    """
    if any(int(rank) != rank or rank < 1 for rank in ranks):
        raise expected("ranks of at least 1", f"{tuple(ranks)}")
    how = Fitting(**fitting, progress=progress)
    how.check(span)
    if span.val is None and how.choices is None:
        span, kept = span.held_out(how.weights)
        how = dataclasses.replace(how, weights=kept)
    metric, metric_before = span.metrics()
    snapshots = Snapshots(span.train.before, span.train.after, metric_before, key)
    psis = build(default_dictionaries() if dictionaries is None else dictionaries, snapshots)
    columns = _columns(span.train) if logits else {"state": slice(0, span.train.after.shape[1])}
    fits = fit_all(psis, span, columns, metric, how)
    return assemble(span, fits, tuple(sorted(set(ranks))), stored, tolerance)


def _columns(train: Flow) -> dict[str, slice]:
    """Where the state and the output are among the targets; no output that is one a position."""
    q = train.after.shape[1]
    if train.output.ndim != 2 or train.output.shape[0] != train.before.shape[0]:
        return {"state": slice(0, q)}
    return {"state": slice(0, q), "logits": slice(q, q + train.output.shape[1])}


def _nulls(span: Span) -> dict[str, tuple[Fit, Any]]:
    """What the nulls' blocks are made from, and the rows that they predict for test samples."""
    test, found = span.test, {}
    if test.shapes[0] == test.shapes[1]:
        found["identity"] = Fit(observables.Identity(), "state", 0.0, None, 1.0, 0), test.before
    mean = np.asarray(span.train.after).mean(axis=0, keepdims=True)
    one = np.ones((1, 1), mean.dtype)
    forms = Forms(
        on_device(mean, mean.dtype), np.linalg.norm(mean, axis=1), (one, mean), (one, mean)
    )
    fit = Fit(observables.Monomials(0), "state", 0.0, forms, 1.0, 0)
    return {**found, "mean": (fit, np.broadcast_to(mean, test.after.shape))}


def assemble(
    span: Span, fits: dict[str, Fit], ranks: tuple[int, ...], stored: bool, tolerance: float
) -> Ladder:
    """Measure every rung, each fit (in order of richness) at each rank, into a ladder."""
    nulls, rungs = _nulls(span), []
    outputs = {"original": span.test.output}
    for name, (fit, rows) in nulls.items():
        q = rows.shape[1]
        (scores,), outputs[name] = _measure(span, rows, np.eye(q, dtype=rows.dtype), [q], "state")
        numbers = 0 if fit.forms is None else q
        rungs.append(_rung(span, stored, name, fit, scores, numbers, null=True))
    for name, fit in fits.items():
        made, outputs[name] = _climb(span, ranks, stored, name, fit)
        rungs.extend(made)
    answer = _answers if span.task == "classification" else np.asarray
    return Ladder(
        rungs=rungs, original=span.original(stored), span=span.at, task=span.task,
        tolerance=tolerance, choices={name: fit.alpha for name, fit in fits.items()},
        singular_values={name: np.asarray(fit.forms.values) for name, fit in fits.items()},
        answers={name: np.asarray(answer(output)) for name, output in outputs.items()},
        labels=None if span.labels is None else np.asarray(span.labels), model=span.model,
        example=span.example, fits={**{name: fit for name, (fit, _) in nulls.items()}, **fits},
        sample_axes=span.sample_axes,
    )  # fmt: skip


_answers = jax.jit(models.answers)


def _measure(
    span: Span, coded: Any, right: Any, ranks: Sequence[int], target: str
) -> tuple[list[dict[str, float]], Array]:
    """Scores of the given ranks of one factored matrix, and the output at the last."""
    state = target == "state"
    found, output = score_ranks(
        span.parts[2] if state else None, coded, right, np.asarray(ranks, np.int32),
        span.test.after if state else span.test.output, span.test.output, span.labels,
        shape=span.test.shapes[1], sample_axes=span.sample_axes, task=span.task,
        score_fn=span.score_fn,
    )  # fmt: skip
    host = jax.device_get(found)
    return [{name: float(v[i]) for name, v in host.items()} for i in range(len(ranks))], output


def _climb(
    span: Span, ranks: tuple[int, ...], stored: bool, name: str, fit: Fit
) -> tuple[list[Rung], Array]:
    """All rungs of one fit, the full matrix, then its ranks by both truncations; its output."""
    most = fit.forms.svd[1].shape[0]
    kept = [r for r in ranks if r < most]
    extra = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(fit.psi))
    p, q = fit.forms.matrix.shape
    # One pass over Ψ serves both truncations; the plain factors at full rank are K to rounding.
    lefts = [np.asarray(fit.forms.svd[0]), np.asarray(fit.forms.output[0])]
    coded = encode(fit.psi, np.concatenate(lefts, axis=1), span.test.before)
    plain, output = _measure(span, coded[:, :most], fit.forms.svd[1], [*kept, most], fit.target)
    best, _ = _measure(span, coded[:, most:], fit.forms.output[1], [*kept, most], fit.target)
    made = [_rung(span, stored, name, fit, plain[-1], extra + p * q)]
    for i, rank in enumerate(kept):
        rung = _rung(span, stored, name, fit, best[i], extra + rank * (p + q), rank, "output")
        made += [dataclasses.replace(rung, truncation="svd", **plain[i]), rung]
    return made, output


def _rung(span, stored, name, fit, scores, numbers, rank=None, truncation="none", null=False):
    size = None
    if stored:
        stop = "output" if fit.target == "logits" else None
        size = span.stored_bytes(make_block(fit, rank, truncation), stop)
    return Rung(
        dictionary=name, rank=rank, truncation=truncation, target=fit.target, null=null,
        observables=fit.psi.size(span.test.before.shape[1]), numbers=numbers, stored_bytes=size,
        alpha=None if null else fit.alpha, condition=fit.condition, result=fit.result,
        **{"accuracy": None, **scores},
    )  # fmt: skip
