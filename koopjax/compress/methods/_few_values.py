"""Layers of few values: k-means codebooks, and symmetric grids of eight and four bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from koopjax._core import codebooks
from koopjax.compress._problem import Problem, posed
from koopjax.compress._result import Compressed
from koopjax.compress.gram._obs import refit
from koopjax.compress.gram.formats import best_scale, feedback, on_grid
from koopjax.compress.layers._allocation import Ladders, Rung, divided, frontier
from koopjax.compress.layers._layers import AffineLayers

#: Sizes of codebook that are tried for a layer.
SIZES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)
#: What an entry's squared error counts: the same, or as much as its input's second moment.
WEIGHTS = ("uniform", "moments")
#: Scales tried with error feedback, relative to the best one without.
FACTORS = (0.8, 0.9, 1.0, 1.1, 1.25)
#: Ridges of the error feedback, relative to the second moment of each input.
RIDGES = (1e-3, 1e-2)


@posed
def kmeans(problem: Problem, at: Any) -> Compressed:
    """A codebook of 2 to 256 values a layer: `W_ij ≈ c[k_ij]` of least `Σ a_i (W_ij − c[k_ij])²`.

    The optimum, by dynamic programming, with `a_i = 1` or the second moment of the layer's input i
    (an input that is always zero then has zero weights), whichever validates better; the bias takes
    up the mean error. The sizes of the layers' codebooks start from equal errors and from the least
    sum of errors, and move between layers while the validation score rises. The file holds the
    values once and the places at the price of their entropy.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`. Other
            arrays stay whole.
        calibration, budget, at, labels, validation, task, score_fn, key: as for `whitened_svd`.

    Returns:
        `Compressed`: a copy of the model, its kernels with few distinct values; and the report.

    Numerics:
        Float64 on the host; a search for all sizes of codebook and twenty encodings a layer and
        weighting, and up to 120 evaluations on the validation samples.

    Raises:
        ValueError: bad data, an unknown cut, no linear layer there, or a budget below two values
            everywhere.

    Reference: Gong, Liu, Yang & Bourdev (2014), arXiv 1412.6115; Han, Mao & Dally (2016), ICLR;
        Choi, El-Khamy & Lee (2017), ICLR (second-order weights).
    """
    layers = AffineLayers(problem, at)
    count = range(len(layers.kernels))
    # In both the smallest form of each layer, so that both say the same smallest budget.
    least = [[_rungs(layers, i, weighting, (2,))[0] for weighting in WEIGHTS] for i in count]
    lowest = [min(forms, key=lambda rung: rung.size) for forms in least]
    # A budget below is refused before any work.
    Ladders(problem, [[rung] for rung in lowest], layers.probe)

    def ladders(weighting: str) -> list[list[Rung]]:
        return [frontier([lowest[i], *_rungs(layers, i, weighting)]) for i in count]

    score, chosen, weighting, tried = divided(
        problem, ((name, ladders(name)) for name in WEIGHTS), 60, layers.probe
    )
    model, shifted = (
        layers.probe(chosen),
        layers.build(layers.recentred([r.kernel for r in chosen])),
    )
    if (again := problem.improved(score, shifted)) is not None:
        score, model = again, shifted
    return problem.finish(
        model, score, candidates=tried,
        settings={**layers.where, "values": [rung.note for rung in chosen], "weights": weighting},
        why=f"of {tried} splits over the layers, the best validation {problem.measure}",
    )  # fmt: skip


def _rungs(
    layers: AffineLayers, i: int, weighting: str, sizes: Sequence[int] = SIZES
) -> list[Rung]:
    """The forms of a layer by the size of its codebook."""
    weights = layers.kernels[i][1:].astype(layers.dtypes[i])
    cost = None
    if weighting == "moments":
        weights = np.where(layers.dead(i)[:, None], np.zeros((), weights.dtype), weights)
        cost = layers.cost(i)
    rungs, sizes = [], [size for size in sizes if size == 2 or 2 * size <= weights.size]
    found = codebooks(weights, sizes, cost, keep_zero=True)
    for size, (book, codes) in zip(sizes, found, strict=True):
        values = book.astype(weights.dtype)[codes]
        rungs.append(layers.rung(i, layers.centred(i, values.astype(np.float64)), note=size))
    return frontier(rungs)


@posed
def int8(problem: Problem, at: Any) -> Compressed:
    """Round the weights of each layer to `s k` with `|k| <= 127`: one scale a layer.

    The scale has the least squared error, weighted by the inputs' second moments or not. The
    rounding is to the nearest, or feeds each row's error back to the rows behind it with the Gram
    matrix of the layer's inputs (the original's, or what the rounded layers before it deliver); the
    bias takes up what is left. Of these the one that validates best within the budget is taken. The
    file holds the integers at the price of their entropy, whatever that makes of it.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`. Other
            arrays stay whole.
        calibration, budget, at, labels, validation, task, score_fn, key: as for `whitened_svd`.

    Returns:
        `Compressed`: a copy of the model with kernels on a grid; and the report.

    Numerics:
        Float64 on the host: a factorisation of size `m` a layer `(m, n)` and scale.

    Raises:
        ValueError: bad data, an unknown cut, no linear layer there, or a budget below what the
            integers take.

    Reference: Jacob et al. (2018), CVPR (symmetric grids); Frantar, Ashkboos, Hoefler & Alistarh
        (2023), GPTQ, ICLR (error feedback).
    """
    return _rounded(127, AffineLayers(problem, at))


@posed
def int4(problem: Problem, at: Any) -> Compressed:
    """Round the weights of each layer to `s k` with `|k| <= 7`, otherwise as `int8`.

    Args:
        model, calibration, budget, at, labels, validation, task, score_fn, key: as for `int8`.

    Returns:
        `Compressed`, as `int8`.

    Numerics:
        As `int8`.

    Raises:
        ValueError: as for `int8`.

    Reference: see `int8`.
    """
    return _rounded(7, AffineLayers(problem, at))


def _rounded(most: int, layers: AffineLayers) -> Compressed:
    """The best way of rounding that fits."""
    problem = layers.problem
    ways: list[tuple[dict[str, Any], list[np.ndarray]]] = [
        ({"rounding": "nearest", "scale": scale}, _nearest(layers, most, scale == "inputs"))
        for scale in ("weights", "inputs")
    ]
    for ridge in RIDGES:
        for inputs in ("original", "rounded"):
            settings = {"rounding": "error feedback", "ridge": ridge, "inputs": inputs}
            ways.append((settings, _fed_back(layers, most, ridge, inputs == "rounded")))
    trials = [problem.trial(layers.build(kernels), layers.where | how) for how, kernels in ways]
    return problem.best(
        trials, f"of {len(trials)} ways of rounding, the best validation {problem.measure}"
    )


def _scale(layers: AffineLayers, i: int, most: int, weighted: bool) -> float:
    cost = layers.cost(i) if weighted else None
    return best_scale(layers.kernels[i][1:], most, layers.dtypes[i], cost)


def _nearest(layers: AffineLayers, most: int, weighted: bool) -> list[np.ndarray]:
    """Every layer to the nearest multiples."""
    out = []
    for i, kernel in enumerate(layers.kernels):
        scale = _scale(layers, i, most, weighted)
        out.append(layers.centred(i, on_grid(scale, most, layers.dtypes[i])(kernel[1:])))
    return out


def _fed_back(layers: AffineLayers, most: int, ridge: float, follow: bool) -> list[np.ndarray]:
    """Every layer with error feedback, with `follow` from what the rounded ones before deliver."""
    out = list(layers.kernels)
    for i in range(len(out)):
        gram, target, mask = aim(layers, i, out if follow and i else None, ridge)
        tried = []
        for factor in FACTORS:
            scale = factor * _scale(layers, i, most, True)
            grid = on_grid(scale, most, layers.dtypes[i])
            kernel = feedback(gram, target, grid, mask=mask, protect=(0,), alpha=ridge)
            gap = target - kernel
            tried.append((float(np.sum(gap * (gram @ gap))), scale, kernel))
        out[i] = min(tried, key=lambda one: one[:2])[2]
    return out


def aim(
    layers: AffineLayers, i: int, delivered: list[np.ndarray] | None, ridge: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gram matrix, target and mask of a layer's rounding, the latter two as `[b; W]`.

    Where the layers before it have changed, `delivered` are all of them.
    """
    kernel, gram = layers.kernels[i], layers.grams[i]
    live = np.concatenate([[layers.biased[i]], ~layers.dead(i)])
    mask = np.broadcast_to(live[:, None], kernel.shape)
    if delivered is not None:
        gram, cross = layers.moments(i, delivered)
        # Towards the original weights, not towards zero, where the inputs say nothing.
        kernel = kernel + refit(gram, cross @ kernel - gram @ kernel, mask, alpha=ridge)
    return gram, np.where(mask, kernel, 0.0), mask
