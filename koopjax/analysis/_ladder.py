"""How nonlinear is a span: every dictionary and every rank in its place, measured."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import models, surgery
from koopjax._core import check_metric, expected
from koopjax.analysis._dictionaries import Snapshots, build, default_dictionaries
from koopjax.analysis._fit_all import Plan, fit_all
from koopjax.analysis._flow import Chain, Flow, flow
from koopjax.analysis._measure import Setting, assemble, nulls_of
from koopjax.analysis._metric import METRICS, output_metric
from koopjax.analysis._metrics import states
from koopjax.analysis._rungs import Ladder

#: Ridges that are tried, in units of the mean squared column norm of the dictionary.
ALPHAS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RANKS = (1, 2, 4, 6, 8, 9, 10, 12, 16, 24, 32)
#: Every twelfth training sample chooses the ridge where there are no validation samples.
HOLD_OUT = 12


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
    task: str | None = None,
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
        task: "classification" or "regression" (R² and squared errors; see `evaluate`). Where left
            out, integer labels that name the outputs say classification, other labels and none
            regression (`models.read_task`).
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
            large for memory, labels that do not fit the output or leave the task open.

    Reference: Sugishita, Kinjo & Ohkubo (2024), arXiv 2402.11740 (Koopman matrices in place of
        layers, and their singular values).
    """
    _check(x_test, ranks, alphas, choose, x_val, y_val, metric)
    at = cuts_of(model, x_train, at)
    parts = surgery.split(model, x_train[:2], at)
    run = lambda x, name: flow(parts, x, name, sample_axes, batch_size)
    train, test = run(x_train, "x_train"), run(x_test, "x_test")
    val = None if x_val is None else run(x_val, "x_val")
    read = functools.partial(models.read_task, score_fn=score_fn)
    labels = None
    if y_test is not None or y_val is None:
        task, labels = read(test.output, y_test, task, name="y_test")
    if val is not None and y_val is not None:
        task, y_val = read(val.output, y_val, task, name="y_val")
    assert task is not None
    if weights is not None and np.shape(weights) != (train.before.shape[0],):
        raise expected(f"weights of shape ({train.before.shape[0]},)", f"{np.shape(weights)}")
    if val is None and choices is None:
        train, val, weights = hold_out(train, weights)
    metric_after, metric_before = metrics_of(parts, train, metric, task, sample_axes)
    setting = Setting(
        model, example_of(x_train), at, parts[2], test, labels, metric_after, task, score_fn,
        sample_axes, tuple(sorted(set(ranks))), stored,
    )  # fmt: skip
    snapshots = Snapshots(train.before, train.after, metric_before, key)
    psis = build(default_dictionaries() if dictionaries is None else dictionaries, snapshots)
    columns = _columns(train) if logits else {"state": slice(0, train.after.shape[1])}
    plan = Plan(
        alphas, choices, choose, y_val, refit, weights, accumulate_dtype, memory_limit, progress
    )
    fits = fit_all(psis, train, val, columns, setting, plan)
    return assemble(setting, fits, nulls_of(setting, train), tolerance)


def _columns(train: Flow) -> dict[str, slice]:
    """Where the state and the output are among the targets; no output that is one a position."""
    q = train.after.shape[1]
    if train.output.ndim != 2 or train.output.shape[0] != train.before.shape[0]:
        return {"state": slice(0, q)}
    return {"state": slice(0, q), "logits": slice(q, q + train.output.shape[1])}


def _check(x_test, ranks, alphas, choose, x_val, y_val, metric) -> None:
    if x_test is None:
        raise expected("x_test, the samples that rungs are measured on", "none")
    if any(int(rank) != rank or rank < 1 for rank in ranks):
        raise expected("ranks of at least 1", f"{tuple(ranks)}")
    if not len(alphas) or any(not alpha > 0 for alpha in alphas):
        raise expected("at least one ridge, all above 0", f"{tuple(alphas)}", "alphas=(1e-3,)")
    if choose not in ("kl", "accuracy"):
        raise expected("choose='kl' or 'accuracy'", repr(choose))
    if y_val is not None and x_val is None:
        raise expected("x_val, the samples of y_val", "y_val alone", "both, or none of them")
    if choose == "accuracy" and y_val is None:
        raise expected("y_val to choose by accuracy", "none", "choose='kl'")
    if isinstance(metric, str) and metric not in METRICS:
        raise expected(f"a metric among {', '.join(map(repr, METRICS))}, or a matrix", repr(metric))


def cuts_of(model: Any, x: Any, at: Any) -> tuple[str, str]:
    """Names of the two cuts of a span; the middle layers where none are given."""
    if not hasattr(x, "shape") or len(x.shape) < 2 or x.shape[0] == 0:
        raise expected("x_train: samples (n, ...) with n > 0", f"{getattr(x, 'shape', type(x))}")
    if at is None:
        return surgery.middle(model, x[:2])
    cuts = surgery.cut_points(model, x[:2])
    first, last = at
    name = lambda cut: cut if cut in ("input", "output") else surgery.find(cuts, cut).name
    return name(first), name(last)


def example_of(x: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a batch of two, to trace with."""
    return jax.ShapeDtypeStruct((2, *x.shape[1:]), jnp.asarray(x[:1]).dtype)


def hold_out(train: Flow, weights: Any) -> tuple[Flow, Flow, Any]:
    """Every twelfth sample as validation; samples stay whole where they have many positions."""
    n = train.output.shape[0]
    if n < 2:
        raise expected("two training samples or more", f"{n}")
    held = np.arange(n) % HOLD_OUT == min(HOLD_OUT, n) - 1
    rows = np.repeat(held, train.before.shape[0] // n)
    part = lambda s, r: Flow(train.before[r], train.after[r], train.output[s], train.shapes)
    kept = None if weights is None else np.asarray(weights)[~rows]
    return part(~held, ~rows), part(held, rows), kept


def metrics_of(parts, train: Flow, metric: Any, task: str, sample_axes: Any) -> tuple[Any, Any]:
    """Metrics on the states after and before the span."""
    _, span, tail = parts
    # What a softmax does not see is a common shift of several logits.
    several = train.output.ndim > 1 and train.output.shape[-1] > 1
    default = "centred" if task == "classification" and several else "output"
    kind = metric if isinstance(metric, str) else default
    whole = lambda rows, shape: states(rows, shape, sample_axes)
    measure = lambda f, s: output_metric(f, s, kind=kind, sample_axes=sample_axes)
    before = measure(Chain(span, tail), whole(train.before, train.shapes[0]))
    if metric is None or isinstance(metric, str):
        return measure(tail, whole(train.after, train.shapes[1])), before
    check_metric("metric", metric, train.after.shape[1])
    return jnp.asarray(metric), before
