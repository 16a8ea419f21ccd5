"""A span as data: the states at both its cuts, the bytes for what replaces it, how it is read."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from koopjax import edmd, export, observables
from koopjax._core import expected, on_device
from koopjax.compress._koopman.block import (
    Setting,
    axes_of,
    jacobian_metric,
    koopman_block,
    least_block,
    least_bytes,
)
from koopjax.compress._problem import Problem, Score, check_real, cut, placed, run
from koopjax.compress.gram.formats import quantized

#: Most samples that the search and the moments look at; the last fit takes all.
ROWS = 24_000
#: Directions of an axis tried, as shares of its length, the likelier first.
SHARES = (0.5, 0.36)
#: Of the room, what the directions may take: mixing them and K take the rest.
MOST = 0.3
#: Axes with less entries than this hold little that fewer directions could stand for.
SHORT = 12
#: Samples that the directions of axes are found on.
READ = 20_000
#: Bits that an entry of a direction has more than the entries behind it.
FINER = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
    """What is to be replaced within a budget."""

    problem: Problem
    ends: tuple[str, str]  # names of the cuts
    parts: tuple[Any, ...]  # the span, and what leads from it to the output where that is more
    raw: Array  # states at the first cut in their own shape
    h: Array  # (n, d) of them, flattened, or what the reader makes of them
    y: Array  # (n, q) states at the second cut, flattened
    h_val: Array  # the same for validation samples
    y_val: Array
    out_shape: tuple[int, ...]  # of one state at the second cut
    out_dtype: Any  # of the states there; statistics and fits are in float32
    reader: Any = None  # dictionary on the state before all else (`observables.Kronecker`)

    @property
    def d(self) -> int:
        """Entries of the state before."""
        return self.h.shape[1]

    @property
    def q(self) -> int:
        """Entries of the state after."""
        return self.y.shape[1]

    @property
    def tail(self) -> Any:
        """The part behind, or None where the span ends at the output."""
        return self.parts[1] if len(self.parts) > 1 else None

    @property
    def logits(self) -> bool:
        """Whether it ends at the outputs of a classifier."""
        return self.tail is None and self.problem.softmax

    @functools.cached_property
    def metric(self) -> np.ndarray:
        """Metric on the target: what all logits have in common hardly counts."""
        eye = np.eye(self.q)
        return eye - (1 - 1e-3) / self.q if self.logits else eye

    @functools.cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of `h`."""
        return moments(self.h[:ROWS])

    @property
    def least(self) -> int:
        """Bytes of the arrays of the smallest block."""
        return least_bytes(self.d, self.q)

    @functools.cached_property
    def fixed(self) -> int:
        """What the file takes beside a block's own arrays, with a little room for their headers."""
        model = self.with_block(least_block(self.d, self.q, self.reader))
        return export.stored_bytes(model) - self.least + 8

    @property
    def room(self) -> int:
        """Bytes for the block's arrays."""
        return self.problem.limit - self.fixed

    def reading(self) -> dict[str, Any]:
        """How the state is read, for the report: nothing to say where it is read as it is."""
        if self.reader is None:
            return {}
        shapes = [jnp.shape(factor) for factor in self.reader.factors]
        return {"directions": " x ".join(f"{r} of {n}" for n, r in shapes)}

    def slopes(self, rows: int) -> np.ndarray:
        """`(d, d)` mean square of the outputs' derivatives with respect to `h`, on some samples."""
        metric = jacobian_metric(
            self.parts, self.raw[:rows], self.problem.teacher.shape[-1],
            jax.random.fold_in(self.problem.key, 1),
            centred=self.problem.softmax,
        )  # fmt: skip
        if self.reader is None:
            return metric
        # Directions of an axis are orthonormal, so that what was read is put back by the same.
        back = np.asarray(self.reader(jnp.eye(len(metric), dtype=jnp.float32)), np.float64)
        return back.T @ metric @ back

    def outputs_of(self, y: np.ndarray | Array) -> Array:
        """The model's outputs for states at the second cut."""
        out = on_device(y, self.out_dtype).reshape(len(y), *self.out_shape)
        return out if self.tail is None else self.tail(out)

    def score(self, y: np.ndarray | Array) -> Score:
        """How good states at the second cut are, of the validation samples."""
        return self.problem.score(self.outputs_of(y))

    def over(self, model: Any) -> int:
        """By how many bytes a model's file is too large, if above 0."""
        return export.stored_bytes(model) - self.problem.limit

    def fitted(self, setting: Setting, matrix: np.ndarray, shift: Any, k: Any) -> nnx.Module:
        """The model with a block of these numbers; see `koopman_block`."""
        return self.with_block(koopman_block(self.d, self.reader, setting, matrix, shift, k))

    def with_block(self, block: nnx.Module) -> nnx.Module:
        """The whole model with a block in the span's place."""
        return placed(
            self.problem.model, self.problem.x, self.ends, block, before=self.raw,
            rank=1 + len(self.out_shape), dtype=self.out_dtype, last=self.tail is None,
        )  # fmt: skip


def moments(state: Float[Array, "n d"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean `(d,)` and covariance `(d, d)` of the rows, in one pass, float64 on the host."""
    stats = edmd.accumulate(observables.Monomials(1), state, state).to_gram()
    gram = np.asarray(stats.gram, np.float64) / float(stats.count)
    mean = gram[0, 1:]
    return mean, gram[1:, 1:] - np.outer(mean, mean)


def span_of(problem: Problem, at: Any, fed: Sequence[Any] = ()) -> Span:
    """Run the original up to both cuts; refused where there are no real numbers.

    `fed` are what a compressed model runs up to the first cut, one after another, in its place.
    """
    parts, ends = cut(problem.model, problem.x, at)
    head, span, tail = parts
    check_real(problem.model, problem.x, parts)
    h, h_val = run(head, problem.x), run(head, problem.x_val)
    y, y_val = run(span, h), run(span, h_val)
    if fed:
        chain = lambda x: functools.reduce(lambda state, part: part(state), fed, x)
        h, h_val = run(chain, problem.x), run(chain, problem.x_val)
    if len(h) != len(problem.x) or len(y) != len(problem.x):
        raise expected(
            "a cut whose first axis counts the samples", f"shapes {h.shape} and {y.shape}",
            "another cut",
        )  # fmt: skip
    flat = lambda a: a.reshape(len(a), -1).astype(jnp.float32)
    return Span(
        problem, ends, (span,) if tail.segment.start == tail.segment.stop else (span, tail),
        raw=h, h=flat(h), y=flat(y), h_val=flat(h_val), y_val=flat(y_val),
        out_shape=y.shape[1:], out_dtype=y.dtype,
    )  # fmt: skip


def roomy_span(problem: Problem, at: Any) -> Span:
    """`span_of` with room for the smallest block at least, or `BudgetTooSmall`."""
    span = span_of(problem, at)
    if span.room < span.least:
        raise problem.too_small(span.fixed + span.least)
    return span


def readings(span: Span, bits: int | None = None) -> Iterator[Span]:
    """A span as it is, and behind Kronecker projections of a few sizes where its state has axes.

    A state has axes where it is an array of at least two, or a flat input (784 pixels are 28 x 28);
    whether that is so of its data is for the validation score to say.
    """
    yield span
    shape = span.raw.shape[1:]
    axes = axes_of(shape)
    arranged = sum(n > 1 for n in shape) > 1 or span.ends[0] == "input"
    if not arranged or len(axes) < 2 or min(axes) < SHORT:
        return
    width = 32 if bits is None else bits + FINER
    most = MOST * (8 * span.room / width) / sum(n * n for n in axes)
    chosen = dict.fromkeys(
        tuple(max(1, round(min(share, share / SHARES[0] * most) * n)) for n in axes)
        for share in SHARES
    )
    for ranks in chosen:
        one = behind_axes(span, axes, ranks, bits)
        if one.room >= one.least:
            yield one


def behind_axes(
    span: Span, axes: Sequence[int], ranks: Sequence[int], bits: int | None = None
) -> Span:
    """A span that reads `h (A_1 ⊗ ... ⊗ A_k)` in the place of `h`; the last axis is the fastest."""
    reader = observables.Kronecker.fit(span.h[:READ], axes, ranks)
    if bits is not None:  # small multiples of a step a column
        forms = [
            quantized(np.eye(len(a)), np.asarray(a), min(bits + FINER, 8)) for a in reader.factors
        ]
        coarse = [on_device(codes * scale, jnp.float32) for codes, scale in forms]
        reader = observables.Kronecker(tuple(coarse))
    return dataclasses.replace(span, h=reader(span.h), h_val=reader(span.h_val), reader=reader)
