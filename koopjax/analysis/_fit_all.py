"""Every dictionary for every target, the ridge of each chosen on validation samples."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

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
from koopjax.analysis._measure import Setting
from koopjax.analysis._metrics import evaluate, states
from koopjax.analysis._rungs import logits_name


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the dictionaries are fitted; fields as the arguments of `ladder`."""

    alphas: Sequence[float]
    choices: Mapping[str, float] | None
    choose: str
    y_val: Any
    refit: bool
    weights: Any
    dtype: Any
    memory_limit: int | None
    progress: Callable[[int, int, str], None] | None


def fit_all(
    psis: Mapping[str, Any],
    train: Flow,
    val: Flow | None,
    columns: dict[str, slice],
    setting: Setting,
    plan: Plan,
) -> dict[str, Fit]:
    """Fit all dictionaries; one pass over the data for each family of nested ones.

    Args:
        psis: name → dictionary, in order of richness.
        train: samples to fit on.
        val: samples to choose on (and to fit on in the end); or None.
        columns: target → its columns among all targets: those of the state, then of the output.
        setting: what stays the same for all rungs.
        plan: how to fit.
    """
    origin = sources(psis, train.before)
    dtype = jnp.dtype(train.before.dtype)
    sums = plan.dtype or (jnp.float64 if has_float64() else dtype)
    fits: dict[str, Fit] = {}
    done = 0
    for source in dict.fromkeys(origin.values()):
        first = _gather(psis[source], train, plan.weights, columns, plan)
        both = first
        if val is not None and plan.refit:
            both = merge(first, _gather(psis[source], val, None, columns, plan))
        for name in [n for n in psis if origin[n] == source]:
            if plan.progress is not None:
                plan.progress(done, len(psis), name)
            psi, done = psis[name], done + 1
            size = psi.size(train.before.shape[1])
            alpha = _chosen(plan.choices, name, columns)
            if alpha is None:
                alpha = _choose(first, size, psi, val, columns, setting, plan)
            made = fit(psi, both, size, alpha, columns, setting.metric, dtype, sums)
            fits.update({_label(name, target): one for target, one in made.items()})
    if plan.progress is not None:
        plan.progress(done, len(psis), "done")
    return {_label(n, t): fits[_label(n, t)] for n in psis for t in columns}


def _label(name: str, target: str) -> str:
    return name if target == "state" else logits_name(name)


def _gather(psi: Any, flow: Flow, weights: Any, columns: Any, plan: Plan) -> edmd.Gram:
    """Statistics against the state and, where asked for, the output beside it."""
    both = "logits" in columns
    targets = jnp.concatenate([flow.after, flow.output], axis=1) if both else flow.after
    return accumulate(psi, flow.before, targets, weights, plan.dtype, plan.memory_limit)


def _chosen(choices: Any, name: str, columns: Any) -> dict[str, float] | None:
    if choices is None:
        return None
    missing = [_label(name, t) for t in columns if _label(name, t) not in choices]
    if missing:
        raise expected(f"a ridge for {missing[0]!r} among the choices", f"{sorted(choices)}")
    return {t: float(choices[_label(name, t)]) for t in columns}


def _choose(stats, size, psi, val, columns, setting, plan) -> dict[str, float]:
    """For each target the ridge of least divergence (or most accuracy) on validation samples."""
    labels, score_fn = (None, None) if plan.choose == "kl" else (plan.y_val, setting.score_fn)
    best: dict[str, tuple[float, float]] = {}
    for alpha in plan.alphas:
        k = solve(stats, size, float(alpha), jnp.dtype(val.before.dtype))
        rows = np.asarray(encode(psi, k, val.before))
        for target, cols in columns.items():
            output = rows[:, cols]
            if target == "state":
                shape = val.shapes[1]
                output = _apply(setting.tail, states(output, shape, setting.sample_axes))
            found = evaluate(output, val.output, labels, task=setting.task, score_fn=score_fn)
            loss = found["kl"] if plan.choose == "kl" else -found["accuracy"]
            loss = loss if np.isfinite(loss) else np.inf
            if target not in best or loss < best[target][0]:
                best[target] = (loss, float(alpha))
    return {target: alpha for target, (_, alpha) in best.items()}


@jax.jit
def _apply(part: Any, x: Array) -> Array:
    return part(x)
