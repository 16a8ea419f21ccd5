"""Linear layers in two thin factors, by their weights or where their inputs vary."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from koopjax import export, nn
from koopjax._core import on_device
from koopjax.compress._problem import Problem, Score, posed
from koopjax.compress._result import Compressed
from koopjax.compress.gram._select import unit_diagonal
from koopjax.compress.layers._allocation import largest
from koopjax.compress.layers._layers import AffineLayers, with_factors

#: Eigenvalues of the covariance of inputs of unit power below this share of the largest are damped.
FLOOR = 1e-5
#: Most rank splits that are tried.
TRIALS = 160


@posed
def svd(problem: Problem, at: Any) -> Compressed:
    """Truncated SVD of the weights, `W ≈ U_r S_r V_rᵀ`, with the rank split that validates best.

    Of all matrices of rank r it is the closest to W in the Frobenius norm; the inputs play no part
    but for the bias, which takes up the error at their mean where that validates better. The split
    is searched as by `whitened_svd`.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`.
        calibration, budget, at, labels, validation, task, score_fn, key: as for `whitened_svd`.

    Returns:
        `Compressed`: an `nn.Stack` for an MLP, else a copy of the model with `nn.LowRank` in place
        of layers; and the report.

    Numerics:
        One SVD a layer in float64 on the host; up to 160 evaluations on the validation samples.

    Raises:
        ValueError: as for `whitened_svd`.

    Reference:
        Denton, Zaremba, Bruna, LeCun & Fergus (2014), NeurIPS 27; Eckart & Young (1936).
    """
    return _factored(problem, at, ["weights", "mean"])


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
    return _factored(problem, at, ["inputs"])


def _factored(problem: Problem, at: Any, metrics: Sequence[str]) -> Compressed:
    """Linear layers in two factors, in the metric and with the rank split that validate best."""
    works = [_Ranks(problem, at, metric) for metric in metrics]
    sizes = [work.bytes([1] * len(work.paths)) for work in works]
    if min(sizes) > problem.limit:
        raise problem.too_small(min(sizes))
    works = [work for work, size in zip(works, sizes, strict=True) if size <= problem.limit]
    starts = [(work, r) for work in works for r in (work.uniform(), work.greedy())]
    scored = [(work.score(r), k, work, r) for k, (work, r) in enumerate(starts)]
    score, _, work, ranks = max(scored, key=lambda one: one[:2])
    score, ranks = work.within(*work.climb(score, ranks))
    forms = work.forms(ranks)
    settings: dict[str, Any] = {}
    if len(metrics) > 1:
        settings["bias"] = "of the mean input" if work.metric == "mean" else "as it was"
    else:
        changed, work.tried = work.refit(ranks), work.tried + 1
        again = problem.improved(score, work.probe(changed), work.factored(changed))
        settings["refitted"] = again is not None
        score, forms = (score, forms) if again is None else (again, changed)
    ranks = ["dense" if form.factors is None else form.factors[0].shape[1] for form in forms]
    tried = sum(work.tried for work in works)
    return problem.finish(
        work.factored(forms), score, settings={**work.where, "ranks": ranks, **settings},
        candidates=tried, why=f"of {tried} rank splits, the best validation {problem.measure}",
    )  # fmt: skip


class Form(NamedTuple):
    """A layer `[b; W]` as `(m + 1, n)`, and what is stored of it: two factors, or None for all."""

    kernel: np.ndarray
    factors: tuple[np.ndarray, np.ndarray] | None


def factor(
    kernel: np.ndarray, own: np.ndarray, mixed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Any]:
    """All ranks of a layer `[b; W]` at once: of left and right factors the leading r are the best.

    `own` are the second moments of `[1, x̃]`, the inputs at hand, `mixed` those with the original's
    `[1, x]`. Also a function from a product of factors to the bias that goes with it.
    """
    mean, mean_of = own[0, 1:], mixed[0, 1:]
    # Of the power with the mean, as a constant input has a variance of rounding alone.
    _, unit = unit_diagonal(own[1:, 1:])
    # The weights of inputs that are always zero have no units; they are left out.
    used = np.where(np.diag(own)[1:, None] > 0, kernel[1:] / unit[:, None], 0.0)
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
    return left, right, lambda product: kernel[0] + mean_of @ kernel[1:] - mean @ product


class _Ranks(AffineLayers):
    """The linear layers of a model, their factors at every rank, and the cost of a split.

    A layer's error is measured in the covariance of its "inputs", in its "weights" alone, or in
    these with a bias that takes up the error at the "mean" input.
    """

    rows, batch = 12_000, 1000

    def __init__(self, problem: Problem, at: Any, metric: str):
        super().__init__(problem, at)
        self.metric, self.tried = metric, 0
        moments = [np.eye(len(k)) for k in self.kernels] if metric == "weights" else self.grams
        if metric == "mean":  # inputs with the same mean and the identity for a covariance
            moments = [np.outer(g[0], g[0]) + np.diag(np.arange(len(g)) > 0) for g in moments]
        self.all = [factor(k, g, g) for k, g in zip(self.kernels, moments, strict=True)]
        self.shapes = [(len(k) - 1, k.shape[1]) for k in self.kernels]
        self.most = [min(shape) for shape in self.shapes]
        ones = [1] * len(self.paths)
        self.base = 0
        self.base = self.stored(ones) - self.bytes(ones)

    def _cost(self, i: int, rank: int) -> int:
        m, n = self.shapes[i]
        return self.dtypes[i].itemsize * min(rank * (m + n), m * n)

    def bytes(self, ranks: list[int]) -> int:
        """Bytes of the file at these ranks, about."""
        return self.base + sum(self._cost(i, r) for i, r in enumerate(ranks))

    def forms(self, ranks: list[int]) -> list[Form]:
        """The layers at these ranks; whole where that takes no more."""
        return [self._at(i, rank, *self.all[i]) for i, rank in enumerate(ranks)]

    def _at(self, i: int, rank: int, left: Any, right: Any, bias_of: Any) -> Form:
        m, n = self.shapes[i]
        if rank * (m + n) >= m * n:
            return Form(self.kernels[i], None)
        left, right = left[:, :rank], right[:rank]
        product = left @ right
        return Form(np.concatenate([bias_of(product)[None], product]), (left, right))

    def score(self, ranks: list[int]) -> Score:
        """Validation score of a split."""
        self.tried += 1
        return self.problem.score_model(self.probe(self.forms(ranks)))

    def stored(self, ranks: list[int]) -> int:
        """Bytes of a file."""
        return export.stored_bytes(self.factored(self.forms(ranks)))

    def factored(self, forms: list[Form]) -> nnx.Module:
        """The model to store."""
        operators: list[nn.Operator] = []
        for form, dtype, biased in zip(forms, self.dtypes, self.biased, strict=True):
            cast = lambda a, dtype=dtype: on_device(a, dtype)
            bias = cast(form.kernel[0])
            if form.factors is None:
                operators.append(nn.Dense(cast(form.kernel[1:]), bias if biased else None))
            else:
                left, right = map(cast, form.factors)
                operators.append(nn.LowRank(left, right, bias))
        return with_factors(self.twin, self.paths, operators)

    def within(self, score: Score, best: list[int]) -> tuple[Score, list[int]]:
        """Ranks whose file does fit: names in its header, and zeros, `bytes` does not foresee."""
        ranks = best
        while (size := self.stored(ranks)) > self.problem.limit:
            larger = [i for i, rank in enumerate(ranks) if rank > 1]
            if not larger:
                raise self.problem.too_small(size)
            lost = lambda i, ranks=ranks: np.sum(self.all[i][1][ranks[i] - 1] ** 2)
            least = min(larger, key=lost)
            ranks = [rank - (i == least) for i, rank in enumerate(ranks)]
        return (score if ranks == best else self.score(ranks)), ranks

    def uniform(self) -> list[int]:
        """The same share of its numbers for each layer."""
        ranks = lambda share: [
            max(1, min(m, n, int(share * m * n / (m + n)))) for m, n in self.shapes
        ]
        fits = lambda share: self.bytes(ranks(share)) <= self.problem.limit
        return self._filled(ranks(largest(0.0, 1.0, fits, 2**-30)))

    def greedy(self) -> list[int]:
        """Ranks by the share of a layer's energy that a byte buys."""
        return self._filled([1] * len(self.paths))

    def _filled(self, ranks: list[int]) -> list[int]:
        """What is left of the budget is spent where a byte buys most energy."""
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

    def climb(self, score: Score, ranks: list[int]) -> tuple[Score, list[int]]:
        """Move bytes from layer to layer while that helps, in smaller and smaller steps."""
        pairs = list(itertools.permutations(range(len(ranks)), 2))
        for share in (0.4, 0.2, 0.1, 0.0):
            better = True
            while better and self.tried < TRIALS:
                better = False
                for i, j in pairs:
                    moved = self._move(ranks, i, j, share)
                    if moved is None or self.tried >= TRIALS:
                        continue
                    if (now := self.score(moved)) > score:
                        score, ranks, better = now, moved, True
        return score, ranks

    def _move(self, ranks: list[int], i: int, j: int, share: float) -> list[int] | None:
        """Ranks with a share of layer i's given to layer j, or None where that is no change."""
        step = max(1, round(share * ranks[i]))
        if ranks[i] - step < 1 or ranks[j] >= self.most[j]:
            return None
        out = list(ranks)
        out[i] -= step
        while out[j] < self.most[j]:
            out[j] += 1
            if self.bytes(out) > self.problem.limit:
                out[j] -= 1
                break
        return None if out[j] == ranks[j] else out

    def refit(self, ranks: list[int]) -> list[Form]:
        """Each layer from the inputs that the factored layers before it deliver, in order."""
        forms = self.forms(ranks)
        for i in range(1, len(forms)):
            if forms[i].factors is not None:
                moments = self.moments(i, [form.kernel for form in forms])
                forms[i] = self._at(i, ranks[i], *factor(self.kernels[i], *moments))
        return forms
