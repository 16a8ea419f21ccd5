"""The Koopman method: a span replaced by projection, dictionary and K within a budget of bytes."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from koopjax import export, surgery
from koopjax._core import UNDERDETERMINED, as_flag, expected
from koopjax.compress._koopman.block import least_block
from koopjax.compress._koopman.fit import Fitted, fit, fit_entries
from koopjax.compress._koopman.search import Tally, search
from koopjax.compress._koopman.span import Span, readings, roomy_span, span_of
from koopjax.compress._problem import Problem, Score, cut, posed
from koopjax.compress._result import BudgetTooSmall, Compressed

#: Calibration samples an observable below which the result is flagged.
FEW = 3
#: Bits of an entry that are tried, and how many of them its entropy takes less.
BITS, SPARED = (5, 4, 6), 0.5


@posed
def koopman(
    problem: Problem, at: Any, *, bits: str = "float32", seconds: float | None = None,
    search_spans: bool = False,
) -> Compressed:  # fmt: skip
    """Replace a span by few coordinates, their products, and a Koopman matrix.

    `block(h) = psi(W h[kept] - shift) K`: some entries of the state, or of what directions of its
    axes read from it (`observables.Kronecker`), projected by `W` to an active subspace, lifted by
    the products of the coordinates up to a degree (or the most useful of them), and mapped linearly
    to the span's output. How it is read, how many entries, coordinates and products, which degree,
    which rank of K and which ridge is chosen on validation data, such that the file fits.
    No training and no labels: three passes for covariance, Jacobians and a pilot, then one pass for
    each number of entries, whose Gram matrix answers all numbers of coordinates, products, ranks
    and ridges as submatrices.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` or any callable
            pytree.
        calibration: `(n, ...)` samples as the model takes them, unlabelled; thousands where there
            are that many.
        budget: `"30x"`, `"64KiB"`, bytes, or a `Budget`; of the whole model's file.
        at: a cut to start from, or a pair of cuts, as for `surgery.split`; from the input to the
            output without. What lies outside the span stays and takes its bytes. A list of pairs:
            a block for each, fitted one after another, the later ones on what the earlier deliver;
            they share the budget as the spans share the original's parameters.
        labels: `(n,)` classes of `calibration`, to choose settings by accuracy; without, by what
            the original answers, as for a regression always. Never used in the fit.
        validation: `x_val` or `(x_val, y_val)`; without, some of `calibration` are held out.
        task: "classification" or "regression"; found from outputs and labels where left out. One
            without labels is judged by R² of its outputs unless it is said to be a classifier,
            whose answers alone then count (agreement), and no shift that all logits share.
        score_fn: `score_fn(outputs, labels)`, a scalar, larger is better, in place of accuracy and
            R²; the same object again compiles nothing.
        key: draws held-out samples and those for the Jacobians.
        bits: "float32", or "any" to try projections and K of few bits an entry as well.
        seconds: after which no further choice is tried; the best so far is returned, and the report
            says how much was left out.
        search_spans: try several pairs of cuts, beginning with the whole network; not with `at`.

    Returns:
        `Compressed`: the model, an `nn.KoopmanBlock` where the span is the whole of a model of
        vectors, else a `surgery.Spliced`; and the report.

    Numerics:
        Statistics in float64 where the backend has it, eigenvectors and eliminations in float64 on
        the host, parameters float32. `O(n p² + d³)` for states of `d` entries and `p` products, `p`
        at most about a thousand. With few samples the ridge rises by itself, as validation asks for
        it, and dictionaries of more than half as many observables are left out; the report says so
        with code UNDERDETERMINED.

    Raises:
        ValueError: bad data, an unknown cut, or a budget that no form fits, with the least that one
            does.

    Reference:
        Sugishita, Kinjo & Ohkubo (2024), arXiv:2402.11740; Constantine, "Active Subspaces" (2015).
    """
    if bits not in ("float32", "any"):
        raise expected("koopman: bits 'float32' or 'any'", repr(bits))
    if seconds is not None and not seconds >= 0:
        raise expected("koopman: seconds at least 0", f"{seconds}", "None for no bound")
    if as_flag("koopman: search_spans", search_spans) and at is not None:
        raise expected("koopman: at or search_spans", "both", "one of them")
    tally = Tally(seconds)
    is_pair = lambda one: isinstance(one, list | tuple) and len(one) == 2
    if isinstance(at, list | tuple) and at and all(map(is_pair, at)):
        return _several(problem, at, bits, tally)
    made: list[Fitted] = []
    small: BudgetTooSmall | None = None
    for ends in _candidates(problem) if search_spans else [at]:
        if made and tally.over():
            tally.skipped += 1
            continue
        try:
            span = roomy_span(problem, ends)
        except BudgetTooSmall as error:  # another span may leave less of the original in the file
            small = small or error
            continue
        made.append(_best(span, bits, tally))
    if not made:
        raise small or AssertionError("no span was tried")
    return account(max(made, key=lambda fitted: fitted.score), tally)


def _best(span: Span, bits: str, tally: Tally) -> Fitted:
    """The best block of a span: its state as it is, or behind directions of its axes.

    Float32 first, then few bits where they are wanted; of the best in float32 also single entries
    of K.
    """
    best: Fitted | None = None
    chosen: Any = None
    for width in (None, *(BITS if bits == "any" else ())):
        made: list[tuple[Score, Any, Span]] = []
        for read in readings(span, width):
            if (best is not None or made) and tally.over():
                tally.skipped += 1
                break
            room = read.room if width is None else int(read.room * 32 / (width - SPARED))
            made.append((*search(read, room, tally)[0], read))
        if made:
            _, setting, read = max(made, key=lambda one: one[0])
            setting = dataclasses.replace(setting, bits=width)
            other = fit(read, setting)
            if best is None or (other.over <= 0 and other.score > best.score):
                best, chosen = other, setting
    assert best is not None
    if chosen.bits is None and not tally.over():
        tally.tried += 1
        sparse = fit_entries(best.span, chosen)
        best = best if sparse is None else max(best, sparse, key=lambda fitted: fitted.score)
    return best


def account(fitted: Fitted, tally: Tally, why: str = "", **chosen: Any) -> Compressed:
    """The account of a block, with a sentence in place of that on the closed form."""
    span, setting, problem = fitted.span, fitted.setting, fitted.span.problem
    advice, code = [], fitted.code
    unused = -fitted.over > 0.2 * problem.limit
    if setting.observables * FEW > len(span.h) or (unused and setting.limited):
        code = UNDERDETERMINED
        advice.append(
            f"{len(span.h)} calibration samples are few: the dictionary was kept to "
            f"{setting.observables} observables and the ridge set to {setting.ridge:g} of their "
            "number; give more samples, which need no labels"
        )
    if tally.skipped:
        advice.append(f"the time was over with {tally.skipped} passes of the search left out")
    settings = {"at": list(span.ends), **span.reading(), **setting.as_dict(span.d), **chosen}
    why = why or (
        f"of {tally.tried} settings that fit, the best validation {problem.measure}; "
        f"directions from the {setting.directions.name} metric"
    )
    return problem.finish(
        fitted.model, fitted.score, settings=settings, why=why, candidates=tally.tried,
        result=code, advice=tuple(advice),
    )  # fmt: skip


def _candidates(problem: Problem) -> list[tuple[str, str]]:
    """Pairs of cuts: the whole network, from later hidden layers on, and up to earlier ones."""
    sample = jax.ShapeDtypeStruct((2, *problem.x.shape[1:]), problem.x.dtype)
    hidden = [c.name for c in surgery.cut_points(problem.model, sample) if c.hidden]
    later = [(name, "output") for name in hidden]
    if not jnp.issubdtype(sample.dtype, jnp.floating):  # tokens are no state to replace
        return later
    return [("input", "output"), *later, *(("input", name) for name in reversed(hidden))]


def _several(problem: Problem, pairs: Sequence[Any], bits: str, tally: Tally) -> Compressed:
    """A block for each of several spans, each fitted on what those before it deliver."""
    model, x = problem.model, problem.x
    sample = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    places = {c.name: (c.index, c.parameters) for c in surgery.cut_points(model, sample)}
    where = (places | {"input": (-1, 0)}).__getitem__
    ends = [cut(model, x, tuple(pair))[1] for pair in pairs]
    ends.sort(key=lambda names: where(names[0])[0])
    for (_, b), (c, _) in itertools.pairwise(ends):
        if where(b)[0] > where(c)[0]:
            raise expected("koopman: spans that do not overlap", f"{ends}", "at=[(a, b), (c, d)]")
    spans = [span_of(problem, names) for names in ends]
    least = sum(span.least for span in spans)
    empty = _spliced(spans, [least_block(span.d, span.q, None) for span in spans])
    base = export.stored_bytes(empty) - least + 12 * len(ends)
    room = problem.limit - base - least
    if room < 0:
        raise problem.too_small(base + least)
    # They share the budget as the spans share the original's parameters.
    weights = [max(1, where(b)[1] - where(a)[1]) for a, b in ends]
    shares = [s.least + room * w // sum(weights) for s, w in zip(spans, weights, strict=True)]
    while True:
        made: list[Fitted] = []
        fed: list[Any] = []  # what runs up to the span
        start, spare, tally.tried = "input", 0, 0
        for names, share in zip(ends, shares, strict=True):
            if names[0] != start:
                fed.append(cut(model, x, (start, names[0]))[0][1])
            span = span_of(problem, names, fed if made else ())
            # The rest of the original is in this file and must not count, only the block's share,
            # and what the span before could make no use of.
            limit = span.fixed + share + spare
            span = dataclasses.replace(span, problem=dataclasses.replace(problem, limit=limit))
            made.append(_best(span, bits, tally))
            spare, start = max(0, -made[-1].over), names[1]
            fed.append(_on_states(span, _block_of(made[-1].model)))
        whole = _spliced(spans, [_block_of(fitted.model) for fitted in made])
        over = export.stored_bytes(whole) - problem.limit
        if over <= 0:
            break
        shares[-1] -= over + 8
    settings: dict[str, Any] = {"at": [list(names) for names in ends]}
    for number, fitted in enumerate(made):
        span = fitted.span
        settings[f"span {number}"] = span.reading() | fitted.setting.as_dict(span.d)
    return problem.finish(
        whole, problem.score_model(whole), settings=settings, candidates=tally.tried,
        why=f"each span by the best validation {problem.measure}, in order",
        result=max(fitted.code for fitted in made),
    )  # fmt: skip


def _on_states(span: Span, block: Any) -> Any:
    """A block on states in their own shape."""

    def run(h: Array) -> Array:
        out = block(h.reshape(len(h), -1))
        return out.reshape(len(h), *span.out_shape).astype(span.out_dtype)

    return run


def _block_of(model: Any) -> Any:
    """The block of a model that `Span.with_block` made."""
    if not isinstance(model, surgery.Spliced):
        return model
    return getattr(model.block, "block", model.block)


def _spliced(spans: list[Span], blocks: list[Any]) -> nnx.Module:
    """All blocks in one model, the last one first, so that the cuts before it keep their names."""
    problem = spans[0].problem
    model: Any = problem.model
    sample = jax.ShapeDtypeStruct((2, *problem.x.shape[1:]), problem.x.dtype)
    prefix = ""
    for span, block in reversed(list(zip(spans, blocks, strict=True))):
        named = tuple(n if n == "input" else prefix + n for n in span.ends)
        axes = None if span.raw.ndim == 2 and len(span.out_shape) == 1 else "flatten"
        model = surgery.splice(model, sample, named, block, sample_axes=axes)
        prefix = "head." + prefix
    return model
