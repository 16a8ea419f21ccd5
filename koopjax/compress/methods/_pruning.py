"""Pruning of linear layers with their inputs' second moments: Wanda and optimal brain surgeon."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from koopjax import export
from koopjax.compress._problem import Problem, Trial, posed
from koopjax.compress._result import Compressed
from koopjax.compress.gram._obs import activation_order, refit, removal_order
from koopjax.compress.layers._layers import AffineLayers

#: Ridges tried in the last refit, relative to the second moment of each of a layer's inputs.
RIDGES = (1e-4, 1e-3, 1e-2)


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
            low, high = 0.0, 1.0
            if self.bytes(way(high)) <= self.problem.limit:
                return [way(high)]
            for _ in range(14):
                middle = (low + high) / 2
                if self.bytes(way(middle)) <= self.problem.limit:
                    low = middle
                else:
                    high = middle
            found.append(way(low))
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
