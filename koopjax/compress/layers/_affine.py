"""The linear layers of a model as matrices `[b; W]`, and the second moments of their inputs."""

from typing import Any

import numpy as np
from flax import nnx

from koopjax.compress._problem import Problem
from koopjax.compress.layers._layers import as_nnx, get, input_moments, layers_in, with_kernels

#: Samples for the moments of the layers' inputs.
ROWS = 20_000


class AffineLayers:
    """Linear layers that a method changes in their numbers alone.

    Attributes:
        problem: the model, its data and the budget.
        twin: the model in NNX form.
        paths: of the layers, in order.
        where: the span for the report.
        grams: `(m + 1, m + 1)` second moments of `[1, x]` a layer, float64.
        kernels: `(m + 1, n)` matrices `[b; W]` a layer, float64; a missing bias is zeros.
        biased: whether a layer has a bias.
        dtypes: of the kernels.
    """

    def __init__(self, problem: Problem, at: Any):
        self.problem = problem
        self.twin = as_nnx(problem.model)
        self.paths, self.where = layers_in(problem, self.twin, at, "magnitude or koopman")
        self.x = problem.x[:ROWS]
        self.batch = min(2000, len(self.x))
        both = input_moments(self.twin, self.twin, self.paths, self.x, self.batch)
        self.grams = [g for g, _ in both]
        layers = [get(self.twin, path) for path in self.paths]
        self.kernels = [_augmented(layer) for layer in layers]
        self.biased = [layer.bias is not None for layer in layers]
        self.dtypes = [np.dtype(layer.kernel.get_value().dtype) for layer in layers]

    def build(self, kernels: list[np.ndarray]) -> nnx.Module:
        """The model with these `[b; W]`."""
        biases = [k[0] for k in kernels]
        return with_kernels(self.twin, self.paths, [k[1:] for k in kernels], biases)

    def moments(self, i: int, kernels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Second moments of layer i's inputs in a changed model, and those with the original's."""
        if all(a is b for a, b in zip(kernels, self.kernels, strict=True)):
            return self.grams[i], self.grams[i]
        changed, paths = self.build(kernels), [self.paths[i]]
        (both,) = input_moments(self.twin, changed, paths, self.x, self.batch)
        return both

    def recentred(self, kernels: list[np.ndarray]) -> list[np.ndarray]:
        """Biases anew, layer after layer: the original's mean output from what is delivered."""
        out = list(kernels)
        for i, biased in enumerate(self.biased):
            if biased:
                own, mixed = self.moments(i, out)
                bias = mixed[0] @ self.kernels[i] - own[0, 1:] @ out[i][1:]
                out[i] = np.concatenate([bias[None], out[i][1:]])
        return out

    def dead(self, i: int) -> np.ndarray:
        """`(m,)`: the inputs of layer i that are zero on all samples."""
        return np.diag(self.grams[i])[1:] <= 0

    def error(self, i: int, kernel: np.ndarray) -> float:
        """Mean squared error of layer i's output, relative to that of a constant output."""
        gram, whole = self.grams[i], self.kernels[i]
        difference = whole - kernel
        mean = gram[0] @ whole
        energy = np.sum(whole * (gram @ whole)) - np.sum(mean**2)
        return float(np.sum(difference * (gram @ difference)) / max(energy, 1e-300))

    def centred(self, i: int, weights: np.ndarray) -> np.ndarray:
        """`[b'; W']` for new `(m, n)` weights, the bias taking up the mean error of the output."""
        bias = self.kernels[i][0]
        if self.biased[i]:
            bias = bias + self.grams[i][0, 1:] @ (self.kernels[i][1:] - weights)
        return np.concatenate([bias[None], weights])


def _augmented(layer: nnx.Linear) -> np.ndarray:
    """`[bias; kernel]` in float64."""
    kernel = np.asarray(layer.kernel.get_value(), np.float64)
    bias = np.zeros(kernel.shape[1]) if layer.bias is None else layer.bias.get_value()
    return np.concatenate([np.asarray(bias, np.float64)[None, :], kernel])
