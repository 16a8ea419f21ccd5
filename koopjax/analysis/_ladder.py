"""How nonlinear is a span: every dictionary and every rank in its place, measured."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from koopjax._core import expected
from koopjax.analysis._dictionaries import Snapshots, build, default_dictionaries
from koopjax.analysis._fit_all import Fitting, fit_all
from koopjax.analysis._flow import Flow
from koopjax.analysis._measure import assemble
from koopjax.analysis._rungs import Ladder
from koopjax.analysis._span import Span, prepare, taken

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
    dictionaries: Mapping[str, Any] | None = None,
    ranks: Sequence[int] = RANKS,
    logits: bool = True,
    tolerance: float = 0.003,
    stored: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
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
        dictionaries: name → observables, or → a function of `Snapshots` that returns them; the
            `default_dictionaries()` if left out. In order of richness.
        ranks: of the rank ladder; those beyond a matrix's own rank are left out.
        logits: whether to add the rungs that map to the output itself.
        tolerance: accuracy that the sentence lets go of.
        stored: whether to measure the bytes of each rung's file.
        progress: called as `progress(done, total, what)`.
        **settings: `at`, `task`, `score_fn`, `metric`, `sample_axes`, `batch_size` of `prepare`;
            and of the fits:
            `alphas`, ridges to choose from, relative to the mean squared column norm;
            `choose`, "kl" (the least divergence from the original on `x_val`) or "accuracy";
            `choices`, ridges that are chosen already, the `.choices` of another ladder;
            `refit`, whether to fit the chosen ridge anew on `x_train` and `x_val` together (True);
            `weights`, `(n,)` of the training samples, not negative;
            `accumulate_dtype` of the sums, float64 where the backend has it: float32 is several
            times faster and shows in the result codes;
            `memory_limit`, bytes for the statistics, see `edmd.accumulate`.

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
    _check_ranks(ranks)
    own, fitting = taken(settings, Fitting)
    span = prepare(model, x_train, x_val, y_val, x_test, y_test, **own)
    return ladder_of(
        span, key=key, dictionaries=dictionaries, ranks=ranks, logits=logits, tolerance=tolerance,
        stored=stored, progress=progress, **fitting,
    )  # fmt: skip


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
        key, dictionaries, ranks, logits, tolerance, stored, progress, **fitting: as of `ladder`.

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
    _check_ranks(ranks)
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


def _check_ranks(ranks: Sequence[int]) -> None:
    if any(int(rank) != rank or rank < 1 for rank in ranks):
        raise expected("ranks of at least 1", f"{tuple(ranks)}")
