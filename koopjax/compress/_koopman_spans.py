"""Which span to replace, in how many bits, and several spans of one network."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from koopjax import export, surgery
from koopjax._core import expected
from koopjax.compress._budget import too_small
from koopjax.compress._koopman_block import Job, fixed_bytes, least_block, states
from koopjax.compress._koopman_build import Built, build
from koopjax.compress._koopman_entries import with_entries
from koopjax.compress._koopman_reader import readings
from koopjax.compress._koopman_span import Clock, Found, Span
from koopjax.compress._problem import Problem, Score, cut
from koopjax.compress._search import search

#: Bits of an entry that are tried, and how many of them its entropy takes less.
BITS, SPARED = (5, 4, 6), 0.5


class Fitted(NamedTuple):
    """What a search found, and the block made of it.

    Attributes:
        job: the span, read as was best.
        found, built: of it.
    """

    job: Job
    found: Found
    built: Built


def check_extras(bits: Any, seconds: Any, spans: Any, at: Any) -> None:
    """Refuse settings of `koopman` that it has no meaning for.

    Raises:
        ValueError: in one line.
    """
    if bits not in ("float32", "any"):
        raise expected("koopman: bits 'float32' or 'any'", repr(bits))
    if seconds is not None and not seconds >= 0:
        raise expected("koopman: seconds at least 0", f"{seconds}", "None for no bound")
    if spans not in (None, "search"):
        raise expected("koopman: spans None or 'search'", repr(spans))
    if spans and at is not None:
        raise expected("koopman: at or spans='search'", "both", "one of them")


def fit(job: Job, bits: str, clock: Clock) -> Fitted:
    """The best block of a span.

    Its state as it is, then behind directions of its axes; float32 first, then on grids of few bits
    where they are wanted; of the best in float32 also one whose K keeps single entries.
    """
    best: Fitted | None = None
    tried = skipped = 0
    for width in (None, *(BITS if bits == "any" else ())):
        made: list[tuple[Job, Found]] = []
        for read in readings(job, width):
            if (best is not None or made) and clock.over():
                skipped += 1
                break
            room = read.room if width is None else int(read.room * 32 / (width - SPARED))
            made.append((read, search(read.problem, read.span, room, clock)))
        tried += sum(found.tried for _, found in made)
        skipped += sum(found.skipped for _, found in made)
        if made:
            read, found = max(made, key=lambda one: one[1].score)
            setting = dataclasses.replace(found.setting, bits=width)
            found = dataclasses.replace(found, setting=setting)
            other = Fitted(read, found, build(read, found))
            if best is None or (other.built.fits and other.built.score > best.built.score):
                best = other
    assert best is not None
    if best.found.setting.bits is None and not clock.over():
        built, tried = with_entries(best.job, best.found), tried + 1
        if built is not None and built.score > best.built.score:
            best = best._replace(built=built)
    return best._replace(found=dataclasses.replace(best.found, tried=tried, skipped=skipped))


def candidates(problem: Problem) -> list[tuple[str, str]]:
    """Pairs of cuts: the whole network, from later hidden layers on, and up to earlier ones."""
    sample = jax.ShapeDtypeStruct((2, *problem.x.shape[1:]), problem.x.dtype)
    hidden = [c.name for c in surgery.cut_points(problem.model, sample) if c.hidden]
    later = [(name, "output") for name in hidden]
    if not jnp.issubdtype(sample.dtype, jnp.floating):  # tokens are no state to replace
        return later
    return [("input", "output"), *later, *(("input", name) for name in reversed(hidden))]


def pairs_of(at: Any) -> list[tuple[Any, Any]] | None:
    """The spans of a list of pairs; None where `at` is one cut or one pair."""
    if not isinstance(at, list | tuple) or not at:
        return None
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in at):
        return None
    return [tuple(pair) for pair in at]


def several(
    problem: Problem, pairs: Any, bits: str, clock: Clock, key: Array
) -> tuple[nnx.Module, list[Fitted], Score]:
    """A block for each of several spans, each fitted on what those before it deliver.

    Args:
        problem: the model and the data; its limit is that of all blocks together.
        pairs: pairs of cuts, in any order, that do not overlap.
        bits, clock: as for `fit`.
        key: for draws.

    Returns:
        The model, the fit of each span, and the score of the whole.

    Raises:
        ValueError: spans that overlap; `BudgetTooSmall`.
    """
    sample = jax.ShapeDtypeStruct((2, *problem.x.shape[1:]), problem.x.dtype)
    places = {c.name: (c.index, c.parameters) for c in surgery.cut_points(problem.model, sample)}
    places["input"] = (-1, 0)
    where = places.__getitem__
    ends = [cut(problem.model, problem.x, pair)[1] for pair in pairs]
    ends.sort(key=lambda names: where(names[0])[0])
    for (_, b), (c, _) in itertools.pairwise(ends):
        if where(b)[0] > where(c)[0]:
            raise expected("koopman: spans that do not overlap", f"{ends}", "at=[(a, b), (c, d)]")
    spans = [states(problem, cut(problem.model, problem.x, e)[0], key) for e in ends]
    least = sum(s.least for s in spans)
    empty = _together(problem, ends, spans, [least_block(s) for s in spans])
    base = export.stored_bytes(empty) - least + 12 * len(ends)
    if base + least > problem.limit:
        raise too_small("koopman", problem.limit, base + least, problem.original_bytes)
    weights = [max(1, where(b)[1] - where(a)[1]) for a, b in ends]
    room = problem.limit - base - least
    shares = [s.least + room * w // sum(weights) for s, w in zip(spans, weights, strict=True)]
    while True:
        made: list[Fitted] = []
        spare = 0  # what a span can make no use of goes to the next
        for names, share in zip(ends, shares, strict=True):
            made.append(_one(problem, names, share + spare, made, bits, clock, key))
            last = made[-1]
            spare = max(0, last.job.problem.limit - export.stored_bytes(last.built.model))
        blocks = [_block_of(fitted.built.model) for fitted in made]
        model = _together(problem, ends, spans, blocks)
        over = export.stored_bytes(model) - problem.limit
        if over <= 0:
            return model, made, problem.score_model(model)
        shares[-1] -= over + 8


def _one(
    problem: Problem, names: tuple[str, str], share: int, made: list[Fitted], bits: str,
    clock: Clock, key: Array,
) -> Fitted:  # fmt: skip
    """One span, fed by the blocks before it; all that is behind it is the original's."""
    parts, names = cut(problem.model, problem.x, names)
    deliver = None
    if made:
        chain: list[Any] = []
        start = "input"
        for fitted in made:
            ends = fitted.job.ends
            if ends[0] != start:
                chain.append(cut(problem.model, problem.x, (start, ends[0]))[0][1])
            chain.append(_rowwise(fitted.job.span, _block_of(fitted.built.model)))
            start = ends[1]
        if names[0] != start:
            chain.append(cut(problem.model, problem.x, (start, names[0]))[0][1])
        deliver = lambda x: _through(chain, x)
    span = states(problem, parts, jax.random.fold_in(key, 1), deliver)
    # The rest of the original is in this file and must not count: only the block's share does.
    limit = fixed_bytes(problem, span, names) + share
    job = Job(dataclasses.replace(problem, limit=limit), span, names, share)
    return fit(job, bits, clock)


def _through(chain: list[Any], x: Any) -> Any:
    for part in chain:
        x = part(x)
    return x


def _rowwise(span: Span, block: Any) -> Any:
    """A block on states in their own shape."""

    def run(h: Array) -> Array:
        out = block(h.reshape(len(h), -1))
        return out.reshape(len(h), *span.out_shape).astype(span.out_dtype)

    return run


def _block_of(model: Any) -> Any:
    """The block of a model that `wrap` made."""
    if not isinstance(model, surgery.Spliced):
        return model
    return getattr(model.block, "block", model.block)


def _together(problem: Problem, ends: Any, spans: list[Span], blocks: list[Any]) -> nnx.Module:
    """All blocks in one model, the last one first, so that the cuts before it keep their names."""
    model: Any = problem.model
    sample = jax.ShapeDtypeStruct((2, *problem.x.shape[1:]), problem.x.dtype)
    prefix = ""
    for (a, b), span, block in reversed(list(zip(ends, spans, blocks, strict=True))):
        named = tuple(n if n == "input" else prefix + n for n in (a, b))
        vector = span.raw.ndim == 2 and len(span.out_shape) == 1
        axes = None if vector else "flatten"
        model = surgery.splice(model, sample, named, block, sample_axes=axes)
        prefix = "head." + prefix
    return model
