"""Deep compression: pruning, then few values or a grid, then entropy coding."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from koopjax._core import codebooks
from koopjax.compress._problem import Problem, posed
from koopjax.compress._result import Compressed
from koopjax.compress.gram._obs import refit, removal_order
from koopjax.compress.gram.formats import Rounding, feedback, on_codebook, on_grid
from koopjax.compress.layers._allocation import Ladders, Rung, divided, frontier
from koopjax.compress.layers._layers import AffineLayers
from koopjax.compress.methods._few_values import aim

#: Shares of a layer's weights that are kept.
SHARES = (1.0, 0.7, 0.5, 0.36, 0.26, 0.19, 0.14, 0.1, 0.072, 0.052, 0.037, 0.026, 0.018, 0.01)
#: Sizes of codebooks for what is kept.
VALUES = (4, 8, 16, 32, 64)
#: Steps of grids, relative to the root mean square of what is kept.
GRIDS = (2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.12, 0.06)
#: Largest multiple of a grid's step.
MOST = 1 << 14
#: Ridge of refits and of the error feedback, relative to the second moment of each input.
RIDGE = 1e-3
#: How the weights that go are chosen.
RANKINGS = ("obs", "magnitude")
#: Most forms of a layer that are made to the end, for each ranking.
FORMS = {"obs": 28, "magnitude": 14}


@posed
def deep_compression(problem: Problem, at: Any) -> Compressed:
    """Prune, quantise what is left, code the places and the values at the price of their entropy.

    Weights go by optimal brain surgeon, `v² / [G⁻¹]_ii` with the rest refitted, or by magnitude,
    whichever validates better. What stays is rounded to the best codebook of 4 to 64 values or to
    a grid; after optimal brain surgeon with error feedback by the layer's Gram matrix G. A layer
    has a form for each share kept and number of values; those that no smaller one betters in the
    error of its output are split over the layers from equal errors and from the least sum of
    errors, and move while the validation score rises. At last layers are quantised once more in
    their order, towards the original's outputs from what those before really deliver, if that
    validates better.

    Args:
        model: an `nnx.Module` with `nnx.Linear` layers, or a Linen MLP of `koopjax.models`. Other
            arrays stay whole.
        calibration, budget, at, labels, validation, task, score_fn, key: as for `whitened_svd`.

    Returns:
        `Compressed`: a copy of the model, its kernels with zeros and few distinct values; and the
        report.

    Numerics:
        Float64 on the host: one pruning order a layer, about 200 roundings, and error feedback (a
        factorisation a column, of the size of what is kept) for those that are taken.

    Raises:
        ValueError: bad data, an unknown cut, no linear layer there, or a budget below the file with
            all kernels zero.

    Reference: Han, Mao & Dally (2016), ICLR; Frantar & Alistarh (2022), Optimal Brain Compression,
        NeurIPS 35.
    """
    layers = AffineLayers(problem, at)
    lowest = [_nothing(layers, i) for i in range(len(layers.kernels))]
    # With nothing kept at all first, so that a budget below is refused before any work.
    Ladders(problem, [[rung] for rung in lowest], layers.probe)

    def ladders(ranking: str) -> list[list[Rung]]:
        made = [_rungs(layers, i, ranking) for i in range(len(lowest))]
        return [frontier([low, *own]) for low, own in zip(lowest, made, strict=True)]

    score, chosen, ranking, tried = divided(
        problem, ((name, ladders(name)) for name in RANKINGS), 80, layers.probe
    )
    settings: dict[str, Any] = {"pruning": ranking, "layers": [r.note for r in chosen]}
    model, tried = layers.probe(chosen), tried + 1
    once_more = layers.build(_once_more(layers, chosen))
    if (again := problem.improved(score, once_more)) is not None:
        score, model = again, once_more
        settings["inputs"] = "as delivered"
    return problem.finish(
        model, score, settings={**layers.where, **settings}, candidates=tried,
        why=f"of {tried} splits over layers, shares and values, the best {problem.measure}",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Coding:
    """How a layer is quantised: the mask of what stays, and the step of a grid or sorted values."""

    mask: np.ndarray
    step: float | None = None
    book: np.ndarray | None = None

    def rounding(self, dtype: np.dtype) -> Rounding:
        """To the grid or the codebook."""
        if self.step is not None:
            return on_grid(self.step, MOST, dtype)
        assert self.book is not None
        return on_codebook(self.book)

    @property
    def words(self) -> str:
        """For the report."""
        share = self.mask[1:].mean()
        what = f"step {self.step:.3g}" if self.book is None else f"{len(self.book)} values"
        return f"{100 * share:.1f} %, {what}"


def _on_books(
    mask: np.ndarray, target: np.ndarray, gram: np.ndarray, dtype: np.dtype, sizes: Sequence[int]
) -> list[Coding]:
    """Codebooks for what a mask keeps of a target, an error counting by its input's moment."""
    weights = np.where(mask, target, 0.0)[1:].astype(dtype)
    kept = weights != 0
    if not kept.any():
        return [Coding(mask, book=np.zeros(1)) for _ in sizes]
    cost = np.broadcast_to(np.diag(gram)[1:, None], weights.shape)
    books = [book for book, _ in codebooks(weights[kept], sizes, cost[kept])]
    return [Coding(mask, book=np.unique(b.astype(dtype)).astype(np.float64)) for b in books]


def _nothing(layers: AffineLayers, i: int) -> Rung:
    """A layer of its bias alone."""
    mask = np.zeros(layers.kernels[i].shape, bool)
    mask[0] = layers.biased[i]
    kernel = layers.centred(i, np.zeros(mask[1:].shape))
    return layers.rung(i, kernel, Coding(mask, step=1.0), "0 %")


def _rungs(layers: AffineLayers, i: int, ranking: str) -> list[Rung]:
    """The forms of a layer that no smaller one betters."""
    gram, target, live = aim(layers, i, None, RIDGE)
    if ranking == "obs":
        order = removal_order(gram, target, alpha=RIDGE, protect=(0,)).rank[1:]
    else:
        order = np.argsort(np.argsort(np.abs(target[1:]), axis=None)).reshape(target[1:].shape)
    order = np.where(live[1:], order, -1)
    drafts = []
    # Without refits there are fewer shares worth a try.
    for share in SHARES if ranking == "obs" else SHARES[::2]:
        count = min(round(share * order.size), int(np.count_nonzero(live[1:])))
        if not count:
            continue
        mask = live.copy()
        mask[1:] = order >= np.partition(order, order.size - count, axis=None)[-count]
        kept = np.where(mask, target, 0.0)
        if ranking == "obs" and share < 1:
            kept = refit(gram, gram @ target, mask, alpha=RIDGE)
        drafts += _drafts(layers, i, kept, mask)
    # estimates are within a tenth, and what is larger than all of the file is of no use
    drafts = [d for d in frontier(drafts) if d.size < 1.1 * layers.problem.limit]
    drafts = _thinned(drafts, FORMS[ranking])
    return frontier([_finished(layers, i, draft, ranking == "obs") for draft in drafts])


def _drafts(layers: AffineLayers, i: int, kept: np.ndarray, mask: np.ndarray) -> list[Rung]:
    """Roundings to the nearest with estimates of their bytes; `kernel` is what they round."""
    gram, dtype = layers.grams[i], layers.dtypes[i]
    spread = float(np.sqrt(np.mean(kept[1:][mask[1:]] ** 2)))
    codings = [Coding(mask, step=g * spread) for g in GRIDS if spread > 0]
    sizes = [k for k in VALUES if 2 * k < np.count_nonzero(mask[1:])]
    codings += _on_books(mask, kept, gram, dtype, sizes) if sizes else []
    out = []
    for coding in codings:
        rounded = np.where(mask[1:], coding.rounding(dtype)(kept[1:]), 0.0)
        _, counts = np.unique(rounded, return_counts=True)
        entropy = -np.sum(counts * np.log2(counts / rounded.size)) / 8
        size = int(entropy + dtype.itemsize * (len(counts) if coding.step is None else 1))
        out.append(Rung(size, layers.error(i, layers.centred(i, rounded)), kept, coding))
    return out


def _thinned(rungs: list[Rung], most: int) -> list[Rung]:
    """At most so many of them, evenly by the logarithm of their size."""
    if len(rungs) <= most:
        return rungs
    sizes = np.log([max(rung.size, 1) for rung in rungs])
    wanted = np.linspace(sizes[0], sizes[-1], most)
    places = sorted({int(np.argmin(np.abs(sizes - w))) for w in wanted})
    return [rungs[k] for k in places]


def _finished(layers: AffineLayers, i: int, draft: Rung, fed_back: bool) -> Rung:
    """A draft rounded with error feedback or to the nearest, in its true size."""
    coding, kept = draft.form, draft.kernel
    if fed_back:
        kernel = _quantised(layers, i, layers.grams[i], kept, coding)
    else:
        nearest = coding.rounding(layers.dtypes[i])(kept[1:])
        kernel = layers.centred(i, np.where(coding.mask[1:], nearest, 0.0))
    return layers.rung(i, kernel, coding, coding.words)


def _quantised(
    layers: AffineLayers, i: int, gram: np.ndarray, target: np.ndarray, coding: Coding
) -> np.ndarray:
    """A target on the mask of a coding, rounded with error feedback."""
    rounding = coding.rounding(layers.dtypes[i])
    return feedback(gram, target, rounding, mask=coding.mask, protect=(0,), alpha=RIDGE)


def _once_more(layers: AffineLayers, rungs: list[Rung]) -> list[np.ndarray]:
    """Layers quantised again, each for the inputs that those before it deliver."""
    out = [rung.kernel for rung in rungs]
    for i, rung in enumerate(rungs):
        mask = rung.form.mask
        gram, target, live = aim(layers, i, out, RIDGE)
        target = refit(gram, gram @ target, mask & live, alpha=RIDGE)
        coding = rung.form
        if coding.book is not None:
            (coding,) = _on_books(mask, target, gram, layers.dtypes[i], [len(coding.book)])
        out[i] = _quantised(layers, i, gram, target, coding)
    return out
