"""Tensor trains: linear layers as TT matrices, ranks split over the layers."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from koopjax import nn, tt
from koopjax._core import on_device, ridge_solve, semidefinite_root
from koopjax.compress._problem import Problem, posed
from koopjax.compress._result import Compressed
from koopjax.compress.layers._allocation import Rung, divided, frontier
from koopjax.compress.layers._layers import AffineLayers, with_factors

#: Numbers of cores that are tried for a layer.
CORES = (2, 3, 4)
#: What a train is close in: the weights, or a Kronecker product near the inputs' covariance.
METRICS = ("weights", "inputs")
#: Ranks grow by this share from one form to the next.
GROWTH = 1.12
#: Sweeps of alternating least squares in the metric of the inputs, at the end.
SWEEPS = 6
#: Eigenvalues of the metric below this share of the largest are raised to it.
FLOOR = 1e-4
#: Of the systems of a core, relative to the mean of their diagonal.
RIDGE = 1e-6


@posed
def tensor_train(problem: Problem, at: Any) -> Compressed:
    """Linear layers as TT matrices, `W[(i_1..i_d), (j_1..j_d)] = G_1[i_1, j_1] .. G_d[i_d, j_d]`.

    Two to four cores of near-balanced modes and one rank a layer: TT-SVD of the weights, or of the
    weights in the Kronecker product of the partial traces of the inputs' covariance, whichever
    validates better. Modes and ranks start from equal errors and from the least sum of errors, and
    move between layers while the validation score rises; a layer that is smaller whole stays whole.
    At last the cores are fitted to the layer's output on the inputs by alternating least squares,
    and biases take up the mean errors, where these validate better.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`. Other
            arrays (convolutions, normalisation, embeddings) stay whole.
        calibration, budget, at, labels, validation, task, score_fn, key: as for `whitened_svd`.

    Returns:
        `Compressed`: an `nn.Stack` for an MLP, else a copy of the model with `nn.TT` in place of
        layers; and the report.

    Numerics:
        In float64 on the host: TT-SVDs, some twenty ranks a layer, number of cores and metric; in
        the last fit a linear system of size `r_{k-1} m_k r_k` a core and sweep.

    Raises:
        ValueError: bad data, an unknown cut, no linear layer there, or a budget below rank one
            everywhere.

    Reference: Oseledets (2011), SIAM J. Sci. Comput. 33; Novikov, Podoprikhin, Osokin & Vetrov
        (2015), NeurIPS 28.
    """
    work = _Trains(problem, at)
    count = range(len(work.kernels))
    ladders = ((metric, [work.ladder(i, metric) for i in count]) for metric in METRICS)
    score, rungs, metric, tried = divided(problem, ladders, 60, work.stored, work.probe)
    for name, change in (("outputs", work.fitted), ("means", work.with_biases)):
        changed, tried = change(rungs), tried + 1
        again = problem.improved(score, work.probe(changed), work.stored(changed))
        if again is not None:
            score, rungs, metric = again, changed, f"{metric}, then {name}"
    return problem.finish(
        work.stored(rungs), score, candidates=tried,
        settings={**work.where, "trains": [rung.note for rung in rungs], "metric": metric},
        why=f"of {tried} splits over the layers, the best validation {problem.measure}",
    )  # fmt: skip


def balanced(size: int, count: int) -> tuple[int, ...]:
    """`count` factors of a size, as near to each other as they get, large and small in turn."""

    def factorisations(rest: int, left: int, least: int) -> list[tuple[int, ...]]:
        if left == 1:
            return [(rest,)] if rest >= least else []
        divisors = [f for f in range(least, math.isqrt(rest) + 1) if rest % f == 0]
        return [(f, *more) for f in divisors for more in factorisations(rest // f, left - 1, f)]

    # of (1, ..., 1, size) there is always one
    best = min(factorisations(size, count, 1), key=lambda f: f[-1] / f[0])
    small, large = best[: count // 2], best[count // 2 :][::-1]
    turns = itertools.zip_longest(large, small)
    return tuple(f for pair in turns for f in pair if f is not None)


def dense(cores: Sequence[np.ndarray]) -> np.ndarray:
    """The matrix of TT cores `(r, m, n, r')`, on the host."""
    return _frame(cores)[0, :, :, 0]


def partial_traces(gram: np.ndarray, modes: Sequence[int]) -> list[np.ndarray]:
    """A matrix a mode, of mean eigenvalue 1, whose Kronecker product is near a multiple of G."""
    factors = []
    for k, m in enumerate(modes):
        before, after = math.prod(modes[:k]), math.prod(modes[k + 1 :])
        blocks = gram.reshape(before, m, after, before, m, after)
        factor = np.einsum("xiyxjy->ij", blocks)
        trace = np.trace(factor)
        factors.append(factor * m / trace if trace > 0 else np.eye(m))
    return factors


def train_of(
    weights: np.ndarray, modes: tuple[Sequence[int], Sequence[int]], rank: int, roots: Any
) -> list[np.ndarray]:
    """Cores of TT-SVD in a Kronecker metric of the rows, or the plain norm without `roots`."""
    rows, columns = modes
    tensor = weights.reshape(*rows, -1)
    if roots is not None:
        for axis, root in enumerate(roots):
            tensor = np.moveaxis(np.tensordot(root.symmetric, tensor, (1, axis)), 0, axis)
    # in the dtype given, as a cast on the device would compile for every shape
    matrix = tensor.reshape(weights.shape).astype(weights.dtype)
    train = tt.matrix_from_dense(matrix, rows, columns, max_rank=rank)
    cores = [np.asarray(core, np.float64) for core in train.cores]
    if roots is None:
        return cores
    # The product of the inverses acts on each core alone, so the way back costs no rank.
    back = zip(cores, roots, strict=True)
    return [np.einsum("aijb,ki->akjb", core, root.inverse) for core, root in back]


def alternate(
    cores: Sequence[np.ndarray], weights: np.ndarray, gram: np.ndarray, sweeps: int = SWEEPS
) -> list[np.ndarray]:
    """Cores that lower `tr((W − T)ᵀ G (W − T))`: each solved in turn, the others held.

    As `tensor_edmd.approximate` does it, but for one small system a core, and nothing is compiled.
    """
    cores, cross = list(cores), gram @ weights
    for _ in range(sweeps):
        for k, core in enumerate(cores):
            a, m, n, b = core.shape
            left, right = _frame(cores[:k])[0], _frame(cores[k + 1 :])[..., 0]
            (x, p, _), (_, y, q) = left.shape, right.shape
            both = np.einsum("xpa,zpc->xazc", left, left), np.einsum("byq,dwq->bydw", right, right)
            system = np.einsum(
                "xazc,bydw,xiyzjw->aibcjd", *both, gram.reshape(x, m, y, x, m, y), optimize=True
            ).reshape(a * m * b, a * m * b)
            goal = np.einsum(
                "xpa,byq,xiypjq->aibj", left, right, cross.reshape(x, m, y, p, n, q), optimize=True
            )
            ridge = RIDGE * max(np.trace(system) / len(system), 1e-300)
            # towards the core that there is, where the inputs say nothing
            held = core.transpose(0, 1, 3, 2).reshape(-1, n)
            goal = goal.reshape(-1, n) + ridge * held
            found = ridge_solve(system, goal, ridge)
            cores[k] = found.reshape(a, m, b, n).transpose(0, 1, 3, 2)
    return cores


def _frame(cores: Sequence[np.ndarray]) -> np.ndarray:
    """The product of some cores, `(r, ∏ m, ∏ n, r')`."""
    whole = np.ones((1, 1, 1, 1))
    if cores:
        whole = cores[0]
    for core in cores[1:]:
        product = np.einsum("aijb,bklc->aikjlc", whole, core)
        a, i, k, j, last, c = product.shape
        whole = product.reshape(a, i * k, j * last, c)
    return whole


class _Trains(AffineLayers):
    """The forms of every layer, and models of them."""

    def ladder(self, i: int, metric: str) -> list[Rung]:
        """A frontier: trains of all numbers of cores and ranks, and the whole layer."""
        whole = self.kernels[i]
        top = Rung(self._size(i, [whole[1:]]), 0.0, whole, note="dense")
        rungs = [top]
        wide = self.dtypes[i] == np.float64
        weights = whole[1:].astype(np.float64 if wide else np.float32)
        covariance = self._covariance(i)
        for count in CORES:
            modes = balanced(weights.shape[0], count), balanced(weights.shape[1], count)
            roots = None
            if metric == "inputs":
                roots = [semidefinite_root(f, FLOOR) for f in partial_traces(covariance, modes[0])]
            rank = 1
            while True:
                rung = self._rung(i, train_of(weights, modes, rank, roots))
                if rung.size >= top.size:
                    break
                rungs.append(rung)
                if max(core.shape[-1] for core in rung.form) < rank:
                    break  # the modes allow no more
                rank = max(rank + 1, round(GROWTH * rank))
        return frontier(rungs)

    def _covariance(self, i: int) -> np.ndarray:
        gram = self.grams[i]
        return gram[1:, 1:] - np.outer(gram[0, 1:], gram[0, 1:])

    def _rung(self, i: int, cores: list[np.ndarray]) -> Rung:
        dtype = self.dtypes[i]
        cores = [core.astype(dtype) for core in cores]
        kernel = self.centred(i, dense([core.astype(np.float64) for core in cores]))
        shapes = [f"{core.shape[1]}x{core.shape[2]}" for core in cores]
        note = {"modes": " ".join(shapes), "ranks": [core.shape[-1] for core in cores[:-1]]}
        return Rung(self._size(i, cores), self.error(i, kernel), kernel, cores, note)

    def _size(self, i: int, arrays: Sequence[np.ndarray]) -> int:
        """Bytes in the file, with a few for the modes and the rank of each array."""
        return sum(self.dtypes[i].itemsize * a.size + 5 for a in arrays)

    def stored(self, rungs: list[Rung]) -> nnx.Module:
        """The model to store."""
        operators: list[nn.Operator] = []
        for rung, dtype, biased in zip(rungs, self.dtypes, self.biased, strict=True):
            cast = lambda a, dtype=dtype: on_device(a, dtype)
            bias = cast(rung.kernel[0]) if biased else None
            operators.append(
                nn.Dense(cast(rung.kernel[1:]), bias) if rung.form is None
                else nn.TT([cast(core) for core in rung.form], bias)
            )  # fmt: skip
        return with_factors(self.twin, self.paths, operators)

    def fitted(self, rungs: list[Rung]) -> list[Rung]:
        """The same trains, fitted to the layers' outputs on the inputs."""
        out = list(rungs)
        for i, rung in enumerate(rungs):
            if rung.form is not None:
                start = [core.astype(np.float64) for core in rung.form]
                cores = alternate(start, self.kernels[i][1:], self._covariance(i))
                out[i] = self._rung(i, cores)
        return out

    def with_biases(self, rungs: list[Rung]) -> list[Rung]:
        """The same trains with biases for what the layers before them deliver."""
        kernels = self.recentred([rung.kernel for rung in rungs])
        pairs = zip(rungs, kernels, strict=True)
        return [r if r.form is None else dataclasses.replace(r, kernel=k) for r, k in pairs]
