"""Activation-whitened SVD: linear layers in two thin factors, ranks split over the layers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from koopjax import export, nn
from koopjax._core import on_device
from koopjax.compress._problem import Problem, Score, posed
from koopjax.compress._result import Compressed
from koopjax.compress.gram._units import unit_diagonal
from koopjax.compress.layers._layers import (
    Path,
    as_nnx,
    get,
    input_moments,
    layers_in,
    with_factors,
    with_kernels,
)

#: Samples for the moments of the layers' inputs.
ROWS = 12_000
#: Eigenvalues of the covariance of inputs of unit power below this share of the largest are damped.
FLOOR = 1e-5
#: Most rank splits that are tried.
TRIALS = 160
#: What the error of a layer is measured in: the covariance of its inputs, its weights alone, or
#: these with a bias that takes up the error at the mean input.
METRICS = ("inputs", "weights", "mean")


@posed
def whitened_svd(problem: Problem, at: Any) -> Compressed:
    """Factor the linear layers where their inputs vary, with the rank split that validates best.

    Of a layer `x W + b` with input covariance `S = R Rᵀ`, the truncated SVD of `Rᵀ W` gives the
    factors of least mean squared error in the layer's output; the bias takes up the mean error. The
    ranks start from the best of two splits, the same share of each layer and the largest share of
    energy a byte, and move between layers while the validation score rises. At last each layer is
    refitted to the original's output from what the factored layers before it really deliver, if
    that validates better.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`. Other
            arrays (convolutions, normalisation, embeddings) stay whole.
        calibration: `(n, ...)` samples.
        budget: `"30x"`, `"64KiB"`, bytes, or a `Budget`.
        at: a cut to start from, or a pair of cuts: only linear layers whose weights the span
            between them uses are factored. Without, all are.
        labels, validation, task, score_fn, key: as for `koopman`.

    Returns:
        `Compressed`: an `nn.Stack` for an MLP, else a copy of the model with `nn.LowRank` in place
        of layers; and the report.

    Numerics:
        Moments in float32, factorisations in float64 on the host. Up to 160 evaluations on the
        validation samples, which share one compilation.

    Raises:
        ValueError: bad data, an unknown cut, no linear layer there, or a budget below rank one
            everywhere.

    Reference:
        Wang, Zheng, Wan, Zhang (2024), SVD-LLM, arXiv:2403.07378 (whitening).
    """
    return factored(problem, at, ["inputs"])


def factored(problem: Problem, at: Any, metrics: Sequence[str]) -> Compressed:
    """Linear layers in two factors, in the metric and with the rank split that validate best.

    Args:
        problem: model, data and budget.
        at: the span.
        metrics: among `METRICS`.
    """
    twin = as_nnx(problem.model)
    paths, where = layers_in(problem, twin, at, "magnitude or koopman")
    works = [_Layers(problem, twin, paths, metric) for metric in metrics]
    sizes = [work.bytes([1] * len(paths)) for work in works]
    if min(sizes) > problem.limit:
        raise problem.too_small(min(sizes))
    works = [work for work, size in zip(works, sizes, strict=True) if size <= problem.limit]
    starts = [(work, r) for work in works for r in (work.uniform(), work.greedy())]
    scored = [(work.score(r), k, work, r) for k, (work, r) in enumerate(starts)]
    score, _, work, ranks = max(scored, key=lambda one: one[:2])
    score, ranks = work.within(work.climb((score, ranks)))
    factors, refitted = work.factors(ranks), False
    if work.metric == "inputs":
        again = work.refit(ranks)
        refitted = again[0] > score and work.stored(again[1]) <= problem.limit
        score, factors = again if refitted else (score, factors)
    tried = sum(work.tried for work in works)
    settings = {"ranks": [f.rank if f.thin else "dense" for f in factors], "refitted": refitted}
    if len(metrics) > 1:
        settings |= {"bias": "of the mean input" if work.metric == "mean" else "as it was"}
        del settings["refitted"]
    return problem.finish(
        work.build(factors), score, settings={**where, **settings}, candidates=tried,
        why=f"of {tried} rank splits, the best validation {problem.measure}",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """A layer in factors: `x left right + bias`.

    Attributes:
        left, right: `(m, r)` and `(r, n)`.
        bias: `(n,)`.
        kernel: the layer's own `(m, n)`, used where two factors would take more.
    """

    left: np.ndarray
    right: np.ndarray
    bias: np.ndarray
    kernel: np.ndarray | None = None

    @property
    def rank(self) -> int:
        """Inner width."""
        return self.left.shape[1]

    @property
    def thin(self) -> bool:
        """Whether the factors are what is stored."""
        return self.kernel is None

    @property
    def product(self) -> np.ndarray:
        """`(m, n)`."""
        return self.left @ self.right if self.kernel is None else self.kernel


def factor(
    kernel: np.ndarray, bias: np.ndarray, own: np.ndarray, mixed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Any]:
    """All ranks of a layer at once.

    Args:
        kernel, bias: `(m, n)` and `(n,)` of the original layer.
        own: `(m + 1, m + 1)` second moments of `[1, x̃]`, the inputs at hand.
        mixed: `(m + 1, m + 1)` of `[1, x̃]` with the original's `[1, x]`.

    Returns:
        Left factors `(m, k)` and right factors `(k, n)` of which the leading r are the best of rank
        r, and a function from their product to the bias that goes with it.
    """
    mean, mean_of = own[0, 1:], mixed[0, 1:]
    # Of the power with the mean, as a constant input has a variance of rounding alone.
    _, unit = unit_diagonal(own[1:, 1:])
    # The weights of inputs that are always zero have no units; they are left out.
    used = np.where(np.diag(own)[1:, None] > 0, kernel / unit[:, None], 0.0)
    sides = np.outer(unit, unit)
    values, vectors = np.linalg.eigh(sides * (own[1:, 1:] - np.outer(mean, mean)))
    values = np.maximum(values, 0) + FLOOR * max(values[-1], 1e-30)
    root = np.sqrt(values)[None, :]
    # With the original's own inputs the regression would return the kernel itself.
    covariance = sides * (mixed[1:, 1:] - np.outer(mean, mean_of))
    damped = covariance + FLOOR * values[-1] * np.eye(len(mean))
    whitened = (vectors / root).T @ damped @ used
    u, s, vt = np.linalg.svd(whitened, full_matrices=False)
    half = np.sqrt(s)
    left, right = unit[:, None] * ((vectors / root) @ u * half[None, :]), half[:, None] * vt
    return left, right, lambda product: bias + mean_of @ kernel - mean @ product


def _of_mean(own: np.ndarray) -> np.ndarray:
    """Moments of inputs with the same mean and the identity for a covariance."""
    return np.outer(own[0], own[0]) + np.diag(np.arange(len(own)) > 0)


class _Layers:
    """The linear layers of a model, their factors at every rank, and the cost of a split."""

    def __init__(self, problem: Problem, model: nnx.Module, paths: list[Path], metric: str):
        self.problem, self.model, self.paths, self.metric = problem, model, paths, metric
        layers = [get(model, path) for path in self.paths]
        self.kernels = [np.asarray(layer.kernel.get_value(), np.float64) for layer in layers]
        held = [None if layer.bias is None else layer.bias.get_value() for layer in layers]
        pairs = zip(held, self.kernels, strict=True)
        self.biases = [
            np.zeros(k.shape[1]) if b is None else np.asarray(b, np.float64) for b, k in pairs
        ]
        self.dtypes = [layer.kernel.get_value().dtype for layer in layers]
        self.x = problem.x[:ROWS]
        sizes = [k.shape[0] for k in self.kernels]
        moments = [(np.eye(m + 1),) * 2 for m in sizes]
        if metric != "weights":
            moments = input_moments(model, model, self.paths, self.x, 1000)
        if metric == "mean":
            moments = [(_of_mean(own),) * 2 for own, _ in moments]
        self.all = [
            factor(k, b, *m) for k, b, m in zip(self.kernels, self.biases, moments, strict=True)
        ]
        self.most = [min(k.shape) for k in self.kernels]
        self.tried = 0
        ones = [1] * len(self.paths)
        self._base = 0
        self._base = self.stored(self.factors(ones)) - self.bytes(ones)

    def _cost(self, i: int, rank: int) -> int:
        m, n = self.kernels[i].shape
        width = np.dtype(self.dtypes[i]).itemsize
        return width * min(rank * (m + n), m * n)

    def stored(self, factors: list[Factors]) -> int:
        """Bytes of a file."""
        return export.stored_bytes(self.build(factors))

    def within(self, best: tuple[Score, list[int]]) -> tuple[Score, list[int]]:
        """Ranks whose file does fit: names in its header, and zeros, `bytes` does not foresee.

        Raises:
            BudgetTooSmall: not even rank 1 everywhere does.
        """
        score, ranks = best
        while (size := self.stored(self.factors(ranks))) > self.problem.limit:
            larger = [i for i, rank in enumerate(ranks) if rank > 1]
            if not larger:
                raise self.problem.too_small(size)
            lost = lambda i, ranks=ranks: np.sum(self.all[i][1][ranks[i] - 1] ** 2)
            least = min(larger, key=lost)
            ranks = [rank - (i == least) for i, rank in enumerate(ranks)]
        return (score if ranks == best[1] else self.score(ranks)), ranks

    def bytes(self, ranks: list[int]) -> int:
        """Bytes of the file at these ranks, about."""
        return self._base + sum(self._cost(i, r) for i, r in enumerate(ranks))

    def factors(self, ranks: list[int]) -> list[Factors]:
        """The layers at these ranks; whole where that takes no more."""
        return [self._at(i, rank, *self.all[i]) for i, rank in enumerate(ranks)]

    def _at(self, i: int, rank: int, left: Any, right: Any, bias_of: Any) -> Factors:
        m, n = self.kernels[i].shape
        left, right = left[:, :rank], right[:rank]
        if rank * (m + n) >= m * n:
            whole = self.kernels[i]
            return Factors(left, right, self.biases[i], whole)
        return Factors(left, right, bias_of(left @ right))

    def score(self, ranks: list[int]) -> Score:
        """Validation score of a split."""
        return self._score(self.factors(ranks))

    def _score(self, factors: list[Factors]) -> Score:
        self.tried += 1
        return self.problem.score_model(self._dense(factors))

    def _dense(self, factors: list[Factors]) -> nnx.Module:
        products, biases = [f.product for f in factors], [f.bias for f in factors]
        return with_kernels(self.model, self.paths, products, biases)

    def uniform(self) -> list[int]:
        """The same share of its numbers for each layer."""
        low, high = 0.0, 1.0
        ranks = [1] * len(self.paths)
        for _ in range(30):
            share = (low + high) / 2
            trial = [
                max(1, min(most, int(share * k.size / sum(k.shape))))
                for k, most in zip(self.kernels, self.most, strict=True)
            ]
            if self.bytes(trial) <= self.problem.limit:
                low, ranks = share, trial
            else:
                high = share
        return self.fill(ranks)

    def greedy(self) -> list[int]:
        """Ranks by the share of a layer's energy that a byte buys."""
        return self.fill([1] * len(self.paths))

    def fill(self, ranks: list[int]) -> list[int]:
        """Spend what is left of the budget where a byte buys most energy."""
        ranks = list(ranks)
        while True:
            best, gain = None, 0.0
            for i, rank in enumerate(ranks):
                trial = [r + (j == i) for j, r in enumerate(ranks)]
                if rank >= self.most[i] or self.bytes(trial) > self.problem.limit:
                    continue
                energy = np.sum(self.all[i][1] ** 2, axis=1) ** 2
                cost = max(self._cost(i, rank + 1) - self._cost(i, rank), 1)
                value = energy[rank] / max(energy.sum(), 1e-300) / cost
                if value > gain:
                    best, gain = i, value
            if best is None:
                return ranks
            ranks[best] += 1

    def climb(self, start: tuple[Score, list[int]]) -> tuple[Score, list[int]]:
        """Move bytes from layer to layer while that helps, in smaller and smaller steps."""
        best, count = start, len(self.paths)
        for share in (0.4, 0.2, 0.1, 0.0):
            better = True
            while better and self.tried < TRIALS:
                better = False
                for i in range(count):
                    for j in range(count):
                        moved = self._move(best[1], i, j, share)
                        if moved is None or self.tried >= TRIALS:
                            continue
                        score = self.score(moved)
                        if score > best[0]:
                            best, better = (score, moved), True
        return best

    def _move(self, ranks: list[int], i: int, j: int, share: float) -> list[int] | None:
        """Ranks with a share of layer i's given to layer j, or None where that is no change."""
        step = max(1, round(share * ranks[i]))
        if i == j or ranks[i] - step < 1 or ranks[j] >= self.most[j]:
            return None
        out = list(ranks)
        out[i] -= step
        while out[j] < self.most[j]:
            out[j] += 1
            if self.bytes(out) > self.problem.limit:
                out[j] -= 1
                break
        return None if out[j] == ranks[j] else out

    def refit(self, ranks: list[int]) -> tuple[Score, list[Factors]]:
        """Each layer from the inputs that the factored layers before it deliver, in order."""
        factors = self.factors(ranks)
        for i, rank in enumerate(ranks):
            if i == 0 or not factors[i].thin:
                continue
            changed = self._dense(factors)
            moments = input_moments(self.model, changed, self.paths, self.x, 1000)[i]
            made = factor(self.kernels[i], self.biases[i], *moments)
            factors[i] = self._at(i, rank, *made)
        return self._score(factors), factors

    def build(self, factors: list[Factors]) -> nnx.Module:
        """The compressed model."""
        operators = []
        for f, dtype, path in zip(factors, self.dtypes, self.paths, strict=True):
            cast = lambda a, dtype=dtype: on_device(a, dtype)
            bias = cast(f.bias)
            if get(self.model, path).bias is None and not f.thin:
                bias = None
            operators.append(
                nn.LowRank(cast(f.left), cast(f.right), bias) if f.thin
                else nn.Dense(cast(f.product), bias)
            )  # fmt: skip
        return with_factors(self.model, self.paths, operators)
