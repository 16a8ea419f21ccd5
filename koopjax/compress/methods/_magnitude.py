"""Magnitude pruning: the smallest weights become zeros, which the file does not hold."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import export, models
from koopjax._core import firsts
from koopjax.compress._problem import Problem, Score, cut, posed, span_name
from koopjax.compress._result import Compressed, inapplicable
from koopjax.compress.layers._allocation import lamp

#: How magnitudes of different arrays compare; "layer" prunes the same share of each.
SCALES = ("global", "layer", "layer_adaptive", "normalised")


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A pruned model, the share of weights kept, and its score."""

    model: Any
    kept: float
    scale: str
    score: Score


@posed
def magnitude(problem: Problem, at: Any) -> Compressed:
    """One-shot magnitude pruning, by the ranking of the weights that validates best.

    Keeps the weights of largest `s(|w|)`, as many as the file has room for: with one threshold on
    `|w|` for the whole network, with the same share in each array, with `|w|` over the root mean
    square of its array, or with the layer-adaptive score `w² / sum of w'² >= w²` of its array.
    Arrays of one axis (biases, scales of normalisation, running statistics) stay whole.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)`, or any callable
            pytree. An array that two of its names share is pruned as one.
        calibration: `(n, ...)` samples, of which some are held out to choose the ranking.
        budget: `"30x"`, `"64KiB"`, bytes, or a `Budget`.
        at: a cut to start from, or a pair of cuts: only arrays that the span between them uses are
            pruned. Without, all are.
        labels: `(n,)` classes of `calibration`; without, the original's outputs count.
        validation: `x_val` or `(x_val, y_val)` in place of held-out samples.
        task, score_fn: as for `koopman`.
        key: decides which samples are held out.

    Returns:
        `Compressed`: a copy of the model, in its own form, with zeros; and the report.

    Numerics:
        No statistics of the data. About twenty encodings of the file a ranking to find the share.

    Raises:
        ValueError: bad data, an unknown cut, a span without weights, or a budget below the file
            with all weights zero.

    Reference:
        Han, Pool, Tran, Dally (2015), NeurIPS 28; for the layer-adaptive score Lee, Park, Mo, Ahn,
        Shin (2021), ICLR.
    """
    if at is None:
        used, where = None, {}
    else:
        (_, span, _), ends = cut(problem.model, problem.x, at)
        used, where = set(span.parameters), {"at": list(ends)}
    weights, rebuild = _weights_of(problem.model, used)
    if not weights:
        place = "model" if used is None else f"span {where['at']}"
        raise inapplicable(f"a {place} with weight matrices", "none", "one with layers")
    tried = [_prune(problem, weights, rebuild, scale) for scale in SCALES]
    best = max(tried, key=lambda t: t.score)
    scores = ", ".join(f"{t.scale} {t.score.value:.4f}" for t in tried)
    return problem.finish(
        best.model, best.score, settings={**where, "ranking": best.scale, "kept": best.kept},
        why=f"the ranking with the best validation {problem.measure} ({scores})",
        candidates=len(tried),
    )  # fmt: skip


def _weights_of(model: Any, used: set[str] | None) -> tuple[list[np.ndarray], Any]:
    """The arrays that pruning may touch, and the way back to a model.

    Args:
        model: the original.
        used: names of arrays, as those of a part's parameters; None for all.
    """
    form, params, rest = models.form_of(model)
    leaves, tree = jax.tree.flatten(params)
    groups: dict[int, list[int]] = {}  # an array of two names is one, with one mask
    places = zip(firsts(leaves), models.named_leaves(params), strict=True)
    for i, (first, (path, leaf, _)) in enumerate(places):
        if _chosen(path, used) and jnp.ndim(leaf) >= 2 and not jnp.iscomplexobj(leaf):
            groups.setdefault(first, []).append(i)

    def with_weights(weights: list[np.ndarray]) -> Any:
        values = list(leaves)
        for group, weight in zip(groups.values(), weights, strict=True):
            made = jnp.asarray(weight, weight.dtype)
            for i in group:
                values[i] = made
        return form.merge(jax.tree.unflatten(tree, values), rest)

    return [np.asarray(leaves[group[0]]) for group in groups.values()], with_weights


def _chosen(path: tuple[Any, ...], used: set[str] | None) -> bool:
    """Whether a span names a path; it writes a bare leaf or index as `params` or `params.0`."""
    name = span_name(path)
    return used is None or not used.isdisjoint({name, f"params.{name}" if name else "params"})


def saliencies(weights: list[np.ndarray], scale: str) -> list[np.ndarray]:
    """How much each weight counts under a ranking, in float64, comparable across arrays."""
    sizes = [np.abs(w.astype(np.float64)) for w in weights]
    if scale == "global":
        return sizes
    if scale == "normalised":
        return [s / (np.sqrt(np.mean(s**2)) or 1.0) for s in sizes]
    if scale == "layer_adaptive":
        return [lamp(s) for s in sizes]
    return [_rank_share(s) for s in sizes]


def _rank_share(sizes: np.ndarray) -> np.ndarray:
    """Position in the array's own order, from 0 to 1."""
    order = np.argsort(sizes, axis=None, kind="stable")
    out = np.empty(sizes.size)
    out[order] = (np.arange(sizes.size) + 1) / sizes.size
    return out.reshape(sizes.shape)


def _prune(problem: Problem, weights: list[np.ndarray], rebuild: Any, scale: str) -> Pruned:
    """The largest number of weights under a ranking that fits the budget."""
    salient = saliencies(weights, scale)
    flat = np.concatenate([s.ravel() for s in salient])
    order = np.argsort(-flat, kind="stable")

    def keep(count: int) -> Any:
        mask = np.zeros(flat.size, bool)
        mask[order[:count]] = True
        masks = np.split(mask, np.cumsum([s.size for s in salient])[:-1])
        # Not a product with the mask, which would leave minus zeros, and those are stored.
        return rebuild(
            [
                np.where(m.reshape(w.shape), w, np.zeros((), w.dtype))
                for w, m in zip(weights, masks, strict=True)
            ]
        )

    smallest = export.stored_bytes(keep(0))
    if smallest > problem.limit:
        raise problem.too_small(smallest)
    low, high = 0, flat.size
    best = keep(high)
    if export.stored_bytes(best) <= problem.limit:
        return Pruned(best, 1.0, scale, problem.score_model(best))
    # Bytes grow with the number of weights, up to a few bytes of index coding.
    best = keep(0)
    while high - low > max(1, flat.size // 5000):
        middle = (low + high) // 2
        trial = keep(middle)
        if export.stored_bytes(trial) <= problem.limit:
            low, best = middle, trial
        else:
            high = middle
    return Pruned(best, low / flat.size, scale, problem.score_model(best))
