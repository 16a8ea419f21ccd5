"""Pruning by magnitude, by Wanda, and by optimal brain surgeon on second moments of inputs."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from koopjax import export, models
from koopjax._core import firsts
from koopjax.compress._problem import Problem, Trial, cut, posed
from koopjax.compress._result import Compressed, inapplicable
from koopjax.compress.gram._obs import activation_order, ranks, refit, removal_order
from koopjax.compress.layers._allocation import lamp, largest
from koopjax.compress.layers._layers import AffineLayers
from koopjax.forms import joined

#: How magnitudes of different arrays compare; "layer" prunes the same share of each.
SCALES = ("global", "layer", "layer_adaptive", "normalised")
#: Ridges tried in the last refit, relative to the second moment of each of a layer's inputs.
RIDGES = (1e-4, 1e-3, 1e-2)


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
    tried = [_prune(problem, weights, rebuild, scale, where) for scale in SCALES]
    scores = ", ".join(f"{t.settings['ranking']} {t.score.value:.4f}" for t in tried)
    return problem.best(tried, f"the ranking with the best validation {problem.measure} ({scores})")


def _weights_of(model: Any, used: set[str] | None) -> tuple[list[np.ndarray], Any]:
    """The arrays that pruning may touch (those named, or all), and the way back to a model."""
    form, params, rest = models.form_of(model)
    leaves, tree = jax.tree.flatten(params)
    groups: dict[int, list[int]] = {}  # an array of two names is one, with one mask
    places = zip(firsts(leaves), models.named_leaves(params), strict=True)
    for i, (first, (path, leaf, _)) in enumerate(places):
        name = joined(path)
        # A span writes a bare leaf or index as `params` or `params.0`.
        names = {name, f"params.{name}" if name else "params"}
        chosen = used is None or not used.isdisjoint(names)
        if chosen and jnp.ndim(leaf) >= 2 and not jnp.iscomplexobj(leaf):
            groups.setdefault(first, []).append(i)

    def with_weights(weights: list[np.ndarray]) -> Any:
        values = list(leaves)
        for group, weight in zip(groups.values(), weights, strict=True):
            made = jnp.asarray(weight, weight.dtype)
            for i in group:
                values[i] = made
        return form.merge(jax.tree.unflatten(tree, values), rest)

    return [np.asarray(leaves[group[0]]) for group in groups.values()], with_weights


def saliencies(weights: list[np.ndarray], scale: str) -> list[np.ndarray]:
    """How much each weight counts under a ranking, in float64, comparable across arrays."""
    sizes = [np.abs(w.astype(np.float64)) for w in weights]
    if scale == "global":
        return sizes
    if scale == "normalised":
        return [s / (np.sqrt(np.mean(s**2)) or 1.0) for s in sizes]
    if scale == "layer_adaptive":
        return [lamp(s) for s in sizes]
    return [(ranks(np.argsort(s, axis=None, kind="stable"), s.shape) + 1) / s.size for s in sizes]


def _prune(
    problem: Problem, weights: list[np.ndarray], rebuild: Any, scale: str, where: dict[str, Any]
) -> Trial:
    """The largest number of weights under a ranking that fits the budget."""
    salient = saliencies(weights, scale)
    flat = np.concatenate([s.ravel() for s in salient])
    order = np.argsort(-flat, kind="stable")

    def keep(count: int) -> Any:
        mask = np.zeros(flat.size, bool)
        mask[order[:count]] = True
        masks = np.split(mask, np.cumsum([s.size for s in salient])[:-1])
        pairs = zip(weights, masks, strict=True)
        # Not a product with the mask, which would leave minus zeros, and those are stored.
        return rebuild([np.where(m.reshape(w.shape), w, np.zeros((), w.dtype)) for w, m in pairs])

    smallest = export.stored_bytes(keep(0))
    if smallest > problem.limit:
        raise problem.too_small(smallest)
    # Bytes grow with the number of weights, up to a few bytes of index coding.
    fits = lambda count: export.stored_bytes(keep(count)) <= problem.limit
    count = largest(0, flat.size, fits, max(1, flat.size // 5000))
    settings = {**where, "ranking": scale, "kept": count / flat.size}
    return problem.trial(keep(count), settings)


@posed
def wanda(problem: Problem, at: Any) -> Compressed:
    """Prune weights of least `|w| ‖x‖`, the same share of each layer, nothing refitted.

    Weights are compared within their column (one output) or their layer, whichever validates
    better.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`. Other
            arrays stay whole.
        calibration, budget, at, labels, validation, task, score_fn, key: as for `whitened_svd`.

    Returns:
        `Compressed`: a copy of the model with zeros in its kernels; and the report.

    Numerics:
        One pass for the second moments of the layers' inputs.

    Raises:
        ValueError: bad data, an unknown cut, no linear layer there, or a budget below the file with
            all kernels zero.

    Reference: Sun, Liu, Bair & Kolter (2024), arXiv 2306.11695.
    """
    work = _Work(problem, at)
    trials = []
    for group in ("column", "layer"):
        pairs = zip(work.grams, work.kernels, strict=True)
        work.orders = [activation_order(g, kernel, (0,), group=group) for g, kernel in pairs]
        trials += [work.plain(shares, group) for shares in work.splits()]
    return problem.best(trials, f"of two ways to compare, the best validation {problem.measure}")


@posed
def obs(problem: Problem, at: Any) -> Compressed:
    """Optimal brain surgeon: prune with the Gram matrix of each layer's inputs, refit what stays.

    Entries go by their saliency `v² / [G⁻¹]_ii`, columns refitted after every stage; layers share
    the budget by the same share of each or by the same relative error, whichever validates better.
    At last the layers are refitted in their order to the original's outputs from what the pruned
    layers before them really deliver, at the ridge that validates best.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`. Other
            arrays stay whole.
        calibration, budget, at, labels, validation, task, score_fn, key: as for `whitened_svd`.

    Returns:
        `Compressed`: a copy of the model with zeros in its kernels; and the report.

    Numerics:
        Float64 on the host: about forty stages a layer, see `removal_order`.

    Raises:
        ValueError: as for `wanda`.

    Reference: Hassibi & Stork (1993), NeurIPS 5; Frantar & Alistarh (2023), arXiv 2301.00774.
    """
    work = _Work(problem, at)
    pairs = zip(work.grams, work.kernels, strict=True)
    removals = [removal_order(g, k, alpha=RIDGES[0], protect=(0,)) for g, k in pairs]
    work.orders = [removal.rank for removal in removals]
    curves = [(removal.kept / removal.rank.size, removal.error) for removal in removals]
    splits = itertools.product(work.splits(curves), RIDGES)
    trials = [work.refitted(shares, ridge) for shares, ridge in splits]
    why = f"of the splits over the layers and the ridges, the best validation {problem.measure}"
    return problem.best(trials, why)


class _Work(AffineLayers):
    """The layers of a model, the order in which their entries go, and what fits."""

    def __init__(self, problem: Problem, at: Any):
        super().__init__(problem, at)
        # Rows of biases stay; before there is an order, all others are alike.
        self.orders = [np.zeros(k.shape, np.int64) for k in self.kernels]
        for order in self.orders:
            order[0] = order.size
        # Numbers without a pattern: a codebook or a grid would make the file smaller than a refit.
        rng = np.random.default_rng(0)
        self.spread = [rng.standard_normal(k.shape) for k in self.kernels]
        least = self.bytes([0.0] * len(self.kernels))
        if least > problem.limit:
            raise problem.too_small(least)

    def masks(self, shares: list[float]) -> list[np.ndarray]:
        """The entries that stay for a share of every layer; biases always do."""
        out = []
        for order, share in zip(self.orders, shares, strict=True):
            free = order < order.size
            count = round(share * int(free.sum()))
            kept = np.zeros(order.shape, bool)
            chosen = np.argsort(-np.where(free, order, -1), axis=None, kind="stable")[:count]
            kept.ravel()[chosen] = True
            out.append(kept | ~free)
        return out

    def bytes(self, shares: list[float]) -> int:
        """File size at these shares."""
        pairs = zip(self.spread, self.masks(shares), strict=True)
        return export.stored_bytes(self.build([np.where(m, k, 0.0) for k, m in pairs]))

    def splits(self, curves: Any = None) -> list[list[float]]:
        """Shares of the layers that fill the budget: alike, and (with curves) by equal error."""
        layers = len(self.kernels)
        ways: list[Callable[[float], list[float]]] = [lambda t: [t] * layers]
        if curves is not None:
            ways.append(lambda t: [_share_at(curve, t) for curve in curves])
        found = []
        for way in ways:
            fits = lambda t, way=way: self.bytes(way(t)) <= self.problem.limit
            share = largest(0.0, 1.0, fits, 2**-14)
            if share == 1:
                return [way(share)]
            found.append(way(share))
        return found

    def plain(self, shares: list[float], group: str) -> Trial:
        """The pruned model with its own weights, and its settings."""
        pairs = zip(self.kernels, self.masks(shares), strict=True)
        # Not a product with the mask, which would leave minus zeros, and those are stored.
        pruned = [np.where(mask, kernel, 0.0) for kernel, mask in pairs]
        return self._trial(pruned, shares, compared_in=group)

    def refitted(self, shares: list[float], ridge: float) -> Trial:
        """Layer after layer refitted on its mask, from what the layers before it deliver."""
        masks = self.masks(shares)
        kernels = list(self.kernels)
        for k, mask in enumerate(masks):
            gram, cross = self.moments(k, kernels)
            kernels[k] = np.where(
                mask, refit(gram, cross @ self.kernels[k], mask, alpha=ridge), 0.0
            )
        return self._trial(kernels, shares, ridge=ridge)

    def _trial(self, kernels: list[np.ndarray], shares: list[float], **settings: Any) -> Trial:
        settings = {**self.where, "kept": [round(s, 4) for s in shares], **settings}
        return self.problem.trial(self.build(kernels), settings)


def _share_at(curve: tuple[np.ndarray, np.ndarray], level: float) -> float:
    """Share of a layer that leaves a relative error of `1 − level` (on a curve of removals)."""
    kept, error = curve
    # The curve falls with what is kept; read it backwards, evened out to be monotone.
    rising = np.maximum.accumulate(error)
    scaled = np.sqrt(rising / max(rising[-1], 1e-300))
    return float(np.interp(1 - level, scaled, kept))
