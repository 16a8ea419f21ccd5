"""How nonlinear is a span: every dictionary and every rank in its place, measured."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import export, observables, surgery
from koopjax._core import expected, has_float64
from koopjax.analysis._dictionaries import Snapshots, build, default_dictionaries
from koopjax.analysis._fits import (
    Fit,
    Forms,
    accumulate,
    encode,
    forms_of,
    leading_part,
    result_of,
    solve,
    sources,
)
from koopjax.analysis._flow import Chain, Flow, flow
from koopjax.analysis._metric import METRICS, output_metric
from koopjax.analysis._metrics import check_labels, check_task, evaluate, score_ranks, states
from koopjax.analysis._rungs import Ladder, Rung, logits_name, make_block

#: Ridges that are tried, in units of the mean squared column norm of the dictionary.
ALPHAS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RANKS = (1, 2, 4, 6, 8, 9, 10, 12, 16, 24, 32)
#: Every twelfth training sample chooses the ridge where there are no validation samples.
HOLD_OUT = 12


@dataclasses.dataclass(frozen=True)
class _Setting:
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


def ladder(
    model: Any,
    x_train: Any,
    x_val: Any = None,
    y_val: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    *,
    key: Array,
    at: Any = None,
    dictionaries: Mapping[str, Any] | None = None,
    ranks: Sequence[int] = RANKS,
    logits: bool = True,
    tolerance: float = 0.003,
    alphas: Sequence[float] = ALPHAS,
    choose: str = "kl",
    choices: Mapping[str, float] | None = None,
    refit: bool = True,
    task: str = "classification",
    score_fn: Callable[[Array, Array], Array] | None = None,
    metric: Any = None,
    weights: Any = None,
    sample_axes: Any = None,
    stored: bool = True,
    batch_size: int = 4096,
    accumulate_dtype: Any = None,
    memory_limit: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Ladder:
    """Replace a span by Koopman matrices on ever richer dictionaries, and by their truncations.

    `Ψ(x) K ≈ y` for the states x before and y after the span. The rungs: the identity and the mean
    (nulls), then each dictionary with its full K, with K to the output itself ("to the logits"),
    and with K cut to each rank by its plain singular values ("svd") and by reduced-rank regression
    in the metric of the model's output ("output").

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` or a callable
            pytree.
        x_train: `(n, ...)` inputs that K is fitted on; no labels are used.
        x_val: inputs on which the ridge of each dictionary is chosen; every twelfth training
            sample where left out.
        y_val: their labels, only for `choose="accuracy"`.
        x_test: inputs on which the rungs are measured.
        y_test: their labels; without, rungs have agreement and divergence but no accuracy.
        key: random key, for centres and random features.
        at: two cuts `(a, b)`; the middle layers if left out (`surgery.middle`).
        dictionaries: name → observables, or → a function of `Snapshots` that returns them; the
            `default_dictionaries()` if left out. In order of richness.
        ranks: of the rank ladder; those beyond a matrix's own rank are left out.
        logits: whether to add the rungs that map to the output itself.
        tolerance: accuracy that the sentence lets go of.
        alphas: ridges to choose from, relative to the mean squared column norm.
        choose: "kl" (the least divergence from the original on `x_val`) or "accuracy".
        choices: ridges that are chosen already, the `.choices` of another ladder.
        refit: fit the chosen ridge anew on `x_train` and `x_val` together.
        task: "classification" or "regression" (R² and squared errors; see `evaluate`).
        score_fn: stands in for the accuracy, see `evaluate`.
        metric: `(q, q)` metric on the states after the span, or one of "output", "centred",
            "softmax" (see `output_metric`); "centred" for a classification, else "output".
        weights: `(n,)` weights of the training samples, not negative.
        sample_axes: how states that are no vectors are read, as in `surgery.to_rows`.
        stored: whether to measure the bytes of each rung's file.
        batch_size: samples of one forward pass.
        accumulate_dtype: dtype of the sums; float64 where the backend has it. float32 is several
            times faster and shows in the result codes.
        memory_limit: bytes for the statistics, see `edmd.accumulate`.
        progress: called as `progress(done, total, what)`.

    Returns:
        A `Ladder`.

    Numerics:
        One pass over the data for each family of nested dictionaries answers all of its ridges,
        targets, truncations and ranks: `2 n p²` operations, `p²` numbers. Ranks are masks: nothing
        compiles anew for another rank, nor for another model of the same structure.

    Raises:
        ValueError: wrong shapes, no samples, NaN, unknown names, ranks below 1, a dictionary too
            large for memory.

    Reference: Sugishita, Kinjo & Ohkubo (2024), arXiv 2402.11740 (Koopman matrices in place of
        layers, and their singular values).
    """
    _check(x_test, ranks, alphas, choose, y_val, task, metric)
    at = _cuts(model, x_train, at)
    parts = surgery.split(model, x_train[:2], at)
    run = lambda x, name: flow(parts, x, name, sample_axes, batch_size)
    train, test = run(x_train, "x_train"), run(x_test, "x_test")
    val = None if x_val is None else run(x_val, "x_val")
    check_labels(y_test, test.output.shape[0], task)
    if weights is not None and np.shape(weights) != (train.before.shape[0],):
        raise expected(f"weights of shape ({train.before.shape[0]},)", f"{np.shape(weights)}")
    if val is None and choices is None:
        train, val, weights = _hold_out(train, weights)
    metric_after, metric_before = _metrics(parts, train, metric, task, sample_axes)
    setting = _Setting(
        model, _example(x_train), at, parts[2], test, None if y_test is None else jnp.asarray(y_test),
        metric_after, task, score_fn, sample_axes, tuple(sorted(set(ranks))), stored,
    )  # fmt: skip
    snapshots = Snapshots(train.before, train.after, metric_before, key)
    psis = build(default_dictionaries() if dictionaries is None else dictionaries, snapshots)
    direct = logits and train.output.ndim == 2 and train.output.shape[0] == train.before.shape[0]
    fits = _fit_all(
        psis, train, val, setting, alphas, choices, choose, y_val, refit, weights, direct,
        accumulate_dtype, memory_limit, progress,
    )  # fmt: skip
    return _assemble(setting, fits, _nulls(setting, train), tolerance)


def _check(x_test, ranks, alphas, choose, y_val, task, metric) -> None:
    check_task(task)
    if x_test is None:
        raise expected("x_test, the samples that rungs are measured on", "none")
    if any(int(rank) != rank or rank < 1 for rank in ranks):
        raise expected("ranks of at least 1", f"{tuple(ranks)}")
    if not len(alphas) or any(not alpha > 0 for alpha in alphas):
        raise expected("at least one ridge, all above 0", f"{tuple(alphas)}", "alphas=(1e-3,)")
    if choose not in ("kl", "accuracy"):
        raise expected("choose='kl' or 'accuracy'", repr(choose))
    if choose == "accuracy" and y_val is None:
        raise expected("y_val to choose by accuracy", "none", "choose='kl'")
    if isinstance(metric, str) and metric not in METRICS:
        raise expected(f"a metric among {', '.join(map(repr, METRICS))}, or a matrix", repr(metric))


def _cuts(model: Any, x: Any, at: Any) -> tuple[str, str]:
    if not hasattr(x, "shape") or len(x.shape) < 2 or x.shape[0] == 0:
        raise expected("x_train: samples (n, ...) with n > 0", f"{getattr(x, 'shape', type(x))}")
    if at is None:
        return surgery.middle(model, x[:2])
    cuts = surgery.cut_points(model, x[:2])
    first, last = at
    name = lambda cut: cut if cut in ("input", "output") else surgery.find(cuts, cut).name
    return name(first), name(last)


def _example(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, *x.shape[1:]), jnp.asarray(x[:1]).dtype)


def _hold_out(train: Flow, weights: Any) -> tuple[Flow, Flow, Any]:
    """Every twelfth sample as validation; samples stay whole where they have many positions."""
    n = train.output.shape[0]
    if n < 2:
        raise expected("two training samples or more", f"{n}")
    held = np.arange(n) % HOLD_OUT == min(HOLD_OUT, n) - 1
    rows = np.repeat(held, train.before.shape[0] // n)
    part = lambda s, r: Flow(train.before[r], train.after[r], train.output[s], train.shapes)
    kept = None if weights is None else np.asarray(weights)[~rows]
    return part(~held, ~rows), part(held, rows), kept


def _metrics(parts, train: Flow, metric: Any, task: str, sample_axes: Any) -> tuple[Any, Any]:
    """Metrics on the states after and before the span."""
    _, span, tail = parts
    kind = metric if isinstance(metric, str) else "centred" if task == "classification" else "output"
    whole = lambda rows, shape: states(rows, shape, sample_axes)
    measure = lambda f, s: output_metric(f, s, kind=kind, sample_axes=sample_axes)
    before = measure(Chain(span, tail), whole(train.before, train.shapes[0]))
    if metric is None or isinstance(metric, str):
        return measure(tail, whole(train.after, train.shapes[1])), before
    metric, q = jnp.asarray(metric), train.after.shape[1]
    if metric.shape != (q, q):
        raise expected(f"a metric of shape {(q, q)}", f"{metric.shape}")
    return metric, before


def _fit_all(
    psis, train, val, setting, alphas, choices, choose, y_val, refit, weights, direct, dtype, limit,
    progress,
) -> dict[str, Fit]:  # fmt: skip
    """Every dictionary for every target, from one pass a family of nested ones."""
    q = train.after.shape[1]
    targets = lambda f: jnp.concatenate([f.after, f.output], axis=1) if direct else f.after
    columns = {"state": slice(0, q)}
    if direct:
        columns["logits"] = slice(q, q + train.output.shape[1])
    origin = sources(psis, train.before)
    sums = dtype or (jnp.float64 if has_float64() else train.before.dtype)
    fits, done = {}, 0
    for source in dict.fromkeys(origin.values()):
        gather = lambda f, w, psi=psis[source]: accumulate(psi, f.before, targets(f), w, dtype, limit)
        first = gather(train, weights)
        both = first if val is None or not refit else first.merge(gather(val, None))
        for name in [n for n in psis if origin[n] == source]:
            if progress is not None:
                progress(done, len(psis), name)
            psi, done = psis[name], done + 1
            size = psi.size(train.before.shape[1])
            part = leading_part(first, size)
            alpha = _chosen(choices, name, columns)
            if alpha is None:
                alpha = _choose(part, psi, val, columns, setting, alphas, choose, y_val)
            part = leading_part(both, size)
            solved: dict[float, Any] = {}
            for target, cols in columns.items():
                a = alpha[target]
                if a not in solved:
                    k = solve(part, a)
                    solved[a] = (k, *result_of(part, k, a, sums))
                k, condition, code = solved[a]
                metric = setting.metric if target == "state" else jnp.eye(cols.stop - cols.start)
                forms = forms_of(part, k, cols, metric, train.before.dtype)
                label = name if target == "state" else logits_name(name)
                fits[label] = Fit(psi, target, a, forms, condition, code)
    if progress is not None:
        progress(done, len(psis), "done")
    order = [n if t == "state" else logits_name(n) for n in psis for t in columns]
    return {label: fits[label] for label in order}


def _chosen(choices: Any, name: str, columns: Any) -> dict[str, float] | None:
    if choices is None:
        return None
    labels = {t: name if t == "state" else logits_name(name) for t in columns}
    missing = [label for label in labels.values() if label not in choices]
    if missing:
        raise expected(f"a ridge for {missing[0]!r} among the choices", f"{sorted(choices)}")
    return {t: float(choices[label]) for t, label in labels.items()}


def _choose(stats, psi, val, columns, setting, alphas, choose, y_val) -> dict[str, float]:
    """For each target the ridge of the least divergence (or most accuracy) on validation samples."""
    labels = None if choose == "kl" else y_val
    best: dict[str, tuple[float, float]] = {}
    for alpha in alphas:
        k = solve(stats, float(alpha))
        rows = encode(psi, k.astype(val.before.dtype), val.before)
        for target, cols in columns.items():
            part = rows[:, cols]
            output = part
            if target == "state":
                output = _tail(setting.tail, part, val.shapes[1], setting.sample_axes)
            found = evaluate(
                output, val.output, labels, task=setting.task, score_fn=setting.score_fn
            )
            loss = found["kl"] if choose == "kl" else -found["accuracy"]
            loss = loss if np.isfinite(loss) else np.inf
            if target not in best or loss < best[target][0]:
                best[target] = (loss, float(alpha))
    return {target: alpha for target, (_, alpha) in best.items()}


def _tail(tail: Any, rows: Array, shape: tuple[int, ...], sample_axes: Any) -> Array:
    return _apply(tail, states(rows, shape, sample_axes))


@jax.jit
def _apply(part: Any, x: Array) -> Array:
    return part(x)


def _nulls(setting: _Setting, train: Flow) -> dict[str, tuple[Any, Any]]:
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


def _assemble(setting: _Setting, fits: dict[str, Fit], nulls: Any, tolerance: float) -> Ladder:
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
    output = np.asarray(output)
    return output.argmax(-1) if task == "classification" else output


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


def _climb(setting: _Setting, name: str, fit: Fit) -> tuple[list[Rung], Array]:
    """All rungs of one fit: the full matrix, then its ranks by both truncations."""
    most = fit.forms.svd[1].shape[0]
    ranks = [r for r in setting.ranks if r < most]
    x = setting.test.before
    extra = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(fit.psi))
    p, q = fit.forms.matrix.shape
    # The plain factors at full rank are K to rounding: its rung comes last of their list.
    svd, output = _measure(
        setting, encode(fit.psi, fit.forms.svd[0], x), fit.forms.svd[1], [*ranks, most], fit.target
    )
    made = [_rung(setting, name, None, "none", fit, fit.psi, svd[-1], extra + p * q, False)]
    if not ranks:
        return made, output
    best, _ = _measure(
        setting, encode(fit.psi, fit.forms.output[0], x), fit.forms.output[1], ranks, fit.target
    )
    for i, rank in enumerate(ranks):
        numbers = extra + rank * (p + q)
        rung = _rung(setting, name, rank, "output", fit, fit.psi, best[i], numbers, False)
        same = dataclasses.replace(rung, truncation="svd", **_named(svd[i]))
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
                setting.model, setting.example, (setting.at[0], stop), block,
                sample_axes=setting.sample_axes,
            )  # fmt: skip
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
        alpha=None if null else fit.alpha,
        condition=1.0 if fit is None else fit.condition,
        result=0 if fit is None else fit.result,
        **_named(scores),
    )
