"""A span of a model with its data: prepared once, then measured by whatever takes its place."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from koopjax import export, models, surgery
from koopjax._core import check_finite, check_metric, expected, on_device
from koopjax.analysis._scores import METRICS, evaluate, output_metric, run, states

#: Every twelfth training sample chooses the ridge where there are no validation samples.
HOLD_OUT = 12


def _behind(span: Any, tail: Any, x: Array) -> Array:
    return tail(span(x))


@dataclasses.dataclass(frozen=True)
class Flow:
    """States at both cuts as rows `(m, d)` and `(m, q)`, and the output `(n, ..., c)`.

    `shapes` are those of one state at each cut.
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
    """Run a model cut in three on all samples, `batch` at a time; a compilation for each size."""
    if not hasattr(x, "shape") or len(x.shape) < 1 or x.shape[0] == 0:
        raise expected(f"{name}: samples (n, ...) with n > 0", f"{getattr(x, 'shape', type(x))}")
    check_finite(name, x)
    n, size = x.shape[0], min(batch, x.shape[0])
    surgery.check_rows(parts[1], sample_axes)
    runs = [_run(*parts, np.asarray(x[start : start + size])) for start in range(0, n, size)]
    joined = runs[0] if len(runs) == 1 else map(jnp.concatenate, zip(*runs, strict=True))
    before, after, output = joined
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


@dataclasses.dataclass(frozen=True)
class Span:
    """A span of a trained model, and what flows through it; made by `prepare`.

    Attributes:
        model: the original.
        example: shape and dtype of a batch of two, to trace with.
        at: names of the two cuts.
        parts: head, span and tail.
        train, test: states at both cuts and outputs, of training and test samples.
        val: the same of validation samples, or None.
        labels: of the test samples, or None.
        y_val: of the validation samples, or None.
        task: "classification" or "regression".
        score_fn: stands in for the accuracy.
        metric: as `prepare` took it.
        sample_axes: how states that are no vectors are read.
        batch: samples of one forward pass.
    """

    model: Any
    example: Any
    at: tuple[str, str]
    parts: tuple[Any, Any, Any]
    train: Flow
    val: Flow | None
    test: Flow
    labels: Any
    y_val: Any
    task: str
    score_fn: Any
    metric: Any
    sample_axes: Any
    batch: int

    def held_out(self, weights: Any = None) -> tuple["Span", Any]:
        """With every twelfth training sample as validation; and the weights of the others.

        Samples stay whole where they have many positions.
        """
        train, n = self.train, self.train.output.shape[0]
        if n < 2:
            raise expected("two training samples or more", f"{n}")
        held = np.arange(n) % HOLD_OUT == min(HOLD_OUT, n) - 1
        rows = np.repeat(held, train.before.shape[0] // n)
        some = lambda values, which: on_device(np.asarray(values)[which], values.dtype)
        part = lambda s, r: Flow(
            some(train.before, r), some(train.after, r), some(train.output, s), train.shapes
        )
        kept = None if weights is None else np.asarray(weights)[~rows]
        return dataclasses.replace(self, train=part(~held, ~rows), val=part(held, rows)), kept

    def metrics(self) -> tuple[Any, Any]:
        """Metrics on the states after and before the span, in which the output sees them."""
        _, span, tail = self.parts
        # What a softmax does not see is a common shift of several logits.
        output = self.train.output
        several = output.ndim > 1 and output.shape[-1] > 1
        default = "centred" if self.task == "classification" and several else "output"
        named = self.metric is None or isinstance(self.metric, str)
        kind = self.metric if isinstance(self.metric, str) else default
        of = lambda tail, rows, shape: output_metric(
            tail, states(rows, shape, self.sample_axes), kind=kind, sample_axes=self.sample_axes
        )
        before = of(
            jax.tree_util.Partial(_behind, span, tail), self.train.before, self.train.shapes[0]
        )
        if named:
            return of(tail, self.train.after, self.train.shapes[1]), before
        check_metric("metric", self.metric, self.train.after.shape[1])
        return jnp.asarray(self.metric), before

    def output(self, rows: Any) -> Array:
        """What the tail makes of states after the span, given as rows."""
        return run(self.parts[2], states(rows, self.test.shapes[1], self.sample_axes))

    def scores(self, output: Array) -> dict[str, float]:
        """Accuracy, agreement and divergence of outputs for the test samples."""
        test = self.test.output
        return evaluate(output, test, self.labels, task=self.task, score_fn=self.score_fn)

    def original(self, stored: bool) -> dict[str, Any]:
        """Accuracy, parameters and, if asked for, bytes of the model as it was."""
        return {
            "accuracy": self.scores(self.test.output).get("accuracy"),
            "task": self.task,
            "parameters": surgery.cut_points(self.model, self.example)[-1].parameters,
            "stored_bytes": export.stored_bytes(self.model) if stored else None,
        }

    def stored_bytes(self, block: Any, stop: str | None = None) -> int:
        """Bytes of the model with a block in the place of the span, or of all up to `stop`."""
        at = self.at[0], stop or self.at[1]
        made = surgery.splice(self.model, self.example, at, block, sample_axes=self.sample_axes)
        return export.stored_bytes(made)


def prepare(
    model: Any,
    x_train: Any,
    x_val: Any = None,
    y_val: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    *,
    at: Any = None,
    task: str | None = None,
    score_fn: Callable[[Array, Array], Array] | None = None,
    metric: Any = None,
    sample_axes: Any = None,
    batch_size: int = 4096,
) -> Span:
    """Cut a model at a span and run all samples through it, once for every measurement.

    Args:
        model: an `nnx.Module`, `(linen_module, variables)`, `(function, params)` or a callable
            pytree.
        x_train: `(n, ...)` inputs that are fitted on; no labels are used.
        x_val: inputs on which ridges are chosen; every twelfth training sample where left out.
        y_val: their labels, only to choose by accuracy.
        x_test: inputs on which what takes the span's place is measured.
        y_test: their labels; without, there are agreement and divergence but no accuracy.
        at: two cuts `(a, b)`; the middle layers if left out (`surgery.middle`).
        task: "classification" or "regression" (R² and squared errors; see `evaluate`). Where left
            out, integer labels that name the outputs say classification, other labels and none
            regression (`models.read_task`).
        score_fn: stands in for the accuracy, see `evaluate`.
        metric: `(q, q)` metric on the states after the span, or one of "output", "centred",
            "softmax" (see `output_metric`); "centred" for a classification, else "output".
        sample_axes: how states that are no vectors are read, as in `surgery.to_rows`.
        batch_size: samples of one forward pass.

    Returns:
        A `Span` for `ladder_of` and `plane_of`.

    Raises:
        ValueError: wrong shapes, no samples, NaN, labels that do not fit the output or leave the
            task open.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from koopjax import analysis, models
        >>> x = jax.random.normal(jax.random.key(0), (60, 3))
        >>> model = models.MLP((3, 4, 4, 2), rngs=nnx.Rngs(0))
        >>> span = analysis.prepare(model, x[:40], x_test=x[40:])
        >>> span.train.before.shape, span.at
        ((40, 4), ('layers.0/relu', 'layers.1/relu'))
    """
    if x_test is None:
        raise expected("x_test, the samples that are measured on", "none")
    if y_val is not None and x_val is None:
        raise expected("x_val, the samples of y_val", "y_val alone", "both, or none of them")
    if isinstance(metric, str) and metric not in METRICS:
        raise expected(f"a metric among {', '.join(map(repr, METRICS))}, or a matrix", repr(metric))
    at = _cuts_of(model, x_train, at)
    parts = surgery.split(model, x_train[:2], at)
    through = lambda x, name: flow(parts, x, name, sample_axes, batch_size)
    train, test = through(x_train, "x_train"), through(x_test, "x_test")
    val = None if x_val is None else through(x_val, "x_val")
    read = functools.partial(models.read_task, score_fn=score_fn)
    labels = None
    if y_test is not None or y_val is None:
        task, labels = read(test.output, y_test, task, name="y_test")
    if val is not None and y_val is not None:
        task, y_val = read(val.output, y_val, task, name="y_val")
    assert task is not None
    example = jax.ShapeDtypeStruct((2, *x_train.shape[1:]), jnp.asarray(x_train[:1]).dtype)
    return Span(
        model, example, at, parts, train, val, test, labels, y_val, task, score_fn, metric,
        sample_axes, batch_size,
    )  # fmt: skip


def _cuts_of(model: Any, x: Any, at: Any) -> tuple[str, str]:
    """Names of the two cuts of a span; the middle layers where none are given."""
    if not hasattr(x, "shape") or len(x.shape) < 2 or x.shape[0] == 0:
        raise expected("x_train: samples (n, ...) with n > 0", f"{getattr(x, 'shape', type(x))}")
    if at is None:
        return surgery.middle(model, x[:2])
    cuts = surgery.cut_points(model, x[:2])
    first, last = at
    name = lambda cut: cut if cut in ("input", "output") else surgery.find(cuts, cut).name
    return name(first), name(last)


def taken(
    settings: dict[str, Any], *doors: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of `prepare`, and the rest, each known to a door before anything is computed."""
    parameters = inspect.signature(prepare).parameters.values()
    own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    known = own.union(*(inspect.signature(door).parameters for door in doors))
    for name in settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(f"unexpected keyword {name!r}{f', try {near[0]}' if near else ''}")
    rest = {name: value for name, value in settings.items() if name not in own}
    return {name: value for name, value in settings.items() if name in own}, rest
