"""Eight and four bits: weights on a symmetric grid, with and without error feedback."""

from typing import Any

import numpy as np

from koopjax.compress._problem import Problem, posed
from koopjax.compress._result import Compressed
from koopjax.compress.gram._obs import refit
from koopjax.compress.gram.formats import best_scale, feedback, on_grid
from koopjax.compress.layers._layers import AffineLayers

#: Scales tried with error feedback, relative to the best one without.
FACTORS = (0.8, 0.9, 1.0, 1.1, 1.25)
#: Ridges of the error feedback, relative to the second moment of each input.
RIDGES = (1e-3, 1e-2)


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
    values, cost = layers.kernels[i][1:], None
    if weighted:
        power = np.where(layers.dead(i), 0.0, np.diag(layers.grams[i])[1:])
        cost = np.broadcast_to(power[:, None], values.shape)
    return best_scale(values, most, layers.dtypes[i], cost)


def _nearest(layers: AffineLayers, most: int, weighted: bool) -> list[np.ndarray]:
    """Every layer to the nearest multiples."""
    out = []
    for i, kernel in enumerate(layers.kernels):
        scale = _scale(layers, i, most, weighted)
        out.append(layers.centred(i, on_grid(scale, most, layers.dtypes[i])(kernel[1:])))
    return out


def _fed_back(layers: AffineLayers, most: int, ridge: float, follow: bool) -> list[np.ndarray]:
    """Every layer with error feedback, at the scale of least error.

    With `follow` it aims at the original's output from what the rounded layers before deliver.
    """
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

    Rows of inputs that are always zero, and a missing bias, are masked. Where the layers before it
    have changed, `delivered` are all of them, and least squares finds the target.
    """
    kernel, gram = layers.kernels[i], layers.grams[i]
    live = np.concatenate([[layers.biased[i]], ~layers.dead(i)])
    mask = np.broadcast_to(live[:, None], kernel.shape)
    if delivered is not None:
        gram, cross = layers.moments(i, delivered)
        # Towards the original weights, not towards zero, where the inputs say nothing.
        kernel = kernel + refit(gram, cross @ kernel - gram @ kernel, mask, alpha=ridge)
    return gram, np.where(mask, kernel, 0.0), mask
