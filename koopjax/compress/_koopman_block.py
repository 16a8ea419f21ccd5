"""A span as data, and the Koopman block that takes its place."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from koopjax import export, nn, observables
from koopjax._core import expected, on_device
from koopjax.compress._budget import too_small
from koopjax.compress._koopman_span import Span
from koopjax.compress._problem import Problem, check_real, cut, placed, run
from koopjax.compress._setting import Setting


class Job(NamedTuple):
    """A span to be replaced within a budget.

    Attributes:
        problem: the model and the data.
        span: what is replaced, as data.
        ends: names of its cuts.
        room: bytes for the block's arrays.
    """

    problem: Problem
    span: Span
    ends: tuple[str, str]
    room: int


def on_span(method: str, problem: Problem, at: Any, key: Array) -> Job:
    """Run the original up to both cuts, and count the bytes that are left.

    Raises:
        ValueError: a cut that is unknown, or behind which there are no real numbers;
            `BudgetTooSmall` where not even the smallest block fits.
    """
    parts, ends = cut(problem.model, problem.x, at)
    span = states(problem, parts, jax.random.fold_in(key, 1))
    base = fixed_bytes(problem, span, ends)
    smallest = base + span.least
    if smallest > problem.limit:
        raise too_small(method, problem.limit, smallest, problem.original_bytes)
    return Job(problem, span, ends, problem.limit - base)


def states(problem: Problem, parts: Any, key: Array, deliver: Any = None) -> Span:
    """The states at both cuts as rows, for calibration and validation.

    Args:
        problem: the model and the data.
        parts: head, span and tail of the original.
        key: for draws.
        deliver: what a compressed model hands to the span in the head's place; the states behind
            stay those of the original.
    """
    head, span, tail = parts
    shape, x = problem.x.shape, problem.x
    check_real(problem.model, x, parts)
    h, h_val = run(head, x), run(head, problem.x_val)
    y, y_val = run(span, h), run(span, h_val)
    if deliver is not None:
        h, h_val = run(deliver, x), run(deliver, problem.x_val)
    if len(h) != shape[0] or len(y) != shape[0]:
        raise expected(
            "a cut whose first axis counts the samples", f"shapes {h.shape} and {y.shape}",
            "another cut",
        )  # fmt: skip
    flat = lambda a: a.reshape(len(a), -1).astype(jnp.float32)
    direct = tail.segment.start == tail.segment.stop
    return Span(
        h=flat(h), y=flat(y), h_val=flat(h_val), y_val=flat(y_val), sample=h[:2],
        out_shape=y.shape[1:], out_dtype=y.dtype, tail=None if direct else tail,
        parts=(span,) if direct else (span, tail), raw=h, outputs=problem.teacher.shape[-1],
        softmax=problem.softmax, logits=direct and problem.softmax, key=key,
    )  # fmt: skip


def wrap(problem: Problem, span: Span, ends: tuple[str, str], block: nnx.Module) -> nnx.Module:
    """The block as a whole model."""
    return placed(
        problem.model, problem.x, ends, block, before=span.raw, rank=1 + len(span.out_shape),
        dtype=span.out_dtype, last=span.tail is None,
    )  # fmt: skip


def fixed_bytes(problem: Problem, span: Span, ends: tuple[str, str]) -> int:
    """What the file takes beside the block's own arrays, with a little room for their headers."""
    model = wrap(problem, span, ends, least_block(span))
    return export.stored_bytes(model) - span.least + 8


def least_block(span: Span) -> nn.KoopmanBlock:
    """A block of the smallest form."""
    least = Setting.least(span.d, span.q)
    # Numbers in general position: equal ones, and those on a grid, would take less of the file.
    k = np.random.default_rng(0).normal(size=(2, span.q)).astype(np.float32)
    return koopman_block(span, least, np.ones((len(least.kept), 1)), np.zeros(1), k)


def small(indices: np.ndarray, size: int) -> np.ndarray:
    """Indices in the least unsigned type that holds `size` of them."""
    kinds = (np.uint8, np.uint16, np.uint32)
    kind = next(k for k in kinds if size <= np.iinfo(k).max + 1)
    return np.asarray(indices, kind)


def koopman_block(
    span: Span, setting: Setting, matrix: np.ndarray, shift: Any, k: Any
) -> nn.KoopmanBlock:
    """A Koopman block.

    Args:
        span, setting: what it replaces, and its form.
        matrix: `(m, r)`, a row for each kept entry.
        shift: `(r,)`, taken off the coordinates.
        k: `(p, q)`, or its two factors.
    """
    # A scale would say what the projection says already, and fill the file once it is trained.
    coordinates: Any = observables.Compose(
        observables.Project(on_device(matrix, jnp.float32)),
        observables.Standardize(on_device(shift, jnp.float32)),
    )
    if len(setting.kept) < span.d:
        some = observables.Select(observables.Identity(), small(setting.kept, span.d))
        coordinates = observables.Compose(some, coordinates)
    if span.reader is not None:
        coordinates = observables.Compose(span.reader, coordinates)
    lifted: Any = observables.Monomials(setting.degree)
    p = lifted.size(setting.coordinates)
    if setting.observables < p:
        lifted = observables.Select(lifted, small(setting.columns, p))
    operator = nn.LowRank(*k) if isinstance(k, tuple) else nn.Dense(k)
    return nn.KoopmanBlock(observables.Compose(coordinates, lifted), operator)
