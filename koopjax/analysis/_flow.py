"""What flows through a model with a span: states before and after, and outputs."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import surgery
from koopjax._core import check_finite, expected, pytree


@pytree
class Chain:
    """One part after another, as a callable pytree."""

    first: Any
    second: Any

    def __call__(self, x: Array) -> Array:
        """The value behind both."""
        return self.second(self.first(x))


@dataclasses.dataclass(frozen=True)
class Flow:
    """The values at both cuts and at the output, for some samples.

    Attributes:
        before: states at the first cut, as rows `(m, d)`.
        after: states at the second, as rows `(m, q)`.
        output: of the model, `(n, ..., c)`.
        shapes: of one state at each cut.
    """

    before: Any
    after: Any
    output: Any
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


@jax.jit
def _run(head: Any, span: Any, tail: Any, x: Array) -> tuple[Array, Array, Array]:
    before = head(x)
    after = span(before)
    return before, after, tail(after)


def flow(parts: tuple[Any, Any, Any], x: Any, name: str, sample_axes: Any, batch: int) -> Flow:
    """Run a model cut in three on all samples, `batch` at a time; a compilation for each size.

    Raises:
        ValueError: no samples, NaN among them, or states that are no vectors without `sample_axes`.
    """
    if not hasattr(x, "shape") or len(x.shape) < 1 or x.shape[0] == 0:
        raise expected(f"{name}: samples (n, ...) with n > 0", f"{getattr(x, 'shape', type(x))}")
    check_finite(name, x)
    n, size = x.shape[0], min(batch, x.shape[0])
    collected: list[list[Array]] = [[], [], []]
    surgery.check_rows(parts[1], sample_axes)
    for start in range(0, n, size):
        values = _run(*parts, np.asarray(x[start : start + size]))
        for held, value in zip(collected, values, strict=True):
            held.append(value)
    before, after, output = (jnp.concatenate(values) for values in collected)
    if sample_axes is None and (before.ndim != 2 or after.ndim != 2):
        raise expected(
            "vectors at both cuts",
            f"states of shapes {before.shape[1:]} and {after.shape[1:]}",
            "sample_axes='positions' or 'flatten'",
        )
    shapes = (tuple(before.shape[1:]), tuple(after.shape[1:]))
    rows = [surgery.to_rows(value, sample_axes) for value in (before, after)]
    if rows[0].shape[0] != rows[1].shape[0]:
        raise expected(
            "as many positions before the span as after it",
            f"{rows[0].shape[0]} and {rows[1].shape[0]}",
            "sample_axes='flatten'",
        )
    for what, value in zip(("before", "after"), rows, strict=True):
        check_finite(f"the states {what} the span", value)
    return Flow(rows[0], rows[1], output, shapes)
