"""k-means codebooks: the weights of a layer share a few values."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from koopjax._core import codebooks
from koopjax.compress._problem import Problem, posed
from koopjax.compress._result import Compressed
from koopjax.compress.layers._allocation import Ladders, Rung, divided, frontier
from koopjax.compress.layers._layers import AffineLayers

#: Sizes of codebook that are tried for a layer.
SIZES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256)
#: What an entry's squared error counts: the same, or as much as its input's second moment.
WEIGHTS = ("uniform", "moments")


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
    build = lambda rungs: layers.build([rung.kernel for rung in rungs])
    # A budget below is refused before any work.
    Ladders(problem, [[rung] for rung in lowest], build)

    def ladders(weighting: str) -> list[list[Rung]]:
        return [frontier([lowest[i], *_rungs(layers, i, weighting)]) for i in count]

    score, chosen, weighting, tried = divided(
        problem, ((name, ladders(name)) for name in WEIGHTS), 60, build
    )
    model, shifted = build(chosen), layers.build(layers.recentred([r.kernel for r in chosen]))
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
        power = np.where(layers.dead(i), 0.0, np.diag(layers.grams[i])[1:])
        weights = np.where(layers.dead(i)[:, None], np.zeros((), weights.dtype), weights)
        cost = np.broadcast_to(power[:, None], weights.shape)
    rungs, sizes = [], [size for size in sizes if size == 2 or 2 * size <= weights.size]
    found = codebooks(weights, sizes, cost, keep_zero=True)
    for size, (book, codes) in zip(sizes, found, strict=True):
        values = book.astype(weights.dtype)[codes]
        rungs.append(layers.rung(i, layers.centred(i, values.astype(np.float64)), note=size))
    return frontier(rungs)
