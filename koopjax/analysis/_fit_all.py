"""Every dictionary for every target, the ridge of each chosen on validation samples."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from koopjax import edmd
from koopjax._core import expected, has_float64
from koopjax.analysis._fits import (
    Fit,
    accumulate,
    encode,
    fit,
    merge,
    solve,
    sources,
)
from koopjax.analysis._flow import Flow
from koopjax.analysis._metrics import evaluate
from koopjax.analysis._rungs import logits_name
from koopjax.analysis._span import Span

#: Ridges that are tried, in units of the mean squared column norm of the dictionary.
ALPHAS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How dictionaries are fitted: keywords of `ladder`, which documents them."""

    alphas: Sequence[float] = ALPHAS
    choices: Mapping[str, float] | None = None
    choose: str = "kl"
    refit: bool = True
    weights: Any = None
    accumulate_dtype: Any = None
    memory_limit: int | None = None
    progress: Callable[[int, int, str], None] | None = None

    def check(self, span: Span) -> None:
        """Raise on a setting out of range, or one that does not go with the span's data."""
        alphas, weights = self.alphas, self.weights
        if not len(alphas) or any(not alpha > 0 for alpha in alphas):
            raise expected("at least one ridge, all above 0", f"{tuple(alphas)}", "alphas=(1e-3,)")
        if self.choose not in ("kl", "accuracy"):
            raise expected("choose='kl' or 'accuracy'", repr(self.choose))
        if self.choose == "accuracy" and span.y_val is None:
            raise expected("y_val to choose by accuracy", "none", "choose='kl'")
        rows = span.train.before.shape[0]
        if weights is not None and np.shape(weights) != (rows,):
            raise expected(f"weights of shape ({rows},)", f"{np.shape(weights)}")


def fit_all(
    psis: Mapping[str, Any], span: Span, columns: dict[str, slice], metric: Any, how: Fitting
) -> dict[str, Fit]:
    """Fit all dictionaries; one pass over the data for each family of nested ones.

    Args:
        psis: name → dictionary, in order of richness.
        span: with samples to fit on, and to choose on (and to fit on in the end) or none.
        columns: target → its columns among all targets: those of the state, then of the output.
        metric: on the states after the span.
        how: ridges, weights, precision.
    """
    train, val = span.train, span.val
    origin = sources(psis, train.before)
    dtype = jnp.dtype(train.before.dtype)
    sums = how.accumulate_dtype or (jnp.float64 if has_float64() else dtype)
    fits: dict[str, Fit] = {}
    done = 0
    for source in dict.fromkeys(origin.values()):
        first = _gather(psis[source], train, how.weights, columns, how)
        both = first
        if val is not None and how.refit:
            both = merge(first, _gather(psis[source], val, None, columns, how))
        for name in [n for n in psis if origin[n] == source]:
            if how.progress is not None:
                how.progress(done, len(psis), name)
            psi, done = psis[name], done + 1
            size = psi.size(train.before.shape[1])
            alpha = _chosen(how.choices, name, columns)
            if alpha is None:
                alpha = _choose(first, size, psi, span, columns, how)
            made = fit(psi, both, size, alpha, columns, metric, dtype, sums)
            fits.update({_label(name, target): one for target, one in made.items()})
    if how.progress is not None:
        how.progress(done, len(psis), "done")
    return {_label(n, t): fits[_label(n, t)] for n in psis for t in columns}


def _label(name: str, target: str) -> str:
    return name if target == "state" else logits_name(name)


def _gather(psi: Any, flow: Flow, weights: Any, columns: Any, how: Fitting) -> edmd.Gram:
    """Statistics against the state and, where asked for, the output beside it."""
    both = "logits" in columns
    targets = jnp.concatenate([flow.after, flow.output], axis=1) if both else flow.after
    return accumulate(psi, flow.before, targets, weights, how.accumulate_dtype, how.memory_limit)


def _chosen(choices: Any, name: str, columns: Any) -> dict[str, float] | None:
    if choices is None:
        return None
    missing = [_label(name, t) for t in columns if _label(name, t) not in choices]
    if missing:
        raise expected(f"a ridge for {missing[0]!r} among the choices", f"{sorted(choices)}")
    return {t: float(choices[_label(name, t)]) for t in columns}


def _choose(stats, size, psi, span, columns, how) -> dict[str, float]:
    """For each target the ridge of least divergence (or most accuracy) on validation samples."""
    val, by_accuracy = span.val, how.choose == "accuracy"
    labels, score_fn = (span.y_val, span.score_fn) if by_accuracy else (None, None)
    best: dict[str, tuple[float, float]] = {}
    for alpha in how.alphas:
        k = solve(stats, size, float(alpha), jnp.dtype(val.before.dtype))
        rows = np.asarray(encode(psi, k, val.before))
        for target, cols in columns.items():
            output = span.output(rows[:, cols]) if target == "state" else rows[:, cols]
            found = evaluate(output, val.output, labels, task=span.task, score_fn=score_fn)
            loss = -found["accuracy"] if by_accuracy else found["kl"]
            loss = loss if np.isfinite(loss) else np.inf
            if target not in best or loss < best[target][0]:
                best[target] = (loss, float(alpha))
    return {target: alpha for target, (_, alpha) in best.items()}
